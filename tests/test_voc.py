import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionhash.data.images import ImageError
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


@pytest.mark.parametrize("box", [(11, 1, 20, 8), (5, 5, 4, 7), (3, 7, 9, 2), (-9, 1, 0, 8)])
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
        ("<annotation/>", "<annotation> lacks <size/height>"),
        ("<annotation><size><width>0</width><height>8</height></size></annotation>", "positive"),
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
