"""Memory-mapped arrays of a collection, derived from its database and rebuilt when in doubt.

Rows of the database are immutable and numbered in the order in which they were stored, so the
arrays are files that only grow: `follow` appends the new rows. Removed pictures stay in the arrays
and are masked. Once they are more than a quarter, `compact` copies the others to new arrays; it is
never part of a search, and nobody waits for it.

    arrays/state.json            what is valid, replaced in one step after the rows are on the disk
    arrays/<generation>/<name>   one file per array, without header, little-endian

A file may extend past the byte counts in state.json: the tail of an append that was killed. The
next append overwrites it. A process that appends locks the folder of the collection, since arrays/
may be deleted. Readers need no lock: what they have mapped never changes, and the system keeps it
when a generation is deleted. Names of generations are never reused.

A snapshot is the database at one moment: its version, header, rows and removals are read in one
transaction, and arrays that do not match exactly these rows are not used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from regionhash.collection.database import BLOBS, Database, reported, row_width
from regionhash.collection.packing import PackedBoxes
from regionhash.files.atomic import locked_folder, write_text
from regionhash.store import LAYOUT, OFFSETS, Ids, StoreError, dtype_of, encode_id
from regionhash.structures import Codes, CodeTable, Floats64, Ints, Mask, items_of

ARRAYS_FOLDER = "arrays"
_STATE_FILE = "state.json"
_VERSION = 3
_TRIES = 20  # while the folder is deleted by others
_COMPACTED_AT = 0.25  # share of the rows that are removed
_COPIED = 1 << 16  # pictures at a time

_PER_PICTURE = {"rows": ((), "<i8"), "taken": ((), "<f8"), "sizes": ((2,), "<i4")}
"""Arrays with one row per picture, besides those of the code file: shape of a row, type."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A collection at one moment. Its arrays never change.

    Attributes:
        table: all pictures of the arrays, including removed ones.
        rows: (N,) int64, numbers of their rows in the database, ascending.
        taken: (N,) float64, seconds since 1970, NaN if unknown.
        labels: (N, C) uint8, 0/1, the known labels; None if no picture has any.
        alive: (N,) bool, False for removed pictures; None if there are none.
        version: its `Database.version`.
        generation: generation of the arrays.
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

    @property
    def present(self) -> Mask:
        """(N,) bool, which pictures are not removed."""
        return np.ones(len(self.rows), bool) if self.alive is None else self.alive

    @property
    def n_regions(self) -> Ints:
        """(N,) integers: how many regions each picture has."""
        offsets = self.table.offsets
        counts: Ints = np.zeros(len(self.rows), np.int64) if offsets is None else np.diff(offsets)
        return counts

    def index_of(self, row: int) -> int | None:
        """Index in the arrays of a row of the database, removed or not; None if not there."""
        indices = self.indices_of(np.array([row], np.int64))
        return int(indices[0]) if len(indices) else None

    def indices_of(self, rows: Ints) -> Ints:
        """Indices in the arrays of rows of the database; rows not in the arrays are left out.

        Removed pictures are found too.
        """
        return _indices_of(self.rows, rows)


class Arrays:
    """The arrays of the collection in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ARRAYS_FOLDER

    def follow(self, database: Database, before: Snapshot | None = None) -> Snapshot:
        """The current snapshot of the database; see `at_moment`."""
        with self.at_moment(database, before) as snapshot:
            return snapshot

    @contextmanager
    def at_moment(
        self, database: Database, before: Snapshot | None = None, *, rebuild: bool = False
    ) -> Iterator[Snapshot]:
        """The current snapshot; inside the context, the database is read at that moment.

        Only new rows are read. Arrays that are missing, damaged or of another database are
        rebuilt.

        Args:
            database: the collection's database.
            before: an earlier snapshot, returned if nothing has changed.
            rebuild: rebuild the arrays in any case.

        Raises:
            StoreError: writing fails, or the database is gone or was replaced.
        """
        with database.moment():
            snapshot = None if rebuild else self._ready(database, before)
            if snapshot is not None:
                yield snapshot
                return
        with ExitStack() as stack:
            with locked_folder(self.folder.parent):
                stack.enter_context(database.moment())
                snapshot = self._caught_up(database, before, rebuild)
            yield snapshot

    def _ready(self, database: Database, before: Snapshot | None) -> Snapshot | None:
        """The snapshot of this moment if the arrays are up to date."""
        version = database.version()
        if before is not None and before.version == version:
            return before
        state = self._state(database, version)
        if state is None or state["last_row"] != version[0]:
            return None
        return self._open(database, state, version, before)

    def _caught_up(self, database: Database, before: Snapshot | None, rebuild: bool) -> Snapshot:
        """The snapshot of this moment, with the lock held; missing rows are appended."""
        version = database.version()
        for _ in range(_TRIES):
            try:
                with reported(self.folder):
                    state = None if rebuild else self._state(database, version)
                    state = self._append(database, version, state)
                    snapshot = self._open(database, state, version, before)
                    if snapshot is None:  # damaged
                        state = self._append(database, version, None)
                        snapshot = self._open(database, state, version, None)
            except StoreError as error:
                if not isinstance(error.__cause__, FileNotFoundError | FileExistsError):
                    raise
                continue  # the folder was deleted while it was written, or created
            if snapshot is not None:
                return snapshot
        raise StoreError(f"{self.folder}: is deleted or changed as fast as it is rebuilt")

    def compact(self, database: Database) -> bool:
        """Puts arrays without the removed pictures in the place of the present ones.

        Meanwhile these are read and appended to by others; what is added or removed until the end
        comes with the next `follow`.

        Returns:
            Whether they were replaced: not if nothing was removed, the disk is full, or others have
            replaced them since.

        Raises:
            StoreError: the database is gone or was replaced.
        """
        with database.moment():
            version = database.version()
            state = self._state(database, version)
            snapshot = None if state is None else self._open(database, state, version, None)
        if state is None or snapshot is None or snapshot.alive is None:
            return False
        compacted, in_place = self.folder / uuid4().hex, False
        with suppress(OSError):
            arrays = _mapped(self.folder / snapshot.generation, state["bytes"], _shapes(database))
            lengths = _copy(arrays, np.flatnonzero(snapshot.alive), compacted)
            with locked_folder(self.folder.parent), database.moment():
                in_place = self._replace(database, state, compacted, lengths, begun=version[1])
        if not in_place:
            shutil.rmtree(compacted, ignore_errors=True)
        return in_place

    def _replace(
        self,
        database: Database,
        old: dict[str, Any],
        compacted: Path,
        lengths: dict[str, int],
        begun: int,
    ) -> bool:
        """Makes a copy of the rows of an old state valid, with the lock held, if still wanted."""
        now = self._state(database, database.version())
        if now is None or now["generation"] != old["generation"]:
            return False
        for name in lengths:
            (compacted / name).stat()  # raises OSError if the folder was deleted
        new = now | {
            "generation": compacted.name,
            "last_row": old["last_row"],
            "begun": begun,
            "bytes": lengths,
        }
        write_text(self.folder / _STATE_FILE, json.dumps(new))
        self._remove_all_but(new)
        return True

    def _state(self, database: Database, version: tuple[int, int]) -> dict[str, Any] | None:
        """The content of state.json; None if missing, damaged or not of this database's past."""
        try:
            state: dict[str, Any] = json.loads((self.folder / _STATE_FILE).read_text())
            if (state["version"], state["uuid"]) != (_VERSION, database.header["uuid"]):
                return None
            if state["last_row"] > version[0] or state["last_removal"] > version[1]:
                return None
            if not has_row(database, *state["newest"]):
                return None  # of a copy of the database that has diverged
            folder = self.folder / state["generation"]
            for name, length in state["bytes"].items():
                if (folder / name).stat().st_size < length:
                    return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return state

    def _append(
        self, database: Database, version: tuple[int, int], state: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Appends the missing rows, or writes all without a state; returns the new state."""
        if state is not None and state["last_row"] == version[0]:
            return state
        is_new = state is None
        if state is None:
            state = {
                "version": _VERSION,
                "uuid": database.header["uuid"],
                "generation": uuid4().hex,
                "last_row": 0,
                "begun": version[1],  # rows removed up to here are not in the arrays
                "bytes": {},
            }
        folder = self.folder / state["generation"]
        folder.mkdir(parents=True, exist_ok=True)
        with _Appender(folder, state["bytes"]) as files:
            if missing := _missing_labels(database, state["bytes"]):
                files.append("image_labels", missing)
            for columns in _columns_after(database, state["last_row"]):
                for name, content in columns.items():
                    files.append(name, content)
            lengths = files.finish()
        # The last of these rows may have been removed before it reached the arrays.
        state |= {
            "last_row": version[0],
            "last_removal": version[1],
            "newest": newest_row(database),
            "bytes": lengths,
        }
        write_text(self.folder / _STATE_FILE, json.dumps(state))
        if is_new:
            self._remove_all_but(state)
        return state

    def remove_stale(self, database: Database) -> list[Path]:
        """Removes unfinished arrays of killed processes; returns their folders."""
        with locked_folder(self.folder.parent), database.moment():
            state = self._state(database, database.version())
            return [] if state is None else self._remove_all_but(state)

    def _remove_all_but(self, state: dict[str, Any]) -> list[Path]:
        others = [
            path
            for path in self.folder.iterdir()
            if path.is_dir() and path.name != state["generation"]
        ]
        for path in others:
            shutil.rmtree(path, ignore_errors=True)
        return others

    def _open(
        self,
        database: Database,
        state: dict[str, Any],
        version: tuple[int, int],
        before: Snapshot | None,
    ) -> Snapshot | None:
        """Maps the arrays and masks removed pictures; None if they are gone or damaged."""
        generation: str = state["generation"]
        if before is not None and before.generation != generation:
            before = None
        try:
            arrays = _mapped(self.folder / generation, state["bytes"], _shapes(database))
            rows, taken = arrays.pop("rows"), arrays.pop("taken")
            labels = arrays.pop("image_labels", None)
            ids = Ids(arrays.pop("id_bytes"), arrays.pop("id_offsets"))
            boxes: Any = arrays.pop("boxes", None)
            if boxes is not None and boxes.dtype.kind == "u":
                boxes = PackedBoxes(boxes, arrays["offsets"], arrays["sizes"])
            classes = tuple(database.header["classes"])
            table = CodeTable(ids=ids, classes=classes, boxes=boxes, **arrays)
            _check_lengths(table, rows, taken, labels)
            if before is None:
                _check_values(table, rows)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        alive, since = None, state["begun"]
        if before is not None:
            alive, since = before.alive, before.version[1]
        alive = _without_removed(database, rows, alive, since)
        return Snapshot(table, rows, taken, labels, alive, version, generation)


def without_removed(database: Database, snapshot: Snapshot) -> Snapshot:
    """A snapshot with later removals masked; it still lacks new pictures."""
    alive = _without_removed(database, snapshot.rows, snapshot.alive, snapshot.version[1])
    return replace(snapshot, alive=alive)


def _without_removed(database: Database, rows: Ints, alive: Mask | None, since: int) -> Mask | None:
    """Mask (N,) of rows not removed, given that of an earlier removal; None for all."""
    if alive is not None:
        alive = np.concatenate([alive, np.ones(len(rows) - len(alive), bool)])
    removals = database.read("SELECT row FROM removals WHERE seq > ?", since)
    # Other rows were removed before they reached the arrays.
    gone = _indices_of(rows, np.array([row for (row,) in removals], np.int64))
    if len(gone):
        alive = np.ones(len(rows), bool) if alive is None else alive
        alive[gone] = False
    return alive


def _indices_of(rows: Ints, wanted: Ints) -> Ints:
    """Indices of some rows among those of the arrays; others are left out."""
    indices, found = places_among(rows, wanted)
    return indices[found]


def places_among(rows: Ints, wanted: Ints) -> tuple[Ints, Mask]:
    """Indices (n,) of numbers (n,) among ascending rows (N,), and which of them are there."""
    places = np.searchsorted(rows, wanted)
    found = places < len(rows)
    found[found] = rows[places[found]] == wanted[found]
    return places, found


def newest_row(database: Database) -> list[Any]:
    """Identifies the last row, to distinguish it from the row of that number in a copy."""
    for found in database.read("SELECT row, added FROM images ORDER BY row DESC LIMIT 1"):
        return list(found)
    return []


def has_row(database: Database, *newest: Any) -> bool:
    """Whether the database has, or had, the row that `newest_row` identifies."""
    if not newest:
        return True
    row, *_, added = newest  # earlier versions have the id between them
    for found in database.read("SELECT added FROM images WHERE row = ?", row):
        return bool(found == (added,))
    return bool(database.read("SELECT 1 FROM removals WHERE row = ?", row))


def wants_compaction(snapshot: Snapshot) -> bool:
    """Whether enough has been removed to compact the arrays."""
    removed = 0 if snapshot.alive is None else len(snapshot.rows) - len(snapshot)
    return removed > _COMPACTED_AT * len(snapshot.rows)


def _copy(arrays: dict[str, NDArray[Any]], rows: Ints, folder: Path) -> dict[str, int]:
    """Writes the pictures at `rows` of some arrays to a new folder; the bytes of each file."""
    folder.mkdir()
    with _Appender(folder, {}) as files:
        for first in range(0, len(rows), _COPIED):
            for name, content in _columns_at(arrays, rows[first : first + _COPIED]).items():
                files.append(name, content.tobytes())
        return files.finish()


def _columns_at(arrays: dict[str, NDArray[Any]], rows: Ints) -> dict[str, NDArray[Any]]:
    """What the pictures at `rows` have in each array; counts for offsets."""
    bags = {unit: items_of(arrays[name], rows) for unit, name in OFFSETS.items() if name in arrays}
    columns = {OFFSETS[unit]: np.diff(bounds) for unit, (_, bounds) in bags.items()}
    for name, array in arrays.items():
        unit = LAYOUT[name][0] if name in LAYOUT else "image"
        if name not in columns:
            columns[name] = array[bags[unit][0] if unit in bags else rows]
    return columns


def _mapped(
    folder: Path, lengths: dict[str, int], shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
) -> dict[str, NDArray[Any]]:
    """The arrays of a generation, memory-mapped up to the bytes that are valid."""
    arrays = {}
    for name, (shape, dtype) in shapes.items():
        length = lengths.get(name, 0)
        if length:
            rows = np.memmap(folder / name, np.uint8, "r", shape=(length,))
            # A plain array over the map: slices of numpy.memmap itself cost several times more.
            arrays[name] = np.asarray(rows).view(dtype).reshape(-1, *shape)
        elif name in OFFSETS.values():
            arrays[name] = np.zeros(1, np.int64)
        else:
            arrays[name] = np.empty((0, *shape), dtype)
    return arrays


def _check_lengths(table: CodeTable, rows: Ints, taken: Floats64, labels: Codes | None) -> None:
    """Raises ValueError unless every array has a row for each picture."""
    for array in (rows, taken, labels):
        if array is not None and len(array) != len(table):
            raise ValueError(f"{len(table)} pictures, got {len(array)}")


def _check_values(table: CodeTable, rows: Ints) -> None:
    """Raises ValueError for values that a search cannot handle."""
    if (np.diff(rows) <= 0).any():
        raise ValueError("rows must rise")
    for labels in (table.labels, table.categories):
        if labels is not None and not -1 <= labels.min(initial=0) <= labels.max(initial=0) < max(
            1, len(table.classes)
        ):
            raise ValueError("a label is no class")


def _shapes(database: Database) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape of a row and type of each array of a collection."""
    header = database.header
    shapes = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in _PER_PICTURE.items()}
    shapes["id_bytes"] = ((), dtype_of("id_bytes"))
    for name, shape in header.get("rows", {}).items():
        if name not in ("id_bytes", "sizes"):
            shapes[name] = (tuple(shape), database.types[name])
    if header.get("labelled"):
        shapes["image_labels"] = ((len(header["classes"]),), database.types["image_labels"])
    units = {LAYOUT[name][0] for name in shapes if name in LAYOUT}
    for unit, name in OFFSETS.items():
        if unit in units:
            shapes[name] = ((), dtype_of(name))
    return shapes


def _columns_after(database: Database, row: int) -> Iterator[dict[str, bytes]]:
    """What each intact picture after `row` adds to the arrays; counts for offsets."""
    shapes = _shapes(database)
    blobs = [name for name in BLOBS if name in shapes]
    no_labels = bytes(len(database.header["classes"]))  # of a picture whose labels are unknown
    counted = {}  # offsets -> an array with one row per item, to count the items of a picture
    for unit, name in OFFSETS.items():
        if name in shapes and unit != "id_byte":
            counted[name] = next(blob for blob in blobs if LAYOUT[blob][0] == unit)
    for number, stored in database.rows(row):
        if stored is None:
            continue
        columns = {name: stored[name] for name in blobs}
        if "image_labels" in columns and columns["image_labels"] is None:
            columns["image_labels"] = no_labels
        counts = {
            name: len(columns[of]) // row_width(database.types[of], shapes[of][0])
            for name, of in counted.items()
        }
        encoded = encode_id(stored["id"])
        counts["id_offsets"] = len(encoded)
        columns |= {name: count.to_bytes(8, "little") for name, count in counts.items()}
        columns["id_bytes"] = encoded
        columns["rows"] = number.to_bytes(8, "little")
        taken = np.nan if stored["taken"] is None else stored["taken"]
        columns["taken"] = np.array(taken, "<f8").tobytes()
        columns["sizes"] = np.array([stored["height"], stored["width"]], "<i4").tobytes()
        yield columns


def _missing_labels(database: Database, lengths: dict[str, int]) -> bytes:
    """The unknown labels of pictures that were in the arrays before any picture had some."""
    if not database.header.get("labelled"):
        return b""
    n_images = lengths.get("rows", 0) // np.dtype(_PER_PICTURE["rows"][1]).itemsize
    wanted = n_images * len(database.header["classes"])
    return bytes(wanted - lengths.get("image_labels", 0))


class _Appender:
    """Appends rows to the files of a generation, after their valid bytes."""

    def __init__(self, folder: Path, valid: dict[str, int]) -> None:
        self._folder = folder
        self._valid = dict(valid)
        self._pending: dict[str, bytearray] = {}
        self._files: dict[str, Any] = {}

    def __enter__(self) -> _Appender:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # the write has already reported a full disk
                file.close()

    def append(self, name: str, rows: bytes) -> None:
        """Adds rows to an array; for offsets, the counts between them."""
        pending = self._pending.setdefault(name, bytearray())
        pending += rows
        if len(pending) >= 1 << 20:
            self._write(name)

    def finish(self) -> dict[str, int]:
        """Writes pending rows and syncs to disk; returns the valid bytes of each file."""
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
        """Turns counts into the offsets that follow the last one in the file."""
        valid = self._valid.get(name, 0)
        last = 0
        if valid:
            file.seek(valid - 8)
            last = int.from_bytes(file.read(8), "little")
        ends = last + np.cumsum(np.frombuffer(counts, "<i8"))
        return (b"" if valid else bytes(8)) + ends.astype("<i8").tobytes()
