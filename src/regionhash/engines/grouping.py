"""The nearest pictures, from an engine that finds nothing but regions.

An engine gives regions, nearest first, and no more than it is asked for. A picture of which no
region was among those of any query is at least as far as the sum, over the queries, of the distance
below which all regions are known. Once that sum is above the last picture to return, nothing nearer
can be missing, nor anything as near with a lower number (the threshold algorithm of Fagin, Lotem
and Naor, 2001, with the sum as the aggregate).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from regionhash.engines.backend import Nearest
from regionhash.structures import Ints

_FIRST, _GROWTH = 1024, 4
"""Regions fetched for each query at first, and how many times as many if they prove too little."""


class NearRegions(NamedTuple):
    """Some regions that are near to a query: their pictures (n,) and distances (n,) int64."""

    numbers: Ints
    distances: Ints


class Regions(Protocol):
    """The regions that an engine searches for some queries.

    Attributes:
        limit: how many of them it gives to a query at once.
    """

    limit: int

    def nearest(self, count: int) -> Sequence[NearRegions]:
        """The `count` nearest of each query; fewer if no other is in a picture to be found."""

    def ring(self, query: int, distance: int) -> Ints:
        """The pictures (n,) int64 of all regions at exactly this distance of a query."""


def nearest_pictures(search: Nearest, regions: Regions) -> tuple[Ints, Ints]:
    """What `Backend.nearest` returns, exact if the regions are.

    Args:
        search: what is searched for.
        regions: those of pictures that may be found, and maybe of others.
    """
    farthest = 8 * search.queries.size
    if search.max_distance is not None:
        farthest = min(farthest, search.max_distance)
    seen = numbers = distances = np.zeros(0, np.int64)
    for pictures, unseen in _rounds(search, regions):
        new = np.setdiff1d(pictures, seen)
        seen = np.union1d(seen, new)
        new = new[search.may_be_found(new)]
        numbers = np.concatenate([numbers, new])
        distances = np.concatenate([distances, search.distances_of(new)])
        best = np.lexsort((numbers, distances))[: search.top]
        best = best[distances[best] <= farthest]
        numbers, distances = numbers[best], distances[best]
        if unseen > (distances[-1] if len(numbers) == search.top else farthest):
            break
    return numbers, distances


def _rounds(search: Nearest, regions: Regions) -> Iterator[tuple[Ints, int]]:
    """The pictures of more and more regions, and the least distance of any other picture."""
    nowhere = 8 * search.queries.size + 1  # farther than any picture
    count = min(max(_FIRST, _GROWTH * search.top), regions.limit)
    while True:
        lists = regions.nearest(count)
        pictures = np.concatenate([found.numbers for found in lists])
        if any(len(found.numbers) < count for found in lists):
            yield pictures, nowhere
            return
        known = [int(found.distances.max()) for found in lists]  # all regions that are nearer
        yield pictures, sum(known)
        if count == regions.limit:
            break
        count = min(_GROWTH * count, regions.limit)
    while True:
        rings = [regions.ring(query, distance) for query, distance in enumerate(known)]
        known = [distance + 1 for distance in known]
        yield np.concatenate(rings), sum(known)
