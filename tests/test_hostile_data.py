"""Files of data sets, lists and settings that are broken or made to do harm.

Whatever a file holds, it is read, or a ValueError says in one line which file it is and why.
"""

import errno
import json
import os
import random
import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli_runner import error_of
from conftest import write_picture
from regionhash.data.coco import read_coco
from regionhash.data.csv_table import read_csv
from regionhash.data.detections import Boxes, read_detections
from regionhash.data.ilsvrc import read_ilsvrc
from regionhash.data.images import find_images
from regionhash.data.inputs import open_inputs
from regionhash.data.instances import read_instances
from regionhash.data.mirflickr import read_mirflickr
from regionhash.data.oxford import read_oxford
from regionhash.data.voc import parse_classes, read_voc
from regionhash.data.yolo import read_yolo
from regionhash.files import text as textfile
from regionhash.files.strict_json import read_json
from regionhash.models import MODELS
from regionhash.models.parameters import defaults_of
from regionhash.training import TrainingConfig
from regionhash.training.settings import training_settings

pytestmark = pytest.mark.timeout(60)

COCO = {
    "images": [
        {"id": 7, "file_name": "b.jpg", "height": 8, "width": 10},
        {"id": 3, "file_name": "a.jpg", "height": 8, "width": 10},
    ],
    "categories": [{"id": 100, "name": "dog"}, {"id": 20, "name": "person"}],
    "annotations": [
        {"image_id": 7, "category_id": 100, "bbox": [1.5, 2, 3, 4], "iscrowd": 0},
        {"image_id": 7, "category_id": 20, "bbox": [0, 0, 10, 8], "iscrowd": 1},
    ],
}
XML = (
    '<?xml version="1.0" encoding="utf-8"?><annotation><filename>a.jpg</filename>'
    "<size><width>10</width><height>8</height><depth>3</depth></size>"
    "<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>"
    "<xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>"
)
TABLE = 'image,label,x0,y0,x1,y1\na.jpg,dog,1,2,3,4\n"b.jpg","dog",0,0,10,8\nb.jpg,cat,,,,\n'
OUTLINES: dict[str, Any] = COCO | {
    "images": [{"id": "7", "file_name": "b.jpg"}, {"id": "x", "file_name": "JPEGImages\\\\a.jpg"}],
    "annotations": [
        {"image_id": 7, "category_id": "100", "segmentation": [[1, 2, 3, 4, 5, 6]], "iscrowd": "1"},
        {
            "image_id": "x",
            "category_id": 20,
            "segmentation": {"size": [8, 10], "counts": [9, 3, 68]},
        },
        {
            "image_id": "x",
            "category_id": 20,
            "segmentation": {"size": [9, 10], "counts": "61X13mN000`0"},
        },
    ],
}
FRACTIONS = "image;label;xmin;ymin;xmax;ymax;w\na.jpg;'dog';0,1;0.2;0.3;0.4;3\nb.jpg;cat;;;;;\n;;\n"
OPEN_IMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
    "a,x,/m/01,1,0.1,0.3,0.2,0.4,0\nb,x,/m/02,0,,,,,1\n"
)
RESULTS = [
    {"file_name": "a.jpg", "bbox": [1, 2, 3, 4], "score": 0.5, "category_name": "dog"},
    {"image_id": 7, "bbox": [0, 0, 10, 8], "score": 1, "category_id": 3},
    {"image_id": "sub/b", "bbox": [0, 0, 10, 8], "label": "cat"},
]
SCORED = "image,x0,y0,x1,y1,score,label\na.jpg,1,2,3,4,0.5,dog\nb,0,0,10,8,,\n"
FOUND = "1 0.5 0.5 0.25 0.5 0.75\n0 0.1 0.1 0.2 0.1 0.2 0.3 1\n0 0.5 0.5 1 1\n"
YAML = "path: .\ntrain: train.txt\nval: [pictures]\nnc: 2\nnames: {0: cat, 1: 'dog'}\n"
LINES = "1 0.5 0.5 0.25 0.5\n0 0.1 0.1 0.2 0.1 0.2 0.3\n"
TOML = (
    '[model]\nn_bits = 48\nlatent_std = 0.5\nsemantic = true\nfusion = "plain"\n'
    '[training]\nepochs = 3\nlearning_rate = 1e-3\nschedule = "step"\n'
)


@dataclass(frozen=True)
class Kind:
    """A kind of file: where it lies in the folder `data`, its content, and how it is read."""

    path: str
    content: str
    read: Any
    spec: str = ""


def read_yolo_below(root: Path, path: Path, split: str) -> Any:
    """The set, unless a mutant names the root of the disk, which would be walked for hours."""

    def find(inputs, notices):
        if not Path(inputs[0]).resolve().is_relative_to(root):
            raise ValueError("elsewhere")
        return find_images(inputs, notices)

    with patch("regionhash.data.yolo.find_images", find):
        return read_yolo(path, split)


def read_boxes(root: Path, path: Path) -> Any:
    """The boxes that a file has of the pictures of `voc/JPEGImages`."""
    image_set, _ = open_inputs([str(root / "voc/JPEGImages/*.jpg")])
    boxes = Boxes([read_detections(path)], told=1)
    return boxes.of(image_set, range(len(image_set)), boxes.classes)


KINDS = {
    "results": Kind("found/results.json", json.dumps(RESULTS), read_boxes),
    "scored coco": Kind(
        "found/scored.json", json.dumps(COCO).replace('"iscrowd": 0', '"score": 0.5'), read_boxes
    ),
    "scored csv": Kind("found/scored.csv", SCORED, read_boxes),
    "found labels": Kind(
        "found/labels/a.txt", FOUND, lambda root, _: read_boxes(root, root / "found/labels")
    ),
    "found classes": Kind(
        "found/named/classes.txt",
        "cat\ndog\n",
        lambda root, _: read_boxes(root, root / "found/named"),
    ),
    "coco": Kind(
        "coco.json",
        json.dumps(COCO),
        lambda root, path: read_coco(root / "voc/JPEGImages", path),
        "coco:{root}/voc/JPEGImages:{path}",
    ),
    "coco outlines": Kind(
        "outlines.json",
        json.dumps(OUTLINES),
        lambda root, path: read_coco(root / "voc/JPEGImages", path),
    ),
    "csv fractions": Kind(
        "voc/JPEGImages/fractions.csv",
        FRACTIONS,
        lambda _, path: read_csv(path, relative=True),
        "csv:{path}:relative",
    ),
    "open images": Kind(
        "voc/JPEGImages/open.csv", OPEN_IMAGES, lambda _, path: read_csv(path), "csv:{path}"
    ),
    "voc classes": Kind(
        "classes.txt",
        "dog\ncat\n",
        lambda _, path: parse_classes(str(path)),
    ),
    "voc folder": Kind(
        "side/all/a.xml",
        XML,
        lambda root, _: read_voc(root / "side", "all", classes="data"),
        "voc:{root}/side:all:data",
    ),
    "yolo": Kind(
        "yolo/data.yaml",
        YAML,
        lambda root, path: read_yolo_below(root, path, "train"),
        "yolo:{path}:train",
    ),
    "yolo list": Kind(
        "yolo/train.txt",
        "./images/a.jpg\nimages\\a.jpg\r\nimages/b.jpg\n",
        lambda root, _: read_yolo_below(root, root / "yolo/data.yaml", "train"),
        "yolo:{root}/yolo/data.yaml:train",
    ),
    "yolo labels": Kind(
        "yolo/labels/a.txt",
        LINES,
        lambda root, _: read_yolo_below(root, root / "yolo/data.yaml", "train"),
        "yolo:{root}/yolo/data.yaml:train",
    ),
    "csv": Kind("voc/JPEGImages/table.csv", TABLE, lambda _, path: read_csv(path), "csv:{path}"),
    "instances": Kind("voc/JPEGImages/own.csv", TABLE, lambda _, path: read_instances(path)),
    "voc list": Kind(
        "voc/ImageSets/Main/train.txt",
        "a 1\nb -1\n",
        lambda root, _: read_voc(root / "voc", "train"),
        "voc:{root}/voc:train",
    ),
    "voc": Kind(
        "voc/Annotations/a.xml",
        XML,
        lambda root, _: read_voc(root / "voc", "train"),
        "voc:{root}/voc:train",
    ),
    "ilsvrc": Kind(
        "ILSVRC2013_DET_bbox_train/n/a.xml",
        XML,
        lambda root, _: read_ilsvrc(root, "train"),
        "ilsvrc:{root}:train",
    ),
    "mirflickr": Kind(
        "mir/annotations/dog.txt",
        "1\r\n2\r\n99\r\n",
        lambda root, _: read_mirflickr(root / "mir"),
        "mirflickr:{root}/mir",
    ),
    "oxford query": Kind(
        "ox/q_1_query.txt", "oxc1_a 1 2.5 8 7\n", lambda root, _: read_oxford(root / "ox")
    ),
    "oxford good": Kind("ox/q_1_good.txt", "a\nb\n", lambda root, _: read_oxford(root / "ox")),
    "list": Kind(
        "voc/JPEGImages/list.txt", "a.jpg\nb.jpg\n", lambda _, path: open_inputs([f"@{path}"])
    ),
    "settings": Kind(
        "a.toml", TOML, lambda _, path: training_settings("region-dh", file=path), "--config"
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a small valid file of each kind and the pictures that they name."""
    root = tmp_path_factory.mktemp("data")
    pictures = (
        "voc/JPEGImages/a.jpg",
        "voc/JPEGImages/b.jpg",
        "side/all/a.png",
        "yolo/images/a.jpg",
        "yolo/images/b.jpg",
        "ILSVRC2013_DET_train/n/a.jpg",
        "mir/im1.jpg",
        "mir/im2.jpg",
        "ox/a.jpg",
        "ox/b.jpg",
    )
    for name in pictures:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(root / name, np.zeros((8, 10, 3)))
    for kind in KINDS.values():
        (root / kind.path).parent.mkdir(parents=True, exist_ok=True)
        restore(root, kind)
    (root / "voc/Annotations/b.xml").write_text(XML)
    (root / "found/named/a.txt").write_text(FOUND)
    for name in ("ok", "junk"):
        (root / f"ox/q_1_{name}.txt").write_text("")
    return root


def restore(root: Path, kind: Kind) -> None:
    path = root / kind.path
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_text(kind.content)


def check_message(text: str, path: Path) -> None:
    assert len(text.splitlines()) == 1, text
    assert path.name in text
    assert len(text) < 2000
    assert text.isprintable()


def outcome(root: Path, kind: Kind, content: bytes) -> str:
    """What the reader says of a content, the rule checked; "" where it reads it."""
    path = root / kind.path
    path.write_bytes(content)
    try:
        kind.read(root, path)
    except ValueError as error:
        check_message(str(error), path)
        return str(error)
    finally:
        path.write_text(kind.content)
    return ""


@pytest.mark.parametrize("name", KINDS)
def test_a_valid_file_is_read_with_and_without_a_byte_order_mark(data, name):
    kind = KINDS[name]
    assert outcome(data, kind, kind.content.encode()) == ""
    if kind.content != XML:
        assert outcome(data, kind, b"\xef\xbb\xbf" + kind.content.encode()) == ""


# Anything in place of the file


def place_directory(path: Path) -> str:
    path.mkdir()
    return "Is a directory"


def place_pipe(path: Path) -> str:
    os.mkfifo(path)
    return "not a regular file"


def place_device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "not a regular file"


def place_loop(path: Path) -> str:
    path.symlink_to(path)
    return "symbolic links"


def place_dangling(path: Path) -> str:
    path.symlink_to(path.with_name("nowhere"))
    return "missing|No such file"


@pytest.mark.parametrize(
    "place", [place_directory, place_pipe, place_device, place_loop, place_dangling]
)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_and_not_waited_for(data, name, place):
    kind = KINDS[name]
    path = data / kind.path
    path.unlink()
    reason = place(path)
    if (name, place) == ("voc list", place_loop):
        reason = "is missing"  # as `Path.exists` has it
    if (name, place) == ("yolo list", place_directory):
        reason = "no picture"
    try:
        with pytest.raises(ValueError, match=reason) as raised:
            kind.read(data, path)
    finally:
        restore(data, kind)
    check_message(str(raised.value), path)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_may_not_be_read_is_named_with_the_reason(data, name, monkeypatch):
    kind = KINDS[name]
    path = data / kind.path

    def refuse(given, flags):
        if Path(given) == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(given))
        return opened(given, flags)

    opened = os.open
    monkeypatch.setattr(textfile.os, "open", refuse)
    with pytest.raises(ValueError, match="Permission denied") as raised:
        kind.read(data, path)
    check_message(str(raised.value), path)


# Contents that once ended otherwise, or could

DEEP = 100_000
LAUGHS = (
    '<!DOCTYPE a [<!ENTITY a "ha">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><annotation>&i;</annotation>"
)
QUADRATIC = f'<!DOCTYPE a [<!ENTITY a "{"x" * 100_000}">]><a>{"&a;" * 100_000}</a>'

HOSTILE = {
    "results": [
        ("[" * DEEP, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "4300 digits"),
        ('{"a": 1}', "no list 'images'"),
        (json.dumps(RESULTS).replace("0.5", "1e400"), r"\[0\]: score must be a number in"),
        (json.dumps(RESULTS).replace("0.5", "NaN"), r"\[0\]: score must be a number in"),
        (json.dumps(RESULTS).replace("0.5", "true"), r"\[0\]: score must be a number in"),
        (json.dumps(RESULTS).replace("0.5", "1" + "0" * 400), r"\[0\]: score must be a number in"),
        (json.dumps(RESULTS).replace("[1, 2,", "[1e400, 2,"), "finite"),
        (json.dumps(RESULTS).replace("7,", "7.5,"), r"'image_id' \(int\), got 7.5"),
        (json.dumps(RESULTS).replace("a.jpg", r"\ud800"), "'file_name' is not a name"),
        (json.dumps(RESULTS).replace('"dog"', '" "'), "'category_name' is not a name"),
    ],
    "scored coco": [
        (KINDS["scored coco"].content.replace("0.5", "-1"), r"annotations\[0\]: score must be"),
        (KINDS["scored coco"].content.replace("b.jpg", r"b\u0000"), "is not a name"),
        (KINDS["scored coco"].content.replace('"height": 8', '"height": -1'), "must be positive"),
    ],
    "scored csv": [
        (SCORED.replace("0.5", "nan"), r"scored\.csv:2: score must be a number in \[0, 1\]"),
        (SCORED.replace("0.5", "9" * 5000), r"scored\.csv:2: score must be a number in"),
        (SCORED.replace("x0", "x1"), "header must"),
    ],
    "found labels": [
        (FOUND.replace("0.75", "1e400"), r"a\.txt, line 1: score must be a number in"),
        ("9" * 500 + " 0 0 0 0", r"a\.txt, line 1: class index must be 0 to"),
        ("1 0.5 0.5 0.5", r"a\.txt, line 1: must be a class and a box"),
        ("1 0.5 nan 1 1", "finite"),
    ],
    "found classes": [("a\na\n", "must have a name of a class per line, all different")],
    "coco": [
        ("[" * DEEP, "nested too deeply"),
        ('{"a":' * DEEP, "nested too deeply"),
        ('{"images": ' + "9" * 5000 + "}", "4300 digits"),
        ("null", "no list 'categories'"),
        ('{"categories": {}, "images": [], "annotations": []}', "no list 'categories'"),
        ('{"categories": [[]]}', "needs 'id'"),
        (json.dumps(COCO).replace("1.5", "1e400"), "finite"),
        (json.dumps(COCO).replace("1.5", "NaN"), "finite"),
        (json.dumps(COCO).replace("1.5", "1" + "0" * 400), "bbox must be"),
        (json.dumps(COCO).replace("1.5", "[" * 500 + "]" * 500), "bbox must be"),
        (json.dumps(COCO).replace("[1.5, 2, 3, 4]", str(list(range(10**5)))), "bbox must be"),
        (json.dumps(COCO).replace('"height": 8', '"height": -1'), "height must be positive"),
        (json.dumps(COCO).replace('"iscrowd": 0', '"iscrowd": "2"'), "iscrowd must be 0 or 1"),
        (json.dumps(COCO).replace('"id": 7', '"id": true'), r"'id' \(int\), got True"),
        (json.dumps(COCO).replace('"id": 7', '"id": 7.5'), r"'id' \(int\), got 7.5"),
        (json.dumps(COCO).replace('"id": 7', '"id": [7]'), r"'id' \(int\), got \[7\]"),
        (
            json.dumps(COCO).replace('"id": 7', '"id": 3'),
            "two of 'images' have the id 3: 'b.jpg' and 'a.jpg'",
        ),
        (json.dumps(COCO).replace("100", "20"), "two of 'categories' have the id 20"),
        (json.dumps(COCO).replace("b.jpg", r"\ud800"), "'file_name' is not a name"),
        (json.dumps(COCO).replace("b.jpg", r"b\u0000"), "'file_name' is not a name"),
        (json.dumps(COCO).replace('"dog"', '""'), "'name' is not a name"),
    ],
    "coco outlines": [
        (json.dumps(OUTLINES).replace("[9, 3, 68]", "[9, 3, 1e400]"), "a mask needs 'counts'"),
        (json.dumps(OUTLINES).replace("[9, 3, 68]", str([1] * 10**5)), "more than the 8 x 10"),
        (json.dumps(OUTLINES).replace("61X13", "~" * 10**5), "its text is broken"),
        (json.dumps(OUTLINES).replace("61X13", "o" * 10**5), "its text is broken"),
        (json.dumps(OUTLINES).replace("[8, 10]", "[1e999, 10]"), "height must be a whole number"),
        (json.dumps(OUTLINES).replace("[[1, 2,", "[[NaN, 2,"), "segmentation must be finite"),
        (json.dumps(OUTLINES).replace("[[1, 2,", "[[1" + "0" * 400 + ", 2,"), "must be polygons"),
        (json.dumps(OUTLINES).replace('"1"', '"' + "1" * 5000 + '"'), "iscrowd must be 0 or 1"),
    ],
    "csv fractions": [
        (FRACTIONS.replace("0,1", "1e400"), "finite"),
        (FRACTIONS.replace("0,1", "5"), r"fractions\.csv:2: box must be fractions"),
        (FRACTIONS.replace("image", "x" * 10**6), "field larger than"),
        ("sep=;" * 1000, "header must be"),
    ],
    "open images": [(OPEN_IMAGES.replace("0.1", "17"), r"open\.csv:2: box must be fractions")],
    "voc classes": [
        ("dog\ndog\n", "must be different names"),
        ("\n", "must be different names"),
    ],
    "yolo": [
        (f"a: &a [{'x, ' * 9}x]\nb: [*a]\n" + YAML, r"aliases \(\*\) are not allowed"),
        ("a: " + "[" * DEEP, "nested too deeply"),
        ("a: " + "{b: " * 1000, "nested too deeply"),
        ("- " * DEEP, "nested too deeply"),
        ("#" * (1 << 20), "more than the limit of 262,144"),
        (YAML.replace("nc: 2", "nc: " + "9" * 5000), "nc must be a number of classes"),
        (YAML.replace("0: cat", "9" * 500 + ": cat"), "names must have class indices"),
        (YAML.replace("cat", r'"a\0b"'), "names must be text"),
        (YAML.replace("path: .", r'path: "a\0b"'), "'path' is not a name"),
        (YAML.replace("train.txt", r'"a\0b"'), "'train' must be a folder"),
        (YAML.replace("train.txt", "x" * 5000), r"data\.yaml: train: File name too long"),
        (YAML.replace("train.txt", "x" * 5000 + ".txt"), r"data\.yaml: train: File name too long"),
        ("!!python/object/apply:os.system [ls]", "must have 'names'"),
    ],
    "yolo list": [
        ("/\n", r"train\.txt, line 1: must name a picture, got '/'"),
        ("a\0.jpg\n", r"train\.txt, line 1: must name a picture"),
        ("\n", r"train: .*train\.txt lists no picture"),
    ],
    "yolo labels": [
        ("1e400 0 0 0 0", r"a\.txt, line 1: class index must be 0 to 1"),
        (LINES + "9" * 5000 + " 0 0 0 0", r"a\.txt, line 3: class index must be 0 to 1"),
        ("1 1e400 0 0 0", "finite"),
        ("1 " + "0.5 " * 10**5 + "0.5", r"a\.txt, line 1: must be a class and a box"),
        ("1\0 0 0 0 0", "must be numbers"),
    ],
    "csv": [
        (TABLE.replace("a.jpg,dog,1,2,3,4", "none,dog,1e39,2,1e40,4"), "in pixels"),
        (TABLE.replace("1,2", "1e400,2"), "finite"),
        (TABLE.replace("1,2", "-inf,2"), "finite"),
        (TABLE.replace("a.jpg", "a\0"), r"table\.csv:2: a cell contains a NUL"),
        (TABLE.replace("1,2", '"1\n2",2'), r"table\.csv:3: a box must be four numbers"),
        (TABLE.replace("1,2", "\x1b[31m,2"), r"got \?\[31m,2,3,4"),
        (TABLE.replace('"b.jpg"', '"b.jpg'), r"table\.csv:\d: expected 6 cells"),
        ("\0" * (1 << 21), r"table\.csv:1: a line has 1,048,576 characters or more"),
        ("x," * 100_000, "header must be"),
    ],
    "voc list": [
        ("a\n\0\n", r"train\.txt, line 2: an id must not contain NUL"),
        ("a\nc\n", r"train\.txt: each picture needs an XML file, but .*c\.xml is missing"),
        ("x" * 3000, r"train\.txt: each picture needs an XML file, but"),
    ],
    "voc": [
        (LAUGHS, "must not declare entities"),
        (QUADRATIC, "must not declare entities"),
        ("<a>" * DEEP, "nested more than 64 deep"),
        ("<a>" * DEEP + "</a>" * DEEP, "nested more than 64 deep"),
        (XML.replace("utf-8", "nonsense"), "unknown encoding"),
        (XML.replace("utf-8", "shift_jis"), "multi-byte encodings"),
        (XML + " " * (5 << 20), "more than the limit of 4,194,304"),
        (XML.replace("<xmin>1<", "<xmin>1e400<"), "finite"),
        (XML.replace("<width>10<", f"<width>{'9' * 5000}<"), "width must be a whole number"),
        (XML.replace("<xmin>1<", f"<xmin>{'x' * 5000}<"), "could not convert"),
        (XML.replace("dog", "d\no\ng"), r"unknown class 'd\\no\\ng'"),
    ],
    "ilsvrc": [
        (LAUGHS, "must not declare entities"),
        ("<a>" * DEEP, "nested more than 64 deep"),
        (XML.replace("utf-8", "nonsense"), "unknown encoding"),
        (XML.replace("<width>10<", "<width>-1<"), "must be positive"),
        (XML.replace("<xmin>1<", "<xmin>nan<"), "finite"),
    ],
    "mirflickr": [
        ("9" * 5000, r"dog\.txt, line 1: must be the number of a picture"),
        ("1\n-2\n", r"dog\.txt, line 2: must be the number of a picture"),
    ],
    "oxford query": [
        ("oxc1_a 1 2 inf 7", "must be a picture and a box"),
        ("oxc1_a 1 2 1e400 7", "must be a picture and a box"),
        ("oxc1_a nan 2 8 7", "must be a picture and a box"),
        ("none 1 2 8 7", r"q_1_query\.txt: the picture none of query q_1 is missing"),
        ("x" * 10**5, "must be a picture and a box"),
    ],
    "settings": [
        ("[model]\nn_bits = " + "[" * 900, "nested too deeply"),
        ("[model]\nx = " + "[" * 2000, "line 2 is longer than 1000 characters"),
        ("a." * 20_000 + "a = 1", "line 1 is longer than 1000 characters"),
        ("#\n" * 50_000, "more than the limit of 65,536"),
        ("[model]\nlatent_std = " + "9" * 400, "latent_std: must be finite"),
        ("[model]\nn_bits = 0x" + "f" * 900, "n_bits: must be from 0 to 65536"),
        ("[model]\nsemantic = 0x" + "f" * 900, "semantic: must be bool"),
        ("[model]\nn_bits = 80000000000", "n_bits: must be from 0 to 65536, got 80000000000"),
        ("[model]\nn_bits = -8", "n_bits: must be from 0 to 65536, got -8"),
        ("[training]\nseed = -1", "seed: must be from 0 to 9223372036854775807"),
        ("[training]\nlearning_rate = nan", r"\[training\] learning_rate: must be finite"),
        ("[training]\nlearning_rate = inf", r"\[training\] learning_rate: must be finite"),
        ("[training]\nepochs = 0", r"\[training\] epochs: epochs must be at least 1, got 0"),
        ("[training]\nepochs = 1979-05-27T07:32:00Z", "epochs: must be int"),
        ("[training.epochs]\na = 1", r"epochs: must be int, got \{'a': 1\}"),
        ('[training]\n"a\\nb" = 1', r"\[training\] a b: unknown"),
        ('"a\\nb" = 1', r"unknown key 'a\\nb'"),
        ('[[training]]', "unknown key 'training'"),
        ('[model]\nweights = "a\\u0000b"', "weights: must have no NUL"),
        ("[model]\0", "broken TOML"),
    ],
}  # fmt: skip
ALWAYS = [b"\xff\xfe\x00\x01", bytes(range(256)) * 4, b"\x80" * 1000]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [(name, *case) for name, cases in HOSTILE.items() for case in cases],
    ids=[f"{name}-{n}" for name, cases in HOSTILE.items() for n in range(len(cases))],
)
def test_a_hostile_content_is_refused_with_the_reason(data, name, content, reason):
    assert re.search(reason, outcome(data, KINDS[name], content.encode("utf-8")))


@pytest.mark.parametrize("name", KINDS)
def test_an_empty_file_and_what_is_no_text_follow_the_rule(data, name):
    outcome(data, KINDS[name], b"")
    for content in ALWAYS:
        assert outcome(data, KINDS[name], content)


def test_an_annotation_may_have_many_objects(data):
    cut = XML.index("<object>"), XML.index("</annotation>")
    content = XML[: cut[1]] + XML[slice(*cut)] * 200 + XML[cut[1] :]
    assert outcome(data, KINDS["voc"], content.encode()) == ""


def test_a_table_does_not_wait_for_a_pipe_in_place_of_a_picture(data):
    pipe = data / "voc/JPEGImages/pipe.jpg"
    os.mkfifo(pipe)
    content = TABLE.replace("a.jpg", "pipe.jpg") + f"{'x' * 300}.jpg,dog,1,2,3,4\n"
    assert outcome(data, KINDS["csv"], content.encode()) == ""
    pipe.unlink()


def test_settings_on_the_command_line_follow_the_rule_too():
    for value in ("9" * 5000, "0x" + "f" * 5000, "[" * 5000, "nan", "1e999", "1979-05-27", "-1"):
        with pytest.raises(ValueError, match=r"--set epochs: must be") as raised:
            training_settings("ssdh", assignments=[f"epochs={value}"])
        assert len(str(raised.value).splitlines()) == 1


def test_every_default_is_a_setting_that_a_file_can_give():
    for name, model in MODELS.items():
        for field, value in defaults_of(model).items():
            if value is not None and field != "n_classes":
                arguments, _ = training_settings(name, flags={field: value})
                assert arguments == {field: value}
    for field in TrainingConfig.__dataclass_fields__:
        training_settings("ssdh", flags={field: getattr(TrainingConfig(), field)})


def test_json_is_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"a": [1, 2.5, "\u00e9", null]}', encoding="utf-8")
    assert read_json(path, "the note") == {"a": [1, 2.5, "\u00e9", None]}
    for content, reason in (("{", "broken JSON"), ("[" * DEEP, "deeply"), ("9" * 5000, "digits")):
        path.write_text(content)
        with pytest.raises(ValueError, match=reason) as raised:
            read_json(path, "the note")
        check_message(str(raised.value), path)
    with pytest.raises(ValueError, match=r"none: cannot read the note: No such file"):
        read_json(tmp_path / "none", "the note")


# The command line


@pytest.mark.parametrize("name", [name for name in HOSTILE if KINDS[name].spec])
def test_a_command_ends_with_one_line_and_code_2(data, name, tmp_path):
    kind = KINDS[name]
    path = data / kind.path
    content = HOSTILE[name][0][0].encode()
    path.write_bytes(content)
    given = [kind.spec.format(root=data, path=path)]
    if kind.spec == "--config":
        given = ["digits:train:4", "--config", str(path)]
    try:
        message = error_of("train", "ssdh", *given, "-o", tmp_path / "a")
    finally:
        path.write_text(kind.content)
    check_message(message, path)


# Mutants of valid files

TOKENS = [
    b"\0", b"\n", b"\r", b'"', b"'", b",", b"<", b"&", b"&x;", b"]]>", b"<![CDATA[", b"[", b"{",
    b"}", b"nan", b"-inf", b"1e400", b"-1", b"0", b"9" * 400, b"9" * 5000, b"\xff", b"\xed\xa0\x80",
    b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"null", b"true", b"1979-05-27", b"x" * 3000, b" ", b"=",
    b"#", b"[" * 1000, b"<a>" * 100, b"<!DOCTYPE a [<!ENTITY x 'y'>]>", b"../", b"/", b"\\ud800",
]  # fmt: skip

VALUES = [
    None, True, False, 0, -1, 1, 2**63, 10**400, 1.5, float("nan"), float("inf"), -1e308, "", "1",
    "x\ny", "\0", "\ud800", "x" * 2000, [], {}, [[]], [1, 2, 3, 4], ["1", "2", "3", "4"], {"id": 1},
    [None] * 4, [1e308] * 4, [0, 0, 10**400, 1], [True] * 4,
]  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A content after some random changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        b = min(b, a + rng.choice((1, 4, 20, len(content))))
        change = rng.randrange(7)
        if change == 0:
            content = content[:a] + bytes([rng.randrange(256)]) + content[a + 1 :]
        elif change == 1:
            content = content[:a] + content[b:]
        elif change == 2:
            content = content[:b] + content[a:b] * rng.choice((1, 2, 50)) + content[b:]
        elif change == 3:
            content = content[:a]
        elif change in (4, 5):
            content = content[:a] + rng.choice(TOKENS) + content[rng.choice((a, b)) :]
        else:  # a whole word by another
            words = list(re.finditer(rb"[\w.+-]+", content))
            if words:
                word = rng.choice(words)
                content = content[: word.start()] + rng.choice(TOKENS) + content[word.end() :]
    return content


def mutated_json(value: Any, rng: random.Random) -> bytes:
    """A JSON value in which some values are replaced, dropped, doubled or put elsewhere."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        holders: list[Any] = []
        waiting = [value]
        while waiting:
            inner = waiting.pop()
            if isinstance(inner, dict | list) and inner:
                holders.append(inner)
                waiting += inner.values() if isinstance(inner, dict) else inner
        if not holders:
            break
        holder = rng.choice(holders)
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        change = rng.randrange(6)
        if change == 0:
            del holder[key]
        elif change == 1 and isinstance(holder, list):
            holder.append(holder[key])
        elif change == 2:
            holder[key] = json.loads(json.dumps(rng.choice(holders)))
        else:
            holder[key] = deepcopy(rng.choice(VALUES))  # else it might come to hold itself
    return json.dumps(value).encode()


def mutant(name: str, seed: int) -> bytes:
    rng = random.Random(seed)
    if name.startswith("coco") and rng.random() < 0.6:
        return mutated_json(OUTLINES if name == "coco outlines" else COCO, rng)
    return mutated(KINDS[name].content.encode(), rng)


@pytest.mark.parametrize("name", KINDS)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 1 << 40))
def test_a_mutant_is_read_or_refused_in_one_line_that_names_the_file(data, name, seed):
    outcome(data, KINDS[name], mutant(name, seed))
