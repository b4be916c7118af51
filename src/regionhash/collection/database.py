"""The database of a collection: SQLite, one row per picture, the source of truth.

The codes of a row never change, only where its file lies: a picture that is encoded again gets a
new row, and the number of a row is never given twice. So whoever has read up to a row and up to a
removal needs only what came after (`regionhash.collection.arrays`). Removals are kept as numbers of
rows.

SQLite's write-ahead log makes each transaction whole or not there at all, whenever the process is
killed, and lets readers read while one writer writes. What belongs together is read inside one
`moment`, and what a change depends on is read inside its `transaction`.

Each row and both copies of the header carry a checksum. A row that fails it is left out wherever
rows are read; `check` names it.
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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.files.names import absolute, shown_name
from regionhash.store import LAYOUT, StoreError, dtype_of

DATABASE_FILE = "collection.db"
UPLOADS_FOLDER = "uploads"
FORMAT = "regionhash collection"
VERSION = 2

BLOBS = tuple(name for name in LAYOUT if name not in ("id_bytes", "sizes"))
"""Columns of `images` that hold the rows of one picture of a dataset of the code file."""

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
"""Columns of `images` that the checksum of a row covers, in its order."""

_SECONDS_TO_WAIT = 60.0  # for another writer's transaction, which holds one batch
_CHUNK = 4096  # rows held at a time

_SCHEMA = f"""
CREATE TABLE about (header TEXT NOT NULL, checksum INTEGER);  -- two rows, alike
CREATE TABLE sources (
    source INTEGER PRIMARY KEY,
    inputs TEXT NOT NULL UNIQUE,   -- JSON list, absolute: what was given to index or add
    place TEXT NOT NULL            -- JSON: regionhash.data.inputs.Source
);
CREATE TABLE images (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    path BLOB UNIQUE,              -- as the disk has it, absolute, or, of uploads, from the folder
                                   -- of the collection; NULL of a picture without file
    source INTEGER REFERENCES sources,
    hash BLOB,                     -- SHA-256 of the file
    n_bytes INTEGER,
    mtime_ns INTEGER,
    taken REAL,                    -- seconds since 1970: of EXIF, or of the file
    added REAL NOT NULL,
    height INTEGER NOT NULL,
    width INTEGER NOT NULL,
    {", ".join(f"{name} BLOB" for name in BLOBS)},
    name TEXT,                     -- the id that was asked for; the same but where it was taken
    checksum INTEGER               -- CRC-32 of all columns above
);
CREATE INDEX images_by_hash ON images (hash);
CREATE INDEX images_without_file ON images (name) WHERE path IS NULL;
CREATE TABLE removals (seq INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL);
CREATE TRIGGER removed AFTER DELETE ON images BEGIN
    INSERT INTO removals (row) VALUES (old.row);
END;
"""

Place = tuple[int, int]

_KEPT_OPEN: list[sqlite3.Connection] = []
"""Connections that must not be closed, see `Database.close`."""

Columns = dict[str, Any]
"""One row of `images` by column."""


class CollectionReplacedError(StoreError):
    """Another collection stands where this one was opened; open it anew."""


class CollectionMissingError(StoreError):
    """No collection is in this place."""


class HeaderError(StoreError):
    """The header of a database is damaged, in both of its copies."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells whether a file is the one that was encoded.

    Attributes:
        path: as `os.fsencode` gives it, absolute, or from the folder of the collection; None of a
            picture that is in no file.
        hash: SHA-256 of the bytes that were encoded; None where that is unknown.
        n_bytes: size of the file.
        mtime_ns: when it was written; None where it was written so shortly before it was read that
            a later change might have the same time.
        taken: when the picture was taken, in seconds since 1970; None where that is unknown.
    """

    path: bytes | None = None
    hash: bytes | None = None
    n_bytes: int | None = None
    mtime_ns: int | None = None
    taken: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class NewImage:
    """One picture to store: the id it asks for, its file, its source, and `rows_of` it."""

    id: str
    file: FileState
    source: int | None
    rows: Mapping[str, NDArray[Any]]


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turns an error of SQLite or the operating system into a StoreError about `path`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: {error}") from error
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror or error}") from error


class Database:
    """The database of one collection. One object serves one thread.

    A database of version 1 is brought to this version.

    Args:
        path: of the file, which must be there: see `create`.

    Attributes:
        header: format, version, uuid, model, model_hash, classes, n_bits, n_region_bits, meta; from
            the first picture on also "rows", the shape of one row of each part.

    Raises:
        StoreError: no such file, damaged, or of another format or version.
        HeaderError: the header alone is damaged; `regionhash.collection.checking` can rebuild it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = _place(path)
        self.header: dict[str, Any] = {}
        self._about: list[Any] = []  # what the header was read from
        with reported(path):
            self._connection = _connect(path)
            try:
                if _read_header(_about(self._connection), path)["version"] == 1:
                    _migrate(self._connection, path)
                self.read_header()
                self.check_current()
            except sqlite3.DatabaseError as error:
                self.close()
                raise StoreError(f"{path}: not the database of a collection: {error}") from error
            except BaseException:
                self.close()
                raise

    @classmethod
    def create(cls, path: Path, model: Mapping[str, Any]) -> Database:
        """A new database, or the one that is there if it has the same model.

        Args:
            path: of the file.
            model: "model", "model_hash", "classes", "n_bits", "n_region_bits" and "meta".

        Raises:
            StoreError: one of another model is there, or the disk refuses.
        """
        header = {"format": FORMAT, "version": VERSION, "uuid": uuid.uuid4().hex, **model}
        with reported(path), closing(_connect(path)) as connection, _transaction(connection):
            if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _statements(_SCHEMA):
                    connection.execute(statement)
                _write_header(connection, header)
        there = cls(path)
        for field in ("model", "model_hash", "classes", "n_bits", "n_region_bits"):
            if there.header[field] != header[field]:
                there.close()
                raise StoreError(
                    f"{path}: {field} must be {there.header[field]!r}, got {header[field]!r}"
                )
        return there

    def close(self) -> None:
        """Closes the connection.

        Where another database is in its place, it is left open for as long as the process lives:
        SQLite would delete the write-ahead log of that one, which it knows by its name.
        """
        with suppress(StoreError):
            if _place(self.path) != self._place:
                _KEPT_OPEN.append(self._connection)
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
                return
        self._connection.close()

    def __del__(self) -> None:
        """A thread that ends leaves its connection to nobody."""
        if hasattr(self, "_connection") and self._connection not in _KEPT_OPEN:
            self.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def place_of(self, path: bytes) -> bytes:
        """Where a file is whose `path` stands in a row."""
        return os.path.join(os.fsencode(self.path.parent.absolute()), path)  # noqa: PTH118 (bytes)

    def path_of(self, file: Path) -> bytes:
        """The `path` of a file in its row: the inverse of `place_of`."""
        uploads = self.path.parent / UPLOADS_FOLDER
        if file.parent.name == UPLOADS_FOLDER and file.parent.resolve() == uploads.resolve():
            return os.fsencode(f"{UPLOADS_FOLDER}/{file.name}")
        return os.fsencode(absolute(file))

    def check_current(self) -> None:
        """Checks that the file at `path` is the one that was opened.

        Raises:
            CollectionReplacedError: it is another one by now.
            CollectionMissingError: there is none.
        """
        if _place(self.path) != self._place:
            raise self.replaced()

    def replaced(self) -> CollectionReplacedError:
        """The error that another collection stands here."""
        return CollectionReplacedError(f"{self.path}: replaced by another collection; open it anew")

    @property
    def identity(self) -> tuple[Place, str]:
        """What tells this database from every other, also from a copy."""
        return self._place, str(self.header["uuid"])

    def read_header(self) -> None:
        """Takes over what other writers have added to the header."""
        with reported(self.path):
            about = _about(self._connection)
        if about == self._about:
            return
        header = _read_header(about, self.path)
        if self.header and header["uuid"] != self.header["uuid"]:
            raise self.replaced()
        self.header, self._about = header, about

    # Reading

    @contextmanager
    def moment(self) -> Iterator[None]:
        """Inside, everything that is read, the header too, is of one moment.

        Raises:
            StoreError: see `check_current`.
        """
        if self._connection.in_transaction:
            yield
            return
        self.check_current()
        with reported(self.path):
            self._connection.execute("BEGIN")  # reads begin it
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
        """Numbers of the last row and of the last removal there have ever been."""
        counts = dict(self.read("SELECT name, seq FROM sqlite_sequence"))
        last_row, last_removal = counts.get("images", 0), counts.get("removals", 0)
        with suppress(StoreError):  # a damaged page; the sequences are the rule
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
        """Number and columns of each row after `after`, in their order; None of a damaged row."""
        last = self.version()[0]
        while after < last:
            try:
                chunk = self._connection.execute(
                    f"{_SELECT} WHERE row > ? ORDER BY row LIMIT ?", (after, at_a_time)
                ).fetchall()
            except sqlite3.OperationalError as error:
                raise StoreError(f"{self.path}: {error}") from error
            except sqlite3.DatabaseError:  # a damaged page: its rows alone cannot be read
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

    def rows_at(self, path: str | Path) -> list[int]:
        """Numbers of the rows of pictures whose file is at a path or below it."""
        wanted = os.fsencode(absolute(path)).rstrip(b"/")
        uploads = self.place_of(UPLOADS_FOLDER.encode())
        places = [wanted]
        if (uploads + b"/").startswith(wanted + b"/"):
            places.append(UPLOADS_FOLDER.encode())
        elif wanted.startswith(uploads + b"/"):
            places.append(UPLOADS_FOLDER.encode() + wanted[len(uploads) :])
        query = "SELECT row FROM images WHERE path = ? OR (path >= ? AND path < ?)"
        return [
            row
            for place in places
            for (row,) in self.read(query, place, place + b"/", place + b"0")
        ]

    def damaged(self) -> list[Columns]:
        """Columns of the damaged rows that can be read."""
        damaged = []
        for row in [row for row, columns in self.rows() if columns is None]:
            with suppress(StoreError):  # on a page that is damaged
                damaged += self.read(f"{_SELECT} WHERE row = ?", row)
        return [_columns(found)[0] for found in damaged]

    def one(self, where: str, *values: Any) -> tuple[Columns, bool] | None:
        """Columns of the row for which a condition holds, and whether they are intact."""
        for found in self.read(f"{_SELECT} WHERE {where} LIMIT 1", *values):
            return _columns(found)
        return None

    def intact(self, where: str, *values: Any) -> Columns | None:
        """Columns of the intact row for which a condition holds; None where there is none."""
        found = self.one(where, *values)
        return found[0] if found and found[1] else None

    # Changing

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """What is executed inside is stored as a whole, or not at all if it raises.

        No other writer changes anything meanwhile.

        Raises:
            StoreError: the disk refuses, another writer holds the database for a minute, or see
                `check_current`.
        """
        try:
            with reported(self.path), _transaction(self._connection):
                self.check_current()
                self.read_header()
                yield self._connection
        except BaseException:
            self._about = []  # what was not stored is not in the header
            with suppress(StoreError):
                self.read_header()
            raise

    def source(self, inputs: Sequence[str], place: Mapping[str, str]) -> int:
        """The number of a source, which is stored where it is new."""
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
        """Stores pictures in one transaction; returns how many were not there already.

        Two pictures are the same if they have the same file; or no file, and the same name in a
        data set, or else the same name and the same codes. Then the new one takes the place of the
        old one, or is left out if it was made of the same bytes. An id that is taken by another
        picture is made free: see `_free_id`.

        Args:
            images: the pictures.
            unless: tells, inside the transaction, of a picture that is not to be stored after all.

        Raises:
            ValueError: a picture has not the parts that the others have.
            StoreError: see `transaction`.
        """
        with self.transaction():
            return sum(self.put(image) is not None for image in images if not unless(image))

    def put(self, image: NewImage) -> int | None:
        """Stores one picture, inside a transaction: its row, or None if it was there already."""
        self._agree_on_parts(image)
        height, width = np.asarray(image.rows["sizes"])[0].tolist()
        taken = image.file.taken
        content = {
            "height": height,
            "width": width,
            "added": time(),
            "taken": None if taken is None or math.isnan(taken) else float(taken),
        }
        for name in BLOBS:
            content[name] = image.rows[name].tobytes() if name in image.rows else None
        old = self._same_picture(image, content)
        if old is not None and old[1] and _is_up_to_date(old[0], image):
            return None
        return self._replace(old, image.id, content | _file_columns(image.file, image.source))

    def set_file(self, file: FileState, source: int | None) -> bool:
        """Notes the state of a file whose codes are stored; False if they are not of its bytes."""
        with self.transaction() as connection:
            known = self.intact("path = ?", file.path)
            if known is None or known["hash"] not in (None, file.hash):
                return False
            known |= _file_columns(file, source)
            known["checksum"] = checksum(known)
            assignments = ", ".join(f"{name} = :{name}" for name in _CHANGEABLE)
            connection.execute(f"UPDATE images SET {assignments} WHERE row = :row", known)
            return True

    def take_codes(
        self, row: int, image_id: str, file: FileState, source: int | None, *, moved: bool
    ) -> bool:
        """Stores the picture in a file with the codes of a row of the same bytes.

        Args:
            row: of these codes.
            image_id: that the picture asks for.
            file: it.
            source: of the picture.
            moved: the row is this picture, whose file was found to be gone from where it was.

        Returns:
            Whether the picture is stored; False where the row is no longer what it was.
        """
        with self.transaction():
            twin = self.intact("row = ? AND hash = ?", row, file.hash)
            there = self.one("path = ?", file.path)
            if there and there[1] and there[0]["hash"] == file.hash:
                return True  # another writer was quicker
            if twin is None:
                return False
            gone = [found[0]["row"] for found in (there, (twin, True) if moved else None) if found]
            self.delete(gone)
            self._insert(image_id, twin | _file_columns(file, source))
            return True

    def remove(self, rows: Iterable[int]) -> int:
        """Removes the pictures of some rows in one transaction; returns how many were there."""
        with self.transaction():
            return self.delete(rows)

    def remove_gone(self, files: Iterable[tuple[int, bytes]]) -> int:
        """Removes pictures by row and path: not those that were found elsewhere meanwhile."""
        with self.transaction() as connection:
            return connection.executemany(
                "DELETE FROM images WHERE row = ? AND path = ?", files
            ).rowcount

    def restore(self, columns: Columns) -> bool:
        """Puts back the columns of a damaged row, which have its checksum.

        Where its picture has been stored again meanwhile, the row is removed; returns False then.
        """
        assignments = ", ".join(f"{name} = :{name}" for name in COLUMNS)
        with self.transaction() as connection:
            try:
                connection.execute(f"UPDATE images SET {assignments} WHERE row = :row", columns)
            except sqlite3.IntegrityError:  # its path or id is that of a row
                self.delete([columns["row"]])
                return False
            return True

    def header_is_whole(self) -> bool:
        """Whether both copies of the header are there and alike."""
        self.read_header()
        return len(self._about) == _COPIES and len(set(self._about)) == 1

    def rewrite_header(self) -> None:
        """Makes all copies of the header like the one that was read."""
        with self.transaction() as connection:
            _write_header(connection, self.header)

    def reindex(self) -> None:
        """Builds all indices anew."""
        with self.transaction() as connection:
            connection.execute("REINDEX")

    @classmethod
    def rebuild_header(cls, path: Path, model: Mapping[str, Any]) -> None:
        """Writes the header anew where no copy of it is whole.

        Args:
            path: of the database.
            model: see `create`.

        Raises:
            StoreError: the rows in it are not of this model, or the disk refuses.
        """
        header = {"format": FORMAT, "version": VERSION, "uuid": uuid.uuid4().hex, **model}
        with reported(path), closing(_connect(path)) as connection, _transaction(connection):
            for text, *_ in _about(connection):
                known = _json_object(text)
                if known.get("model_hash", header["model_hash"]) != header["model_hash"]:
                    raise StoreError(f"{path}: the model beside it is not the one of its codes")
                if isinstance(known.get("meta"), dict) and "precision" in known["meta"]:
                    header["meta"] = known["meta"]
            for found in connection.execute(_SELECT):
                columns, intact = _columns(found)
                if intact:
                    header = _with_parts(header, columns)
                    if not fits(columns, header):
                        raise StoreError(f"{path}: {columns['id']} is not of the model beside it")
            _write_header(connection, header)

    def delete(self, rows: Iterable[int]) -> int:
        """Removes the pictures of some rows, inside a transaction; returns how many were there."""
        return self._connection.executemany(
            "DELETE FROM images WHERE row = ?", ((row,) for row in rows)
        ).rowcount

    def _same_picture(self, image: NewImage, content: Columns) -> tuple[Columns, bool] | None:
        """The row of the same picture, see `store`, and whether it is intact."""
        if image.file.path is not None:
            found = self.one("path = ?", image.file.path)
            if found:
                return found
        for found in self.read(f"{_SELECT} WHERE name = ? AND path IS NULL", image.id):
            columns, intact = _columns(found)
            of_data_set = image.file.path is None and image.source is not None
            if intact and of_data_set and columns["source"] is not None:
                return columns, True
            if intact and all(columns[name] == content[name] for name in _COMPARED):
                return columns, True
        return None

    def _replace(self, old: tuple[Columns, bool] | None, image_id: str, new: Columns) -> int:
        """Stores a new row in place of an old one, whose id it keeps; returns its number."""
        if old is None:
            return self._insert(image_id, new)
        columns, intact = old
        self.delete([columns["row"]])
        if not intact:
            return self._insert(image_id, new)
        return self._insert(columns["id"], new, name=columns["name"])

    def _insert(self, image_id: str, new: Columns, *, name: str | None = None) -> int:
        new["row"] = self.version()[0] + 1
        new["id"] = self._free_id(image_id, new["path"])
        new["name"] = name or image_id
        new["checksum"] = checksum(new)
        self._connection.execute(_INSERT, new)
        return int(new["row"])

    def _free_id(self, image_id: str, path: bytes | None) -> str:
        """The id if no picture has it; else the whole path; else the id with a number."""

        def taken(candidate: str) -> bool:
            return bool(self.read("SELECT 1 FROM images WHERE id = ?", candidate))

        if not taken(image_id):
            return image_id
        whole = None if path is None else shown_name(path)
        if whole and not taken(whole):
            return whole
        return next(own for n in count(2) if not taken(own := f"{whole or image_id} ({n})"))

    def _agree_on_parts(self, image: NewImage) -> None:
        """Keeps the parts of the first picture and raises ValueError for others."""
        parts = {
            name: list(array.shape[1:])
            for name, array in image.rows.items()
            if name != "image_labels"  # a picture whose labels are unknown has none
        }
        known = self.header.get("rows")
        if known is not None and known != parts:
            raise ValueError(
                f"{image.id}: every picture of {self.path} must have the parts "
                f"{', '.join(known)}, got {', '.join(parts)}"
            )
        labelled = "image_labels" in image.rows and not self.header.get("labelled")
        if known is None or labelled:
            added = {"rows": parts} | ({"labelled": True} if labelled else {})
            _write_header(self._connection, self.header | added)
            self.read_header()


_COPIES = 2  # of the header

_SELECTED = (*COLUMNS, "checksum")
_SELECT = f"SELECT {', '.join(_SELECTED)} FROM images"
_INSERT = (
    f"INSERT INTO images ({', '.join(COLUMNS)}, checksum) "
    f"VALUES ({', '.join(f':{name}' for name in COLUMNS)}, :checksum)"
)
_CHANGEABLE = ("path", "source", "hash", "n_bytes", "mtime_ns", "checksum")
_COMPARED = ("height", "width", *(name for name in BLOBS if name != "image_labels"))


def checksum(columns: Mapping[str, Any]) -> int:
    """CRC-32 of `COLUMNS` of a row. Raises TypeError for a column of a type that no row has."""
    return _checksum([columns[name] for name in COLUMNS])


def _checksum(values: Sequence[Any]) -> int:
    facts, blobs = values[: len(_FACTS)], values[len(_FACTS) :]
    lengths = [-1 if blob is None else len(blob) for blob in blobs]
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


def _file_columns(file: FileState, source: int | None) -> Columns:
    """What a row notes of the file of its picture."""
    return {
        "path": file.path,
        "source": source,
        "hash": file.hash,
        "n_bytes": file.n_bytes,
        "mtime_ns": file.mtime_ns,
    }


def _is_up_to_date(stored: Columns, image: NewImage) -> bool:
    """Whether nothing is new in the picture of an intact row, which may know more of its file."""
    if stored["path"] != image.file.path:
        return False  # the codes of the picture were there before its file
    return image.file.hash is None or stored["hash"] == image.file.hash


def row_width(name: str, shape: Sequence[int]) -> int:
    """Bytes of one row of a dataset."""
    return math.prod(shape) * dtype_of(name).itemsize


def fits(columns: Columns, header: Mapping[str, Any]) -> bool:
    """Whether the parts of a picture are those that all have, and fit together."""
    parts: dict[str, Sequence[int]] = dict(header.get("rows") or {})
    if columns["image_labels"] is not None:  # else its labels are unknown
        parts["image_labels"] = [len(header["classes"])]
    counts: dict[str, set[float]] = {"image": {1.0}}
    for name in BLOBS:
        blob = columns[name]
        if (blob is not None) != (name in parts) or not isinstance(blob, bytes | None):
            return False
        width = row_width(name, parts.get(name, ()))
        if blob is not None and width:
            counts.setdefault(LAYOUT[name][0], set()).add(len(blob) / width)
    return all(len(own) == 1 and min(own).is_integer() for own in counts.values())


# The header


def _about(connection: sqlite3.Connection) -> list[Any]:
    """What the header is read from. Raises sqlite3.DatabaseError where there is no such table."""
    return connection.execute("SELECT * FROM about").fetchall()


def _read_header(about: Sequence[Any], path: Path) -> dict[str, Any]:
    """The header, from whichever of its copies is whole.

    Raises:
        StoreError: another format or version; HeaderError: no copy is whole.
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
    """The object that a text holds; empty where it holds none."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _parsed(text: Any) -> tuple[dict[str, Any], str | None]:
    """A header, and what is wrong with it."""
    header = _json_object(text)
    if "format" not in header:
        return {}, "it does not say what it is"
    for field, values in {"format": (FORMAT,), "version": (VERSION, 1)}.items():
        if header.get(field) not in values:
            return {}, f"{field} must be {values[0]!r}, got {header.get(field)!r}"
    for field, kind in _FIELDS.items():
        if not isinstance(header.get(field), kind):
            return {}, f"{field} is not a {kind.__name__}"
    if not all(isinstance(name, str) for name in header["classes"]):
        return {}, "a class is no str"
    parts = header.get("rows", {})
    if not isinstance(parts, dict) or not all(
        name in LAYOUT and isinstance(shape, list) and all(type(n) is int for n in shape)
        for name, shape in parts.items()
    ):
        return {}, "rows are no shapes"
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
    """A header that lacks the parts of its pictures, with those of an intact row."""
    n_categories = len(columns["categories"] or b"") // row_width("categories", ())
    category_width = len(columns["category_codes"] or b"") // max(1, n_categories)
    shapes = {
        "image_codes": [header["n_bits"] // 8],
        "class_probs": [len(header["classes"])],
        "boxes": [4],
        "region_codes": [header["n_region_bits"] // 8],
        "category_codes": [category_width],
    }
    known = header.get("rows")
    if known is None or known.get("category_codes") == [0]:  # of a picture without categories
        known = {"id_bytes": [], "sizes": [2]} | {
            name: shapes.get(name, [])
            for name in BLOBS
            if columns[name] is not None and name != "image_labels"
        }
    labelled = header.get("labelled") or columns["image_labels"] is not None
    return header | {"rows": known} | ({"labelled": True} if labelled else {})


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Brings a database of version 1, which has no checksums, to this version."""
    with _transaction(connection):
        header = _read_header(_about(connection), path)
        if header["version"] != 1:
            return  # another process was quicker
        header["version"] = VERSION
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
            for own in rows:
                own["path"] = _from_folder(own)
            connection.executemany(
                "UPDATE images SET path = ?, checksum = ? WHERE row = ?",
                [(own["path"], checksum(own), own["row"]) for own in rows if fits(own, header)],
            )
            after = rows[-1]["row"]


def _from_folder(columns: Columns) -> Any:
    """The path of an upload, which version 1 kept from the root; others as they are."""
    path, digest = columns["path"], columns["hash"]
    if columns["source"] is None and isinstance(path, bytes) and isinstance(digest, bytes):
        folder, _, name = path.rpartition(b"/")
        own = UPLOADS_FOLDER.encode() + b"/"
        if (folder + b"/").endswith(b"/" + own) and name.startswith(digest.hex()[:32].encode()):
            return own + name
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
    """Raises sqlite3.DatabaseError for a message of SQLite that is no text, too.

    The message about a damaged schema quotes its bytes, and Python fails to decode them.
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
    # A text that is damaged must not keep the rows beside it from being read.
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a commit outlasts a power cut
    connection.execute("PRAGMA foreign_keys = ON")
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
