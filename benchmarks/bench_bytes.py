"""What a collection keeps: bytes per region in the database and in the arrays, by field and file.

`--images` pictures of `--regions` regions each, with codes of 64 bits of the pictures and of their
regions; boxes, scores and, with `--classes`, labels are random. `--paths` are those of a camera's
files in folders of 1,000, or short ones, all in one folder. The database is measured by its tables
and indices with SQLite's dbstat, and the fields of a picture by their length; what a table takes
beyond its fields is the numbers in SQLite's own form, headers of rows, and space of pages that is
free.

Run: python benchmarks/bench_bytes.py [--images 100000] [--regions 10] [--classes 20]
                                      [--paths camera] [--json]
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from regionhash.collection import Collection
from regionhash.collection.database import COLUMNS, DATABASE_FILE, Database, FileState, NewImage
from regionhash.store import rows_of
from regionhash.structures import EncodedImage, Regions

STORED_AT_A_TIME = 1000
SIZE = (375, 500)  # of VOC's pictures, most often
PATHS = {
    "camera": ("/home/anna/Pictures/", "2019/holiday {folder:03}/IMG_20190704_{n:06}.jpg"),
    "short": ("/pictures/", "{n:09}.jpg"),
}
"""Where the pictures are, and their ids."""


def pictures(
    model: dict[str, object], n_images: int, n_regions: int, paths: str
) -> Iterator[NewImage]:
    """Pictures as `index` stores them."""
    place, ids = PATHS[paths]
    rng = np.random.default_rng(0)
    n_classes = len(model["classes"])
    for n in range(n_images):
        corners = np.sort(rng.random((n_regions, 2, 2), np.float32), axis=1)
        regions = Regions(
            (corners * np.array(SIZE[::-1], np.float32)).reshape(-1, 4),
            np.sort(rng.random(n_regions, np.float32))[::-1],
            rng.integers(0, n_classes, n_regions) if n_classes else np.full(n_regions, -1),
            rng.integers(0, 256, (n_regions, 8), dtype=np.uint8),
        )
        encoded = EncodedImage(SIZE, rng.integers(0, 256, 8, dtype=np.uint8), regions=regions)
        image_id = ids.format(folder=n // 1000, n=n)
        time_ns = int(1.7e18 + rng.integers(10**17))
        file = FileState(
            os.fsencode(place + image_id),
            rng.bytes(32),
            int(rng.integers(10**6, 10**7)),
            time_ns,
            time_ns // 10**9,
        )
        yield NewImage(image_id, file, None, rows_of(image_id, encoded, None, model))


def measure(
    n_images: int, n_regions: int, n_classes: int, paths: str
) -> dict[str, dict[str, float]]:
    """Bytes per region: of the database's tables and indices, a picture's fields, the arrays."""
    model = {
        "model": "region-dh",
        "model_hash": "abc",
        "classes": [f"class {n}" for n in range(n_classes)],
        "n_bits": 64,
        "n_region_bits": 64,
        "meta": {"precision": "32-true"},
    }
    per_region = n_images * n_regions
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / DATABASE_FILE
        with Database.create(path, model) as database:
            made = pictures(model, n_images, n_regions, paths)
            while images := list(islice(made, STORED_AT_A_TIME)):
                database.store(images)
            lengths = ", ".join(
                f"coalesce(sum(length(CAST({name} AS BLOB))), 0)" for name in COLUMNS
            )
            (fields,) = database.read(f"SELECT {lengths} FROM images")
            parts = database.read(
                "SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC"
            )
        Collection.open(folder).close()
        arrays = {
            file.name: file.stat().st_size for file in sorted(Path(folder).glob("arrays/*/*"))
        }
        total = {"database": path.stat().st_size, "arrays": sum(arrays.values())}
    found = {
        "database": dict(parts),
        "fields of a picture, as text": dict(zip(COLUMNS, fields, strict=True)),
        "arrays": arrays,
        "all": total | {"together": sum(total.values())},
    }
    return {
        part: {name: n_bytes / per_region for name, n_bytes in sizes.items() if n_bytes}
        for part, sizes in found.items()
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--regions", type=int, default=10)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--paths", choices=PATHS, default="camera")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked.images, asked.regions, asked.classes, asked.paths)
    if asked.json:
        print(json.dumps(found))
        return
    for part, sizes in found.items():
        print(f"{part} (bytes per region)")
        for name, n_bytes in sizes.items():
            print(f"  {name:28} {n_bytes:7.2f}")


if __name__ == "__main__":
    main()
