import csv

import numpy as np
import pytest
from PIL import Image

from regionhash.evaluation import InstanceRelevance, paper_figures
from regionhash.evaluation.instance import instance_average_precision
from regionhash.experiments.drh_report import (
    DRHReport,
    InstanceResult,
    ScanTime,
    score_instances,
    write_report,
)

WAYS = ("windows, overlap 0.4", "windows, overlap 0.6", "RPN")


def result(table, method, n_bits, mean, note=""):
    spread = np.linspace(-0.1, 0.1, 21)
    return InstanceResult(table, method, n_bits, mean + spread, mean - 0.01, mean + 0.02, note)


@pytest.fixture
def report():
    results = [result("1", "max-pooled floats", None, 0.6, "512-d")]
    for n_bits, mean in ((128, 0.3), (1024, 0.55), (4096, 0.58)):
        results.append(result("1", "gDRH", n_bits, mean))
        results.append(result("1", "gDRH, random hyperplanes", n_bits, mean - 0.05))
    for way in WAYS:
        for m in (100, 400):
            for by, mean in (("", m / 1000), (", random hyperplanes", m / 1000 - 0.02)):
                method = f"gDRH+lDRH ({way}; M = {m}){by}"
                results.append(result("2", method, 1024, mean, "40 boxes"))
    results += [result("3", "gDRH", 1024, 0.55), result("3", "gDRH+gQE (q = 7)", 1024, 0.5)]
    results += [result("4", "R-MAC", None, 0.62, "2048 bytes"), result("4", "DRH", 1024, 0.6)]
    times = [
        ScanTime("floats", 20.0, 10.0, "Tolias et al. 2015 (512-d floats)", None),
        ScanTime("codes of 512 bits", 0.5, 0.25, "DRH", 512),
    ]
    return DRHReport(
        "drh/instances", ["Queries: 21."], results, paper_figures("drh"), 1024, times, 64
    )


def test_each_table_has_the_measured_figures_with_the_papers_beside(report, tmp_path):
    text = write_report(tmp_path / "new", report).read_text()
    lines = text.splitlines()
    row = next(line for line in lines if line.startswith("| 1024 | 0.5500 | 0.5000 |"))
    assert "| +0.0500 [+0.0500, +0.0500] |" in row and row.endswith("| 0.748 | 0.773 |")
    assert "| -0.0500 [-0.0500, -0.0500] |" in row  # less the floats
    floats = next(line for line in lines if line.startswith("| max-pooled floats, 512-d |"))
    assert "| 0.6000 |" in floats and floats.endswith("| 0.797 | 0.824 |")
    second = text.split("## Table 2")[1].split("## Table 3")[0].splitlines()
    assert [line for line in second if line.startswith("|") and "---" not in line] == [
        "|  | windows, overlap 0.4, 40 boxes | windows, overlap 0.6, 40 boxes | RPN, 40 boxes |",
        "| M = 100 | 0.1000 | 0.1000 | 0.1000 |",
        "| M = 100, random hyperplanes | 0.0800 | 0.0800 | 0.0800 |",
        "| M = 400 | 0.4000 | 0.4000 | 0.4000 |",
        "| M = 400, random hyperplanes | 0.3800 | 0.3800 | 0.3800 |",
        "|  | windows, overlap 0.4 | windows, overlap 0.6 | RPN |",
        "| M = 100 | 0.773 | 0.776 | 0.772 |",
        "| M = 400 | 0.779 | 0.783 | 0.780 |",
    ]
    steps = next(line for line in lines if line.startswith("| gDRH+gQE (q = 7) |"))
    assert "| 0.5000 | -0.0500 [" in steps and steps.endswith("| 0.789 | 0.842 |")
    rmac = next(line for line in lines if line.startswith("| R-MAC | 2048 bytes | 0.6200 |"))
    assert rmac.endswith("| 0.669 | 0.616 | 0.830 | 0.757 |")
    scan = next(line for line in lines if line.startswith("| codes of 512 bits |"))
    assert scan == "| codes of 512 bits | 0.500 | 0.250 | 40.0 | 40.0 | 3 | 3 |"


def test_the_table_on_disk_has_every_result_with_both_forms_and_the_stable_order(report, tmp_path):
    write_report(tmp_path, report)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report.results)
    assert rows[1] == {
        "table": "1",
        "method": "gDRH",
        "bits": "128",
        "map": "0.300000",
        "rectangle_map": "0.290000",
        "stable_map": "0.320000",
    }
    with Image.open(tmp_path / "map.png") as image:
        assert image.size[0] > 300


def test_a_ranking_is_scored_in_blocks_of_queries_as_at_once():
    rng = np.random.default_rng(0)
    distances = rng.integers(0, 9, (37, 50))
    positives = tuple(rng.choice(50, 6, replace=False) for _ in range(37))
    junk = tuple(rng.choice(50, 3, replace=False) for _ in range(37))
    relevance = InstanceRelevance(positives, junk, np.full(37, 6), 50)
    got = score_instances("3", "gDRH", 1024, distances, relevance)
    whole = instance_average_precision(distances, relevance)
    np.testing.assert_allclose(got.ap, whole)
    assert got.map == pytest.approx(whole.mean())
    stable = instance_average_precision(distances, relevance, ties="stable").mean()
    rectangle = instance_average_precision(distances, relevance, form="rectangle").mean()
    assert got.stable_map == pytest.approx(stable)
    assert got.rectangle_map == pytest.approx(rectangle)
    assert len({got.map, got.stable_map, got.rectangle_map}) == 3
