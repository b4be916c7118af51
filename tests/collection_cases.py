"""Pictures for collections, made without a model: processes that tests start import it quickly."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from regionhash.collection import Collection
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


PRELUDE = """
import sys
import time
from pathlib import Path
from collection_cases import new_image
from regionhash.collection import Collection
from regionhash.collection.database import Database
from regionhash.store import StoreError
"""


def child(code, *args, **options):
    """A Python process that runs some code, with what stores pictures imported."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, args)],
        cwd=Path(__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def holds(folder, numbers):
    """The collection has exactly these pictures, once each, with their codes, in their order."""
    with Collection(folder) as collection:
        table = collection.code_file().table
        assert list(table.ids) == [f"{n}.jpg" for n in numbers]
        for at, n in enumerate(numbers):
            np.testing.assert_array_equal(table.image_codes[at], encoded(n).image_code)
            np.testing.assert_array_equal(table.regions(at).codes, encoded(n).regions.codes)
            np.testing.assert_array_equal(table.regions(at).boxes, encoded(n).regions.boxes)
        assert collection.check().problems == ()
