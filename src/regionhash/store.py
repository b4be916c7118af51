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
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, Self, overload

import h5py
import numpy as np
from numpy.typing import NDArray

from regionhash.files import sync_directory
from regionhash.structures import Codes, CodeTable, EncodedImage, Ints

LOCK_SECONDS = 3.0  # how long a writer waits for another one to end
CODES_FILE = "codes.h5"  # in a folder of `regionhash index` before it was a collection
FORMAT = "regionhash codes"
VERSION = 1

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
_SYNC_SECONDS = 5.0  # of work that a power cut may take; a kill takes none
_CHUNK_BYTES = 1 << 20  # of each dataset held in memory while packing
_HDF5_ROOM = 1 << 20  # more than HDF5 needs for its own structures, which take some 10 KiB
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
class CodeFile:
    """A finished code file, opened. Its arrays are memory-mapped and read-only.

    Attributes:
        path: the file.
        table: codes, regions and ids of the N pictures.
        model: name of the model that made the codes.
        model_hash: hash of its weights: codes of different hashes cannot be compared.
        n_bits: of an image code, 0 where there is none; n_region_bits: of a region code.
        meta: where the codes come from, as the writer was told.
        labels: (N, C) uint8, 0/1, the known labels of the pictures; None where none were given.
    """

    path: Path
    table: CodeTable
    model: str
    model_hash: str
    n_bits: int
    n_region_bits: int
    meta: dict[str, Any]
    labels: Codes | None

    @classmethod
    def open(cls, path: str | Path) -> CodeFile:
        """Opens a code file; arrays are read from the disk when used.

        Args:
            path: of the file.

        Raises:
            StoreError: the file is missing, damaged, of another format or of another version.
        """
        path = Path(path)
        header, arrays = _read(path)
        try:
            return cls(
                path=path,
                labels=arrays.pop("image_labels", None),
                table=CodeTable(
                    ids=Ids(arrays.pop("id_bytes"), arrays.pop("id_offsets")),
                    sizes=arrays.pop("sizes"),
                    classes=tuple(header["classes"]),
                    **arrays,
                ),
                model=header["model"],
                model_hash=header["model_hash"],
                n_bits=header["n_bits"],
                n_region_bits=header["n_region_bits"],
                meta=header["meta"],
            )
        except KeyError as error:
            raise StoreError(f"{path}: damaged: no {error}") from error
        except (TypeError, ValueError) as error:
            raise StoreError(f"{path}: damaged: {error}") from error

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes."""
        return self.table.classes


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and memory-mapped datasets of a code file."""
    try:
        with h5py.File(path, "r") as file:
            header = json.loads(file.attrs.get("header", "{}"))
            datasets = {
                name: (file[name].shape, file[name].dtype, file[name].id.get_offset())
                for name in (*LAYOUT, *OFFSETS.values())
                if name in file
            }
        # A plain array over the map: slices of numpy.memmap itself cost several times more.
        file_bytes = np.asarray(np.memmap(path, np.uint8, "r"))
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file") from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        # Which of them h5py raises for damaged bytes depends on where the damage lies.
        raise StoreError(f"{path}: not a readable HDF5 file: {error}") from error
    _check_fields(path, header, {"format": FORMAT, "version": VERSION})
    arrays = {}
    for name, (shape, dtype, offset) in datasets.items():
        expected = dtype_of(name)
        if dtype != expected:
            raise StoreError(f"{path}: {name} must be {expected}, got {dtype}")
        if not math.prod(shape):
            arrays[name] = np.empty(shape, dtype)
        elif offset is None:
            raise StoreError(f"{path}: {name} must be contiguous, without chunks or compression")
        elif offset + math.prod(shape) * dtype.itemsize > len(file_bytes):
            raise StoreError(f"{path}: damaged: {name} goes beyond the end of the file")
        else:
            arrays[name] = np.ndarray(shape, dtype, file_bytes.data, offset)
    return header, arrays


def _check_fields(path: Path, header: dict[str, Any], expected: dict[str, Any]) -> None:
    for field, value in expected.items():
        if header.get(field) != value:
            raise StoreError(f"{path}: {field} must be {value!r}, got {header.get(field)!r}")


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
        StoreError: a file or journal of another model, version or number of bits is there, another
            writer is at work on it, or the disk refuses.
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
                    temporary.replace(self.path)
                    sync_directory(self.path.parent)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        self._journal.clear()
        self.close()

    def _take_up_finished(self) -> None:
        """Goes on from the code file, if there is one."""
        if not self.path.exists():
            return
        header, self._finished = _read(self.path)
        _check_fields(self.path, header, self._model)
        self._packed_ids = frozenset(CodeFile.open(self.path).table.ids)  # checks the file, too
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
        header = json.loads(record)
        _check_fields(self._journal.path, header, self._model)
        try:
            self._agree_on_rows(
                str(self._journal.path),
                {name: tuple(shape) for name, shape in header["rows"].items()},
            )
        except ValueError as error:
            raise StoreError(str(error)) from error
        for image_id, counts, _ in self._journal_images():
            self._count(image_id, counts)

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
        for payload in islice(self._journal.records(), 1, None):  # the first tells of the model
            counts = dict(zip(OFFSETS, _COUNTS.unpack_from(payload), strict=True))
            rows = memoryview(payload)[_COUNTS.size :]
            image_id = decode_id(bytes(rows[: counts["id_byte"]]))
            if image_id not in self._packed_ids:
                yield image_id, counts, rows

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
        row_bytes = {
            name: math.prod(shape) * dtype_of(name).itemsize for name, shape in row_shapes.items()
        }
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
        ValueError: a code has not the promised number of bits, or a label is no class.
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
    return {name: given[name].astype(dtype_of(name)) for name in LAYOUT if name in given}


def _described(row_shapes: Shapes | None) -> str:
    return ", ".join(
        " x ".join((name, *map(str, shape))) for name, shape in (row_shapes or {}).items()
    )
