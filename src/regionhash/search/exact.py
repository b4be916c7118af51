"""Exact Hamming search: whole pictures, one region, several objects, or category by category.

Every search returns pictures in the order (distance, row of the table), so that a ranking is the
same on every machine; a `top` beyond the number of pictures returns all of them.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regionhash.codes import (
    Weights,
    asymmetric_distances,
    codes_within,
    distances_to_one,
    hamming_distances,
)
from regionhash.search.assignment import (
    Steps,
    assign,
    least_sums,
    pair_bounds,
    same_objects,
)
from regionhash.structures import (
    CategoryCodes,
    CategoryHits,
    Codes,
    CodeTable,
    Hit,
    Ints,
    Mask,
    Match,
    Regions,
    renamed,
)

_BLOCK = 1 << 17
"""Distances held at a time: 512 KiB of int32, which fit in the L2 cache of one core."""

_FEW = 0.1
"""Share of the bags below which their codes are gathered instead of scanning all."""

_SAMPLE = 4096
"""Smallest sample of distances from which a search guesses the level that it needs."""

_SHARE = 16
"""Stride of that sample, if there are enough distances."""

_SAMPLED_CODES = 20_000
"""Size of the sample of codes from which a search guesses the distance that it needs."""

_CANDIDATES = 64
"""Least number of pictures of which a search for several objects first assigns the regions."""

_PAIRS = 1 << 20
"""Pairs of regions compared at a time."""


class Unlike(NamedTuple):
    """What regions of another class than the query's cost, if both classes are known.

    Attributes:
        classes: (Q,) int64, of each query object; -1 is unknown.
        bits: what is added to the distance, which stays within the bits of the code.
    """

    classes: Ints
    bits: int


class _Costs(NamedTuple):
    """What changes the Hamming distance of regions, see `search_objects`."""

    weights: Weights | None
    unlike: Unlike | None


@renamed(among="mask")
def search_images(
    query: Codes, table: CodeTable, *, top: int = 20, mask: Mask | None = None
) -> list[Hit]:
    """The `top` pictures whose image codes are nearest to a query.

    Args:
        query: (B,) uint8, packed.
        table: N pictures with image codes.
        top: how many pictures to return.
        mask: (N,) bool, the pictures that are searched; None searches all.

    Raises:
        ValueError: the table has no image codes, the query does not fit them, or `top` < 1.
    """
    if table.image_codes is None:
        raise ValueError("these codes have no image codes")
    rows, distances = nearest_codes(_one(query)[0], table.image_codes, top=top, mask=mask)
    return _hits(rows, distances, table)


@renamed(among="mask")
def search_regions(
    query: Codes, table: CodeTable, *, top: int = 20, mask: Mask | None = None
) -> list[Hit]:
    """The `top` pictures that have the regions nearest to a query.

    The distance of a picture is the least over its regions; its match is the region of that
    distance, the first and so best-scored one of equals. Pictures without regions are never
    returned.

    Args:
        query: (B,) uint8, packed.
        table: N pictures with regions.
        top: how many pictures to return.
        mask: (N,) bool, the pictures that are searched; None searches all.

    Raises:
        ValueError: the table has no regions, the query does not fit them, or `top` < 1.
    """
    return search_objects(_one(query), table, top=top, mask=mask)


@renamed(among="mask", without="exclude", within="max_distance")
def search_objects(
    queries: Codes,
    table: CodeTable,
    *,
    top: int = 20,
    mask: Mask | None = None,
    exclude: Codes | None = None,
    max_distance: int | None = None,
    apart: bool | Mask = True,
    weights: Weights | None = None,
    context: Ints | None = None,
    unlike: Unlike | None = None,
) -> list[Hit]:
    """The `top` pictures that have regions near all query objects, each object a region of its own.

    The distance of a picture is the least sum of distances over all assignments of different
    regions to the objects; regions that show the same object twice count as one, see
    `regionhash.search.assignment`. An object that is left without a region costs all bits, and its
    match has no box. With `apart=False`, objects may share regions, and pictures are ranked by
    `united_hamming` (DMIH, eq. 8). Each hit has one match per query object, in order; of equal
    assignments, the one with the first regions. Pictures without regions are never returned.

    Args:
        queries: (Q, B) uint8, packed, Q >= 1.
        table: N pictures with regions.
        top: how many pictures to return.
        mask: (N,) bool, the pictures that are searched; None searches all.
        exclude: (W, B) uint8, packed: objects that must be absent. Pictures with a region at most
            `max_distance` bits from one of them are left out.
        max_distance: for `exclude`; None is an eighth of the bits, see `default_max_distance`.
        apart: whether objects need different regions; or (Q, Q) bool, symmetric, which of them.
        weights: of the bits of each query, see `asymmetric_distances`.
        context: (N,) int64, what is added to the distance of each picture, at least 0; see
            `context_distances`.
        unlike: see `Unlike`.

    Raises:
        ValueError: the table has no regions, the queries do not fit them, there is no query, `top`
            < 1, `max_distance` is negative or given without `exclude`, `apart` or `context` does
            not fit, or too many objects compete for the same regions.
    """
    if table.offsets is None or table.region_codes is None:
        raise ValueError("these codes have no regions")
    if not len(queries):
        raise ValueError("queries must hold at least one object, got none")
    if context is not None and context.shape != (len(table),):
        raise ValueError(f"context must be ({len(table)},), got {context.shape}")
    if exclude is not None:
        n_bits = 8 * table.region_codes.shape[1]
        limit = default_max_distance(n_bits) if max_distance is None else max_distance
        if limit < 0:
            raise ValueError(f"max_distance must not be negative, got {limit}")
        mask = np.ones(len(table), bool) if mask is None else mask.copy()
        for unwanted in exclude:
            mask &= united_hamming(unwanted[None], table.region_codes, table.offsets) > limit
    elif max_distance is not None:
        raise ValueError("max_distance needs objects to exclude")
    pairs, costs = _pairs_apart(apart, len(queries)), _Costs(weights, unlike)
    if len(queries) == 1 and weights is None and context is None and unlike is None:
        rows, distances = nearest_bags(
            queries[0], table.region_codes, table.offsets, top=top, mask=mask
        )
        pairs = None
    else:
        united = united_hamming(
            queries, table.region_codes, table.offsets, weights, unlike, table.labels
        )  # (N,)
        if context is not None:
            united = united + context
        searched = np.diff(table.offsets) > 0
        candidates = np.flatnonzero(searched if mask is None else searched & mask)
        if pairs is None:
            rows = candidates[_nearest(united[candidates], top)]
            distances = united[rows]
        else:
            rows, distances = _nearest_apart(
                queries, table, candidates, united, top, pairs, costs, context
            )
    matches = partial(_matches, queries, apart=pairs, steps=Steps(), costs=costs)
    added = [None] * len(rows) if context is None else context[rows].tolist()
    return [
        Hit(row, table.ids[row], distance, matches(table.regions(row)), (), part)
        for row, distance, part in zip(rows.tolist(), distances.tolist(), added, strict=True)
    ]


def context_distances(queries: Codes, table: CodeTable, share: float) -> Ints:
    """What whole pictures add to the distance of each picture of a search for objects.

    Args:
        queries: (P, B) uint8, packed: image codes of the query pictures, P >= 1.
        table: N pictures with image codes.
        share: how much of the distance between pictures is added.

    Returns:
        (N,) int64: `share` times the mean of the P Hamming distances, rounded to whole bits.

    Raises:
        ValueError: the table has no image codes, or the queries do not fit them.
    """
    if table.image_codes is None:
        raise ValueError("these codes have no image codes")
    total = np.zeros(len(table), np.int64)
    for query in queries:
        total += distances_to_one(query, table.image_codes)
    return np.rint(share * total / len(queries)).astype(np.int64)


def _pairs_apart(apart: bool | Mask, n_objects: int) -> Mask | None:
    """Which objects (Q, Q) need different regions; None if no two do."""
    if isinstance(apart, bool):
        pairs = np.full((n_objects, n_objects), apart)
    else:
        pairs = np.array(apart)
        if pairs.shape != (n_objects, n_objects) or pairs.dtype != bool:
            raise ValueError(
                f"apart must be ({n_objects}, {n_objects}) bool, got {pairs.shape} {pairs.dtype}"
            )
        if (pairs != pairs.T).any():
            raise ValueError("apart must be symmetric")
    np.fill_diagonal(pairs, val=False)
    return pairs if pairs.any() else None


def _nearest_apart(
    queries: Codes,
    table: CodeTable,
    candidates: Ints,
    united: Ints,
    top: int,
    apart: Mask,
    costs: _Costs,
    context: Ints | None,
) -> tuple[Ints, Ints]:
    """The `top` pictures by the least sum over different regions, and these sums.

    The sums are with `context`, if it is given, and so is `united`, which is never above them. So
    pictures are taken in its order, and once the next one is not below the last of the `top` found
    so far, no further picture is.
    """
    steps = Steps()
    rows, sums = np.zeros(0, np.int64), np.zeros(0, np.int64)
    done, wanted = 0, max(_CANDIDATES, 2 * min(top, len(candidates)))
    while done < len(candidates):
        order = candidates[_nearest(united[candidates], wanted)]
        while done < len(order):
            block = order[done : done + _block_of(table, order[done:])]
            if len(rows) == top:
                last = (sums[-1], rows[-1])
                if (united[block[0]], block[0]) > last:
                    return rows, sums
                block = block[united[block] <= sums[-1]]  # of a sorted block, the beginning
            added = np.zeros(len(block), np.int64) if context is None else context[block]
            limits = sums[-1] - added if len(rows) == top else None
            found, own = _sums_apart(queries, table, block, limits, apart, steps, costs)
            own = own if context is None else own + context[found]
            rows, sums = np.concatenate([rows, found]), np.concatenate([sums, own])
            best = np.lexsort([rows, sums])[:top]
            rows, sums = rows[best], sums[best]
            done += len(block)
        wanted *= 4
    return rows, sums


def _block_of(table: CodeTable, rows: Ints) -> int:
    """How many of some pictures have about `_PAIRS` pairs of regions, at least one."""
    assert table.offsets is not None
    offsets, rows = np.asarray(table.offsets), rows[:_PAIRS]
    most = np.maximum.accumulate(offsets[rows + 1] - offsets[rows])
    fitting = most.astype(np.int64) ** 2 * np.arange(1, len(rows) + 1) <= _PAIRS
    return max(1, int(np.count_nonzero(fitting)))


def _sums_apart(
    queries: Codes,
    table: CodeTable,
    rows: Ints,
    limits: Ints | None,
    apart: Mask,
    steps: Steps,
    costs: _Costs,
) -> tuple[Ints, Ints]:
    """Those of P pictures whose least sum over different regions is within limits, and the sums.

    Args:
        queries: (Q, B) uint8.
        table: the pictures.
        rows: (P,) their rows; all have regions.
        limits: (P,), the greatest sum of each; None is no limit.
        apart: (Q, Q) bool.
        steps: of the search.
        costs: see there.
    """
    assert table.offsets is not None and table.region_codes is not None
    assert table.boxes is not None and table.labels is not None
    offsets, n_bits = np.asarray(table.offsets), 8 * queries.shape[1]
    lengths = offsets[rows + 1] - offsets[rows]
    there = np.arange(lengths.max()) < lengths[:, None]  # (P, R)
    items = np.repeat(offsets[rows] - np.cumsum(lengths) + lengths, lengths)
    items = items + np.arange(len(items))
    distances = np.full((len(rows), there.shape[1], len(queries)), n_bits, np.int32)
    codes = table.region_codes[items]
    distances[there] = _distances(queries, costs, codes, table.labels[items]).T
    boxes = np.zeros((*there.shape, 4), np.float32)
    labels = np.full(there.shape, -1, np.int64)
    boxes[there], labels[there] = table.boxes[items], table.labels[items]
    nearest = distances.argmin(axis=1)  # (P, Q)
    sums = distances.min(axis=1).sum(axis=1, dtype=np.int64)
    own = np.arange(len(rows))[:, None]
    shared = same_objects(boxes[own, nearest], labels[own, nearest])
    shared |= nearest[:, :, None] == nearest[:, None, :]
    hard = np.flatnonzero((shared & apart).any(axis=(1, 2)))
    if len(hard):
        by_object = np.ascontiguousarray(distances[hard].transpose(0, 2, 1))  # (P', Q, R)
        sums[hard] = pair_bounds(by_object, apart, n_bits)
        if limits is not None:
            within = sums[hard] <= limits[hard]
            by_object, hard = by_object[within], hard[within]
        same = same_objects(boxes[hard], labels[hard])
        most = None if limits is None else limits[hard]
        sums[hard] = least_sums(by_object, apart, same, n_bits, steps, most)
    kept = slice(None) if limits is None else sums <= limits
    return rows[kept], sums[kept]


def default_max_distance(n_bits: int) -> int:
    """The distance up to which a region counts as an excluded object.

    An eighth of the bits: fewer than one in 10^9 pairs of random 64-bit codes are that close.
    """
    return n_bits // 8


@renamed(among="mask")
def search_categories(
    query: CategoryCodes,
    table: CodeTable,
    *,
    top: int = 20,
    min_prob: float = 0.0,
    mask: Mask | None = None,
) -> list[CategoryHits]:
    """The `top` pictures of each category of a query, most probable category first (IAH, Sec. IV).

    A category's pictures are those that have a code of it, ranked by the distance of that code. A
    category that no picture has is in the answer too, without hits.

    Args:
        query: the categories of the query picture and their codes.
        table: N pictures with codes of categories.
        top: how many pictures to return for each.
        min_prob: the least probability of a category, in the query and in the table; the model
            itself already leaves out improbable ones.
        mask: (N,) bool, the pictures that are searched; None searches all.

    Raises:
        ValueError: the table has no codes of categories, the query does not fit them, `top` < 1,
            or `min_prob` is outside [0, 1].
    """
    if not 0 <= min_prob <= 1:
        raise ValueError(f"the least probability must be in [0, 1], got {min_prob}")
    table.category_table(-1)  # raises for a table without such codes, even if the query has none
    answers = []
    for n in np.argsort(-query.probs, kind="stable"):
        if query.probs[n] < np.float32(min_prob):
            continue
        category = int(query.categories[n])
        pictures, codes = table.category_table(category, min_prob)
        if mask is not None:
            pictures, codes = pictures[mask[pictures]], codes[mask[pictures]]
        distances = hamming_distances(query.codes[n : n + 1], codes)[0]  # (T,)
        rows = _nearest(distances, top)
        hits = _hits(pictures[rows], distances[rows], table)
        answers.append(CategoryHits(category, float(query.probs[n]), tuple(hits)))
    return answers


@renamed(among="mask")
def nearest_codes(
    query: Codes, codes: Codes, *, top: int, mask: Mask | None = None
) -> tuple[Ints, Ints]:
    """The `top` codes nearest to a query, best first, ties in order.

    Args:
        query: (B,) uint8, packed.
        codes: (N, B) uint8, packed; may be memory-mapped.
        top: how many codes to return.
        mask: (N,) bool, the codes that are searched; None searches all.

    Returns:
        Their rows (K,) int64 and distances (K,) int64, in bits.

    Raises:
        ValueError: the query does not fit, or `top` < 1.
    """
    distances = distances_to_one(query, codes)  # (N,)
    if mask is None:
        rows = _nearest(distances, top)
    else:
        searched = np.flatnonzero(mask)
        rows = searched[_nearest(distances[searched], top)]
    return rows.astype(np.int64, copy=False), distances[rows].astype(np.int64)


@renamed(among="mask")
def nearest_bags(
    query: Codes, codes: Codes, offsets: Ints, *, top: int, mask: Mask | None = None
) -> tuple[Ints, Ints]:
    """The `top` bags that hold the codes nearest to a query, best first, ties in order.

    Gives what `united_hamming` and sorting give, without the minimum of every bag: a sample of the
    bags estimates the distance within which enough of them are, and one pass over the codes finds
    them all. If they are too few, another pass looks further, finally at every bag.

    Args:
        query: (B,) uint8, packed.
        codes: (M, B) uint8, packed; may be memory-mapped.
        offsets: (N + 1,) integers; bag n is `codes[offsets[n]:offsets[n + 1]]`.
        top: how many bags to return; empty bags are never among them.
        mask: (N,) bool, the bags that are searched; None searches all.

    Returns:
        Their numbers (K,) int64 and distances (K,) int64, in bits.

    Raises:
        ValueError: the query does not fit, or `top` < 1.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    n_bags, last = len(offsets) - 1, 8 * codes.shape[1]
    few = mask is not None and _count(mask) < _FEW * n_bags
    stride = 1 if few else 1 + len(codes) // _SAMPLED_CODES
    names = np.arange(0, n_bags, stride) if mask is None else np.flatnonzero(mask)[::stride]
    least = united_hamming(query[None], *_gathered(codes, offsets, names))
    if stride == 1:
        return _nearest_of(names, least, last, top)
    least = np.sort(least[least <= last])  # empty bags are beyond
    # Twice as far as needed, because a second pass costs most.
    place = 1 + 2 * min(top, n_bags) // stride
    while place < len(least):
        level = int(least[place])
        near, distances = codes_within(query, codes, level)
        owners = np.searchsorted(offsets, near, side="right") - 1
        if mask is not None:
            kept = mask[owners]
            distances, owners = distances[kept], owners[kept]
        starts = np.flatnonzero(np.diff(owners, prepend=-1))  # first code of each bag
        if len(starts) >= top:
            nearest = np.minimum.reduceat(distances, starts)
            order = np.argsort(nearest, kind="stable")[:top]
            return owners[starts[order]], nearest[order]
        place = max(4 * place, int(np.searchsorted(least, level, side="right")))
    # No level of the sample is far enough: nearly all bags are wanted, or more than exist.
    names = np.arange(n_bags) if mask is None else np.flatnonzero(mask)
    return _nearest_of(names, united_hamming(query[None], codes, offsets)[names], last, top)


def _nearest_of(names: Ints, least: Ints, last: int, top: int) -> tuple[Ints, Ints]:
    """The `top` nearest of some bags, and their distances; empty bags are beyond `last`."""
    found = np.flatnonzero(least <= last)
    rows = found[_nearest(least[found], top)]
    return names[rows], least[rows]


def _gathered(codes: Codes, offsets: Ints, names: Ints) -> tuple[Codes, Ints]:
    """The codes and offsets of some bags."""
    lengths = offsets[names + 1] - offsets[names]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return codes[np.repeat(offsets[names] - bounds[:-1], lengths) + np.arange(bounds[-1])], bounds


def united_hamming(
    queries: Codes,
    codes: Codes,
    offsets: Ints,
    weights: Weights | None = None,
    unlike: Unlike | None = None,
    labels: Ints | None = None,
) -> Ints:
    """United Hamming distance between several query objects and each bag of codes (DMIH, eq. 8).

    d(n) = sum over the queries q of the minimum over the codes c of bag n of hamming(q, c).
    An empty bag, which eq. 8 leaves undefined, gets Q * 8 * B + 1: more than any real distance.

    Args:
        queries: (Q, B) uint8, packed.
        codes: (M, B) uint8, packed; may be memory-mapped.
        offsets: (N + 1,) integers; bag n is `codes[offsets[n]:offsets[n + 1]]`.
        weights: of the bits of each query, see `asymmetric_distances`.
        unlike: see `Unlike`; needs `labels`.
        labels: (M,) int64, the class of each code; -1 is unknown.

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
        distances = _distances(queries, _Costs(weights, unlike), codes[items], classes)
        minima = np.minimum.reduceat(distances, starts[block_bags] - starts[first], axis=1)
        united[bags[block_bags]] = minima.sum(axis=0)
        first = last
    return united


def _distances(
    queries: Codes, costs: _Costs, codes: Codes, labels: Ints | None
) -> NDArray[np.int32]:
    """`asymmetric_distances` (Q, M), with what other classes than the query's cost."""
    distances = asymmetric_distances(queries, costs.weights, codes)
    if costs.unlike is not None:
        assert labels is not None
        wanted, found = np.asarray(costs.unlike.classes)[:, None], np.asarray(labels)[None]
        other = (wanted >= 0) & (found >= 0) & (wanted != found)
        grown = np.minimum(distances + np.int32(costs.unlike.bits), 8 * queries.shape[1])
        distances = np.where(other, grown, distances).astype(np.int32, copy=False)
    return distances


def _count(mask: Mask) -> int:
    return int(np.count_nonzero(mask))


def _one(query: Codes) -> Codes:
    """One query (B,) as (1, B)."""
    query = np.asarray(query)
    if query.ndim != 1:
        raise ValueError(f"query must be (B,) uint8, got {query.shape} {query.dtype}")
    return query[None]


def _nearest(distances: NDArray[np.integer[Any]], top: int) -> NDArray[np.intp]:
    """Rows of the `top` least distances, ties in the order of the rows.

    Hamming distances have few levels, and a sample gives about that of the last place: a selection
    such as `numpy.partition` is several times slower with that many ties.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    top, last = min(top, len(distances)), int(distances.max(initial=0))
    sample = distances[:: min(_SHARE, 1 + len(distances) // _SAMPLE)].copy()
    level = bisect_left(
        range(last), top * len(sample), key=lambda n: _count(sample <= n) * len(distances)
    )
    rows, step = np.flatnonzero(distances <= level), 1
    while len(rows) < top and level < last:  # the sample misled
        level, step = level + step, 2 * step
        rows = np.flatnonzero(distances <= level)
    return rows[np.argsort(distances[rows], kind="stable")][:top]


def _hits(rows: Ints, distances: NDArray[np.signedinteger[Any]], table: CodeTable) -> list[Hit]:
    """Hits without matches, given rows (K,) of the table and distances (K,)."""
    found = zip(rows.tolist(), distances.tolist(), strict=True)
    return [Hit(row, table.ids[row], distance) for row, distance in found]


def _matches(
    queries: Codes,
    regions: Regions,
    *,
    apart: Mask | None,
    steps: Steps,
    costs: _Costs,
) -> tuple[Match, ...]:
    """The region of each query object: the nearest, the first of equals; or as `apart` allows."""
    distances = _distances(queries, costs, regions.codes, regions.labels)  # (Q, R)
    chosen = distances.argmin(axis=1).tolist()
    n_bits = 8 * queries.shape[1]
    if apart is not None:
        same = same_objects(regions.boxes, regions.labels)
        chosen = assign(distances, apart, same, n_bits, steps)
    return tuple(
        Match(None, n_bits, -1, None) if n < 0 else regions.match(n, int(distances[q, n]))
        for q, n in enumerate(chosen)
    )
