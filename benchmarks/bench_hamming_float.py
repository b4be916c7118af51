"""Time of the filter step of DRH (Table 5): a scan of codes beside a scan of floats, one thread.

The floats are those of the paper's peer, 512 per picture, scanned by FAISS as fast as one core goes
(the paper's own scan took 1078 ms). Both give the 400 nearest pictures.

Run: python benchmarks/bench_hamming_float.py [--images 105000] [--json]
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and FAISS start their threads
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import json
from collections.abc import Callable

import faiss
import numpy as np

from common import milliseconds
from regionhash.codes import hamming_distances
from regionhash.search import search_images
from regionhash.structures import CodeTable

N_FLOATS = 512
BITS = (512, 1024)
TOP = 400  # the paper's M
BATCH = 64
REPEATS = 11


def table_of(codes: np.ndarray) -> CodeTable:
    n = len(codes)
    ids = [f"{row:08}" for row in range(n)]
    return CodeTable(ids=ids, sizes=np.full((n, 2), 500, np.int32), image_codes=codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=105_000)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()

    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((args.images, N_FLOATS), dtype=np.float32)
    floats /= np.linalg.norm(floats, axis=1, keepdims=True)
    wanted = floats[:BATCH] + 0.1 * rng.standard_normal((BATCH, N_FLOATS), dtype=np.float32)
    index = faiss.IndexFlatIP(N_FLOATS)
    index.add(floats)
    single: dict[str, Callable[[], object]] = {
        "read the floats once": lambda: np.bitwise_xor.reduce(floats.view(np.uint64), axis=None),
        f"faiss.IndexFlatIP, {N_FLOATS} floats": lambda: index.search(wanted[:1], TOP),
    }
    batch: dict[str, Callable[[], object]] = {
        f"faiss.IndexFlatIP, {N_FLOATS} floats": lambda: index.search(wanted, TOP),
    }
    for n_bits in BITS:
        codes = rng.integers(0, 256, (args.images, n_bits // 8), dtype=np.uint8)
        queries = rng.integers(0, 256, (BATCH, n_bits // 8), dtype=np.uint8)
        table = table_of(codes)
        binary = faiss.IndexBinaryFlat(n_bits)
        binary.add(codes)
        single |= {
            f"read the codes once, {n_bits} bits": lambda c=codes: np.bitwise_xor.reduce(
                c.view(np.uint64), axis=None
            ),
            f"hamming_distances, {n_bits} bits": lambda q=queries, c=codes: hamming_distances(
                q[:1], c
            ),
            f"search_images, {n_bits} bits": lambda q=queries, t=table: search_images(
                q[0], t, top=TOP
            ),
            f"faiss.IndexBinaryFlat, {n_bits} bits": lambda q=queries, i=binary: i.search(
                q[:1], TOP
            ),
        }
        batch |= {
            f"search_images, {n_bits} bits": lambda q=queries, t=table: [
                search_images(own, t, top=TOP) for own in q
            ],
            f"faiss.IndexBinaryFlat, {n_bits} bits": lambda q=queries, i=binary: i.search(q, TOP),
        }
    peer = f"faiss.IndexFlatIP, {N_FLOATS} floats"
    rows = []
    for queries_at_a_time, runs in ((1, single), (BATCH, batch)):
        times = milliseconds(runs, REPEATS)
        rows += [
            {
                "queries": queries_at_a_time,
                "what": name,
                "ms_per_query": round(ms / queries_at_a_time, 3),
                "floats_to_this": round(times[peer] / ms, 2),
            }
            for name, ms in times.items()
        ]
    if args.json:
        print(json.dumps({"images": args.images, "top": TOP, "threads": 1, "runs": rows}))
        return
    print(f"{args.images:,} images, top {TOP}, one thread, median of {REPEATS}")
    print(f"{'at a time':>9}  {'':34} {'ms / query':>10} {'x faster than floats':>21}")
    for n, what, ms, factor in (row.values() for row in rows):
        print(f"{n:>9}  {what:34} {ms:10.3f} {factor:21.2f}")


if __name__ == "__main__":
    main()
