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


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Where the first test makes a collection, and the second finds its codes."""
    return tmp_path_factory.mktemp("benchmarks") / "random.collection"


def test_a_collection_is_made_opened_searched_filtered_and_added_to(collection):
    options = ("--folder", collection, "--images", 6000, "--repeats", 1)
    record = record_of("bench_hundred_million.py", *options)
    assert record["regions"] == 60_000
    assert record["pictures that it keeps"] == 2500  # the first batch's latter half
    assert record["codes and boxes, MB"] == pytest.approx(60_000 * (8 + 8) / 1e6)
    again = record_of("bench_hundred_million.py", *options)
    assert "pictures stored a second" in record and "pictures stored a second" not in again


def test_exact_indexes_find_what_the_pass_finds(collection):
    record = record_of("bench_indexes.py", collection, "--sizes", 0.07, "--queries", 4)
    (size,) = record["sizes"]
    assert size["codes"] == 70_000
    assert size["bounds"]["prefix"]["codes"] > 0.9  # random codes are far from each other
    recalls = {name: row["recall"] for name, row in size["times"].items()}
    for name in ("multi-index hashing, 4 x 16 bits", "faiss.IndexBinaryFlat"):
        assert recalls[name] == 1
    assert 0 < recalls["faiss.IndexBinaryIVF, 1,024 lists, 8 probed"] < 1
