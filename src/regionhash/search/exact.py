"""Exact Hamming search: whole pictures, one region, several objects, or category by category.

Every search returns pictures in the order (distance, row of the table), so that a ranking is the
same on every machine; a `top` beyond the number of pictures returns all of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regionhash.codes import hamming_distances
from regionhash.search.assignment import (
    Steps,
    assign,
    least_sums,
    pair_bounds,
    same_objects,
)
from regionhash.search.scan import BagSearch, one_query
from regionhash.search.together import Running, Scan, Shared
from regionhash.search.united import (
    NO_COSTS,
    Costs,
    first_least,
    nearest_rows,
    region_distances,
    united_hamming,
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
    items_of,
    renamed,
)

_CANDIDATES = 64
"""Least number of pictures of which a search for several objects first assigns the regions."""

_PAIRS = 1 << 20
"""Pairs of regions compared at a time."""


@Shared
@renamed(among="mask")
def search_images(
    query: Codes, table: CodeTable, *, top: int = 20, mask: Mask | None = None
) -> Running[list[Hit]]:
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
    search = BagSearch(one_query(query), top, mask)
    ((rows, distances),) = yield Scan("picture", [search], table.image_codes)
    return _hits(rows, distances, table)


@Shared
@renamed(among="mask")
def search_regions(
    query: Codes, table: CodeTable, *, top: int = 20, mask: Mask | None = None
) -> Running[list[Hit]]:
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
    return (yield from search_objects.begin(one_query(query), table, top=top, mask=mask))


@Shared
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
    costs: Costs = NO_COSTS,
    context: Ints | None = None,
) -> Running[list[Hit]]:
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
        costs: what changes the distances of regions.
        context: (N,) int64, what is added to the distance of each picture, at least 0; see
            `context_distances`.

    Raises:
        ValueError: the table has no regions, the queries do not fit them, there is no query, `top`
            < 1, `max_distance` is negative or given without `exclude`, `apart` or `context` does
            not fit, or too many objects compete for the same regions.
    """
    if table.offsets is None or table.region_codes is None:
        raise ValueError("these codes have no regions")
    if not len(queries):
        raise ValueError("queries must hold at least one object, got none")
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    if context is not None and context.shape != (len(table),):
        raise ValueError(f"context must be ({len(table)},), got {context.shape}")
    if exclude is not None:
        n_bits = 8 * table.region_codes.shape[1]
        limit = default_max_distance(n_bits) if max_distance is None else max_distance
        if limit < 0:
            raise ValueError(f"max_distance must not be negative, got {limit}")
        mask = np.ones(len(table), bool) if mask is None else mask.copy()
        unwanted = [BagSearch(code[None], len(table) + 1, max_distance=limit) for code in exclude]
        for rows, _ in (yield Scan("region", unwanted, table.region_codes, table.offsets)):
            mask[rows] = False
    elif max_distance is not None:
        raise ValueError("max_distance needs objects to exclude")
    pairs = _pairs_apart(apart, len(queries))
    ranking = _ranking(queries, table, mask, costs, context)
    if pairs is None:
        rows, distances = yield from _nearest(ranking, top)
        matches = _nearest_matches(queries, table, rows, costs)
    else:
        rows, distances = yield from _nearest_apart(ranking, top, pairs, costs, context)
        steps = Steps()
        regions = map(table.regions, rows.tolist())
        matches = [_assigned(queries, each, pairs, steps, costs) for each in regions]
    added = [None] * len(rows) if context is None else context[rows].tolist()
    return [
        Hit(row, table.ids[row], distance, match, (), part)
        for row, distance, match, part in zip(
            rows.tolist(), distances.tolist(), matches, added, strict=True
        )
    ]


class _Ranking(NamedTuple):
    """The order of pictures by their united distance.

    Attributes:
        queries, table, mask: see `search_objects`.
        united: (N,) int64, the distances, with what is added to them; None if a pass finds them.
    """

    queries: Codes
    table: CodeTable
    mask: Mask | None
    united: Ints | None


def _ranking(
    queries: Codes, table: CodeTable, mask: Mask | None, costs: Costs, context: Ints | None
) -> _Ranking:
    """The order of pictures by their united distance, with `costs` and `context`."""
    assert table.offsets is not None and table.region_codes is not None
    if costs == NO_COSTS and context is None:
        return _Ranking(queries, table, mask, None)
    united = united_hamming(queries, table.region_codes, table.offsets, costs, table.labels)  # (N,)
    searched = np.diff(table.offsets) > 0
    return _Ranking(
        queries,
        table,
        searched if mask is None else searched & mask,
        united if context is None else united + context,
    )


def _nearest(ranking: _Ranking, top: int) -> Running[tuple[Ints, Ints]]:
    """The rows and distances of the `top` nearest pictures."""
    queries, table, mask, united = ranking
    if united is None:
        assert table.region_codes is not None
        search = BagSearch(queries, top, mask)
        (found,) = yield Scan("region", [search], table.region_codes, table.offsets)
        return found
    assert mask is not None
    candidates = np.flatnonzero(mask)
    rows = candidates[nearest_rows(united[candidates], top)]
    return rows, united[rows]


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
        total += hamming_distances(query[None], table.image_codes)[0]
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
    ranking: _Ranking, top: int, apart: Mask, costs: Costs, context: Ints | None
) -> Running[tuple[Ints, Ints]]:
    """The `top` pictures by the least sum over different regions, and these sums.

    The sums are with `context`, if it is given, and never below the distances of `ranking`. So
    pictures are taken in its order, and once the next one is not below the last of the `top` found
    so far, no further picture is.
    """
    queries, table = ranking.queries, ranking.table
    steps = Steps()
    rows, sums = np.zeros(0, np.int64), np.zeros(0, np.int64)
    done, wanted = 0, max(_CANDIDATES, 2 * min(top, len(table)))
    while True:
        order, bounds = yield from _nearest(ranking, wanted)
        while done < len(order):
            block = slice(done, done + _block_of(table, order[done:]))
            candidates, least = order[block], bounds[block]
            done += len(candidates)
            if len(rows) == top:
                if (least[0], candidates[0]) > (sums[-1], rows[-1]):
                    return rows, sums
                candidates = candidates[least <= sums[-1]]  # of a sorted block, the beginning
            added = np.zeros(len(candidates), np.int64) if context is None else context[candidates]
            limits = sums[-1] - added if len(rows) == top else None
            found, own = _sums_apart(queries, table, candidates, limits, apart, steps, costs)
            own = own if context is None else own + context[found]
            rows, sums = np.concatenate([rows, found]), np.concatenate([sums, own])
            best = np.lexsort([rows, sums])[:top]
            rows, sums = rows[best], sums[best]
        if len(order) < wanted:
            return rows, sums
        wanted *= 4


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
    costs: Costs,
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
    n_bits = 8 * queries.shape[1]
    items, bounds = items_of(table.offsets, rows)
    lengths = np.diff(bounds)
    there = np.arange(lengths.max()) < lengths[:, None]  # (P, R)
    distances = np.full((len(rows), there.shape[1], len(queries)), n_bits, np.int32)
    codes = table.region_codes[items]
    distances[there] = region_distances(queries, codes, costs, table.labels[items]).T
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


@Shared
@renamed(among="mask")
def search_categories(
    query: CategoryCodes,
    table: CodeTable,
    *,
    top: int = 20,
    min_prob: float = 0.0,
    mask: Mask | None = None,
) -> Running[list[CategoryHits]]:
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
        search = BagSearch(one_query(query.codes[n]), top)
        ((rows, distances),) = yield Scan("category", [search], codes)
        hits = _hits(pictures[rows], distances, table)
        answers.append(CategoryHits(category, float(query.probs[n]), tuple(hits)))
    return answers


def _hits(rows: Ints, distances: NDArray[np.signedinteger[Any]], table: CodeTable) -> list[Hit]:
    """Hits without matches, given rows (K,) of the table and distances (K,)."""
    found = zip(rows.tolist(), distances.tolist(), strict=True)
    return [Hit(row, table.ids[row], distance) for row, distance in found]


def _nearest_matches(
    queries: Codes, table: CodeTable, rows: Ints, costs: Costs
) -> list[tuple[Match, ...]]:
    """The nearest region of each query object in pictures (K,), the first of equals."""
    assert table.offsets is not None and table.region_codes is not None
    assert table.labels is not None
    items, bounds = items_of(table.offsets, rows)
    distances = region_distances(queries, table.region_codes[items], costs, table.labels[items])
    of_objects = []
    for of_object in distances:  # Q times (M,)
        nearest = first_least(of_object, bounds)
        of_objects.append(table.matches(items[nearest], of_object[nearest]))
    return list(zip(*of_objects, strict=True))


def _assigned(
    queries: Codes, regions: Regions, apart: Mask, steps: Steps, costs: Costs
) -> tuple[Match, ...]:
    """The region of each query object in one picture, as `apart` allows."""
    distances = region_distances(queries, regions.codes, costs, regions.labels)  # (Q, R)
    n_bits, same = 8 * queries.shape[1], same_objects(regions.boxes, regions.labels)
    return tuple(
        Match(None, n_bits, -1, None) if n < 0 else regions.match(n, int(distances[q, n]))
        for q, n in enumerate(assign(distances, apart, same, n_bits, steps))
    )
