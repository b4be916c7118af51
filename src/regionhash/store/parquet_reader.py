"""Codes from a Parquet file, see `regionhash.store.parquet`.

Rows of a picture stand together, pictures in ascending order; columns of other names are ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from regionhash.files.text import one_line, shown
from regionhash.files.urls import Location, reading
from regionhash.precision import precision_of
from regionhash.store.codeset import CodeSet
from regionhash.store.layout import StoreError, check_ranges, checked_header
from regionhash.store.parquet import (
    BYTES,
    CORNERS,
    FORMAT,
    METADATA,
    MOST_ROWS,
    PARTS,
    PER_SECOND,
    VERSION,
    Facts,
)
from regionhash.structures import Codes, CodeTable, Ints, Mask

if TYPE_CHECKING:
    import pyarrow as pa

_REQUIRED = (
    *("picture", "id", "part", "number", "class", "score"),
    *(*CORNERS, "height", "width", "model_hash", "precision"),
)
_OPTIONAL = (*BYTES, "path", "sha256", "taken", "shows", "class_probs")
_ROWS_AT_A_TIME = 1 << 18


@dataclass(frozen=True, slots=True)
class ParquetCodes:
    """A Parquet file of codes, read a part at a time.

    Attributes:
        path: the file, or its URL.
        header: "model", "model_hash", "classes", "n_bits", "n_region_bits" and "meta", as a code
            file has them; None if another program has left them out.
        keeps_floats: whether features of regions stand beside their codes.
    """

    path: Location
    header: Mapping[str, Any] | None
    keeps_floats: bool

    @classmethod
    def open(cls, path: Location) -> ParquetCodes:
        """Opens a file, of which only the schema is read.

        Raises:
            StoreError: it is missing, no Parquet file, or of another version.
        """
        import pyarrow.parquet as pq

        with as_store_errors(path), reading(path) as file:
            schema = pq.read_schema(file)
        metadata = schema.metadata or {}
        header = None
        if METADATA in metadata:
            header = checked_header(path, metadata[METADATA], FORMAT, VERSION)
        return cls(path, header, "features" in schema.names)

    def stored(self) -> Iterator[tuple[Ints, list[str], list[bytes | None]]]:
        """Number, id and SHA-256 of the pictures, some thousands at a time.

        Raises:
            StoreError: the file is damaged, lacks a column, or pictures do not ascend.
        """
        import pyarrow as pa

        last = -1
        with as_store_errors(self.path):
            for rows in self.rows(("picture", "id", "part"), ("sha256",)):
                pictures = rows.filter(pa.array(_indices(rows, "part", PARTS) == 0))
                numbers = _numbers(pictures, "picture", np.int64)
                if (np.diff(numbers, prepend=last) <= 0).any():
                    raise ValueError("pictures must be in ascending order")
                last = int(numbers.max(initial=last))
                digests = _optional(pictures, "sha256", pa.binary(32)).to_pylist()
                yield numbers, _texts(pictures, "id"), digests

    def parts(
        self, header: Mapping[str, Any], only: Collection[int] | None = None
    ) -> Iterator[tuple[CodeSet, list[Facts]]]:
        """The pictures, some thousands at a time.

        Args:
            header: as the attribute, of the model that the codes must be of; "meta" is taken from
                here only if the file has none.
            only: numbers of the pictures to take; None for all.

        Raises:
            StoreError: the file is damaged, lacks columns, is of another model, or holds what no
                picture has.
        """
        header = {**header, "meta": (self.header or header)["meta"]}
        last = -1
        with as_store_errors(self.path):
            for rows in self._whole_pictures():
                taken = rows if only is None else of_pictures(rows, only)
                if len(taken):
                    codes, facts = _read(Path(self.path), taken, header, last)
                    last = facts[-1].number
                    yield codes, facts

    def rows(
        self, required: Sequence[str] = (), optional: Sequence[str] = ()
    ) -> Iterator[pa.Table]:
        """Some columns, many rows at a time, their pages compared with the checksums there are.

        Args:
            required: names of columns.
            optional: names of columns that need not be there; with none of either, all are read.

        Raises:
            StoreError: the file is damaged, lacks a column, or has one of them twice.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        with (
            as_store_errors(self.path),
            reading(self.path) as opened,
            pq.ParquetFile(opened, page_checksum_verification=True) as file,
        ):
            there = file.schema_arrow.names
            for name in required:
                if name not in there:
                    raise ValueError(f"no column {name}")
            columns = [name for name in (*required, *optional) if name in there] or there
            for name in columns:
                if there.count(name) > 1:
                    raise ValueError(f"column {name} is there {there.count(name)} times")
            n_rows = 0
            for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=columns):
                yield pa.Table.from_batches([batch])
                n_rows += len(batch)
            if n_rows != file.metadata.num_rows:  # pyarrow stops at some damaged pages
                raise ValueError(f"damaged: has {n_rows} of {file.metadata.num_rows} rows")

    def _whole_pictures(self) -> Iterator[pa.Table]:
        """All that `parts` needs, divided between pictures. Raises ValueError as `parts` does."""
        import pyarrow as pa

        rest: pa.Table | None = None
        for batch in self.rows(_REQUIRED, _OPTIONAL):
            rows = batch if rest is None else pa.concat_tables([rest, batch])
            pictures = _numbers(rows, "picture", np.int64)
            starts = np.concatenate([[0], np.flatnonzero(np.diff(pictures)) + 1])
            counts = np.diff(starts, append=len(rows))
            if counts.max() > MOST_ROWS:
                raise ValueError(
                    f"picture {pictures[starts[counts.argmax()]]} must have at most {MOST_ROWS} "
                    f"rows, got {counts.max()} or more"
                )
            end = int(starts[-1])  # the last picture may go on
            yield rows.slice(0, end)
            rest = rows.slice(end)
        if rest is not None:
            yield rest


@contextmanager
def as_store_errors(path: Location) -> Iterator[None]:
    """Turns the errors of a file that cannot be used into a StoreError that names it."""
    import pyarrow as pa

    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {one_line(str(error))}") from error
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise StoreError(f"{path}: {one_line(str(error))}") from error


def of_pictures(rows: pa.Table, numbers: Collection[int]) -> pa.Table:
    """The rows of some pictures. Raises ValueError if a row has no picture."""
    import pyarrow as pa

    found = _numbers(rows, "picture", np.int64).tolist()
    return rows.filter(pa.array([number in numbers for number in found], pa.bool_()))


def _read(
    path: Path, rows: pa.Table, header: Mapping[str, Any], after: int
) -> tuple[CodeSet, list[Facts]]:
    """Whole pictures, all of them after the number of one. Raises ValueError."""
    import pyarrow as pa

    for column, needed in (
        ("model_hash", header["model_hash"]),
        ("precision", precision_of(header["meta"])),
    ):
        for given in rows[column].unique().to_pylist():
            if given != needed:
                raise ValueError(f"{column} must be {needed}, got {shown(given)}")
    numbers = _numbers(rows, "picture", np.int64)
    part = _indices(rows, "part", PARTS)
    _check_order(numbers, part, _numbers(rows, "number", np.int64), after)
    of = {name: rows.filter(pa.array(part == n)) for n, name in enumerate(PARTS)}
    pictures, regions, categories = of.values()
    firsts, classes = np.flatnonzero(part == 0), tuple(header["classes"])
    arrays: dict[str, NDArray[Any]] = {
        "sizes": np.stack([_numbers(pictures, side, np.int32) for side in ("height", "width")], 1)
    }
    for column, (name, array) in BYTES.items():
        if column in rows.column_names:
            arrays[array] = _packed(of[name], column)
        elif array in ("region_codes", "category_codes") and len(of[name]):
            raise ValueError(f"rows of the part {name}, but no column {column}")
    if "region_codes" in arrays:
        arrays |= {
            "offsets": _bounds(part == 1, firsts),
            "boxes": np.stack([_numbers(regions, corner, np.float32) for corner in CORNERS], 1),
            "scores": _numbers(regions, "score", np.float32),
            "labels": _indices(regions, "class", classes, missing=-1),
        }
    if "region_features" in arrays:
        arrays["region_features"] = arrays["region_features"].view(np.int8)
    if "category_codes" in arrays:
        arrays |= {
            "category_offsets": _bounds(part == 2, firsts),
            "categories": _indices(categories, "class", classes),
            "category_probs": _numbers(categories, "score", np.float32),
        }
    if "class_probs" in rows.column_names:
        arrays["class_probs"] = _vectors(pictures, "class_probs", len(classes))
    check_ranges(arrays, len(classes))
    return CodeSet(
        path=path,
        table=CodeTable(ids=_texts(pictures, "id"), classes=classes, **arrays),
        labels=_known_labels(pictures, classes) if "shows" in rows.column_names else None,
        **{name: header[name] for name in ("model", "model_hash", "n_bits", "n_region_bits")},
        meta=header["meta"],
    ), _facts(pictures, numbers[firsts])


def _check_order(numbers: Ints, part: Ints, number: Ints, after: int) -> None:
    """Raises ValueError unless rows stand as they were written."""
    firsts = np.diff(numbers, prepend=after) != 0
    wrong = (np.diff(numbers, prepend=after) < 0) | (firsts != (part == 0))
    wrong |= ~firsts & (np.diff(part, prepend=0) < 0)
    starts = firsts | (np.diff(part, prepend=0) != 0)  # of a part of a picture
    places = np.arange(len(part))
    wrong |= number != places - np.maximum.accumulate(np.where(starts, places, 0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"picture {numbers[row]}: {PARTS[part[row]]} {number[row]} is out of order; rows must "
            "be sorted by picture, each first itself, then its regions, then its categories, "
            "numbered from 0"
        )


def _facts(pictures: pa.Table, numbers: Ints) -> list[Facts]:
    import pyarrow as pa

    paths = _optional(pictures, "path", pa.string())
    digests = _optional(pictures, "sha256", pa.binary(32))
    times = _optional(pictures, "taken", pa.timestamp("ns", "UTC")).cast(pa.int64())
    columns = [column.to_pylist() for column in (paths, digests, times)]
    return [
        Facts(number, path, digest, None if taken is None else taken / PER_SECOND)
        for number, path, digest, taken in zip(numbers.tolist(), *columns, strict=True)
    ]


# -- columns --------------------------------------------------------------------------------------


def _numbers(rows: pa.Table, name: str, dtype: DTypeLike) -> NDArray[Any]:
    """A column of numbers, all of them there and without loss."""
    import pyarrow as pa

    column = rows[name].combine_chunks()
    if column.null_count:
        raise ValueError(f"{name} must be a number in each row, got nothing in one")
    try:
        found: NDArray[Any] = column.cast(pa.from_numpy_dtype(np.dtype(dtype))).to_numpy()
    except pa.ArrowException as error:
        raise ValueError(f"{name}: {error}") from error
    return found


def _optional(rows: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """A column that may be missing, then with nothing in each row."""
    import pyarrow as pa

    if name not in rows.column_names:
        return pa.chunked_array([pa.nulls(len(rows), kind)])
    return rows[name].cast(kind)


def _vectors(rows: pa.Table, name: str, width: int) -> NDArray[np.float32]:
    """A column of lists (R, width) of numbers."""
    import pyarrow as pa

    lists = rows[name].combine_chunks()
    is_kind = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    if not any(check(lists.type) for check in is_kind):
        raise ValueError(f"{name} must be lists of numbers, got {lists.type}")
    lists = lists.cast(pa.list_(pa.float32()))
    if lists.null_count or (np.diff(lists.offsets.to_numpy()) != width).any():
        raise ValueError(f"{name} must have {width} values in each picture")
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return np.array(values, np.float32).reshape(len(rows), width)


def _texts(rows: pa.Table, name: str) -> list[str]:
    import pyarrow as pa

    found = rows[name].cast(pa.string())
    if found.null_count:
        raise ValueError(f"{name} must be a text, got nothing")
    texts: list[str] = found.to_pylist()
    return texts


def _indices(
    rows: pa.Table, name: str, known: Sequence[str], *, missing: int | None = None
) -> Ints:
    """The number of each text among the known ones; `missing` for none, if it is allowed."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = rows[name].combine_chunks().cast(pa.string())
    found = pc.index_in(texts, value_set=pa.array(known, pa.string()))
    unknown = found.is_null().to_numpy(zero_copy_only=False)
    if missing is not None:
        unknown &= texts.is_valid().to_numpy(zero_copy_only=False)
    if unknown.any():
        got = texts[int(np.flatnonzero(unknown)[0])].as_py()
        raise ValueError(f"{name} must be one of {shown(list(known))}, got {shown(got)}")
    return np.asarray(found.fill_null(-1 if missing is None else missing).to_numpy(), np.int64)


def _packed(rows: pa.Table, name: str) -> Codes:
    """A column of bytes (R, B) uint8, all of one width."""
    import pyarrow as pa

    column = rows[name].combine_chunks()
    if column.null_count:
        raise ValueError(f"{name} is missing in a row that must have one")
    if not pa.types.is_fixed_size_binary(column.type):
        widths = {len(code) for code in column.cast(pa.binary()).to_pylist()}
        if len(widths) > 1:
            raise ValueError(f"{name} must be of one width, got {sorted(widths)} bytes")
        column = column.cast(pa.binary()).cast(pa.binary(widths.pop() if widths else 1))
    width = column.type.byte_width
    start = column.offset * width
    content = memoryview(column.buffers()[1] or b"")[start : start + len(column) * width]
    return np.frombuffer(content, np.uint8).reshape(len(column), width)


def _bounds(there: Mask, firsts: Ints) -> Ints:
    """The offsets (N + 1,) of a part, given the rows that it has and where pictures begin."""
    counts = np.concatenate([[0], np.cumsum(there)])
    return np.asarray(counts[[*firsts.tolist(), len(there)]], np.int64)


def _known_labels(pictures: pa.Table, classes: Sequence[str]) -> Codes:
    """What pictures are known to show (N, C) uint8."""
    found = np.zeros((len(pictures), len(classes)), np.uint8)
    index = {name: n for n, name in enumerate(classes)}
    for row, names in enumerate(pictures["shows"].to_pylist()):
        for name in names or ():
            if name not in index:
                raise ValueError(f"shows must be classes of the model, got {shown(name)}")
            found[row, index[name]] = 1
    return found
