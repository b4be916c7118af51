"""Writes a code file through a journal, and packs it in one pass."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from regionhash.files import strict_json
from regionhash.files.atomic import check_folder, sync_directory
from regionhash.store.codeset import HDF5_ROOM, CodeSet, read_datasets
from regionhash.store.journal import Journal
from regionhash.store.layout import (
    FORMAT,
    LAYOUT,
    OFFSETS,
    VERSION,
    Shapes,
    StoreError,
    check_fields,
    checked_header,
    checked_row_shapes,
    decode_id,
    described,
    dtype_of,
    reported,
    rows_of,
)
from regionhash.structures import EncodedImage

_COUNTS = struct.Struct(f"<{len(OFFSETS)}I")  # the image's rows of each kind in OFFSETS
_CHUNK_BYTES = 1 << 20  # of each dataset held in memory while packing

_ALIGNMENT = 64  # of each dataset in the file, in bytes: a cache line


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
        room = HDF5_ROOM + len(header)
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
        """Writes what is still pending and waits for the disk."""
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
    file. Killed at any moment, a new writer on the same path resumes where the last one stopped:

        with CodeFileWriter("codes.h5", model_hash=..., ...) as writer:
            for image_id in ids:
                if image_id not in writer.done:
                    writer.add(image_id, encode(image_id))
            writer.finish()

    A finished code file of the same model can be extended in the same way. Without `finish`, the
    journal stays for the next writer.

    Args:
        path: the code file.
        model_hash: hash of the model's weights.
        model_name: name of the model, for people.
        classes: names of the C classes.
        n_bits: bits of an image code, 0 if the model has none.
        n_region_bits: bits of a region code, 0 if the model has none.
        keep_features: store the features of regions too, see `rows_of`.
        meta: where the codes come from; anything that JSON can hold. The file keeps the
            value of the writer that finished it.

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
        keep_features: bool = False,
        meta: dict[str, Any] | None = None,
    ) -> None:
        for name, bits in (("n_bits", n_bits), ("n_region_bits", n_region_bits)):
            if bits < 0 or bits % 8:
                raise ValueError(f"{name} must be a multiple of 8, got {bits}")
        self.path = Path(path)
        self.done: set[str] = set()
        self._keep_features = keep_features
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
        checked_header(self.path, self._header.encode())  # what it refuses must not be written
        self._finished: dict[str, NDArray[Any]] = {}  # datasets of the file that is there
        self._packed_ids: frozenset[str] = frozenset()
        self._row_shapes: Shapes | None = None  # known from the first image on
        self._n_new = dict.fromkeys(("image", *OFFSETS), 0)  # rows in the journal
        with reported(self.path, "cannot write"):
            check_folder(self.path)
        self._journal = Journal(self.path.with_name(self.path.name + ".part"))
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
        rows = rows_of(image_id, encoded, labels, self._model, keep_features=self._keep_features)
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
        header, self._finished = read_datasets(self.path)
        check_fields(self.path, header, self._model)
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
            check_fields(self._journal.path, header, self._model)
            row_shapes = checked_row_shapes(header, self._model)
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
                f"{described(self._row_shapes)}, got {described(row_shapes)}"
            )
        self._row_shapes = row_shapes

    def _journal_images(self) -> Iterator[tuple[str, dict[str, int], memoryview]]:
        """Id, row counts and bytes of the rows of each image in the journal.

        Left out are images that the code file holds already: a kill came after the file was put in
        its place and before the journal was emptied.
        """
        row_bytes = self._row_bytes()
        for payload in islice(self._journal.records(), 1, None):  # the first describes the model
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
