"""Masks of filters: what they let through, and how long they are kept."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionhash.collection import filters
from regionhash.collection.arrays import Snapshot
from regionhash.collection.filters import Masks, mask_of
from regionhash.search.request import Filter
from regionhash.structures import CodeTable

TABLE = CodeTable(
    ["a", "b", "c", "d"],
    np.ones((4, 2), np.int32),
    ("cat", "dog"),
    offsets=np.array([0, 2, 3, 4, 4]),
    boxes=np.zeros((4, 4), np.float32),
    scores=np.float32([0.5, 0.9, 0.5, 0.9]),
    labels=np.array([0, 1, 0, 1]),
    region_codes=np.zeros((4, 1), np.uint8),
)
SNAPSHOT = Snapshot(
    TABLE,
    np.arange(4) + 1,
    np.array([0.0, 1.0, 2.0, np.nan]),
    np.array([[0, 0], [0, 1], [0, 0], [1, 1]], np.uint8),
    None,
    (4, 0),
    "g",
)


def passing(snapshot=SNAPSHOT, **wanted):
    mask = mask_of(Filter(**wanted), snapshot, None)
    return [name for name, passes in zip(TABLE.ids, mask, strict=True) if passes]


def test_every_class_is_required_each_known_or_detected():
    assert passing(labels=("cat",)) == ["a", "b", "d"]
    assert passing(labels=("dog",)) == ["a", "b", "c", "d"]
    for labels in (("cat", "dog"), ("dog", "cat")):
        assert passing(labels=labels) == ["a", "b", "d"]
        assert passing(labels=labels, min_score=0.6) == ["d"]
    assert passing(labels=("dog",), min_score=0.9) == ["a", "b", "c", "d"]
    assert passing(min_score=0.6) == ["a", "c"]


def test_removed_pictures_never_pass():
    alive = np.array([False, True, True, True])
    removed = replace(SNAPSHOT, alive=alive)
    assert mask_of(Filter(), SNAPSHOT, None) is None
    assert passing(removed) == ["b", "c", "d"]
    assert passing(removed, labels=("dog",)) == ["b", "c", "d"]
    assert passing(removed, before=2.0) == ["b"]
    assert alive.tolist() == [False, True, True, True]


def test_a_span_holds_its_first_moment_and_not_its_last():
    assert passing(after=1.0) == ["b", "c"]
    assert passing(after=0.0, before=2.0) == ["a", "b"]


def test_a_class_that_the_model_does_not_know_is_named():
    with pytest.raises(ValueError, match="label 'cow': not a class of the model, which knows cat,"):
        mask_of(Filter(labels=("cat", "cow")), SNAPSHOT, None)


def test_a_mask_is_computed_for_new_rows_alone(monkeypatch):
    computed = []

    def passing(wanted, snapshot, database, first):
        computed.append((wanted, first, len(snapshot.rows)))
        return original(wanted, snapshot, database, first)

    original = filters._passing
    monkeypatch.setattr(filters, "_passing", passing)
    masks, dogs = Masks(most=2), Filter(labels=("dog",))
    early = replace(
        SNAPSHOT,
        table=TABLE.take(np.arange(2)),
        rows=SNAPSHOT.rows[:2],
        taken=SNAPSHOT.taken[:2],
        labels=SNAPSHOT.labels[:2],
    )
    removed = replace(SNAPSHOT, alive=np.array([True, True, True, False]), version=(4, 1))
    assert masks.of(dogs, early, None).tolist() == [True, True]
    assert masks.of(dogs, SNAPSHOT, None).tolist() == [True, True, True, True]
    assert masks.of(dogs, removed, None).tolist() == [True, True, True, False]
    assert masks.of(dogs, early, None).tolist() == [True, True]  # somebody still has it
    assert computed == [(dogs, 0, 2), (dogs, 2, 4)]
    rebuilt = replace(removed, generation="h")
    masks.of(dogs, rebuilt, None)
    assert computed[2:] == [(dogs, 0, 4)]
    masks.of(Filter(after=0.0), SNAPSHOT, None)
    masks.of(dogs, rebuilt, None)
    masks.of(Filter(after=0.0), SNAPSHOT, None)
    assert computed[3:] == [(Filter(after=0.0), 0, 4)]
    masks.of(dogs, SNAPSHOT, None)  # two others are kept
    assert computed[4:] == [(dogs, 0, 4)]


@given(
    lengths=st.lists(st.integers(0, 3), max_size=8),
    first=st.integers(0, 8),
    wanted=st.sampled_from(
        [
            Filter(labels=("cat",)),
            Filter(labels=("cat", "dog"), min_score=0.5),
            Filter(min_score=0.5),
            Filter(after=1.0, labels=("dog",)),
            Filter(before=2.0),
        ]
    ),
    seed=st.integers(0, 99),
)
def test_a_mask_that_is_extended_is_that_of_all_rows(lengths, first, wanted, seed):
    rng, n = np.random.default_rng(seed), len(lengths)
    offsets = np.cumsum([0, *lengths])
    table = CodeTable(
        [*map(str, range(n))],
        np.ones((n, 2), np.int32),
        ("cat", "dog"),
        offsets=offsets,
        boxes=np.zeros((offsets[-1], 4), np.float32),
        scores=rng.choice(np.float32([0.2, 0.5, 1.0]), offsets[-1]),
        labels=np.concatenate([[0], rng.integers(-1, 2, max(offsets[-1] - 1, 0))])[: offsets[-1]],
        region_codes=np.zeros((offsets[-1], 1), np.uint8),
    )
    taken, known = rng.choice([0.0, 1.0, 2.0, np.nan], n), rng.integers(0, 2, (n, 2), np.uint8)
    alive = rng.random(n) < 0.8

    def snapshot(n):
        rows = np.arange(n)
        return Snapshot(table.take(rows), rows + 1, taken[:n], known[:n], alive[:n], (n, 0), "g")

    # What the documentation says, picture by picture.
    oracle = []
    for row in range(n):
        own = slice(offsets[row], offsets[row + 1])
        found = [
            (label, score)
            for label, score in zip(table.labels[own], table.scores[own], strict=True)
            if score >= wanted.min_score
        ]
        passes = bool(alive[row])
        for name in wanted.labels:
            label = ("cat", "dog").index(name)
            passes &= bool(known[row, label]) or any(other == label for other, _ in found)
        if wanted.min_score and not wanted.labels:
            passes &= any(label >= 0 or score < 1 for label, score in found)
        passes &= wanted.after is None or bool(taken[row] >= wanted.after)
        passes &= wanted.before is None or bool(taken[row] < wanted.before)
        oracle.append(passes)

    masks = Masks()
    masks.of(wanted, snapshot(min(first, n)), None)
    assert masks.of(wanted, snapshot(n), None).tolist() == oracle


@pytest.mark.parametrize(
    ("labels", "known"), [([-1, -1, -1, -1], False), ([-1, -1, 1, -1], True), ([0, 1, 0, 1], True)]
)
def test_a_least_score_needs_scores_of_classes(labels, known):
    """Also with classes, which may come from the names of folders."""
    snapshot = replace(SNAPSHOT, table=replace(TABLE, labels=np.array(labels)))
    if known:
        assert passing(snapshot, min_score=0.6) == ["a", "c"]
        return
    for wanted in ({"min_score": 0.6}, {"min_score": 0.6, "labels": ("dog",)}):
        with pytest.raises(ValueError, match="min_score needs scores of detected classes"):
            passing(snapshot, **wanted)
    assert passing(snapshot, labels=("dog",)) == ["b", "d"]


def test_a_table_without_regions_has_no_scores_and_one_without_pictures_may_have_some():
    assert not CodeTable([], np.ones((0, 2), np.int32)).has_scores
    assert TABLE.take(np.zeros(0, np.int64)).has_scores
