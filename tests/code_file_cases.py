"""Code files made without a model: processes that tests start import it quickly."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from regionhash.store import CodeFileWriter
from regionhash.structures import CategoryCodes, EncodedImage, Regions

MODEL = {
    "model_hash": "abc123",
    "model_name": "region-dh",
    "classes": ("cat", "dog", "cow"),
    "n_bits": 32,
    "n_region_bits": 64,
}


def encoded(n):
    """A picture with all parts, `n` modulo 4 regions and `n` modulo 3 categories."""
    rng = np.random.default_rng(n)
    n_regions, n_categories = n % 4, n % 3
    return EncodedImage(
        size=(100 + n, 200),
        image_code=rng.integers(0, 256, 4, dtype=np.uint8),
        class_probs=rng.random(3, dtype=np.float32),
        regions=Regions(
            boxes=rng.random((n_regions, 4), dtype=np.float32),
            scores=rng.random(n_regions, dtype=np.float32),
            labels=rng.integers(0, 3, n_regions),
            codes=rng.integers(0, 256, (n_regions, 8), dtype=np.uint8),
            features=np.full((n_regions, 5), n, np.float32),
        ),
        categories=CategoryCodes(
            categories=np.arange(n_categories),
            probs=rng.random(n_categories, dtype=np.float32),
            codes=rng.integers(0, 256, (n_categories, 2), dtype=np.uint8),
        ),
    )


def image_id(n):
    return f"{n:05}-é"


def add_range(writer, *span):
    for n in range(*span):
        if image_id(n) not in writer.done:
            writer.add(image_id(n), encoded(n), labels=[n % 3])


def write(path, *span, **changes):
    with CodeFileWriter(path, **(MODEL | changes)) as writer:
        add_range(writer, *span)
        writer.finish()


def journal_of(path):
    return path.with_name(path.name + ".part")


PRELUDE = """
import sys
import time
from code_file_cases import MODEL, add_range, write
from regionhash.store import CodeFileWriter, StoreError
"""


def child(code, *args):
    """A Python process that runs some code, with what writes code files imported."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, args)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
