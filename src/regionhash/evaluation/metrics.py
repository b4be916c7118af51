"""Measures of a ranking by integer distance: exact under ties, streamed over the queries.

K bits have only K + 1 distances, so most of a ranking is ties, whose order comes from the database,
not the method. The tie-aware value of a measure is its expectation when the items at each distance
are in uniformly random order (McSherry and Najork, "Computing Information Retrieval Performance
Measures Efficiently in the Presence of Tied Scores", ECIR 2008). It needs no sorting: it depends
only on the number of items of each similarity at each distance, the *level table* of
`evaluation.levels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from regionhash.codes import hamming_distances, pack_bits
from regionhash.evaluation.levels import (
    IntegerMatrix,
    Integers,
    Ties,
    Values,
    before_each,
    checked_integers,
    level_table,
    prefix_sums,
    ratio,
    stable_ranks,
)
from regionhash.structures import Codes, Ints

Denominator = Literal["retrieved", "total", "min"]

METRICS = ("map", "acg", "ndcg", "wmap", "precision", "recall", "precision_radius_2")

_BLOCK_ITEMS = 1 << 19  # distances at a time: arrays of a few MiB, many queries if N is small


class HammingMatrix:
    """Hamming distances between codes, computed when read, so (Q, N) is never in memory.

    Args:
        query_codes: (Q, B) uint8, packed.
        database_codes: (N, B) uint8, packed.
    """

    def __init__(self, query_codes: Codes, database_codes: Codes) -> None:
        self.query_codes = query_codes
        self.database_codes = database_codes
        self.shape = (len(query_codes), len(database_codes))

    def __getitem__(self, rows: slice, /) -> NDArray[np.int32]:
        return hamming_distances(self.query_codes[rows], self.database_codes)


class SharedLabels:
    """How many labels a query and a database item share, computed when read.

    Args:
        query_labels: (Q, C), 0 or 1.
        database_labels: (N, C), 0 or 1.

    Raises:
        ValueError: the labels are not tables of 0 and 1 over the same classes.
    """

    def __init__(self, query_labels: Integers, database_labels: Integers) -> None:
        queries = _checked_labels("query_labels", query_labels)
        database = _checked_labels("database_labels", database_labels)
        if queries.shape[1] != database.shape[1]:
            raise ValueError(
                "query_labels and database_labels must have the same classes, "
                f"got {queries.shape} and {database.shape}"
            )
        self.shape = (len(queries), len(database))
        self._n_labels = [labels.sum(1, dtype=np.int32) for labels in (queries, database)]
        # label sets as codes of whole 64-bit words, which compare fastest
        padding = ((0, 0), (0, -queries.shape[1] % 64))
        self._sets = HammingMatrix(
            *(pack_bits(np.pad(labels == 1, padding)) for labels in (queries, database))
        )

    def __getitem__(self, rows: slice, /) -> NDArray[np.int32]:
        # |a xor b| = |a| + |b| - 2 |a and b|
        queries, database = self._n_labels
        shared: NDArray[np.int32] = queries[rows, None] + database
        shared -= self._sets[rows]
        shared >>= 1
        return shared  # (q, N)


class ContainedLabels:
    """Whether a database item has all labels of the query (DMIH, Sec. 4.4), computed when read.

    A query without labels finds nothing.

    Args:
        query_labels: (Q, C), 0 or 1.
        database_labels: (N, C), 0 or 1.

    Raises:
        ValueError: the labels are not tables of 0 and 1 over the same classes.
    """

    def __init__(self, query_labels: Integers, database_labels: Integers) -> None:
        self._shared = SharedLabels(query_labels, database_labels)
        self._wanted = np.asarray(query_labels).sum(1, keepdims=True, dtype=np.int32)  # (Q, 1)
        self.shape = self._shared.shape

    def __getitem__(self, rows: slice, /) -> NDArray[np.bool_]:
        wanted = self._wanted[rows]
        contained: NDArray[np.bool_] = (self._shared[rows] == wanted) & (wanted > 0)
        return contained  # (q, N)


@dataclass(frozen=True, slots=True, eq=False)
class RankingCurves:
    """Means over the queries at several cuts; (recall, precision) is the precision-recall curve.

    Attributes:
        ks: (P,) int64, cuts of the ranking, ascending.
        precision: (P,) float64, relevant among the top k, divided by k.
        recall: (P,) float64, relevant among the top k, divided by all relevant.
        acg: (P,) float64, ACG@k.
    """

    ks: Ints
    precision: Values
    recall: Values
    acg: Values


def evaluate_ranking(
    query_codes: Codes,
    database_codes: Codes,
    query_labels: Integers,
    database_labels: Integers,
    *,
    k: int = 1000,
    ties: Ties = "expected",
    denominator: Denominator = "retrieved",
) -> dict[str, float]:
    """Means over the queries of the measures of the ranking by Hamming distance.

    Args:
        query_codes: (Q, B) uint8, packed.
        database_codes: (N, B) uint8, packed.
        query_labels: (Q, C), 0 or 1.
        database_labels: (N, C), 0 or 1.
        k: the cut of the ranking, see `per_query`.
        ties: how equal distances are ranked, see `per_query`.
        denominator: divisor of average precision, see `per_query`.

    Returns:
        Each of `METRICS`, and "queries_without_relevant": the number of queries that share no label
        with any database item; they count as 0 in every mean.

    Raises:
        ValueError: see `SharedLabels` and `per_query`.
    """
    values = per_query(
        HammingMatrix(query_codes, database_codes),
        SharedLabels(query_labels, database_labels),
        k=k,
        ties=ties,
        denominator=denominator,
    )
    means = {name: float(values[name].mean()) for name in METRICS}
    return means | {"queries_without_relevant": int((values["relevant"] == 0).sum())}


def per_query(
    distances: IntegerMatrix,
    similarities: IntegerMatrix,
    *,
    k: int = 1000,
    ties: Ties = "expected",
    denominator: Denominator = "retrieved",
) -> dict[str, Values]:
    """The measures of each query for any ranking by integer distance.

    With s(i) the similarity of the query and the item at rank i, rel(i) = [s(i) >= 1], N_rel(i) the
    relevant items up to rank i, and sums over the ranks i = 1..k:

        map = sum rel(i) N_rel(i) / i / n                 Region-DH, eq. 11; IAH, eq. 12
        wmap = sum rel(i) ACG@i / n                       IAH, eq. 13
        acg = sum s(i) / k                                Region-DH, eq. 10; IAH, eq. 11
        ndcg = sum (2^s(i) - 1) / log2(1 + i), divided by its maximum over all orders of the
            database                                      IAH, eq. 10
        precision = N_rel(k) / k
        recall = N_rel(k) / all relevant items
        precision_radius_2 = share of relevant items within distance 2, 0 if nothing is found

    A database smaller than k is cut at N instead.

    Args:
        distances: (Q, N), such as a `HammingMatrix`. Time and memory grow with the largest one, so
            pass dense ranks of real-valued distances.
        similarities: (Q, N), such as `SharedLabels`; time and memory grow with the largest one.
        k: the cut of the ranking.
        ties: "expected" is the expectation over random orders of equal distances, in closed form;
            "stable" ranks equal distances by database row.
        denominator: n of map and wmap: "retrieved", the relevant items among the top k; "total",
            all relevant items of the database; "min", the smaller of k and total.

    Returns:
        Each of `METRICS`, (Q,) float64, and "relevant", (Q,): relevant items in the database. A
        query without a relevant item has 0 everywhere.

    Raises:
        ValueError: distances and similarities are not integers >= 0 of the same shape, with at
            least one query and one item, `k` is not positive, or an option is unknown.
    """
    _check_options(ties=ties, denominator=denominator)
    n_items = distances.shape[1]
    k = min(_checked_cut(k), n_items)
    ranks = np.arange(1, k + 1)
    harmonic = prefix_sums(1 / ranks)  # (k + 1,)
    discount = prefix_sums(1 / np.log2(1 + ranks))  # (k + 1,)
    log_factorial = prefix_sums(np.log(np.arange(1, n_items + 1)))  # (N + 1,)

    blocks = []
    for block in _blocks(distances, similarities, ties, depth=k):
        levels = block.levels
        relevant = levels.relevant.sum(1)  # (q,)
        average, weighted = _average_precisions(
            levels, k, denominator, harmonic=harmonic, log_factorial=log_factorial
        )
        found = levels.sums_at(levels.relevant, [k])[:, 0]
        ideal = _discounted_gains(block.ideal, discount)
        blocks.append(
            {
                "map": np.minimum(average, 1.0),  # rounding may exceed 1
                "acg": levels.sums_at(levels.shared, [k])[:, 0] / k,
                "ndcg": ratio(_discounted_gains(levels, discount), ideal),
                "wmap": weighted,
                "precision": found / k,
                "recall": ratio(found, relevant),
                "precision_radius_2": block.precision_radius_2,
                "relevant": relevant.astype(np.float64),
            }
        )
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def ranking_curves(
    distances: IntegerMatrix,
    similarities: IntegerMatrix,
    *,
    ks: Sequence[int] | None = None,
    ties: Ties = "expected",
) -> RankingCurves:
    """Precision, recall and ACG at several cuts of the ranking, means over the queries.

    Args:
        distances: (Q, N), as for `per_query`.
        similarities: (Q, N), as for `per_query`.
        ks: cuts; None for about fifty between 1 and N, evenly on a logarithmic scale. Cuts
            beyond N count as N.
        ties: as for `per_query`.

    Raises:
        ValueError: see `per_query`.
    """
    _check_options(ties=ties)
    n_items = distances.shape[1]
    chosen = np.geomspace(1, max(n_items, 1), 50).round() if ks is None else map(_checked_cut, ks)
    cuts = np.unique(np.minimum(np.fromiter(chosen, np.int64), n_items))  # (P,)
    if not len(cuts):
        raise ValueError("ks must hold at least one cut, got none")
    sums = np.zeros((3, len(cuts)))
    for block in _blocks(distances, similarities, ties, depth=int(cuts[-1])):
        levels = block.levels
        found = levels.sums_at(levels.relevant, cuts)  # (q, P)
        sums[0] += (found / cuts).sum(0)
        sums[1] += ratio(found, levels.relevant.sum(1, keepdims=True)).sum(0)
        sums[2] += (levels.sums_at(levels.shared, cuts) / cuts).sum(0)
    precision, recall, acg = sums / distances.shape[0]
    return RankingCurves(cuts, precision, recall, acg)


class _Levels:
    """A block of q queries as L levels of equally ranked items, nearest first.

    Args:
        table: (q, L, S + 1), how many items of each level have each similarity 0..S.

    Attributes:
        size: (q, L), items of each level.
        start: (q, L), items before each level.
        relevant: (q, L), items of each level with a similarity of at least 1.
        shared: (q, L), sums of s over each level.
        gain: (q, L) float64, sums of 2^s - 1 over each level.
    """

    def __init__(self, table: Ints) -> None:
        similarities = np.arange(table.shape[2])
        self.size: Ints = table.sum(2)
        self.start = before_each(self.size)
        self.relevant = self.size - table[:, :, 0]
        self.shared: Ints = table @ similarities
        self.gain: Values = table @ (np.exp2(similarities) - 1)

    def sums_at(self, values: Ints, ks: Sequence[int] | Ints) -> Values:
        """Expected sums (q, P) over the top k of a quantity with sums `values` (q, L) per level.

        Random order spreads a level's sum evenly over its ranks, so the expected sum is linear in k
        within a level.
        """
        knots = zip(prefix_sums(self.size), prefix_sums(values), strict=True)
        return np.stack([np.interp(ks, ranks, sums) for ranks, sums in knots])


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """The input of the measures for q queries.

    Attributes:
        levels: their ranking.
        ideal: the same items in the best order, a level for each similarity.
        precision_radius_2: (q,) float64.
    """

    levels: _Levels
    ideal: _Levels
    precision_radius_2: Values


def _blocks(
    distances: IntegerMatrix, similarities: IntegerMatrix, ties: Ties, *, depth: int
) -> Iterator[_Block]:
    """The queries in blocks of about `_BLOCK_ITEMS` distances; ranks beyond `depth` are tied."""
    shape = tuple(distances.shape)
    if shape != tuple(similarities.shape) or len(shape) != 2 or 0 in shape:
        raise ValueError(
            "distances and similarities must both be (Q, N) with at least one query and one item, "
            f"got {shape} and {tuple(similarities.shape)}"
        )
    n_queries, n_items = shape
    step = max(1, _BLOCK_ITEMS // n_items)
    for first in range(0, n_queries, step):
        rows = slice(first, min(first + step, n_queries))
        block = checked_integers("distances", distances[rows])  # (q, N)
        shared = checked_integers("similarities", similarities[rows])  # (q, N)
        table = level_table(block, shared)
        totals = table.sum(1)[:, ::-1]  # (q, S + 1), the most similar first
        ideal = totals[:, :, None] * np.eye(totals.shape[1], dtype=np.int64)[::-1]
        within = _Levels(table[:, :3])
        radius_2 = ratio(within.relevant.sum(1), within.size.sum(1))
        if ties == "stable":
            table = level_table(np.minimum(stable_ranks(block), depth), shared)
        yield _Block(_Levels(table), _Levels(ideal), radius_2)


def _discounted_gains(levels: _Levels, discount: Values) -> Values:
    """Expected DCG@k (q,); `discount` (k + 1,): sums of 1 / log2(1 + i) up to each rank."""
    k = len(discount) - 1
    size, start = levels.size, levels.start
    spread = discount[np.minimum(start + size, k)] - discount[np.minimum(start, k)]  # (q, L)
    dcg: Values = ratio(levels.gain * spread, size).sum(1)
    return dcg


def _average_precisions(
    levels: _Levels, k: int, denominator: Denominator, *, harmonic: Values, log_factorial: Values
) -> Values:
    """Expected AP and weighted AP of the top k, (2, q).

    Both are sums over the relevant ranks of V(i) / i, with V(i) the sum up to rank i of a value
    that is 0 for irrelevant items: 1 for AP, s for weighted AP.

    The number of relevant items among the top k is random if rank k falls inside a level. If the
    level has n items, r of them relevant, and m ranks up to k, the number h of relevant ones among
    those m has the hypergeometric distribution, and given h they are again in random order. So the
    ratio is averaged over h.
    """
    size, relevant, start = levels.size, levels.relevant, levels.start  # (q, L)
    values = np.stack([relevant, levels.shared])  # (2, q, L)
    before = before_each(values)
    mean = ratio(values, relevant)
    slots = np.clip(k - start, 0, size)
    sums = _precision_sums(size, relevant, mean, before, np.minimum(start, k), slots, harmonic)
    if denominator != "retrieved":
        total = relevant.sum(1)
        return ratio(sums.sum(2), np.minimum(k, total) if denominator == "min" else total)

    last = np.argmax(start + size >= k, axis=1)[:, None]  # (q, 1), the level of rank k
    n, r, m, c = (np.take_along_axis(x, last, 1) for x in (size, relevant, slots, start))
    found = np.take_along_axis(before_each(relevant), last, 1)
    mean = np.take_along_axis(mean, last[None], 2)  # (2, q, 1)
    before = np.take_along_axis(before, last[None], 2)  # (2, q, 1)
    whole = (sums * (np.arange(size.shape[1]) < last)).sum(2, keepdims=True)
    low, high = np.maximum(0, m - (n - r)), np.minimum(m, r)
    h = low + np.arange((high - low).max() + 1)  # (q, H)
    possible = h <= high
    h = np.minimum(h, high)
    probs = possible * np.exp(
        _log_choose(r, h, log_factorial)
        + _log_choose(n - r, m - h, log_factorial)
        - _log_choose(n, m, log_factorial)
    )
    cut = _precision_sums(m, h, mean, before, c, m, harmonic)  # (2, q, H)
    expected: Values = (probs * ratio(whole + cut, found + h)).sum(2)
    return expected


def _precision_sums(
    size: Ints,
    relevant: Ints,
    mean: Values,
    before: Ints,
    start: Ints,
    slots: Ints,
    harmonic: Values,
) -> Values:
    """Expected sum of rel(i) V(i) / i over the first `slots` ranks of a level in random order.

    With c = start, P(rank c + j is relevant) = r / n. Given that, V is `before`, plus `mean` for
    the item itself, plus `mean` for each of the j - 1 ranks before it that is also relevant, with
    probability (r - 1) / (n - 1). The two remaining sums over j are H(c + m) - H(c) and
    sum (j - 1) / (c + j) = m - (c + 1) (H(c + m) - H(c)), with H the harmonic numbers.
    """
    reciprocals = harmonic[start + slots] - harmonic[start]
    others = mean * (relevant - 1) / np.maximum(size - 1, 1)
    sums = (before + mean) * reciprocals + others * (slots - (start + 1) * reciprocals)
    return ratio(relevant * sums, size)


def _log_choose(n: Ints, m: Ints, log_factorial: Values) -> Values:
    logs: Values = log_factorial[n] - log_factorial[m] - log_factorial[n - m]
    return logs


def _check_options(*, ties: Ties, denominator: Denominator = "retrieved") -> None:
    for name, value, known in (
        ("ties", ties, get_args(Ties)),
        ("denominator", denominator, get_args(Denominator)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _checked_cut(k: int) -> int:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return k


def _checked_labels(name: str, labels: Integers) -> Integers:
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(f"{name} must be (*, C), got {labels.shape}")
    wrong = labels[(labels != 0) & (labels != 1)]
    if len(wrong):
        raise ValueError(f"{name} must be 0 or 1, got {wrong[0]}")
    return labels
