"""CPU time of exact searches in one pass, beside reading the codes once, FAISS, USearch and NumPy.

"Reading" is the exclusive or of all codes as 64-bit words (`numpy.bitwise_xor.reduce`). Every time
is of one thread, and the least of several runs that take turns with the others of its table.

Run: python benchmarks/bench_scan.py [--repeats 11] [--json]
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and FAISS start their threads
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import json
from collections.abc import Callable

import faiss
import numpy as np

from common import least_cpu_milliseconds
from regionhash.search import scan
from regionhash.search.scan import BagSearch, instructions, scan_bags
from regionhash.search.united import nearest_rows, united_hamming

Runs = dict[str, tuple[Callable[[], object], int]]
"""What is timed, and how many searches it answers."""


def bags(n_images: int, n_regions: int, n_bytes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random codes, the offsets of the images that they belong to, and 32 queries."""
    rng = np.random.default_rng(n_bytes)
    codes = rng.integers(0, 256, (n_images * n_regions, n_bytes), np.uint8)
    offsets = np.arange(n_images + 1) * n_regions
    return codes, offsets, rng.integers(0, 256, (32, n_bytes), np.uint8)


def searches(codes: np.ndarray, offsets: np.ndarray, queries: np.ndarray) -> Runs:
    """Searches without filters, and those of the peers."""

    def of(*wanted: BagSearch) -> tuple[Callable[[], object], int]:
        return lambda: scan_bags(wanted, codes, offsets), len(wanted)

    def by_numpy() -> object:
        united = united_hamming(queries[:1], codes, offsets)
        return nearest_rows(united, 20)

    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)
    runs: Runs = {
        "1 object, top 20": of(BagSearch(queries[:1], 20)),
        "1 object, top 400": of(BagSearch(queries[:1], 400)),
        "16 searches in a pass, each": of(*(BagSearch(q[None], 20) for q in queries[:16])),
        "32 searches in a pass, each": of(*(BagSearch(q[None], 20) for q in queries)),
        "3 objects, top 20": of(BagSearch(queries[:3], 20)),
        "8 objects, top 20": of(BagSearch(queries[:8], 20)),
        "NumPy and FAISS, top 20": (by_numpy, 1),
        "faiss.IndexBinaryFlat, 20 codes": (lambda: index.search(queries[:1], 20), 1),
    }
    try:
        from usearch.index import MetricKind, search
    except ModuleNotFoundError:
        return runs
    runs["usearch, exact, 20 codes"] = (
        lambda: search(codes, queries[:1], 20, MetricKind.Hamming, exact=True, threads=1),
        1,
    )
    return runs


def filtered(codes: np.ndarray, offsets: np.ndarray, queries: np.ndarray) -> Runs:
    """The same search with several filters."""
    n = len(offsets) - 1
    rng = np.random.default_rng(1)
    united = united_hamming(queries[:1], codes, offsets)
    masks = {
        "no filter": None,
        "a filter that keeps 5 %": rng.random(n) < 0.05,
        "a filter that keeps half": rng.random(n) < 0.5,
        "a filter that excludes all near": united > np.quantile(united, 0.4),
    }

    def of(mask: np.ndarray | None) -> tuple[Callable[[], object], int]:
        return lambda: scan_bags([BagSearch(queries[:1], 20, mask)], codes, offsets), 1

    return {name: of(mask) for name, mask in masks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()
    tables = []
    for n_images, n_regions, n_bytes, make in (
        (105_000, 40, 8, searches),
        (1_000_000, 10, 8, filtered),
        (25_000, 40, 64, searches),
        (25_000, 40, 128, searches),
    ):
        codes, offsets, queries = bags(n_images, n_regions, n_bytes)
        words = codes.view(np.uint64)
        runs = {"reading once": (lambda w=words: np.bitwise_xor.reduce(w, axis=None), 1)}
        runs |= make(codes, offsets, queries)
        times = least_cpu_milliseconds({name: run for name, (run, _) in runs.items()}, args.repeats)
        rows = [
            {
                "what": name,
                "ms": round(ms / runs[name][1], 3),
                "to_reading": round(ms / runs[name][1] / times["reading once"], 2),
            }
            for name, ms in times.items()
        ]
        tables.append({"images": n_images, "codes": len(codes), "bits": 8 * n_bytes, "runs": rows})
    if args.json:
        print(json.dumps({"instructions": instructions(), "threads": 1, "tables": tables}))
        return
    print(f"{instructions()} of {', '.join(scan.AVAILABLE)}; one thread, least of {args.repeats}")
    for table in tables:
        print(f"\n{table['codes']:,} codes of {table['bits']} bits in {table['images']:,} images")
        print(f"{'':32} {'ms':>8} {'x reading':>10}")
        for row in table["runs"]:
            print(f"{row['what']:32} {row['ms']:8.2f} {row['to_reading']:10.2f}")
    if not any("usearch" in row["what"] for row in tables[0]["runs"]):
        print("\nUSearch is not installed: skipped.")


if __name__ == "__main__":
    main()
