"""Engines beside the local search: filling, searching, filtering, removing, and memory, in one run.

Random codes of 64 bits, ten regions a picture. Times of searches are the least of several that
take turns, as ratios to the local search of one query; rates are of the wall clock. The memory is
what this process, or the server's (`--server-pid`), holds more than before it was filled.

Run: python benchmarks/bench_engines.py milvus:http://127.0.0.1:19530 [--images 100000] [--json]
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and FAISS start their threads

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import numpy as np

from common import least_milliseconds, random_table
from regionhash.engines import Condition, Nearest, Owner, open_backend
from regionhash.search.request import Filter
from regionhash.search.scan import BagSearch, scan_bags
from regionhash.search.united import united_hamming
from regionhash.store import CodeSet
from regionhash.store.parquet import Facts
from regionhash.structures import items_of

TOP, CLIENTS, BATCH, N_REGIONS, N_BYTES = 20, 16, 5_000, 10, 8


class Searches:
    """Searches of one table, by an engine and without one; numbers are rows, from 1."""

    def __init__(self, table):
        self.table, n = table, len(table)
        self.queries = table.region_codes[:: len(table.region_codes) // CLIENTS][:CLIENTS]
        self.everything = Condition(Filter(), n, None, np.zeros(0, np.int64))
        self.half = Condition(Filter(after=n / 2), n, None, np.zeros(0, np.int64))

    def passing(self, condition):
        """Mask of the pictures; picture n was taken at n seconds."""
        after = condition.filter.after
        return np.arange(1, len(self.table) + 1) >= (0 if after is None else after)

    def local(self, query, mask=None):
        search = BagSearch(query[None], TOP, mask)
        rows, distances = scan_bags([search], self.table.region_codes, self.table.offsets)[0]
        return rows + 1, distances

    def by(self, backend, query, condition):
        """The search of an engine, which must find what the local one finds."""
        mask = self.passing(condition)

        def distances_of(numbers):
            items, bounds = items_of(self.table.offsets, numbers - 1)
            return united_hamming(query[None], self.table.region_codes[items], bounds)

        return backend.nearest(
            Nearest(
                "region", query[None], TOP, condition, None, distances_of, lambda n: mask[n - 1]
            )
        )


def memory_of(pid):
    """Megabytes that a process holds."""
    if pid is None:
        return float("nan")
    rows = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(rows["VmRSS"].split()[0]) / 1000


def filled(backend, table):
    """Pictures stored a second."""
    began = time.perf_counter()
    backend.create()
    for first in range(0, len(table), BATCH):
        rows = np.arange(first, min(first + BATCH, len(table)))
        codes = CodeSet(Path("x"), table.take(rows), "m", "abc", 8 * N_BYTES, 8 * N_BYTES, {}, None)
        backend.insert(codes, [Facts(row + 1, taken=float(row + 1)) for row in rows.tolist()])
    return len(table) / (time.perf_counter() - began)


def measured(spec, table, searches, repeats, pid):
    """The row of one engine."""
    with tempfile.TemporaryDirectory() as folder:
        owner = Owner(uuid4().hex, "abc", 8 * N_BYTES, 8 * N_BYTES, Path(folder))
        backend = open_backend(spec, owner)
        holder = pid if "://" in spec else os.getpid()
        before = memory_of(holder)
        try:
            record = {"pictures stored a second": filled(backend, table)}
            wrong = 0
            for query in searches.queries:
                found, expected = (
                    searches.by(backend, query, searches.everything),
                    searches.local(query),
                )
                wrong += any((a != b).any() for a, b in zip(found, expected, strict=True))
            record["answers that differ"] = wrong
            record["MB held for them"] = memory_of(holder) - before
            first, half = searches.queries[0], searches.passing(searches.half)
            with ThreadPoolExecutor(CLIENTS) as pool:
                times = least_milliseconds(
                    {
                        "local": lambda: searches.local(first),
                        "local, half": lambda: searches.local(first, half),
                        "held": backend.held,
                        "one": lambda: searches.by(backend, first, searches.everything),
                        "half": lambda: searches.by(backend, first, searches.half),
                        "threads": lambda: list(
                            pool.map(
                                lambda query: searches.by(backend, query, searches.everything),
                                searches.queries,
                            )
                        ),
                        "local, threads": lambda: list(pool.map(searches.local, searches.queries)),
                    },
                    repeats,
                )
            local = times["local"]
            record |= {
                "local search, milliseconds": local,
                "one search / local": times["one"] / local,
                "with a filter that keeps half / local with it": times["half"]
                / times["local, half"],
                f"{CLIENTS} clients, each / local": times["threads"] / CLIENTS / local,
                f"{CLIENTS} clients / local {CLIENTS} clients": times["threads"]
                / times["local, threads"],
                "asking what it holds / local search": times["held"] / local,
            }
            gone = np.arange(1, len(table) // 100 + 1)
            began = time.perf_counter()
            backend.remove(gone)
            record["pictures removed a second"] = len(gone) / (time.perf_counter() - began)
        finally:
            backend.drop()
            backend.close()
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", nargs="+", help="see `regionhash.engines.open_backend`")
    parser.add_argument("--images", type=int, default=100_000, help="of ten regions each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--server-pid", type=int, help="of a server that is searched")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args()
    table = random_table(args.images, N_REGIONS, N_BYTES)
    searches = Searches(table)
    record = {
        spec.partition("?")[0]: measured(spec, table, searches, args.repeats, args.server_pid)
        for spec in args.engines
    }
    if args.json:
        print(json.dumps(record))
        return
    for spec, row in record.items():
        print(spec)
        for name, value in row.items():
            print(f"  {name}: {value:,.4g}")


if __name__ == "__main__":
    main()
