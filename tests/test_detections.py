"""Boxes of detectors: every form of file, the pictures that they belong to, and functions."""

import json

import numpy as np
import pytest
from PIL import Image

from conftest import write_picture
from regionhash.data.detections import Boxes, detect, read_detections
from regionhash.data.inputs import open_inputs
from regionhash.structures import Detections

RESULTS = [
    {"file_name": "a.jpg", "bbox": [1, 2, 3, 4], "score": 0.25, "category_name": "dog"},
    {"file_name": "a.jpg", "bbox": [0, 0, 10, 8], "score": 0.5, "category_name": "cat"},
    {"file_name": "sub/b.jpg", "bbox": [2, 2, 4, 4], "score": 1, "category_name": "dog"},
]
WANTED = {
    "a.jpg": [([1, 2, 4, 6], 0.25, "dog"), ([0, 0, 10, 8], 0.5, "cat")],
    "sub/b.jpg": [([2, 2, 6, 6], 1.0, "dog")],
}


@pytest.fixture
def pictures(tmp_path):
    """Three pictures of 10 x 8 pixels, one of them in a folder; c.jpg has no boxes."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.jpg", "c.jpg"):
        write_picture(folder / name, np.zeros((8, 10, 3)))
    return folder


def found_in(path, pictures, told=0):
    """The boxes of each picture as plain values, and what was noticed."""
    image_set, _ = open_inputs([str(pictures)])
    boxes = Boxes([read_detections(path)], told=told)
    classes = ("cat", "dog")
    found = boxes.of(image_set, range(len(image_set)), classes)
    plain = {
        image_set.ids[row]: [
            (box, round(score, 4), classes[label] if label >= 0 else None)
            for box, score, label in zip(
                own.boxes.round(4).tolist(), own.scores.tolist(), own.labels.tolist(), strict=True
            )
        ]
        for row, own in found.items()
    }
    return plain, image_set.notices.counts


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


WITHOUT = "pictures without boxes, encoded without them"


def coco():
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 10, "height": 8},
            {"id": "2", "file_name": ".\\sub\\b.jpg"},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.25, "category_id": 18},
            {"image_id": 1, "bbox": [0, 0, 10, 8], "score": 0.5, "category_id": 17},
            {"image_id": 2, "bbox": [2, 2, 4, 4], "category_id": 18},
        ],
    }


# Forms


def test_coco_results_are_read(pictures, tmp_path):
    found, noticed = found_in(write(tmp_path / "d.json", RESULTS), pictures)
    assert found == WANTED
    assert noticed == {WITHOUT: 1}


def test_a_coco_file_with_scores_is_read(pictures, tmp_path):
    assert found_in(write(tmp_path / "d.json", coco()), pictures) == (WANTED, {WITHOUT: 1})


def test_coco_results_without_names_have_no_classes_and_pictures_by_number(pictures, tmp_path):
    write_picture(pictures / "000000000139.jpg", np.zeros((8, 10, 3)))
    results = [
        {"image_id": 139, "bbox": [1, 2, 3, 4], "score": 0.5, "category_id": 1},
        {"image_id": "a", "bbox": [1, 2, 3, 4], "category_id": 1},
    ]
    found, noticed = found_in(write(tmp_path / "d.json", results), pictures)
    assert found == {
        "000000000139.jpg": [([1, 2, 4, 6], 0.5, None)],
        "a.jpg": [([1, 2, 4, 6], 1.0, None)],
    }
    assert noticed["boxes of classes without a name, stored without class"] == 2


@pytest.mark.parametrize(
    "table",
    [
        "image,label,score,x0,y0,x1,y1\na.jpg,dog,0.25,1,2,4,6\na.jpg,cat,.5,0,0,10,8\n"
        "sub/b.jpg,dog,,2,2,6,6\n",
        "filename;class;Confidence;x;y;w;h\na;dog;0,25;1;2;3;4\na;cat;0,5;0;0;10;8\n"
        "sub\\b.jpg;dog;1;2;2;4;4\n",
    ],
)
def test_tables_with_scores_are_read(table, pictures, tmp_path):
    assert found_in(write(tmp_path / "d.csv", table), pictures) == (WANTED, {WITHOUT: 1})


def test_a_table_needs_neither_classes_nor_scores(pictures, tmp_path):
    table = write(tmp_path / "d.csv", "image,x0,y0,x1,y1\na.jpg,1,2,4,6\nc.jpg,,,,\n")
    found, noticed = found_in(table, pictures)
    assert found == {"a.jpg": [([1, 2, 4, 6], 1.0, None)], "c.jpg": []}
    assert noticed == {WITHOUT: 1}  # sub/b.jpg; of c.jpg it is known that nothing was found


def test_text_files_of_yolo_are_read(pictures, tmp_path):
    folder = tmp_path / "predict"
    write(folder / "classes.txt", "cat\ndog\n\n")
    write(folder / "labels/a.txt", "1 0.25 0.5 0.3 0.5 0.25\n0 0.5 0.5 1 1 0.5\n")
    write(folder / "labels/sub/b.txt", "1 0.2 0.25 0.6 0.25 0.6 0.75 0.2 0.75\n")
    assert found_in(folder, pictures) == (WANTED, {WITHOUT: 1})
    (folder / "classes.txt").unlink()
    found, noticed = found_in(folder, pictures)
    assert found["a.jpg"][1] == ([0, 0, 10, 8], 0.5, None)
    assert noticed["boxes of classes without a name, stored without class"] == 3


# Which picture


def test_a_name_fits_the_end_of_a_path_and_the_longest_counts(pictures, tmp_path):
    write_picture(pictures / "sub/a.jpg", np.zeros((8, 10, 3)))
    results = [
        {"file_name": "a.jpg", "bbox": [1, 1, 1, 1]},
        {"file_name": "photos/sub/a", "bbox": [2, 2, 1, 1]},
        {"file_name": str(pictures / "c.jpg"), "bbox": [3, 3, 1, 1]},
    ]
    found, _ = found_in(write(tmp_path / "d.json", results), pictures)
    assert {name: boxes[0][0][0] for name, boxes in found.items()} == {
        "a.jpg": 1,
        "sub/a.jpg": 2,
        "c.jpg": 3,
    }


def test_a_name_that_fits_several_pictures_is_left_out_and_told(pictures, tmp_path):
    (pictures / "x").mkdir()
    write_picture(pictures / "x/b.jpg", np.zeros((8, 10, 3)))
    results = [{"file_name": "b.jpg", "bbox": [1, 1, 1, 1]}]
    found, noticed = found_in(write(tmp_path / "d.json", results), pictures)
    assert found == {}
    assert noticed["names that fit several pictures, their boxes left out"] == 1
    write_picture(pictures / "b.jpg", np.zeros((8, 10, 3)))  # the one of this very name
    assert [*found_in(tmp_path / "d.json", pictures)[0]] == ["b.jpg"]


def test_a_picture_of_another_folder_is_found_by_its_name_if_it_is_the_only_one(pictures, tmp_path):
    results = [
        {"file_name": "/elsewhere/a.jpg", "bbox": [1, 1, 1, 1]},
        {"file_name": "1/b.jpg", "bbox": [1, 1, 1, 1]},
        {"file_name": "2/b.jpg", "bbox": [2, 1, 1, 1]},
    ]
    found, noticed = found_in(write(tmp_path / "d.json", results), pictures, told=1)
    assert [*found] == ["a.jpg"]
    assert noticed["boxes of a picture in another folder, found by its name"] == 1
    assert noticed["pictures with boxes that are not among the pictures, left out"] == 2
    assert noticed[WITHOUT] == 2


def test_boxes_of_pictures_that_are_not_there_are_left_out_and_told(pictures, tmp_path):
    path = write(tmp_path / "d.json", [*RESULTS, {"file_name": "no.jpg", "bbox": [0, 0, 1, 1]}])
    found, noticed = found_in(path, pictures, told=1)
    assert found == WANTED
    assert noticed["pictures with boxes that are not among the pictures, left out"] == 1


def test_the_first_file_that_has_a_picture_counts(pictures, tmp_path):
    new = write(tmp_path / "new.json", [{"file_name": "a.jpg", "bbox": [5, 5, 1, 1]}])
    old = write(tmp_path / "old.json", RESULTS)
    image_set, _ = open_inputs([str(pictures)])
    boxes = Boxes([*map(read_detections, (new, old))])
    assert boxes.classes == ("dog", "cat")
    found = boxes.of(image_set, [0, 2], boxes.classes)  # a.jpg and sub/b.jpg
    assert found[0].boxes.tolist() == [[5, 5, 6, 6]]
    assert found[2].labels.tolist() == [0]


def test_boxes_are_turned_cut_and_left_out_as_those_of_labels(pictures, tmp_path):
    with Image.open(pictures / "a.jpg") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(pictures / "a.jpg", exif=exif)  # is shown as 8 x 10
    content = coco()
    content["annotations"] = [
        {"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.25, "category_id": 18},
        {"image_id": 2, "bbox": [20, 2, 3, 4], "score": 0.5, "category_id": 18},
        {"image_id": 2, "bbox": [5, 2, 30, 4], "score": 0.75, "category_id": 17},
    ]
    found, noticed = found_in(write(tmp_path / "d.json", content), pictures)
    assert found["a.jpg"] == [([2, 1, 6, 4], 0.25, "dog")]
    assert found["sub/b.jpg"] == [([5, 2, 10, 6], 0.75, "cat")]  # with its own score and class
    assert noticed["pictures with boxes from before EXIF orientation, turned"] == 1
    assert noticed["boxes without area, left out"] == 1


def test_a_class_that_the_model_does_not_know_is_none_and_told(pictures, tmp_path):
    results = [{"file_name": "a.jpg", "bbox": [1, 1, 1, 1], "label": "cow"}]
    found, noticed = found_in(write(tmp_path / "d.json", results), pictures)
    assert found["a.jpg"][0][2] is None
    assert noticed["boxes of classes that the model does not know, stored without class"] == 1


def test_pictures_that_are_no_files_are_refused(tmp_path):
    image_set, _ = open_inputs(["digits:train:4"])
    with pytest.raises(ValueError, match="files of boxes need pictures that are files"):
        Boxes([]).of(image_set, [0], ())


# Errors


def changed(**fields):
    return [RESULTS[0] | fields]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.json", [7], r"d\.json: \[0\] must be an object, got 7"),
        ("d.json", [{}], r"d\.json: \[0\] needs 'image_id' or 'file_name'"),
        ("d.json", changed(file_name=7), r"\[0\] needs 'file_name' \(str\), got 7"),
        ("d.json", changed(file_name="\0"), r"\[0\]: 'file_name' is not a name"),
        ("d.json", changed(bbox=[1, 2, 3]), r"\[0\]: bbox must be \[x, y, width, height\]"),
        ("d.json", changed(bbox=None), r"\[0\]: needs 'bbox' \(list\)"),
        ("d.json", changed(score=87), r"\[0\]: score must be a number in \[0, 1\], got 87"),
        ("d.json", changed(score="x"), r"\[0\]: score must be a number in \[0, 1\], got 'x'"),
        ("d.json", changed(bbox=[0.1, 0.1, 0.2, 0.2]), "boxes must be in pixels, but 1 of 1"),
        ("d.json", {"images": []}, None),
        ("d.json", coco() | {"images": []}, r"annotations\[0\]: no picture has the id 1"),
        ("d.json", coco() | {"categories": []}, None),
        ("d.json", 7, "no list 'images'"),
        ("d.json", "[", "broken JSON"),
        ("d.csv", "image,label\na,b\n", r"d\.csv:1: header must be image,x0,y0,x1,y1 with or"),
        ("d.csv", "a,b\n", r"d\.csv:1: header must be image,x0,y0,x1,y1 with or without label"),
        ("d.csv", "image,x0,y0,x1,y1,score\na,1,1,2,2,2\n", r"d\.csv:2: score must be a number"),
        ("labels/a.txt", "0 0.5 0.5 1 1 7", r"labels/a\.txt, line 1: score must be a number"),
        ("labels/a.txt", "x 0.5 0.5 1 1", r"labels/a\.txt, line 1: must be numbers"),
        ("labels/a.txt", "-1 0.5 0.5 1 1", r"labels/a\.txt, line 1: class index must be 0 to"),
        ("labels/a.txt", "0 50 50 1 1", "must be fractions"),
        ("labels/classes.txt", "a\na\n", r"classes\.txt: must have a name of a class per line"),
        ("labels/classes.txt", "a\n", "has no .txt file"),
        ("d.onnx", "", r"d\.onnx: detections are a .json file"),
    ],
)
def test_an_error_names_file_and_field_in_one_line(name, content, message, pictures, tmp_path):
    path = write(tmp_path / name, content)
    given = tmp_path / "labels" if name.startswith("labels") else path
    if message is None:
        found_in(given, pictures)
        return
    with pytest.raises(ValueError, match=message) as raised:
        found_in(given, pictures)
    assert str(tmp_path) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_file_that_is_missing_is_named(tmp_path):
    for name in ("no.json", "no.csv", "no"):
        with pytest.raises(ValueError, match=rf"{name}: .*[Nn]o such file"):
            read_detections(tmp_path / name)


# Functions

IMAGE = np.zeros((8, 10, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "boxes", "scores", "labels"),
    [
        ([[1, 2, 3, 4]], [[1, 2, 3, 4]], [1], [-1]),
        (np.zeros((0, 4)), [], [], []),
        ((np.array([[1, 2, 30, 40], [9, 9, 9, 9]]), [0.5, 0.1]), [[1, 2, 10, 8]], [0.5], [-1]),
        (([[1, 2, 3, 4]], None, [2]), [[1, 2, 3, 4]], [1], [2]),
        (Detections.none(), [], [], []),
    ],
)
def test_a_function_gives_boxes_with_or_without_scores_and_classes(given, boxes, scores, labels):
    found = detect(lambda _: given, IMAGE)
    assert found.boxes.tolist() == boxes
    assert found.scores.tolist() == scores
    assert found.labels.tolist() == labels


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2, 3, 4], r"boxes must be \(\*, 4\), got \(4,\)"),
        ([[1, 2, 3, np.nan]], "boxes must be finite"),
        (([[1, 2, 3, 4]], [2]), r"scores must be in \[0, 1\]"),
        (([[1, 2, 3, 4]], [0.5, 0.5]), r"scores must be \(1\), got \(2,\)"),
        (([[1, 2, 3, 4]], None, ["dog"]), "labels must be class indices"),
        (([[1, 2, 3, 4]], None, [-2]), "labels must be class indices"),
    ],
)
def test_a_function_that_gives_something_else_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        detect(lambda _: given, IMAGE)
