"""Time of one search by SQL, beside the local pass: codes as bytes, and as words of 64 bits.

Bytes are those of `regionhash export`, words those of the engine. Every time is of one thread, and
the least of several runs that take turns with the others. chDB runs if it is installed.

Run: python benchmarks/bench_sql.py [--images 100000] [--repeats 7] [--json]
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and FAISS start their threads

import argparse
import json
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import duckdb

from common import least_milliseconds, random_table
from regionhash.engines import Owner, open_backend
from regionhash.engines.sql_statements import DIALECTS, Rows, nearest
from regionhash.search.scan import BagSearch, scan_bags
from regionhash.store import CodeSet
from regionhash.store.parquet import Facts, write_parquet

BITS = (64, 256, 1024)
REGIONS = 10


def times(n_images: int, n_bits: int, repeats: int, folder: Path) -> dict[str, float]:
    """Milliseconds of the search for one region, by what searches."""
    table = random_table(n_images, REGIONS, n_bits // 8)
    codes = CodeSet(folder, table, "m", "abc", n_bits, n_bits, {"precision": "32-true"}, None)
    facts = [Facts(number) for number in range(1, n_images + 1)]
    queries = table.region_codes[12345:12346]
    write_parquet(folder / "codes.parquet", codes, facts)
    connection = duckdb.connect(config={"threads": 1})

    def by_duckdb(rows: Rows) -> Callable[[], object]:
        statement = nearest(rows, "region", queries, [], top=20).replace(", id", "")
        return lambda: connection.sql(statement).fetchall()

    runs = {
        "local": lambda: scan_bags([BagSearch(queries, 20)], table.region_codes, table.offsets),
        "DuckDB, bytes": by_duckdb(Rows.of_export(DIALECTS["duckdb"], folder / "codes.parquet")),
    }
    owner = Owner(f"{n_bits:032x}", "abc", n_bits, n_bits, folder)
    names = {"sql": "DuckDB, words"}
    if find_spec("chdb"):  # a process can open one folder of it
        names[f"sql:chdb:{folder.parent / 'chdb'}"] = "ClickHouse, words"
    for spec, name in names.items():
        backend = open_backend(spec, owner)
        backend.create()
        backend.insert(codes, facts)
        rows = backend.rows()
        runs[name] = by_duckdb(rows) if spec == "sql" else by_clickhouse(backend, rows, queries)
    return least_milliseconds(runs, repeats)


def by_clickhouse(backend, rows, queries) -> Callable[[], object]:
    statement = nearest(rows, "region", queries, [], top=20) + "\nSETTINGS max_threads = 1"
    return lambda: list(backend.connection.batches(statement))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for n_bits in BITS:
            place = Path(folder) / str(n_bits)
            place.mkdir()
            found[n_bits] = times(args.images, n_bits, args.repeats, place)
    if args.json:
        print(json.dumps({"regions": args.images * REGIONS, "threads": 1, "milliseconds": found}))
        return
    print(f"{args.images * REGIONS:,} regions; one thread, least of {args.repeats}, milliseconds")
    print(f"{'':20}" + "".join(f"{n_bits:>8} bits" for n_bits in BITS))
    for name in found[BITS[0]]:
        print(f"{name:20}" + "".join(f"{found[n_bits][name]:13.1f}" for n_bits in BITS))


if __name__ == "__main__":
    main()
