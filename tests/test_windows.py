"""Windows on a map: the paper's numbers, the whole map covered, and maxima against a loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regionhash.parts.windows import (
    max_pool_windows,
    pyramid_windows,
    sliding_windows,
    snap_boxes,
)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (12, 16), (24, 32), (38, 50)])
def test_maps_of_the_papers_aspect_have_the_papers_numbers_of_windows(shape):
    counts = [len(sliding_windows(*shape, overlap)) for overlap in (0.4, 0.5, 0.6, 0.7)]
    assert counts == [21, 36, 40, 60]  # DRH, Table 2


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 0.9))
def test_windows_lie_in_the_map_cover_it_and_come_once(height, width, overlap):
    windows = sliding_windows(height, width, overlap)
    assert windows.dtype == np.int64
    assert windows[0].tolist() == [0, 0, width, height]
    assert len(np.unique(windows, axis=0)) == len(windows)
    x0, y0, x1, y1 = windows.T
    assert (x0 >= 0).all() and (x1 <= width).all() and (x0 < x1).all()
    assert (y0 >= 0).all() and (y1 <= height).all() and (y0 < y1).all()
    # Each corner belongs to a small window as well, wherever there is one.
    if min(height, width) > 1 and len(windows) > 1:
        small = windows[1:]
        assert small[:, :2].min() == 0
        assert small[:, 2].max() == width
        assert small[:, 3].max() == height


def test_halves_at_an_overlap_of_a_half_lie_a_quarter_apart():
    windows = sliding_windows(8, 16, 0.5)
    halves = [
        window
        for window in windows.tolist()
        if window[2] - window[0] == 8 and window[3] - window[1] == 8
    ]
    assert halves == [[0, 0, 8, 8], [4, 0, 12, 8], [8, 0, 16, 8]]


def test_wide_maps_have_no_third_of_the_height_and_long_windows_are_dropped():
    windows = sliding_windows(30, 60, 0.6)
    heights = set((windows[:, 3] - windows[:, 1]).tolist())
    assert heights == {30, 15}
    sides = windows[1:, 2:] - windows[1:, :2]
    assert (sides.max(1) <= 3 * sides.min(1)).all()
    tall = sliding_windows(60, 30, 0.6)
    np.testing.assert_array_equal(
        np.unique(tall[:, [1, 0, 3, 2]], axis=0), np.unique(windows, axis=0)
    )


@pytest.mark.parametrize(("shape", "overlap"), [((0, 4), 0.5), ((4, 4), 1.0), ((4, 4), -0.1)])
def test_what_has_no_windows_is_refused(shape, overlap):
    with pytest.raises(ValueError, match=r"at least one cell|overlap must be in"):
        sliding_windows(*shape, overlap)


@st.composite
def maps_and_windows(draw):
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    n = draw(st.integers(0, 30))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = np.sort(rng.permuted(np.tile(np.arange(width + 1), (n, 1)), axis=1)[:, :2], axis=1)
    y = np.sort(rng.permuted(np.tile(np.arange(height + 1), (n, 1)), axis=1)[:, :2], axis=1)
    windows = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).reshape(-1, 4)
    maps = torch.from_numpy(rng.standard_normal((2, 3, height, width)).astype(np.float32))
    return maps, windows


@settings(deadline=None)
@given(maps_and_windows())
def test_maxima_are_those_of_a_loop(case):
    maps, windows = case
    pooled = max_pool_windows(maps, windows)
    assert pooled.shape == (2, len(windows), 3)
    for n, (x0, y0, x1, y1) in enumerate(windows):
        assert torch.equal(pooled[:, n], maps[:, :, y0:y1, x0:x1].amax((2, 3)))


@pytest.mark.parametrize("window", [[0, 0, 5, 1], [-1, 0, 1, 1], [1, 1, 1, 2], [0, 0, 1, 4]])
def test_a_window_that_is_empty_or_leaves_the_map_is_refused(window):
    with pytest.raises(ValueError, match="windows must hold cells of a map of 3 x 4"):
        max_pool_windows(torch.zeros(1, 1, 3, 4), np.array([window]))


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        ([0, 0, 128, 96], [0, 0, 4, 3]),
        ([33, 30, 70, 66], [1, 0, 3, 3]),
        ([32.001, 31.999, 64.001, 64], [1, 1, 2, 2]),  # borders, but for rounding
        ([40, 40, 42, 41], [1, 1, 2, 2]),  # a few pixels: the cell they lie in
        ([31, 0, 33, 20], [0, 0, 2, 1]),
        ([-50, -50, -10, -10], [0, 0, 1, 1]),
        ([500, 500, 900, 900], [3, 2, 4, 3]),
        ([-50, 10, 900, 80], [0, 0, 4, 3]),
    ],
)
def test_boxes_take_the_cells_that_they_touch(box, cells):
    cells_of_boxes = snap_boxes(torch.tensor([box], dtype=torch.float32), 32, 3, 4)
    assert cells_of_boxes.dtype == np.int64
    assert cells_of_boxes.tolist() == [cells]


def test_no_box_covers_no_cell():
    cells_of_boxes = snap_boxes(torch.zeros(0, 4), 16, 3, 4)
    assert cells_of_boxes.shape == (0, 4)
    assert max_pool_windows(torch.zeros(1, 2, 3, 4), cells_of_boxes).shape == (1, 0, 2)


# The pyramid


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 400))
def test_a_pyramid_lies_in_the_map_comes_once_and_is_small_enough(height, width, n_windows):
    windows = pyramid_windows(height, width, n_windows)
    assert windows.dtype == np.int64
    assert windows[0].tolist() == [0, 0, width, height]
    assert len(np.unique(windows, axis=0)) == len(windows) <= 1 + n_windows
    x0, y0, x1, y1 = windows.T
    assert (x0 >= 0).all() and (x1 <= width).all() and (x0 < x1).all()
    assert (y0 >= 0).all() and (y1 <= height).all() and (y0 < y1).all()


def covered(windows, height, width):
    """The share of objects that a window has at an IoU of .5, of small ones and of all."""
    rng = np.random.default_rng(0)
    n, found = 2000, []
    sides = np.exp(rng.uniform(np.log(1 / 6), 0, n)) * (height * width) ** 0.5
    stretch = np.exp(rng.uniform(-np.log(2), np.log(2), n) / 2)
    for side, by in zip(sides, stretch, strict=True):
        w, h = min(side * by, width), min(side / by, height)
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        best = 0.0
        for x0, y0, x1, y1 in windows.tolist():
            across, down = min(x1, x + w) - max(x0, x), min(y1, y + h) - max(y0, y)
            if across > 0 and down > 0:
                both = across * down
                best = max(best, both / (w * h + (x1 - x0) * (y1 - y0) - both))
        found.append(best >= 0.5)
    small = sides**2 < 0.05 * height * width
    return np.mean(np.array(found)[small]), np.mean(found)


def test_a_pyramid_covers_small_objects_which_sliding_windows_do_not():
    small, every = covered(pyramid_windows(12, 16, 300), 12, 16)
    assert small > 0.8 and every > 0.9  # as its docstring states
    small, every = covered(sliding_windows(12, 16, 0.6), 12, 16)
    assert small == 0 and every < 0.65


def test_all_scales_of_a_pyramid_go_from_edge_to_edge():
    windows = pyramid_windows(12, 16, 300)[1:]
    sizes = windows[:, 2:] - windows[:, :2]
    for size in np.unique(sizes, axis=0):
        own = windows[(sizes == size).all(1)]
        assert own[:, :2].min(0).tolist() == [0, 0]
        assert own[:, 2:].max(0).tolist() == [16, 12]
    assert sizes.prod(1).min() <= 12 * 16 / 36 * 1.2


@pytest.mark.parametrize("arguments", [(0, 4, 5), (4, 4, -1)])
def test_what_has_no_pyramid_is_refused(arguments):
    with pytest.raises(ValueError, match=r"at least one cell|at least 0, got -1"):
        pyramid_windows(*arguments)
