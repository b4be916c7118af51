"""Results of a search in a collection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regionhash.collection.arrays import Snapshot
from regionhash.search.request import Mode
from regionhash.search.run import Answer
from regionhash.structures import Box, Hit, Ints, Mask, Match, items_of

SHOWN_SCORE = 0.5
"""Least score at which a detection's class is listed in a result."""


@dataclass(frozen=True, slots=True)
class Result:
    """One found picture.

    Attributes:
        id: the picture's id; row: its number in the database, never reused.
        path: its file; None if it has none.
        size: (height, width) in pixels.
        distance: Hamming distance in bits; for several objects, their sum; and with it, `context`.
        matches: the matched region of each query object, in order; empty for whole pictures.
        classes: names of its classes, known or detected.
        taken: seconds since 1970; None if unknown.
        duplicates: near-duplicates that rank below it, if the search grouped them.
        context: the part of `distance` that the whole pictures add, see
            `regionhash.search.request.Search`; None if they do not take part.
    """

    id: str
    row: int
    path: Path | None
    size: tuple[int, int]
    distance: int
    matches: tuple[Match, ...]
    classes: tuple[str, ...]
    taken: float | None
    duplicates: tuple[Result, ...] = ()
    context: int | None = None


@dataclass(frozen=True, slots=True)
class ResultGroup:
    """Results for one category of the query.

    Attributes:
        category: name of the class.
        prob: probability that the query shows it; None if the model gives none.
        hits: pictures that show it, best first, by distance of the category's codes.
    """

    category: str
    prob: float | None
    hits: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """One page of results.

    Attributes:
        mode: what was compared, see `regionhash.search.request.Mode`.
        steps: steps of a search for one object, see `regionhash.search.steps`.
        boxes: boxes of the query objects, one tuple per query picture.
        hits: best first; ties in the order in which the pictures were stored.
        offset: rank of the first hit, from 0.
        more: whether there is a next page.
        searched: number of pictures that passed the filter.
        groups: mode category: the page of each category of the query, most probable first; `hits`
            is then empty.
        without: boxes of the excluded objects, one tuple per picture.
        notes: what was searched for other than asked, see `regionhash.search.run.Answer`.
    """

    mode: Mode
    steps: tuple[str, ...]
    boxes: tuple[tuple[Box, ...], ...]
    hits: tuple[Result, ...]
    offset: int
    more: bool
    searched: int
    groups: tuple[ResultGroup, ...] = ()
    without: tuple[tuple[Box, ...], ...] = ()
    notes: tuple[str, ...] = ()


def results_of(answer: Answer, snapshot: Snapshot, paths: Mapping[int, Path]) -> Results:
    """Adds to an answer what the collection knows of its pictures.

    Args:
        answer: the answer to a search of the snapshot's codes.
        snapshot: what was searched.
        paths: files of the rows of `rows_of_hits`; rows whose file is not asked for, or that have
            none, are missing.
    """
    classes = snapshot.table.classes
    known = _known_of(_indices_of(answer), snapshot)

    def page(hits: Sequence[Hit]) -> tuple[Result, ...]:
        return tuple(_result(hit, known, paths) for hit in hits)

    return Results(
        answer.mode,
        answer.steps,
        tuple(query.boxes for query in answer.queries),
        page(answer.hits),
        answer.offset,
        answer.more,
        answer.n_searched,
        tuple(
            ResultGroup(classes[group.category], group.prob, page(group.hits))
            for group in answer.groups
        ),
        tuple(query.boxes for query in answer.excluded),
        answer.notes,
    )


def rows_of_hits(answer: Answer, snapshot: Snapshot) -> list[int]:
    """Database rows of all pictures of an answer, including duplicates."""
    rows: list[int] = snapshot.rows[_indices_of(answer)].tolist()
    return rows


def _indices_of(answer: Answer) -> Ints:
    """The pictures (K,) int64 of an answer in the table, including duplicates."""
    hits = [*answer.hits, *(hit for group in answer.groups for hit in group.hits)]
    return np.array([hit.index for best in hits for hit in (best, *best.duplicates)], np.int64)


class _Known(NamedTuple):
    """What is known of a picture; the fields are those of `Result`."""

    row: int
    size: tuple[int, int]
    classes: tuple[str, ...]
    taken: float | None


def _known_of(indices: Ints, snapshot: Snapshot) -> dict[int, _Known]:
    """What is known of pictures (K,), by their index in the table."""
    found = zip(
        indices.tolist(),
        snapshot.rows[indices].tolist(),
        snapshot.table.sizes[indices].tolist(),
        _shown_classes(indices, snapshot).tolist(),
        snapshot.taken[indices].tolist(),
        strict=True,
    )
    names = snapshot.table.classes
    return {
        n: _Known(row, (height, width), tuple(compress(names, shown)), _time(taken))
        for n, row, (height, width), shown, taken in found
    }


def _shown_classes(indices: Ints, snapshot: Snapshot) -> Mask:
    """Which classes (K, C) pictures (K,) are known to show, or were detected in them."""
    table = snapshot.table
    shown = np.zeros((len(indices), len(table.classes)), bool)
    if snapshot.labels is not None:
        shown |= snapshot.labels[indices] > 0
    if table.classes and table.offsets is not None:
        assert table.labels is not None and table.scores is not None
        items, bounds = items_of(table.offsets, indices)
        labels, pictures = table.labels[items], np.repeat(np.arange(len(indices)), np.diff(bounds))
        sure = (table.scores[items] >= SHOWN_SCORE) & (labels >= 0)
        shown[pictures[sure], labels[sure]] = True
    return shown


def _time(taken: float) -> float | None:
    return None if math.isnan(taken) else taken


def _result(hit: Hit, known: Mapping[int, _Known], paths: Mapping[int, Path]) -> Result:
    row, size, classes, taken = known[hit.index]
    return Result(
        hit.image_id,
        row,
        paths.get(row),
        size,
        hit.distance,
        hit.matches,
        classes,
        taken,
        tuple(_result(duplicate, known, paths) for duplicate in hit.duplicates),
        hit.context,
    )
