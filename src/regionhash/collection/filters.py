"""Filters of a collection: by class, folder, date and score."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np

from regionhash.collection.arrays import Snapshot
from regionhash.collection.database import Database
from regionhash.files.names import shown_name
from regionhash.search.request import Filter, RequestError
from regionhash.structures import Mask


class Masks:
    """The masks last computed, by filter and snapshot."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[Filter, object], Mask | None] = OrderedDict()

    def of(self, wanted: Filter, snapshot: Snapshot, database: Database) -> Mask | None:
        """`mask_of`, computed once per snapshot."""
        key = (wanted, (snapshot.generation, snapshot.version, len(snapshot)))
        with suppress(KeyError):
            return self._kept[key]
        mask = mask_of(wanted, snapshot, database)
        self._kept[key] = mask
        with suppress(KeyError):  # another thread may have emptied it
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return mask


def mask_of(wanted: Filter, snapshot: Snapshot, database: Database) -> Mask | None:
    """Mask (N,) of the pictures of a snapshot that pass a filter; None if all do.

    Raises:
        ValueError: the model does not know a class, or a least score is given but regions have no
            scores.
    """
    table = snapshot.table
    unknown = [name for name in wanted.labels if name not in table.classes]
    if unknown:
        known = ", ".join(table.classes) or "none"
        raise ValueError(f"label {unknown[0]!r}: not a class of the model, which knows {known}")
    if wanted.min_score and not table.has_scores:
        raise RequestError(
            "min_score", "needs scores of detected classes, which the model of these codes lacks"
        )
    mask = np.ones(len(table), bool) if snapshot.alive is None else snapshot.alive.copy()
    if wanted == Filter():
        return None if snapshot.alive is None else mask
    if wanted.after is not None:
        mask &= snapshot.taken >= wanted.after  # never true for NaN, an unknown time
    if wanted.before is not None:
        mask &= snapshot.taken < wanted.before
    for name in wanted.labels:
        label = table.classes.index(name)
        found = _detected(snapshot, wanted.min_score, label)
        if snapshot.labels is not None:
            found |= snapshot.labels[:, label] > 0
        mask &= found
    if wanted.min_score and not wanted.labels:
        mask &= _detected(snapshot, wanted.min_score)
    if wanted.folder is not None:
        mask &= _below(snapshot, database, wanted.folder)
    return mask


def _detected(snapshot: Snapshot, min_score: float, label: int | None = None) -> Mask:
    """Mask of pictures with a region of at least this score, of one class or of any."""
    table = snapshot.table
    found = np.zeros(len(table), bool)
    if table.offsets is None or table.scores is None or table.labels is None:
        return found
    scores, labels = np.asarray(table.scores), np.asarray(table.labels)
    good = scores >= min_score
    # The whole picture as a region has no class and the score 1: it is no detection.
    good &= (labels >= 0) | (scores < 1) if label is None else labels == label
    regions = np.flatnonzero(good)
    found[np.searchsorted(table.offsets, regions, side="right") - 1] = True
    return found


def _below(snapshot: Snapshot, database: Database, folder: str) -> Mask:
    """Mask of pictures whose file is below a folder, or whose id is, if the folder is relative."""
    found = np.zeros(len(snapshot.table), bool)
    rows = database.rows_at(folder)
    if not Path(folder).is_absolute():
        short = shown_name(Path(folder).as_posix()) + "/"
        query = "SELECT row FROM images WHERE id >= ? AND id < ?"
        rows += [row for (row,) in database.read(query, short, short[:-1] + "0")]
    found[snapshot.indices_of(np.array(rows, np.int64))] = True
    return found
