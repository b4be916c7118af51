"""Search in steps: whole pictures first, regions of the best of them, and query expansion (DRH).

    step             what it ranks                          by the least distance between
    global           all pictures                           query, and code of the picture (gDRH)
    global-expand    what is ranked so far                  codes of the q best pictures, and code
                                                            of the picture (gQE)
    local            what is ranked so far                  query, and codes of its regions (lDRH)
    local-expand     what is ranked so far                  best regions of the q best pictures, and
                                                            codes of its regions (lQE)
    exact            all pictures                           query, and codes of their regions
    asymmetric       what is ranked so far                  query before it was cut to bits, and
                                                            codes of its regions
    floats           what is ranked so far                  query before it was cut to bits, and
                                                            what is kept of its regions beside codes

Song et al., "Deep Region Hashing for Generic Instance Search from Images", AAAI 2018, "Instance
Search using DRH"; the local step approximates `exact`. Each step is a function of a `Ranking`;
`search_in_steps` runs several. Pictures of equal distance keep their order, which is at first that
of the table. A step that compares regions drops pictures without regions. The last two rank by more
than whole bits, to which the distance of a hit is rounded; `docs/search.md` says when they pay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from regionhash.codes import angles, hamming_distances, weighted_distances
from regionhash.search.scan import BagSearch, one_query
from regionhash.search.together import Running, Scan, Shared
from regionhash.search.united import first_least, united_hamming
from regionhash.structures import (
    Codes,
    CodeTable,
    Floats,
    Hit,
    Ints,
    Mask,
    Match,
    items_of,
    renamed,
)

Rescoring = Literal["asymmetric", "floats"]
"""Steps that rank again by more than the query's bits."""

Step = Literal["exact", "global", "global-expand", "local", "local-expand", Rescoring]

CANDIDATES, EXPANSION = 400, 6  # M and q (DRH, "Performance using Different Settings")

Query = TypeVar("Query", bound=NDArray[Any])

EXACT_SECONDS = 0.1
"""Predicted time up to which the exact search is the default."""

_SECONDS_PER_CODE, _SECONDS_PER_BYTE = 0.3e-9, 0.1e-9
"""Cost of the compiled search on one core of a server: .3 ns per code and 10 GB of memory per
second (`benchmarks/bench_steps.py` compares this with measurements). With 1,024 bits and 40 regions
per picture, about 190,000 pictures take `EXACT_SECONDS`. NumPy, where there was no compiler, needs
1.3 times as long for such codes and 3 to 5 times for 64 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Some pictures, best first.

    Attributes:
        rows: (M,) int64, rows of the table.
        distances: (M,) int64, of the step that ranked them, in bits; ascending.
        objects: (Q, B) uint8, the codes that the regions of each picture were compared with; None
            if whole pictures were compared.
        regions: (M,) int64, numbers of the regions that gave the distances, where they are known.
    """

    rows: Ints
    distances: Ints
    objects: Codes | None = None
    regions: Ints | None = None

    def first(self, m: int) -> Ranking:
        """The `m` best."""
        regions = None if self.regions is None else self.regions[:m]
        return replace(self, rows=self.rows[:m], distances=self.distances[:m], regions=regions)


def default_steps(table: CodeTable, *, shared_code_space: bool) -> tuple[Step, ...]:
    """Default steps of a search for one object: exact if that takes about 100 ms at most.

    Args:
        table: what is searched.
        shared_code_space: whether codes of boxes and of whole pictures can be compared; if not, the
            query has no code for the step "global", and all regions are searched.
    """
    if table.region_codes is None or table.image_codes is None or not shared_code_space:
        return ("exact",)
    quick = predicted_seconds(*table.region_codes.shape) <= EXACT_SECONDS
    return ("exact",) if quick else ("global", "local")


def predicted_seconds(n_codes: int, n_bytes: int) -> float:
    """Estimated time of an exact search of `n_codes` codes of `n_bytes` bytes on one core."""
    return n_codes * (_SECONDS_PER_CODE + n_bytes * _SECONDS_PER_BYTE)


def check_steps(steps: Sequence[str]) -> tuple[Step, ...]:
    """Returns the steps if they are valid.

    Raises:
        ValueError: an unknown step, or an order in which a step lacks its input.
    """
    known = get_args(Step)
    for step in steps:
        if step not in known:
            raise ValueError(f"unknown step {step!r}; known: {', '.join(known)}")
    if not steps or steps[0] not in ("exact", "global"):
        raise ValueError(f"steps must begin with exact or global, got {', '.join(steps) or 'none'}")
    previous = steps[0]
    for step in steps[1:]:
        after = {
            "global-expand": ("global",),
            "local": ("global", "global-expand"),
            "local-expand": ("local", "exact"),
            "asymmetric": ("local", "exact"),
            "floats": ("local", "exact"),
        }.get(step, ())
        if previous not in after:
            raise ValueError(
                f"step {step} cannot follow {previous}"
                + (f"; it follows {' or '.join(after)}" if after else "; it can only be the first")
            )
        previous = step
    return tuple(steps)  # type: ignore[arg-type]


@Shared
@renamed(among="mask")
def search_in_steps(
    table: CodeTable,
    steps: Sequence[str],
    *,
    image_query: Codes | None = None,
    region_query: Codes | None = None,
    weights: Floats | None = None,
    features: Floats | None = None,
    top: int = 20,
    candidates: int = CANDIDATES,
    expand: int = EXPANSION,
    mask: Mask | None = None,
) -> Running[list[Hit]]:
    """The `top` pictures that a sequence of steps ranks first.

    A hit's distance is that of the last step. If that step compared regions, the hit has one match:
    the region that gave the distance.

    Args:
        table: N pictures.
        steps: see the module; in an order that `check_steps` allows.
        image_query: (K2/8,) uint8, for the step "global".
        region_query: (K1/8,) uint8, for the steps "exact", "local" and "asymmetric".
        weights: (K1,) float32, of its bits, for the step "asymmetric", see `weights_of`.
        features: (P,) float32, for the step "floats".
        top: how many pictures to return.
        candidates: M, how many pictures the first step passes on.
        expand: q, how many pictures' codes an expansion takes as queries.
        mask: (N,) bool, the pictures that are searched; None searches all.

    Raises:
        ValueError: invalid steps, codes or a query that a step needs are missing, or a number is
            below 1.
    """
    steps = check_steps(steps)
    for name, value in (("top", top), ("candidates", candidates), ("expand", expand)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    wanted = top if len(steps) == 1 else candidates
    if steps[0] == "global":
        query = _given(image_query, steps[0])
        ranking = yield from rank_images.begin(query, table, top=wanted, mask=mask)
    else:
        query = _given(region_query, steps[0])
        offsets, codes = _region_codes(table)
        (found,) = yield Scan("region", [BagSearch(one_query(query), wanted, mask)], codes, offsets)
        ranking = Ranking(*found, objects=query[None])
    for step in steps[1:]:
        if step == "local":
            ranking = rank_regions(_given(region_query, step), table, ranking)
        elif step == "asymmetric":
            code, weighted = _given(region_query, step), _given(weights, step)
            ranking = rank_asymmetric(code, weighted, table, ranking)
        elif step == "floats":
            ranking = rank_by_floats(_given(features, step), table, ranking)
        elif step == "global-expand":
            ranking = expand_images(ranking, table, expand)
        else:
            ranking = expand_regions(ranking, table, expand)
    return hits_of(ranking.first(top), table)


@Shared
def rank_images(
    query: Codes, table: CodeTable, *, top: int | None = None, mask: Mask | None = None
) -> Running[Ranking]:
    """gDRH: ranks pictures by the distance of their code to `query` (B,).

    Keeps the first `top` of those in `mask` (N,); None stands for all in either.
    """
    wanted = max(1, len(table)) if top is None else top
    search = BagSearch(one_query(query), wanted, mask)
    (found,) = yield Scan("picture", [search], _image_codes(table))
    return Ranking(*found)


def expand_images(ranking: Ranking, table: CodeTable, q: int) -> Ranking:
    """gQE: reranks pictures by the least distance to the codes of the `q` best of them."""
    codes = _image_codes(table)[ranking.rows]
    distances = hamming_distances(codes[:q], codes).min(axis=0, initial=8 * codes.shape[1])
    return _sorted(ranking.rows, distances)


def rank_regions(query: Codes, table: CodeTable, ranked: Ranking | None = None) -> Ranking:
    """lDRH: (re)ranks pictures, all by default, by the least distance of a region to `query`."""
    return _rank_by_regions(query[None], table, ranked)


def expand_regions(ranking: Ranking, table: CodeTable, q: int) -> Ranking:
    """lQE: reranks pictures by the least distance to the best regions of the first `q`.

    Raises:
        ValueError: the ranking was not by regions.
    """
    if not len(ranking.rows):
        return ranking
    items = _nearest(ranking, table, ranking.rows[:q])
    return _rank_by_regions(_region_codes(table)[1][items], table, ranking)


def rank_asymmetric(query: Codes, weights: Floats, table: CodeTable, ranked: Ranking) -> Ranking:
    """Reranks pictures by the least distance of a region in which bits weigh differently.

    Args:
        query: (B,) uint8.
        weights: (8 * B,) float32, of its bits, see `regionhash.codes.weights_of`.
        table: the pictures.
        ranked: those that are ranked again.
    """
    codes = _region_codes(table)[1]
    return _rank_again(
        lambda items: weighted_distances(query, weights, codes[items]), table, ranked
    )


def rank_by_floats(query: Floats, table: CodeTable, ranked: Ranking) -> Ranking:
    """Reranks pictures by the least angle between a query (P,) and what is kept of a region.

    A distance is the angle's share of a half turn, times the bits of a code; see `angles`.

    Raises:
        ValueError: nothing is kept beside the codes.
    """
    kept = table.region_features
    if kept is None:
        raise ValueError("these codes have no floats beside them")
    n_bits = 8 * _region_codes(table)[1].shape[1]
    return _rank_again(lambda items: n_bits * angles(query, kept[items]), table, ranked)


def _rank_again(
    distances_of: Callable[[Ints], Floats], table: CodeTable, ranked: Ranking
) -> Ranking:
    """Reranks pictures by the least distance of their regions (M,), of which numbers are given."""
    offsets, _ = _region_codes(table)
    items, bounds = items_of(offsets, ranked.rows)
    distances = distances_of(items)
    nearest = first_least(distances, bounds)
    order = np.argsort(distances[nearest], kind="stable")
    found = nearest[order]
    whole = np.rint(distances[found]).astype(np.int64)
    return replace(ranked, rows=ranked.rows[order], distances=whole, regions=items[found])


def hits_of(ranking: Ranking, table: CodeTable) -> list[Hit]:
    """A ranking as hits, with the matched region if regions were compared."""
    matches: Iterable[tuple[Match, ...]] = repeat(())
    if ranking.objects is not None:
        regions = ranking.regions
        if regions is None:
            regions = _nearest(ranking, table, ranking.rows)
        found = table.matches(regions, ranking.distances)
        matches = ((match,) for match in found)
    return [
        Hit(row, table.ids[row], distance, match)
        for row, distance, match in zip(
            ranking.rows.tolist(), ranking.distances.tolist(), matches, strict=False
        )
    ]


def _nearest(ranking: Ranking, table: CodeTable, rows: Ints) -> Ints:
    """Numbers of the regions that gave pictures (K,) their distances, the first of equals."""
    if ranking.objects is None:
        raise ValueError("a ranking of whole pictures has no matched regions")
    offsets, codes = _region_codes(table)
    items, bounds = items_of(offsets, rows)
    distances = hamming_distances(ranking.objects, codes[items]).min(axis=0)  # (M,)
    return items[first_least(distances, bounds)]


def _rank_by_regions(objects: Codes, table: CodeTable, ranked: Ranking | None) -> Ranking:
    """Ranks pictures by the least distance between their regions and Q codes."""
    offsets, codes = _region_codes(table)
    rows = np.arange(len(table)) if ranked is None else ranked.rows
    rows = rows[offsets[rows + 1] > offsets[rows]]
    items, bags = items_of(offsets, rows)
    if ranked is not None:  # only the codes of these pictures, in their order
        codes = codes[items]
    distances = [united_hamming(code[None], codes, bags) for code in objects]  # Q times (M,)
    return replace(_sorted(rows, np.min(distances, axis=0)), objects=objects)


def _sorted(rows: Ints, distances: NDArray[np.signedinteger[Any]]) -> Ranking:
    """Sorts pictures by distance, keeping the order of ties."""
    # NumPy radix-sorts 16-bit integers, several times faster than its stable sort of wider ones.
    short = distances.max(initial=0) <= np.iinfo(np.uint16).max
    order = np.argsort(distances.astype(np.uint16) if short else distances, kind="stable")
    return Ranking(rows[order], distances[order].astype(np.int64))


def _image_codes(table: CodeTable) -> Codes:
    if table.image_codes is None:
        raise ValueError("these codes have no image codes")
    return table.image_codes


def _region_codes(table: CodeTable) -> tuple[Ints, Codes]:
    if table.offsets is None or table.region_codes is None:
        raise ValueError("these codes have no regions")
    return np.asarray(table.offsets), table.region_codes


def _given(query: Query | None, step: str) -> Query:
    if query is None:
        raise ValueError(f"step {step} needs a code of the query, or what it was made from")
    return query
