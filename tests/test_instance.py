from __future__ import annotations

import doctest
from collections.abc import Collection, Sequence
from itertools import chain, permutations, product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from regionhash.evaluation import HammingMatrix, instance
from regionhash.evaluation.instance import (
    APForm,
    CosineRanks,
    InstanceRelevance,
    dense_ranks,
    instance_average_precision,
    location_scores,
)

FORMS: tuple[APForm, ...] = get_args(APForm)


def compute_ap(positives: Collection[str], ambiguous: Collection[str], ranked: list[str]) -> float:
    """The steps of compute_ap.cpp, which came with the ground truth of Oxford and Paris."""
    old_recall, old_precision, ap = 0.0, 1.0, 0.0
    intersect_size = j = 0
    for name in ranked:
        if name in ambiguous:
            continue
        if name in positives:
            intersect_size += 1
        recall = intersect_size / len(positives)
        precision = intersect_size / (j + 1.0)
        ap += (recall - old_recall) * ((old_precision + precision) / 2.0)
        old_recall, old_precision = recall, precision
        j += 1
    return ap


def rectangle_ap(
    positives: Collection[str], ambiguous: Collection[str], ranked: list[str]
) -> float:
    found = [name in positives for name in ranked if name not in ambiguous]
    return sum(sum(found[: i + 1]) / (i + 1) for i, hit in enumerate(found) if hit) / len(positives)


ORACLES = {"trapezoid": compute_ap, "rectangle": rectangle_ap}


def relevance_of(n: int, positives: Sequence[int], junk: Sequence[int] = ()) -> InstanceRelevance:
    """One query."""
    return InstanceRelevance(
        (np.array(positives, np.int64),),
        (np.array(junk, np.int64),),
        np.array([len(set(positives))]),
        n,
    )


def ap(distances: Any, relevance: InstanceRelevance, **options: Any) -> float:
    return float(instance_average_precision(np.array([distances]), relevance, **options)[0])


def test_the_worked_example() -> None:
    # ranking: junk, positive, other, positive, junk, other, positive; without junk + - + - +
    relevance = relevance_of(7, positives=[1, 3, 6], junk=[0, 4])
    rectangle = (1 + 2 / 3 + 3 / 5) / 3
    # each positive adds the mean of the precision before it and at it: 1 and 1, 1/2 and 2/3,
    # 2/4 and 3/5
    trapezoid = (1 + (1 / 2 + 2 / 3) / 2 + (2 / 4 + 3 / 5) / 2) / 3
    assert ap(range(7), relevance, form="rectangle") == pytest.approx(rectangle)
    assert ap(range(7), relevance) == pytest.approx(trapezoid)
    names = list("abcdefg")
    assert compute_ap("bdg", "ae", names) == pytest.approx(trapezoid)


def test_a_perfect_ranking_has_1_and_one_without_positives_0() -> None:
    for form in FORMS:
        assert ap([0, 1, 2, 3], relevance_of(4, [0, 1]), form=form) == pytest.approx(1)
        assert ap([0, 1, 2, 3], relevance_of(4, []), form=form) == 0
        assert ap([0, 1], relevance_of(2, [], junk=[0, 1]), form=form) == 0


def test_positives_that_the_database_lacks_are_never_found_but_counted() -> None:
    relevance = InstanceRelevance.of_ids(["a", "b"], [["a", "gone"]], [["nowhere"]])
    assert relevance.n_positives.tolist() == [2]
    assert ap([0, 1], relevance) == pytest.approx(compute_ap({"a", "gone"}, (), ["a", "b"]))


def test_junk_wins_over_positive() -> None:
    relevance = InstanceRelevance.of_ids("abc", ["ac"], ["a"])
    assert ap([0, 1, 2], relevance) == pytest.approx(compute_ap("ac", "a", list("abc")))


def problems(max_items: int) -> st.SearchStrategy[list[list[str]]]:
    """Levels of items: p positive, i irrelevant, j junk."""
    return st.lists(st.lists(st.sampled_from("pij"), max_size=max_items), min_size=1, max_size=4)


def as_query(levels: list[list[str]]) -> tuple[list[int], InstanceRelevance, str]:
    kinds = "".join(chain.from_iterable(levels))
    distances = [3 * level for level, items in enumerate(levels) for _ in items]
    rows = {kind: [n for n, known in enumerate(kinds) if known == kind] for kind in "pij"}
    return distances, relevance_of(len(kinds), rows["p"], rows["j"]), kinds


@settings(max_examples=80, deadline=None)
@given(problems(4).filter(any), st.sampled_from(FORMS))
def test_the_closed_form_is_the_mean_over_all_orders_of_tied_items(
    levels: list[list[str]], form: APForm
) -> None:
    distances, relevance, kinds = as_query(levels)
    positives = range(kinds.count("p"))  # items of a kind are alike
    values = []
    for order in product(*(sorted(set(permutations(items))) for items in levels)):
        flat = list(chain.from_iterable(order))
        count = iter(positives)
        names = [f"p{next(count)}" if kind == "p" else kind for kind in flat]
        wanted = [f"p{n}" for n in positives]
        values.append(ORACLES[form](wanted, "j", names) if wanted else 0.0)
    assert ap(distances, relevance, form=form) == pytest.approx(np.mean(values))


@settings(max_examples=60, deadline=None)
@given(problems(30).filter(any), st.sampled_from(FORMS))
def test_the_stable_order_is_the_official_code_on_the_sorted_list(
    levels: list[list[str]], form: APForm
) -> None:
    distances, relevance, kinds = as_query(levels)
    rng = np.random.default_rng(len(kinds))
    shuffled = rng.permutation(distances)
    ranked = [str(row) for row in np.argsort(shuffled, kind="stable")]
    rows = {kind: [str(n) for n, known in enumerate(kinds) if known == kind] for kind in "pj"}
    oracle = ORACLES[form](rows["p"], rows["j"], ranked) if rows["p"] else 0.0
    got = ap(shuffled.tolist(), relevance, form=form, ties="stable")
    assert got == pytest.approx(oracle)


def random_codes(n: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 2), dtype=np.uint8)


def test_queries_are_taken_in_blocks_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    distances = HammingMatrix(random_codes(9, 0), random_codes(40, 1))
    rng = np.random.default_rng(2)
    positives = tuple(rng.choice(40, 5, replace=False) for _ in range(9))
    junk = tuple(rng.choice(40, size, replace=False) for size in range(9))
    relevance = InstanceRelevance(positives, junk, np.full(9, 5), 40)
    whole = instance_average_precision(distances, relevance)
    monkeypatch.setattr(instance, "_BLOCK_ITEMS", 90)  # two queries at a time, and one left
    assert instance_average_precision(distances, relevance).tolist() == whole.tolist()
    assert len(set(whole.tolist())) > 5


def test_dense_ranks_keep_ties_and_leave_no_rank_out() -> None:
    ranks = dense_ranks(np.array([[0.5, -2.0, 0.5, 9.0], [1.0, 1.0, 1.0, 1.0]], np.float32))
    assert ranks.tolist() == [[1, 0, 1, 2], [0, 0, 0, 0]]


def test_cosine_ranks_put_the_nearest_first() -> None:
    database = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    ranks = CosineRanks(np.array([[0, 1], [1, 0]], np.float32), database)
    assert ranks.shape == (2, 3)
    assert ranks[0:2].tolist() == [[2, 0, 1], [0, 2, 1]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"distances": np.zeros((2, 4), int)}, r"got \(2, 4\) and \(1, 4\)"),
        ({"distances": np.zeros((1, 4))}, "integers >= 0, got float64"),
        ({"form": "circle"}, "form must be one of trapezoid, rectangle, got 'circle'"),
        ({"ties": "maybe"}, "ties must be one of expected, stable, got 'maybe'"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], reason: str) -> None:
    arguments = {"distances": np.zeros((1, 4), int), "relevance": relevance_of(4, [0])} | change
    with pytest.raises(ValueError, match=reason):
        instance_average_precision(**arguments)


def test_rows_outside_of_the_database_are_refused() -> None:
    with pytest.raises(ValueError, match="junk must be rows of a database of 4, got 4 to 4"):
        relevance_of(4, [0], junk=[4])
    with pytest.raises(ValueError, match="of as many queries, got 1, 0 and"):
        InstanceRelevance((np.array([0]),), (), np.array([1]), 4)


def test_the_examples_of_the_documentation_are_right() -> None:
    page = Path(__file__).parents[1] / "docs/instance-search.md"
    failed, attempted = doctest.testfile(str(page), module_relative=False)
    assert attempted and not failed


# Where the object was found


def slow_location(distances, positives, junk, matched, objects, k, iou):
    """The definition in plain loops."""
    ranking = sorted(range(len(distances)), key=lambda n: (distances[n], n))
    ranking = [n for n in ranking if n not in junk]
    wanted = [n for n in positives if n not in junk]
    right = hits = 0
    for n in ranking[: k or len(wanted)]:
        if n not in wanted or n not in objects:
            continue
        hits += 1
        x0, y0, x1, y1 = map(float, matched[n])
        for a0, b0, a1, b1 in objects[n].tolist():
            both = max(0, min(x1, a1) - max(x0, a0)) * max(0, min(y1, b1) - max(y0, b0))
            union = (x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - both
            if both / union >= iou:
                right += 1
                break
    return right / hits if hits else float("nan")


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 1, 3]), st.sampled_from([0.25, 0.5, 1.0]))
def test_the_location_score_is_that_of_loops(seed, k, iou):
    rng = np.random.default_rng(seed)
    n_queries, n = 4, 9

    def boxes(count):
        low, sides = rng.integers(0, 3, (count, 2)), rng.integers(1, 4, (count, 2))
        return np.concatenate([low, low + sides], axis=1).astype(np.float32)

    distances = rng.integers(0, 4, (n_queries, n))
    positives = tuple(np.flatnonzero(rng.random(n) < 0.5) for _ in range(n_queries))
    junk = tuple(np.flatnonzero(rng.random(n) < 0.2) for _ in range(n_queries))
    matched = [boxes(n) for _ in range(n_queries)]
    objects = [
        {int(row): boxes(rng.integers(1, 3)) for row in rows[rng.random(len(rows)) < 0.9]}
        for rows in positives
    ]
    relevance = InstanceRelevance(positives, junk, np.array([*map(len, positives)]), n)
    found = location_scores(distances, relevance, matched, objects, k=k, iou=iou)
    for query in range(n_queries):
        case = (x[query] for x in (distances, positives, junk, matched, objects))
        assert found[query] == pytest.approx(slow_location(*case, k, iou), nan_ok=True)


def test_bad_arguments_of_the_location_score_are_refused():
    relevance = InstanceRelevance((np.array([0]),), (np.array([], int),), np.array([1]), 2)
    case = (np.zeros((1, 2), int), relevance, [np.zeros((2, 4), np.float32)], [{}])
    with pytest.raises(ValueError, match=r"iou must be in \(0, 1\]"):
        location_scores(*case, iou=0)
    with pytest.raises(ValueError, match="k at least 1"):
        location_scores(*case, k=0)
    with pytest.raises(ValueError, match="of as many queries"):
        location_scores(*case[:3], [])
