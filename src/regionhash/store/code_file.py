"""The code file: one HDF5 file that holds the codes of many pictures (docs/code-file.md).

Written through a journal that survives a kill at any moment, read as memory-mapped arrays.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, Self, overload

import h5py
import numpy as np
from numpy.typing import NDArray

from regionhash.files import strict_json
from regionhash.files.atomic import sync_directory
from regionhash.files.text import shown
from regionhash.structures import Codes, CodeTable, EncodedImage, Ints, Mask

LOCK_SECONDS = 3.0  # how long a writer waits for another one to end
FORMAT = "regionhash codes"
VERSION = 1
MAX_BITS = 1 << 16  # of a code
PRECISIONS = ("32-true", "bf16-mixed")  # those of `regionhash.models.encoding.Precision`

LAYOUT = {
    "id_bytes": ("id_byte", "<u1"),
    "sizes": ("image", "<i4"),
    "image_codes": ("image", "<u1"),
    "class_probs": ("image", "<f4"),
    "image_labels": ("image", "<u1"),
    "boxes": ("region", "<f4"),
    "scores": ("region", "<f4"),
    "labels": ("region", "<i8"),
    "region_codes": ("region", "<u1"),
    "categories": ("category", "<i8"),
    "category_probs": ("category", "<f4"),
    "category_codes": ("category", "<u1"),
}
"""Dataset: what one row of it describes, and its type. Also the order in a journal's record."""

OFFSETS = {"id_byte": "id_offsets", "region": "offsets", "category": "category_offsets"}
"""What an image owns any number of: the dataset of the offsets that divide it among the images."""

_MAGIC = b"RHJOURN1"
_RECORD = struct.Struct("<II")  # length and CRC-32 of the payload that follows
_COUNTS = struct.Struct(f"<{len(OFFSETS)}I")  # the image's rows of each kind in OFFSETS
_MAX_RECORD = 1 << 28  # bytes; a picture of 10,000 regions and codes of 1,024 bits takes 2 MB
_SYNC_SECONDS = 5.0  # of work that a power cut may take; a kill takes none
_CHUNK_BYTES = 1 << 20  # of each dataset held in memory while packing
_HDF5_ROOM = 1 << 20  # more than HDF5 needs for its own structures, which take some 10 KiB
_NOT_OF_TABLE = ("id_bytes", "id_offsets", "sizes", "image_labels")  # as they are
_HEAP = b"GCOL\1\0\0\0"  # a global heap: its size follows, then objects of 16 bytes and content
_MAX_PATH = 4096  # Linux's PATH_MAX
_MAX_OBJECTS = 10_000  # in all heaps; the one that is written here has two
_SIZE, _HEAP_OBJECT = struct.Struct("<Q"), struct.Struct("<H6xQ")
_ALIGNMENT = 64  # of each dataset in the file, in bytes: a cache line

Shapes = dict[str, tuple[int, ...]]


def dtype_of(name: str) -> np.dtype[Any]:
    """Type of a dataset."""
    return np.dtype(LAYOUT[name][1] if name in LAYOUT else "<i8")


class StoreError(ValueError):
    """A code file or its journal cannot be used; the message names the file and the reason."""


@contextmanager
def reported(path: Path, what: str) -> Iterator[None]:
    """Turns an error of the operating system into a StoreError about `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {what}: {error.strerror or error}") from error


class Ids(Sequence[str]):
    """N image ids, decoded when asked for: a million of them open at once."""

    def __init__(self, encoded: Codes, offsets: Ints) -> None:
        if offsets.ndim != 1 or not len(offsets) or offsets[-1] != len(encoded):
            raise ValueError(f"id_offsets must end at {len(encoded)}, the number of id_bytes")
        if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
            raise ValueError("id_offsets must start at 0 and never fall")
        self._encoded = encoded
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, n: int) -> str: ...
    @overload
    def __getitem__(self, n: slice) -> list[str]: ...
    def __getitem__(self, n: int | slice) -> str | list[str]:
        if isinstance(n, slice):
            return [self[row] for row in range(len(self))[n]]
        row = range(len(self))[n]
        start, end = self._offsets[row : row + 2]
        return decode_id(self._encoded[start:end].tobytes())

    def __iter__(self) -> Iterator[str]:
        encoded = self._encoded.tobytes()
        for start, end in pairwise(self._offsets.tolist()):
            yield decode_id(encoded[start:end])


def encode_id(image_id: str) -> bytes:
    """UTF-8; a file name that is none keeps its bytes, as `os.fsencode` has it."""
    return image_id.encode("utf-8", "surrogateescape")


def decode_id(encoded: bytes) -> str:
    """The inverse of `encode_id`."""
    return encoded.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True, eq=False)
class CodeSet:
    """Codes that can be searched: of a code file, or of a collection at one moment.

    Arrays are memory-mapped and read-only.

    Attributes:
        path: the file.
        table: codes, regions and ids of the N pictures.
        model: name of the model that made the codes.
        model_hash: hash of its weights: codes of different hashes cannot be compared.
        n_bits: of an image code, 0 where there is none; n_region_bits: of a region code.
        meta: where the codes come from, as the writer was told.
        labels: (N, C) uint8, 0/1, the known labels of the pictures; None where none were given.
        alive: (N,) bool, False for pictures of a collection that were removed but are still in the
            arrays; None where there are none.
    """

    path: Path
    table: CodeTable
    model: str
    model_hash: str
    n_bits: int
    n_region_bits: int
    meta: dict[str, Any]
    labels: Codes | None
    alive: Mask | None = None

    def __len__(self) -> int:
        """Number of pictures that are not removed."""
        return len(self.table) if self.alive is None else int(np.count_nonzero(self.alive))

    @property
    def rows(self) -> Ints:
        """Rows of the table whose pictures are not removed, ascending."""
        return np.arange(len(self.table)) if self.alive is None else np.flatnonzero(self.alive)

    def compact(self) -> CodeSet:
        """The same without removed pictures; the arrays are then copies."""
        if self.alive is None:
            return self
        labels = None if self.labels is None else self.labels[self.rows]
        return replace(self, table=self.table.take(self.rows), labels=labels, alive=None)

    @classmethod
    def open(cls, path: str | Path) -> CodeSet:
        """Opens a code file; codes are read from the disk when used.

        Boxes, scores and labels are read once, to check them.

        Args:
            path: of the file.

        Raises:
            StoreError: the file is missing, damaged, of another format or of another version, or
                holds what no picture has: labels without a class, boxes that are not finite.
        """
        path = Path(path)
        return cls._of(path, *_read(path))

    @classmethod
    def _of(cls, path: Path, header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> CodeSet:
        """The file of what was read of it. Raises StoreError for parts that do not fit together."""
        parts = {name: rows for name, rows in arrays.items() if name not in _NOT_OF_TABLE}
        try:
            check_ranges(arrays, len(header["classes"]))
            file = cls(
                path=path,
                labels=arrays.get("image_labels"),
                table=CodeTable(
                    ids=Ids(arrays["id_bytes"], arrays["id_offsets"]),
                    sizes=arrays["sizes"],
                    classes=tuple(header["classes"]),
                    **parts,
                ),
                model=header["model"],
                model_hash=header["model_hash"],
                n_bits=header["n_bits"],
                n_region_bits=header["n_region_bits"],
                meta=header["meta"],
            )
            if file.labels is not None and len(file.labels) != len(file.table):
                raise ValueError(
                    f"image_labels must have {len(file.table)} rows, got {len(file.labels)}"
                )
        except KeyError as error:
            raise StoreError(f"{path}: damaged: no {error}") from error
        except (TypeError, ValueError) as error:
            raise StoreError(f"{path}: damaged: {error}") from error
        return file

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes."""
        return self.table.classes

    def recorded(self, name: str) -> Any:
        """What the writer was told of where the codes come from, such as "checkpoint".

        Raises:
            StoreError: nothing of that name.
        """
        if name not in self.meta:
            raise StoreError(f"{self.path}: its writer recorded no {name!r} in meta")
        return self.meta[name]


CodeFile = CodeSet
"""An older name."""

# Which of them h5py raises for damaged bytes depends on where the damage lies.
_H5PY_ERRORS = (
    ArithmeticError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and memory-mapped datasets of a code file, each of its type and with its columns."""
    if not path.is_file():  # to open a pipe would wait for whoever fills it
        raise StoreError(f"{path}: {'not an ordinary' if path.exists() else 'no such'} file")
    try:
        _check_heaps(path)
        with h5py.File(path, "r") as file:
            content = _header_of(file)
            datasets = {
                name: _place_of(file, name)
                for name in (*LAYOUT, *OFFSETS.values())
                if file.id.links.exists(name.encode())
            }
        # A plain array over the map: slices of numpy.memmap itself cost several times more.
        file_bytes = np.asarray(np.memmap(path, np.uint8, "r"))
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error
    except _H5PY_ERRORS as error:
        reason = str(error).partition("\n")[0]
        raise StoreError(f"{path}: not a readable HDF5 file: {reason}") from error
    header = _checked_header(path, content)
    wanted = row_shapes_of(header)
    arrays = {}
    for name, (shape, dtype, offset) in datasets.items():
        expected = dtype_of(name)
        if dtype != expected:
            raise StoreError(f"{path}: {name} must be {expected}, got {dtype}")
        if not _fits(shape[1:], wanted.get(name, ())):
            raise StoreError(
                f"{path}: {name} must be {_columns(wanted.get(name, ()))}, got {shape}"
            )
        size = math.prod(shape) * dtype.itemsize
        if not size:
            arrays[name] = np.empty(shape, dtype)
        elif offset is None or offset + size > len(file_bytes):
            raise StoreError(f"{path}: damaged: {name} goes beyond the end of the file")
        else:
            arrays[name] = np.ndarray(shape, dtype, file_bytes.data, offset)
    return header, arrays


def _check_heaps(path: Path) -> None:
    """Raises ValueError for a heap with an object of no size, which HDF5 would read for ever.

    The heap of the header has no checksum; it lies before the datasets of every file that was
    written here.
    """
    with path.open("rb") as file:
        start = file.read(_HDF5_ROOM + strict_json.MAX_BYTES)
    at, n_objects = start.find(_HEAP), 0
    while at >= 0:
        (size,) = _SIZE.unpack_from(start[at : at + 16].ljust(16), 8)
        end, place = min(at + size, len(start)), at + 16
        while place + 16 <= end:
            index, size = _HEAP_OBJECT.unpack_from(start, place)
            step = 16 + -(-size // 8) * 8 if index else size  # of free space, all of it
            n_objects += 1
            if step < 16 or n_objects > _MAX_OBJECTS:
                raise ValueError(f"object {n_objects} of {size} bytes in the heap at {at}")
            place += step
        at = start.find(_HEAP, at + 4)


def _header_of(file: h5py.File) -> bytes:
    """The attribute of that name; an empty object where there is none."""
    if "header" not in file.attrs:
        return b"{}"
    attribute = file.attrs.get_id("header")
    if attribute.shape != () or attribute.get_storage_size() > strict_json.MAX_BYTES:
        raise StoreError("header must be one text")
    header = file.attrs["header"]
    if not isinstance(header, str):
        raise StoreError(f"header must be text, got {shown(header)}")
    return header.encode("utf-8", "surrogateescape")


def _place_of(file: h5py.File, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int | None]:
    """Shape, type and place in the file of a dataset, of which nothing is read."""
    if file.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise StoreError(f"{name} must be a dataset of this file, got a link")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape in (None, ()):
        raise StoreError(f"{name} must be an array")
    made = dataset.id.get_create_plist()
    if made.get_layout() != h5py.h5d.CONTIGUOUS or made.get_external_count():
        raise StoreError(
            f"{name} must be contiguous, without chunks or compression, and in this file"
        )
    return dataset.shape, dataset.dtype, dataset.id.get_offset()


def _checked_header(path: Path, content: bytes) -> dict[str, Any]:
    """The header of a code file. Raises StoreError for what cannot be right."""
    try:
        header = strict_json.parse_object(content)
    except ValueError as error:
        raise StoreError(f"{path}: header: {error}") from error
    _check_fields(path, header, {"format": FORMAT, "version": VERSION})
    try:
        for name in ("model", "model_hash"):
            strict_json.field(header, name, str)
        strict_json.class_names(header)
        for name in ("n_bits", "n_region_bits"):
            if strict_json.whole_number(header, name, 0, MAX_BITS) % 8:
                raise ValueError(f"{name} must be a multiple of 8, got {header[name]}")
        _check_meta(strict_json.field(header, "meta", dict))
    except ValueError as error:
        raise StoreError(f"{path}: header: {error}") from error
    return header


def _check_meta(meta: dict[str, Any]) -> None:
    """Raises ValueError for values that a search would trip over; other keys hold anything."""
    if "checkpoint" in meta and not _is_path(strict_json.field(meta, "checkpoint", str)):
        raise ValueError("meta: checkpoint must be a path")
    if meta.get("precision", PRECISIONS[0]) not in PRECISIONS:
        given = shown(meta["precision"])
        raise ValueError(f"meta: precision must be one of {', '.join(PRECISIONS)}, got {given}")
    for source in strict_json.field(meta, "sources", list) if "sources" in meta else ():
        ok = isinstance(source, dict) and set(source) in ({"folder", "suffix"}, {"data"})
        if not ok or not all(isinstance(own, str) and _is_path(own) for own in source.values()):
            raise ValueError(
                "meta: sources must be objects of texts, with folder and suffix or with data, "
                f"got {shown(source)}"
            )


def _is_path(text: str) -> bool:
    return "\0" not in text and len(text) <= _MAX_PATH


def row_shapes_of(model: Mapping[str, Any]) -> dict[str, tuple[int | None, ...]]:
    """The shape of one row of each dataset of a model; None is any number.

    Args:
        model: its "classes", "n_bits" and "n_region_bits".
    """
    n_classes = len(model["classes"])
    return {
        "id_bytes": (),
        "sizes": (2,),
        "image_codes": (model["n_bits"] // 8,),
        "class_probs": (n_classes,),
        "image_labels": (n_classes,),
        "boxes": (4,),
        "scores": (),
        "labels": (),
        "region_codes": (model["n_region_bits"] // 8,),
        "categories": (),
        "category_probs": (),
        "category_codes": (None,),
    }


def _fits(shape: Sequence[int], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        got <= MAX_BITS if want is None else got == want
        for got, want in zip(shape, wanted, strict=True)
    )


def _columns(wanted: tuple[int | None, ...]) -> str:
    return f"({', '.join(['*', *('*' if n is None else str(n) for n in wanted)])})"


_FINITE = float(np.finfo(np.float32).max)


def check_ranges(rows: Mapping[str, NDArray[Any]], n_classes: int) -> None:
    """Raises ValueError for values that no picture has: labels without a class, NaN, infinity."""
    limits = {
        "sizes": (0, np.inf),
        "class_probs": (-_FINITE, _FINITE),
        "image_labels": (0, 1),
        "boxes": (-_FINITE, _FINITE),
        "scores": (-_FINITE, _FINITE),
        "labels": (-1, n_classes - 1),
        "categories": (0, n_classes - 1),
        "category_probs": (-_FINITE, _FINITE),
    }
    for name, (low, high) in limits.items():
        values = rows.get(name)
        if values is None or not values.size:
            continue
        least, most = values.min(), values.max()  # both NaN where there is one
        if not (low <= least and most <= high):
            wanted = "finite" if high == _FINITE else f"in [{low}, {high}]"
            raise ValueError(f"{name} must be {wanted}, got values from {least} to {most}")


def _check_fields(path: Path, header: dict[str, Any], expected: dict[str, Any]) -> None:
    for field, value in expected.items():
        if header.get(field) != value:
            got = shown(header.get(field))
            raise StoreError(f"{path}: {field} must be {value!r}, got {got}")


class _Journal:
    """An append-only file of records, each of which is whole or not there at all.

    Opened, it is locked against other writers and cut off behind its last whole record.

    Raises:
        StoreError: another writer holds it, it is no journal, or the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0  # of the last whole record
        self._synced = time.monotonic()
        if path.exists() and not path.is_file():
            raise StoreError(f"{path}: not an ordinary file; move it away")
        with reported(path, "cannot write"):
            self._file = path.open("a+b", buffering=0)
        try:
            self._lock()
            self._cut_torn_record()
        except BlockingIOError as error:
            self._file.close()
            raise StoreError(f"{path}: another writer is at work on it") from error
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        """Waits a little: processes that read pictures for a run that was killed end after it."""
        patience = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > patience:
                    raise
                time.sleep(0.05)

    def _cut_torn_record(self) -> None:
        with self.path.open("rb") as file:
            if not _MAGIC.startswith(file.read(len(_MAGIC))):
                raise StoreError(f"{self.path}: not a journal of {FORMAT}; move it away")
            while _next_payload(file) is not None:
                self._end = file.tell()
        self._file.truncate(self._end)

    def records(self) -> Iterator[bytes]:
        """The payload of each record."""
        with self.path.open("rb") as file:
            file.seek(len(_MAGIC))
            while file.tell() < self._end:
                payload = _next_payload(file)
                if payload is None:
                    raise StoreError(f"{self.path}: damaged since it was opened")
                yield payload

    def append(self, payload: bytes) -> None:
        """Adds a record; where that fails, the journal is as it was before."""
        if len(payload) > _MAX_RECORD:
            raise StoreError(f"{self.path}: a record of {len(payload)} bytes is too long")
        start = b"" if self._end else _MAGIC
        record = start + _RECORD.pack(len(payload), zlib.crc32(payload)) + payload
        rest = memoryview(record)
        with reported(self.path, "cannot write"):
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except BaseException:
                self._file.truncate(self._end)
                raise
            self._end += len(record)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def clear(self) -> None:
        """Drops all records."""
        self._end = 0
        with reported(self.path, "cannot empty"):
            self._file.truncate(0)

    def close(self) -> None:
        """Lets go of the file, which stays unless it is empty."""
        if self._file.closed:
            return
        with reported(self.path, "cannot write"), self._file:
            if self._end:
                os.fsync(self._file.fileno())
            else:
                self.path.unlink(missing_ok=True)


def _next_payload(file: BinaryIO) -> bytes | None:
    """The payload of the next record; None at the end or where the record is not whole."""
    head = file.read(_RECORD.size)
    if len(head) < _RECORD.size:
        return None
    length, checksum = _RECORD.unpack(head)
    if length > min(_MAX_RECORD, os.fstat(file.fileno()).st_size - file.tell()):
        return None  # before memory is taken for it
    payload = file.read(length)
    # A power cut may leave zeros behind; a length of 0 would pass the checksum.
    whole = length and len(payload) == length and zlib.crc32(payload) == checksum
    return payload if whole else None


class _NewFile:
    """A new HDF5 file of contiguous datasets, each filled from its first row to its last.

    HDF5 brings the process down when the disk fills under it. So it only lays the file out, after
    the room for its own structures was tried, and the rows go in by ordinary writes, which fail in
    an orderly way.

    Raises:
        OSError: the disk is full, or the file too large for it.
    """

    def __init__(self, path: Path, header: str, shapes: Shapes) -> None:
        types = {name: dtype_of(name) for name in shapes}
        room = _HDF5_ROOM + len(header)
        with path.open("wb") as file:
            file.write(bytes(room))
            file.flush()
            os.fsync(file.fileno())
            file.truncate(
                room + sum(math.prod(shapes[name]) * types[name].itemsize for name in shapes)
            )
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        with h5py.File(
            path,
            "w",
            libver=("v108", "v108"),  # the first whose structures carry checksums
            alignment_threshold=1,
            alignment_interval=_ALIGNMENT,
        ) as file:
            file.attrs["header"] = header
            self._next = {  # place of the next row; an empty dataset has none and needs none
                name: file.create_dataset(name, shape, types[name], dcpl=early).id.get_offset()
                for name, shape in shapes.items()
            }
        self._pending = {name: bytearray() for name in shapes}
        self._file = path.open("r+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, name: str, rows: bytes | memoryview) -> None:
        """Adds rows, gathered to chunks, to a dataset."""
        pending = self._pending[name]
        pending += rows
        if len(pending) >= _CHUNK_BYTES:
            self._write(name, pending)
            pending.clear()

    def copy(self, name: str, rows: NDArray[Any]) -> None:
        """Fills the start of a dataset with the rows of another."""
        self._write(name, rows.data)

    def finish(self) -> None:
        """Writes what is still gathered and waits for the disk."""
        for name, pending in self._pending.items():
            self._write(name, pending)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write(self, name: str, rows: bytearray | memoryview) -> None:
        if len(rows):
            self._file.seek(self._next[name])
            self._next[name] += self._file.write(rows)


class CodeFileWriter:
    """Writes a code file, image by image, so that no finished work is ever lost.

    Each image goes into the journal `<path>.part` at once; `finish` packs the journal into the code
    file. Killed at any moment, a new writer on the same path goes on where the last one stopped:

        with CodeFileWriter("codes.h5", model_hash=..., ...) as writer:
            for image_id in ids:
                if image_id not in writer.done:
                    writer.add(image_id, encode(image_id))
            writer.finish()

    A finished code file of the same model can be added to in the same way. Left without `finish`,
    the journal stays for the next writer.

    Args:
        path: the code file.
        model_hash: hash of the model's weights.
        model_name: what people call the model.
        classes: names of the C classes.
        n_bits: of an image code, 0 where the model has none.
        n_region_bits: of a region code, 0 where the model has none.
        meta: where the codes come from; anything that JSON can hold. The file keeps that of the
            writer that finished it.

    Attributes:
        path: the code file.
        done: ids of the images that are stored.

    Raises:
        StoreError: a file or journal of another model, version or number of bits, or a damaged one,
            is there, another writer is at work on it, or the disk refuses; or classes that are not
            distinct names.
        ValueError: the bits are not whole bytes.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model_hash: str,
        model_name: str,
        classes: Sequence[str],
        n_bits: int,
        n_region_bits: int,
        meta: dict[str, Any] | None = None,
    ) -> None:
        for name, bits in (("n_bits", n_bits), ("n_region_bits", n_region_bits)):
            if bits < 0 or bits % 8:
                raise ValueError(f"{name} must be a multiple of 8, got {bits}")
        self.path = Path(path)
        self.done: set[str] = set()
        self._model: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "model": model_name,
            "model_hash": model_hash,
            "classes": list(classes),
            "n_bits": n_bits,
            "n_region_bits": n_region_bits,
        }
        self._header = json.dumps(self._model | {"meta": meta or {}})
        _checked_header(self.path, self._header.encode())  # what it refuses must not be written
        self._finished: dict[str, NDArray[Any]] = {}  # datasets of the file that is there
        self._packed_ids: frozenset[str] = frozenset()
        self._row_shapes: Shapes | None = None  # known from the first image on
        self._n_new = dict.fromkeys(("image", *OFFSETS), 0)  # rows in the journal
        self._journal = _Journal(self.path.with_name(self.path.name + ".part"))
        try:
            self._take_up_finished()
            self._take_up_journal()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the journal, which stays for the next writer unless it is empty."""
        self._journal.close()

    def add(
        self, image_id: str, encoded: EncodedImage, labels: Sequence[int] | None = None
    ) -> None:
        """Stores one image; when this returns, a kill of the process cannot undo it.

        Args:
            image_id: not in `done`.
            encoded: the same parts as every other image of the file.
            labels: distinct class indices known to be true of the image.

        Raises:
            ValueError: the id is stored already, a code has not the promised number of bits, a
                label is no class, or the parts are not those of the other images.
            StoreError: the disk refuses; all images before this one are kept.
        """
        if image_id in self.done:
            raise ValueError(f"{image_id}: is stored already")
        rows = rows_of(image_id, encoded, labels, self._model)
        row_shapes = {name: array.shape[1:] for name, array in rows.items()}
        self._agree_on_rows(image_id, row_shapes)
        if not self._n_new["image"]:
            self._journal.clear()
            self._journal.append(json.dumps(self._model | {"rows": row_shapes}).encode())
        counts = {unit: len(rows[name]) for name, (unit, _) in LAYOUT.items() if name in rows}
        payload = _COUNTS.pack(*(counts.get(unit, 0) for unit in OFFSETS))
        self._journal.append(payload + b"".join(array.tobytes() for array in rows.values()))
        self._count(image_id, counts)

    def finish(self) -> None:
        """Packs what was added into the code file and closes the writer.

        The file is replaced in one step: at no moment is there half a file. Where nothing was
        added to a finished file, it stays untouched. The rows are streamed: apart from the ids, the
        memory needed does not grow with the number of images.

        Raises:
            StoreError: the disk refuses; the old file and the journal stay as they are.
        """
        if self._n_new["image"] or not self._finished:
            temporary = self.path.with_name(self.path.name + ".tmp")
            try:
                with reported(temporary, "cannot write"):
                    self._pack(temporary)
                    self._check_packed(temporary)
                    temporary.replace(self.path)
                    sync_directory(self.path.parent)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        self._journal.clear()
        self.close()

    def _check_packed(self, packed: Path) -> None:
        """Raises StoreError for a file that would be refused: it must not replace a good one."""
        try:
            CodeSet.open(packed)
        except StoreError as error:
            raise self._damaged_journal(error) from error

    def _take_up_finished(self) -> None:
        """Goes on from the code file, if there is one."""
        if not self.path.exists():
            return
        header, self._finished = _read(self.path)
        _check_fields(self.path, header, self._model)
        ids = CodeSet._of(self.path, header, self._finished).table.ids
        self._packed_ids = frozenset(ids)
        if len(self._packed_ids) < len(ids):
            raise StoreError(f"{self.path}: damaged: two pictures have the same id")
        self.done |= self._packed_ids
        if self._packed_ids:
            self._row_shapes = {
                name: self._finished[name].shape[1:] for name in LAYOUT if name in self._finished
            }

    def _take_up_journal(self) -> None:
        """Goes on from the journal."""
        record = next(self._journal.records(), None)
        if record is None:
            return
        try:
            header = strict_json.parse_object(record)
            _check_fields(self._journal.path, header, self._model)
            row_shapes = _checked_row_shapes(header, self._model)
            self._agree_on_rows(str(self._journal.path), row_shapes)
        except StoreError:
            raise
        except ValueError as error:
            raise self._damaged_journal(error) from error
        for image_id, counts, _ in self._journal_images():
            self._count(image_id, counts)

    def _damaged_journal(self, reason: object) -> StoreError:
        return StoreError(f"{self._journal.path}: damaged: {reason}; move it away")

    def _agree_on_rows(self, whose: str, row_shapes: Shapes) -> None:
        """Keeps the first row shapes and raises ValueError for others."""
        if self._row_shapes not in (None, row_shapes):
            raise ValueError(
                f"{whose}: every image of {self.path} must have the parts "
                f"{_described(self._row_shapes)}, got {_described(row_shapes)}"
            )
        self._row_shapes = row_shapes

    def _journal_images(self) -> Iterator[tuple[str, dict[str, int], memoryview]]:
        """Id, row counts and bytes of the rows of each image in the journal.

        Left out are images that the code file holds already: a kill came after the file was put in
        its place and before the journal was emptied.
        """
        row_bytes = self._row_bytes()
        for payload in islice(self._journal.records(), 1, None):  # the first tells of the model
            if len(payload) < _COUNTS.size:
                raise self._damaged_journal(f"a picture of {len(payload)} bytes")
            counts = dict(zip(OFFSETS, _COUNTS.unpack_from(payload), strict=True))
            rows = memoryview(payload)[_COUNTS.size :]
            wanted = sum(n * counts.get(LAYOUT[name][0], 1) for name, n in row_bytes.items())
            if len(rows) != wanted:
                raise self._damaged_journal(f"a picture of {len(rows)} bytes, not {wanted}")
            image_id = decode_id(bytes(rows[: counts["id_byte"]]))
            if image_id not in self._packed_ids:
                yield image_id, counts, rows

    def _row_bytes(self) -> dict[str, int]:
        """Bytes of one row of each dataset."""
        return {
            name: math.prod(shape) * dtype_of(name).itemsize
            for name, shape in (self._row_shapes or {}).items()
        }

    def _count(self, image_id: str, counts: dict[str, int]) -> None:
        self.done.add(image_id)
        for unit, count in (counts | {"image": 1}).items():
            self._n_new[unit] += count

    def _pack(self, path: Path) -> None:
        """Writes the rows of the finished file and of the journal as a new code file."""
        row_shapes = self._row_shapes or {"id_bytes": (), "sizes": (2,)}  # of no image at all
        units = {LAYOUT[name][0] for name in row_shapes}
        offsets_names = {unit: name for unit, name in OFFSETS.items() if unit in units}
        start = {name: np.zeros(1, dtype_of(name)) for name in offsets_names.values()}
        start |= self._finished
        shapes = {name: (len(rows), *rows.shape[1:]) for name, rows in start.items()}
        for name, row_shape in row_shapes.items():
            n_rows = len(start.get(name, ())) + self._n_new[LAYOUT[name][0]]
            shapes[name] = (n_rows, *row_shape)
        for name in offsets_names.values():
            shapes[name] = (len(start[name]) + self._n_new["image"],)
        row_bytes = self._row_bytes()
        with _NewFile(path, self._header, shapes) as new:
            for name, rows in start.items():
                new.copy(name, rows)
            ends = {unit: int(start[name][-1]) for unit, name in offsets_names.items()}
            for _, counts, content in self._journal_images():
                at = 0
                for name, width in row_bytes.items():
                    until = at + width * counts.get(LAYOUT[name][0], 1)
                    new.append(name, content[at:until])
                    at = until
                for unit, name in offsets_names.items():
                    ends[unit] += counts[unit]
                    new.append(name, ends[unit].to_bytes(8, "little"))
            new.finish()


def rows_of(
    image_id: str,
    encoded: EncodedImage,
    labels: Sequence[int] | None,
    model: Mapping[str, Any],
) -> dict[str, NDArray[Any]]:
    """What one image adds to each dataset, checked, in the order and types of `LAYOUT`.

    Args:
        image_id: for the dataset of ids, and for messages.
        encoded: what the model gave.
        labels: distinct class indices known to be true of the image.
        model: "classes", "n_bits" and "n_region_bits" of the model.

    Raises:
        ValueError: a code has not the promised number of bits, a label is no class, or a number is
            not finite.
    """
    n_classes = len(model["classes"])
    given: dict[str, NDArray[Any]] = {
        "id_bytes": np.frombuffer(encode_id(image_id), np.uint8),
        "sizes": np.array([encoded.size]),
    }
    widths = {}
    if encoded.image_code is not None:
        given["image_codes"] = encoded.image_code[None]
        widths["image_codes"] = model["n_bits"] // 8
    if encoded.class_probs is not None:
        given["class_probs"] = encoded.class_probs[None]
        widths["class_probs"] = n_classes
    if labels is not None:
        if len(set(labels)) != len(labels) or not set(labels) <= set(range(n_classes)):
            raise ValueError(
                f"{image_id}: labels must be distinct indices of {n_classes} classes, "
                f"got {list(labels)}"
            )
        given["image_labels"] = np.isin(np.arange(n_classes), labels)[None]
    if (regions := encoded.regions) is not None:
        given["boxes"] = regions.boxes
        given["scores"] = regions.scores
        given["labels"] = regions.labels
        given["region_codes"] = regions.codes
        widths["region_codes"] = model["n_region_bits"] // 8
    if (categories := encoded.categories) is not None:
        given["categories"] = categories.categories
        given["category_probs"] = categories.probs
        given["category_codes"] = categories.codes
    for name, width in widths.items():
        if given[name].shape[1] != width:
            raise ValueError(
                f"{image_id}: {name} must have {width} columns, got {given[name].shape[1]}"
            )
    try:
        check_ranges(given, n_classes)
    except ValueError as error:
        raise ValueError(f"{image_id}: {error}") from error
    return {name: given[name].astype(dtype_of(name)) for name in LAYOUT if name in given}


def _checked_row_shapes(header: dict[str, Any], model: Mapping[str, Any]) -> Shapes:
    """The field "rows" of a journal. Raises ValueError unless a model can have such rows."""
    given = strict_json.field(header, "rows", dict)
    wanted = row_shapes_of(model)
    for name, shape in given.items():
        if (
            name not in wanted
            or not isinstance(shape, list)
            or not all(type(n) is int and n >= 0 for n in shape)
            or not _fits(shape, wanted[name])
        ):
            raise ValueError(f"rows: {shown({name: shape})}")
    if [name for name in LAYOUT if name in given] != list(given) or "sizes" not in given:
        raise ValueError(f"rows: {shown(list(given))}")
    return {name: tuple(shape) for name, shape in given.items()}


def _described(row_shapes: Shapes | None) -> str:
    return ", ".join(
        " x ".join((name, *map(str, shape))) for name, shape in (row_shapes or {}).items()
    )
