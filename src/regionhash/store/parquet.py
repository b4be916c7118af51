"""Codes as a Parquet file, for exchange with other programs (docs/parquet.md).

One row for each picture, followed by one for each of its regions and, where a model has codes of
categories, one for each category. Facts of the picture stand in all of its rows, so that a program
can filter regions without a join; Parquet keeps what repeats in next to no space.

The schema's metadata holds the header of the codes, as a code file has it. It may be missing, since
few programs keep it: `model_hash` and `precision`, which say what the codes may be compared with,
are columns.
`regionhash.store.parquet_reader` reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regionhash.precision import precision_of
from regionhash.store.codeset import CodeSet
from regionhash.store.layout import new_file
from regionhash.structures import Ints, items_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMAT, VERSION = "regionhash parquet", 1
PARTS = ("picture", "region", "category")
"""What a row describes."""

METADATA = b"regionhash"
"""Key of the header in the schema's metadata."""

CORNERS = ("x0", "y0", "x1", "y1")
PER_SECOND = 10**9
_COMPRESSION = "zstd"
MOST_ROWS = 1 << 18
"""Of a picture; a reader holds all of them in memory."""

_PICTURES_AT_A_TIME = 20_000
BYTES = {
    "image_code": ("picture", "image_codes"),
    "region_code": ("region", "region_codes"),
    "category_code": ("category", "category_codes"),
    "features": ("region", "region_features"),
}
"""Column of bytes: the part that has it, and the array of a `CodeTable`."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a picture beside its codes.

    Attributes:
        number: of the picture, ascending.
        path: of its file, absolute; None without one, or if it is no Unicode.
        sha256: of the file, 32 bytes; None if unknown.
        taken: seconds since 1970; None if unknown.
    """

    number: int
    path: str | None = None
    sha256: bytes | None = None
    taken: float | None = None


def write_parquet(path: Path, codes: CodeSet, facts: Sequence[Facts]) -> int:
    """Writes pictures as a Parquet file; returns how many.

    Args:
        path: must not exist yet.
        codes: the pictures, none of them removed.
        facts: of each of them.

    Raises:
        ValueError: the path already exists, or a picture has more than `MOST_ROWS` rows.
        StoreError: writing fails.
    """
    with new_file(path) as temporary:
        write_rows(temporary, codes, facts)
    return len(codes)


def write_rows(path: Path, codes: CodeSet, facts: Sequence[Facts]) -> None:
    """As `write_parquet`, at once to a path that nobody reads yet.

    Raises:
        OSError: the disk refuses.
        ValueError: a picture has more than `MOST_ROWS` rows.
    """
    owned = [codes.table.offsets, codes.table.category_offsets]
    n_rows = 1 + sum(np.diff(offsets) for offsets in owned if offsets is not None)  # (N,)
    if np.max(n_rows, initial=0) > MOST_ROWS:
        image_id = codes.table.ids[int(np.argmax(n_rows))]
        raise ValueError(f"{image_id}: a Parquet file has at most {MOST_ROWS} rows of a picture")
    schema = _schema(codes)
    with writer_of(path, schema) as writer:
        for first in range(0, len(codes), _PICTURES_AT_A_TIME):
            rows = np.arange(first, min(first + _PICTURES_AT_A_TIME, len(codes)))
            writer.write_table(_written(codes, facts[first : rows[-1] + 1], rows, schema))


def writer_of(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Writes tables as one file: compressed, with a checksum of each page."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(path, schema, compression=_COMPRESSION, write_page_checksum=True)


def rows_of_pictures(codes: CodeSet, facts: Sequence[Facts]) -> pa.Table:
    """The rows that `write_parquet` would write, all at once."""
    return _written(codes, facts, np.arange(len(codes)), _schema(codes))


def _schema(codes: CodeSet) -> pa.Schema:
    import pyarrow as pa

    table, name = codes.table, pa.dictionary(pa.int32(), pa.string())
    columns: dict[str, pa.DataType] = {
        "picture": pa.int64(),
        "id": name,
        "part": pa.dictionary(pa.int8(), pa.string()),
        "number": pa.int32(),
    }
    for column, (_, array) in BYTES.items():
        if (packed := getattr(table, array)) is not None:
            columns[column] = pa.binary(packed.shape[1])
    columns |= {"class": name, "score": pa.float32()}
    columns |= dict.fromkeys(CORNERS, pa.float32())
    columns |= {"height": pa.int32(), "width": pa.int32()}
    columns |= {"path": name, "sha256": pa.binary(32), "taken": pa.timestamp("ns", "UTC")}
    if codes.labels is not None:
        columns["shows"] = pa.list_(pa.string())
    if table.class_probs is not None:
        columns["class_probs"] = pa.list_(pa.float32())
    columns |= {"model_hash": name, "precision": name}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": codes.model,
        "model_hash": codes.model_hash,
        "classes": list(codes.classes),
        "n_bits": codes.n_bits,
        "n_region_bits": codes.n_region_bits,
        "meta": codes.meta,
    }
    return pa.schema(list(columns.items()), metadata={METADATA: json.dumps(header)})


# -- writing --------------------------------------------------------------------------------------


def _written(codes: CodeSet, facts: Sequence[Facts], rows: Ints, schema: pa.Schema) -> pa.Table:
    """The rows of some pictures."""
    import pyarrow as pa

    table, n = codes.table, len(rows)
    nothing = np.zeros(0, np.int64), np.zeros(n + 1, np.int64)
    regions, region_bounds = nothing if table.offsets is None else items_of(table.offsets, rows)
    categories, category_bounds = nothing
    if table.category_offsets is not None:
        categories, category_bounds = items_of(table.category_offsets, rows)
    counts = np.stack([np.ones(n, np.int64), np.diff(region_bounds), np.diff(category_bounds)], 1)
    part = np.repeat(np.tile(np.arange(3, dtype=np.int8), n), counts.ravel())  # (L,)
    starts = np.repeat(np.cumsum(counts.ravel()) - counts.ravel(), counts.ravel())
    of = np.repeat(np.arange(n), counts.sum(1))
    items = {"picture": rows, "region": regions, "category": categories}

    def spread(name: str, values: NDArray[Any], kind: pa.DataType) -> pa.Array:
        """Values of one part, and nothing in the rows of the others."""
        there = part == PARTS.index(name)
        full = np.zeros((len(part), *values.shape[1:]), values.dtype)
        full[there] = values
        if values.ndim == 1:
            return pa.array(full, kind, mask=~there)
        valid = pa.py_buffer(np.packbits(there, bitorder="little"))
        return pa.FixedSizeBinaryArray.from_buffers(
            kind, len(full), [valid, pa.py_buffer(np.ascontiguousarray(full))]
        )

    def named(numbers: NDArray[Any], names: Sequence[str | None]) -> pa.Array:
        """Texts by their numbers; nothing for a number below 0, and for a name that is none."""
        there = np.array([*(name is not None for name in names), False])
        return pa.DictionaryArray.from_arrays(
            pa.array(np.maximum(numbers, 0), pa.int32(), mask=~there[numbers]),
            pa.array([name or "" for name in names], pa.string()),
        )

    columns: dict[str, Any] = {
        "picture": pa.array(np.array([fact.number for fact in facts], np.int64)[of]),
        "id": named(of, [table.ids[row] for row in rows.tolist()]),
        "part": pa.DictionaryArray.from_arrays(pa.array(part), pa.array(PARTS)),
        "number": pa.array((np.arange(len(part)) - starts).astype(np.int32)),
        "height": pa.array(np.asarray(table.sizes[rows, 0], np.int32)[of]),
        "width": pa.array(np.asarray(table.sizes[rows, 1], np.int32)[of]),
        "path": named(of, [fact.path for fact in facts]),
        "sha256": pa.array([fact.sha256 for fact in facts], pa.binary(32)).take(of),
        "taken": _times(facts).take(of),
        "model_hash": named(np.zeros(len(part), np.int32), [codes.model_hash]),
        "precision": named(np.zeros(len(part), np.int32), [precision_of(codes.meta)]),
    }
    for column, (name, array) in BYTES.items():
        if column in schema.names:
            packed = np.asarray(getattr(table, array)[items[name]])
            columns[column] = spread(name, packed, schema.field(column).type)
    labels, scores = np.full(len(part), -1, np.int64), np.zeros(len(part), np.float32)
    if table.labels is not None and table.scores is not None and table.boxes is not None:
        labels[part == 1], scores[part == 1] = table.labels[regions], table.scores[regions]
        corners = np.asarray(table.boxes[regions], np.float32)
    else:
        corners = np.zeros((0, 4), np.float32)
    if table.categories is not None and table.category_probs is not None:
        labels[part == 2] = table.categories[categories]
        scores[part == 2] = table.category_probs[categories]
    columns["class"] = named(labels, codes.classes)
    columns["score"] = pa.array(scores, mask=part == 0)
    for n_corner, column in enumerate(CORNERS):
        columns[column] = spread("region", corners[:, n_corner], pa.float32())
    pictures = part == 0
    if "shows" in schema.names and codes.labels is not None:
        shows = [[codes.classes[n] for n in np.flatnonzero(row)] for row in codes.labels[rows]]
        columns["shows"] = _lists(shows, pictures, pa.string())
    if "class_probs" in schema.names and table.class_probs is not None:
        columns["class_probs"] = _lists(list(table.class_probs[rows]), pictures, pa.float32())
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _lists(values: Sequence[Any], there: NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """A list for each row that is there, and nothing in the others."""
    import pyarrow as pa

    each = pa.array(values, pa.list_(kind))
    return each.take(pa.array(np.cumsum(there) - 1, mask=~there))


def _times(facts: Sequence[Facts]) -> pa.Array:
    """When pictures were taken; a time that 64 bits of nanoseconds do not hold is unknown."""
    import pyarrow as pa

    seconds = np.array([np.nan if fact.taken is None else fact.taken for fact in facts])
    known = np.abs(seconds) < np.iinfo(np.int64).max // PER_SECOND  # False for NaN
    whole = np.where(known, np.floor(seconds), 0).astype(np.int64)
    rest = np.rint(np.where(known, seconds - whole, 0) * PER_SECOND).astype(np.int64)
    return pa.array(whole * PER_SECOND + rest, pa.timestamp("ns", "UTC"), mask=~known)
