"""Memory-mapped arrays of a collection, derived from its database and rebuilt when in doubt.

Rows of the database are immutable and numbered in the order in which they were stored, so the
arrays are files that only grow: `follow` appends the rows that are new. What is removed stays in
the arrays and is masked, until so much has gone that they are built anew.

    arrays/state.json            what is valid, replaced in one step after the rows are on the disk
    arrays/<generation>/<name>   one file per array, without header, little-endian

Behind the counts in state.json a file may hold the rest of an append that was killed; the next one
writes over it. A lock keeps two processes from appending at once. Readers need none: what they have
mapped never changes, and is kept by the system when a generation is deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.collection.database import BLOBS, Database, reported, row_width
from regionhash.store import LAYOUT, OFFSETS, Ids, StoreError, dtype_of, encode_id
from regionhash.structures import Codes, CodeTable, Floats64, Ints

ARRAYS_FOLDER = "arrays"
_STATE_FILE = "state.json"
_LOCK_FILE = "lock"
_VERSION = 1
_REBUILT_AT = 0.25  # share of the rows that are removed
_CHUNK = 4096  # rows of the database held at a time

_OWN = {"rows": ((), "<i8"), "taken": ((), "<f8"), "sizes": ((2,), "<i4")}
"""Arrays that every picture has a row of: shape of a row, type."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A collection at one moment. Its arrays never change.

    Attributes:
        table: all pictures of the arrays, removed ones among them.
        rows: (N,) int64, numbers of their rows in the database, ascending.
        taken: (N,) float64, seconds since 1970, NaN where unknown.
        labels: (N, C) uint8, 0/1, the known labels; None where no picture has any.
        alive: (N,) bool, False for removed pictures; None where there are none.
        version: `Database.version` that it stands for.
        generation: of the arrays.
    """

    table: CodeTable
    rows: Ints
    taken: Floats64
    labels: Codes | None
    alive: NDArray[np.bool_] | None
    version: tuple[int, int]
    generation: str

    def __len__(self) -> int:
        """Number of pictures that are not removed."""
        return len(self.rows) if self.alive is None else int(np.count_nonzero(self.alive))

    def places(self, rows: Ints) -> Ints:
        """Where in the arrays the given rows of the database are; those that are not are left out.

        Removed pictures are found as well.
        """
        if not len(self.rows):
            return np.zeros(0, np.int64)
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        found: Ints = at[self.rows[at] == rows]
        return found


class Arrays:
    """The arrays of the collection in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ARRAYS_FOLDER

    def follow(
        self, database: Database, before: Snapshot | None = None, *, compact: bool = False
    ) -> Snapshot:
        """The collection as the database has it now; only what is new is read.

        Args:
            database: of the collection.
            before: an earlier snapshot, returned where nothing has changed.
            compact: leave out removed pictures, at the cost of building the arrays anew if there
                are any.

        Raises:
            StoreError: the disk refuses.
        """
        version = database.version()
        if before is not None and before.version == version:
            if before.alive is None or not compact:
                return before
        else:
            database.read_header()  # the first pictures tell what all consist of
        state = self._state(database)
        if state is None or state["last_row"] < version[0]:
            state = self._append(database)
        snapshot = self._open(database, state, before)
        removed = 0 if snapshot.alive is None else len(snapshot.rows) - len(snapshot)
        if removed and (compact or removed > _REBUILT_AT * len(snapshot.rows)):
            snapshot = self._open(database, self._append(database, rebuild=True), None)
        return snapshot

    def discard(self) -> None:
        """Deletes the arrays, so that the next `follow` builds them anew."""
        with reported(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _state(self, database: Database) -> dict[str, Any] | None:
        """What state.json says; None where it is missing, damaged or of another database."""
        try:
            state: dict[str, Any] = json.loads((self.folder / _STATE_FILE).read_text())
            if (state["version"], state["uuid"]) != (_VERSION, database.header["uuid"]):
                return None
            if state["last_row"] > database.version()[0]:
                return None  # of a later state of the database than this one
            folder = self.folder / state["generation"]
            for name, length in state["bytes"].items():
                if (folder / name).stat().st_size < length:
                    return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return state

    def _append(self, database: Database, *, rebuild: bool = False) -> dict[str, Any]:
        """Writes the rows that the arrays lack, or all; returns the new state."""
        with reported(self.folder), self._locked():
            state = None if rebuild else self._state(database)
            if state is None:
                newest = max((int(own.name) for own in self._generations()), default=0)
                state = {
                    "version": _VERSION,
                    "uuid": database.header["uuid"],
                    "generation": str(newest + 1),
                    "last_row": 0,
                    "last_removal": database.version()[1],
                    "bytes": {},
                }
            folder = self.folder / state["generation"]
            folder.mkdir(exist_ok=True)
            # The last of these rows may have been removed again before it came into the arrays.
            newest_row = database.version()[0]
            with _Appender(folder, state["bytes"]) as files:
                for row, columns in _rows_after(database, state["last_row"]):
                    for name, content in columns.items():
                        files.append(name, content)
                    state["last_row"] = row
                state["last_row"] = max(state["last_row"], newest_row)
                state["bytes"] = files.finish()
            temporary = self.folder / f"{_STATE_FILE}.tmp"
            with temporary.open("w") as file:
                json.dump(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / _STATE_FILE)
            for own in self._generations():
                if own.name != state["generation"]:
                    shutil.rmtree(own, ignore_errors=True)
        return state

    def _generations(self) -> list[Path]:
        return [own for own in self.folder.iterdir() if own.name.isdigit()]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / _LOCK_FILE).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _open(self, database: Database, state: dict[str, Any], before: Snapshot | None) -> Snapshot:
        """Maps the arrays and masks what has been removed since they were begun."""
        folder = self.folder / state["generation"]
        lengths: dict[str, int] = state["bytes"]
        shapes = _shapes(database)

        def mapped(name: str) -> NDArray[Any]:
            shape, dtype = shapes[name]
            length = lengths.get(name, 0)
            if not length:
                return np.empty((0, *shape), dtype)
            rows = np.memmap(folder / name, np.uint8, "r", shape=(length,))
            # A plain array over the map: slices of numpy.memmap itself cost several times more.
            return np.asarray(rows).view(dtype).reshape(-1, *shape)

        with reported(folder):
            arrays = {name: mapped(name) for name in shapes}
        for name in OFFSETS.values():
            if name in arrays and not len(arrays[name]):
                arrays[name] = np.zeros(1, np.int64)
        rows, taken = arrays.pop("rows"), arrays.pop("taken")
        labels = arrays.pop("image_labels", None)
        ids = Ids(arrays.pop("id_bytes"), arrays.pop("id_offsets"))
        try:
            table = CodeTable(ids=ids, classes=tuple(database.header["classes"]), **arrays)
        except ValueError as error:
            raise StoreError(f"{folder}: damaged ({error}); delete {self.folder}") from error
        alive, since = None, state["last_removal"]
        if before is not None and before.generation == state["generation"]:
            since = before.version[1]
            if before.alive is not None:
                alive = np.ones(len(rows), bool)
                alive[: len(before.alive)] = before.alive
        removals = database.read("SELECT seq, row FROM removals WHERE seq > ?", since)
        if removals and len(rows):
            gone = np.array([row for _, row in removals], np.int64)
            at = np.minimum(np.searchsorted(rows, gone), len(rows) - 1)
            at = at[rows[at] == gone]  # others were removed before they came into the arrays
            if len(at):
                alive = np.ones(len(rows), bool) if alive is None else alive
                alive[at] = False
        last_removal = removals[-1][0] if removals else since
        version = (state["last_row"], last_removal)
        return Snapshot(table, rows, taken, labels, alive, version, state["generation"])


def _shapes(database: Database) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape of a row and type of each array of a collection."""
    header = database.header
    shapes = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in _OWN.items()}
    shapes["id_bytes"] = ((), dtype_of("id_bytes"))
    for name, shape in header.get("rows", {}).items():
        if name not in ("id_bytes", "sizes"):
            shapes[name] = (tuple(shape), dtype_of(name))
    if header["classes"]:
        shapes["image_labels"] = ((len(header["classes"]),), dtype_of("image_labels"))
    units = {LAYOUT[name][0] for name in shapes if name in LAYOUT}
    for unit, name in OFFSETS.items():
        if unit in units:
            shapes[name] = ((), dtype_of(name))
    return shapes


def _rows_after(database: Database, row: int) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Number and columns of each picture behind `row`; of offsets the count."""
    shapes = _shapes(database)
    blobs = [name for name in BLOBS if name in shapes]
    query = f"SELECT row, id, taken, height, width{''.join(', ' + name for name in blobs)} "
    query += f"FROM images WHERE row > ? ORDER BY row LIMIT {_CHUNK}"
    none = bytes(len(database.header["classes"]))  # of a picture whose labels are unknown
    counted = {}  # the array whose rows tell how many things of a kind a picture owns
    for unit, name in OFFSETS.items():
        if name in shapes and unit != "id_byte":
            counted[name] = next(own for own in blobs if LAYOUT[own][0] == unit)
    while chunk := database.read(query, row):
        for number, image_id, taken, height, width, *own in chunk:
            columns = dict(zip(blobs, own, strict=True))
            if "image_labels" in columns and columns["image_labels"] is None:
                columns["image_labels"] = none
            encoded = encode_id(image_id)
            counts = {
                name: len(columns[of]) // row_width(of, shapes[of][0])
                for name, of in counted.items()
            }
            counts["id_offsets"] = len(encoded)
            columns |= {name: count.to_bytes(8, "little") for name, count in counts.items()}
            columns["id_bytes"] = encoded
            columns["rows"] = number.to_bytes(8, "little")
            columns["taken"] = np.array(np.nan if taken is None else taken, "<f8").tobytes()
            columns["sizes"] = np.array([height, width], "<i4").tobytes()
            row = number
            yield number, columns


class _Appender:
    """Appends rows to the files of a generation, each behind the bytes that are valid."""

    def __init__(self, folder: Path, valid: dict[str, int]) -> None:
        self._folder = folder
        self._valid = dict(valid)
        self._pending: dict[str, bytearray] = {}
        self._files: dict[str, Any] = {}

    def __enter__(self) -> _Appender:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk has been told of by the write
                file.close()

    def append(self, name: str, rows: bytes) -> None:
        """Adds rows to an array; of offsets, how far the next one lies behind the last."""
        pending = self._pending.setdefault(name, bytearray())
        pending += rows
        if len(pending) >= 1 << 20:
            self._write(name)

    def finish(self) -> dict[str, int]:
        """Writes what is still gathered, waits for the disk; returns the valid bytes of each."""
        for name in self._pending:
            self._write(name)
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return self._valid

    def _write(self, name: str) -> None:
        pending = self._pending[name]
        if name not in self._files:
            path = self._folder / name
            self._files[name] = path.open("r+b" if path.exists() else "x+b", buffering=0)
            self._files[name].truncate(self._valid.get(name, 0))
        file = self._files[name]
        content = bytes(pending)
        if name in OFFSETS.values():
            content = self._offsets(name, file, content)
        file.seek(self._valid.get(name, 0))
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        self._valid[name] = self._valid.get(name, 0) + len(content)
        pending.clear()

    def _offsets(self, name: str, file: Any, counts: bytes) -> bytes:
        """Counts as the offsets that follow the last one in the file."""
        valid = self._valid.get(name, 0)
        last = 0
        if valid:
            file.seek(valid - 8)
            last = int.from_bytes(file.read(8), "little")
        ends = last + np.cumsum(np.frombuffer(counts, "<i8"))
        return (b"" if valid else bytes(8)) + ends.astype("<i8").tobytes()
