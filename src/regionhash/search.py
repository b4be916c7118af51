"""Exact Hamming search: whole pictures, one region, several objects.

Every search returns the pictures in the order (distance, row of the table), so that a ranking is
the same on every machine; a `top` beyond the number of pictures returns them all.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.codes import hamming_distances
from regionhash.structures import Codes, CodeTable, Hit, Ints, Match, Regions

_BLOCK = 1 << 17
"""Distances held at a time: 512 KiB of int32, which the second-level cache of one core holds."""


def search_images(query: Codes, table: CodeTable, *, top: int = 20) -> list[Hit]:
    """The `top` pictures whose image codes are nearest to a query.

    Args:
        query: (B,) uint8, packed.
        table: N pictures with image codes.
        top: how many pictures to return.

    Raises:
        ValueError: the table has no image codes, the query does not fit them, or `top` < 1.
    """
    if table.image_codes is None:
        raise ValueError("these codes have no image codes")
    distances = hamming_distances(_one(query), table.image_codes)[0]  # (N,)
    return [Hit(int(row), table.ids[row], int(distances[row])) for row in _nearest(distances, top)]


def search_regions(query: Codes, table: CodeTable, *, top: int = 20) -> list[Hit]:
    """The `top` pictures that have the regions nearest to a query.

    The distance of a picture is the least over its regions; its match is the region of that
    distance, among equals the first, which is the one with the best score. A picture without
    regions cannot match and is never returned.

    Args:
        query: (B,) uint8, packed.
        table: N pictures with regions.
        top: how many pictures to return.

    Raises:
        ValueError: the table has no regions, the query does not fit them, or `top` < 1.
    """
    return search_objects(_one(query), table, top=top)


def search_objects(
    queries: Codes,
    table: CodeTable,
    *,
    top: int = 20,
    without: Codes | None = None,
    within: int | None = None,
) -> list[Hit]:
    """The `top` pictures that have regions near to all query objects (DMIH, eq. 8).

    Ranked by `united_hamming`; each hit has one match per query object, in their order, chosen as
    in `search_regions`. A picture without regions cannot match and is never returned.

    Args:
        queries: (Q, B) uint8, packed, Q >= 1.
        table: N pictures with regions.
        top: how many pictures to return.
        without: (W, B) uint8, packed: objects that must not be there. A picture that has a region
            at most `within` bits from one of them is left out.
        within: of `without`; None is an eighth of the bits, see `default_within`.

    Raises:
        ValueError: the table has no regions, the queries do not fit them, there is no query, `top`
            < 1, or `within` is negative or given without `without`.
    """
    if table.offsets is None or table.region_codes is None:
        raise ValueError("these codes have no regions")
    if not len(queries):
        raise ValueError("queries must hold at least one object, got none")
    distances = united_hamming(queries, table.region_codes, table.offsets)  # (N,)
    kept = np.diff(table.offsets) > 0
    if without is not None:
        limit = default_within(8 * table.region_codes.shape[1]) if within is None else within
        if limit < 0:
            raise ValueError(f"within must not be negative, got {limit}")
        for unwanted in without:
            kept &= united_hamming(unwanted[None], table.region_codes, table.offsets) > limit
    elif within is not None:
        raise ValueError("within is of use only with objects that must not be there")
    rows = np.flatnonzero(kept)
    return [
        Hit(
            int(row),
            table.ids[row],
            int(distances[row]),
            _best_matches(queries, table.regions(int(row))),
        )
        for row in rows[_nearest(distances[rows], top)]
    ]


def default_within(n_bits: int) -> int:
    """The distance up to which a region is taken for an object that must not be there.

    An eighth of the bits: two random codes of 64 bits are that close less than once in 10^9.
    """
    return n_bits // 8


def united_hamming(queries: Codes, codes: Codes, offsets: Ints) -> Ints:
    """United Hamming distance of several query objects and each bag of codes (DMIH, eq. 8).

    d(n) = sum over the queries q of the minimum over the codes c of bag n of hamming(q, c).
    An empty bag, which eq. 8 leaves undefined, gets Q * 8 * B + 1: more than any real distance.

    Args:
        queries: (Q, B) uint8, packed.
        codes: (M, B) uint8, packed; may be memory-mapped.
        offsets: (N + 1,) integers; bag n is `codes[offsets[n]:offsets[n + 1]]`.

    Returns:
        (N,) int64, in bits.

    Raises:
        ValueError: a shape or type is another, or `offsets` do not divide the codes into bags.
    """
    queries, offsets = np.asarray(queries), np.asarray(offsets)
    hamming_distances(queries, codes[:0])  # refuses queries that do not fit, whatever the bags hold
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
    starts, ends = (
        offsets[bags],
        offsets[bags + 1],
    )  # empty bags take no room: starts[1:] = ends[:-1]
    block = _BLOCK // max(1, len(queries))
    first = 0
    while first < len(bags):
        fitting = int(np.searchsorted(ends, starts[first] + block, side="right"))
        last = max(fitting, first + 1)  # a bag beyond the block is taken whole
        own = slice(first, last)
        distances = hamming_distances(queries, codes[starts[first] : ends[last - 1]])
        minima = np.minimum.reduceat(distances, starts[own] - starts[first], axis=1)
        united[bags[own]] = minima.sum(axis=0)
        first = last
    return united


def _one(query: Codes) -> Codes:
    """One query (B,) as (1, B)."""
    query = np.asarray(query)
    if query.ndim != 1:
        raise ValueError(f"query must be (B,) uint8, got {query.shape} {query.dtype}")
    return query[None]


def _nearest(distances: NDArray[np.signedinteger[Any]], top: int) -> NDArray[np.intp]:
    """Rows of the `top` least distances, equal ones in the order of the rows.

    Bisects over the few levels that Hamming distances have for the level that the last place falls
    into: a selection such as `numpy.partition` is several times slower on so many equal values.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    levels = range(int(distances.max(initial=0)) + 1)
    wanted = min(top, len(distances))
    level = bisect_left(levels, wanted, key=lambda least: int(np.count_nonzero(distances <= least)))
    rows = np.flatnonzero(distances <= level)
    return rows[np.argsort(distances[rows], kind="stable")][:top]


def _best_matches(queries: Codes, regions: Regions) -> tuple[Match, ...]:
    """The region nearest to each query object, among equals the first."""
    distances = hamming_distances(queries, regions.codes)  # (Q, R)
    best = distances.argmin(axis=1)
    x0, y0, x1, y1 = regions.boxes[best].T.tolist()
    return tuple(
        Match(box, distance, label, score)
        for box, distance, label, score in zip(
            zip(x0, y0, x1, y1, strict=True),
            distances.min(axis=1).tolist(),
            regions.labels[best].tolist(),
            regions.scores[best].tolist(),
            strict=True,
        )
    )
