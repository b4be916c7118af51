"""Codes that can be searched, read from a code file as memory-mapped arrays."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import h5py
import numpy as np
from numpy.typing import NDArray

from regionhash.files import strict_json
from regionhash.files.text import shown
from regionhash.store.layout import (
    LAYOUT,
    OFFSETS,
    StoreError,
    _columns,
    check_ranges,
    checked_header,
    decode_id,
    dtype_of,
    fits,
    row_shapes_of,
)
from regionhash.structures import Codes, CodeTable, Ints, Mask

HDF5_ROOM = 1 << 20  # more than HDF5 needs for its own structures, which take some 10 KiB
_NOT_OF_TABLE = ("id_bytes", "id_offsets", "sizes", "image_labels")  # as they are
_HEAP = b"GCOL\1\0\0\0"  # a global heap: its size follows, then objects of 16 bytes and content
_MAX_OBJECTS = 10_000  # in all heaps; the one that is written here has two
_SIZE, _HEAP_OBJECT = struct.Struct("<Q"), struct.Struct("<H6xQ")


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


@dataclass(frozen=True, slots=True, eq=False)
class CodeSet:
    """Codes that can be searched: of a code file, or of a collection at one moment.

    Arrays are memory-mapped and read-only.

    Attributes:
        path: the file.
        table: codes, regions and ids of the N pictures.
        model: name of the model that made the codes.
        model_hash: hash of its weights: codes of different hashes cannot be compared.
        n_bits: bits of an image code, 0 if there is none; n_region_bits: bits of a region code.
        meta: where the codes come from, as given to the writer.
        labels: (N, C) uint8, 0/1, the known labels of the pictures; None where none were given.
        alive: (N,) bool, False for pictures of a collection that were removed but are still in the
            arrays; None if there are none.
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
        return cls._of(path, *read_datasets(path))

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


def read_datasets(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
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
    header = checked_header(path, content)
    wanted = row_shapes_of(header)
    arrays = {}
    for name, (shape, dtype, offset) in datasets.items():
        expected = dtype_of(name)
        if dtype != expected:
            raise StoreError(f"{path}: {name} must be {expected}, got {dtype}")
        if not fits(shape[1:], wanted.get(name, ())):
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
        start = file.read(HDF5_ROOM + strict_json.MAX_BYTES)
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
