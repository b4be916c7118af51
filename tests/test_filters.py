"""Masks of filters: what they let through, and how long they are kept."""

from dataclasses import replace

import numpy as np
import pytest

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


def test_a_mask_is_kept_for_its_filter_and_its_snapshot_alone():
    masks = Masks(most=2)
    removed = replace(SNAPSHOT, alive=np.array([True, True, True, False]))
    later = replace(removed, version=(4, 1))
    span, dogs = Filter(after=0.0), Filter(labels=("dog",))
    first = masks.of(dogs, SNAPSHOT, None)
    assert first.all() and masks.of(dogs, SNAPSHOT, None) is first
    assert masks.of(span, SNAPSHOT, None).tolist() == [True, True, True, False]
    for snapshot in (removed, later):
        assert masks.of(dogs, snapshot, None).tolist() == [True, True, True, False]
    assert masks.of(dogs, SNAPSHOT, None) is not first  # two newer ones took its place


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
