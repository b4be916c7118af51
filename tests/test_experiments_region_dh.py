import csv
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from cli_runner import error_of
from regionhash.data import open_dataset
from regionhash.data.voc import VOC_CLASSES
from regionhash.experiments.region_dh import PRESETS, RegionDHOptions
from regionhash.experiments.region_dh_report import (
    RegionDHReport,
    best_acg,
    score,
    write_report,
)
from regionhash.experiments.region_dh_run import _Trunk, first_proposals, reproduce, train_network
from regionhash.experiments.results import Results
from regionhash.reporter import SILENT
from regionhash.training import TrainingConfig, TrainingError
from reporters import Recording

OBJECT = (
    "<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def _write_voc(root: Path, split: str, n: int) -> None:
    """Scenes of digits in VOC's layout, under the names of its first ten classes."""
    scenes = open_dataset(f"digits:{'train' if split == 'train' else 'test'}:{n}")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{split}{n}" for n in range(n)]
    for name, image, target in zip(names, scenes.images, scenes.targets, strict=True):
        PILImage.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg")
        one_based = np.round(target.boxes).astype(int) + np.array([1, 1, 0, 0])
        objects = [
            OBJECT.format(VOC_CLASSES[label], *box)
            for box, label in zip(one_based, target.labels, strict=True)
        ]
        size = "<size><width>160</width><height>160</height><depth>3</depth></size>"
        text = f"<annotation>{size}{''.join(objects)}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("VOCdevkit")
    _write_voc(root / "VOC2012", "train", 12)
    _write_voc(root / "VOC2012", "val", 5)
    return root


TINY = {
    "backbone": "tiny_fpn",
    "weights": "none",
    "short": 64,
    "seeds": 1,
    "detector_epochs": 1,
    "head_epochs": 1,
}


@pytest.mark.slow
def test_a_preset_runs_from_pictures_to_the_report_and_resumes(voc, tmp_path):
    told = Recording()
    options = RegionDHOptions(**TINY)
    page = reproduce("region-dh/voc2012", voc, tmp_path, options, told)
    text = page.read_text()
    assert "| Region-DH |" in text and "0.9041" in text  # measured, and the paper's beside it
    assert "Database and training: " in text and "12 pictures, hash of ids" in text
    assert "mAP at IoU 0.5" in text and "paired bootstrap" in text
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    main = [row for row in rows if row["group"] == "main"]
    methods = {row["method"] for row in main}
    assert methods == {"control", "SSDH", "DLBHC", "SSDH, fine-tuned", "Region-DH"}
    assert len(main) == 15 and {row["bits"] for row in main} == {"32", "48", "64"}
    ablations = {row["method"] for row in rows if row["group"] == "ablation"}
    assert {"Region-DH", "no E terms", "8 proposals", "backbone not trained"} <= ablations
    assert all(0 < float(row["map"]) <= 1 for row in rows)
    for plot in ("map.png", "acg.png", "precision.png", "precision_recall.png"):
        with PILImage.open(tmp_path / plot) as image:
            assert image.size[0] > 300
    told.notes.clear()
    again = reproduce("region-dh/voc2012", voc, tmp_path, options, told)
    assert not any("computing the features" in line for line in told.notes)
    assert _rows(again.read_text()) == _rows(text)


def _rows(text: str) -> list[list[str]]:
    """The figures of Region-DH; the times after them differ."""
    lines = [line for line in text.splitlines() if line.startswith("| Region-DH |")]
    return [line.split("|")[2:5] for line in lines]


def test_a_failed_training_of_several_processes_is_reported_without_a_traceback(
    tmp_path, monkeypatch
):
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    scenes, config = open_dataset("digits:train:4"), TrainingConfig()
    several = {"spec": "digits:train:4", "processes": 2, "reporter": SILENT}
    with pytest.raises(TrainingError, match="failed, see above"):
        train_network("ssdh", {}, scenes, tmp_path / "run", config, **several)


def test_missing_data_says_what_to_put_where(tmp_path):
    with pytest.raises(ValueError, match=r"this preset needs, below .*VOC2007 with JPEGImages"):
        reproduce("region-dh/voc2007", tmp_path, tmp_path / "out", RegionDHOptions(), SILENT)


def test_pictures_on_both_sides_are_refused(tmp_path):
    root = tmp_path / "VOC2012"
    _write_voc(root, "train", 3)
    main = root / "ImageSets" / "Main"
    (main / "val.txt").write_text((main / "train.txt").read_text())
    with pytest.raises(ValueError, match="3 pictures are queries and database at once: train0"):
        reproduce("region-dh/voc2012", tmp_path, tmp_path / "out", RegionDHOptions(**TINY), SILENT)


def test_queries_without_a_label_of_the_database_are_refused(tmp_path):
    root = tmp_path / "VOC2012"
    _write_voc(root, "train", 3)
    _write_voc(root, "val", 2)
    for name in ("val0", "val1"):
        path = root / "Annotations" / f"{name}.xml"
        path.write_text(re.sub("<name>.*?</name>", "<name>sofa</name>", path.read_text()))
    with pytest.raises(ValueError, match=r"no query shares a label .* nothing to measure"):
        reproduce("region-dh/voc2012", tmp_path, tmp_path / "out", RegionDHOptions(**TINY), SILENT)


def test_presets_are_those_of_the_paper():
    assert PRESETS["region-dh/voc2007"].database.endswith("VOC2007:trainval")
    assert PRESETS["region-dh/voc2012"].queries.endswith("VOC2012:val")
    assert all(p.k == 1000 and p.bits == (32, 48, 64) for p in PRESETS.values())


def test_fewer_proposals_keep_the_best_and_the_known_objects():
    features = {
        "regions": torch.zeros(1, 5, 2),
        "objectness": torch.tensor([[0.9, 0.8, 0.7, 0.0, 0.0]]),
        "present": torch.tensor([[True, True, True, True, False]]),
    }
    trunk = _Trunk(None, [(features, torch.zeros(1, 3))], [(features, torch.zeros(1, 3))])
    cut = first_proposals(trunk, 2).database[0][0]
    assert cut["present"].tolist() == [[True, True, False, True, False]]
    assert cut["objectness"][0].tolist() == pytest.approx([0.9, 0.8, 0, 0, 0])


def test_best_acg_is_that_of_the_ranking_by_shared_labels():
    queries = np.array([[1, 1, 0], [0, 0, 1]], np.uint8)
    database = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]], np.uint8)
    assert best_acg(queries, database, 2) == pytest.approx(((2 + 1) / 2 + 1 / 2) / 2)
    assert best_acg(queries, database, 100) == pytest.approx(((2 + 1 + 1) / 4 + 1 / 4) / 2)


def test_a_report_states_the_difference_from_the_strongest_other(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.eye(4, dtype=np.uint8)[rng.integers(4, size=40)]
    good = np.packbits(np.repeat(labels.astype(bool), 4, axis=1), axis=1)
    bad = rng.integers(256, size=good.shape, dtype=np.uint8)
    half = np.where(np.arange(40)[:, None] % 2, good, bad)
    results = Results()
    curves = {}
    for method, codes in (("random", bad), ("half", half), ("ours", good)):
        side = (codes[:10], labels[:10]), (codes[10:], labels[10:])
        results.append(score(method, 16, 0, *side, k=20, seconds=5))
        curves[method] = (codes[:10], codes[10:], labels[:10], labels[10:])
    report = RegionDHReport(
        "test", ["a fact"], results, "ours", 20, best_acg(labels[:10], labels[10:], 20), []
    )
    assert report.strongest_other(16, "map") == "half"
    assert results.means("map")["ours"] == {16: 1.0}
    text = write_report(tmp_path, report, curves).read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("| 16 | MAP |"))
    assert "| half |" in line and "100.0%" in line
    (line,) = (line for line in text.splitlines() if line.startswith("| 16 | ACG |"))
    assert "100.0% of best" in line


def test_the_command_names_what_is_missing(tmp_path):
    command = ["reproduce", "region-dh/voc2012", "--data", tmp_path, "-o", tmp_path / "out"]
    assert "VOC2012" in error_of(*command)
