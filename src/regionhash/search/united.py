"""United Hamming distances of all bags of codes, and what changes the distance of a region."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regionhash.codes import Weights, asymmetric_distances, hamming_distances
from regionhash.structures import Codes, Ints

_BLOCK = 1 << 17
"""Distances held at a time: 512 KiB of int32, which fit in the L2 cache of one core."""


class Unlike(NamedTuple):
    """What regions of another class than the query's cost, if both classes are known.

    Attributes:
        classes: (Q,) int64, of each query object; -1 is unknown.
        bits: what is added to the distance, which stays within the bits of the code.
    """

    classes: Ints
    bits: int


class Costs(NamedTuple):
    """What changes the Hamming distance of a region.

    Attributes:
        weights: of the bits of each query, see `asymmetric_distances`; None weighs all alike.
        unlike: see there; None does not compare classes.
    """

    weights: Weights | None = None
    unlike: Unlike | None = None


NO_COSTS = Costs()


def region_distances(
    queries: Codes, codes: Codes, costs: Costs, labels: Ints | None
) -> NDArray[np.int32]:
    """The distances (Q, M) of regions, with what they cost.

    Args:
        queries: (Q, B) uint8, packed.
        codes: (M, B) uint8, packed; may be memory-mapped.
        costs: see there.
        labels: (M,) int64, the class of each region, -1 is unknown; only `costs.unlike` needs them.

    Raises:
        ValueError: see `hamming_distances`.
    """
    distances = asymmetric_distances(queries, costs.weights, codes)
    if costs.unlike is not None:
        assert labels is not None
        wanted, found = np.asarray(costs.unlike.classes)[:, None], np.asarray(labels)[None]
        other = (wanted >= 0) & (found >= 0) & (wanted != found)
        grown = np.minimum(distances + np.int32(costs.unlike.bits), 8 * queries.shape[1])
        distances = np.where(other, grown, distances).astype(np.int32, copy=False)
    return distances


def united_hamming(
    queries: Codes,
    codes: Codes,
    offsets: Ints,
    costs: Costs = NO_COSTS,
    labels: Ints | None = None,
) -> Ints:
    """United Hamming distance between several query objects and each bag of codes (DMIH, eq. 8).

    d(n) = sum over the queries q of the minimum over the codes c of bag n of hamming(q, c).
    An empty bag, which eq. 8 leaves undefined, gets Q * 8 * B + 1: more than any real distance.

    Args:
        queries: (Q, B) uint8, packed.
        codes: (M, B) uint8, packed; may be memory-mapped.
        offsets: (N + 1,) integers; bag n is `codes[offsets[n]:offsets[n + 1]]`.
        costs: what changes the distances.
        labels: (M,) int64, see `region_distances`.

    Returns:
        (N,) int64, in bits.

    Raises:
        ValueError: a shape or type is wrong, or `offsets` do not divide the codes into bags.
    """
    queries, offsets = np.asarray(queries), np.asarray(offsets)
    hamming_distances(queries, codes[:0])  # raises for queries that do not fit, even without codes
    if offsets.ndim != 1 or not len(offsets):
        raise ValueError(f"offsets must be (N + 1,), got {offsets.shape}")
    lengths = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != len(codes) or (lengths < 0).any():
        raise ValueError(
            f"offsets must rise from 0 to {len(codes)}, the number of codes, "
            f"got {offsets[0]} to {offsets[-1]}"
        )
    united = np.full(len(lengths), 8 * queries.size + 1, np.int64)
    bags = np.flatnonzero(lengths)
    starts, ends = offsets[bags], offsets[bags + 1]  # without empty bags, starts[1:] = ends[:-1]
    block = _BLOCK // max(1, len(queries))
    first = 0
    while first < len(bags):
        fitting = int(np.searchsorted(ends, starts[first] + block, side="right"))
        last = max(fitting, first + 1)  # a bag larger than the block is taken whole
        block_bags = slice(first, last)
        items = slice(starts[first], ends[last - 1])
        classes = None if labels is None else labels[items]
        distances = region_distances(queries, codes[items], costs, classes)
        minima = np.minimum.reduceat(distances, starts[block_bags] - starts[first], axis=1)
        united[bags[block_bags]] = minima.sum(axis=0)
        first = last
    return united


def nearest_rows(distances: NDArray[np.integer[Any]], top: int) -> NDArray[np.intp]:
    """Rows of the `top` least distances, ties in the order of the rows."""
    rows = np.arange(len(distances))
    if top < len(rows):
        rows = np.flatnonzero(distances <= np.partition(distances, top - 1)[top - 1])
    return rows[np.argsort(distances[rows], kind="stable")][:top]


def first_least(values: NDArray[np.number[Any]], bounds: Ints) -> Ints:
    """The place (K,) of the least value of each bag, the first of equals.

    Args:
        values: (M,).
        bounds: (K + 1,); bag n has the values from `bounds[n]` to `bounds[n + 1]`, at least one.
    """
    if len(bounds) == 1:
        return np.zeros(0, np.int64)
    least = np.minimum.reduceat(values, bounds[:-1])
    places = np.flatnonzero(values == np.repeat(least, np.diff(bounds)))
    found: Ints = places[np.searchsorted(places, bounds[:-1])]
    return found
