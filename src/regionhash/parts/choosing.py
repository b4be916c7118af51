"""Which regions of a picture get a code, and in which order: with NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from regionhash.parts.windows import pyramid_windows, sliding_windows
from regionhash.structures import Detections, Floats, Ints

Proposals = Literal["windows", "rpn", "pyramid", "boxes"]
"""What the regions are. "windows" are sliding windows, "pyramid" windows of more scales. "boxes"
are given with the pictures; a picture for which none are given has sliding windows. "rpn" takes
those of a region proposal network."""

MAX_PROPOSALS = 10_000
"""NMS compares four times as many boxes with each other, which takes seconds per picture."""

MAX_OVERLAP = 0.95  # 2,500 windows of a picture; their number grows with 1 / (1 - overlap)^2


@dataclass(frozen=True)
class RegionChoice:
    """How the regions of a picture are chosen. The first one is always the whole picture.

    Attributes:
        proposals: see `Proposals`.
        overlap: of the sliding windows, see `sliding_windows`.
        n_proposals: greatest number of regions beside the whole picture, except sliding windows.
        max_iou: a region that overlaps a better one by more than this is dropped, see `thinned`;
            1 keeps all.

    Raises:
        ValueError: a value out of range.
    """

    proposals: Proposals = "windows"
    overlap: float = 0.6
    n_proposals: int = 300
    max_iou: float = 1.0

    def __post_init__(self) -> None:
        if self.proposals not in get_args(Proposals):
            known = ", ".join(get_args(Proposals))
            raise ValueError(f"proposals must be one of {known}, got {self.proposals!r}")
        if not 0 < self.max_iou <= 1:
            raise ValueError(f"max_iou must be in (0, 1], got {self.max_iou}")
        check_n_proposals(self.n_proposals)
        if MAX_OVERLAP < self.overlap < 1:
            raise ValueError(f"overlap must be at most {MAX_OVERLAP}, got {self.overlap}")
        sliding_windows(1, 1, self.overlap)  # refuses an overlap out of range

    def windows(self, height: int, width: int) -> Ints:
        """The windows (R, 4) on a map, x0, y0, x1, y1 in cells; the first is the whole map."""
        if self.proposals == "pyramid":
            windows = pyramid_windows(height, width, self.n_proposals)
        else:
            windows = sliding_windows(height, width, self.overlap)
        return windows[thinned(windows.astype(np.float32), self.max_iou)]

    def of_map(self, height: int, width: int, size: tuple[int, int]) -> tuple[Detections, Ints]:
        """The windows on a map of `height` x `width` cells, in pixels of an input of `size`.

        Returns:
            The regions, and the cells (R, 4) that each of them holds.
        """
        windows = self.windows(height, width)
        pixels = np.array([size[1] / width, size[0] / height] * 2, np.float32)
        boxes = windows.astype(np.float32) * pixels
        return _unlabelled(boxes, np.ones(len(boxes), np.float32)), windows

    def of_boxes(self, found: Detections, size: tuple[int, int]) -> Detections:
        """The whole picture of `size` and the best of given boxes, the best ones first."""
        order = np.argsort(-found.scores, kind="stable")
        whole = _unlabelled(np.array([[0, 0, *size[::-1]]], np.float32), np.ones(1, np.float32))
        boxes = np.concatenate([whole.boxes, found.boxes[order]])
        kept = thinned(boxes, self.max_iou)[: 1 + self.n_proposals]
        scores = np.concatenate([whole.scores, found.scores[order]])
        labels = np.concatenate([whole.labels, found.labels[order]])
        return Detections(boxes[kept], scores[kept], labels[kept])


def check_n_proposals(n_proposals: int) -> None:
    """Raises ValueError if a number of proposals is out of range."""
    if not 1 <= n_proposals <= MAX_PROPOSALS:
        raise ValueError(f"n_proposals must be in [1, {MAX_PROPOSALS}], got {n_proposals}")


def _unlabelled(boxes: Floats, scores: Floats) -> Detections:
    return Detections(boxes, scores, np.full(len(boxes), -1, np.int64))


def thinned(boxes: Floats, max_iou: float) -> Ints:
    """Rows (S,) of boxes (R, 4) that are left, ascending, when the later of two is dropped.

    A box is dropped if its IoU with an earlier one that is left is more than `max_iou`; classes do
    not matter. So of boxes in order of their scores the best are left, and of windows, which have
    none, the large ones.
    """
    if max_iou >= 1:
        return np.arange(len(boxes))
    kept, left = [], np.arange(len(boxes))
    while len(left):
        kept.append(left[0])
        near = overlaps(boxes[left[:1]], boxes[left])[0] > np.float32(max_iou)
        near[0] = True
        left = left[~near]
    return np.array(kept, np.int64)


def overlaps(boxes: Floats, others: Floats) -> Floats:
    """Intersection over union (R, M) of boxes (R, 4) and others (M, 4), xyxy, float32."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas, of_others = ((x[:, 2:] - x[:, :2]).prod(1) for x in (boxes, others))
    found: Floats = shared / (areas[:, None] + of_others - shared)
    return found
