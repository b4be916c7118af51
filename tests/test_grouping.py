"""Pictures from lists of regions: what a search of all codes finds, however short they are."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionhash.codes import hamming_distances
from regionhash.engines.backend import Condition, Nearest
from regionhash.engines.grouping import NearRegions, _rounds, nearest_pictures
from regionhash.search.request import Filter
from regionhash.search.scan import BagSearch, scan_bags

EVERYTHING = Condition(Filter(), up_to=10**9, among=None, without=np.zeros(0, np.int64))


class Exact:
    """An engine of regions: gives the nearest, ties in any order, and counts what it is asked."""

    def __init__(self, queries, codes, offsets, numbers, limit, seed=0):
        self.limit, self.asked, self.rings = limit, [], 0
        self.numbers = np.repeat(numbers, np.diff(offsets))
        self.distances = hamming_distances(queries, codes).astype(np.int64)
        self.rng = np.random.default_rng(seed)

    def nearest(self, count):
        assert count <= self.limit
        self.asked.append(count)
        ties = self.rng.random(len(self.numbers))
        orders = [np.lexsort((ties, row))[:count] for row in self.distances]
        return [
            NearRegions(self.numbers[order], row[order])
            for order, row in zip(orders, self.distances, strict=True)
        ]

    def ring(self, query, distance):
        self.rings += 1
        return self.numbers[self.distances[query] == distance]


def case(rng, n_pictures, n_queries, n_bytes, most_regions, few_codes):
    offsets = np.cumsum([0, *rng.integers(0, most_regions + 1, n_pictures)])
    values = rng.integers(0, 256, (few_codes, n_bytes), dtype=np.uint8)
    codes = values[rng.integers(0, few_codes, offsets[-1])]
    queries = rng.integers(0, 256, (n_queries, n_bytes), dtype=np.uint8)
    numbers = np.cumsum(rng.integers(1, 4, n_pictures))
    return queries, codes, offsets, numbers


def searched(queries, codes, offsets, numbers, mask, top, max_distance=None):
    """The search, and what all codes say."""

    def distances_of(wanted):
        bags = np.searchsorted(numbers, wanted)
        mine = [hamming_distances(queries, codes[offsets[b] : offsets[b + 1]]) for b in bags]
        return np.array([rows.min(axis=1).sum() for rows in mine], np.int64)

    def may_be_found(wanted):
        return mask[np.searchsorted(numbers, wanted)]

    search = Nearest("region", queries, top, EVERYTHING, max_distance, distances_of, may_be_found)
    found, distances = scan_bags([BagSearch(queries, top, mask, max_distance)], codes, offsets)[0]
    return search, numbers[found], distances


@given(
    n_pictures=st.integers(0, 60),
    n_queries=st.integers(1, 3),
    n_bytes=st.integers(1, 2),
    few_codes=st.integers(1, 30),
    limit=st.integers(1, 40),
    top=st.integers(1, 70),
    max_distance=st.none() | st.integers(0, 20),
    passing=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 999),
)
def test_the_pictures_are_those_of_a_search_of_all_codes(
    n_pictures, n_queries, n_bytes, few_codes, limit, top, max_distance, passing, seed
):
    rng = np.random.default_rng(seed)
    queries, codes, offsets, numbers = case(rng, n_pictures, n_queries, n_bytes, 4, few_codes)
    mask = rng.random(n_pictures) < passing
    search, wanted, distances = searched(queries, codes, offsets, numbers, mask, top, max_distance)
    found = nearest_pictures(search, Exact(queries, codes, offsets, numbers, limit, seed))
    np.testing.assert_array_equal(found[0], wanted)
    np.testing.assert_array_equal(found[1], distances)


def test_of_equals_the_lower_numbers_are_found_though_other_regions_come_first():
    """All regions are alike: those of the lowest numbers may be the last that an engine gives."""
    queries, codes = np.zeros((1, 1), np.uint8), np.ones((5000, 1), np.uint8)
    offsets, numbers = np.arange(5001), np.arange(5000) + 1
    mask = np.ones(5000, bool)
    search, wanted, _ = searched(queries, codes, offsets, numbers, mask, 3)
    regions = Exact(queries, codes, offsets, numbers, 4096)
    assert nearest_pictures(search, regions)[0].tolist() == wanted.tolist() == [1, 2, 3]
    assert (regions.asked, regions.rings) == ([1024, 4096], 1)


def test_no_more_is_fetched_than_the_proof_needs():
    rng = np.random.default_rng(0)
    queries, codes, offsets, numbers = case(rng, 3000, 2, 8, 4, 6000)
    mask = np.ones(3000, bool)
    search, wanted, _ = searched(queries, codes, offsets, numbers, mask, 1)
    regions = Exact(queries, codes, offsets, numbers, 16384)
    assert nearest_pictures(search, regions)[0].tolist() == wanted.tolist()
    assert regions.asked in ([1024], [1024, 4096]) and not regions.rings


@pytest.mark.parametrize("n_queries", [1, 2])
def test_a_picture_that_no_list_shows_is_as_far_as_is_said(n_queries):
    rng = np.random.default_rng(1)
    queries, codes, offsets, numbers = case(rng, 400, n_queries, 1, 3, 40)
    mask = np.ones(400, bool)
    search, _, _ = searched(queries, codes, offsets, numbers, mask, 1)
    regions = Exact(queries, codes, offsets, numbers, 50)
    with_regions = numbers[np.diff(offsets) > 0]
    every, seen = search.distances_of(with_regions), np.zeros(0, np.int64)
    for pictures, unseen in islice(_rounds(search, regions), 1 + 8):
        seen = np.union1d(seen, pictures)
        others = every[~np.isin(with_regions, seen)]
        assert not len(others) or others.min() >= unseen
    assert len(seen) == len(with_regions)


def test_pictures_that_may_not_be_found_are_never_measured():
    rng = np.random.default_rng(2)
    queries, codes, offsets, numbers = case(rng, 50, 1, 1, 3, 40)
    mask = rng.random(50) < 0.5
    search, wanted, _ = searched(queries, codes, offsets, numbers, mask, 50)

    def distances_of(measured):
        assert search.may_be_found(measured).all()
        return search.distances_of(measured)

    checked = replace(search, distances_of=distances_of)
    regions = Exact(queries, codes, offsets, numbers, 16384)
    assert nearest_pictures(checked, regions)[0].tolist() == wanted.tolist()
