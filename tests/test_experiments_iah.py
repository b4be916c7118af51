import csv
import re

import numpy as np
import pytest
import torch

from conftest import save_tiny
from regionhash.data import open_dataset
from regionhash.data.voc import VOC_CLASSES
from regionhash.evaluation.categories import CategorySide, category_precision
from regionhash.evaluation.papers import paper_figures
from regionhash.experiments.iah import PRESETS, IAHOptions, IAHPreset
from regionhash.experiments.iah_report import (
    CategoryResult,
    IAHReport,
    curve,
    score_semantic,
    write_report,
)
from regionhash.experiments.iah_run import open_iah_sides, pooled_cells, reproduce
from regionhash.experiments.results import Results
from reporters import Recording

DIGITS = IAHPreset(
    "voc2012", ("digits:train:40",), "nothing", bits=(16, 32), category_bits=(4,), k=10
)


def test_queries_are_drawn_with_a_seed_and_the_rest_is_the_database(tmp_path):
    sides = open_iah_sides(DIGITS, tmp_path, 0)
    database, queries = sides.database, sides.queries
    assert (len(database), len(queries)) == (32, 8)  # a fifth of so few
    assert not set(database.ids) & set(queries.ids)
    assert open_iah_sides(DIGITS, tmp_path, 0).queries.ids == queries.ids
    assert open_iah_sides(DIGITS, tmp_path, 1).queries.ids != queries.ids


def test_the_presets_are_the_paper_s(tmp_path):
    assert all(preset.bits == (16, 32, 48, 64) for preset in PRESETS.values())
    assert PRESETS["iah/mirflickr25k"].multi_label == "bce"
    with pytest.raises(ValueError, match=r"this preset needs, below .*VOC2007 with JPEGImages"):
        open_iah_sides(PRESETS["iah/voc2007"], tmp_path, 0)


def test_pictures_are_pooled_over_their_own_cells():
    cells = torch.tensor([[[1.0, -1], [3, -2], [9, 9]], [[1, 1], [2, 2], [6, 0]]])
    pooled = pooled_cells(cells, torch.tensor([[1, 2], [3, 1]]))
    assert pooled.tolist() == [[2, -1.5, 3, -1], [3, 1, 6, 2]]


@pytest.mark.slow
def test_a_preset_runs_from_pictures_to_the_report(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "iah/digits", DIGITS)
    detector = save_tiny(tmp_path / "detector", trained_stages=0)
    options = IAHOptions(short=64, detector=detector.folder, n_proposals=4, head_epochs=2)
    told = Recording()
    page = reproduce("iah/digits", tmp_path, tmp_path / "out", options, told)
    text = page.read_text()
    for words in ("| IAH |", "| ITQ-CCA |", "Fig. 9 baseline", "IAH, sigmoids", "Unseen classes"):
        assert words in text
    tables = text.partition("## Differences")[0]
    order = re.findall(r"^\| (IAH|Region-DH|One-Stage) \|", tables, re.MULTILINE)
    assert order == ["IAH", "Region-DH", "One-Stage"] * 4  # in each metric's table
    assert len(re.findall(r"^\| (16|32) \| Region-DH \|", text, re.MULTILINE)) == 2
    with (tmp_path / "out" / "categories.csv").open() as file:
        of_method = {row["method"]: [] for row in csv.DictReader(file)}
    assert {"IAH", "IAH, sigmoids, query's categories known"} <= of_method.keys()
    assert len(of_method) == 2 * 4 + 1
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 * 2 + 8
    assert all(0 <= float(row["MAP"]) <= 1 for row in rows)
    told.notes.clear()
    reproduce("iah/digits", tmp_path, tmp_path / "out", options, told)
    assert not any("computing the features" in line for line in told.notes)


def test_the_report_has_the_paper_s_figures_and_the_differences(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.eye(20, dtype=np.uint8)[rng.integers(4, size=50)]
    good = np.packbits(np.repeat(labels[:, :4].astype(bool), 8, axis=1), axis=1)
    bad = rng.integers(256, size=good.shape, dtype=np.uint8)
    results = Results(
        score_semantic(
            method, 32, (codes[:10], labels[:10]), (codes[10:], labels[10:]), k=20, seconds=3
        )
        for method, codes in (("IAH", good), ("One-Stage", bad))
    )
    assert results[0].mean("MAP") == 1 and results[0].mean("NDCG@20") == 1
    assert list(curve(results[0], "ACG")) == list(range(2, 21, 2))
    found = labels.astype(bool)
    side = CategorySide(np.zeros((50, 20, 1), np.uint8), found, labels)
    scores = category_precision(side, side)
    report = IAHReport(
        "test",
        ["a fact"],
        VOC_CLASSES,
        20,
        results,
        [CategoryResult(m, 4, scores, 1.0) for m in ("IAH", "Fig. 9 baseline")],
        published=paper_figures("iah", "voc2012"),
    )
    text = write_report(tmp_path, report).read_text()
    assert "| IAH | 1.0000 | 0.8437 |" in text  # MAP measured, and the paper's at 32 bits
    (line,) = (line for line in text.splitlines() if line.startswith("| 32 | One-Stage |"))
    assert "100.0%" in line and f"{1 - (1 - 0.8437) / (1 - 0.7870):.1%}" in line
    assert "| IAH | 1.0000 (1.00 x, p 1.0000) |" in text
    assert "| aeroplane | " in text and "| tvmonitor | 0 | - | - |" in text
    for plot in ("map.png", "ndcg_at_m.png", "acg_at_m.png"):
        assert (tmp_path / plot).stat().st_size > 5000


def test_open_dataset_knows_mirflickr():
    with pytest.raises(ValueError, match=r"must hold im1.jpg"):
        open_dataset("mirflickr:/nowhere")
