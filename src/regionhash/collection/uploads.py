"""Uploaded pictures, whose files belong to the collection, and removal of pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from regionhash.collection.database import OF_HASH, UPLOADS_FOLDER, Database, FileState, NewImage
from regionhash.collection.removals import remember
from regionhash.files.atomic import replacing
from regionhash.files.names import as_shown
from regionhash.store import rows_of
from regionhash.structures import EncodedImage


def store_upload(
    database: Database, content: bytes, name: str, kind: str, encoded: EncodedImage
) -> tuple[int, str]:
    """Stores a picture that came as bytes, and its file; see `Collection.add_upload`."""
    digest = hashlib.sha256(content)
    path = database.path.parent / UPLOADS_FOLDER / (digest.hexdigest()[:32] + kind)
    image_id = f"{UPLOADS_FOLDER}/{digest.hexdigest()[:8]}-{name}"
    with database.transaction():  # `check` removes orphaned files in one too
        known = database.intact(OF_HASH, digest.digest())
        if known is None:
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            state = path.stat()
            file = FileState(
                database.path_of(path),
                digest.digest(),
                len(content),
                state.st_mtime_ns,
                state.st_mtime,
            )
            keep = database.keeps_floats
            rows = rows_of(image_id, encoded, None, database.header, keep_features=keep)
            row = database.put(NewImage(image_id, file, None, rows))
            known = database.intact("row = ?", row)
    assert known is not None  # found, or stored just now
    return int(known["row"]), str(known["id"])


def rows_named(database: Database, names: Sequence[str]) -> set[int]:
    """Rows of pictures, by id, file or folder. Raises ValueError for an unknown name."""
    rows: set[int] = set()
    for name in names:
        if not name:
            raise ValueError("the name of a picture, a file or a folder must not be empty")
        found = database.of_id(as_shown(name))
        of_name = ([found[0]["row"]] if found else []) + database.rows_at(name)
        if not of_name:
            folder = database.path.parent
            raise ValueError(f"{name}: no picture of {folder}, and no folder with one")
        rows.update(of_name)
    return rows


def remove_pictures(database: Database, rows: Iterable[int], names: Sequence[str] = ()) -> int:
    """Removes pictures by row or name, and files of uploads; returns how many there were.

    They stay out, see `regionhash.collection.removals`.

    Raises:
        ValueError: an unknown name; then nothing is removed.
    """
    with database.transaction() as connection:
        chosen = {*rows, *rows_named(database, names)}
        remember(database, connection, chosen)
        files = _files_of_uploads(database, chosen)
        removed = database.delete(chosen)
    _remove_files(database, files)
    return removed


def _remove_files(database: Database, files: Iterable[bytes]) -> None:
    """Removes files of uploads, except those that were uploaded again meanwhile."""
    for file in files:
        path = database.path.parent / UPLOADS_FOLDER / Path(os.fsdecode(file)).name
        with database.transaction():
            if database.of_path(file) is None:
                path.unlink(missing_ok=True)


def _files_of_uploads(database: Database, rows: Iterable[int]) -> list[bytes]:
    found = database.read(
        "SELECT path FROM pictures WHERE typeof(path) = 'blob' AND substr(path, 1, 1) != x'2f' "
        "AND row IN (SELECT value FROM json_each(?))",
        json.dumps(list(rows)),
    )
    return [path for (path,) in found]
