import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionhash.data import open_dataset
from regionhash.data.images import ImageError
from regionhash.data.inputs import Pictures, open_inputs
from regionhash.data.voc import VOC_CLASSES, read_voc
from reporters import told

DATA = Path(os.environ.get("REGIONHASH_DATA", Path(__file__).parents[2] / "shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no photographs in {DATA}")


def voc_object(name: str, box: tuple[float, ...], difficult: int | None = 0) -> str:
    edges = "".join(
        f"<{edge}>{value}</{edge}>"
        for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    mark = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object>{part}<name>{name}</name>{mark}<bndbox>{edges}</bndbox></object>"


def write_annotation(root: Path, image_id: str, *objects: str, size: str | None = None) -> Path:
    size = size or "<size><width>10</width><height>8</height><depth>3</depth></size>"
    path = root / f"Annotations/{image_id}.xml"
    path.write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
    return path


@pytest.fixture
def root(tmp_path):
    """A VOC folder with one picture of 8 x 10 pixels, "a", in the split "train"."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / "VOC2042" / folder).mkdir(parents=True)
    root = tmp_path / "VOC2042"
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    Image.new("RGB", (10, 8)).save(root / "JPEGImages/a.jpg")
    write_annotation(root, "a", voc_object("dog", (1, 1, 10, 8)))
    return root


def test_the_classes_are_the_twenty_in_alphabetical_order():
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)


def test_a_box_of_the_whole_picture_is_the_whole_picture(root):
    image_set = read_voc(root, "train")
    (target,) = image_set.targets
    assert target.boxes.tolist() == [[0, 0, 10, 8]]
    assert target.labels.tolist() == [VOC_CLASSES.index("dog")]
    assert image_set.images[0].shape == (8, 10, 3)
    assert (image_set.name, image_set.ids) == ("VOC2042:train", ("a",))
    assert image_set.classes == VOC_CLASSES


def test_boxes_are_shifted_to_count_from_zero_and_marks_are_kept(root):
    write_annotation(
        root,
        "a",
        voc_object("person", (2, 3, 4, 5), difficult=1),
        voc_object("cat", (3.5, 2, 9, 4), difficult=None),
    )
    (target,) = read_voc(root, "train").targets
    assert target.boxes.tolist() == [[1, 2, 4, 5], [2.5, 1, 9, 4]]
    assert target.difficult.tolist() == [True, False]
    assert target.all_labels() == (VOC_CLASSES.index("cat"),)


def test_a_picture_without_objects_is_valid(root):
    write_annotation(root, "a")
    (target,) = read_voc(root, "train").targets
    assert target.boxes.shape == (0, 4)


def test_the_split_is_found_by_year_and_its_second_column_ignored(root):
    (root / "ImageSets/Main/dog_train.txt").write_text("a -1\n\n")
    assert read_voc(root.parent, "dog_train", year=2042).ids == ("a",)


def test_a_box_that_leaves_the_picture_is_clipped(root):
    write_annotation(root, "a", voc_object("dog", (-3, 0, 40, 9)))
    assert read_voc(root, "train").targets[0].boxes.tolist() == [[0, 0, 10, 8]]


@pytest.mark.parametrize("box", [(11, 1, 20, 8), (1, 9, 3, 12), (-9, 1, 0, 8)])
def test_a_box_without_area_in_the_picture_is_left_out_and_reported(root, box):
    path = write_annotation(root, "a", voc_object("dog", box), voc_object("cat", (1, 1, 1, 1)))
    image_set = read_voc(root, "train")
    (target,) = image_set.targets
    assert target.boxes.tolist() == [[0, 0, 1, 1]]
    (line,) = told(image_set.notices)
    assert str(path) in line and "no area in a picture of 10 x 8 pixels" in line


def test_own_classes_replace_the_twenty(root):
    write_annotation(root, "a", voc_object("cup", (1, 1, 2, 2)))
    image_set = read_voc(root, "train", classes=["saucer", "cup"])
    assert image_set.classes == ("saucer", "cup")
    assert image_set.targets[0].labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"a\.xml: unknown class 'cup'; known are aeroplane"):
        read_voc(root, "train")


@pytest.mark.parametrize("missing", ["JPEGImages", "Annotations", "ImageSets/Main/val.txt"])
def test_a_missing_part_of_the_layout_is_an_error_that_says_what_belongs_there(root, missing):
    (root / "ImageSets/Main/val.txt").write_text("a\n")
    (root / missing).rename(root / "elsewhere")
    with pytest.raises(ValueError, match=rf"{missing} is missing.*Annotations/<id>\.xml"):
        read_voc(root, "val")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "broken XML"),
        ("<annotation><size>", "broken XML"),
        ("<html/>", "must be <annotation>, got <html>"),
        ("<annotation><size><width>-1</width><height>8</height></size></annotation>", "positive"),
        (
            "<annotation><object><name>dog</name><difficult>2</difficult><bndbox><xmin>1</xmin>"
            "<ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>",
            "<difficult> must be 0 or 1, got '2'",
        ),
        ("<annotation><size><width>ten</width><height>8</height></size></annotation>", "'ten'"),
    ],
)
def test_an_unreadable_annotation_is_an_error_that_names_it(root, content, reason):
    (root / "Annotations/a.xml").write_text(content)
    with pytest.raises(ValueError, match=rf"a\.xml: .*{reason}"):
        read_voc(root, "train")


def test_a_box_that_is_no_number_is_an_error_that_names_the_file(root):
    write_annotation(root, "a", voc_object("dog", (1, 1, float("nan"), 8)))
    with pytest.raises(ValueError, match=r"a\.xml: box must be finite"):
        read_voc(root, "train")
    write_annotation(root, "a", "<object><name>dog</name></object>")
    with pytest.raises(ValueError, match=r"a\.xml: <object> lacks <bndbox/xmin>"):
        read_voc(root, "train")


def test_a_missing_annotation_and_an_empty_split_are_errors(root):
    (root / "Annotations/a.xml").unlink()
    with pytest.raises(ValueError, match=r"a\.xml is missing"):
        read_voc(root, "train")
    (root / "ImageSets/Main/train.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"train\.txt lists no picture"):
        read_voc(root, "train")


def test_a_missing_picture_shows_when_it_is_read(root):
    (root / "JPEGImages/a.jpg").unlink()
    image_set = read_voc(root, "train")
    with pytest.raises(ImageError, match=r"a\.jpg: No such file"):
        image_set.images[0]


def test_the_classes_may_be_those_that_occur(root):
    write_annotation(
        root, "a", voc_object("'saucer'", (1, 1, 2, 2)), voc_object("cup", (1, 1, 2, 2))
    )
    image_set = read_voc(root, "train", classes="data")
    assert image_set.classes == ("cup", "saucer")
    assert image_set.targets[0].labels.tolist() == [1, 0]
    assert image_set.notices.counts == {"class names in quotes, taken without": 1}
    with pytest.raises(ValueError, match=r"unknown class 'saucer'.*voc:ROOT:SPLIT:data"):
        read_voc(root, "train")
    write_annotation(root, "a")
    with pytest.raises(ValueError, match="no picture of 'train' has an object"):
        read_voc(root, "train", classes="data")


def test_classes_are_named_in_the_form_of_a_data_set(root, tmp_path):
    write_annotation(root, "a", voc_object("cup", (1, 1, 2, 2)))
    (tmp_path / "classes.txt").write_text("saucer\n\ncup\n")
    for given, classes in (
        ("data", ("cup",)),
        ("saucer,cup", ("saucer", "cup")),
        ("cup", ("cup",)),
        (f"{tmp_path}/classes.txt", ("saucer", "cup")),
    ):
        image_set = open_dataset(f"voc:{root}:train:{given}")
        assert image_set.classes == classes
        assert image_set.targets[0].labels.tolist() == [classes.index("cup")]
    for given, reason in (
        ("none.txt", "none.txt: cannot read the classes"),
        ("cup,cup", "must be different names"),
        ("cup,,x", "must be different names"),
    ):
        with pytest.raises(ValueError, match=reason):
            open_dataset(f"voc:{root}:train:{given}")


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.jpeg", "a.webp", "A.jpg", "a.BMP", "A.Tiff"])
def test_pictures_may_end_in_any_suffix(root, name):
    (root / "JPEGImages/a.jpg").unlink()
    kind = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(Path(name).suffix.lower())
    Image.new("RGB", (10, 8)).save(root / "JPEGImages" / name, kind)
    image_set = read_voc(root, "train")
    assert image_set.ids == ("a",)
    assert image_set.images[0].shape == (8, 10, 3)
    assert image_set.notices.counts == {}


def test_a_name_that_fits_several_pictures_is_told(root):
    Image.new("RGB", (11, 8)).save(root / "JPEGImages/a.png")
    image_set = read_voc(root, "train")
    assert image_set.images[0].shape == (8, 10, 3)
    (line,) = told(image_set.notices)
    assert "a may be any of a.jpg, a.png" in line and "a.jpg was taken" in line


def test_ids_have_the_suffix_if_it_is_not_the_same_for_all(root):
    Image.new("RGB", (10, 8)).save(root / "JPEGImages/b.png")
    write_annotation(root, "b")
    (root / "ImageSets/Main/train.txt").write_text("a\nb\n")
    image_set, source = open_inputs([f"voc:{root}:train"])
    assert image_set.ids == ("a.jpg", "b.png")
    assert [Pictures([source])[image_id].shape for image_id in image_set.ids] == [(8, 10, 3)] * 2


@pytest.mark.parametrize(
    ("lines", "ids"),
    [
        ("my photo 1", ["my photo 1"]),
        ("my photo 1\nmy photo", ["my photo 1", "my photo"]),
        ("my photo 1  1\nmy photo -1\na  0", ["my photo 1", "my photo", "a"]),
        ("a.jpg\nmy photo.PNG", ["a", "my photo"]),
        ("a.jpg -1", ["a"]),
        ("JPEGImages/a.jpg\n/some/where/JPEGImages/my photo.jpg", ["a", "my photo"]),
        ("./a\n.\\my photo.jpg", ["a", "my photo"]),
        ("a\ta note", ["a"]),
        ("\ufeffa\r\nmy photo\r\n", ["a", "my photo"]),
    ],
)
def test_ids_may_have_blanks_marks_and_suffixes(root, lines, ids):
    for image_id in ("my photo 1", "my photo"):
        write_annotation(root, image_id)
    (root / "ImageSets/Main/train.txt").write_text(lines, encoding="utf-8")
    image_set = read_voc(root, "train")
    assert list(image_set.ids) == ids
    assert image_set.notices.counts == {}


@pytest.mark.parametrize("again", ["a", "a.jpg", "./a", "a -1"])
def test_an_id_that_is_listed_twice_is_taken_once_and_told(root, again):
    (root / "ImageSets/Main/train.txt").write_text(f"a\n{again}\n")
    image_set = read_voc(root, "train")
    assert image_set.ids == ("a",)
    assert "train.txt, line 2: 'a' is already in line 1" in told(image_set.notices)[0]


@pytest.mark.parametrize(
    ("pictures", "annotations", "spec"),
    [
        ("JPEGImages", "Annotations", "all"),
        ("images", "Annotations", "all"),  # as Label Studio writes it
        ("data", "labels", "all"),  # as FiftyOne writes it
        ("train", "train", "train"),  # as Roboflow and LabelImg write it
        (".", ".", "all"),
        ("train/JPEGImages", "train/Annotations", "train"),
    ],
)
def test_sets_without_lists_have_all_their_pictures(tmp_path, pictures, annotations, spec):
    for folder in (pictures, annotations):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (10, 8)).save(tmp_path / pictures / name)
    text = f"<annotation>{voc_object('cup', (1, 1, 2, 2))}</annotation>"
    (tmp_path / annotations / "a.xml").write_text(text)
    image_set = read_voc(tmp_path, spec, classes="data")
    assert image_set.ids == ("a.jpg", "b.png")
    assert [len(target.boxes) for target in image_set.targets] == [1, 0]
    assert image_set.images[1].shape == (8, 10, 3)
    kind = "pictures without an annotation, taken as without objects"
    assert image_set.notices.counts == {kind: 1}


def test_a_list_named_all_is_taken_before_all_pictures(root):
    write_annotation(root, "b")
    assert read_voc(root, "all").ids == ("a", "b")
    (root / "ImageSets/Main/all.txt").write_text("b\n")
    assert read_voc(root, "all").ids == ("b",)


def write_filename(root, filename):
    (root / "Annotations/a.xml").write_text(
        f"<annotation><filename>{filename}</filename>{voc_object('dog', (1, 1, 2, 2))}</annotation>"
    )


@pytest.mark.parametrize(
    "filename", ["a.jpg", "a", "A.JPG", "a.png", "x/y/a.jpg", "C:\\x\\a.jpg", ""]
)
def test_the_name_in_an_annotation_may_be_spelled_in_any_way(root, filename):
    write_filename(root, filename)
    assert read_voc(root, "train").notices.counts == {}


def test_an_annotation_that_names_another_picture_is_told(root):
    write_filename(root, "other.png")
    Image.new("RGB", (11, 8)).save(root / "JPEGImages/other.png")
    image_set = read_voc(root, "train")
    assert image_set.images[0].shape == (8, 10, 3)
    assert "a.xml: <filename> is 'other.png'" in told(image_set.notices)[0]
    (root / "JPEGImages/a.jpg").unlink()
    assert read_voc(root, "train").images[0].shape == (8, 11, 3)


@pytest.mark.data
@needs_data
def test_the_photographs_of_voc2012_are_read():
    train = read_voc(DATA / "VOCdevkit/VOC2012", "train")
    val = read_voc(DATA / "VOCdevkit", "val", year=2012)
    assert (len(train), len(val)) == (2421, 569)
    assert not set(train.ids) & set(val.ids)
    assert sum(len(target.boxes) for target in train.targets + val.targets) == 5594
    assert train.notices.counts == val.notices.counts == {}
    for n in range(0, len(val), 100):
        height, width, _ = val.images[n].shape
        boxes = val.targets[n].boxes
        assert (boxes >= 0).all() and (boxes <= np.array([width, height] * 2)).all()
