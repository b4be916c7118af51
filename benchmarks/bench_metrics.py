"""Time and memory of the tie-aware measures against the bare distances and a sorted ranking.

    python benchmarks/bench_metrics.py --database 100000 --queries 5000 --bits 64

All times are per query, the median of several runs over the same queries, on one thread.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # read by FAISS's import

import argparse
import resource
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np

from regionhash.evaluation import HammingMatrix, SharedLabels, per_query

BLOCK = 5  # queries whose distances are made at once, as the measures do for 100,000 items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    rows = options.queries + options.database
    codes = rng.integers(0, 256, (rows, options.bits // 8), dtype=np.uint8)
    labels = (rng.random((rows, options.classes)) < 1.5 / options.classes).astype(np.uint8)
    split = options.queries
    distances = HammingMatrix(codes[:split], codes[split:])
    similarities = SharedLabels(labels[:split], labels[split:])
    print(
        f"{options.database} items, {options.queries} queries, {options.bits} bits, "
        f"{options.classes} classes, k = {options.k}, one thread, seed 0"
    )

    def bare_distances() -> None:
        for first in range(0, options.queries, BLOCK):
            distances[first : first + BLOCK]

    def sorted_ranking() -> None:
        for first in range(0, options.queries, BLOCK):
            np.argsort(distances[first : first + BLOCK], axis=1, kind="stable")

    # the measures come first: peak memory only ever grows, and the sorted ranking needs more
    before = peak_memory()
    expected = seconds(lambda: per_query(distances, similarities, k=options.k), options.repeats)
    memory = peak_memory()
    stable = seconds(
        lambda: per_query(distances, similarities, k=options.k, ties="stable"), options.repeats
    )
    bare = seconds(bare_distances, options.repeats)
    ranking = seconds(sorted_ranking, options.repeats)
    for name, time in (
        ("distances only", bare),
        ("distances and np.argsort", ranking),
        ('all measures, ties="expected"', expected),
        ('all measures, ties="stable"', stable),
    ):
        print(
            f"{name:32} {1000 * time / options.queries:8.3f} ms per query, "
            f"{time / bare:6.2f} x distances, {time / ranking:6.2f} x argsort"
        )
    print(f"peak memory {memory:.0f} MiB with the expected measures, {before:.0f} MiB before them")


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The median time of `run` after a warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return median(times)


def peak_memory() -> float:
    """The most memory that the process has held, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    main()
