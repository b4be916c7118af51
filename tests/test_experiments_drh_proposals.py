"""Kinds of regions compared: what is measured is what DRH encodes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import build_tiny
from regionhash.data import open_dataset
from regionhash.data.detections import Boxes, read_detections
from regionhash.data.inputs import open_inputs
from regionhash.data.transforms import to_input
from regionhash.experiments.drh_proposals import joined_regions, main, regions_of_sets
from regionhash.structures import Detections


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Six scenes of digits with a table of their boxes, which are also what a detector found."""
    root = tmp_path_factory.mktemp("flat")
    (root / "images").mkdir()
    scenes = open_dataset("digits:test:6")
    lines = ["image,label,xmin,ymin,xmax,ymax"]
    for n in range(6):
        Image.fromarray(scenes.images[n]).save(root / f"images/{n}.png")
        target = scenes.targets[n]
        for box, label in zip(target.boxes.tolist(), target.labels.tolist(), strict=True):
            lines.append(f"{n}.png,{label},{','.join(map(str, box))}")
    (root / "objects.csv").write_text("\n".join(lines) + "\n")
    return root


def test_the_regions_are_those_that_drh_has(flat):
    kinds = {"windows": {}, "pyramid": {"n_proposals": 60}, "boxes": {}}
    models = {
        kind: build_tiny("drh", n_bits=8, n_dims=16, proposals=kind, **more).eval()
        for kind, more in kinds.items()
    }
    image_set, _ = open_inputs([str(flat / "images")])
    boxes = Boxes([read_detections(flat / "objects.csv")])
    found = boxes.of(image_set, range(6), boxes.classes)
    ids, pictures = regions_of_sets(models["windows"], [image_set], boxes, short=64, n_proposals=60)
    assert ids == [*image_set.ids]
    for row, picture in enumerate(pictures):
        tensor, frame = to_input(image_set.images[row], 64)
        placed = frame.to_input(torch.from_numpy(found[row].boxes)).numpy()
        given = [Detections(placed, found[row].scores, found[row].labels)]
        for kind, model in models.items():
            (regions,) = model.region_features([tensor], given if kind == "boxes" else None)
            own = frame.to_original(regions.boxes)
            torch.testing.assert_close(picture.boxes[kind], own, atol=1e-3, rtol=0)
            torch.testing.assert_close(
                picture.features[kind].float(), regions.features, atol=1e-3, rtol=1e-2
            )
        both, features = joined_regions(picture, ("boxes", "windows"), 1.0)
        n = len(picture.boxes["boxes"])
        assert len(both) == len(features) == n + len(picture.boxes["windows"]) - 1
        assert both[n].tolist() == picture.boxes["windows"][1].tolist()


@pytest.mark.slow
def test_all_kinds_are_measured_by_the_size_of_the_query(flat, tmp_path, capsys):
    output = tmp_path / "out.json"
    options = ["--backbone", "tiny_fpn", "--weights", "none", "--short", "64", "--bits", "64"]
    given = ["--data", str(flat), "--boxes", str(flat / "objects.csv"), "-o", str(output)]
    main([*given, *options])
    rows = json.loads(output.read_text())["rows"]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert [row["regions"] for row in rows[:3]] == ["windows", "pyramid", "boxes"]
    assert len(rows) == 9
    for row in rows:
        parts = [row[size]["queries"] for size in ("below 5 %", "5 to 20 %", "above 20 %")]
        assert row["all"]["queries"] == np.sum(parts) > 0
        assert 0 < row["all"]["mAP"] <= 1
        assert 0 <= row["all"]["LocScore"] <= 1
    located = {row["regions"]: row["all"]["LocScore"] for row in rows}
    assert located["boxes"] > located["windows"]  # the boxes are those of the objects
