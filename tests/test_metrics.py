from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, permutations, product
from math import fsum, log2
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_normalized_dcg,
    retrieval_precision,
    retrieval_recall,
)

from regionhash.codes import unpack_bits
from regionhash.evaluation import metrics
from regionhash.evaluation.metrics import (
    METRICS,
    ContainedLabels,
    Denominator,
    HammingMatrix,
    SharedLabels,
    evaluate_ranking,
    per_query,
    ranking_curves,
)

DENOMINATORS: tuple[Denominator, ...] = get_args(Denominator)
TOP_K = tuple(name for name in METRICS if name != "precision_radius_2")


def measures_of_order(
    retrieved: Sequence[int], database: Sequence[int], denominator: Denominator
) -> dict[str, float]:
    """The measures of one ranking, given as the similarities of what it holds up to the cut."""
    k = len(retrieved)
    total = sum(s > 0 for s in database)
    precisions = weighted = gain_so_far = dcg = 0.0
    found = 0
    for rank, s in enumerate(retrieved, start=1):
        gain_so_far += s
        found += s > 0
        if s > 0:
            precisions += found / rank
            weighted += gain_so_far / rank
        dcg += (2**s - 1) / log2(1 + rank)
    best = sorted(database, reverse=True)[:k]
    ideal = sum((2**s - 1) / log2(1 + rank) for rank, s in enumerate(best, start=1))
    n = {"retrieved": found, "total": total, "min": min(k, total)}[denominator]
    return {
        "map": precisions / n if n else 0.0,
        "acg": gain_so_far / k,
        "ndcg": dcg / ideal if ideal else 0.0,
        "wmap": weighted / n if n else 0.0,
        "precision": found / k,
        "recall": found / total if total else 0.0,
    }


def mean_over_tied_orders(
    levels: list[list[int]], k: int, denominator: Denominator
) -> dict[str, float]:
    """The mean over all orders inside the levels; equal items make equal shares of the orders."""
    orders = product(*(set(permutations(items)) for items in levels))
    times = Counter(tuple(chain.from_iterable(order))[:k] for order in orders)
    each = [measures_of_order(retrieved, flat(levels), denominator) for retrieved in times]
    return {
        name: fsum(n * values[name] for n, values in zip(times.values(), each, strict=True))
        / times.total()
        for name in each[0]
    }


def flat(levels: Iterable[Iterable[int]]) -> list[int]:
    return list(chain.from_iterable(levels))


def measure(distances: Any, similarities: Any, **options: Any) -> dict[str, float]:
    """The measures of a single query."""
    values = per_query(np.array([distances]), np.array([similarities]), **options)
    return {name: float(value[0]) for name, value in values.items()}


def random_problem(
    seed: int, *, n_queries: int = 7, n: int = 60, n_bytes: int = 1, n_classes: int = 4
) -> tuple[NDArray[np.uint8], ...]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (n_queries + n, n_bytes), dtype=np.uint8)
    labels = (rng.random((n_queries + n, n_classes)) < 0.3).astype(np.uint8)
    return codes[:n_queries], codes[n_queries:], labels[:n_queries], labels[n_queries:]


def test_a_ranking_without_ties_is_as_worked_by_hand() -> None:
    # in order of distance the similarities are 1, 0, 2, 0; three images count
    got = measure([5, 2, 0, 9], [2, 0, 1, 0], k=3)
    assert got["map"] == pytest.approx((1 + 2 / 3) / 2)
    assert got["wmap"] == pytest.approx((1 + 3 / 3) / 2)
    assert got["acg"] == pytest.approx(3 / 3)
    assert got["ndcg"] == pytest.approx((1 + 3 / log2(4)) / (3 + 1 / log2(3)))
    assert got["precision"] == pytest.approx(2 / 3)
    assert got["recall"] == 1
    assert got["precision_radius_2"] == 1 / 2
    assert got["relevant"] == 2


def test_the_three_denominators_differ_as_worked_by_hand() -> None:
    # two of five relevant images are among the top four, at ranks 1 and 4
    distances, similarities = [1, 2, 3, 4, 5, 6, 7], [1, 0, 0, 1, 1, 1, 1]
    got = {
        name: measure(distances, similarities, k=4, denominator=name)["map"]
        for name in DENOMINATORS
    }
    precisions = 1 + 2 / 4
    assert got == pytest.approx(
        {"retrieved": precisions / 2, "total": precisions / 5, "min": precisions / 4}
    )


def test_a_cut_through_a_tie_averages_the_ratio_as_worked_by_hand() -> None:
    # one relevant image of two tied ones; k = 1 finds it half of the time, with precision 1
    got = measure([3, 3], [1, 0], k=1)
    assert got["map"] == pytest.approx(0.5)
    # three images tied, two relevant, k = 2: 11, 10, 01 with a third each
    got = measure([3, 3, 3], [1, 1, 0], k=2)
    assert got["map"] == pytest.approx((1 + 1 + 1 / 2) / 3)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=3).filter(any),
    st.integers(1, 12),
    st.sampled_from(DENOMINATORS),
)
@example([[1, 0, 2, 1, 3], [1, 2, 0, 3, 1], [2, 1, 1, 0, 3]], 10, "retrieved")  # 216,000 orders
def test_the_closed_form_is_the_mean_over_all_orders_of_tied_items(
    levels: list[list[int]], k: int, denominator: Denominator
) -> None:
    distances = [2 * level for level, items in enumerate(levels) for _ in items]
    got = measure(distances, flat(levels), k=k, denominator=denominator)
    assert {name: got[name] for name in TOP_K} == pytest.approx(
        mean_over_tied_orders(levels, k, denominator), abs=1e-12
    )


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("k", [2, 3, 4, 5, 6, 7, 8])
def test_the_closed_form_holds_on_both_sides_of_every_level_boundary(
    k: int, denominator: Denominator
) -> None:
    levels = [[1, 0, 2], [0, 0], [3, 0, 1]]
    got = measure([0, 0, 0, 4, 4, 5, 5, 5], flat(levels), k=k, denominator=denominator)
    assert {name: got[name] for name in TOP_K} == pytest.approx(
        mean_over_tied_orders(levels, k, denominator)
    )


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("k", [1, 10, 60, 100])
def test_the_stable_order_is_by_distance_then_database_row(
    k: int, denominator: Denominator
) -> None:
    queries, database, query_labels, database_labels = random_problem(1)
    values = per_query(
        HammingMatrix(queries, database),
        SharedLabels(query_labels, database_labels),
        k=k,
        ties="stable",
        denominator=denominator,
    )
    for q in range(len(queries)):
        distance = (unpack_bits(queries[q : q + 1]) != unpack_bits(database)).sum(1).tolist()
        rows = sorted(range(len(database)), key=lambda row: (distance[row], row))
        order = [int(query_labels[q] @ database_labels[row]) for row in rows]
        within = [s for row, s in zip(rows, order, strict=True) if distance[row] <= 2]
        expected = measures_of_order(order[:k], order, denominator)
        expected["precision_radius_2"] = sum(s > 0 for s in within) / max(len(within), 1)
        assert {name: values[name][q] for name in METRICS} == pytest.approx(expected)


def test_the_order_of_the_database_moves_the_stable_value_only() -> None:
    queries, database, query_labels, database_labels = random_problem(2)
    grouped = np.argsort(-(database_labels @ query_labels[0]), kind="stable")
    for ties, same in (("expected", True), ("stable", False)):
        before = evaluate_ranking(queries, database, query_labels, database_labels, k=9, ties=ties)
        after = evaluate_ranking(
            queries, database[grouped], query_labels, database_labels[grouped], k=9, ties=ties
        )
        assert (before == pytest.approx(after)) is same


def test_equal_codes_everywhere_give_the_expectation_of_a_random_order() -> None:
    # expected AP of a random ranking: Bestgen, "Exact expected average precision of the random
    # baseline for system evaluation", 2015
    n, r = 100_000, 700
    harmonic = (1 / np.arange(1, n + 1)).sum()
    expected = (harmonic + (r - 1) / (n - 1) * (n - harmonic)) / n
    similarities = np.repeat([1, 0], [r, n - r])
    got = measure(np.zeros(n, int), similarities, k=n)
    assert got["map"] == pytest.approx(expected, rel=1e-9)
    assert got["precision"] == pytest.approx(r / n)


def test_a_cut_through_a_large_tie_agrees_with_sampled_orders() -> None:
    rng = np.random.default_rng(0)
    similarities = (rng.random(3000) < 0.3).astype(int) * rng.integers(1, 4, 3000)
    got = measure(np.zeros(3000, int), similarities, k=40)
    sampled: Counter[str] = Counter()
    for _ in range(1000):
        order = rng.permutation(similarities).tolist()
        sampled.update(measures_of_order(order[:40], order, "retrieved"))
    for name in ("map", "wmap"):
        assert got[name] == pytest.approx(sampled[name] / 1000, rel=0.02)


@pytest.mark.parametrize("ties", ["expected", "stable"])
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_a_query_without_a_relevant_image_counts_zero_and_is_reported(
    ties: Any, denominator: Denominator
) -> None:
    codes = np.array([[0], [255]], np.uint8)
    got = evaluate_ranking(
        codes, codes, np.eye(3)[:2].astype(int), np.eye(3)[[0, 2]].astype(int),
        k=1, ties=ties, denominator=denominator,
    )  # fmt: skip
    assert got == dict.fromkeys(METRICS, 0.5) | {"queries_without_relevant": 1}


def test_a_cut_beyond_the_database_counts_the_whole_database() -> None:
    whole = measure([0, 1, 1], [1, 0, 2], k=3)
    assert measure([0, 1, 1], [1, 0, 2], k=1000) == whole
    assert whole["acg"] == 1
    assert whole["recall"] == 1


def test_nothing_within_radius_2_has_precision_0_there() -> None:
    assert measure([3, 4], [1, 1])["precision_radius_2"] == 0
    assert measure([2, 2, 3], [1, 0, 1])["precision_radius_2"] == 0.5


@pytest.mark.parametrize("n", [20, 57, 500])
def test_rounding_takes_no_perfect_ranking_beyond_1(n: int) -> None:
    rng = np.random.default_rng(n)
    distances = np.sort(rng.integers(0, 40, n))
    similarities = (distances < rng.integers(5, 35)).astype(int)
    for denominator in get_args(Denominator):
        values = measure(distances, similarities, k=n, denominator=denominator)
        assert values["map"] <= 1 and values["map"] == pytest.approx(1)


def test_the_means_are_those_of_the_queries() -> None:
    queries, database, query_labels, database_labels = random_problem(3)
    means = evaluate_ranking(queries, database, query_labels, database_labels, k=10)
    values = per_query(
        HammingMatrix(queries, database), SharedLabels(query_labels, database_labels), k=10
    )
    assert means.pop("queries_without_relevant") == (values.pop("relevant") == 0).sum()
    assert means == pytest.approx({name: value.mean() for name, value in values.items()})


@pytest.mark.parametrize("ties", ["expected", "stable"])
def test_blocks_of_queries_do_not_change_the_result(
    ties: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(4)
    whole = evaluate_ranking(*problem, k=13, ties=ties)
    monkeypatch.setattr(metrics, "_BLOCK_ITEMS", 130)  # two queries at a time, and one left
    assert evaluate_ranking(*problem, k=13, ties=ties) == pytest.approx(whole)


@pytest.mark.parametrize("ties", ["expected", "stable"])
def test_curves_are_the_means_of_the_measures_at_each_cut(ties: Any) -> None:
    queries, database, query_labels, database_labels = random_problem(5)
    matrices = HammingMatrix(queries, database), SharedLabels(query_labels, database_labels)
    curves = ranking_curves(*matrices, ks=[1, 5, 17, 60], ties=ties)
    assert curves.ks.tolist() == [1, 5, 17, 60]
    for place, k in enumerate(curves.ks.tolist()):
        values = per_query(*matrices, k=k, ties=ties)
        for name in ("precision", "recall", "acg"):
            assert getattr(curves, name)[place] == pytest.approx(values[name].mean())


def test_curves_by_default_run_from_the_first_image_to_the_last() -> None:
    curves = ranking_curves(np.array([[0, 1, 2, 3]]), np.array([[1, 1, 0, 0]]))
    assert curves.ks.tolist() == [1, 2, 3, 4]
    assert curves.precision.tolist() == pytest.approx([1, 1, 2 / 3, 1 / 2])
    assert curves.recall.tolist() == [0.5, 1, 1, 1]


def test_cuts_beyond_the_database_fall_together_with_it() -> None:
    curves = ranking_curves(np.array([[0, 1]]), np.array([[1, 0]]), ks=[1, 2, 50, 100])
    assert curves.ks.tolist() == [1, 2]


def test_contained_labels_ask_for_all_labels_of_the_query() -> None:
    queries = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    database = np.array([[1, 1, 1], [1, 0, 1]])
    assert ContainedLabels(queries, database)[0:3].tolist() == [[1, 0], [1, 1], [0, 0]]
    assert SharedLabels(queries, database)[0:3].tolist() == [[2, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize("k", [5, 40])
def test_torchmetrics_agrees_on_rankings_without_ties(k: int) -> None:
    rng = np.random.default_rng(6)
    distances, similarities = rng.permutation(40), rng.integers(0, 4, 40)
    got = measure(distances, similarities, k=k)
    scores = torch.tensor(100.0 - distances)
    relevant = torch.tensor(similarities > 0)
    gains = torch.tensor(2**similarities - 1)
    assert got["map"] == pytest.approx(retrieval_average_precision(scores, relevant, k).item())
    assert got["precision"] == pytest.approx(retrieval_precision(scores, relevant, k).item())
    assert got["recall"] == pytest.approx(retrieval_recall(scores, relevant, k).item())
    assert got["ndcg"] == pytest.approx(retrieval_normalized_dcg(scores, gains, k).item(), rel=1e-5)


@pytest.mark.slow  # ranx compiles itself
@pytest.mark.filterwarnings("ignore::Warning")  # of its compiler
def test_ranx_agrees_on_rankings_without_ties() -> None:
    import ranx  # takes seconds

    rng = np.random.default_rng(7)
    distances = np.stack([rng.permutation(40) for _ in range(3)])
    similarities = rng.integers(0, 4, (3, 40))
    queries = [f"q{q}" for q in range(3)]
    qrels = ranx.Qrels(
        {
            query: {f"d{d}": int(s) for d, s in enumerate(row) if s}
            for query, row in zip(queries, similarities, strict=True)
        }
    )
    run = ranx.Run(
        {
            query: {f"d{d}": 100.0 - x for d, x in enumerate(row)}
            for query, row in zip(queries, distances, strict=True)
        }
    )
    names = {"map": "map@9", "ndcg": "ndcg_burges@9", "precision": "precision@9"}
    theirs = ranx.evaluate(qrels, run, list(names.values()), make_comparable=False)
    ours = per_query(distances, similarities, k=9, denominator="total")
    for name, their_name in names.items():
        assert ours[name].mean() == pytest.approx(theirs[their_name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"ties": "random"}, "ties must be one of expected, stable, got 'random'"),
        ({"denominator": "all"}, "denominator must be one of retrieved, total, min, got 'all'"),
        ({"query_labels": np.ones((3, 2), int)}, r"both be \(Q, N\).*got \(2, 4\) and \(3, 4\)"),
        ({"query_labels": np.ones((2, 3), int)}, r"same classes, got \(2, 3\) and \(4, 2\)"),
        ({"query_labels": np.ones(2, int)}, r"query_labels must be \(\*, C\), got \(2,\)"),
        ({"database_labels": np.full((4, 2), 2)}, r"database_labels must be 0 or 1, got 2"),
    ],
)
def test_bad_input_is_named_with_what_was_expected(change: dict[str, Any], message: str) -> None:
    good = {
        "query_codes": np.zeros((2, 1), np.uint8),
        "database_codes": np.zeros((4, 1), np.uint8),
        "query_labels": np.ones((2, 2), int),
        "database_labels": np.ones((4, 2), int),
    }
    with pytest.raises(ValueError, match=message):
        evaluate_ranking(**(good | change))


def test_distances_that_are_no_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="distances must be integers >= 0, got float64"):
        measure([0.5], [1])
    with pytest.raises(ValueError, match="distances must be integers >= 0, got int64 from -1"):
        measure([-1], [1])
    with pytest.raises(ValueError, match="at least one query and one item"):
        per_query(np.zeros((0, 3), int), np.zeros((0, 3), int))
    with pytest.raises(ValueError, match="ks must hold at least one cut"):
        ranking_curves(np.array([[0]]), np.array([[1]]), ks=[])
