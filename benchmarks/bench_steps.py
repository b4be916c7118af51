"""Time of the steps of a search for one object, on one thread, beside what they are predicted by.

`regionhash.search.steps` takes the exact search by default where its model of the time, so many
nanoseconds a code and a byte, stays below a limit; this measures the model's two numbers.

Run: python benchmarks/bench_steps.py [--images 20000] [--regions 40] [--json]
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and FAISS start their threads
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import json
from functools import partial

import numpy as np

from common import milliseconds, random_table
from regionhash.search.steps import predicted_seconds, search_in_steps
from regionhash.structures import CodeTable

LENGTHS = (8, 64, 128, 512)  # bytes
STEPS = {
    "exact": ("exact",),
    "global,local": ("global", "local"),
    "all of DRH": ("global", "global-expand", "local", "local-expand"),
}
REPEATS = 7


def measure(table: CodeTable) -> dict[str, float]:
    """Median milliseconds of each search after one round that warms up; the searches take turns."""
    query = np.random.default_rng(1).integers(0, 256, table.image_codes.shape[1], dtype=np.uint8)
    runs = {
        name: partial(search_in_steps, table, steps, image_query=query, region_query=query)
        for name, steps in STEPS.items()
    }
    return milliseconds(runs, REPEATS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--regions", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for n_bytes in LENGTHS:
        table = random_table(options.images, options.regions, n_bytes)
        measured = measure(table)
        n_codes = options.images * options.regions
        rows.append(
            {
                "bits": 8 * n_bytes,
                "milliseconds": measured,
                "predicted exact": 1000 * predicted_seconds(n_codes, n_bytes),
                "ns per code": 1e6 * measured["exact"] / n_codes,
            }
        )
    if options.json:
        print(json.dumps({"images": options.images, "regions": options.regions, "rows": rows}))
        return
    print(f"{options.images} images, {options.regions} regions each, milliseconds, one thread")
    for row in rows:
        shown = "  ".join(f"{name} {value:.1f}" for name, value in row["milliseconds"].items())
        print(
            f"{row['bits']:5} bits  {shown}  exact predicted {row['predicted exact']:.1f}  "
            f"{row['ns per code']:.1f} ns per code"
        )


if __name__ == "__main__":
    main()
