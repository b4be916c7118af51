"""Pictures for collections, made without a model: processes that tests start import it quickly."""

import os

import numpy as np

from regionhash.collection.database import FileState, NewImage
from regionhash.store import rows_of
from regionhash.structures import EncodedImage, Regions

MODEL = {
    "model": "region-dh",
    "model_hash": "abc",
    "classes": ["cat", "dog"],
    "n_bits": 16,
    "n_region_bits": 8,
    "meta": {"precision": "32-true"},
}


def encoded(n, n_regions=2):
    """Codes that tell their number."""
    rng = np.random.default_rng(n)
    return EncodedImage(
        (100 + n, 200),
        rng.integers(0, 256, 2, dtype=np.uint8),
        np.array([0.5, 0.5], np.float32),
        Regions(
            rng.random((n_regions, 4), np.float32),
            rng.random(n_regions, np.float32),
            rng.integers(0, 2, n_regions),
            rng.integers(0, 256, (n_regions, 1), dtype=np.uint8),
        ),
    )


def new_image(n, **state):
    return NewImage(
        f"{n}.jpg",
        FileState(os.fsencode(f"/photos/{n}.jpg"), b"%d" % n, **state),
        None,
        rows_of(f"{n}.jpg", encoded(n), None, MODEL),
    )
