"""Ranking again at equal bytes: what is measured, against slow loops, and a whole run."""

import csv
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from regionhash.experiments import rescore_run
from regionhash.experiments.rescore import RescoreOptions
from regionhash.experiments.rescore_run import (
    CANDIDATES,
    DIMS,
    PIECES,
    SHORT_BITS,
    FeatureSpace,
    again,
    recall,
    reproduce,
)
from regionhash.parts.hashes import fit_drh_hash
from regionhash.reporter import SILENT
from scene_cases import write_voc_scenes

TINY = {"backbone": "tiny_fpn", "weights": "none", "short": 64, "timed": 3000}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return write_voc_scenes(tmp_path_factory.mktemp("voc"))


@pytest.fixture
def quick(monkeypatch):
    """Hashes that are hardly trained: a run fits dozens."""
    monkeypatch.setattr(rescore_run, "fit_drh_hash", partial(fit_drh_hash, n_steps=2))


@pytest.fixture(scope="module")
def space():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 20)).astype(np.float16)
    offsets = np.array([0, 5, 6, 60, 200, 300])
    return FeatureSpace(vectors, rng.normal(size=(3, 20)).astype(np.float32), offsets, 16)


def rows_of(folder):
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(int(row["dimensions"]), row["method"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def nearest_of_pictures(distance, space):
    """A slow loop over the pairs of query and region."""
    return [
        [min(distance(q, m) for m in range(*pair)) for pair in pairwise(space.offsets)]
        for q in range(len(space.asked))
    ]


def test_the_first_are_ranked_again_and_the_others_follow_as_they_were():
    first = np.array([[3, 1, 1, 2, 5]], np.float32)  # 1, 2, 3, then 0 and 4
    second = np.array([[0, 9, 4, 4, 0]], np.float32)
    assert again(first, second, 3).tolist() == [[5, 1, 0, 0, 6]]
    assert np.argsort(again(first, second, 9)[0], kind="stable").tolist() == [0, 4, 2, 3, 1]


def test_recall_counts_what_is_first_in_both():
    wanted = np.arange(30)[None]
    assert recall(wanted, wanted).tolist() == [1]
    assert recall(wanted[:, ::-1], wanted).tolist() == [0.5]  # 10 to 19 are first in both
    assert recall(np.zeros((1, 30), np.int64), wanted).tolist() == [1]  # ties, in their order


def test_distances_by_floats_are_those_of_a_slow_loop(space):
    def cosine(q, m):
        a, b = space.asked[q].astype(float), space.described[m].astype(float)
        return (1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / 2

    np.testing.assert_allclose(
        space.by_floats(space.described), nearest_of_pictures(cosine, space), atol=1e-5
    )


def test_distances_by_bits_are_those_of_a_slow_loop(space):
    hash_of = space.hash(32)
    theirs, ours = hash_of(space.described), hash_of(space.asked)

    def differ(q, m):
        return (ours[q] >= 0) != (theirs[m] >= 0)

    def weighted(q, m):
        return (np.abs(ours[q]) * differ(q, m)).sum() / np.abs(ours[q]).sum()

    hamming, asymmetric = space.by_bits(hash_of)
    wanted = nearest_of_pictures(lambda q, m: differ(q, m).mean(), space)
    np.testing.assert_allclose(hamming, wanted, atol=1e-6)
    # (1 - the share of the weights that agree less those that differ) / 2
    np.testing.assert_allclose(asymmetric, nearest_of_pictures(weighted, space), atol=1e-5)


def test_a_quantised_feature_is_nearer_than_a_random_one(space):
    kept = space.quantised(4)
    own, others = (((kept - x) ** 2).sum() for x in (space.described, space.described[::-1]))
    assert own < others / 4


@pytest.mark.slow
def test_a_run_goes_from_pictures_to_a_report_and_resumes(voc, tmp_path, quick):
    page = reproduce("rescore/voc2012", voc, tmp_path, RescoreOptions(**TINY), SILENT)
    found, text = rows_of(tmp_path), page.read_text()
    assert "9 pictures" in text and "| 64 bits, int8 of 400 |" in text and " 3,000 pictures" in text
    assert text.count("\n## Features of ") == len(DIMS)
    for n_dims in DIMS:
        own = {name: row for (dims, name), row in found.items() if dims == n_dims}
        again_ranked = [name for name in own if ", int8" in name or ", PQ" in name]
        assert len(again_ranked) == (1 + len(PIECES)) * len(SHORT_BITS) * len(CANDIDATES)
        assert own["floats"]["recall_20"] == "1.000000"
        n_bytes = {name: int(row["bytes_per_region"]) for name, row in own.items()}
        assert n_bytes["floats"] == 4 * n_dims and n_bytes["128 bits, int8 of 200"] == 16 + n_dims
        assert n_bytes["64 bits, asymmetric of 400"] == 8
        assert n_bytes["64 of 1024 bits, all of them asymmetric of 400"] == 128
        # All nine pictures are ranked again, so the first pass does not matter.
        assert own["64 bits, int8 of 400"]["map"] == own["128 bits, int8 of 200"]["map"]
        assert own["64 bits, int8 of 400"]["map"] == own["int8"]["map"]
        for name, row in own.items():
            assert 0 < float(row["map"]) <= 1 and float(row["milliseconds"]) > 0
            base = f"{8 * n_bytes[name]} bits, asymmetric of 400"
            assert base in own or ", " not in name  # what is kept beside codes has its match
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.f16")}
    assert before
    reproduce("rescore/voc2012", voc, tmp_path, RescoreOptions(**TINY), SILENT)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.f16")} == before
    again = rows_of(tmp_path)
    assert all(again[name]["map"] == found[name]["map"] for name in found)


@pytest.mark.slow
def test_a_table_of_boxes_takes_distractors(voc, tmp_path, quick):
    options = RescoreOptions(**TINY, distractors=("digits:train:3",))
    page = reproduce("rescore/instances", voc, tmp_path, options, SILENT)
    assert "15 pictures" in page.read_text()


def test_too_few_regions_and_pictures_are_refused():
    few, asked = np.ones((255, 20), np.float16), np.ones((1, 20), np.float32)
    with pytest.raises(ValueError, match="at least 256 regions to fit on, got 255"):
        FeatureSpace(few, asked, np.array([0, 255]), 16)
    with pytest.raises(ValueError, match="timed must be at least 1, got 0"):
        RescoreOptions(timed=0)
