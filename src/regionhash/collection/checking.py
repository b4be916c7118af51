"""Checking and repairing a collection: database, arrays and files are compared."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regionhash.collection.arrays import Arrays, Snapshot
from regionhash.collection.database import BLOBS, UPLOADS_FOLDER, Columns, Database, checksum
from regionhash.collection.packing import PackedBoxes
from regionhash.files.atomic import leftovers, remove_leftovers
from regionhash.store import LAYOUT, StoreError
from regionhash.structures import CodeTable

if TYPE_CHECKING:
    from regionhash.models.runtime import RuntimeName
    from regionhash.precision import PrecisionName


@dataclass(frozen=True)
class CheckReport:
    """What `Collection.check` found.

    Attributes:
        n_images: pictures in the database.
        problems: what is wrong with the collection itself, a line each.
        missing: ids of pictures whose file is gone; changed: whose file has changed since it was
            encoded; unreadable: whose file cannot be accessed. `Collection.refresh` fixes the
            first two.
        orphans: files in the folder that belong to no picture, left by killed processes.
        repaired: what was wrong and has been repaired, a line each.
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
        database: the collection's database.
        arrays: the collection's arrays.
        repair: restore damaged rows that are intact in the arrays, rewrite the copies of the header
            and the indices, rebuild arrays that differ from the database, remove leftovers of
            killed processes, and give the space of removed pictures back if it is a quarter of the
            database. A damaged row is never copied into the arrays.
    """
    repaired = tuple(_repair(database, arrays)) if repair else ()
    with arrays.at_moment(database) as snapshot:
        problems = _database_problems(database)
        states: dict[str, list[str]] = {"missing": [], "changed": [], "unreadable": []}
        for row, columns in database.rows():
            if columns is None:
                problems.append(
                    f"row {row}: damaged, and left out; `refresh` re-encodes its picture if the "
                    "file still exists"
                )
            elif state := _file_state(database, columns):
                states[state].append(columns["id"])
        problems += _differences(database, snapshot)
        problems += _of_encoder(database.path.parent)
        problems += _of_detector(database.path.parent)
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


def header_of_model(
    folder: Path,
    *,
    device: str = "cpu",
    runtime: RuntimeName = "auto",
    precision: PrecisionName = "32-true",
) -> dict[str, Any]:
    """The fields of a collection's header that describe the model in its folder.

    Args:
        folder: of the collection.
        device: see `pick_device`.
        runtime: what runs the model, see `load_runtime`.
        precision: of the codes, see there.

    Raises:
        ValueError: there is no model, it is damaged, or it cannot be run so.
    """
    from regionhash.models.checkpoints import provenance
    from regionhash.models.runtime import load_runtime

    model, checkpoint = load_runtime(folder, device=device, runtime=runtime, precision=precision)
    return {
        "model": checkpoint.name,
        "model_hash": checkpoint.model_hash,
        "classes": list(checkpoint.classes),
        "n_bits": model.n_bits,
        "n_region_bits": model.n_region_bits,
        "meta": {"precision": model.precision, "provenance": provenance()},
    }


def _repair(database: Database, arrays: Arrays) -> Iterator[str]:
    """Repairs what can be repaired; yields a line about each repair."""
    if any(_database_problems(database)):
        with suppress(StoreError):  # remaining problems are found again
            database.rewrite_header()
            database.reindex()
            yield f"{database.path}: header and indices were rewritten"
    with arrays.at_moment(database) as snapshot:
        wrong = _differences(database, snapshot)
        restorable = list(_restorable(database, snapshot))
    for columns in restorable:
        restored = database.restore(columns)
        how = "restored from the arrays" if restored else "removed; its picture has a new row"
        yield f"{columns['id']}: row {columns['row']} was {how}"
    if wrong:
        with arrays.at_moment(database, rebuild=True):
            yield f"{wrong[0]}; the arrays were rebuilt"
    with database.transaction():  # uploads are written in one too
        for path in [*_abandoned_files(database, remove_leftovers), *_lost_uploads(database)]:
            path.unlink(missing_ok=True)
            yield f"{path}: was removed; it belongs to no picture"
    for path in arrays.remove_stale(database):
        yield f"{path}: was removed; these arrays were never finished"
    with suppress(StoreError):  # a full disk needs it most, and cannot have it
        if n_bytes := database.give_back_space():
            yield f"{database.path}: {n_bytes / 1e6:,.1f} MB of removed pictures were given back"


def _database_problems(database: Database) -> list[str]:
    """What SQLite's integrity check finds, and damaged copies of the header."""
    try:
        lines = [line for (line,) in database.read("PRAGMA integrity_check") if line != "ok"]
    except StoreError as error:
        return [str(error)]
    problems = [f"{database.path}: {line}" for text in lines for line in text.splitlines()]
    if not database.header_is_whole():
        problems.append(f"{database.path}: a copy of the header is damaged")
    return problems


def _of_encoder(folder: Path) -> list[str]:
    """What is wrong with the collection's encoder."""
    from regionhash.models import ENCODED_REGIONS
    from regionhash.models.checkpoints import CheckpointError, read_checkpoint
    from regionhash.models.region_hash import RegionHash

    try:
        if read_checkpoint(folder).name != ENCODED_REGIONS:
            return []
    except CheckpointError:  # a collection without its model
        return []
    try:
        RegionHash.load(folder)
    except ValueError as error:
        return [str(error)]
    return []


def _of_detector(folder: Path) -> list[str]:
    """What is wrong with the collection's detector."""
    from regionhash.collection.box_files import detector_in
    from regionhash.detectors import check_detector, is_detector
    from regionhash.models.checkpoints import CheckpointError, read_checkpoint

    try:
        detector_in(folder, read_checkpoint(folder))
    except CheckpointError:  # a collection without its model
        return [line] if is_detector(folder) and (line := check_detector(folder)) else []
    except ValueError as error:
        return [f"{error}; `regionhash index` with the same detector restores it"]
    return []


def _file_state(database: Database, columns: Columns) -> str | None:
    """What has happened to the file of a picture; None if it is unchanged."""
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
    """Temporary files that killed writers left in the folder of a collection."""
    for path in sorted(database.path.parent.iterdir()):
        yield from find(path)


def _lost_uploads(database: Database) -> list[Path]:
    """Uploaded files that belong to no picture."""
    uploads = database.path.parent / UPLOADS_FOLDER
    return [
        path
        for path in (sorted(uploads.iterdir()) if uploads.is_dir() else ())
        if path.is_file() and database.of_path(database.path_of(path)) is None
    ]


def _content(table: CodeTable, n: int) -> dict[str, bytes]:
    """The binary columns of picture `n` of a table."""
    content = {}
    for name in BLOBS:
        array = getattr(table, name, None)
        if array is None:
            continue
        offsets = {"region": table.offsets, "category": table.category_offsets}.get(LAYOUT[name][0])
        rows = slice(n, n + 1) if offsets is None else slice(*offsets[n : n + 2].tolist())
        stored = array.packed if isinstance(array, PackedBoxes) else array
        content[name] = stored[rows].tobytes()
    return content


def _differences(database: Database, snapshot: Snapshot) -> list[str]:
    """The first difference between the arrays and the intact rows of the database, if any."""
    table = snapshot.table
    alive = snapshot.present
    places = dict(zip(snapshot.rows[alive].tolist(), np.flatnonzero(alive).tolist(), strict=True))
    for row, columns in database.rows():
        n = places.pop(row, None)
        if columns is None:
            continue  # damaged; the arrays may still hold it intact
        picture = f"picture {columns['id']} (row {row})"
        if n is None:
            return [f"arrays: {picture} is missing"]
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
        return ["arrays: hold pictures that the database does not have"]
    return []


def _restorable(database: Database, snapshot: Snapshot) -> Iterator[Columns]:
    """Damaged rows as they were, if the content of the arrays gives the right checksum."""
    table = snapshot.table
    for damaged in database.damaged():
        n = snapshot.index_of(damaged["row"])
        if n is None:
            continue
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
        for image_labels in (labels, None):  # the arrays store unknown labels like none
            columns = damaged | held | {"image_labels": image_labels}
            with suppress(TypeError):
                if checksum(columns) == columns["checksum"]:
                    yield columns
                    break
