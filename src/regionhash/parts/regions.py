"""From tensors of a network to stored records."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from regionhash.codes import binarize, pack_bits
from regionhash.structures import Codes, Regions


def codes_of(activations: Tensor, threshold: float = 0.5) -> Codes:
    """Packed codes (N, K/8) of activations (N, K); a bit is 1 from `threshold` on."""
    return pack_bits(binarize(activations.float().cpu().numpy(), threshold))


def regions_of_images(
    boxes: list[Tensor], scores: Tensor, labels: Tensor | None, activations: Tensor
) -> list[Regions]:
    """The regions of B images as records, their bits cut at 0.5.

    Args:
        boxes: B times (R, 4), xyxy in pixels of the picture; M is their total number.
        scores: (M,), in [0, 1].
        labels: (M,), class indices from 0; None if the model knows no classes.
        activations: (M, K), of the codes.
    """
    n_boxes = [len(group) for group in boxes]
    split_labels = [None] * len(boxes) if labels is None else labels.split(n_boxes)
    return [
        regions_of(group, score, label, codes_of(bits))
        for group, score, label, bits in zip(
            boxes, scores.split(n_boxes), split_labels, activations.split(n_boxes), strict=True
        )
    ]


def regions_of(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    codes: Codes,
    features: Tensor | None = None,
) -> Regions:
    """R regions as a record.

    Args:
        boxes: (R, 4), xyxy in pixels of the picture.
        scores: (R,), in [0, 1].
        labels: (R,), class indices from 0; None if the model knows no classes.
        codes: (R, K/8) uint8, packed.
        features: (R, P), what the codes are made from.
    """
    known = np.full(len(boxes), -1) if labels is None else labels.cpu().numpy()
    return Regions(
        boxes.float().cpu().numpy(),
        scores.float().cpu().numpy(),
        known.astype(np.int64),
        codes,
        None if features is None else features.float().cpu().numpy(),
    )
