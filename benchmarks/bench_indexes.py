"""Indexes of 64-bit codes of real photographs, beside the pass that reads every code.

The codes are those of CODES, a collection or code file that `regionhash index` or `encode` made.
Its pictures are repeated until there are `--sizes` codes, each with noise: the bits flip in which
some code of CODES differs from the nearest one of another picture. Queries are codes of pictures
that are left out; the 20 nearest codes of each are searched.

Bounds: of several lower bounds of a distance it is counted how many codes an index could not leave
out even if it knew the distance of the last result from the start, and how many bytes these codes
and the bound itself are, both as a share of all codes. No implementation can read less, and one
that gathers codes from many places reads up to eight times as much: memory comes in lines of 64
bytes.

Times: multi-index hashing, in NumPy, whose compiled loops do nearly all of the work, and indexes of
FAISS, with their recall: the share of results that are as near as the exact ones. CPU time of one
thread, mean of all queries, also as a ratio to the pass, for one search and for 32 in one pass.

Run: python benchmarks/bench_indexes.py CODES [--sizes 1 10 50] [--queries 32] [--json]
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and FAISS start their threads
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import faiss
import numpy as np

from regionhash.collection import open_codes
from regionhash.search.scan import BagSearch, scan_bags

TOP, BATCH = 20, 32
PARTS = 4  # of a code, 16 bits each
N_BITS = 64
CHUNK = 1 << 20
GRAPH_LIMIT = 1_000_000  # a graph of more codes takes hours to build on one thread

Words = np.ndarray
"""(N,) uint64, one code each."""
Found = tuple[np.ndarray, int]
"""Distances of the nearest codes, and how many codes were looked at."""


def distances(codes: Words, query: np.uint64) -> np.ndarray:
    return np.bitwise_count(codes ^ query)


# -- codes -----------------------------------------------------------------------------------------


def real_codes(path: Path) -> tuple[Words, np.ndarray]:
    """The region codes of a collection or code file, and the picture of each."""
    try:
        table = open_codes(path).compact().table
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if table.region_codes is None or table.region_codes.shape[1] * 8 != N_BITS:
        raise SystemExit(f"{path}: needs codes of regions of {N_BITS} bits")
    pictures = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    return np.ascontiguousarray(table.region_codes).view(np.uint64)[:, 0], pictures


def flips(codes: Words, pictures: np.ndarray, rng: np.random.Generator) -> Words:
    """The differing bits of some codes and the nearest code of another picture."""
    found = []
    for n in rng.choice(len(codes), min(4096, len(codes)), replace=False):
        far = np.where(pictures == pictures[n], N_BITS + 1, distances(codes, codes[n]))
        found.append(codes[n] ^ codes[np.argmin(far)])
    return np.array(found)


def repeated(codes: Words, noise: Words, n: int, rng: np.random.Generator) -> Words:
    """`n` codes: whole pictures in turn, each code with noise."""
    drawn = np.tile(codes, -(-n // len(codes)))[:n]
    for first in range(0, n, CHUNK):
        part = drawn[first : first + CHUNK]
        part ^= noise[rng.integers(0, len(noise), len(part))]
    return drawn


# -- bounds ----------------------------------------------------------------------------------------


def bounds(codes: Words, pictures: np.ndarray, queries: Words, limits: np.ndarray) -> dict:
    """Of each bound: the share of codes that it leaves, and the bytes that are then read."""
    n = len(codes)
    rng = np.random.default_rng(1)
    medoids = rng.choice(codes, 256)
    cluster, ring = nearest_medoids(codes, medoids)
    members = np.bincount(cluster * (N_BITS + 1) + ring, minlength=256 * (N_BITS + 1))
    weights = np.bincount(np.bitwise_count(codes), minlength=N_BITS + 1)
    prefixes = np.bincount(codes.view(np.uint16)[::PARTS], minlength=1 << 16)
    starts = np.flatnonzero(np.diff(pictures, prepend=-1))
    both = np.bitwise_and.reduceat(codes, starts)
    either = np.bitwise_or.reduceat(codes, starts)
    sizes = np.diff(starts, append=n)
    left: dict[str, list[float]] = {
        name: [] for name in ("bits set", "prefix", "medoids", "AND/OR")
    }
    values = np.arange(1 << 16, dtype=np.uint16)
    for query, limit in zip(queries, limits, strict=True):
        near = np.abs(np.arange(N_BITS + 1) - int(np.bitwise_count(query))) <= limit
        left["bits set"].append(weights[near].sum())
        first = np.array([query]).view(np.uint16)[0]
        left["prefix"].append(prefixes[np.bitwise_count(values ^ first) <= limit].sum())
        to_medoids = distances(medoids, query).astype(int)[:, None]
        near = np.abs(to_medoids - np.arange(N_BITS + 1)) <= limit
        left["medoids"].append(members.reshape(256, -1)[near].sum())
        least = np.bitwise_count(both & ~query) + np.bitwise_count(query & ~either)
        left["AND/OR"].append(sizes[least <= limit].sum())
    share = {name: float(np.mean(counts)) / n for name, counts in left.items()}
    per_code = {"AND/OR": 2 * 8 * len(starts) / n}  # read of every picture
    return {
        name: {"codes": kept, "bytes": kept + per_code.get(name, 0) / 8}
        for name, kept in share.items()
    }


def nearest_medoids(codes: Words, medoids: Words) -> tuple[np.ndarray, np.ndarray]:
    """The nearest medoid (N,) of each code and its distance (N,)."""
    cluster, ring = np.zeros(len(codes), np.int64), np.full(len(codes), N_BITS + 1, np.uint8)
    for n, medoid in enumerate(medoids):
        to_medoid = distances(codes, medoid)
        nearer = to_medoid < ring
        cluster[nearer], ring[nearer] = n, to_medoid[nearer]
    return cluster, ring


# -- indexes ---------------------------------------------------------------------------------------


class MultiIndex:
    """Multi-index hashing, exact: codes by each of their 16-bit parts.

    Of two codes whose distance is below `PARTS * (r + 1)`, one part differs in at most r bits.
    (Norouzi, Punjani and Fleet, 2012.)
    """

    def __init__(self, codes: Words) -> None:
        self._codes = codes
        parts = codes.view(np.uint16).reshape(-1, PARTS)
        self._orders, self._starts = [], []
        for n in range(PARTS):
            self._orders.append(np.argsort(parts[:, n], kind="stable").astype(np.uint32))
            counts = np.bincount(parts[:, n], minlength=1 << 16)
            self._starts.append(np.concatenate([[0], np.cumsum(counts)]))

    def search(self, query: np.uint64) -> Found:
        """The `TOP` nearest."""
        rows, best = np.zeros(0, np.uint32), np.zeros(0, np.uint8)
        touched = 0
        for radius, masks in enumerate(_masks()):
            lists = [rows]
            for order, starts, part in zip(
                self._orders, self._starts, np.array([query]).view(np.uint16), strict=True
            ):
                buckets = (part ^ masks).tolist()
                lists += [order[starts[b] : starts[b + 1]] for b in buckets]
            near = np.concatenate(lists)
            touched += len(near) - len(rows)
            away = distances(self._codes[near], query)
            if len(near) > PARTS * TOP:  # a code may be in the lists of all its parts
                nearest = np.argpartition(away, PARTS * TOP)[: PARTS * TOP]
                near, away = near[nearest], away[nearest]
            rows, firsts = np.unique(near, return_index=True)
            kept = np.argsort(away[firsts])[:TOP]
            rows, best = rows[kept], away[firsts][kept]
            if len(best) == TOP and best[-1] < PARTS * (radius + 1):
                break
        return best, touched


def _masks() -> Iterator[np.ndarray]:
    """Numbers of 16 bits of which 0, 1, 2, ... are set."""
    for n in range(17):
        yield np.array(
            [sum(1 << b for b in bits) for bits in combinations(range(16), n)], np.uint16
        )


def configured(index: object, **settings: int) -> object:
    for name, value in settings.items():
        setattr(index, name, value)
    return index


def peers(n: int) -> dict[str, Callable[[], object]]:
    """FAISS's indexes of `n` codes, with what trades recall for speed."""

    def lists(n_probed: int) -> object:
        quantizer = faiss.IndexBinaryFlat(N_BITS)
        return configured(faiss.IndexBinaryIVF(quantizer, N_BITS, 1024), nprobe=n_probed)

    found: dict[str, Callable[[], object]] = {
        "faiss.IndexBinaryFlat": lambda: faiss.IndexBinaryFlat(N_BITS),
        "faiss.IndexBinaryIVF, 1,024 lists, 8 probed": lambda: lists(8),
        "faiss.IndexBinaryIVF, 1,024 lists, 64 probed": lambda: lists(64),
        "faiss.IndexBinaryHash, 16 bits, 2 flipped": lambda: configured(
            faiss.IndexBinaryHash(N_BITS, 16), nflip=2
        ),
        "faiss.IndexBinaryMultiHash, 4 x 16 bits, 1 flipped": lambda: configured(
            faiss.IndexBinaryMultiHash(N_BITS, PARTS, N_BITS // PARTS), nflip=1
        ),
    }
    if n <= GRAPH_LIMIT:
        found["faiss.IndexBinaryHNSW, 16 links"] = lambda: faiss.IndexBinaryHNSW(N_BITS, 16)
    return found


# -- times -----------------------------------------------------------------------------------------


def cpu_milliseconds(what: Callable[[], object]) -> tuple[float, object]:
    began = time.thread_time()
    given = what()
    return 1000 * (time.thread_time() - began), given


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """The share (Q, TOP) of results that are as near as the exact ones."""
    return float(np.mean((found >= 0) & (found <= exact[:, -1:])))


def timed(codes: Words, queries: Words) -> tuple[np.ndarray, dict[str, dict]]:
    """The exact distances (Q, TOP), and the times of everything."""
    packed, asked = (words.view(np.uint8).reshape(-1, 8) for words in (codes, queries))
    searches = [BagSearch(query[None], TOP) for query in asked]
    scan_bags(searches[:1], packed)
    one, answers = cpu_milliseconds(lambda: [scan_bags([s], packed)[0] for s in searches])
    together = min(
        cpu_milliseconds(lambda: scan_bags((searches * BATCH)[:BATCH], packed))[0] for _ in range(3)
    )
    exact = np.array([away for _, away in answers])
    rows: dict[str, dict] = {
        "the pass, one search": {"ms": one / len(queries), "recall": 1.0},
        f"the pass, {BATCH} searches together, each": {"ms": together / BATCH, "recall": 1.0},
    }
    built, index = cpu_milliseconds(lambda: MultiIndex(codes))
    spent, found = cpu_milliseconds(lambda: [index.search(query) for query in queries])
    nearest = np.array([best for best, _ in found])
    assert (nearest == exact).all()
    rows["multi-index hashing, 4 x 16 bits"] = {
        "ms": spent / len(queries),
        "recall": 1.0,
        "codes": float(np.mean([touched for _, touched in found])) / len(codes),
        "built s": built / 1000,
    }
    del index
    for name, make in peers(len(codes)).items():
        index = make()
        if not index.is_trained:
            index.train(packed[:: max(1, len(packed) // 65_536)])
        built, _ = cpu_milliseconds(lambda index=index: index.add(packed))
        index.search(asked[:1], TOP)
        spent, found = cpu_milliseconds(
            lambda index=index: [index.search(query[None], TOP)[0][0] for query in asked]
        )
        rows[name] = {
            "ms": spent / len(queries),
            "recall": recall(np.array(found), exact),
            "built s": built / 1000,
        }
    for row in rows.values():
        row["x one"] = row["ms"] / rows["the pass, one search"]["ms"]
        row["x together"] = row["ms"] * BATCH / together
    return exact, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("codes", type=Path, help="a collection or code file of photographs")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 10, 50], help="million codes")
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    codes, pictures = real_codes(args.codes)
    out = rng.choice(pictures.max() + 1, args.queries, replace=False)
    asked = np.isin(pictures, out)
    queries = codes[[np.flatnonzero(pictures == n)[0] for n in out if (pictures == n).any()]]
    codes, pictures = codes[~asked], pictures[~asked]
    noise = flips(codes, pictures, rng)
    record: dict = {
        "pictures": len(np.unique(pictures)),
        "codes": len(codes),
        "different codes": len(np.unique(codes)),
        "bits that differ from the nearest, mean": float(np.bitwise_count(noise).mean()),
        "sizes": [],
    }
    for million in args.sizes:
        n = round(million * 1e6)
        database = repeated(codes, noise, n, rng)
        turns = np.arange(-(-n // len(codes))) * (pictures.max() + 1)
        of = (turns[:, None] + pictures).ravel()[:n]
        exact, times = timed(database, queries)
        limits = exact[:, -1]
        record["sizes"].append(
            {
                "codes": n,
                "distance of result 20, mean": float(limits.mean()),
                "bounds": bounds(database, of, queries, limits),
                "times": times,
            }
        )
    if args.json:
        print(json.dumps(record))
        return
    for name in list(record)[:-1]:
        print(f"{name}: {record[name]:,}")
    for size in record["sizes"]:
        print(
            f"\n{size['codes']:,} codes; result {TOP} at {size['distance of result 20, mean']:.1f}"
        )
        for name, row in size["bounds"].items():
            print(f"  {name:52} codes {row['codes']:6.1%}  bytes {row['bytes']:6.1%}")
        for name, row in size["times"].items():
            parts = [f"{row['ms']:9.3f} ms", f"{row['x one']:7.2f} x one"]
            parts += [f"{row['x together']:7.2f} x together", f"recall {row['recall']:.3f}"]
            parts += [f"codes {row['codes']:.1%}"] if "codes" in row else []
            parts += [f"built in {row['built s']:,.0f} s"] if "built s" in row else []
            print(f"  {name:52} {'  '.join(parts)}")


if __name__ == "__main__":
    main()
