"""A collection of 100 million regions on one machine: made, opened, searched, filtered, added to.

Makes a synthetic collection once, of random codes of 64 bits, ten regions a picture, and measures
it in a process of its own. Times are of the wall clock; those of searches are the least of several
that take turns, as ratios to reading all codes once (the exclusive or of 64-bit words).

The memory is what the process holds, pages of mapped files included, beside the bytes of the region
codes and boxes.

Run: python benchmarks/bench_hundred_million.py [--images 10000000] [--folder F] [--json]
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and FAISS start their threads
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bench_service import BATCH, N_REGIONS, make_collection, memory, random_images
from common import least_milliseconds
from regionhash.collection import Collection
from regionhash.collection.database import DATABASE_FILE, Database
from regionhash.collection.filters import Masks
from regionhash.search.request import Filter
from regionhash.search.scan import BagSearch, scan_bags

TOP, CLIENTS, ADDED = 20, 16, 1_000


def seconds(what) -> tuple[float, object]:
    """How long it takes, and what it gives."""
    began = time.perf_counter()
    given = what()
    return time.perf_counter() - began, given


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def made(folder: Path, n_images: int) -> dict[str, float]:
    """Makes the collection; what each part took."""
    folder.mkdir(parents=True)
    stored, _ = seconds(lambda: make_collection(folder, n_images))
    arrays, _ = seconds(lambda: Collection(folder).close())
    return {
        "pictures stored a second": n_images / stored,
        "arrays made, pictures a second": n_images / max(arrays, 1e-9),
        "bytes on disk per region": size_of(folder) / n_images / N_REGIONS,
    }


def measured(folder: Path, n_images: int, repeats: int) -> dict[str, float]:
    """Opens the collection, searches it and adds to it."""
    before = memory()["all"]
    opened, collection = seconds(lambda: Collection(folder))
    after_opening = memory()["all"] - before
    snapshot, masks = collection.snapshot, Masks()
    table, database = snapshot.table, Database(folder / DATABASE_FILE)
    codes, offsets = table.region_codes, table.offsets
    queries = codes[:: len(codes) // CLIENTS][:CLIENTS]
    half = Filter(after=BATCH / 2)  # the times of a batch of `random_images` are 0, 1, 2 ...
    first_filter, mask = seconds(lambda: masks.of(half, snapshot, database))

    def search(query: np.ndarray, mask: np.ndarray | None = None) -> object:
        return scan_bags([BagSearch(query[None], TOP, mask)], codes, offsets)

    with ThreadPoolExecutor(CLIENTS) as pool:
        times = least_milliseconds(
            {
                "reading": lambda: np.bitwise_xor.reduce(codes.view(np.uint64), axis=None),
                "one": lambda: search(queries[0]),
                "filtered": lambda: search(queries[0], masks.of(half, snapshot, database)),
                "pass": lambda: scan_bags(
                    [BagSearch(q[None], TOP) for q in queries], codes, offsets
                ),
                "threads": lambda: list(pool.map(search, queries)),
            },
            repeats,
        )
    boxes = table.boxes.packed
    np.add.reduce(boxes, axis=None)  # reads every page of the boxes
    held = memory()["all"] - before
    stored, _ = seconds(lambda: database.store(random_images(len(snapshot.rows), ADDED)))
    seen, after = seconds(lambda: collection.snapshot)
    assert len(after.rows) == len(snapshot.rows) + ADDED
    codes_and_boxes = codes.nbytes + boxes.nbytes
    reading = times["reading"]
    return {
        "opened, seconds": opened,
        "MB held once opened": after_opening,
        "reading the codes once, milliseconds": reading,
        "one search / reading": times["one"] / reading,
        "one search with a filter that keeps half / reading": times["filtered"] / reading,
        "that filter for the first time, milliseconds": 1000 * first_filter,
        "pictures that it keeps": int(np.count_nonzero(mask)),
        f"{CLIENTS} searches in one pass, each / reading": times["pass"] / CLIENTS / reading,
        f"{CLIENTS} searches in threads, each / reading": times["threads"] / CLIENTS / reading,
        f"{ADDED} pictures stored, seconds": stored,
        "seen by the open collection after, seconds": seen,
        "codes and boxes, MB": codes_and_boxes / 1e6,
        "memory / codes and boxes": held * 1e6 / codes_and_boxes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/hundred-million.collection"))
    parser.add_argument("--images", type=int, default=10_000_000, help="of ten regions each")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--measure", action="store_true", help="only measure, in this process")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured(args.folder, args.images, args.repeats)))
        return
    record: dict[str, float] = {"pictures": args.images, "regions": args.images * N_REGIONS}
    if not args.folder.exists():
        record |= made(args.folder, args.images)
    options = ["--folder", args.folder, "--images", args.images, "--repeats", args.repeats]
    command = [sys.executable, __file__, "--measure", *map(str, options)]
    record |= json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    if args.json:
        print(json.dumps(record))
        return
    for name, value in record.items():
        print(f"{name}: {value:,.4g}" if isinstance(value, float) else f"{name}: {value:,}")


if __name__ == "__main__":
    main()
