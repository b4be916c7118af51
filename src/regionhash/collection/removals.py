"""Pictures that were removed while their file was there: they do not come back by themselves.

`refresh`, and an `add` of the folder, would find their files again. So the removal is kept with the
path and the bytes of the file: a picture stays out as long as its file is unchanged, also if the
file moves. `add` of the file itself, or with `again`, takes the removal back; other files of the
same bytes that were removed and are in their place stay out.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable
from functools import cache

from regionhash.collection.database import Database, FileState
from regionhash.files.names import condition_of, shows_nothing

_TABLE = """CREATE TABLE IF NOT EXISTS left_out (
    key PRIMARY KEY,  -- path of the file, a BLOB as in images; or TEXT, the name in a data set;
                      -- NULL if another picture was removed from there since
    hash BLOB         -- SHA-256 of the file
)"""
_EXISTS = "SELECT 1 FROM sqlite_master WHERE name = 'left_out'"

Key = bytes | str


class Removals:
    """The removals of one moment."""

    def __init__(self, database: Database) -> None:
        rows: list[tuple[Key | None, bytes | None]] = []
        if database.read(_EXISTS):
            rows = database.read("SELECT key, hash FROM left_out")
        self._hash_of = {key: hash_ for key, hash_ in rows if key is not None}
        self._hashes = {hash_ for _, hash_ in rows} - {None}

    def has_name(self, name: str) -> bool:
        """Whether a picture of a data set without files was removed."""
        return name in self._hash_of

    def has_file(self, file: FileState) -> bool:
        """Whether a file was removed, and is unchanged in its place."""
        return file.path in self._hash_of and self._hash_of[file.path] == file.hash

    def has_bytes(self, file: FileState) -> bool:
        """Whether a file of the same bytes was removed, here or elsewhere."""
        return file.hash in self._hashes


def remember(database: Database, connection: sqlite3.Connection, rows: Iterable[int]) -> None:
    """Keeps that the pictures of some rows are removed, inside the transaction that does so.

    Uploads cannot come back and are not kept, and neither are pictures whose file is gone, unless
    its folder is missing or empty, as if it were on a disk that is not mounted.
    """
    is_away = cache(shows_nothing)
    found = database.read(
        "SELECT path, hash, name FROM pictures WHERE row IN (SELECT value FROM json_each(?))",
        json.dumps(list(rows)),
    )
    kept = [
        (name if path is None else path, hash_)
        for path, hash_, name in found
        if path is None or _may_come_back(database, path, is_away)
    ]
    if kept:
        connection.execute(_TABLE)
        # What was removed from the same place before may have moved, or come back there.
        connection.executemany(
            "UPDATE left_out SET key = NULL WHERE key = ? AND hash IS NOT ?", kept
        )
        connection.executemany("INSERT OR REPLACE INTO left_out VALUES (?, ?)", kept)


def _may_come_back(
    database: Database, path: object, is_away: Callable[[bytes], bool] | None = None
) -> bool:
    if not isinstance(path, bytes) or not path.startswith(b"/"):  # damaged, or an upload
        return False
    place = database.place_of(path)
    if condition_of(place) != "gone":
        return True
    return is_away is not None and is_away(os.path.dirname(place))  # noqa: PTH120 (bytes)


def was_removed(database: Database, path: bytes, hash_: bytes | None) -> bool:
    """Whether a file is the one that was removed, as the database knows it now."""
    query = "SELECT 1 FROM left_out WHERE key = ? AND hash IS ?"
    return bool(database.read(_EXISTS) and database.read(query, path, hash_))


def forget(database: Database, key: Key, hash_: bytes | None = None) -> None:
    """Takes a removal back: of a file or name, and of the same bytes that are no longer there."""
    with database.transaction() as connection:
        if not database.read(_EXISTS):
            return
        of_bytes = database.read("SELECT rowid, key FROM left_out WHERE hash = ?", hash_)
        moved = [(row,) for row, other in of_bytes if not _may_come_back(database, other)]
        connection.execute("DELETE FROM left_out WHERE key = ? AND hash IS ?", (key, hash_))
        connection.executemany("DELETE FROM left_out WHERE rowid = ?", moved)
