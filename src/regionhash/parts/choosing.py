"""Which regions of a picture get a code, and in which order: with NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

from regionhash.parts.windows import pyramid_windows, sliding_windows
from regionhash.structures import Detections, Floats, Floats64, Ints

Boxes = TypeVar("Boxes", Floats, Floats64)

Proposals = Literal["windows", "rpn", "pyramid", "boxes", "boxes+windows", "boxes+pyramid"]
"""What the regions are. "windows" are sliding windows, "pyramid" windows of more scales. "boxes"
are given with the pictures; a picture for which none are given has sliding windows. "boxes+windows"
and "boxes+pyramid" are given boxes followed by windows. "rpn" takes those of a region proposal
network."""

MAX_PROPOSALS = 10_000
"""NMS compares four times as many boxes with each other, which takes seconds per picture."""

MAX_OVERLAP = 0.95  # 2,500 windows of a picture; their number grows with 1 / (1 - overlap)^2


@dataclass(frozen=True)
class RegionChoice:
    """How the regions of a picture are chosen. The first one is always the whole picture.

    Attributes:
        proposals: see `Proposals`.
        overlap: of the sliding windows, see `sliding_windows`.
        n_proposals: greatest number of boxes, and of windows of a pyramid, beside the whole
            picture; sliding windows are as many as there are.
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

    @property
    def takes_boxes(self) -> bool:
        """Whether boxes that are given with the pictures are regions."""
        return self.proposals.startswith("boxes")

    def windows(self, height: int, width: int) -> Ints:
        """The windows (R, 4) on a map, x0, y0, x1, y1 in cells; the first is the whole map."""
        windows = self._windows(height, width)
        return windows[thinned(windows.astype(np.float32), self.max_iou)]

    def of_map(self, height: int, width: int, size: tuple[int, int]) -> tuple[Detections, Ints]:
        """The windows on a map of `height` x `width` cells, in pixels of an input of `size`.

        Returns:
            The regions, and the cells (R, 4) that each of them holds.
        """
        windows = self.windows(height, width)
        return _unlabelled(_in_pixels(windows, height, width, size)), windows

    def of_boxes(
        self, found: Detections, size: tuple[int, int], cells: tuple[int, int]
    ) -> Detections:
        """The whole picture of `size` and the best of given boxes, the best ones first.

        With windows, they follow the boxes, and all are thinned together: a window that overlaps a
        box by more than `max_iou` is dropped. Windows have the score 1 and the label -1.

        Args:
            found: the boxes, in pixels of the input.
            size: height and width of the input.
            cells: height and width of its map.
        """
        whole = _unlabelled(np.array([[0, 0, *size[::-1]]], np.float32))
        order = np.argsort(-found.scores, kind="stable")
        best = _joined(whole, _rows(found, order))
        chosen = _rows(best, thinned(best.boxes, self.max_iou)[: 1 + self.n_proposals])
        if self.proposals == "boxes":
            return chosen
        windows = _in_pixels(self._windows(*cells)[1:], *cells, size)
        every = _joined(chosen, _unlabelled(windows))
        return _rows(every, thinned(every.boxes, self.max_iou))

    def _windows(self, height: int, width: int) -> Ints:
        if self.proposals.endswith("pyramid"):
            return pyramid_windows(height, width, self.n_proposals)
        return sliding_windows(height, width, self.overlap)


def check_n_proposals(n_proposals: int) -> None:
    """Raises ValueError if a number of proposals is out of range."""
    if not 1 <= n_proposals <= MAX_PROPOSALS:
        raise ValueError(f"n_proposals must be in [1, {MAX_PROPOSALS}], got {n_proposals}")


def _in_pixels(windows: Ints, height: int, width: int, size: tuple[int, int]) -> Floats:
    """Windows (R, 4) on a map of `height` x `width` cells, in pixels of an input of `size`."""
    pixels = np.array([size[1] / width, size[0] / height] * 2, np.float32)
    return windows.astype(np.float32) * pixels


def _unlabelled(boxes: Floats) -> Detections:
    return Detections(boxes, np.ones(len(boxes), np.float32), np.full(len(boxes), -1, np.int64))


def _rows(found: Detections, rows: Ints) -> Detections:
    return Detections(found.boxes[rows], found.scores[rows], found.labels[rows])


def _joined(first: Detections, second: Detections) -> Detections:
    return Detections(
        np.concatenate([first.boxes, second.boxes]),
        np.concatenate([first.scores, second.scores]),
        np.concatenate([first.labels, second.labels]),
    )


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


def overlaps(boxes: Boxes, others: Boxes) -> Boxes:
    """Intersection over union (R, M) of boxes (R, 4) and others (M, 4), xyxy; 0 of two empty boxes.

    It is computed in the type of the boxes: float32 as torchvision's `box_iou`, with its rounding,
    float64 for measures.
    """
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(2)  # (R, M)
    areas, of_others = ((x[:, 2:] - x[:, :2]).prod(1) for x in (boxes, others))
    union = areas[:, None] + of_others - shared
    found: Boxes = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
    return found
