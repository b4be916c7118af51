"""Refreshing a collection: pictures whose file is gone, and damaged rows."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

from regionhash.collection.adding import AddReport, add_pictures
from regionhash.collection.database import Database
from regionhash.files.names import condition_of
from regionhash.reporter import Reporter

if TYPE_CHECKING:
    from regionhash.collection.collection import Collection


def remove_gone(
    database: Database, sources: Iterable[int], reporter: Reporter
) -> dict[int, tuple[int, int]]:
    """Removes the pictures of some sources whose file is gone.

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
    for source, known in files.items():
        gone, kept = [], 0
        for row, path, image_id in known:
            condition = condition_of(database.place_of(path))
            if condition == "gone":
                gone.append((row, path))
            elif condition == "unreadable":
                kept += 1
                reporter.note(f"{image_id}: its file cannot be accessed; the picture is kept")
        counts[source] = database.remove_gone(gone), kept
    return counts


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
