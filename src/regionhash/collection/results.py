"""Results of a search in a collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regionhash.collection.arrays import Snapshot
from regionhash.search.request import Mode
from regionhash.search.run import Answer
from regionhash.structures import Box, Hit, Match

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

    def page(hits: Sequence[Hit]) -> tuple[Result, ...]:
        return tuple(_result(hit, snapshot, paths) for hit in hits)

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
    hits = [*answer.hits, *(hit for group in answer.groups for hit in group.hits)]
    found = [hit.index for best in hits for hit in (best, *best.duplicates)]
    rows: list[int] = snapshot.rows[np.array(found, np.int64)].tolist()
    return rows


def _result(hit: Hit, snapshot: Snapshot, paths: Mapping[int, Path]) -> Result:
    table, n = snapshot.table, hit.index
    row = int(snapshot.rows[n])
    labels: set[int] = set()
    if snapshot.labels is not None:
        labels |= set(np.flatnonzero(snapshot.labels[n]).tolist())
    if table.classes and table.offsets is not None:
        assert table.labels is not None and table.scores is not None
        own = slice(*table.offsets[n : n + 2].tolist())
        labels |= set(table.labels[own][table.scores[own] >= SHOWN_SCORE].tolist()) - {-1}
    taken = float(snapshot.taken[n])
    height, width = table.sizes[n].tolist()
    return Result(
        hit.image_id,
        row,
        paths.get(row),
        (height, width),
        hit.distance,
        hit.matches,
        tuple(table.classes[label] for label in sorted(labels)),
        None if np.isnan(taken) else taken,
        tuple(_result(duplicate, snapshot, paths) for duplicate in hit.duplicates),
        hit.context,
    )
