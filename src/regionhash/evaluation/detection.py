"""Mean average precision of detected boxes, as the PASCAL VOC development kit computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from regionhash.parts.choosing import overlaps
from regionhash.structures import Floats, Ints, Target

Interpolation = Literal["area", "11point"]
Values = NDArray[np.float64]


class DetectionMap(TypedDict):
    """Average precision of a detector.

    Attributes:
        map: mean over the classes that have an object; NaN if none has.
        per_class: (C,) float64, NaN for a class without an object.
    """

    map: float
    per_class: Values


def detection_map(
    predictions: Sequence[tuple[Floats, Floats, Ints]],
    targets: Sequence[Target],
    n_classes: int,
    *,
    iou: float = 0.5,
    interpolation: Interpolation = "area",
) -> DetectionMap:
    """Average precision per class and its mean (Everingham et al., IJCV 2010, Sec. 4.2).

    The detections of a class are processed by descending score. Each is compared with the object
    of its class and image that it overlaps most: right if that overlap is at least `iou` and no
    earlier detection has matched the object, wrong otherwise. A detection whose object is difficult
    counts neither way, and a difficult object does not count as missed.

    The kit counts the pixels on both edges of a box as inside; boxes here are continuous, so sides
    are not one pixel longer.

    Args:
        predictions: per image, boxes (R, 4) xyxy in pixels, scores (R,), and labels (R,), class
            indices from 0.
        targets: the objects of the same images.
        n_classes: C.
        iou: lowest intersection over union of a match.
        interpolation: "area" under the decreasing envelope of the precision-recall curve (VOC since
            2010), or "11point", the mean of the envelope at recalls 0, 0.1, ..., 1 (VOC 2007).

    Raises:
        ValueError: the numbers of predictions and targets differ, wrong shapes, a label outside
            0..C - 1, an `iou` outside (0, 1], or an unknown interpolation.
    """
    if interpolation not in get_args(Interpolation):
        known = ", ".join(get_args(Interpolation))
        raise ValueError(f"interpolation must be one of {known}, got {interpolation!r}")
    if not 0 < iou <= 1:
        raise ValueError(f"iou must be in (0, 1], got {iou}")
    if len(predictions) != len(targets):
        raise ValueError(f"{len(targets)} targets need as many predictions, got {len(predictions)}")
    n_objects = np.zeros(n_classes, np.int64)
    first_object = 0
    parts = []
    for image, ((boxes, scores, labels), target) in enumerate(
        zip(predictions, targets, strict=True)
    ):
        _check_image(image, boxes, scores, labels, target, n_classes)
        np.add.at(n_objects, target.labels[~target.difficult], 1)
        taken, ignored = _match(boxes, labels, target, iou)
        parts.append((scores, labels, np.where(taken >= 0, first_object + taken, -1), ignored))
        first_object += len(target.labels)

    per_class = np.full(n_classes, np.nan)
    if parts:
        scores, labels, taken, ignored = map(np.concatenate, zip(*parts, strict=True))
        order = np.argsort(-scores, kind="stable")
        order = order[~ignored[order]]
        for label in np.flatnonzero(n_objects):
            of_class = taken[order[labels[order] == label]]  # best score first
            per_class[label] = _average_precision(_right(of_class), n_objects[label], interpolation)
    present = per_class[n_objects > 0]
    return {"map": float(present.mean()) if len(present) else np.nan, "per_class": per_class}


def _match(
    boxes: Floats, labels: Ints, target: Target, iou: float
) -> tuple[Ints, NDArray[np.bool_]]:
    """The object (R,) that each detection matches, or -1, and whether it is difficult (R,)."""
    if not len(target.labels):
        return np.full(len(boxes), -1), np.zeros(len(boxes), bool)
    shared = overlaps(boxes.astype(np.float64), target.boxes.astype(np.float64))  # (R, G)
    shared[labels[:, None] != target.labels] = -1
    best = shared.argmax(1)
    matched = shared.max(1) >= iou
    return np.where(matched, best, -1), matched & target.difficult[best]


def _right(taken: Ints) -> NDArray[np.bool_]:
    """Whether each detection, best first, is the first to match its object."""
    right = np.zeros(len(taken), bool)
    right[np.unique(taken, return_index=True)[1]] = True
    return right & (taken >= 0)


def _average_precision(
    right: NDArray[np.bool_], n_objects: int, interpolation: Interpolation
) -> float:
    """Average precision of detections (R,), best first."""
    found = np.cumsum(right)
    recall = found / n_objects
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # best precision at this recall or more
    if interpolation == "area":
        return float((np.diff(recall, prepend=0.0) * envelope).sum())
    # objects needed for a recall of t / 10, in integers: multiples of 0.1 are inexact
    needed = -(-np.arange(11) * n_objects // 10)
    ranks = np.searchsorted(found, needed)
    return float(np.append(envelope, 0.0)[ranks].sum() / 11)


def _check_image(
    image: int, boxes: Floats, scores: Floats, labels: Ints, target: Target, n_classes: int
) -> None:
    length = len(scores)
    if boxes.shape != (length, 4) or scores.shape != (length,) or labels.shape != (length,):
        raise ValueError(
            f"predictions[{image}] must be boxes (R, 4), scores (R,) and labels (R,), "
            f"got {boxes.shape}, {scores.shape} and {labels.shape}"
        )
    for name, indices in (("predictions", labels), ("targets", target.labels)):
        if len(indices) and not 0 <= indices.min() <= indices.max() < n_classes:
            raise ValueError(
                f"labels of {name}[{image}] must be in 0..{n_classes - 1}, "
                f"got {indices.min()}..{indices.max()}"
            )
