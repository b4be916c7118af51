"""The database of a collection: SQLite, one row per picture, the source of truth.

The codes of a row never change, only the path of its file: a picture that is encoded again gets a
new row, and row numbers are never reused. So a reader that knows the last row and the last removal
it has seen needs only what came after (`regionhash.collection.arrays`). Removals are kept as row
numbers.

SQLite's write-ahead log makes each transaction atomic, whenever the process is killed, and lets
readers read while one writer writes. What belongs together is read inside one `moment`, and what a
change depends on is read inside its `transaction`.

Each row and both copies of the header carry a checksum. A row that fails it is left out of all
reads; `check` reports it.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sqlite3
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import time
from typing import Any, AnyStr

import numpy as np
from numpy.typing import NDArray

from regionhash.collection.folders import (
    FOLDERS,
    FOLDERS_FROM,
    PICTURES,
    ROW_OF_ID,
    ROW_OF_PATH,
    parted,
)
from regionhash.collection.packing import Types, packed, types_of
from regionhash.files.names import absolute, shown_name
from regionhash.precision import PRECISIONS
from regionhash.store import LAYOUT, StoreError, row_shapes_of

_GIVEN_BACK = 0.25  # share of the pages from which on they are given back
DATABASE_FILE = "collection.db"
UPLOADS_FOLDER = "uploads"
FORMAT = "regionhash collection"
VERSION = 4
_WITHOUT_USER_VERSION = 2  # the last version whose files do not say it in `PRAGMA user_version`

OF_MODEL = ("model", "model_hash", "classes", "n_bits", "n_region_bits")
"""Fields of the header that describe the model; a code file's header has them too."""

BLOBS = tuple(name for name in LAYOUT if name not in ("id_bytes", "sizes"))
"""Columns of `images` that hold one picture's rows of a dataset of the code file."""

_FACTS = (
    "row",
    "id",
    "name",
    "path",
    "source",
    "hash",
    "n_bytes",
    "mtime_ns",
    "taken",
    "added",
    "height",
    "width",
)
COLUMNS = (*_FACTS, *BLOBS)
"""Columns of `pictures` that the checksum of a row covers, in this order."""

_SECONDS_TO_WAIT = 60.0  # for another writer's transaction, which holds one batch
_CHUNK = 4096  # rows held at a time

_SCHEMA = f"""{FOLDERS}
CREATE TABLE about (header TEXT NOT NULL, checksum INTEGER);  -- two rows, alike
CREATE TABLE sources (
    source INTEGER PRIMARY KEY,
    inputs TEXT NOT NULL UNIQUE,   -- JSON list, absolute: what was given to index or add
    place TEXT NOT NULL            -- JSON: regionhash.data.inputs.Source
);
CREATE TABLE images (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT,                       -- NULL if it ends with `path`, the rest in its folder
    path BLOB,                     -- as the disk has it, from its folder, whose place is absolute,
                                   -- or, of uploads, from the folder of the collection; NULL of a
                                   -- picture without file
    folder INTEGER REFERENCES folders,
    source INTEGER REFERENCES sources,
    hash BLOB,                     -- SHA-256 of the file
    n_bytes INTEGER,
    mtime_ns INTEGER,
    taken REAL,                    -- seconds since 1970: of EXIF, or of the file
    added REAL NOT NULL,
    height INTEGER NOT NULL,
    width INTEGER NOT NULL,
    {", ".join(f"{name} BLOB" for name in BLOBS)},
    name TEXT,                     -- the id that was asked for; NULL of a picture with a file
    checksum INTEGER,              -- CRC-32 of `COLUMNS`, with whole id and path
    UNIQUE (folder, path)
);
CREATE UNIQUE INDEX images_by_id ON images (id) WHERE id IS NOT NULL;
CREATE INDEX images_by_hash ON images (substr(hash, 1, 8));
CREATE INDEX images_without_file ON images (name) WHERE path IS NULL;
CREATE TABLE removals (seq INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL);
CREATE TRIGGER removed AFTER DELETE ON images BEGIN
    INSERT INTO removals (row) VALUES (old.row);
END;
"""

WITHOUT_FILE = (
    "row IN (SELECT row FROM images INDEXED BY images_without_file WHERE name = ? AND path IS NULL)"
)
"""The condition that finds the pictures without a file by their name.

By itself, SQLite takes an index of paths, in which all pictures without a file are alike.
"""

OF_HASH = "substr(hash, 1, 8) = substr(?1, 1, 8) AND hash = ?1"
"""The condition that finds rows by their hash: the index holds its first bytes."""

Place = tuple[int, int]

_KEPT_OPEN: list[sqlite3.Connection] = []
"""Connections that must not be closed, see `Database.close`."""

Columns = dict[str, Any]
"""One row of `images` by column."""


class CollectionReplacedError(StoreError):
    """Another collection has replaced the opened one; it must be reopened."""


class CollectionMissingError(StoreError):
    """There is no collection at this path."""


class HeaderError(StoreError):
    """Both copies of a database's header are damaged."""


@dataclass(frozen=True, slots=True)
class FileState:
    """Identifies the file that was encoded.

    Attributes:
        path: as `os.fsencode` gives it, absolute, or relative to the folder of the collection; None
            for a picture without a file.
        hash: SHA-256 of the bytes that were encoded; None if unknown.
        n_bytes: size of the file.
        mtime_ns: time of its last change; None if it was read so soon after that a later change
            might have the same time.
        taken: when the picture was taken, in seconds since 1970; None if unknown.
    """

    path: bytes | None = None
    hash: bytes | None = None
    n_bytes: int | None = None
    mtime_ns: int | None = None
    taken: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class NewImage:
    """A picture to store: the requested id, its file, its source, and its `rows_of`.

    If it is renewed, its codes replace those of the same bytes if they differ.
    """

    id: str
    file: FileState
    source: int | None
    rows: Mapping[str, NDArray[Any]]
    renewed: bool = False


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turns an error of SQLite or the operating system into a StoreError about `path`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: {_in_a_line(error)}") from error
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror or error}") from error


def _in_a_line(error: sqlite3.Error) -> str:
    """SQLite's message, which may quote a damaged schema of several lines."""
    return " ".join(str(error).split())


class Database:
    """The database of one collection. One object serves one thread.

    A database of version 1 is migrated to version 2, and one of version 2 keeps its wider types.

    Args:
        path: the file, which must exist; see `create`.

    Attributes:
        header: format, version, uuid, model, model_hash, classes, n_bits, n_region_bits, meta; once
            there is a picture also "rows", the shape of one row of each part; "keeps_floats" if
            features of regions are kept beside their codes.
        types: type of each part, see `regionhash.collection.packing`.

    Raises:
        StoreError: the file is missing, damaged, or of another format or version.
        HeaderError: only the header is damaged; `regionhash.collection.checking` can rebuild it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = _place(path)
        self.header: dict[str, Any] = {}
        self.types: Types = {}
        self._about: list[Any] = []  # what the header was read from
        self._last_row: int | None = None  # of this transaction
        with reported(path):
            self._connection = _connect(path)
            try:
                version = _read_header(_about(self._connection), path)["version"]
                _add_columns(self._connection)
                if version == 1:
                    _migrate(self._connection, path)
                self.read_header()
                self.check_current()
            except sqlite3.DatabaseError as error:
                self.close()
                reason = f"not the database of a collection: {_in_a_line(error)}"
                raise StoreError(f"{path}: {reason}") from error
            except BaseException:
                self.close()
                raise

    @classmethod
    def create(cls, path: Path, model: Mapping[str, Any]) -> Database:
        """Creates a database, or opens an existing one of the same model.

        Args:
            path: the file.
            model: "model", "model_hash", "classes", "n_bits", "n_region_bits" and "meta".

        Raises:
            StoreError: the existing one is of another model, or writing fails.
        """
        header = {"format": FORMAT, "version": VERSION, "uuid": uuid.uuid4().hex, **model}
        with reported(path), closing(_connect(path)) as connection, _transaction(connection):
            if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _statements(_SCHEMA):
                    connection.execute(statement)
                # If both copies of the header are lost, these tell how to read the rows.
                precision = PRECISIONS.index(header["meta"].get("precision", PRECISIONS[0]))
                connection.execute(f"PRAGMA user_version = {VERSION}")
                connection.execute(f"PRAGMA application_id = {precision}")
                _write_header(connection, header)
        database = cls(path)
        for field in OF_MODEL:
            if database.header[field] != header[field]:
                database.close()
                raise StoreError(
                    f"{path}: {field} must be {database.header[field]!r}, got {header[field]!r}"
                )
        return database

    def close(self) -> None:
        """Closes the connection.

        If another database has taken its path, the connection stays open as long as the process
        lives: SQLite would delete the other one's write-ahead log, which it finds by name.
        """
        with suppress(StoreError):
            if _place(self.path) != self._place:
                _KEPT_OPEN.append(self._connection)
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
                return
        self._connection.close()

    def __del__(self) -> None:
        """Closes the connection of a thread that has ended."""
        if hasattr(self, "_connection") and self._connection not in _KEPT_OPEN:
            self.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def place_of(self, path: bytes) -> bytes:
        """The absolute path of a file, given the `path` in its row."""
        return os.path.join(os.fsencode(self.path.parent.absolute()), path)  # noqa: PTH118 (bytes)

    def path_of(self, file: Path) -> bytes:
        """The `path` of a file in its row, the inverse of `place_of`."""
        uploads = self.path.parent / UPLOADS_FOLDER
        if file.parent.name == UPLOADS_FOLDER and file.parent.resolve() == uploads.resolve():
            return os.fsencode(f"{UPLOADS_FOLDER}/{file.name}")
        return os.fsencode(absolute(file))

    def check_current(self) -> None:
        """Checks that the file at `path` is still the one that was opened.

        Raises:
            CollectionReplacedError: it is another file.
            CollectionMissingError: it is gone.
        """
        if _place(self.path) != self._place:
            raise self.replaced()

    def replaced(self) -> CollectionReplacedError:
        """The error to raise if another collection has replaced this one."""
        return CollectionReplacedError(f"{self.path}: replaced by another collection; reopen it")

    @property
    def identity(self) -> tuple[Place, str]:
        """Distinguishes this database from all others, even from a copy."""
        return self._place, str(self.header["uuid"])

    @property
    def keeps_floats(self) -> bool:
        """Whether features of regions are kept beside their codes."""
        return bool(self.header.get("keeps_floats"))

    def read_header(self) -> None:
        """Reads the header again if another writer has changed it."""
        with reported(self.path):
            about = _about(self._connection)
        if about == self._about:
            return
        header = _read_header(about, self.path)
        if self.header and header["uuid"] != self.header["uuid"]:
            raise self.replaced()
        self.header, self.types, self._about = header, types_of(header), about

    # Reading

    @contextmanager
    def moment(self) -> Iterator[None]:
        """Inside, all reads see one moment of the database, the header included.

        Raises:
            StoreError: see `check_current`.
        """
        if self._connection.in_transaction:
            yield
            return
        self.check_current()
        with reported(self.path):
            self._connection.execute("BEGIN")  # the first read fixes the moment
        try:
            self.read_header()
            yield
        finally:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def read(self, query: str, *values: Any) -> list[Any]:
        """All rows of a SELECT."""
        with reported(self.path):
            return self._connection.execute(query, values).fetchall()

    def version(self) -> tuple[int, int]:
        """Numbers of the last row and of the last removal ever made."""
        counts = dict(self.read("SELECT name, seq FROM sqlite_sequence"))
        last_row, last_removal = counts.get("images", 0), counts.get("removals", 0)
        with suppress(StoreError):  # a damaged page; the sequences should suffice
            last_row = max(last_row, self.read("SELECT max(row) FROM images")[0][0] or 0)
        with suppress(StoreError):
            last_removal = max(last_removal, self.read("SELECT max(seq) FROM removals")[0][0] or 0)
        return last_row, last_removal

    def count(self) -> int:
        """Number of pictures."""
        return int(self.read("SELECT count(*) FROM images")[0][0])

    def rows(
        self, after: int = 0, *, at_a_time: int = _CHUNK
    ) -> Iterator[tuple[int, Columns | None]]:
        """Number and columns of each row after `after`, in order; columns are None if damaged."""
        last = self.version()[0]
        while after < last:
            try:
                chunk = self._connection.execute(
                    f"{_SELECT} WHERE row > ? ORDER BY row LIMIT ?", (after, at_a_time)
                ).fetchall()
            except sqlite3.OperationalError as error:
                raise StoreError(f"{self.path}: {_in_a_line(error)}") from error
            except sqlite3.DatabaseError:  # a damaged page: only its rows cannot be read
                numbers = range(after + 1, min(after + at_a_time, last) + 1)
                yield from self._one_by_one(numbers)
                after = numbers[-1]
                continue
            if not chunk:
                return
            for found in chunk:
                columns, intact = _columns(found)
                after = columns["row"]
                yield after, columns if intact else None

    def _one_by_one(self, numbers: Iterable[int]) -> Iterator[tuple[int, Columns | None]]:
        for number in numbers:
            try:
                found = self._connection.execute(f"{_SELECT} WHERE row = ?", (number,)).fetchone()
            except sqlite3.DatabaseError:
                yield number, None
                continue
            if found:
                columns, intact = _columns(found)
                yield number, columns if intact else None

    def rows_at(self, path: str | Path, after: int = 0) -> list[int]:
        """Numbers of rows above `after` whose file is at a path or below it."""
        wanted = os.fsencode(absolute(path)).rstrip(b"/")
        uploads = self.place_of(UPLOADS_FOLDER.encode())
        places = [wanted]
        if (uploads + b"/").startswith(wanted + b"/"):
            places.append(UPLOADS_FOLDER.encode())
        elif wanted.startswith(uploads + b"/"):
            places.append(UPLOADS_FOLDER.encode() + wanted[len(uploads) :])
        rows = []
        for place in places:
            low, high = place + b"/", place + b"0"
            rows += [row for (row,) in self.read(ROW_OF_PATH, *parted(place), place) if row > after]
            rows += self._rows_in_folders("place", low, high, after)
            whole = "folder IS NULL AND path >= ? AND path < ?"
            rows += self.rows_where(whole, low, high, after=after)
        return rows

    def rows_with_ids_below(self, name: str, after: int) -> list[int]:
        """Numbers of rows above `after` whose id is below a name, as a path is below a folder."""
        low, high = name + "/", name + "0"
        rows = self._rows_in_folders("ids", low, high, after)
        return rows + self.rows_where("id >= ? AND id < ?", low, high, after=after)

    def _rows_in_folders(self, column: str, low: AnyStr, high: AnyStr, after: int) -> list[int]:
        """Numbers of rows above `after` of the folders with a column from `low` to below `high`."""
        found = self.read(
            f"SELECT folder FROM folders WHERE {column} >= ? AND {column} < ?", low, high
        )
        if not found:
            return []
        numbers = json.dumps([number for (number,) in found])
        return self.rows_where("folder IN (SELECT value FROM json_each(?))", numbers, after=after)

    def rows_where(self, condition: str, *values: Any, after: int) -> list[int]:
        """Numbers of rows of `images` above `after` that meet a condition.

        Without an index if only new rows are asked for: an index is read from its beginning.
        """
        how = "NOT INDEXED" if after else ""
        query = f"SELECT row FROM images {how} WHERE row > ? AND ({condition})"
        return [row for (row,) in self.read(query, after, *values)]

    def damaged(self) -> list[Columns]:
        """Columns of damaged rows, as far as they can be read."""
        damaged = []
        for row in [row for row, columns in self.rows() if columns is None]:
            with suppress(StoreError):  # on a damaged page
                damaged += self.read(f"{_SELECT} WHERE row = ?", row)
        return [_columns(found)[0] for found in damaged]

    def one(self, where: str, *values: Any) -> tuple[Columns, bool] | None:
        """Columns of a row that meets a condition, and whether it is intact; None without one."""
        for found in self.read(f"{_SELECT} WHERE {where} LIMIT 1", *values):
            return _columns(found)
        return None

    def of_path(self, path: bytes | None) -> tuple[Columns, bool] | None:
        """Columns of the row with a path, and whether it is intact; None if there is none."""
        return None if path is None else self.one(f"row = ({ROW_OF_PATH})", *parted(path), path)

    def of_id(self, image_id: str) -> tuple[Columns, bool] | None:
        """Columns of the row with an id, and whether it is intact; None if there is none."""
        return self.one(f"row = ({ROW_OF_ID})", *_parts_of_id(image_id), image_id)

    def intact(self, where: str, *values: Any) -> Columns | None:
        """Columns of a row that meets a condition; None if there is none or it is damaged."""
        found = self.one(where, *values)
        return found[0] if found and found[1] else None

    # Changing

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commits everything executed inside, or nothing if it raises.

        Other writers wait meanwhile.

        Raises:
            StoreError: writing fails, another writer holds the database for a minute, or see
                `check_current`.
        """
        try:
            with reported(self.path), _transaction(self._connection):
                self._last_row = None
                self.check_current()
                self.read_header()
                yield self._connection
        except BaseException:
            self._about = []  # the header may hold what was rolled back
            with suppress(StoreError):
                self.read_header()
            raise

    def source(self, inputs: Sequence[str], place: Mapping[str, str]) -> int:
        """The number of a source, which is stored if it is new."""
        text = json.dumps(list(inputs))
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO sources (inputs, place) VALUES (?, ?)",
                (text, json.dumps(place)),
            )
            query = "SELECT source FROM sources WHERE inputs = ?"
            return int(connection.execute(query, (text,)).fetchone()[0])

    def store(
        self, images: Iterable[NewImage], *, unless: Callable[[NewImage], bool] = lambda _: False
    ) -> int:
        """Stores pictures in one transaction; returns how many were new or changed.

        Two pictures are the same if they have the same file; or no file, and the same name in a
        data set, or else the same name and the same codes. Then the new one replaces the old one,
        or is left out if it was made of the same bytes and is not renewed. If another picture has
        the id, the new one gets a free one; see `_free_id`.

        Args:
            images: the pictures.
            unless: called inside the transaction; true for a picture not to be stored after all.

        Raises:
            ValueError: a picture lacks parts that the others have, or has others.
            StoreError: see `transaction`.
        """
        with self.transaction():
            return sum(self.put(image) is not None for image in images if not unless(image))

    def put(self, image: NewImage) -> int | None:
        """Stores a picture, inside a transaction; returns its row, None if already stored."""
        self._agree_on_parts(image)
        rows = packed(image.rows, self.types)
        height, width = rows["sizes"][0].tolist()
        taken = image.file.taken
        content = {
            "height": height,
            "width": width,
            "added": time(),
            "taken": None if taken is None or math.isnan(taken) else float(taken),
        }
        for name in BLOBS:
            content[name] = rows[name].tobytes() if name in rows else None
        old = self._same_picture(image, content)
        if old is not None and old[1] and _is_up_to_date(old[0], image):
            same = all(old[0][name] == content[name] for name in BLOBS if name in content)
            if same or not image.renewed:
                return None
        return self._replace(old, image.id, content | _file_columns(image.file, image.source))

    def set_file(self, file: FileState, source: int | None) -> bool:
        """Records the state of a file; returns False if the stored codes are not of its bytes."""
        with self.transaction() as connection:
            found = self.of_path(file.path)
            if not found or not found[1] or found[0]["hash"] not in (None, file.hash):
                return False
            known = found[0] | _file_columns(file, source)
            known["checksum"] = checksum(known)
            assignments = ", ".join(f"{name} = :{name}" for name in _CHANGEABLE)
            connection.execute(f"UPDATE images SET {assignments} WHERE row = :row", known)
            return True

    def take_codes(
        self, row: int, image_id: str, file: FileState, source: int | None, *, moved: bool
    ) -> bool:
        """Stores the picture in a file with the codes of a row of the same bytes.

        Args:
            row: the row with the codes.
            image_id: the requested id.
            file: the file.
            source: number of the picture's source.
            moved: the row is this picture, and its old file is gone.

        Returns:
            Whether the picture is stored; False if the row has changed meanwhile.
        """
        with self.transaction():
            twin = self.intact("row = ? AND hash = ?", row, file.hash)
            replaced = self.of_path(file.path)
            if replaced and replaced[1] and replaced[0]["hash"] == file.hash:
                return True  # another writer was faster
            if twin is None:
                return False
            old = [replaced[0]["row"]] if replaced else []
            self.delete([*old, *([row] if moved else [])])
            self._insert(image_id, twin | _file_columns(file, source))
            return True

    def remove(self, rows: Iterable[int]) -> int:
        """Removes the pictures of some rows in one transaction; returns how many there were."""
        with self.transaction():
            return self.delete(rows)

    def remove_gone(self, files: Iterable[tuple[int, bytes]]) -> int:
        """Removes pictures by row and path, except those found elsewhere meanwhile."""
        with self.transaction() as connection:
            return connection.executemany(
                "DELETE FROM images "
                "WHERE row = (SELECT row FROM pictures WHERE row = ? AND path = ?)",
                files,
            ).rowcount

    def restore(self, columns: Columns) -> bool:
        """Restores the columns of a damaged row; they must match its checksum.

        If its picture has been stored again meanwhile, removes the row and returns False.
        """
        row, path, image_id = columns["row"], columns["path"], columns["id"]
        assignments = ", ".join(f"{name} = :{name}" for name in _KEPT)
        with self.transaction() as connection:
            same = [] if path is None else self.read(ROW_OF_PATH, *parted(path), path)
            same += self.read(ROW_OF_ID, *_parts_of_id(image_id), image_id)
            if any(other != row for (other,) in same):
                self.delete([row])
                return False
            kept = columns | self._kept(image_id, path)
            connection.execute(f"UPDATE images SET {assignments} WHERE row = :row", kept)
            return True

    def header_is_whole(self) -> bool:
        """Whether both copies of the header exist and are equal."""
        self.read_header()
        return len(self._about) == _COPIES and len(set(self._about)) == 1

    def rewrite_header(self) -> None:
        """Rewrites all copies of the header as it was read."""
        with self.transaction() as connection:
            _write_header(connection, self.header)

    def reindex(self) -> None:
        """Rebuilds all indices."""
        with self.transaction() as connection:
            connection.execute("REINDEX")

    def give_back_space(self) -> int:
        """Gives the space of removed rows back to the disk; returns the bytes.

        Nothing is done while it is less than a quarter of the file: new rows fill it. For as long
        as it takes, the disk holds the intact rows twice, and writers wait.

        Raises:
            StoreError: the disk refuses, or another process writes for too long; nothing is lost.
        """
        pages, free = (
            int(self.read(f"PRAGMA {name}")[0][0]) for name in ("page_count", "freelist_count")
        )
        if free <= _GIVEN_BACK * pages:
            return 0
        (size,) = self.read("PRAGMA page_size")[0]
        self.read("VACUUM")
        self.read("PRAGMA wal_checkpoint(TRUNCATE)")  # the file itself becomes shorter
        return free * int(size)

    @classmethod
    def rebuild_header(cls, path: Path, model: Mapping[str, Any]) -> None:
        """Rebuilds the header if no copy of it is intact.

        Args:
            path: the file.
            model: see `create`.

        Raises:
            StoreError: its rows are not of this model, or writing fails.
        """
        header = {"format": FORMAT, "version": VERSION, "uuid": uuid.uuid4().hex, **model}
        with reported(path), closing(_connect(path)) as connection, _transaction(connection):
            (known_version,) = connection.execute("PRAGMA user_version").fetchone()
            header["version"] = known_version or _WITHOUT_USER_VERSION
            (number,) = connection.execute("PRAGMA application_id").fetchone()
            header["meta"] = {**header["meta"], "precision": PRECISIONS[number]}
            for text, *_ in _about(connection):
                known = _json_object(text)
                if known.get("model_hash", header["model_hash"]) != header["model_hash"]:
                    raise StoreError(f"{path}: its codes are of another model than the one here")
                if isinstance(known.get("meta"), dict) and "precision" in known["meta"]:
                    header["meta"] = known["meta"]
            _add_columns(connection)
            for found in connection.execute(_SELECT):
                columns, intact = _columns(found)
                if intact:
                    header = _with_parts(header, columns)
                    if not fits(columns, header):
                        raise StoreError(
                            f"{path}: {columns['id']} is of another model than the one here"
                        )
            _write_header(connection, header)

    def delete(self, rows: Iterable[int]) -> int:
        """Removes the pictures of some rows, inside a transaction; returns how many there were."""
        return self._connection.executemany(
            "DELETE FROM images WHERE row = ?", ((row,) for row in rows)
        ).rowcount

    def _same_picture(self, image: NewImage, content: Columns) -> tuple[Columns, bool] | None:
        """The row of the same picture, see `store`, and whether it is intact."""
        if found := self.of_path(image.file.path):
            return found
        for values in self.read(f"{_SELECT} WHERE {WITHOUT_FILE}", image.id):
            columns, intact = _columns(values)
            of_data_set = image.file.path is None and image.source is not None
            if intact and of_data_set and columns["source"] is not None:
                return columns, True
            if intact and all(columns[name] == content[name] for name in _COMPARED):
                return columns, True
        return None

    def _replace(self, old: tuple[Columns, bool] | None, image_id: str, new: Columns) -> int:
        """Replaces an old row, keeping its id if it is intact; returns the new row's number."""
        if old is None:
            return self._insert(image_id, new)
        columns, intact = old
        self.delete([columns["row"]])
        if not intact:
            return self._insert(image_id, new)
        return self._insert(columns["id"], new, name=columns["name"])

    def _insert(self, image_id: str, new: Columns, *, name: str | None = None) -> int:
        if self._last_row is None:
            self._last_row = self.version()[0]
        self._last_row += 1
        new["row"] = self._last_row
        new["id"] = self._free_id(image_id, new["path"])
        new["name"] = name or image_id if new["path"] is None else None
        new["checksum"] = checksum(new)
        self._connection.execute(_INSERT, new | self._kept(new["id"], new["path"]))
        return int(new["row"])

    def _kept(self, image_id: str, path: bytes | None) -> Columns:
        """The columns of `images` that keep an id and a path, inside a transaction."""
        if path is None or self.header["version"] < FOLDERS_FROM:
            return {"id": image_id, "path": path, "folder": None}
        (place, name), (ids, last) = parted(path), parted(image_id)
        is_derived = last.encode() == name
        folder = self._folder(place, ids if is_derived else None)
        return {"id": None if is_derived else image_id, "path": name, "folder": folder}

    def _folder(self, place: bytes, ids: str | None) -> int:
        """The number of a folder, which is stored if it is new, inside a transaction."""
        query = "SELECT folder FROM folders WHERE place = ? AND ids IS ?"
        for (number,) in self.read(query, place, ids):
            return int(number)
        stored = self._connection.execute(
            "INSERT INTO folders (place, ids) VALUES (?, ?)", (place, ids)
        )
        assert stored.lastrowid is not None
        return stored.lastrowid

    def _free_id(self, image_id: str, path: bytes | None) -> str:
        """The id if it is free, else the full path, else the id with a number."""

        def taken(candidate: str) -> bool:
            return bool(self.read(ROW_OF_ID, *_parts_of_id(candidate), candidate))

        if not taken(image_id):
            return image_id
        whole = None if path is None else shown_name(path)
        if whole and not taken(whole):
            return whole
        return next(name for n in count(2) if not taken(name := f"{whole or image_id} ({n})"))

    def _agree_on_parts(self, image: NewImage) -> None:
        """Records the parts of the first picture; raises ValueError for a picture with others."""
        parts = {
            name: list(array.shape[1:])
            for name, array in image.rows.items()
            if name != "image_labels"  # a picture whose labels are unknown has none
        }
        known = self.header.get("rows")
        if known is not None and known != parts:
            name = next(name for name in known | parts if known.get(name) != parts.get(name))
            raise ValueError(
                f"{image.id}: every picture of {self.path} must have {name} of shape "
                f"{known.get(name, 'none')}, got {parts.get(name, 'none')}"
            )
        labelled = "image_labels" in image.rows and not self.header.get("labelled")
        if known is None or labelled:
            added = {"rows": parts} | ({"labelled": True} if labelled else {})
            _write_header(self._connection, self.header | added)
            self.read_header()


_COPIES = 2  # of the header

_SELECTED = (*COLUMNS, "checksum")
_SELECT = f"SELECT {', '.join(_SELECTED)} FROM pictures"
_VIEW = PICTURES.format(others=", ".join(name for name in _SELECTED if name not in ("id", "path")))
_KEPT = (*_SELECTED, "folder")
_INSERT = (
    f"INSERT INTO images ({', '.join(_KEPT)}) VALUES ({', '.join(f':{name}' for name in _KEPT)})"
)
_CHANGEABLE = ("source", "hash", "n_bytes", "mtime_ns", "checksum")
_COMPARED = ("height", "width", *(name for name in BLOBS if name != "image_labels"))


def checksum(columns: Mapping[str, Any]) -> int:
    """CRC-32 of `COLUMNS` of a row. Raises TypeError for a column of the wrong type."""
    return _checksum([columns[name] for name in COLUMNS])


def _checksum(values: Sequence[Any]) -> int:
    facts, blobs = values[: len(_FACTS)], values[len(_FACTS) :]
    lengths = [-1 if blob is None else len(blob) for blob in blobs]
    if blobs[-1] is None:  # the column was added later: rows without it keep their checksums
        lengths.pop()
    crc = zlib.crc32(f"{facts}{lengths}".encode("utf-8", "surrogateescape"))
    return zlib.crc32(b"".join([blob for blob in blobs if blob is not None]), crc)


def _columns(found: Sequence[Any]) -> tuple[Columns, bool]:
    """A row of `_SELECT` by column, and whether its checksum is right."""
    *values, known = found
    try:
        intact = _checksum(values) == known
    except TypeError:
        intact = False
    return dict(zip(_SELECTED, found, strict=True)), intact


def _parts_of_id(image_id: str) -> tuple[str, bytes]:
    """The parts of an id as `ROW_OF_ID` takes them."""
    ids, name = parted(image_id)
    return ids, name.encode()


def _file_columns(file: FileState, source: int | None) -> Columns:
    """The columns of a row that describe its file."""
    return {
        "path": file.path,
        "source": source,
        "hash": file.hash,
        "n_bytes": file.n_bytes,
        "mtime_ns": file.mtime_ns,
    }


def _is_up_to_date(stored: Columns, image: NewImage) -> bool:
    """Whether a picture adds nothing to its intact row, which may know more of the file."""
    if stored["path"] != image.file.path:
        return False  # the row had codes before it had a file
    return image.file.hash is None or stored["hash"] == image.file.hash


def row_width(dtype: np.dtype[Any], shape: Sequence[int]) -> int:
    """Bytes of one row of an array."""
    return math.prod(shape) * dtype.itemsize


def fits(columns: Columns, header: Mapping[str, Any]) -> bool:
    """Whether a picture has the parts that the header names, with consistent lengths."""
    parts: dict[str, Sequence[int]] = dict(header.get("rows") or {})
    if columns["image_labels"] is not None:  # otherwise unknown
        parts["image_labels"] = [len(header["classes"])]
    types = types_of(header)
    counts: dict[str, set[float]] = {"image": {1.0}}
    for name in BLOBS:
        blob = columns[name]
        if (blob is not None) != (name in parts) or not isinstance(blob, bytes | None):
            return False
        width = row_width(types[name], parts.get(name, ()))
        if blob is not None and width:
            counts.setdefault(LAYOUT[name][0], set()).add(len(blob) / width)
    return all(len(found) == 1 and min(found).is_integer() for found in counts.values())


# The header


def _about(connection: sqlite3.Connection) -> list[Any]:
    """The stored copies of the header. Raises sqlite3.DatabaseError without that table."""
    return connection.execute("SELECT * FROM about").fetchall()


def _read_header(about: Sequence[Any], path: Path) -> dict[str, Any]:
    """The header, from an intact copy.

    Raises:
        StoreError: another format or version; HeaderError: no copy is intact.
    """
    reasons = []
    for text, *known in about:
        header, reason = _parsed(text)
        if reason is None and (known or header["version"] > 1):
            reason = None if known == [zlib.crc32(text.encode())] else "its checksum is wrong"
        if reason is None:
            return header
        reasons.append(reason)
    if reasons and all("must be" in reason for reason in reasons):
        raise StoreError(f"{path}: {reasons[0]}")
    raise HeaderError(
        f"{path}: the header is damaged ({reasons[0] if reasons else 'it is missing'}); "
        "`regionhash check --repair` rebuilds it from the model"
    )


def _json_object(text: Any) -> dict[str, Any]:
    """The JSON object in a text; empty if there is none."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _parsed(text: Any) -> tuple[dict[str, Any], str | None]:
    """A header, and what is wrong with it."""
    header = _json_object(text)
    if "format" not in header:
        return {}, "it has no format"
    for field, values in {"format": (FORMAT,), "version": (*range(VERSION, 0, -1),)}.items():
        if header.get(field) not in values:
            return {}, f"{field} must be {values[0]!r}, got {header.get(field)!r}"
    for field, kind in _FIELDS.items():
        if not isinstance(header.get(field), kind):
            return {}, f"{field} is not a {kind.__name__}"
    if not all(isinstance(name, str) for name in header["classes"]):
        return {}, "a class is not a str"
    parts = header.get("rows", {})
    if not isinstance(parts, dict) or not all(
        name in LAYOUT and isinstance(shape, list) and all(type(n) is int for n in shape)
        for name, shape in parts.items()
    ):
        return {}, "rows are not shapes"
    return header, None


_FIELDS = {
    "uuid": str,
    "model": str,
    "model_hash": str,
    "classes": list,
    "n_bits": int,
    "n_region_bits": int,
    "meta": dict,
}


def _write_header(connection: sqlite3.Connection, header: Mapping[str, Any]) -> None:
    text = json.dumps(header)
    copies = [(text, zlib.crc32(text.encode()))] * _COPIES
    connection.execute("DELETE FROM about")
    connection.executemany("INSERT INTO about VALUES (?, ?)", copies)


def _with_parts(header: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Completes a header without parts, from an intact row."""
    types = types_of(header)
    n_categories = len(columns["categories"] or b"") // types["categories"].itemsize
    n_regions = len(columns["scores"] or b"") // types["scores"].itemsize
    widths = {
        "category_codes": len(columns["category_codes"] or b"") // max(1, n_categories),
        "region_features": len(columns["region_features"] or b"") // max(1, n_regions),
    }
    known = header.get("rows")
    if known is None or known.get("category_codes") == [0]:  # of a picture without categories
        known = {
            name: [widths[name] if n is None else n for n in shape]
            for name, shape in row_shapes_of(header).items()
            if name in ("id_bytes", "sizes")  # each picture has them
            or (name != "image_labels" and columns[name] is not None)
        }
    labelled = header.get("labelled") or columns["image_labels"] is not None
    keeps = header.get("keeps_floats") or columns["region_features"] is not None
    flags = {"labelled": labelled, "keeps_floats": keeps}
    return header | {"rows": known} | {name: True for name, given in flags.items() if given}


def _add_columns(connection: sqlite3.Connection) -> None:
    """Adds the columns that a database of an earlier version of regionhash lacks."""
    known = {name for _, name, *_ in connection.execute("PRAGMA table_info(images)")}
    columns = dict.fromkeys(BLOBS, "BLOB") | {"folder": "INTEGER REFERENCES folders"}
    if "folder" not in known:
        for statement in _statements(FOLDERS):
            connection.execute(statement)
    for name in columns.keys() - known:
        try:
            connection.execute(f"ALTER TABLE images ADD COLUMN {name} {columns[name]}")
        except sqlite3.OperationalError as error:
            if "duplicate column" not in str(error):  # otherwise another process was faster
                raise


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Migrates a database of version 1, which has no checksums, to version 2."""
    with _transaction(connection):
        header = _read_header(_about(connection), path)
        if header["version"] != 1:
            return  # another process was faster
        header["version"] = 2
        for addition in (
            "ALTER TABLE about ADD COLUMN checksum INTEGER",
            "ALTER TABLE images ADD COLUMN name TEXT",
            "ALTER TABLE images ADD COLUMN checksum INTEGER",
            "UPDATE images SET name = id",
            "CREATE INDEX images_without_file ON images (name) WHERE path IS NULL",
        ):
            connection.execute(addition)
        _write_header(connection, header)
        after = 0
        while chunk := connection.execute(
            f"{_SELECT} WHERE row > ? ORDER BY row LIMIT {_CHUNK}", (after,)
        ).fetchall():
            rows = [_columns(found)[0] for found in chunk]
            for row in rows:
                row["path"] = _from_folder(row)
            connection.executemany(
                "UPDATE images SET path = ?, checksum = ? WHERE row = ?",
                [(row["path"], checksum(row), row["row"]) for row in rows if fits(row, header)],
            )
            after = rows[-1]["row"]


def _from_folder(columns: Columns) -> Any:
    """The path of an upload relative to the folder, absolute in version 1; others unchanged."""
    path, digest = columns["path"], columns["hash"]
    if columns["source"] is None and isinstance(path, bytes) and isinstance(digest, bytes):
        folder, _, name = path.rpartition(b"/")
        uploads = UPLOADS_FOLDER.encode() + b"/"
        if (folder + b"/").endswith(b"/" + uploads) and name.startswith(digest.hex()[:32].encode()):
            return uploads + name
    return path


# The connection


def _place(path: Path) -> Place:
    """Device and inode of a file. Raises StoreError if there is none."""
    try:
        state = path.stat()
    except FileNotFoundError as error:
        raise CollectionMissingError(f"{path}: no such file") from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    return state.st_dev, state.st_ino


class _Connection(sqlite3.Connection):
    """Raises sqlite3.DatabaseError even if Python cannot decode SQLite's message.

    The message about a damaged schema quotes its bytes, which need not be text.
    """

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        try:
            return super().execute(*arguments)
        except UnicodeDecodeError as error:
            message = error.object.decode("utf-8", "backslashreplace")
            raise sqlite3.DatabaseError(message) from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path,
        timeout=_SECONDS_TO_WAIT,
        isolation_level=None,
        check_same_thread=False,
        factory=_Connection,
    )
    # Damaged text must not keep other rows from being read.
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a commit outlasts a power cut
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(_VIEW)
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself has rolled back when the disk is full
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """The statements of a script: `executescript` would commit the transaction around it."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if statement.strip() and sqlite3.complete_statement(statement):
            yield statement
            statement = ""
