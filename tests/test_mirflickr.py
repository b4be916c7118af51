import numpy as np
import pytest

from conftest import write_picture
from regionhash.data import open_dataset
from regionhash.data.mirflickr import read_mirflickr


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "mirflickr"
    root.mkdir()
    for n in (1, 2, 10):
        write_picture(root / f"im{n}.jpg", np.full((8, 10, 3), 20 * n))
    notes = root / "annotations"
    notes.mkdir()
    (notes / "dog.txt").write_text("10\r\n1\r\n99\r\n")
    (notes / "dog_r1.txt").write_text("10\n")
    (notes / "sky.txt").write_text("")
    (notes / "README.txt").write_text("not a list")
    return root


def test_every_list_is_a_label_and_strict_lists_are_labels_of_their_own(root):
    found = open_dataset(f"mirflickr:{root}")
    assert found.classes == ("dog", "dog_r1", "sky")
    assert found.ids == ("im1", "im2", "im10")  # by number; 99 is not there
    assert found.labels().tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert found.images[2].shape == (8, 10, 3)


def test_the_annotations_may_lie_beside_the_pictures_as_they_are_unpacked(root):
    (root / "annotations").rename(root.parent / "mirflickr25k_annotations_v080")
    assert read_mirflickr(root).classes == ("dog", "dog_r1", "sky")


def test_missing_and_broken_parts_are_named(root, tmp_path):
    with pytest.raises(ValueError, match=r"must hold im1.jpg"):
        read_mirflickr(tmp_path / "nowhere")
    (root / "annotations" / "sky.txt").write_text("1\nim2\n")
    with pytest.raises(ValueError, match=r"sky.txt, line 2: must be the number .* got 'im2'"):
        read_mirflickr(root)
    for path in (root / "annotations").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"holds no file <label>.txt"):
        read_mirflickr(root)
