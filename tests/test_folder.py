import pytest
from PIL import Image

from regionhash.data.folder import read_folder
from reporters import told


@pytest.fixture
def folder(tmp_path):
    for name in ("dog/b.png", "cat/a.png", "cat/young/a.png"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(path)
    (tmp_path / "pets/none").mkdir()
    return tmp_path / "pets"


def test_a_plain_folder_has_no_classes(folder):
    image_set = read_folder(folder)
    assert image_set.name == "pets"
    assert image_set.classes == ()
    assert image_set.ids == ("cat/a.png", "cat/young/a.png", "dog/b.png")
    assert image_set.images[2].shape == (2, 3, 3)
    assert image_set.labels().shape == (3, 0)


def test_subfolders_are_labels_where_asked_for(folder):
    image_set = read_folder(folder, labelled=True)
    assert image_set.classes == ("cat", "dog")
    assert [target.image_labels for target in image_set.targets] == [(0,), (0,), (1,)]
    assert all(len(target.boxes) == 0 for target in image_set.targets)


def test_a_picture_outside_the_subfolders_is_left_out_and_told(folder):
    Image.new("RGB", (3, 2)).save(folder / "stray.png")
    assert len(read_folder(folder)) == 4
    image_set = read_folder(folder, labelled=True)
    assert image_set.ids == ("cat/a.png", "cat/young/a.png", "dog/b.png")
    assert image_set.classes == ("cat", "dog")
    (line,) = told(image_set.notices)
    assert line.startswith(f"{folder}/stray.png has no label")


def test_pictures_outside_the_subfolders_alone_are_an_error(folder):
    with pytest.raises(ValueError, match=r"a\.png has no label: pictures must be in subfolders"):
        read_folder(folder / "cat/young", labelled=True)


def test_an_empty_or_missing_folder_is_an_error_that_names_it(folder):
    with pytest.raises(ValueError, match=r"none: no picture \(\.apng .*\) found"):
        read_folder(folder / "none")
    with pytest.raises(ValueError, match="gone is missing"):
        read_folder(folder / "gone")
    with pytest.raises(ValueError, match=r"b\.png is missing: it must be a folder"):
        read_folder(folder / "dog/b.png")
