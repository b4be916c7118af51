"""Seeded splits of an image set."""

from __future__ import annotations

import numpy as np

from regionhash.data.image_set import ImageSet


def split_off(image_set: ImageSet, fraction: float, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """The set without a random part, and that part: disjoint, both in the set's order.

    Stratified by the rarest label of each picture: the pictures are shuffled, sorted by that label
    and drawn at equal steps, so each stratum contributes its share to within one picture.

    Args:
        image_set: N pictures.
        fraction: share of pictures to hold out; their number is rounded.
        seed: random seed.

    Raises:
        ValueError: one of the two parts would be empty.
    """
    n_images = len(image_set)
    n_held = round(fraction * n_images)
    if not 0 < n_held < n_images:
        raise ValueError(
            f"fraction {fraction} of {n_images} pictures leaves {n_held} held out and "
            f"{n_images - n_held} others; both must be positive"
        )
    generator = np.random.default_rng(seed)
    labels = image_set.labels()  # (N, C)
    # A last column, more frequent than any label, is the stratum of pictures without one.
    labels = np.hstack([labels, np.ones((n_images, 1), np.uint8)])  # (N, C + 1)
    frequencies = labels.sum(axis=0, dtype=np.int64)
    frequencies[-1] = n_images + 1
    strata = np.where(labels, frequencies, n_images + 2).argmin(axis=1)  # (N,)
    order = np.lexsort([generator.random(n_images), strata])
    steps = (np.arange(n_held) + generator.random()) * n_images / n_held
    held = np.zeros(n_images, np.bool_)
    held[order[steps.astype(np.int64)]] = True
    return image_set.subset(np.flatnonzero(~held)), image_set.subset(np.flatnonzero(held))
