"""Refreshing a collection: pictures whose file is gone, and damaged rows."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionhash.collection.adding import AddReport, add_pictures
from regionhash.collection.database import Database
from regionhash.files.names import condition_of, shown_name, shows_nothing
from regionhash.reporter import Reporter

if TYPE_CHECKING:
    from regionhash.collection.collection import Collection


def remove_gone(
    database: Database, sources: Iterable[int], reporter: Reporter, *, remove_empty: bool = False
) -> dict[int, tuple[int, int]]:
    """Removes the pictures of some sources whose file is gone.

    Args:
        database: the collection's database.
        sources: their numbers.
        reporter: is told what is kept.
        remove_empty: whether to remove pictures of folders that are empty now. They may be the
            place of a disk that is not mounted, so they are kept otherwise.

    Returns:
        For each source, how many were removed, and how many were kept because their file cannot
        be accessed.
    """
    files: dict[int, list[tuple[int, bytes, str]]] = {source: [] for source in sources}
    with database.moment():
        for row, columns in database.rows():
            if columns is None or columns["path"] is None:
                continue
            if columns["source"] in files:
                files[columns["source"]].append((row, columns["path"], columns["id"]))
    counts = {}
    empty_folder = cache(_empty_folder)
    kept_below: dict[bytes, int] = {}
    for source, known in files.items():
        gone, kept = [], 0
        for row, path, image_id in known:
            place = database.place_of(path)
            condition = condition_of(place)
            empty = None
            if condition == "gone" and not remove_empty:
                empty = empty_folder(os.path.dirname(place))  # noqa: PTH120 (bytes)
            if empty is not None:
                kept += 1
                kept_below[empty] = kept_below.get(empty, 0) + 1
            elif condition == "gone":
                gone.append((row, path))
            elif condition == "unreadable":
                kept += 1
                reporter.note(f"{image_id}: its file cannot be accessed; the picture is kept")
        counts[source] = database.remove_gone(gone), kept
    for folder, n_kept in kept_below.items():
        reporter.note(
            f"{shown_name(folder)}: is empty now, or cannot be read; {n_kept} pictures below it "
            "are kept (refresh --remove-empty removes them)"
        )
    return counts


def _empty_folder(folder: bytes) -> bytes | None:
    """The nearest folder above a missing file that is there, if it is empty or unreadable."""
    while condition_of(folder) == "gone" and folder not in (b"/", b""):
        folder = os.path.dirname(folder)  # noqa: PTH120 (bytes)
    return folder if shows_nothing(folder) else None


def is_empty(inputs: Sequence[str]) -> bool:
    """Whether all inputs of a source are folders with nothing in them."""
    return all(Path(given).is_dir() and not any(Path(given).iterdir()) for given in inputs)


def encode_damaged_again(
    database: Database,
    collection: Collection,
    refreshed: Container[int],
    **options: Any,
) -> AddReport | None:
    """Re-encodes pictures whose row is damaged, except those of refreshed sources."""
    with database.moment():
        damaged = database.damaged()
    # A refreshed source has just re-encoded its pictures, into new rows.
    database.remove(columns["row"] for columns in damaged if columns["source"] in refreshed)
    again = [
        columns
        for columns in damaged
        if columns["source"] not in refreshed
        and isinstance(columns["id"], str)
        and isinstance(columns["path"], bytes)
        and condition_of(database.place_of(columns["path"])) == "there"
    ]
    if not again:
        return None
    from regionhash.data.inputs import open_inputs

    files = [os.fsdecode(database.place_of(columns["path"])) for columns in again]
    image_set, _ = open_inputs(files)
    image_set = replace(image_set, ids=tuple(columns["id"] for columns in again))
    return add_pictures(database, *collection.model, image_set, None, **options)


def inputs_of(text: Any) -> list[str]:
    """The inputs that define a source. Raises ValueError if the entry is damaged."""
    try:
        inputs = json.loads(text)
    except (TypeError, ValueError):
        inputs = None
    if not isinstance(inputs, list) or not all(map(isinstance, inputs, repeat(str))):
        raise ValueError("collection.db: a row of sources is damaged")
    return inputs


def shown_inputs(text: Any) -> list[str]:
    """The same for display: a damaged entry becomes a message."""
    try:
        return inputs_of(text)
    except ValueError as error:
        return [str(error)]
