"""Checking the boxes of a query against its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regionhash.structures import Box

LEAST_INSIDE = 0.5
"""Share of a box that must be inside of the picture: one below it belongs to another picture, or to
the same picture in another size."""

_ROUNDING = 0.01
"""Share of a side by which a box may leave the picture unnoticed: boxes drawn on a smaller copy and
scaled back are rounded. A pixel always may."""

_BEYOND = 0.1
"""How far fractions of a side may leave the picture, as those of a detector do."""


def place_boxes(boxes: Sequence[Box], size: tuple[int, int]) -> tuple[list[Box], list[str]]:
    """The boxes cut off at the edge of a picture, and a note on each that this changes visibly.

    Args:
        boxes: xyxy in pixels of the picture.
        size: (height, width).

    Raises:
        ValueError: a box is not finite, has swapped corners or no area, is in fractions of the
            picture, or lies outside of it with more than half of its area. The message names box
            and size, not the picture.
    """
    placed, notes = [], []
    for box in boxes:
        inside, note = _placed(box, size)
        placed.append(inside)
        notes += [note] if note else []
    return placed, notes


def _placed(box: Box, size: tuple[int, int]) -> tuple[Box, str]:
    """A box cut off at the edge, and a note, which may be empty."""
    height, width = size
    x0, y0, x1, y1 = box
    name = f"box {','.join(f'{edge:g}' for edge in box)}"
    frame = f"the picture, {width} x {height} pixels"
    if any(map(math.isinf, box)):
        raise ValueError(f"{name}: must be finite")
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"{name}: needs x0 < x1 and y0 < y1")
    if min(box) >= -_BEYOND and max(box) <= 1 + _BEYOND and max(size) > 1:
        raise ValueError(
            f"{name}: must be in pixels of {frame}; these look like fractions of its sides"
        )
    inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        raise ValueError(f"{name}: lies outside of {frame}")
    over = max(-x0, x1 - width) > max(1, _ROUNDING * width)
    over |= max(-y0, y1 - height) > max(1, _ROUNDING * height)
    share = (inside[2] - inside[0]) / (x1 - x0) * ((inside[3] - inside[1]) / (y1 - y0))
    if over and share < LEAST_INSIDE:
        raise ValueError(f"{name}: more than half of it lies outside of {frame}")
    percent = max(1, round(100 * (1 - share)))
    return inside, f"{name}: {percent}% of it lies outside of {frame}, and is ignored" * over
