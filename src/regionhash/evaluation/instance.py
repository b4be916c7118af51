"""Average precision of instance search: positives, junk, and the official trapezoids.

The protocol is that of the Oxford and Paris buildings (Philbin et al., "Object retrieval with large
vocabularies and fast spatial matching", CVPR 2007). A query has positives (the lists good and ok)
and junk, which is removed from the ranking before anything is counted: finding it is neither right
nor wrong. Tied items are averaged over their random orders, as in `evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from regionhash.evaluation.levels import (
    IntegerMatrix,
    Ties,
    Values,
    before_each,
    checked_integers,
    level_table,
    prefix_sums,
    ratio,
    stable_ranks,
)
from regionhash.parts.choosing import overlaps
from regionhash.structures import Floats, Ints

APForm = Literal["trapezoid", "rectangle"]

_BLOCK_ITEMS = 1 << 19  # distances at a time, as in `evaluation.metrics`
_IRRELEVANT, _POSITIVE, _JUNK = range(3)


@dataclass(frozen=True, eq=False)
class InstanceRelevance:
    """The relevant items of each query in a database of `n_database` items.

    Attributes:
        positives: Q times (P,) int64, rows of the database.
        junk: Q times (J,) int64, rows that do not count; junk takes precedence over positive, as in
            the official code.
        n_positives: (Q,) int64, number of positives, including those missing from the database,
            which are never found.
        n_database: N.
    """

    positives: tuple[Ints, ...]
    junk: tuple[Ints, ...]
    n_positives: Ints
    n_database: int

    def __post_init__(self) -> None:
        n_queries = len(self.positives)
        if len(self.junk) != n_queries or self.n_positives.shape != (n_queries,):
            raise ValueError(
                f"positives, junk and n_positives must be of as many queries, "
                f"got {n_queries}, {len(self.junk)} and {self.n_positives.shape}"
            )
        for name, lists in (("positives", self.positives), ("junk", self.junk)):
            for rows in lists:
                if len(rows) and not 0 <= rows.min() <= rows.max() < self.n_database:
                    raise ValueError(
                        f"{name} must be rows of a database of {self.n_database}, "
                        f"got {rows.min()} to {rows.max()}"
                    )

    @classmethod
    def of_ids(
        cls, ids: Sequence[str], positives: Iterable[Iterable[str]], junk: Iterable[Iterable[str]]
    ) -> InstanceRelevance:
        """The same from image ids: of the database, and of each query's positives and junk.

        Junk missing from the database is left out.
        """
        row_of = {image_id: row for row, image_id in enumerate(ids)}
        wanted = [set(names) for names in positives]

        def rows(names: set[str]) -> Ints:
            return np.array(sorted(row_of[name] for name in names & row_of.keys()), np.int64)

        return cls(
            positives=tuple(map(rows, wanted)),
            junk=tuple(rows(set(names)) for names in junk),
            n_positives=np.array([len(names) for names in wanted], np.int64),
            n_database=len(ids),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(Q, N)."""
        return len(self.positives), self.n_database

    def of_queries(self, rows: slice) -> InstanceRelevance:
        """The same for a slice of the queries."""
        return InstanceRelevance(
            self.positives[rows], self.junk[rows], self.n_positives[rows], self.n_database
        )

    def __getitem__(self, rows: slice, /) -> Ints:
        """Kinds (q, N) of a slice of the queries: 0 irrelevant, 1 positive, 2 junk."""
        positives, junk = self.positives[rows], self.junk[rows]
        kinds = np.full((len(positives), self.n_database), _IRRELEVANT, np.int64)
        for row, wanted, ignored in zip(kinds, positives, junk, strict=True):
            row[wanted] = _POSITIVE
            row[ignored] = _JUNK
        return kinds


class CosineRanks:
    """Dense ranks by descending inner product, computed when read, so (Q, N) is never in memory.

    Args:
        queries: (Q, D) float32, of unit length if the inner product should be the cosine.
        database: (N, D) float32.
    """

    def __init__(self, queries: Floats, database: Floats) -> None:
        self.queries = queries
        self.database = database
        self.shape = (len(queries), len(database))

    def __getitem__(self, rows: slice, /) -> Ints:
        return dense_ranks(-(self.queries[rows] @ self.database.T))


def dense_ranks(distances: Floats) -> Ints:
    """Ranks (q, N) from 0 by distance (q, N); equal distances share one, and none is skipped."""
    ranks = [np.unique(row, return_inverse=True)[1] for row in distances]
    return np.array(ranks, np.int64).reshape(np.shape(distances))


def instance_average_precision(
    distances: IntegerMatrix,
    relevance: InstanceRelevance,
    *,
    form: APForm = "trapezoid",
    ties: Ties = "expected",
) -> Values:
    """The average precision (Q,) of each query; 0 for one without positives.

    With N(i) the positives up to rank i of the ranking without junk, p(i) = N(i) / i, p(0) = 1, P
    all positives, and sums over the ranks i of positives:

        trapezoid = sum (p(i - 1) + p(i)) / 2 / P         the official compute_ap
        rectangle = sum p(i) / P

    Args:
        distances: (Q, N), such as a `HammingMatrix` or `CosineRanks`. Time and memory grow with the
            largest one, so pass `dense_ranks` of real-valued distances.
        relevance: positives and junk of each query.
        form: see above.
        ties: "expected" is the expectation over random orders of equal distances, in closed form;
            "stable" ranks equal distances by database row.

    Raises:
        ValueError: `distances` are not integers >= 0, differ in shape from `relevance` or are
            empty, or an option is unknown.
    """
    for name, value, known in (("form", form, get_args(APForm)), ("ties", ties, get_args(Ties))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    shape = tuple(distances.shape)
    if shape != relevance.shape or 0 in shape:
        raise ValueError(
            "distances and relevance must both be (Q, N) with at least one query and one item, "
            f"got {shape} and {relevance.shape}"
        )
    n_queries, n_items = shape
    harmonic = prefix_sums(1 / np.arange(1, n_items + 1))  # (N + 1,)
    values = np.empty(n_queries)
    step = max(1, _BLOCK_ITEMS // n_items)
    for first in range(0, n_queries, step):
        rows = slice(first, min(first + step, n_queries))
        block = checked_integers("distances", distances[rows])  # (q, N)
        if ties == "stable":
            block = stable_ranks(block)
        kinds = np.vstack([relevance[rows], np.full(n_items, _JUNK)])  # so that all kinds occur
        block = np.vstack([block, block[-1:]])
        counts = level_table(block, kinds)[:-1]  # (q, L, 3)
        positive = counts[:, :, _POSITIVE]
        size = counts[:, :, _IRRELEVANT] + positive
        sums = _precision_sums(size, positive, harmonic, counted=1)
        if form == "trapezoid":
            sums = (sums + _precision_sums(size, positive, harmonic, counted=0)) / 2
        values[rows] = ratio(sums, relevance.n_positives[rows])
    return values


def location_scores(
    distances: IntegerMatrix,
    relevance: InstanceRelevance,
    matched: Sequence[Floats],
    objects: Sequence[Mapping[int, Floats]],
    *,
    k: int | None = None,
    iou: float = 0.5,
) -> Values:
    """LocScore (Q,): the share of the right hits of each query whose box is on the object.

    The idea is that of Choi et al., "Patch-wise Retrieval: A Bag of Practical Techniques for
    Instance-level Matching", WACV 2026; here, a right hit is a positive among the first k of the
    ranking without junk, equal distances in database order, and its box is on the object if their
    IoU is at least `iou` for one of the objects of the picture.

    Args:
        distances: (Q, N) integers, such as a `HammingMatrix`.
        relevance: positives and junk of each query.
        matched: Q times (N, 4), xyxy, the region of each picture that gave the distance.
        objects: for each query, the boxes (O, 4) of the object in each positive picture, by row; a
            positive without boxes is no hit.
        k: length of the ranking; None takes as many as there are positives.
        iou: lowest intersection over union.

    Returns:
        NaN for a query without a right hit.

    Raises:
        ValueError: shapes differ, or `k` or `iou` is out of range.
    """
    shape = tuple(distances.shape)
    if shape != relevance.shape or not len(matched) == len(objects) == shape[0]:
        raise ValueError(
            f"distances, relevance, matched and objects must be of as many queries, got {shape}, "
            f"{relevance.shape}, {len(matched)} and {len(objects)}"
        )
    if not 0 < iou <= 1 or (k is not None and k < 1):
        raise ValueError(f"iou must be in (0, 1] and k at least 1, got {iou} and {k}")
    scores = np.full(shape[0], np.nan)
    for query in range(shape[0]):
        row = checked_integers("distances", distances[query : query + 1])[0]
        order = np.argsort(row, kind="stable")
        order = order[~np.isin(order, relevance.junk[query])]
        wanted = np.setdiff1d(relevance.positives[query], relevance.junk[query])
        first = order[: len(wanted) if k is None else k]
        hits = [n for n in first[np.isin(first, wanted)].tolist() if n in objects[query]]
        if hits:
            right = [_is_on(matched[query][n], objects[query][n], iou) for n in hits]
            scores[query] = np.mean(right)
    return scores


def _is_on(box: Floats, objects: Floats, iou: float) -> bool:
    """Whether a box (4,) has at least this IoU with one of the objects (O, 4)."""
    shared = overlaps(box[None].astype(np.float64), objects.astype(np.float64))
    return bool((shared >= iou).any())


def _precision_sums(size: Ints, positive: Ints, harmonic: Values, *, counted: int) -> Values:
    """Expected sums (q,) over the positives' ranks i of p(i), or of p(i - 1) if `counted` is 0.

    A level has n items, r of them positive, after c items with b positives. P(rank c + j is
    positive) = r / n; given that, the average number of positives is
    b + `counted` + (j - 1) (r - 1) / (n - 1), among c + j - 1 + `counted` items. The sums over j
    are, with H the harmonic numbers and e = c + `counted`, sum 1 / (e + j - 1) =
    H(e + n - 1) - H(e - 1), and sum (j - 1) / (e + j - 1) = n - e (H(e + n - 1) - H(e - 1)).

    Args:
        size: (q, L), items of each level.
        positive: (q, L), positives of each level.
        harmonic: (N + 1,), the harmonic numbers.
        counted: whether the item at the rank is counted with those before it, 0 or 1.
    """
    end = before_each(size) + counted  # (q, L), e
    reciprocals = harmonic[np.maximum(end + size - 1, 0)] - harmonic[np.maximum(end - 1, 0)]
    others = (positive - 1) / np.maximum(size - 1, 1)
    sums = (before_each(positive) + counted) * reciprocals + others * (size - end * reciprocals)
    # p(0) = 1, followed by the ranks j > 1 with (j - 1) (r - 1) / (n - 1) / (j - 1) each
    sums = np.where(end == 0, positive, sums)
    total: Values = ratio(positive * sums, size).sum(1)
    return total
