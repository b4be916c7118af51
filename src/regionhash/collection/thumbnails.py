"""Small JPEGs of a collection's pictures, in a file of their own, so that they outlive the service.

`thumbnails.db` is derived and may be deleted at any time. Numbers of rows are never used again, and
a thumbnail is only given for the tag that it was kept under, which changes with the picture's file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

THUMBNAILS_FILE = "thumbnails.db"
_KEPT = 0.8  # share of the room that stays in use when it is full
_PATIENCE = 0.2  # seconds that another process may hold the file
_HOUR = 3600.0  # seconds
_TABLE = """
    CREATE TABLE IF NOT EXISTS thumbnails (
        row INTEGER, size INTEGER, tag TEXT, used REAL, content BLOB, PRIMARY KEY (row, size)
    )
"""


class Thumbnails:
    """The thumbnails of the collection in `folder` used last, up to a number of bytes.

    Threads may share an object, processes a folder. A disk that refuses, and a file that is damaged
    or held by others, are no errors: what is not kept is made again.
    """

    def __init__(self, folder: Path, n_bytes: int) -> None:
        self._path = folder / THUMBNAILS_FILE
        self._room = n_bytes
        self._lock = threading.Lock()
        self._connection = self._opened()
        self._used = self._sum()

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def get(self, row: int, size: int, tag: str) -> bytes | None:
        """What is kept under this tag; None if nothing is."""
        kept = "thumbnails WHERE row = ? AND size = ? AND tag = ?"
        found = self._run(f"SELECT content, used FROM {kept}", row, size, tag)
        if not found:
            return None
        ((content, used),) = found
        if time.time() - used > _HOUR:  # not at each use, which would write to the disk
            self._run("UPDATE thumbnails SET used = ? WHERE row = ?", time.time(), row)
        return bytes(content)

    def put(self, row: int, size: int, tag: str, content: bytes) -> None:
        """Keeps a thumbnail, in place of that of another tag, and of the oldest."""
        values = row, size, tag, time.time(), content
        self._run("INSERT OR REPLACE INTO thumbnails VALUES (?, ?, ?, ?, ?)", *values)
        self._used += len(content)
        if self._used > self._room:
            self._make_room()

    def rows(self) -> list[int]:
        """The rows of which any is kept, ascending."""
        return [row for (row,) in self._run("SELECT DISTINCT row FROM thumbnails ORDER BY row")]

    def drop(self, rows: Iterable[int]) -> None:
        """Removes those of some rows."""
        chosen = json.dumps([*rows])
        self._run("DELETE FROM thumbnails WHERE row IN (SELECT value FROM json_each(?))", chosen)

    def _make_room(self) -> None:
        self._used = self._sum()  # others may have made room, or have replaced some
        oldest = []
        for number, length in self._run(
            "SELECT rowid, length(content) FROM thumbnails ORDER BY used"
        ):
            if self._used <= _KEPT * self._room:
                break
            oldest.append(number)
            self._used -= length
        self._run(  # in one transaction, since each waits for the disk
            "DELETE FROM thumbnails WHERE rowid IN (SELECT value FROM json_each(?))",
            json.dumps(oldest),
        )

    def _sum(self) -> int:
        found = self._run("SELECT coalesce(sum(length(content)), 0) FROM thumbnails")
        return int(found[0][0]) if found else 0

    def _run(self, statement: str, *values: Any) -> list[Any]:
        """The rows of a statement; none if the file refuses."""
        with self._lock, suppress(sqlite3.Error):
            return self._connection.execute(statement, values).fetchall()
        return []

    def _opened(self) -> sqlite3.Connection:
        """The file, empty if it was damaged; in memory where there can be none."""
        for _ in range(2):
            try:
                return _connected(str(self._path))
            except sqlite3.OperationalError:  # the folder may not be written, or others hold it
                break
            except sqlite3.DatabaseError:
                with suppress(OSError):
                    self._path.unlink()
        return _connected(":memory:")


def _connected(path: str) -> sqlite3.Connection:
    """A connection to a file that has the table, all of which can be read."""
    connection = sqlite3.connect(
        path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute(_TABLE)
        with closing(connection.execute("SELECT sum(length(tag)) FROM thumbnails")) as found:
            found.fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection
