"""Filters of a collection: by class, folder, date and score."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from regionhash.collection.arrays import Snapshot
from regionhash.collection.database import Database
from regionhash.collection.packing import as_kept
from regionhash.files.names import shown_name
from regionhash.search.request import Filter, RequestError
from regionhash.structures import Mask


class Masks:
    """The masks last computed, by filter and generation of the arrays.

    Rows of a generation never change and are only appended, so a mask is computed once, and then
    for the new rows alone.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[Filter, str], Mask] = OrderedDict()

    def of(self, wanted: Filter, snapshot: Snapshot, database: Database) -> Mask | None:
        """`mask_of`, with what is known of earlier snapshots."""
        check_filter(wanted, snapshot)
        if wanted == Filter():
            return snapshot.alive
        key = (wanted, snapshot.generation)
        known, n = self._kept.get(key, _NOTHING), len(snapshot.rows)
        if len(known) < n:
            known = np.concatenate([known, _passing(wanted, snapshot, database, len(known))])
        self._kept[key] = known
        with suppress(KeyError):  # another thread may have emptied it
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return known[:n] if snapshot.alive is None else known[:n] & snapshot.alive


_NOTHING = np.zeros(0, bool)


def mask_of(wanted: Filter, snapshot: Snapshot, database: Database) -> Mask | None:
    """Mask (N,) of the pictures of a snapshot that pass a filter; None if all do.

    Raises:
        ValueError: the model does not know a class, or a least score is given but regions have no
            scores.
    """
    return Masks().of(wanted, snapshot, database)


def check_filter(wanted: Filter, snapshot: Snapshot) -> None:
    """Raises ValueError for a filter that these pictures cannot have, see `mask_of`."""
    table = snapshot.table
    unknown = [name for name in wanted.labels if name not in table.classes]
    if unknown:
        known = ", ".join(table.classes) or "none"
        raise ValueError(f"label {unknown[0]!r}: not a class of the model, which knows {known}")
    if wanted.min_score and not table.has_scores:
        raise RequestError(
            "min_score", "needs scores of detected classes, which the model of these codes lacks"
        )


def as_engines_know(wanted: Filter, snapshot: Snapshot) -> Filter | None:
    """A filter by what an engine has of each picture; None if only the collection can apply it.

    Files move, and scores are kept in fewer bits, so that a least score may be nothing.
    """
    scores = snapshot.table.scores
    if wanted.folder is not None:
        return None
    if not wanted.min_score or scores is None:
        return wanted
    kept = float(as_kept(wanted.min_score, scores.dtype))
    return replace(wanted, min_score=kept) if kept else None


def _passing(wanted: Filter, snapshot: Snapshot, database: Database, first: int) -> Mask:
    """Mask of the pictures from `first` on that pass a filter, removed or not."""
    mask = np.ones(len(snapshot.rows) - first, bool)
    if wanted.after is not None:
        mask &= snapshot.taken[first:] >= wanted.after  # never true for NaN, an unknown time
    if wanted.before is not None:
        mask &= snapshot.taken[first:] < wanted.before
    for name in wanted.labels:
        label = snapshot.table.classes.index(name)
        found = _detected(snapshot, first, wanted.min_score, label)
        if snapshot.labels is not None:
            found |= snapshot.labels[first:, label] > 0
        mask &= found
    if wanted.min_score and not wanted.labels:
        mask &= _detected(snapshot, first, wanted.min_score)
    if wanted.folder is not None:
        mask &= _below(snapshot, first, database, wanted.folder)
    return mask


def _detected(snapshot: Snapshot, first: int, min_score: float, label: int | None = None) -> Mask:
    """Mask of pictures from `first` on with a region of at least this score, of a class or any."""
    table = snapshot.table
    found = np.zeros(len(table) - first, bool)
    if table.offsets is None or table.scores is None or table.labels is None:
        return found
    offsets = table.offsets[first:] - table.offsets[first]
    scores, labels = (part[table.offsets[first] :] for part in (table.scores, table.labels))
    good = scores >= as_kept(min_score, scores.dtype) if min_score else np.ones(len(scores), bool)
    # The whole picture as a region has no class and the score 1: it is no detection.
    good &= (labels >= 0) | (scores < 1) if label is None else labels == label
    found[np.searchsorted(offsets, np.flatnonzero(good), side="right") - 1] = True
    return found


def _below(snapshot: Snapshot, first: int, database: Database, folder: str) -> Mask:
    """Mask of pictures from `first` on whose file, or id if it is relative, is below a folder."""
    found = np.zeros(len(snapshot.table) - first, bool)
    after = int(snapshot.rows[first - 1]) if first else 0
    rows = database.rows_at(folder, after)
    if not Path(folder).is_absolute():
        rows += database.rows_with_ids_below(shown_name(Path(folder).as_posix()), after)
    found[snapshot.indices_of(np.array(rows, np.int64)) - first] = True
    return found
