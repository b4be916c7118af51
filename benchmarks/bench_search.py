"""Time of an exact region search on one thread, beside FAISS and beside reading the codes once.

Run: python benchmarks/bench_search.py [--images 105000] [--regions 40] [--json]
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and FAISS start their threads
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import json
import tracemalloc
from collections.abc import Callable

import faiss
import numpy as np

from common import milliseconds, random_table
from regionhash.search import search_images, search_objects, search_regions

N_BYTES = 8
TOP = 20
REPEATS = 11


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that NumPy and Python held above what was held before; not FAISS's own."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=105_000)
    parser.add_argument("--regions", type=int, default=40, help="of each image")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()

    table = random_table(args.images, args.regions, N_BYTES)
    codes = table.region_codes
    queries = np.random.default_rng(1).integers(0, 256, (3, N_BYTES), dtype=np.uint8)
    alike = queries[[0, 0, 0]]
    unwanted = np.random.default_rng(2).integers(0, 256, (1, N_BYTES), dtype=np.uint8)
    index = faiss.IndexBinaryFlat(8 * N_BYTES)
    index.add(codes)
    words = codes.view(np.uint64)
    runs = {
        "read the codes once": lambda: np.bitwise_xor.reduce(words, axis=None),
        "faiss.IndexBinaryFlat": lambda: index.search(queries[:1], TOP),
        "search_regions": lambda: search_regions(queries[0], table, top=TOP),
        "FAISS, 3 objects": lambda: index.search(queries, TOP),
        "3 objects, shared regions": lambda: search_objects(queries, table, top=TOP, apart=False),
        "3 objects, own regions": lambda: search_objects(queries, table, top=TOP),
        "3 of a kind, own regions": lambda: search_objects(alike, table, top=TOP),
        "3 objects without a 4th": lambda: search_objects(
            queries, table, top=TOP, exclude=unwanted
        ),
        "search_images": lambda: search_images(queries[0], table, top=TOP),
    }
    times = milliseconds(runs, REPEATS)
    read, peer = times["read the codes once"], times["faiss.IndexBinaryFlat"]
    rows = [
        {
            "what": name,
            "ms": round(ms, 2),
            "to_reading": round(ms / read, 2),
            "to_faiss": round(ms / peer, 2),
            "peak_to_codes": round(peak_bytes(runs[name]) / codes.nbytes, 3),
        }
        for name, ms in times.items()
    ]
    if args.json:
        print(json.dumps({"regions": len(codes), "bits": 8 * N_BYTES, "threads": 1, "runs": rows}))
        return
    print(
        f"{len(codes):,} codes of {8 * N_BYTES} bits in {args.images:,} images, top {TOP}, "
        f"one thread, median of {REPEATS}"
    )
    print(f"{'':26} {'ms':>8} {'x reading':>10} {'x FAISS':>8} {'peak / codes':>13}")
    for what, ms, to_reading, to_faiss, peak in (row.values() for row in rows):
        print(f"{what:26} {ms:8.2f} {to_reading:10.2f} {to_faiss:8.2f} {peak:13.3f}")


if __name__ == "__main__":
    main()
