"""Whether a collection is whole: database, arrays and files compared, and what can be mended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regionhash.collection.arrays import Arrays, Snapshot
from regionhash.collection.database import (
    BLOBS,
    UPLOADS_FOLDER,
    Columns,
    Database,
    checksum,
)
from regionhash.files.atomic import leftovers, remove_leftovers
from regionhash.store import LAYOUT, StoreError
from regionhash.structures import CodeTable


@dataclass(frozen=True)
class CheckReport:
    """What `Collection.check` found.

    Attributes:
        n_images: pictures in the database.
        problems: what is wrong with the collection itself, a line each.
        missing: ids of pictures whose file is gone; changed: whose file is not what was encoded;
            unreadable: whose file could not be looked at. `Collection.refresh` sets the first two
            right.
        orphans: files in the folder that belong to no picture: what a killed process has left.
        repaired: what was wrong and has been set right, a line each.
    """

    n_images: int
    problems: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()


def check(database: Database, arrays: Arrays, *, repair: bool = False) -> CheckReport:
    """Compares database, arrays and files at one moment.

    Args:
        database: of the collection.
        arrays: of the collection.
        repair: restore damaged rows that the arrays hold whole, write the header's copies and the
            indices anew, build arrays anew that are not what the database holds, and remove what
            killed processes have left. A damaged row is never taken over into the arrays.
    """
    repaired = tuple(_repair(database, arrays)) if repair else ()
    with arrays.at_moment(database) as snapshot:
        problems = _database_problems(database)
        states: dict[str, list[str]] = {"missing": [], "changed": [], "unreadable": []}
        for row, columns in database.rows():
            if columns is None:
                problems.append(
                    f"row {row}: damaged, and left out; `refresh` encodes its picture again if the "
                    "file is there"
                )
            elif state := _file_state(database, columns):
                states[state].append(columns["id"])
        problems += _differences(database, snapshot)
        count = database.count()
        orphans = [
            str(path) for path in [*_abandoned_files(database, leftovers), *_lost_uploads(database)]
        ]
    return CheckReport(
        count,
        tuple(problems),
        **{state: tuple(ids) for state, ids in states.items()},
        orphans=tuple(orphans),
        repaired=repaired,
    )


def header_of_model(folder: Path) -> dict[str, Any]:
    """What the header of a collection says of the model in its folder.

    Raises:
        ValueError: no model is there, or a damaged one.
    """
    from regionhash.models.checkpoints import load_checkpoint, provenance

    model, checkpoint = load_checkpoint(folder)
    return {
        "model": checkpoint.name,
        "model_hash": checkpoint.model_hash,
        "classes": list(checkpoint.classes),
        "n_bits": model.n_bits,
        "n_region_bits": model.n_region_bits,
        "meta": {"precision": "32-true", "provenance": provenance()},
    }


def _repair(database: Database, arrays: Arrays) -> Iterator[str]:
    """Sets right what can be; says what it was."""
    if any(_database_problems(database)):
        with suppress(StoreError):  # what is still wrong is found again
            database.rewrite_header()
            database.reindex()
            yield f"{database.path}: header and indices were written anew"
    with arrays.at_moment(database) as snapshot:
        wrong = _differences(database, snapshot)
        restorable = list(_restorable(database, snapshot))
    for columns in restorable:
        restored = database.restore(columns)
        how = "restored from the arrays" if restored else "removed; its picture is stored again"
        yield f"{columns['id']}: row {columns['row']} was {how}"
    if wrong:
        with arrays.at_moment(database, rebuild=True):
            yield f"{wrong[0]}; they were built anew"
    with database.transaction():  # in which uploads are written as well
        for path in [*_abandoned_files(database, remove_leftovers), *_lost_uploads(database)]:
            path.unlink(missing_ok=True)
            yield f"{path}: was removed; it belongs to no picture"
    for path in arrays.remove_stale(database):
        yield f"{path}: was removed; these arrays were never finished"


def _database_problems(database: Database) -> list[str]:
    """What SQLite finds wrong, and copies of the header that differ."""
    try:
        lines = [line for (line,) in database.read("PRAGMA integrity_check") if line != "ok"]
    except StoreError as error:
        return [str(error)]
    problems = [f"{database.path}: {line}" for text in lines for line in text.splitlines()]
    if not database.header_is_whole():
        problems.append(f"{database.path}: a copy of the header is damaged")
    return problems


def _file_state(database: Database, columns: Columns) -> str | None:
    """What is to be said of the file of a picture; None where it is as it was."""
    if columns["path"] is None:
        return None
    try:
        state = os.stat(database.place_of(columns["path"]))  # noqa: PTH116 (bytes)
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "unreadable"
    known = (columns["n_bytes"], columns["mtime_ns"])
    now = (state.st_size, state.st_mtime_ns)
    changed = any(old not in (None, new) for old, new in zip(known, now, strict=True))
    return "changed" if changed else None


def _abandoned_files(database: Database, find: Callable[[Path], list[Path]]) -> Iterator[Path]:
    """What killed writers of files in the folder of a collection have left."""
    for path in sorted(database.path.parent.iterdir()):
        yield from find(path)


def _lost_uploads(database: Database) -> list[Path]:
    """Uploaded files that belong to no picture."""
    uploads = database.path.parent / UPLOADS_FOLDER
    return [
        path
        for path in (sorted(uploads.iterdir()) if uploads.is_dir() else ())
        if path.is_file()
        and not database.read("SELECT 1 FROM images WHERE path = ?", database.path_of(path))
    ]


def _content(table: CodeTable, n: int) -> dict[str, bytes]:
    """The columns of picture `n` of a table that are bytes."""
    content = {}
    for name in BLOBS:
        array = getattr(table, name, None)
        if array is None:
            continue
        offsets = {"region": table.offsets, "category": table.category_offsets}.get(LAYOUT[name][0])
        rows = slice(n, n + 1) if offsets is None else slice(*offsets[n : n + 2].tolist())
        content[name] = array[rows].tobytes()
    return content


def _differences(database: Database, snapshot: Snapshot) -> list[str]:
    """What the arrays hold otherwise than the intact rows of the database."""
    table = snapshot.table
    alive = np.ones(len(snapshot.rows), bool) if snapshot.alive is None else snapshot.alive
    places = dict(zip(snapshot.rows[alive].tolist(), np.flatnonzero(alive).tolist(), strict=True))
    for row, columns in database.rows():
        n = places.pop(row, None)
        if columns is None:
            continue  # damaged; the arrays may hold it as it was
        picture = f"picture {columns['id']} (row {row})"
        if n is None:
            return [f"arrays: {picture} is not there"]
        if table.ids[n] != columns["id"]:
            return [f"arrays: {picture} has another id"]
        if table.sizes[n].tolist() != [columns["height"], columns["width"]]:
            return [f"arrays: {picture} has another size"]
        for name, content in _content(table, n).items():
            if content != columns[name]:
                return [f"arrays: {name} of {picture} differ"]
        taken = float(snapshot.taken[n])
        if (None if np.isnan(taken) else taken) != columns["taken"]:
            return [f"arrays: {picture} has another time"]
        if snapshot.labels is not None:
            labels = columns["image_labels"] or bytes(snapshot.labels.shape[1])
            if snapshot.labels[n].tobytes() != labels:
                return [f"arrays: {picture} has other labels"]
    if places:
        return ["arrays: hold pictures that the database does not"]
    return []


def _restorable(database: Database, snapshot: Snapshot) -> Iterator[Columns]:
    """Damaged rows as they were, where the arrays hold what makes their checksum right."""
    table = snapshot.table
    for damaged in database.damaged():
        indices = snapshot.indices_of(np.array([damaged["row"]], np.int64))
        if not len(indices):
            continue
        n = int(indices[0])
        taken = float(snapshot.taken[n])
        height, width = table.sizes[n].tolist()
        held = {
            "id": table.ids[n],
            "taken": None if np.isnan(taken) else taken,
            "height": height,
            "width": width,
            **_content(table, n),
        }
        labels = None if snapshot.labels is None else snapshot.labels[n].tobytes()
        for image_labels in (labels, None):  # the arrays do not tell none from unknown
            columns = damaged | held | {"image_labels": image_labels}
            with suppress(TypeError):
                if checksum(columns) == columns["checksum"]:
                    yield columns
                    break
