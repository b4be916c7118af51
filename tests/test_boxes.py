"""Boxes of every layout: fractions, exchanged corners, and sizes that are not the picture's."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from regionhash.data import open_dataset
from regionhash.data.boxes import (
    LabelledBox,
    PictureLabels,
    make_targets,
    parse_flag,
    parse_size,
    plain_name,
)
from regionhash.data.images import read_image
from regionhash.data.notices import Notices
from reporters import told

HEIGHT, WIDTH = 80, 100


def save(path, height=HEIGHT, width=WIDTH, orientation=None):
    """A picture; `height` and `width` are those of the file, before EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)


def write_csv(root, boxes, size):
    end = f",{size[1]},{size[0]}" if size else ""
    rows = [f"a.jpg,cup,{','.join(map(str, box))}{end}" for box in boxes]
    head = "image,label,x0,y0,x1,y1" + ",width,height" * bool(size)
    (root / "a.csv").write_text("\n".join([head, *rows]))
    return f"csv:{root}/a.csv"


def write_coco(root, boxes, size):
    size = {"height": size[0], "width": size[1]} if size else {}
    sides = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", **size}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box} for box in sides],
    }
    (root / "a.json").write_text(json.dumps(content))
    return f"coco:{root}:{root}/a.json"


def xml_of(boxes, size):
    size = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>" if size else ""
    objects = "".join(
        "<object><name>cup</name><bndbox>"
        + "".join(
            f"<{e}>{v}</{e}>" for e, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        + "</bndbox></object>"
        for box in boxes
    )
    return f"<annotation>{size}{objects}</annotation>"


def write_voc(root, boxes, size):
    """With edges as VOC counts them, if they are pixels: from 1, the last ones inside."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "a.jpg").rename(root / "JPEGImages/a.jpg")
    (root / "ImageSets/Main/all.txt").write_text("a\n")
    shift = 0 if any(isinstance(edge, float) for box in boxes for edge in box) else 1
    boxes = [(x0 + shift, y0 + shift, x1, y1) for x0, y0, x1, y1 in boxes]
    (root / "Annotations/a.xml").write_text(xml_of(boxes, size))
    return f"voc:{root}:all:data"


def write_ilsvrc(root, boxes, size):
    """With edges as ILSVRC counts them, if they are pixels: from 0, the last ones inside."""
    shift = 0 if any(isinstance(edge, float) for box in boxes for edge in box) else 1
    (root / "ILSVRC2013_DET_val").mkdir()
    (root / "ILSVRC2013_DET_bbox_val").mkdir()
    (root / "a.jpg").rename(root / "ILSVRC2013_DET_val/a.jpg")
    boxes = [(x0, y0, x1 - shift, y1 - shift) for x0, y0, x1, y1 in boxes]
    (root / "ILSVRC2013_DET_bbox_val/a.xml").write_text(xml_of(boxes, size))
    return f"ilsvrc:{root}:val"


WRITE = {"csv": write_csv, "coco": write_coco, "voc": write_voc, "ilsvrc": write_ilsvrc}
RELATIVE = ("csv", "coco", "voc")
FRACTIONS = [(0.1, 0.25, 0.5, 0.75), (0.0, 0.0, 1.0, 1.0)]


@pytest.fixture(params=WRITE)
def write(request):
    return WRITE[request.param]


@pytest.fixture(params=RELATIVE)
def write_relative(request):
    return WRITE[request.param]


# Fractions


def test_a_set_of_fractions_is_refused_with_the_way_to_say_so(tmp_path, write):
    save(tmp_path / "a.jpg")
    spec = write(tmp_path, FRACTIONS, None)
    with pytest.raises(
        ValueError, match="boxes must be in pixels, but 1 of 2 are within 0 to 1"
    ) as e:
        open_dataset(spec)
    assert "a." in str(e.value) and "(0.1, 0.25, 0.5, 0.75)" in str(e.value)
    if spec.partition(":")[0] in RELATIVE:
        assert ":relative" in str(e.value)


def test_fractions_are_read_when_asked_for(tmp_path, write_relative):
    save(tmp_path / "a.jpg")
    image_set = open_dataset(write_relative(tmp_path, FRACTIONS, (1, 1)) + ":relative")
    assert np.allclose(image_set.targets[0].boxes, [[10, 20, 50, 60], [0, 0, 100, 80]])


def test_fractions_refer_to_the_picture_as_shown(tmp_path, write_relative):
    save(tmp_path / "a.jpg", 100, 80, orientation=6)
    image_set = open_dataset(write_relative(tmp_path, FRACTIONS, None) + ":relative")
    assert np.allclose(image_set.targets[0].boxes, [[10, 20, 50, 60], [0, 0, 100, 80]])


def test_pixels_in_place_of_fractions_are_refused(tmp_path, write_relative):
    save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.\w+.*box must be fractions \(0 to 1\)"):
        open_dataset(write_relative(tmp_path, [(10, 20, 50, 60)], None) + ":relative")


def test_fractions_of_a_picture_that_cannot_be_read_are_left_out_and_told(tmp_path):
    image_set = open_dataset(write_csv(tmp_path, FRACTIONS, None) + ":relative")
    assert len(image_set.targets[0].boxes) == 0
    assert image_set.notices.counts == {"pictures of unknown size, their boxes left out": 1}
    image_set = open_dataset(write_csv(tmp_path, FRACTIONS, (80, 100)) + ":relative")
    assert np.allclose(image_set.targets[0].boxes, [[10, 20, 50, 60], [0, 0, 100, 80]])


@pytest.mark.parametrize(
    ("boxes", "n_told"),
    [
        ([(0, 0, 1, 1), (5, 5, 9, 9)], 1),  # all of a picture, in fractions
        ([(0, 0, 1, 1)], 1),
        ([(0.5, 0.5, 1, 1), (5, 5, 9, 9), (1, 2, 8, 8)], 1),
        ([(0, 0, 1, 2), (5.5, 5, 9, 9)], 0),
        ([(99, 79, 100, 80)], 0),  # one pixel
        ([(1, 1, 2, 2)], 0),
    ],
)
def test_a_box_like_a_fraction_among_pixels_is_taken_and_told(tmp_path, boxes, n_told):
    save(tmp_path / "a.jpg")
    for write in (write_csv, write_coco):
        image_set = open_dataset(write(tmp_path, boxes, (HEIGHT, WIDTH)))
        assert image_set.targets[0].boxes.tolist() == [list(map(float, box)) for box in boxes]
        wanted = {"boxes within 0 to 1, taken as pixels": n_told} if n_told else {}
        assert image_set.notices.counts == wanted


def test_a_set_whose_every_box_is_one_pixel_is_read(tmp_path, write):
    save(tmp_path / "a.jpg")
    image_set = open_dataset(write(tmp_path, [(3, 4, 4, 5), (99, 79, 100, 80)], (HEIGHT, WIDTH)))
    assert image_set.targets[0].boxes.tolist() == [[3, 4, 4, 5], [99, 79, 100, 80]]
    assert image_set.notices.counts == {}


# Corners


@pytest.mark.parametrize("box", [(50, 20, 10, 60), (10, 60, 50, 20), (50, 60, 10, 20)])
def test_exchanged_corners_are_put_right_and_told(tmp_path, write, box):
    save(tmp_path / "a.jpg")
    spec = write(tmp_path, [box], (HEIGHT, WIDTH))
    image_set = open_dataset(spec)
    # With edges that count pixels, the exchanged ones are shifted by one.
    assert np.abs(image_set.targets[0].boxes - [10, 20, 50, 60]).max() <= 1
    if spec[:3] in ("csv", "coc"):
        assert image_set.targets[0].boxes.tolist() == [[10, 20, 50, 60]]
    assert image_set.notices.counts == {"boxes with exchanged corners, put right": 1}
    assert "a." in told(image_set.notices)[0]


def test_exchanged_edges_that_count_pixels_still_include_both(tmp_path):
    save(tmp_path / "JPEGImages/a.jpg")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(xml_of([(5, 5, 4, 7)], None))
    image_set = open_dataset(f"voc:{tmp_path}:all:data")
    assert image_set.targets[0].boxes.tolist() == [[3, 4, 5, 7]]  # pixels 4 and 5, from 1


# Sizes


@pytest.mark.parametrize("noted", [(40, 50), (800, 1000), (HEIGHT, WIDTH + 1), (1, 1)])
def test_the_picture_gives_the_frame_and_another_noted_size_is_told(tmp_path, write, noted):
    save(tmp_path / "a.jpg")
    image_set = open_dataset(write(tmp_path, [(10, 20, 60, 70), (90, 70, 300, 300)], noted))
    assert image_set.targets[0].boxes.tolist() == [[10, 20, 60, 70], [90, 70, 100, 80]]
    assert image_set.notices.counts == {"sizes that are not the picture's": 1}
    (line,) = told(image_set.notices)
    assert f"is {noted[1]} x {noted[0]}, but that of" in line and "is 100 x 80" in line


@pytest.mark.parametrize("noted", [None, (0, 0), (0, WIDTH), (HEIGHT, WIDTH)])
def test_a_size_that_is_missing_or_zero_is_the_pictures(tmp_path, write, noted):
    save(tmp_path / "a.jpg")
    image_set = open_dataset(write(tmp_path, [(90, 70, 300, 300)], noted))
    assert image_set.targets[0].boxes.tolist() == [[90, 70, 100, 80]]
    assert image_set.notices.counts == {}


def test_the_noted_size_of_a_picture_that_cannot_be_read_is_kept(tmp_path, write):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    image_set = open_dataset(write(tmp_path, [(10, 20, 300, 300)], (70, 90)))
    assert image_set.targets[0].boxes.tolist() == [[10, 20, 90, 70]]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_from_before_exif_orientation_are_turned_with_the_picture(
    tmp_path, write, orientation
):
    stored = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stored[8:24, 48:88] = 255  # at corners of JPEG's blocks, so that edges stay sharp
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    shown = read_image(tmp_path / "a.jpg")[..., 0] > 128
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    wanted = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]

    image_set = open_dataset(write(tmp_path, [(48, 8, 88, 24)], (HEIGHT, WIDTH)))
    assert image_set.targets[0].boxes.tolist() == [list(map(float, wanted))]
    (count,) = image_set.notices.counts.items()
    assert count == ("pictures with boxes from before EXIF orientation, turned", 1)


def test_boxes_in_the_shown_frame_stay_there(tmp_path, write):
    save(tmp_path / "a.jpg", HEIGHT, WIDTH, orientation=6)
    image_set = open_dataset(write(tmp_path, [(8, 48, 24, 88)], (WIDTH, HEIGHT)))
    assert image_set.targets[0].boxes.tolist() == [[8, 48, 24, 88]]
    assert image_set.notices.counts == {}


def test_an_exchanged_size_without_exif_is_another_size(tmp_path, write):
    save(tmp_path / "a.jpg", HEIGHT, WIDTH)
    image_set = open_dataset(write(tmp_path, [(8, 48, 24, 88)], (WIDTH, HEIGHT)))
    assert image_set.targets[0].boxes.tolist() == [[8, 48, 24, 80]]
    assert image_set.notices.counts == {"sizes that are not the picture's": 1}


def test_a_size_is_told_once_for_a_picture_and_counted_for_the_set(tmp_path):
    rows = []
    for n in range(5):
        save(tmp_path / f"{n}.jpg")
        rows += [f"{n}.jpg,cup,1,2,3,4,7,7", f"{n}.jpg,cup,5,6,7,8,7,7"]
    (tmp_path / "a.csv").write_text("\n".join(["image,label,x0,y0,x1,y1,width,height", *rows]))
    notices = open_dataset(f"csv:{tmp_path}/a.csv").notices
    assert notices.counts == {"sizes that are not the picture's": 5}
    assert len(told(notices)) == 4


# Any boxes


@given(
    boxes=st.lists(st.tuples(*[st.floats(-200, 300, width=32)] * 4), max_size=8),
    relative=st.booleans(),
)
@example(boxes=[(0.0, 0.0, 100.0, 1e-30), (5.0, 5.0, 9.0, 9.0)], relative=True)
@example(boxes=[(1e308, 0.0, 1e308, 60.0), (5.0, 5.0, 9.0, 9.0)], relative=False)
@example(boxes=[(50.0, 50.0, 50.0 + 1e-9, 60.0)], relative=False)  # without area as float32
def test_what_is_kept_has_area_in_the_picture_and_the_rest_is_counted(boxes, relative):
    if relative:
        boxes = [tuple(edge / 300 for edge in box) for box in boxes]
    notices = Notices()
    objects = [LabelledBox(f"f:{n}", n, box) for n, box in enumerate(boxes)]
    try:
        (target,) = make_targets(
            "f", [PictureLabels("none", objects, (), (80, 100))], notices, relative=relative
        )
    except ValueError as error:
        assert "in pixels" in str(error)
        return
    x0, y0, x1, y1 = target.boxes.T
    assert (x0 < x1).all() and (y0 < y1).all()
    assert (target.boxes >= 0).all() and (x1 <= 100).all() and (y1 <= 80).all()
    left_out = notices.counts.get("boxes without area, left out", 0)
    assert len(target.boxes) + left_out == len(boxes)


# Fields


@pytest.mark.parametrize(
    ("text", "name", "n_told"),
    [
        ("cup", "cup", 0),
        (" cup ", "cup", 0),
        ("'cup'", "cup", 1),
        ('"cup"', "cup", 1),
        (' "cup, red" ', "cup, red", 1),
        ("\u201ccup\u201d", "cup", 1),
        ("\u2018cup\u2019", "cup", 1),
        ("\"'cup'\"", "'cup'", 1),
        ("'cup\"", "'cup\"", 0),
        ("dog's", "dog's", 0),
        ("''", "''", 0),
        ("' '", "' '", 0),
        ("'", "'", 0),
        ("", "", 0),
    ],
)
def test_one_pair_of_quotes_is_taken_off_a_name_and_told(text, name, n_told):
    notices = Notices()
    assert plain_name(text, "f:1", notices) == name
    assert sum(notices.counts.values()) == n_told


@pytest.mark.parametrize(
    "value", [None, "", 0, 0.0, False, "0", "0.0", " 0 ", "false", "False", "FALSE", "Unspecified"]
)
def test_a_mark_that_is_not_set(value):
    assert parse_flag(value, "crowd") is False


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "1.0", "true", "True", " 1\n"])
def test_a_mark_that_is_set(value):
    assert parse_flag(value, "crowd") is True


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan"), "2", "yes", [], {}, [1], 10**400])
def test_a_mark_of_another_value_is_refused(value):
    with pytest.raises(ValueError, match="crowd must be 0 or 1, got"):
        parse_flag(value, "crowd")


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (8, 10, (8, 10)),
        ("8", " 10 ", (8, 10)),
        (8.0, "10.0", (8, 10)),
        (None, None, None),
        ("", 10, None),
        (0, 10, None),
        ("0", "0", None),
    ],
)
def test_a_size_is_read_by_value(height, width, size):
    assert parse_size(height, width) == size


@pytest.mark.parametrize(
    "value", [True, [], "ten", 8.5, "8.5", float("inf"), float("nan"), "9" * 5000]
)
def test_a_size_of_another_kind_is_refused(value):
    with pytest.raises(ValueError, match="height must be a whole number"):
        parse_size(value, 10)


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="width must be positive, got -3"):
        parse_size(8, -3)
