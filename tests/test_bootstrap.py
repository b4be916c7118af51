from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from regionhash.evaluation import bootstrap
from regionhash.evaluation.bootstrap import error_reduction, paired_bootstrap


def two_methods(seed: int, n: int = 300, gain: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Measures of two methods that agree on what is a hard query."""
    rng = np.random.default_rng(seed)
    hardness = rng.random(n)
    noise = rng.normal(0, 0.05, (2, n))
    return np.clip(hardness + noise[0] + gain, 0, 1), np.clip(hardness + noise[1], 0, 1)


def test_scipy_gives_the_same_interval_up_to_chance() -> None:
    a, b = two_methods(0)
    ours = paired_bootstrap(a, b)
    theirs = stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.mean_difference == pytest.approx((a - b).mean())
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=width / 25)
    assert ours.high == pytest.approx(theirs.high, abs=width / 25)


def test_queries_are_paired() -> None:
    a, b = two_methods(0)
    paired = paired_bootstrap(a, b)
    shuffled = paired_bootstrap(a, np.random.default_rng(1).permutation(b))
    assert paired.high - paired.low < (shuffled.high - shuffled.low) / 3


def test_equal_methods_differ_by_nothing() -> None:
    a, _ = two_methods(0)
    result = paired_bootstrap(a, a)
    assert (result.mean_difference, result.low, result.high) == (0, 0, 0)
    assert result.p_value == 1


def test_a_difference_in_every_query_has_the_least_p_value() -> None:
    b = np.linspace(0, 0.5, 20)
    result = paired_bootstrap(b + 0.25, b, n_resamples=999)
    assert result.low == pytest.approx(0.25)
    assert result.high == pytest.approx(0.25)
    assert result.p_value == pytest.approx(2 / 1000)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(-0.02, 0.02))
def test_a_p_value_below_5_percent_goes_with_an_interval_without_zero(
    seed: int, gain: float
) -> None:
    a, b = two_methods(seed, n=40, gain=gain)
    result = paired_bootstrap(a, b, n_resamples=2000, seed=seed)
    without_zero = result.low > 0 or result.high < 0
    if result.p_value < 0.05:
        assert without_zero
    if result.p_value > 0.051:
        assert not without_zero


def test_swapping_the_methods_mirrors_the_result() -> None:
    a, b = two_methods(3, gain=0.004)
    forth, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert back.mean_difference == pytest.approx(-forth.mean_difference)
    assert back.low == pytest.approx(-forth.high, rel=1e-2)
    assert back.p_value == pytest.approx(forth.p_value)


def test_the_seed_fixes_the_result() -> None:
    a, b = two_methods(4)
    assert paired_bootstrap(a, b, seed=7) == paired_bootstrap(a, b, seed=7)
    assert paired_bootstrap(a, b, seed=7) != paired_bootstrap(a, b, seed=8)


def test_resamples_are_drawn_in_bounded_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = two_methods(5)
    whole = paired_bootstrap(a, b)
    monkeypatch.setattr(bootstrap, "_CHUNK_ITEMS", 1000)
    chunked = paired_bootstrap(a, b)
    assert chunked.low == pytest.approx(whole.low, rel=0.1)
    assert chunked.high == pytest.approx(whole.high, rel=0.1)


def test_error_reduction_is_the_share_of_the_error_that_is_avoided() -> None:
    a, b = np.array([0.9, 0.8, 1.0]), np.array([0.8, 0.6, 0.7])
    result = error_reduction(a, b)
    assert result.ratio == pytest.approx(1 - 0.3 / 0.9)
    assert result.low < result.ratio < result.high


def test_error_reduction_of_a_fixed_share_has_no_spread() -> None:
    b = np.linspace(0.1, 0.9, 30)
    result = error_reduction(1 - (1 - b) / 4, b)
    assert (result.ratio, result.low, result.high) == pytest.approx((0.75, 0.75, 0.75))


def test_resamples_without_an_error_do_not_spoil_the_interval() -> None:
    # half of the resamples of two queries leave b without an error, some of them a with one
    result = error_reduction(np.array([1.0, 0.5]), np.array([0.5, 1.0]))
    assert result.ratio == 0
    assert result.low == -np.inf
    assert result.high == 1


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([0.5], [0.5, 0.6], r"must both be \(Q,\).*got \(1,\) and \(2,\)"),
        ([], [], "at least one query"),
        ([np.nan], [0.5], "a and b must be finite"),
    ],
)
def test_bad_pairs_are_refused(a: list[float], b: list[float], message: str) -> None:
    for compare in (paired_bootstrap, error_reduction):
        with pytest.raises(ValueError, match=message):
            compare(np.array(a), np.array(b))


def test_bad_options_and_values_are_refused() -> None:
    ones, halves = np.ones(3), np.full(3, 0.5)
    with pytest.raises(ValueError, match="n_resamples must be at least 1, got 0"):
        paired_bootstrap(ones, halves, n_resamples=0)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 0.5 to 2.0"):
        error_reduction(2 * ones, halves)
    with pytest.raises(ValueError, match="no error to reduce"):
        error_reduction(halves, ones)
