"""The database of a collection: SQLite, one row per picture, the source of truth.

A row never changes but for where its file lies: a picture that is encoded again gets a new row, and
the number of a row is never given twice. So whoever has read up to a row and up to a removal needs
only what came after (`regionhash.collection.arrays`). Removals are kept as numbers of rows.

SQLite's write-ahead log makes each transaction whole or not there at all, whenever the process is
killed, and lets readers read while one writer writes.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.store import LAYOUT, StoreError, dtype_of

DATABASE_FILE = "collection.db"
FORMAT = "regionhash collection"
VERSION = 1

BLOBS = tuple(name for name in LAYOUT if name not in ("id_bytes", "sizes"))
"""Columns of `images` that hold the rows of one picture of a dataset of the code file."""

_SECONDS_TO_WAIT = 60.0  # for another writer's transaction, which holds one batch

_SCHEMA = f"""
CREATE TABLE about (header TEXT NOT NULL);
CREATE TABLE sources (
    source INTEGER PRIMARY KEY,
    inputs TEXT NOT NULL UNIQUE,   -- JSON list, absolute: what was given to index or add
    place TEXT NOT NULL            -- JSON: regionhash.sources.Source
);
CREATE TABLE images (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    path BLOB UNIQUE,              -- absolute, as the disk has it; NULL of a picture without file
    source INTEGER REFERENCES sources,
    hash BLOB,                     -- SHA-256 of the file
    n_bytes INTEGER,
    mtime_ns INTEGER,
    taken REAL,                    -- seconds since 1970: of EXIF, or of the file
    added REAL NOT NULL,
    height INTEGER NOT NULL,
    width INTEGER NOT NULL,
    {", ".join(f"{name} BLOB" for name in BLOBS)}
);
CREATE INDEX images_by_hash ON images (hash);
CREATE TABLE removals (seq INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL);
CREATE TRIGGER removed AFTER DELETE ON images BEGIN
    INSERT INTO removals (row) VALUES (old.row);
END;
"""


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells whether a file is the one that was encoded.

    Attributes:
        path: absolute, as `os.fsencode` gives it; None of a picture that is in no file.
        hash: SHA-256 of the bytes; None where there is no file.
        n_bytes: size of the file.
        mtime_ns: when it was written.
        taken: when the picture was taken, in seconds since 1970; None where that is unknown.
    """

    path: bytes | None = None
    hash: bytes | None = None
    n_bytes: int | None = None
    mtime_ns: int | None = None
    taken: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class NewImage:
    """One picture to store: its id, its file, the source it came from, and `rows_of` it."""

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

    Args:
        path: of the file, which must be there: see `create`.

    Attributes:
        header: format, version, uuid, model, model_hash, classes, n_bits, n_region_bits, meta; from
            the first picture on also "rows", the shape of one row of each part.

    Raises:
        StoreError: no such file, damaged, or of another format or version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise StoreError(f"{path}: no such file")
        with reported(path):
            self._connection = _connect(path)
            try:
                (text,) = self._connection.execute("SELECT header FROM about").fetchone()
                self.header: dict[str, Any] = json.loads(text)
            except (sqlite3.DatabaseError, TypeError, ValueError) as error:
                self._connection.close()
                raise StoreError(f"{path}: not the database of a collection: {error}") from error
        for field, value in {"format": FORMAT, "version": VERSION}.items():
            if self.header.get(field) != value:
                self._connection.close()
                raise StoreError(
                    f"{path}: {field} must be {value!r}, got {self.header.get(field)!r}"
                )

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
                connection.execute("INSERT INTO about VALUES (?)", (json.dumps(header),))
        there = cls(path)
        for field in ("model", "model_hash", "classes", "n_bits", "n_region_bits"):
            if there.header[field] != header[field]:
                there.close()
                raise StoreError(
                    f"{path}: {field} must be {there.header[field]!r}, got {header[field]!r}"
                )
        return there

    def read_header(self) -> None:
        """Takes over what other writers have added to the header."""
        self.header = json.loads(self.read("SELECT header FROM about")[0][0])

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    def __del__(self) -> None:
        """A thread that ends leaves its connection to nobody."""
        if hasattr(self, "_connection"):
            self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, query: str, *values: Any) -> list[Any]:
        """All rows of a SELECT."""
        with reported(self.path):
            return self._connection.execute(query, values).fetchall()

    def stream(self, query: str, *values: Any) -> Iterator[Any]:
        """The rows of a SELECT, one after the other."""
        with reported(self.path):
            yield from self._connection.execute(query, values)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """What is executed inside is stored as a whole, or not at all if it raises."""
        with reported(self.path), _transaction(self._connection):
            yield self._connection

    def version(self) -> tuple[int, int]:
        """Numbers of the last row and of the last removal there have ever been."""
        counts = dict(self.read("SELECT name, seq FROM sqlite_sequence"))
        return counts.get("images", 0), counts.get("removals", 0)

    def count(self) -> int:
        """Number of pictures."""
        return int(self.read("SELECT count(*) FROM images")[0][0])

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

    def store(self, images: Iterable[NewImage]) -> int:
        """Stores pictures in one transaction; returns how many were not there already.

        A picture of the same id or the same file gives way to the new one, unless it was made of
        the same bytes: then another writer was quicker, and nothing is stored.

        Raises:
            ValueError: a picture has not the parts that the others have.
            StoreError: the disk refuses, or another writer holds the database for a minute.
        """
        stored = 0
        with self.transaction() as connection:
            for image in images:
                if self._is_stored(connection, image):
                    continue
                self._agree_on_parts(connection, image)
                connection.execute(
                    "DELETE FROM images WHERE id = ? OR path = ?", (image.id, image.file.path)
                )
                _insert(connection, image)
                stored += 1
        return stored

    def set_file(self, row: int, image_id: str, file: FileState, source: int | None) -> None:
        """Tells of the picture of a row where its file lies now.

        The arrays hold the ids, so a picture with another id becomes a new row.
        """
        known = (file.path, source, file.hash, file.n_bytes, file.mtime_ns)
        columns = "height, width, taken, added, " + ", ".join(BLOBS)
        with self.transaction() as connection:
            old = connection.execute("SELECT id FROM images WHERE row = ?", (row,)).fetchone()
            if old is None:
                return  # another writer has removed it
            if old[0] == image_id:
                connection.execute(
                    "UPDATE images SET path = ?, source = ?, hash = ?, n_bytes = ?, mtime_ns = ? "
                    "WHERE row = ?",
                    (*known, row),
                )
                return
            content = connection.execute(
                f"SELECT {columns} FROM images WHERE row = ?", (row,)
            ).fetchone()
            connection.execute("DELETE FROM images WHERE row = ?", (row,))
            self._insert_copy(connection, image_id, known, columns, content)

    def copy(self, row: int, image_id: str, file: FileState, source: int | None) -> None:
        """Stores a picture with the content of another row: a second file of the same bytes."""
        known = (file.path, source, file.hash, file.n_bytes, file.mtime_ns)
        columns = "height, width, taken, added, " + ", ".join(BLOBS)
        with self.transaction() as connection:
            content = connection.execute(
                f"SELECT {columns} FROM images WHERE row = ?", (row,)
            ).fetchone()
            if content is not None:
                connection.execute(
                    "DELETE FROM images WHERE id = ? OR path = ?", (image_id, file.path)
                )
                self._insert_copy(connection, image_id, known, columns, content)

    def remove(self, rows: Iterable[int]) -> int:
        """Removes the pictures of some rows in one transaction; returns how many were there."""
        with self.transaction() as connection:
            cursor = connection.executemany(
                "DELETE FROM images WHERE row = ?", ((row,) for row in rows)
            )
            return cursor.rowcount

    def _insert_copy(
        self,
        connection: sqlite3.Connection,
        image_id: str,
        known: tuple[Any, ...],
        columns: str,
        content: tuple[Any, ...],
    ) -> None:
        marks = ", ".join("?" * (1 + len(known) + len(content)))
        connection.execute(
            f"INSERT INTO images (id, path, source, hash, n_bytes, mtime_ns, {columns}) "
            f"VALUES ({marks})",
            (image_id, *known, *content),
        )

    def _is_stored(self, connection: sqlite3.Connection, image: NewImage) -> bool:
        there = connection.execute(
            "SELECT path, hash FROM images WHERE id = ?", (image.id,)
        ).fetchone()
        return there is not None and there == (image.file.path, image.file.hash)

    def _agree_on_parts(self, connection: sqlite3.Connection, image: NewImage) -> None:
        """Keeps the parts of the first picture and raises ValueError for others."""
        parts = {
            name: list(array.shape[1:])
            for name, array in image.rows.items()
            if name != "image_labels"  # a picture whose labels are unknown has none
        }
        known = self.header.get("rows")
        labelled = "image_labels" in image.rows and not self.header.get("labelled")
        if known is not None and known != parts:
            raise ValueError(
                f"{image.id}: every picture of {self.path} must have the parts "
                f"{', '.join(known)}, got {', '.join(parts)}"
            )
        if known is None or labelled:
            # Another writer may have been first: its word holds.
            (text,) = connection.execute("SELECT header FROM about").fetchone()
            self.header = {"rows": parts} | json.loads(text)
            if labelled:
                self.header["labelled"] = True
            connection.execute("UPDATE about SET header = ?", (json.dumps(self.header),))
            if self.header["rows"] != parts:
                self._agree_on_parts(connection, image)


def row_width(name: str, shape: Sequence[int]) -> int:
    """Bytes of one row of a dataset."""
    return math.prod(shape) * dtype_of(name).itemsize


def _insert(connection: sqlite3.Connection, image: NewImage) -> None:
    height, width = np.asarray(image.rows["sizes"])[0].tolist()
    file = image.file
    blobs = [image.rows[name].tobytes() if name in image.rows else None for name in BLOBS]
    marks = ", ".join("?" * (10 + len(blobs)))
    connection.execute(
        "INSERT INTO images (id, path, source, hash, n_bytes, mtime_ns, taken, added, height, "
        f"width, {', '.join(BLOBS)}) VALUES ({marks})",
        (
            image.id,
            file.path,
            image.source,
            file.hash,
            file.n_bytes,
            file.mtime_ns,
            file.taken,
            time.time(),
            height,
            width,
            *blobs,
        ),
    )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False
    )
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
