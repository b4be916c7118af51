"""What surrounds the scan: the mask of a label while pictures are added, and a thumbnail.

- The mask: `--images` pictures with ten regions of one of ten classes each; before each search, 64
  pictures are added. Beside it, the mask of all pictures is computed again.
- The thumbnail: a JPEG of 12 megapixels with noise, to 320 pixels; beside it, all of its pixels are
  decoded and scaled.

Times are the least processor time of the thread over `--repeats` rounds after a first one; both
take turns.

Run: python benchmarks/bench_around.py [--images 1000000] [--repeats 7] [--json]
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from common import least_cpu_milliseconds, random_table
from regionhash.collection.arrays import Snapshot
from regionhash.collection.filters import Masks, mask_of
from regionhash.data.images import read_image, read_thumbnail, thumbnail
from regionhash.search.request import Filter

ADDED = 64


def time_masks(n_images: int, repeats: int) -> dict[str, float]:
    """The mask of a label, with new pictures before each search."""
    table = random_table(n_images, 10, 8)
    labels = np.random.default_rng(1).integers(0, 10, 10 * n_images)
    table = replace(table, classes=tuple("0123456789"), labels=labels)
    wanted, masks = Filter(labels=("3",)), Masks()

    def snapshot(n: int) -> Snapshot:
        part = replace(
            table,
            ids=table.ids[:n],
            sizes=table.sizes[:n],
            image_codes=None,
            offsets=table.offsets[: n + 1],
            boxes=table.boxes[: 10 * n],
            scores=table.scores[: 10 * n],
            labels=table.labels[: 10 * n],
            region_codes=table.region_codes[: 10 * n],
        )
        return Snapshot(part, np.arange(n), np.zeros(n), None, None, (n, 0), "one")

    moments = [snapshot(n_images - ADDED * k) for k in range(repeats + 2, 0, -1)]
    masks.of(wanted, moments[0], None)  # once
    later = iter(moments[1:])
    return least_cpu_milliseconds(
        {
            "extended": lambda: masks.of(wanted, next(later), None),
            "computed": lambda: mask_of(wanted, moments[0], None),
        },
        repeats,
    )


def time_thumbnails(repeats: int) -> dict[str, float]:
    """A thumbnail of a JPEG of 12 megapixels."""
    rng = np.random.default_rng(0)
    rows = np.add.outer(np.arange(3000) / 12, np.arange(4000) / 16) % 256
    pixels = rows[..., None] + rng.normal(0, 6, (3000, 4000, 3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        return least_cpu_milliseconds(
            {
                "scaled by the decoder": lambda: read_thumbnail(path, 320),
                "all pixels": lambda: thumbnail(read_image(path), 320),
            },
            repeats,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {
        "mask of a label": time_masks(options.images, options.repeats),
        "thumbnail": time_thumbnails(options.repeats),
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, times in found.items():
        (ours, taken), (other, longer) = times.items()
        print(f"{name}: {ours} {taken:.2f} ms, {other} {longer:.1f} ms: {taken / longer:.3f} x")


if __name__ == "__main__":
    main()
