import csv
import re
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image as PILImage
from scipy.stats import t as student_t

from regionhash.data import open_dataset
from regionhash.data.object_queries import ObjectQuery, QueryBox
from regionhash.evaluation.papers import paper_figures
from regionhash.experiments.dmih import PRESETS, TABLE_2, DMIHOptions
from regionhash.experiments.dmih_report import DMIHReport, score_objects, write_report
from regionhash.experiments.dmih_run import Method, rank_bags, reproduce, united_euclidean
from regionhash.reporter import SILENT
from reporters import Recording

TINY = DMIHOptions(
    backbone="tiny_fpn", weights="none", short=64, epochs=1, views=1, channels=8, sift=False
)


@pytest.fixture(scope="module")
def sival(tmp_path_factory):
    """Scenes of digits in SIVAL's layout, each in the folder of its first class."""
    root = tmp_path_factory.mktemp("sival")
    scenes = open_dataset("digits:test:30")
    for n, (image, target) in enumerate(zip(scenes.images, scenes.targets, strict=True)):
        folder = root / "SIVAL" / str(target.all_labels()[0])
        folder.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(image).save(folder / f"{n}.png")
    return root


def test_a_preset_runs_from_pictures_to_the_report_and_resumes(sival, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "dmih/sival", replace(PRESETS["dmih/sival"], bits=(8, 16)))
    told = Recording()
    page = reproduce("dmih/sival", sival, tmp_path, TINY, told)
    text = page.read_text()
    for method in ("DMIH", "DMIH-ind", "l2-scan", "DSRH", "PmH+CNN"):
        assert f"\n| {method} |" in text
    assert "P@30" in text and "## Time of a query" in text
    assert "hash of ids" in text and "whole pictures" in text
    assert "--short 64 --set epochs=1 --set views=1 --set channels=8 --set sift=false`" in text
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["bits"] for row in rows} == {"8", "16", ""}
    single = text.partition("## Queries of several objects")[0]
    shown = re.findall(r"^\| (\S+) \| (\d+|floats) \| ([\d.]+) \|", single, re.MULTILINE)
    assert len(shown) == 4 * 2 + 1
    for method, bits, mean in shown:
        measured = [
            row for row in rows if (row["method"], row["bits"] or "floats") == (method, bits)
        ]
        values, weights = ([float(row[name]) for row in measured] for name in ("map", "queries"))
        assert float(mean) == pytest.approx(np.average(values, weights=weights), abs=1e-4)
    with PILImage.open(tmp_path / "precision-single.png") as image:
        assert image.size[0] > 300
    told.notes.clear()
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors"))
    reproduce("dmih/sival", sival, tmp_path, TINY, told)
    assert not any("computing" in line for line in told.notes)
    after = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors"))
    assert before == after


def test_missing_data_says_what_to_put_where(tmp_path):
    with pytest.raises(ValueError, match=r"this preset needs, below .*SIVAL with a folder"):
        reproduce("dmih/sival", tmp_path, tmp_path, TINY, SILENT)


def test_presets_are_those_of_the_paper():
    assert PRESETS["dmih/sival"].per_class == 8
    assert PRESETS["dmih/ilsvrc2013det"].per_class == 100
    assert PRESETS["dmih/voc2007"].per_class == 50
    assert PRESETS["dmih/voc2007"].bits == (8, 16, 32, 64)
    metrics = {f.metric for f in paper_figures("dmih", "voc2007-multi") if "(" in f.metric}
    assert len(metrics) == len(TABLE_2) == 9


def test_united_distances_are_those_of_loops():
    rng = np.random.default_rng(0)
    values, queries = rng.random((9, 4), np.float32), rng.random((2, 4), np.float32)
    offsets = np.array([0, 3, 4, 9])
    expected = [
        sum(np.linalg.norm(values[a:b] - q, axis=1).min() for q in queries)
        for a, b in pairwise(offsets)
    ]
    np.testing.assert_allclose(united_euclidean(queries, values, offsets), expected, rtol=1e-4)
    method = Method("l2-scan", None, values, offsets, lambda _: queries)
    assert rank_bags([[queries[:1], queries[1:]]], method)[0].tolist() == (
        np.argsort(np.argsort(expected)).tolist()
    )
    codes = np.array([[0], [255], [1]], np.uint8)
    method = Method("DMIH", 8, codes, np.array([0, 2, 3]), lambda _: codes)
    asked = [[np.array([[0]], np.uint8), np.array([[255]], np.uint8)]]
    assert rank_bags(asked, method).tolist() == [[0, 1 + 7]]


def _queries(*labels):
    return [ObjectQuery(combination, (QueryBox(0, None),)) for combination in labels]


def test_relevant_is_what_shows_all_objects():
    labels = np.array([[1, 1], [1, 0], [0, 1], [1, 1]], np.uint8)
    distances = np.array([[3, 1, 2, 0], [0, 0, 0, 0]])
    result = score_objects(
        "combined", "DMIH", 8, distances, _queries((0, 1), (0, 1)), labels, (2,), 0.0
    )
    assert result.map[0] == pytest.approx((1 / 1 + 2 / 4) / 2)
    assert result.precision[2][0] == pytest.approx(0.5)
    # all tied, two of four relevant: P(i is relevant) = 1/2, and N_rel(i) = 1 + (i - 1) / 3 then
    expected = sum(0.5 * (1 + (i - 1) / 3) / i for i in (1, 2, 3, 4)) / 2
    assert result.map[1] == pytest.approx(expected)


def test_a_report_names_combinations_that_are_too_rare_and_the_papers_figures(tmp_path):
    rng = np.random.default_rng(0)
    classes = ("cat", "dog", "horse", "person", "bus", "car")
    labels = rng.integers(0, 2, (50, 6)).astype(np.uint8)
    wanted = {"single": [(1,)] * 5, "combined": [(0, 1)] * 4 + [(2, 3)] * 3}
    results = []
    for method, n_bits in (("DMIH", 64), ("DSRH", 64), ("l2-scan", None)):
        for kind, combinations in wanted.items():
            distances = rng.integers(0, 20, (len(combinations), 50))
            queries = _queries(*combinations)
            results.append(
                score_objects(kind, method, n_bits, distances, queries, labels, (5,), 1.0)
            )
    relevant = {(0, 1): 30, (2, 3): 25, (4, 5): 3}
    figures = paper_figures("dmih", "voc2007-multi")
    report = DMIHReport("test", ["a fact"], results, (5,), classes, relevant, figures)
    text = write_report(tmp_path, report).read_text()
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert "| 0.799 | 0.642 |" in lines["cat + dog"]  # the paper says dog + cat
    assert "| 0.812 | 0.693 |" in lines["horse + person"]
    assert lines["bus + car"].split("|")[2:6] == [" 3 ", " - ", " - ", " - "]
    pairs = np.stack([results[0].map, results[2].map])  # single queries of DMIH and DSRH
    gaps = pairs[0] - pairs[1]
    t = gaps.mean() / (gaps.std(ddof=1) / np.sqrt(len(gaps)))
    row = next(line for line in text.splitlines() if line.startswith("| DSRH | 64 |"))
    assert row.split("|")[-2].strip() == f"{2 * student_t.sf(abs(t), len(gaps) - 1):.4f}"
    sizes = [line.split("|")[2:4] for line in text.splitlines() if line[:5] in ("| 1 |", "| 2 |")]
    of_one = [float(cell) for cell in sizes[0]]
    assert of_one == pytest.approx([labels[:, 1].mean(), results[0].map.mean()], abs=5e-4)
    assert float(sizes[1][0]) < of_one[0]  # by chance, two objects are rarer than one


def test_sift_needs_opencv_and_says_so(monkeypatch):
    from regionhash.parts.sift import sift_features

    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="SIFT needs OpenCV: pip install"):
        sift_features(np.zeros((8, 8, 3), np.uint8))


def test_that_opencv_is_missing_is_said_before_anything_is_trained(sival, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="SIFT needs OpenCV"):
        reproduce("dmih/sival", sival, tmp_path, replace(TINY, sift=True), SILENT)
    assert not list(tmp_path.iterdir())


def test_sift_finds_the_corners_of_a_square_and_none_in_plain_grey():
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    from regionhash.parts.sift import sift_features

    image = np.full((80, 80, 3), 100, np.uint8)
    assert sift_features(image)[1].shape == (0, 128)
    image[30:50, 30:50] = 200
    places, descriptors = sift_features(image)
    assert len(places) == len(descriptors) > 0
    np.testing.assert_allclose((descriptors**2).sum(1), 1, rtol=1e-4)
