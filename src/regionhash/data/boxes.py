"""Labelled boxes from annotation files, checked and turned into a `Target`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from regionhash.data.notices import Notices
from regionhash.files.text import shown
from regionhash.structures import Box, Target

_LARGEST = float(np.finfo(np.float32).max)


class LabelledBox(NamedTuple):
    """One object of an annotation file.

    Attributes:
        source: the file, and the line if known; for messages.
        label: class index.
        box: (x0, y0, x1, y1) in pixels of the picture.
        difficult: VOC's mark, COCO's crowd.
    """

    source: str
    label: int
    box: Box
    difficult: bool = False


def make_target(
    objects: Iterable[LabelledBox],
    size: tuple[int, int] | None,
    notices: Notices,
    image_labels: Iterable[int] = (),
) -> Target:
    """The objects as a target, their boxes clipped to a picture of `size` (height, width).

    Objects without remaining area are left out with a notice. If `size` is None (the picture
    cannot be read), boxes are only clipped to x0, y0 >= 0.

    Raises:
        ValueError: a coordinate is not finite or does not fit a float32.
    """
    height, width = size or (math.inf, math.inf)
    kept: list[LabelledBox] = []
    for item in objects:
        if not all(map(math.isfinite, item.box)):
            raise ValueError(f"{item.source}: box must be finite, got {shown(item.box)}")
        x0, y0, x1, y1 = item.box
        clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height))
        if max(clipped[2:]) > _LARGEST:
            raise ValueError(f"{item.source}: box must be in pixels, got {shown(item.box)}")
        if clipped[0] < clipped[2] and clipped[1] < clipped[3]:
            kept.append(item._replace(box=clipped))
        else:
            frame = f"a picture of {shown(width)} x {shown(height)} pixels"
            notices.add(
                "boxes without area, left out",
                f"{item.source}: box {item.box} has no area in {frame}; left out",
            )
    return Target(
        boxes=np.array([item.box for item in kept], np.float32).reshape(-1, 4),
        labels=np.array([item.label for item in kept], np.int64),
        difficult=np.array([item.difficult for item in kept], np.bool_),
        image_labels=tuple(sorted(set(image_labels))),
    )
