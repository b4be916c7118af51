"""Stored pictures of a collection: names, files, pixels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from regionhash.collection.database import Columns, Database
from regionhash.files.names import as_shown

if TYPE_CHECKING:
    from regionhash.data.inputs import Source


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture of a collection.

    Attributes:
        row: its number in the database, never reused.
        id: its name.
        size: (height, width) in pixels.
        path: its file; None if it has none.
    """

    row: int
    id: str
    size: tuple[int, int]
    path: Path | None


def columns_of(database: Database, image: str | int) -> Columns:
    """The row of a picture, by id or row number. Raises KeyError if there is none intact."""
    if isinstance(image, str):
        found = database.of_id(as_shown(image))
    else:
        found = database.one("row = ?", image)
    if found is None or not found[1]:
        raise KeyError(image)
    return found[0]


def stored_image(database: Database, columns: Columns) -> StoredImage:
    """The picture of a row."""
    size = columns["height"], columns["width"]
    return StoredImage(columns["row"], columns["id"], size, path_of(database, columns["path"]))


def images_after(database: Database, after: int, limit: int | None) -> list[StoredImage]:
    """The pictures of the rows above `after`, in order; damaged rows are left out."""
    with database.moment():
        rows = database.rows(after) if limit is None else database.rows(after, at_a_time=limit)
        found = (columns for _, columns in rows if columns is not None)
        return [stored_image(database, columns) for columns in islice(found, limit)]


def path_of(database: Database, path: bytes | None) -> Path | None:
    """The file of a stored path."""
    return None if path is None else Path(os.fsdecode(database.place_of(path)))


def paths_of(database: Database, rows: Sequence[int]) -> dict[int, Path]:
    """Files by row; rows without a file, or removed by now, are missing."""
    found = database.read(
        "SELECT row, path FROM pictures WHERE typeof(path) = 'blob' "
        "AND row IN (SELECT value FROM json_each(?))",
        json.dumps(rows),
    )
    return {row: Path(os.fsdecode(database.place_of(path))) for row, path in found}


def pixels_of(database: Database, columns: Columns) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) uint8 RGB of a row.

    Raises:
        ImageError: the file is gone or cannot be read.
    """
    from regionhash.data.images import read_image
    from regionhash.data.inputs import Pictures

    path = path_of(database, columns["path"])
    if path is not None:
        return read_image(path)
    return Pictures(_places(database, "WHERE source = ?", columns["source"]))[columns["name"]]


def places_of(database: Database) -> list[Source]:
    """Locations of the pictures of all sources; damaged entries are left out."""
    return _places(database, "")


def _places(database: Database, where: str, *values: int | None) -> list[Source]:
    places = []
    for (text,) in database.read(f"SELECT place FROM sources {where}", *values):
        with suppress(TypeError, ValueError):
            place = json.loads(text)
            if isinstance(place, dict) and all(map(isinstance, place.values(), repeat(str))):
                places.append(place)
    return places
