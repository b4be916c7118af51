"""The basis of all tie-aware measures: the number of items of each kind at each distance.

The order of items at equal distance comes from the database, not the method. A measure averaged
over the random orders of such items needs no sorting, only the *level table*; the stable order is
the special case in which every level holds one item.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from regionhash.structures import Ints

Ties = Literal["expected", "stable"]
Integers = NDArray[np.integer[Any] | np.bool_]
Values = NDArray[np.float64]


class IntegerMatrix(Protocol):
    """Integers >= 0 or booleans (Q, N), read by slices of queries; an array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(Q, N)."""

    def __getitem__(self, rows: slice, /) -> Integers:
        """The rows (q, N) of a slice of the queries."""


def stable_ranks(distances: Integers) -> Ints:
    """Ranks (q, N) from 0 by distance, equal distances by database row."""
    # up to 16 bits the stable sort is a radix sort
    keys = distances.astype(np.min_scalar_type(distances.max()), copy=False)
    ranks = np.empty(distances.shape, np.int64)
    order = np.argsort(keys, axis=1, kind="stable")
    np.put_along_axis(ranks, order, np.arange(distances.shape[1])[None], axis=1)
    return ranks


def level_table(levels: Integers, similarities: Integers) -> Ints:
    """Counts (q, L, S + 1) of items at each level (q, N) with each similarity (q, N)."""
    n_levels, n_similarities = int(levels.max()) + 1, int(similarities.max()) + 1
    cells = np.multiply(levels, n_similarities, dtype=np.intp)
    cells += np.arange(len(levels))[:, None] * (n_levels * n_similarities)
    cells += similarities
    counts = np.bincount(cells.ravel(), minlength=len(levels) * n_levels * n_similarities)
    return counts.reshape(len(levels), n_levels, n_similarities)


def before_each(values: Ints) -> Ints:
    """Exclusive cumulative sums along the last axis."""
    sums: Ints = np.cumsum(values, axis=-1) - values
    return sums


def prefix_sums(values: NDArray[Any]) -> NDArray[Any]:
    """Sums of the first 0, 1, 2, ... values along the last axis."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1), values.dtype)
    np.cumsum(values, axis=-1, out=sums[..., 1:])
    return sums


def ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Values:
    """Quotients by values that are 0 or at least 1; 0 for 0, where the numerator is also 0."""
    return np.asarray(numerator / np.maximum(denominator, 1), np.float64)


def checked_integers(name: str, block: Integers) -> Integers:
    """The block as an array. Raises ValueError unless it holds integers >= 0."""
    block = np.asarray(block)
    if block.dtype.kind not in "biu" or block.min() < 0:
        raise ValueError(f"{name} must be integers >= 0, got {block.dtype} from {block.min()}")
    return block
