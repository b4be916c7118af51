"""How certain a difference between two methods is: the paired bootstrap over queries.

B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_RESAMPLES = 10_000
_CHUNK_ITEMS = 1 << 21  # drawn queries in memory at a time


@dataclass(frozen=True, slots=True)
class BootstrapResult:
    """A difference of means over the same queries.

    Attributes:
        mean_difference: mean of a - b.
        low: lower end of its 95 % percentile interval.
        high: its upper end.
        p_value: two-sided, for the hypothesis that the methods do not differ.
    """

    mean_difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True)
class ErrorReduction:
    """The share of b's error that a avoids, 1 - (1 - mean a) / (1 - mean b).

    Attributes:
        ratio: 0 for equal methods, 1 for a perfect a, negative for a worse a.
        low: lower end of its 95 % percentile interval.
        high: its upper end.
    """

    ratio: float
    low: float
    high: float


def paired_bootstrap(
    a: NDArray[np.floating[Any]],
    b: NDArray[np.floating[Any]],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> BootstrapResult:
    """The difference between a measure (Q,) of two methods on the same queries.

    The p-value is twice the smaller share of resampled differences on one side of zero, counting
    the observed sample as one of them (Davison and Hinkley, "Bootstrap Methods and their
    Application", 1997, Sec. 4.2.3), at most 1; below 0.05 the interval excludes zero.

    Raises:
        ValueError: `a` and `b` are not (Q,) of one length >= 1, or `n_resamples` is not positive.
    """
    pairs = _checked_pairs(a, b)
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    differences = pairs[:, :1] - pairs[:, 1:]  # (Q, 1)
    means = _resampled_means(differences, n_resamples, seed)[:, 0]
    one_sided = (1 + min((means <= 0).sum(), (means >= 0).sum())) / (n_resamples + 1)
    low, high = _interval(means)
    return BootstrapResult(float(differences.mean()), low, high, float(min(1.0, 2 * one_sided)))


def error_reduction(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> ErrorReduction:
    """The share of b's error that a avoids, for a measure (Q,) in [0, 1] on the same queries.

    Raises:
        ValueError: see `paired_bootstrap`; a value is outside [0, 1]; or the mean of `b` is 1, so
            there is no error to reduce.
    """
    pairs = _checked_pairs(a, b)
    if pairs.min() < 0 or pairs.max() > 1:
        raise ValueError(f"a and b must be in [0, 1], got {pairs.min()} to {pairs.max()}")
    if (pairs[:, 1] == 1).all():
        raise ValueError("b must have a mean below 1, got 1: there is no error to reduce")
    errors = 1 - np.vstack([pairs.mean(0), _resampled_means(pairs, N_RESAMPLES, seed=0)])
    # if b has no error in a resample, the ratio is minus infinity, or 0 if a has none either
    ratios = np.where(errors[:, 0] > 0, -np.inf, 0.0)
    np.divide(errors[:, 0], errors[:, 1], out=ratios, where=errors[:, 1] > 0)
    np.subtract(1, ratios, out=ratios, where=errors[:, 1] > 0)
    low, high = _interval(ratios[1:])
    return ErrorReduction(float(ratios[0]), low, high)


def _checked_pairs(
    a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """The two measures as (Q, 2)."""
    if np.ndim(a) != 1 or np.shape(a) != np.shape(b) or not len(a):
        raise ValueError(
            "a and b must both be (Q,) with at least one query, "
            f"got {np.shape(a)} and {np.shape(b)}"
        )
    pairs = np.stack([a, b], axis=1).astype(np.float64)
    if not np.isfinite(pairs).all():
        raise ValueError("a and b must be finite, got NaN or infinity")
    return pairs


def _resampled_means(
    values: NDArray[np.float64], n_resamples: int, seed: int
) -> NDArray[np.float64]:
    """Means (n_resamples, M) of rows of `values` (Q, M) drawn with replacement."""
    rng = np.random.default_rng(seed)
    n_queries = len(values)
    means = np.empty((n_resamples, values.shape[1]))
    step = max(1, _CHUNK_ITEMS // n_queries)
    for first in range(0, n_resamples, step):
        chunk = means[first : first + step]
        drawn = rng.integers(0, n_queries, (len(chunk), n_queries), dtype=np.int32)
        for column in range(values.shape[1]):
            chunk[:, column] = values[drawn, column].mean(1)
    return means


def _interval(resampled: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the central 95 % of the resampled values, both among them."""
    low, high = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
