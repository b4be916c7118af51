"""Windows on a feature map, and the maximum of the map in many of them at once."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from regionhash.structures import Floats, Ints

if TYPE_CHECKING:
    from torch import Tensor

MAX_ASPECT = 3.0
"""Windows of a greater aspect are dropped (DRH's public code; the paper gives no number)."""

PYRAMID_SCALES = (1.0, 6 ** (-1 / 3), 6 ** (-2 / 3), 1 / 6)
"""Sides of the windows of a pyramid as parts of the map's, down to a sixth. An object between two
scales is smaller or larger by a factor of 1.35 at most, so its IoU with a window of its centre and
aspect is .55 at least."""

PYRAMID_ASPECTS = (3**-0.5, 3**0.5)
"""Their aspects, as multiples of the map's: the IoU with an object of the aspect 1 is .58."""

_SLACK = 1e-9  # 2 / (1 - 0.6) is 5 more windows, not 4.999...
TOUCH = 1e-3
"""Of a cell: a box that ends at its border, up to rounding, does not touch the next."""


def sliding_windows(height: int, width: int, overlap: float) -> Ints:
    """Windows (R, 4) on a map, x0, y0, x1, y1 in cells; the first is the whole map.

    Widths W, W/2, W/3 with heights H, H/2, H/3 (DRH, "Sliding window"), read as follows:

    - A map that is wider than high has no windows of height H/3, one that is higher than wide none
      of width W/3 (the paper gives no threshold; square maps keep all).
    - Neighbours overlap by at most `overlap` of their width: two of width w start at least
      (1 - overlap) w cells apart, so 1 + floor((W - w) / ((1 - overlap) w)) of them fit. On a map
      of 4 : 3 that makes 21, 36, 40 and 60 windows at an overlap of 0.4, 0.5, 0.6 and 0.7, which
      are the paper's numbers. They are spread from edge to edge, so that they cover the whole map.
    - Windows with an aspect above `MAX_ASPECT` are dropped. Sides and positions are rounded to
      cells; windows that become equal are returned once.

    Args:
        height: H, in cells.
        width: W, in cells.
        overlap: lambda, in [0, 1).

    Raises:
        ValueError: a length below 1, or an overlap out of range.
    """
    if min(height, width) < 1:
        raise ValueError(f"a map has at least one cell, got {height} x {width}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), got {overlap}")
    windows = []
    for across in (1, 2, 3) if width >= height else (1, 2):
        for down in (1, 2, 3) if height >= width else (1, 2):
            aspect = (width / across) / (height / down)
            if across == down == 1 or 1 / MAX_ASPECT - _SLACK <= aspect <= MAX_ASPECT + _SLACK:
                rows, columns = _spans(height, down, overlap), _spans(width, across, overlap)
                windows += [(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]
    return np.array(list(dict.fromkeys(windows)), np.int64)


@lru_cache(maxsize=64)
def pyramid_windows(height: int, width: int, n_windows: int) -> Ints:
    """Windows (R, 4) of several scales, x0, y0, x1, y1 in cells, large ones first.

    The first is the whole map; the others, `n_windows` at most, have the scales of `PYRAMID_SCALES`
    in both aspects of `PYRAMID_ASPECTS`. That small objects have a window too is the idea of
    Patchify (Choi et al., "Patch-wise Retrieval: A Bag of Practical Techniques for Instance-level
    Matching", WACV 2026), whose patches do not overlap.

    All scales have the same overlap of neighbours: the largest of 0.9, 0.85, ..., 0 that makes few
    enough windows. If there is none, the smallest scales are left out. On a map of 12 x 16,
    300 windows reach an IoU of .5 with 92 % of objects of all sizes from a sixth of a side and of
    aspects from 1 : 2 to 2 : 1, and sliding windows of an overlap of 0.6 with 63 %.

    Args:
        height: H, in cells.
        width: W, in cells.
        n_windows: greatest number, without the whole map.

    Raises:
        ValueError: a length below 1, or a number below 0.
    """
    if min(height, width) < 1:
        raise ValueError(f"a map has at least one cell, got {height} x {width}")
    if n_windows < 0:
        raise ValueError(f"n_windows must be at least 0, got {n_windows}")
    for n_scales in range(len(PYRAMID_SCALES), 0, -1):
        for step in range(18, -1, -1):
            windows = _pyramid(height, width, PYRAMID_SCALES[:n_scales], step / 20)
            if len(windows) <= 1 + n_windows:
                return _read_only(windows)
    return _read_only([(0, 0, width, height)])


def _read_only(windows: list[tuple[int, int, int, int]]) -> Ints:
    found = np.array(windows, np.int64)
    found.setflags(write=False)  # it is kept for the next map of this shape
    return found


def _pyramid(
    height: int, width: int, scales: tuple[float, ...], overlap: float
) -> list[tuple[int, int, int, int]]:
    windows = [(0, 0, width, height)]
    for scale in scales:
        for aspect in PYRAMID_ASPECTS:
            rows = _covering(height, height * scale / aspect**0.5, overlap)
            columns = _covering(width, width * scale * aspect**0.5, overlap)
            windows += [(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]
    return list(dict.fromkeys(windows))


def _covering(length: int, span: float, overlap: float) -> list[tuple[int, int]]:
    """Spans from end to end whose neighbours overlap by at least `overlap` of their length."""
    cells = min(max(1, round(span)), length)
    n = 1 + math.ceil((length - cells) / ((1 - overlap) * cells) - _SLACK)
    starts = np.unique(np.round(np.linspace(0, length - cells, n)).astype(int)).tolist()
    return [(start, start + cells) for start in starts]


def _spans(length: int, parts: int, overlap: float) -> list[tuple[int, int]]:
    """First and last cells (exclusive) of spans of length / parts, spread from end to end."""
    span = max(1, round(length / parts))
    n = 1 + int((parts - 1) / (1 - overlap) + _SLACK)
    starts = np.round(np.linspace(0, length - span, n)).astype(int).tolist()
    return [(start, start + span) for start in starts]


def snap_boxes(boxes: Tensor | Floats, stride: float, height: int, width: int) -> Ints:
    """The cells (R, 4) of a map that boxes touch: x0, y0, x1, y1, one cell at least.

    Args:
        boxes: (R, 4), xyxy in input pixels; a box outside the map takes the nearest cell.
        stride: input pixels per cell.
        height: height of the map, in cells.
        width: width of the map, in cells.
    """
    array = boxes if isinstance(boxes, np.ndarray) else boxes.cpu().numpy()
    cells = array.astype(np.float64) / stride
    limits = np.array([width, height])
    low = np.clip(np.floor(cells[:, :2] + TOUCH), 0, limits - 1)
    high = np.clip(np.ceil(cells[:, 2:] - TOUCH), low + 1, limits)
    return np.concatenate([low, high], axis=1).astype(np.int64)


def pool_map(features: Floats, windows: Ints, how: Literal["max", "mean"]) -> Floats:
    """The maximum or mean (R, D) of each channel of one map in each window, with NumPy alone.

    Args:
        features: (D, h, w) float32.
        windows: (R, 4), x0, y0, x1, y1 in cells, at least one cell each, within the map.
        how: "max" or "mean".
    """
    cells = np.ascontiguousarray(features.transpose(1, 2, 0))  # (h, w, D)
    if how == "max":
        pooled = [cells[y0:y1, x0:x1].max((0, 1)) for x0, y0, x1, y1 in windows.tolist()]
        return np.array(pooled, np.float32)
    # Sums of the map's rectangles from its first corner.
    sums = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1, cells.shape[2]))
    np.cumsum(cells, axis=0, dtype=np.float64, out=sums[1:, 1:])
    np.cumsum(sums, axis=1, out=sums)
    x0, y0, x1, y1 = windows.T
    areas = ((x1 - x0) * (y1 - y0))[:, None]
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    means: Floats = (inside / areas).astype(np.float32)
    return means


def max_pool_windows(maps: Tensor, windows: Ints) -> Tensor:
    """The maximum (B, R, D) of each channel in each window.

    A window is the union of four rectangles whose sides are powers of two, one in each corner. So
    the map of maxima over rectangles of 2^i x 2^j cells serves all windows of that class of size,
    and each such map is made from one of half the size: the work does not grow with the area of the
    windows, and no loop runs over them.

    Args:
        maps: (B, D, h, w).
        windows: (R, 4), x0, y0, x1, y1 in cells, at least one cell each, within the map.

    Raises:
        ValueError: a window that is empty or leaves the map.
    """
    height, width = maps.shape[2:]
    low, high = windows[:, :2], windows[:, 2:]
    if (low < 0).any() or (high <= low).any() or (high > (width, height)).any():
        raise ValueError(f"windows must hold cells of a map of {height} x {width}")
    levels = np.frexp(high - low)[1] - 1  # (R, 2): floor(log2(side)), exact
    pooled = maps.new_empty(len(maps), len(windows), maps.shape[1])
    rows = maps.permute(0, 2, 3, 1)  # (B, h, w, D)
    for j in range(levels[:, 1].max(initial=-1) + 1):
        rows = rows if j == 0 else _maxima_of_two(rows, 1, 2 ** (j - 1))
        cells = rows
        for i in range(levels[levels[:, 1] == j, 0].max(initial=-1) + 1):
            cells = cells if i == 0 else _maxima_of_two(cells, 2, 2 ** (i - 1))
            group = np.flatnonzero((levels == (i, j)).all(axis=1))
            (x0, y0), (x1, y1) = low[group].T, (high[group] - (2**i, 2**j)).T
            corners = cells[:, np.stack([y0, y0, y1, y1]), np.stack([x0, x1, x0, x1])]
            pooled[:, group] = corners.amax(1)  # of (B, 4, R, D)
    return pooled


def _maxima_of_two(cells: Tensor, dim: int, apart: int) -> Tensor:
    """The larger of each cell and the one `apart` cells further along `dim`."""
    n = cells.shape[dim] - apart
    return cells.narrow(dim, 0, n).maximum(cells.narrow(dim, apart, n))


def window_box(scale: int, row: int, column: int) -> tuple[int, int, int, int]:
    """The cells of the first map that one window reads: x0, y0, x1, y1, the last ones exclusive.

    A cell of the map `scale` is centred on the cell (2^scale row, 2^scale column) of the first map
    and reads 2^scale - 1 more on each side of it; the window adds a neighbour, 2^scale farther, on
    each side. So it is 2^(scale + 2) - 1 cells wide: 3, 7, 15. Cells beyond the map are zeros.
    """
    reach = 2 ** (scale + 1) - 1
    y, x = row * 2**scale, column * 2**scale
    return x - reach, y - reach, x + reach + 1, y + reach + 1


def windows_of_scales(height: int, width: int, n_scales: int) -> Floats:
    """The cells (M, 4) of the first map that each window reads, cut to the map: x0, y0, x1, y1.

    In the order of `regionhash.parts.multiscale.MultiScaleWindows`, float32. Multiplied by the
    stride of the first map, they are the windows' boxes in the input picture. (The receptive field
    of the base network is not counted: in theory it is most of the picture, in effect not much more
    than a cell.)

    Args:
        height: height of the first map, in cells.
        width: width of the first map, in cells.
        n_scales: number of maps.
    """
    boxes = []
    for scale in range(n_scales):
        step = 2**scale
        boxes += [
            window_box(scale, row, column)
            for row in range(-(-height // step))
            for column in range(-(-width // step))
        ]
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(np.array(boxes, np.float32), np.float32(0), limits)
