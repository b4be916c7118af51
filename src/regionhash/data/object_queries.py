"""Queries of one object or several, drawn from labelled pictures (DMIH, Secs. 4.3 and 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from regionhash.data.image_set import ImageSet
from regionhash.structures import Floats


@dataclass(frozen=True, slots=True, eq=False)
class QueryBox:
    """One object to search for.

    Attributes:
        row: the row of its picture in the query set.
        box: (4,) float32, xyxy in pixels of the picture; None for the whole picture.
    """

    row: int
    box: Floats | None


@dataclass(frozen=True, slots=True, eq=False)
class ObjectQuery:
    """Several objects, all of which a picture should show.

    Attributes:
        labels: class indices, ascending: a picture is relevant if it has them all.
        objects: at least one.
    """

    labels: tuple[int, ...]
    objects: tuple[QueryBox, ...]


def draw_queries(
    image_set: ImageSet, labels: tuple[int, ...], n_queries: int, *, marked: bool, seed: int
) -> list[ObjectQuery]:
    """Queries for a combination of classes.

    If marked, each object is a box in a separate picture, drawn at random. If unmarked, whole
    pictures are the query: they show nothing beyond the combination, and one is added for each
    class that the previous ones do not show, so there are at most as many as classes.

    Args:
        image_set: labelled pictures.
        labels: class indices, ascending.
        n_queries: number of queries; for a single class, at most one per picture of it.
        marked: see above.
        seed: random seed; the draw for a combination does not depend on other combinations.

    Returns:
        `n_queries` queries; none if a class has no picture.
    """
    rng = np.random.default_rng([seed, *labels])
    table = image_set.labels().astype(bool)  # (N, C)
    if marked:
        rows_of = {label: _with_box(image_set, label) for label in labels}
    else:
        nothing_else = ~np.delete(table, labels, axis=1).any(axis=1)
        rows_of = {label: np.flatnonzero(table[:, label] & nothing_else) for label in labels}
    if not all(len(rows) for rows in rows_of.values()):
        return []
    if len(labels) == 1:
        drawn = rng.permutation(rows_of[labels[0]])[:n_queries]
        return [ObjectQuery(labels, (_query_box(image_set, r, labels[0], marked),)) for r in drawn]
    queries = []
    for _ in range(n_queries):
        objects: list[QueryBox] = []
        shown: set[int] = set()
        for label in rng.permutation(labels).tolist():
            if marked or label not in shown:
                row = int(rng.choice(rows_of[label]))
                objects.append(_query_box(image_set, row, label, marked))
                shown |= set(np.flatnonzero(table[row]).tolist())
        queries.append(ObjectQuery(labels, tuple(objects)))
    return queries


def frequent_combinations(
    database_labels: NDArray[np.uint8], *, least: int = 20, sizes: Sequence[int] = (2, 3, 4)
) -> list[tuple[int, ...]]:
    """Combinations of classes that at least `least` pictures show, the most frequent first.

    Args:
        database_labels: (N, C), 0 or 1.
        least: number of pictures.
        sizes: numbers of classes to combine.
    """
    counts: dict[tuple[int, ...], int] = {}
    for row in database_labels:
        labels = np.flatnonzero(row).tolist()
        for size in sizes:
            for combination in combinations(labels, size):
                counts[combination] = counts.get(combination, 0) + 1
    frequent = [labels for labels, count in counts.items() if count >= least]
    return sorted(frequent, key=lambda labels: (len(labels), -counts[labels], labels))


def hold_out(image_set: ImageSet, per_class: int, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """The set without, and with only, `per_class` random pictures of each class.

    A picture of several classes is drawn for one of them; a class with too few pictures left keeps
    one and gives the others.

    Raises:
        ValueError: `per_class` is not positive.
    """
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    rng = np.random.default_rng(seed)
    held = np.zeros(len(image_set), np.bool_)
    for column in image_set.labels().T:
        rows = np.flatnonzero((column > 0) & ~held)
        held[rng.permutation(rows)[: min(per_class, max(len(rows) - 1, 0))]] = True
    return image_set.subset(np.flatnonzero(~held)), image_set.subset(np.flatnonzero(held))


def _with_box(image_set: ImageSet, label: int) -> NDArray[np.intp]:
    """Rows of the pictures with an object of the class that is not difficult."""
    return np.flatnonzero(
        [((target.labels == label) & ~target.difficult).any() for target in image_set.targets]
    )


def _query_box(image_set: ImageSet, row: int, label: int, marked: bool) -> QueryBox:
    """The picture, or the largest object of the class in it."""
    if not marked:
        return QueryBox(int(row), None)
    target = image_set.targets[row]
    boxes = target.boxes[(target.labels == label) & ~target.difficult]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return QueryBox(int(row), boxes[int(areas.argmax())])
