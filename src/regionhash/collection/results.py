"""What a search of a collection answers."""

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
"""Least score of a detection whose class is named with a result."""


@dataclass(frozen=True, slots=True)
class Result:
    """One found picture.

    Attributes:
        id: of the picture; row: its number in the database, which never stands for another.
        path: its file; None of a picture that is in no file.
        size: (height, width) in pixels.
        distance: Hamming distance in bits; over several objects their sum.
        matches: the regions that answer the query objects, in their order; none of whole pictures.
        classes: names of the classes that are known of the picture or detected in it.
        taken: seconds since 1970; None where unknown.
        duplicates: pictures that look nearly the same and rank below, where that was asked for.
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


@dataclass(frozen=True, slots=True)
class ResultGroup:
    """What was found for one category of the query.

    Attributes:
        category: name of the class.
        prob: the probability that the query shows it.
        hits: pictures that show it, best first; their distances are of its codes.
    """

    category: str
    prob: float
    hits: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """One page of an answer.

    Attributes:
        mode: what was compared, see `regionhash.search.request.Mode`.
        steps: of the search for one object, see `regionhash.search.steps`.
        boxes: of the query objects, one tuple per query picture.
        hits: best first; equal distances in the order in which the pictures were stored.
        offset: rank of the first hit, from 0.
        more: whether there is a next page.
        searched: pictures that the filter let through.
        groups: of mode category, the page of each category of the query, most probable category
            first; `hits` is empty then.
        without: boxes of what must not be there, one tuple per picture of it.
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


def results_of(answer: Answer, snapshot: Snapshot, paths: Mapping[int, Path]) -> Results:
    """An answer with what the collection knows of its pictures.

    Args:
        answer: of a search of the snapshot's codes.
        snapshot: that was searched.
        paths: the files of the rows that `rows_of_hits` names; those in no file are left out.
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
    )


def rows_of_hits(answer: Answer, snapshot: Snapshot) -> list[int]:
    """Numbers in the database of all pictures of an answer, duplicates among them."""
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
        regions = table.regions(n)
        labels |= set(regions.labels[regions.scores >= SHOWN_SCORE].tolist()) - {-1}
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
    )
