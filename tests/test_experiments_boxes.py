"""Windows and boxes as regions: what is measured, against slow loops, and a whole run."""

import csv

import pytest
from PIL import Image

from regionhash.data import open_dataset
from regionhash.experiments.boxes import BoxesOptions
from regionhash.experiments.boxes_run import (
    kinds,
    levers,
    reproduce,
)
from regionhash.reporter import SILENT

TINY = {"backbone": "tiny_fpn", "weights": "none", "short": 64}


def write_scenes(root, split, first, n):
    """Scenes of digits, half of their objects small, as a VOC layout; and lines of a table."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    scenes, lines = open_dataset("digits:test:12"), []
    names = ("cat", "dog", "cow")
    for row in range(first, first + n):
        Image.fromarray(scenes.images[row]).save(root / f"JPEGImages/{row}.jpg")
        height, width = scenes.images[row].shape[:2]
        objects = ""
        target = scenes.targets[row]
        for box, label in zip(target.boxes.astype(int).tolist(), target.labels, strict=True):
            keys = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            marks = "".join(f"<{key}>{value + (key[1:] == 'min')}</{key}>" for key, value in keys)
            name = names[label % 3]
            objects += f"<object><name>{name}</name><bndbox>{marks}</bndbox></object>"
            lines.append(f"{row}.jpg,{name},{','.join(map(str, box))}")
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        page = f"<annotation>{size}{objects}</annotation>"
        (root / f"Annotations/{row}.xml").write_text(page)
    listed = "".join(f"{row}\n" for row in range(first, first + n))
    (root / f"ImageSets/Main/{split}.txt").write_text(listed)
    return lines


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Nine pictures of train and three of val, and a table of the boxes of all."""
    root = tmp_path_factory.mktemp("voc")
    lines = write_scenes(root / "VOC2012", "train", 0, 9)
    lines += write_scenes(root / "VOC2012", "val", 9, 3)
    (root / "found.csv").write_text("\n".join(["image,label,xmin,ymin,xmax,ymax", *lines]) + "\n")
    return root


def test_a_run_goes_from_pictures_to_a_report_and_resumes(voc, tmp_path):
    options = BoxesOptions(**TINY, detections=(str(voc / "found.csv"),))
    page = reproduce("boxes/voc2012", voc, tmp_path, options, SILENT)
    text = page.read_text()
    assert "Queries: " in text and "## Small objects: what was tried" in text
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["part"], row["method"], row["bits"], row["size"]): row for row in rows}
    assert len(found) == len(rows) == 4 * (3 * len(kinds(64)) + 3 * 2 + len(levers(64)))
    for row in rows:
        assert row["map"] == "nan" or 0 < float(row["map"]) <= 1
    boxes, windows = (found["compared", name, "1024", "all"] for name in ("boxes", "windows"))
    # The boxes are those of the objects.
    assert float(boxes["locscore"]) > float(windows["locscore"])
    sizes = [int(found["compared", "boxes", "1024", size]["queries"]) for size in SIZE_NAMES]
    assert sum(sizes) == int(boxes["queries"]) > 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.f16")}
    assert before
    reproduce("boxes/voc2012", voc, tmp_path, options, SILENT)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.f16")} == before
    assert page.read_text() == text


SIZE_NAMES = ("below 5 %", "5 to 20 %", "above 20 %")
