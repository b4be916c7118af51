"""Which pictures of a collection a search looks at: by class, folder, date and score."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np

from regionhash.collection.arrays import Snapshot
from regionhash.collection.database import Database
from regionhash.files.names import shown_name
from regionhash.search.request import Filter
from regionhash.structures import Mask


class Masks:
    """The masks of filters that were used last, each for the snapshot that it belongs to."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[Filter, object], Mask | None] = OrderedDict()

    def of(self, wanted: Filter, snapshot: Snapshot, database: Database) -> Mask | None:
        """`mask_of`, made once."""
        key = (wanted, (snapshot.generation, snapshot.version, len(snapshot)))
        with suppress(KeyError):
            return self._kept[key]
        mask = mask_of(wanted, snapshot, database)
        self._kept[key] = mask
        with suppress(KeyError):  # another thread may have made room
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return mask


def mask_of(wanted: Filter, snapshot: Snapshot, database: Database) -> Mask | None:
    """The pictures of a snapshot that a filter lets through, (N,) bool; None for all.

    Raises:
        ValueError: a class that the model does not know, or scores of pictures without regions.
    """
    table = snapshot.table
    unknown = [name for name in wanted.labels if name not in table.classes]
    if unknown:
        known = ", ".join(table.classes) or "none"
        raise ValueError(f"label {unknown[0]!r}: no class of the model, which knows {known}")
    mask = np.ones(len(table), bool) if snapshot.alive is None else snapshot.alive.copy()
    if wanted == Filter():
        return None if snapshot.alive is None else mask
    if wanted.after is not None:
        mask &= snapshot.taken >= wanted.after  # NaN, an unknown time, is in no span
    if wanted.before is not None:
        mask &= snapshot.taken < wanted.before
    for name in wanted.labels:
        label = table.classes.index(name)
        found = _detected(snapshot, wanted.min_score, label)
        if snapshot.labels is not None:
            found |= snapshot.labels[:, label] > 0
        mask &= found
    if wanted.min_score and not wanted.labels:
        if table.scores is None:
            raise ValueError("min_score: these codes have no regions")
        mask &= _detected(snapshot, wanted.min_score)
    if wanted.folder is not None:
        mask &= _below(snapshot, database, wanted.folder)
    return mask


def _detected(snapshot: Snapshot, min_score: float, label: int | None = None) -> Mask:
    """Pictures with a region of at least this score, of one class or of any."""
    table = snapshot.table
    found = np.zeros(len(table), bool)
    if table.offsets is None or table.scores is None or table.labels is None:
        return found
    good = np.asarray(table.scores) >= min_score
    if label is not None:
        good &= table.labels == label
    at = np.flatnonzero(good)
    found[np.searchsorted(table.offsets, at, side="right") - 1] = True
    return found


def _below(snapshot: Snapshot, database: Database, folder: str) -> Mask:
    """Pictures whose file, or whose id if that is a relative path, is in a folder or below it."""
    found = np.zeros(len(snapshot.table), bool)
    rows = database.rows_at(folder)
    if not Path(folder).is_absolute():
        short = shown_name(Path(folder).as_posix()) + "/"
        query = "SELECT row FROM images WHERE id >= ? AND id < ?"
        rows += [row for (row,) in database.read(query, short, short[:-1] + "0")]
    found[snapshot.indices_of(np.array(rows, np.int64))] = True
    return found
