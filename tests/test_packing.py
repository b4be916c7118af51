"""Small types of a collection: what is lost, and what is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from collection_cases import MODEL, encoded
from regionhash.collection.packing import (
    PackedBoxes,
    _float16,
    as_kept,
    pack_boxes,
    packed,
    steps,
    types_of,
)
from regionhash.store import rows_of
from regionhash.structures import meaningful_score

SIDE = st.integers(1, 5000) | st.sampled_from([4095, 4096, 8191, 8192, 65535, 65536, 100_000])


@st.composite
def pictures(draw):
    """A picture's size, and boxes with an area in it, some of them thinner than a step."""
    size = (draw(SIDE), draw(SIDE))
    n_boxes = draw(st.integers(0, 8))
    corners = draw(arrays(np.float64, (n_boxes, 2, 2), elements=st.floats(0, 1)))
    if draw(st.booleans()):
        corners[:, 1] = corners[:, 0] + 1e-4 * corners[:, 1]
    corners = np.sort(corners * size[::-1], axis=1).astype(np.float32)
    boxes = np.clip(corners, 0, np.array(size[::-1], np.float32)).reshape(-1, 4)
    return size, boxes[(boxes[:, :2] < boxes[:, 2:]).all(axis=1)]


def unpacked(boxes, size):
    """What one picture's boxes are when they are read."""
    offsets, sizes = np.array([0, len(boxes)]), np.array([size], np.int32)
    return PackedBoxes(pack_boxes(boxes, size), offsets, sizes)[:]


@settings(max_examples=400, deadline=None)
@given(pictures())
def test_a_box_moves_by_half_a_step_stays_in_its_picture_and_keeps_an_area(picture):
    size, boxes = picture
    step = np.tile(steps(np.array(size[::-1])), 2)  # (4,)
    assert (step == 1 / 16).all() or max(size) > 4095
    found = unpacked(boxes, size)
    assert found.dtype == np.float32
    assert (found >= 0).all() and (found <= [*size[::-1], *size[::-1]]).all()
    assert (found[:, :2] < found[:, 2:]).all()
    moved = np.abs(found.astype(np.float64) - boxes)
    thin = np.tile(boxes[:, 2:].astype(np.float64) - boxes[:, :2] < step[:2], 2)
    assert (moved <= np.where(thin, step, step / 2)).all()
    np.testing.assert_array_equal(unpacked(found, size), found)


def test_edges_by_hand():
    boxes = np.array([[1.03, 2.04, 499.97, 375], [3.01, 3.02, 3.02, 9]], np.float32)
    assert pack_boxes(boxes, (375, 500)).tolist() == [[16, 33, 8000, 6000], [48, 48, 49, 144]]
    corner = np.array([[499.99, 374.99, 500, 375]], np.float32)
    assert unpacked(corner, (375, 500)).tolist() == [[499.9375, 374.9375, 500, 375]]
    assert steps(np.array([0, 1, 4095, 4096, 8191, 8192])).tolist() == [
        *[1 / 16] * 3,
        *[1 / 8] * 2,
        1 / 4,
    ]


def test_boxes_outside_of_their_picture_are_clipped_and_inverted_ones_stay_inverted():
    boxes = np.array([[-9, -9, 900, 900], [600, 10, 700, 20], [7, 8, 3, 4]], np.float32)
    assert unpacked(boxes, (375, 500)).tolist() == [
        [0, 0, 500, 375],
        [499.9375, 10, 500, 20],
        [7, 8, 3, 4],
    ]
    assert unpacked(boxes, (0, 0)).tolist() == [[0, 0, 0, 0]] * 3


@pytest.mark.parametrize("large", [False, True])
def test_boxes_are_read_by_any_index(large):
    sizes = np.array([[100, 90], [6000, 9000] if large else [60, 90], [50, 50]], np.int32)
    offsets = np.array([0, 2, 2 + 3, 2 + 3 + 1])
    rng = np.random.default_rng(0)
    boxes = [
        np.sort(rng.integers(0, 50, (n, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
        for n in np.diff(offsets)
    ]
    packed_boxes = np.concatenate(list(map(pack_boxes, boxes, sizes)))
    expected, found = np.concatenate(boxes), PackedBoxes(packed_boxes, offsets, sizes)
    assert len(found) == 6
    mask = np.array([True, False, False, True, True, False])
    for items in (0, 4, -1, slice(1, 4), slice(None, None, -2), [5, 0, 2], mask, np.zeros(0, int)):
        np.testing.assert_array_equal(found[items], expected[items])
        assert found[items].dtype == np.float32


@pytest.mark.parametrize(("n_classes", "n_bytes"), [(0, 1), (128, 1), (129, 2), (32769, 4)])
def test_labels_have_as_many_bytes_as_the_classes_need(n_classes, n_bytes):
    types = types_of({"version": 3, "classes": [""] * n_classes})
    assert types["labels"].itemsize == types["categories"].itemsize == n_bytes
    for label in (-1, n_classes - 1):
        assert np.array([label]).astype(types["labels"]) == label


@settings(deadline=None)
@given(arrays(np.float32, 5, elements=st.floats(0, 1, width=32)))
def test_scores_keep_their_order_and_what_one_means(scores):
    rows = rows_of("a", encoded(0, n_regions=5), None, MODEL) | {"scores": scores}
    found = packed(rows, types_of(MODEL | {"version": 3}))["scores"]
    assert found.dtype == np.float16
    assert (np.abs(found - scores) <= np.maximum(scores / 2000, 1e-7)).all()
    assert (np.diff(found[np.argsort(scores)]) >= 0).all()
    for score, now in zip(scores.tolist(), found.tolist(), strict=True):
        assert (meaningful_score(-1, score) is None) == (meaningful_score(-1, now) is None)


def test_scores_beyond_a_float16_stay_finite():
    rows = rows_of("a", encoded(0), None, MODEL) | {"scores": np.array([1e9, -1e9], np.float32)}
    found = packed(rows, types_of(MODEL | {"version": 3}))["scores"]
    assert found.tolist() == [65504, -65504]


def test_version_2_keeps_the_types_of_the_code_file():
    rows = rows_of("a", encoded(0), [1], MODEL)
    found = packed(rows, types_of(MODEL | {"version": 2}))
    assert all(found[name] is rows[name] for name in rows)


def test_a_score_is_found_by_any_threshold_up_to_it():
    scores = np.array([0, 1e-6, 0.3, 0.5, 0.9996, 0.9999, 1], np.float32)
    kept = _float16(scores)
    for n, score in enumerate(scores):
        for threshold in (score, score * 0.99999):
            assert kept[n] >= as_kept(float(threshold), kept.dtype)
    assert kept[-2] < as_kept(1.0, kept.dtype)
