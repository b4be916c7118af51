"""One pass over packed codes that finds the nearest bags of several searches.

The pass is compiled (`_scan.c` describes it) and reads the codes once, however many searches there
are; other Python threads run meanwhile. It is exact, as is what replaces it where no compiler was
there when regionhash was installed: `united_hamming` and a selection, in NumPy and FAISS.

The fastest of `AVAILABLE` is taken. The environment variable REGIONHASH_SCAN names another one, to
compare them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from regionhash.codes import hamming_distances
from regionhash.search.united import nearest_rows, united_hamming
from regionhash.structures import Codes, Ints, Mask, renamed

try:
    from regionhash.search import _scan
except ImportError:  # installed without a compiler
    AVAILABLE: tuple[str, ...] = ("numpy",)
else:
    AVAILABLE = (*_scan.INSTRUCTIONS, "numpy")
"""What this machine can search with, the fastest first."""

_BAG_BITS = 40
"""Bits of a result of the compiled pass, (distance << 40) + bag, that hold the bag."""


class BagSearch(NamedTuple):
    """One of the searches of a pass.

    Attributes:
        queries: (Q, B) uint8, packed, Q >= 1; the distance of a bag is their `united_hamming`.
        top: how many bags to find.
        mask: (N,) bool, the bags that are searched; None searches all.
        max_distance: the greatest distance of a bag, in bits; None is no limit.
    """

    queries: Codes
    top: int
    mask: Mask | None = None
    max_distance: int | None = None


@cache
def instructions() -> str:
    """What searches: one of `AVAILABLE`.

    Raises:
        ValueError: REGIONHASH_SCAN names something else.
    """
    name = os.environ.get("REGIONHASH_SCAN") or AVAILABLE[0]
    if name not in AVAILABLE:
        raise ValueError(
            f"REGIONHASH_SCAN must be one of {', '.join(AVAILABLE)} on this machine, got {name!r}"
        )
    return name


def one_query(query: Codes) -> Codes:
    """One query (B,) as (1, B). Raises ValueError for any other shape."""
    query = np.asarray(query)
    if query.ndim != 1:
        raise ValueError(f"query must be (B,) uint8, got {query.shape} {query.dtype}")
    return query[None]


@renamed(among="mask")
def nearest_bags(
    query: Codes, codes: Codes, offsets: Ints | None = None, *, top: int, mask: Mask | None = None
) -> tuple[Ints, Ints]:
    """The `top` bags that hold the codes nearest to a query, best first, ties in order.

    Args:
        query: (B,) uint8, packed.
        codes: (M, B) uint8, packed; may be memory-mapped.
        offsets: (N + 1,) integers; bag n is `codes[offsets[n]:offsets[n + 1]]`. None is a bag for
            each code.
        top: how many bags to return; empty bags are never among them.
        mask: (N,) bool, the bags that are searched; None searches all.

    Returns:
        Their numbers (K,) int64 and distances (K,) int64, in bits.

    Raises:
        ValueError: see `scan_bags`.
    """
    return scan_bags([BagSearch(one_query(query), top, mask)], codes, offsets)[0]


def scan_bags(
    searches: Sequence[BagSearch], codes: Codes, offsets: Ints | None = None
) -> list[tuple[Ints, Ints]]:
    """The nearest bags of each search, best first, ties in order; all in one pass.

    Args:
        searches: independent of each other.
        codes: (M, B) uint8, packed, B >= 1; may be memory-mapped.
        offsets: (N + 1,) integers; bag n is `codes[offsets[n]:offsets[n + 1]]`. None is a bag for
            each code.

    Returns:
        For each search the numbers (K,) int64 of its bags and their distances (K,) int64, in bits.
        Empty bags are never among them.

    Raises:
        ValueError: a shape or type is wrong, a number is too small, or `offsets` do not divide the
            codes into bags.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.dtype != np.uint8:
        raise ValueError(f"codes must be (M, B) uint8, got {codes.shape} {codes.dtype}")
    if offsets is not None:
        offsets = np.asarray(offsets)
        if offsets.ndim != 1 or not len(offsets) or offsets.dtype.kind not in "iu":
            raise ValueError(
                f"offsets must be (N + 1,) integers, got {offsets.shape} {offsets.dtype}"
            )
    n_bags = len(codes) if offsets is None else len(offsets) - 1
    for search in searches:
        _check(search, codes, n_bags)
    if instructions() == "numpy":
        bounds = np.arange(n_bags + 1) if offsets is None else offsets
        return [_search_all(search, codes, bounds) for search in searches]
    return _scan_once(searches, codes, offsets, n_bags)


def _check(search: BagSearch, codes: Codes, n_bags: int) -> None:
    """Raises ValueError for a search that does not fit."""
    hamming_distances(search.queries, codes[:0])  # checks shapes and types
    if not search.queries.size:
        raise ValueError(f"queries must hold at least one code, got {search.queries.shape}")
    if search.top < 1:
        raise ValueError(f"top must be at least 1, got {search.top}")
    mask = search.mask
    if mask is not None and (mask.shape != (n_bags,) or mask.dtype != bool):
        raise ValueError(f"mask must be ({n_bags},) bool, got {mask.shape} {mask.dtype}")
    if search.max_distance is not None and search.max_distance < 0:
        raise ValueError(f"max_distance must not be negative, got {search.max_distance}")


def _limit(search: BagSearch) -> int:
    """The greatest distance of a bag; empty bags are beyond."""
    n_bits = 8 * search.queries.size
    return n_bits if search.max_distance is None else min(search.max_distance, n_bits)


def _search_all(search: BagSearch, codes: Codes, offsets: Ints) -> tuple[Ints, Ints]:
    """One search, by the distances of all bags."""
    united = united_hamming(search.queries, codes, offsets)
    near = united <= _limit(search)
    bags = np.flatnonzero(near if search.mask is None else near & search.mask)
    bags = bags[nearest_rows(united[bags], search.top)]
    return bags, united[bags]


def _scan_once(
    searches: Sequence[BagSearch], codes: Codes, offsets: Ints | None, n_bags: int
) -> list[tuple[Ints, Ints]]:
    """All searches, in one compiled pass, which replaces the worst result by each better one."""
    masks = [search.mask for search in searches if search.mask is not None]
    beyond = [(_limit(search) + 1) << _BAG_BITS for search in searches]
    found = [
        np.full(max(1, min(search.top, n_bags)), key, np.uint64)
        for search, key in zip(searches, beyond, strict=True)
    ]
    _scan.nearest(
        instructions(),
        np.ascontiguousarray(codes),
        codes.shape[1],
        None if offsets is None else np.require(offsets, np.int64, ["C", "A"]),
        np.logical_or.reduce(masks) if 0 < len(masks) == len(searches) else None,
        tuple(
            (
                np.ascontiguousarray(search.queries),
                None if search.mask is None else np.ascontiguousarray(search.mask),
                keys,
            )
            for search, keys in zip(searches, found, strict=True)
        ),
    )
    answers = []
    for keys, key in zip(found, beyond, strict=True):
        best = np.sort(keys[keys < key]).astype(np.int64)
        answers.append((best & ((1 << _BAG_BITS) - 1), best >> _BAG_BITS))
    return answers
