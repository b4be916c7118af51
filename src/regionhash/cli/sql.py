"""The command that prints a search as a statement of SQL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer

from regionhash.cli.options import (
    After,
    Before,
    Below,
    Boxes,
    Device,
    Folder,
    MinScore,
    ModelOfCodes,
    Offset,
    Only,
    Queries,
    Runtime,
    SharedRegions,
    Top,
    Without,
    WithoutDistance,
)
from regionhash.cli.output import say
from regionhash.cli.search import filter_of, named_by_flag, queries_of

if TYPE_CHECKING:
    from regionhash.collection import Collection
    from regionhash.engines.sql_statements import Rows
    from regionhash.search.request import Search


def sql(
    collection: Folder,
    query: Queries = None,
    box: Boxes = None,
    top: Top = 20,
    offset: Offset = 0,
    only: Only = None,
    min_score: MinScore = 0.0,
    folder: Below = None,
    after: After = None,
    before: Before = None,
    mode: Annotated[
        Literal["image", "region", "objects"] | None,
        typer.Option(
            help="What to compare, see `search`.  [default: image for one picture, region for one "
            "box, objects for more of either]"
        ),
    ] = None,
    without: Without = None,
    without_distance: WithoutDistance = None,
    shared_regions: SharedRegions = False,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="sql[:PLACE]",
            help="Engine that `regionhash engine sync` has filled, see docs/engines.md.  "
            "[default: sql]",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE.parquet",
            help="In place of an engine, a file of `regionhash export`.",
        ),
    ] = None,
    dialect: Annotated[
        Literal["duckdb", "clickhouse"] | None,
        typer.Option(
            help="The database that reads --from; an engine has its own.  [default: duckdb]"
        ),
    ] = None,
    model: ModelOfCodes = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
) -> None:
    """Print the statement of SQL that finds what a search finds.

    The statement holds the codes of the query. It gives numbers of pictures, with --from also their
    names, and distances, in the order of `search --steps exact`. Run it in the shell of DuckDB or
    ClickHouse, join it with tables of your own, change its conditions.

    \b
    Examples:
      regionhash sql photos.collection --query cat.jpg --box 10,20,200,220
      regionhash sql photos.collection --query cat.jpg --from codes.parquet | duckdb
      regionhash sql photos.collection --query cat.jpg --engine sql:clickhouse://127.0.0.1/photos
    """
    if not query:
        raise ValueError("nothing to search by: give --query")
    if file is not None and engine is not None:
        raise ValueError("--engine and --from exclude each other")
    if file is None and dialect is not None:
        raise ValueError("--dialect needs --from; an engine has its own")
    from regionhash.collection import Collection, Search
    from regionhash.collection.filters import as_engines_know
    from regionhash.search.request import RequestError

    try:
        request = Search(
            queries_of(query, box or []),
            exclude=queries_of(without or [], []),
            mode=mode,
            max_distance=without_distance,
            assignment="shared" if shared_regions else "distinct",
            filter=filter_of(only, min_score, folder, after, before),
            limit=top,
            offset=offset,
        )
        with Collection.open(collection, device=device, runtime=runtime) as opened:
            conditions: list[str] = []
            if file is None:
                rows, conditions = _rows_of_engine(opened, engine or "sql")
            else:
                rows = _rows_of_file(opened, file, dialect or "duckdb")
                if as_engines_know(request.filter, opened.snapshot) is None:
                    _check_numbers(opened, file)
            say(_statement(opened, request, rows, conditions, model, device, runtime))
    except RequestError as error:
        raise named_by_flag(error) from error


def _rows_of_engine(collection: Collection, spec: str) -> tuple[Rows, list[str]]:
    """The rows of an engine, and what keeps them to pictures that the collection has."""
    from regionhash.engines import Condition, EngineError
    from regionhash.engines.sql import SqlBackend
    from regionhash.engines.sql_statements import conditions_of
    from regionhash.search.request import Filter

    kept = collection.engine(spec)
    if kept is None or not isinstance(kept.backend, SqlBackend):
        raise ValueError(f"--engine must be sql or sql:PLACE, got {spec.partition(':')[0]!r}")
    rows, lag = kept.backend.rows(), kept.lag()
    if lag is None:
        raise EngineError(
            f"{kept.backend.place}: no sync has filled it; `regionhash engine sync` does"
        )
    if not (lag.waiting or len(lag.removed)):
        return rows, []
    if lag.waiting:
        say(
            f"note: {lag.waiting} pictures are not there yet; `regionhash engine sync` adds them",
            err=True,
        )
    return rows, conditions_of(rows, Condition(Filter(), lag.up_to, None, lag.removed))


def _rows_of_file(collection: Collection, path: Path, dialect: str) -> Rows:
    """Those of an export. Raises ValueError unless it is one of the collection's model."""
    from regionhash.engines.sql_statements import DIALECTS, Rows
    from regionhash.precision import check_same_precision, precision_of
    from regionhash.store.parquet_reader import ParquetCodes

    header = ParquetCodes.open(path).header
    if header is None:
        raise ValueError(f"{path}: has no header that says what made its codes; export them again")
    needed = collection.header["model_hash"]
    if header["model_hash"] != needed:
        raise ValueError(f"{path}: made by model {header['model_hash']}, got queries of {needed}")
    check_same_precision(path, precision_of(header["meta"]), collection.precision)
    return Rows.of_export(DIALECTS[dialect], path)


def _check_numbers(collection: Collection, path: Path) -> None:
    """Raises ValueError if a file has other numbers of pictures than the collection."""
    from regionhash.store.parquet_reader import ParquetCodes

    snapshot = collection.snapshot
    for numbers, ids, _ in ParquetCodes.open(path).stored():
        known = snapshot.indices_of(numbers).tolist()
        if [snapshot.table.ids[index] for index in known] != ids:
            raise ValueError(
                f"{path}: is of another collection, or of an earlier state; export again"
            )


def _statement(
    collection: Collection,
    search: Search,
    rows: Rows,
    conditions: list[str],
    model: Path | None,
    device: str,
    runtime: Runtime,
) -> str:
    from regionhash.collection.filters import as_engines_know
    from regionhash.engines.sql_statements import among, nearest, passing, unlike
    from regionhash.search.exact import default_max_distance
    from regionhash.search.run import encode_search, load_model_of

    numbers = collection.numbers(search.filter)  # also checks the filter
    codes = collection.codes()
    collection.model = load_model_of(codes, model, device, runtime, advice="; pass it with --model")
    mode = search.mode_for(whole_pictures=codes.table.image_codes is not None)
    if mode == "region":
        search = replace(search, mode="region", steps=("exact",))
    mode, encoded = encode_search(
        *collection.model, codes, search, detector_of=lambda: collection.detector
    )
    for note in encoded.notes:
        say(f"note: {note}", err=True)
    wanted = as_engines_know(search.filter, collection.snapshot)
    conditions = [
        *conditions,
        *([among(rows, numbers)] if wanted is None else passing(rows, wanted)),
    ]
    if encoded.unwanted is not None:
        limit = search.max_distance
        if limit is None:
            limit = default_max_distance(codes.n_region_bits)
        conditions.append(unlike(rows, encoded.unwanted, limit))
    queries = encoded.image if mode == "image" else encoded.objects
    assert queries is not None
    statement = nearest(
        rows,
        "picture" if mode == "image" else "region",
        np.atleast_2d(queries),
        conditions,
        top=search.limit,
        offset=search.offset,
    )
    comments = []
    if mode == "objects" and encoded.apart is not None and np.any(encoded.apart):
        comments = [
            "-- A search gives each object a region of its own, which SQL cannot: here two objects",
            "-- may share one, so these distances are lower bounds. --shared-regions allows it.",
        ]
    return "\n".join([*comments, f"{statement};"])
