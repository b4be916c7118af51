"""Benchmarks that are also run by hand alone: each at a small size, from the making to the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.slow


def record_of(script, *options):
    command = [sys.executable, BENCHMARKS / script, *map(str, options), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_collection_is_made_opened_searched_filtered_and_added_to(tmp_path):
    options = ("--folder", tmp_path / "random.collection", "--images", 6000, "--repeats", 1)
    record = record_of("bench_hundred_million.py", *options)
    assert record["regions"] == 60_000
    assert record["pictures that it keeps"] == 2500  # the first batch's latter half
    assert record["codes and boxes, MB"] > 60_000 * 16 / 1e6
    again = record_of("bench_hundred_million.py", *options)
    assert "pictures stored a second" in record and "pictures stored a second" not in again
