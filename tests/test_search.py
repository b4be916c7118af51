"""Exact search, against loops over unpacked bits."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from regionhash.search import (
    search_categories,
    search_images,
    search_objects,
    search_regions,
    united,
)
from regionhash.structures import CategoryCodes, CodeTable


def slow_distance(a, b):
    return int((np.unpackbits(a) != np.unpackbits(b)).sum())


def slow_united(queries, codes, offsets):
    """DMIH, eq. 8, word for word."""
    n_bits = 8 * queries.shape[1]
    return [
        sum(min(slow_distance(q, c) for c in codes[start:end]) for q in queries)
        if end > start
        else len(queries) * n_bits + 1
        for start, end in pairwise(offsets)
    ]


def table_of(bag_sizes, region_codes, image_codes=None):
    offsets = np.concatenate([[0], np.cumsum(bag_sizes)]).astype(np.int64)
    m = int(offsets[-1])
    return CodeTable(
        ids=[f"image{n}" for n in range(len(bag_sizes))],
        sizes=np.full((len(bag_sizes), 2), 100, np.int32),
        image_codes=image_codes,
        offsets=offsets,
        boxes=np.arange(4 * m, dtype=np.float32).reshape(m, 4),
        scores=np.linspace(1, 0, m, dtype=np.float32),
        labels=np.arange(m, dtype=np.int64),
        region_codes=region_codes,
    )


@st.composite
def queries_and_bags(draw, min_queries=1):
    n_bytes = draw(st.sampled_from([1, 2, 6, 8]))
    sizes = draw(st.lists(st.integers(0, 4), max_size=8))
    # Few byte values, so that there are many ties.
    values = st.sampled_from([0, 1, 3, 255])
    codes = draw(arrays(np.uint8, (sum(sizes), n_bytes), elements=values))
    n_queries = draw(st.integers(min_queries, 3))
    return draw(arrays(np.uint8, (n_queries, n_bytes), elements=values)), sizes, codes


@given(queries_and_bags(min_queries=0), st.sampled_from([1, 3, 1 << 17]))
def test_united_hamming_is_the_sum_of_least_distances_whatever_the_block(drawn, block):
    queries, sizes, codes = drawn
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(united, "_BLOCK", block)
        sums = united.united_hamming(queries, codes, offsets)
    assert sums.dtype == np.int64
    assert sums.tolist() == slow_united(queries, codes, offsets)


@given(queries_and_bags(), st.integers(1, 10))
def test_objects_are_ranked_by_distance_then_row_with_the_first_best_region(drawn, top):
    queries, sizes, codes = drawn
    table = table_of(sizes, codes)
    sums = slow_united(queries, codes, table.offsets)
    rows = sorted((n for n, size in enumerate(sizes) if size), key=lambda n: (sums[n], n))[:top]

    hits = search_objects(queries, table, top=top, apart=False)

    assert [(hit.index, hit.image_id, hit.distance) for hit in hits] == [
        (n, f"image{n}", sums[n]) for n in rows
    ]
    for hit in hits:
        region_rows = range(table.offsets[hit.index], table.offsets[hit.index + 1])
        assert len(hit.matches) == len(queries)
        for query, match in zip(queries, hit.matches, strict=True):
            best = min(region_rows, key=lambda m: (slow_distance(query, codes[m]), m))
            assert match.distance == slow_distance(query, codes[best])
            assert match.box == tuple(table.boxes[best])
            assert (match.label, match.score) == (best, table.scores[best])


@given(queries_and_bags())
def test_a_search_for_one_region_is_that_for_one_object(drawn):
    queries, sizes, codes = drawn
    table = table_of(sizes, codes)
    assert search_regions(queries[0], table) == search_objects(queries[:1], table)


def slow_ranking(queries, codes, offsets, among, top):
    """Row and distance of the `top` pictures, from the bits of all regions."""
    found = []
    for n, (start, end) in enumerate(pairwise(offsets)):
        if end > start and (among is None or among[n]):
            bits = np.unpackbits(codes[start:end], axis=1).astype(int)  # (R, K)
            each = [
                np.abs(bits - np.unpackbits(query)).sum(axis=1).min().item() for query in queries
            ]
            found.append((sum(each), n))
    return [(n, distance) for distance, n in sorted(found)[:top]]


@st.composite
def tables(draw):
    """Bags of codes of any length, a few of them empty or all, with a mask and how many to find."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    n_bytes = draw(st.sampled_from([1, 2, 3, 8, 9, 16, 33]))
    n = draw(st.sampled_from([0, 1, 2, 10, 60]))
    sizes = rng.integers(0, 1 + draw(st.sampled_from([0, 1, 3, 9])), n)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    highest = draw(st.sampled_from([1, 3, 255]))  # few values make ties
    codes = rng.integers(0, highest, (int(offsets[-1]), n_bytes), np.uint8, endpoint=True)
    queries = rng.integers(0, highest, (3, n_bytes), np.uint8, endpoint=True)
    share = draw(st.sampled_from([None, 0, 0.05, 0.3, 0.8, 1]))
    among = None if share is None else rng.random(n) < share
    top = draw(st.sampled_from([1, 2, 5, n // 2 + 1, max(n, 1), n + 1, 1000, 1 << 62, 10**30]))
    return queries, codes, offsets, among, top


@pytest.mark.timeout(120)
@given(tables(), st.integers(1, 3))
def test_pictures_are_ranked_as_the_bits_of_their_regions_rank_them(drawn, n_queries):
    queries, codes, offsets, among, top = drawn
    table = table_of(np.diff(offsets), codes)
    hits = search_objects(queries[:n_queries], table, top=top, among=among, apart=False)
    alone = search_regions(queries[0], table, top=top, among=among)
    wanted = slow_ranking(queries[:n_queries], codes, offsets, among, top)
    assert [(hit.index, hit.distance) for hit in hits] == wanted
    wanted = slow_ranking(queries[:1], codes, offsets, among, top)
    assert [(hit.index, hit.distance) for hit in alone] == wanted


@pytest.mark.timeout(120)
@given(tables(), st.integers(0, 1 << 32), st.sampled_from([0.0, 0.4, 1.0]))
def test_pictures_of_a_category_are_ranked_as_its_bits_rank_them(drawn, seed, min_prob):
    queries, codes, offsets, among, top = drawn
    rng = np.random.default_rng(seed)
    bags = [np.sort(rng.permutation(9)[:size]) for size in np.diff(offsets)]  # 9 at most in a bag
    categories = np.concatenate([*bags, np.zeros(0, np.int64)]).astype(np.int64)
    probs = rng.random(len(categories), np.float32)
    table = CodeTable(
        ids=[f"image{n}" for n in range(len(bags))],
        sizes=np.full((len(bags), 2), 100, np.int32),
        category_offsets=offsets,
        categories=categories,
        category_probs=probs,
        category_codes=codes,
    )
    query = CategoryCodes(np.array([0, 4, 7]), np.array([0.5, 0.3, 1], np.float32), queries)
    groups = search_categories(query, table, top=top, min_prob=min_prob, among=among)
    assert [group.category for group in groups] == [
        category for category, prob in ((7, 1), (0, 0.5), (4, 0.3)) if prob >= min_prob
    ]
    for group in groups:
        code = queries[[0, 4, 7].index(group.category)]
        found = []
        for m in np.flatnonzero(categories == group.category).tolist():
            n = sum(end <= m for end in offsets[1:].tolist())
            if probs[m] >= np.float32(min_prob) and (among is None or among[n]):
                found.append((slow_distance(code, codes[m]), n))
        wanted = [(n, distance) for distance, n in sorted(found)[:top]]
        assert [(hit.index, hit.distance) for hit in group.hits] == wanted


@given(queries_and_bags(), st.integers(1, 20))
def test_images_are_ranked_by_distance_then_row(drawn, top):
    queries, _, codes = drawn
    table = table_of([0] * len(codes), codes[:0], image_codes=codes)
    distances = [slow_distance(queries[0], code) for code in codes]
    rows = sorted(range(len(codes)), key=lambda n: (distances[n], n))[:top]
    hits = search_images(queries[0], table, top=top)
    assert [(hit.index, hit.distance) for hit in hits] == [(n, distances[n]) for n in rows]
    assert all(hit.matches == () for hit in hits)


def test_a_planted_region_is_found_among_many_and_nothing_else_is_near():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (4000, 8), dtype=np.uint8)
    query = rng.integers(0, 256, 8, dtype=np.uint8)
    codes[2345] = query ^ np.array([1, 0, 0, 0, 0, 0, 0, 128], np.uint8)
    hits = search_regions(query, table_of([20] * 200, codes), top=5)
    assert (hits[0].index, hits[0].distance) == (2345 // 20, 2)
    assert hits[0].matches[0].label == 2345
    assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)
    assert hits[1].distance > 8


def test_the_picture_that_has_both_objects_comes_before_those_that_have_one():
    near, far = np.zeros(2, np.uint8), np.full(2, 255, np.uint8)
    codes = np.stack([near, near, far, near, far, far])
    hits = search_objects(np.stack([near, far]), table_of([2, 2, 2], codes[[0, 1, 2, 3, 4, 5]]))
    assert [(hit.index, hit.distance) for hit in hits] == [(1, 0), (0, 16), (2, 16)]
    assert [match.label for match in hits[0].matches] == [3, 2]


def test_equal_distances_keep_the_order_of_rows_at_the_cut():
    codes = np.zeros((50, 8), np.uint8)
    codes[::2] = 1
    hits = search_images(np.zeros(8, np.uint8), table_of([0] * 50, codes[:0], codes), top=30)
    assert [hit.index for hit in hits] == [*range(1, 50, 2), 0, 2, 4, 6, 8]


def test_pictures_without_regions_are_not_returned():
    codes = np.full((1, 8), 255, np.uint8)
    hits = search_regions(np.zeros(8, np.uint8), table_of([0, 1, 0], codes), top=3)
    assert [(hit.image_id, hit.distance) for hit in hits] == [("image1", 64)]
    assert search_regions(np.zeros(8, np.uint8), table_of([0, 0], codes[:0])) == []


def test_an_empty_table_gives_no_hit():
    none = np.zeros((0, 8), np.uint8)
    table = table_of([], none, image_codes=none)
    assert search_images(np.zeros(8, np.uint8), table) == []
    assert search_regions(np.zeros(8, np.uint8), table) == []


def test_a_search_for_what_the_table_does_not_hold_is_refused():
    bare = CodeTable(ids=["a"], sizes=np.ones((1, 2), np.int32))
    query = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="these codes have no image codes"):
        search_images(query, bare)
    with pytest.raises(ValueError, match="these codes have no regions"):
        search_regions(query, bare)


def test_bad_queries_are_refused():
    codes = np.zeros((2, 8), np.uint8)
    table = table_of([1, 1], codes, image_codes=codes)
    for find in (search_images, search_regions):
        with pytest.raises(ValueError, match=r"query must be \(B,\) uint8, got \(1, 8\)"):
            find(codes[:1], table)
        with pytest.raises(ValueError, match="one length, got 4 and 8 bytes"):
            find(codes[0, :4], table)
        with pytest.raises(ValueError, match="top must be at least 1, got 0"):
            find(codes[0], table, top=0)
    with pytest.raises(ValueError, match="at least one object"):
        search_objects(codes[:0], table)
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        search_objects(codes[:2], table, top=0)


@pytest.mark.parametrize("offsets", [[1, 2], [0, 1], [0, 3], [0, 2, 1, 2]])
def test_offsets_that_do_not_divide_the_codes_are_refused(offsets):
    codes = np.zeros((2, 8), np.uint8)
    with pytest.raises(ValueError, match="offsets must rise from 0 to 2"):
        united.united_hamming(codes, codes, np.array(offsets))
    with pytest.raises(ValueError, match=r"offsets must be \(N \+ 1,\), got \(0,\)"):
        united.united_hamming(codes, codes, np.zeros(0, np.int64))


@given(queries_and_bags(min_queries=2), st.integers(0, 20))
def test_pictures_with_an_unwanted_object_are_left_out(drawn, within):
    codes, sizes, region_codes = drawn
    wanted, unwanted = codes[:1], codes[1:]
    table = table_of(sizes, region_codes)
    found = search_objects(wanted, table, top=100, without=unwanted, within=within)
    expected = [
        hit.index
        for hit in search_objects(wanted, table, top=100)
        if all(
            slow_distance(region, other) > within
            for region in table.regions(hit.index).codes
            for other in unwanted
        )
    ]
    assert [hit.index for hit in found] == expected


def test_an_unwanted_object_is_found_within_an_eighth_of_the_bits():
    codes = np.array([[0] * 7 + [255], [0] * 6 + [1, 255]], np.uint8)  # 8 and 9 bits from zero
    none = np.zeros((1, 8), np.uint8)
    hits = search_objects(none, table_of([1, 1], codes), without=none)
    assert [hit.index for hit in hits] == [1]


def test_a_limit_without_unwanted_objects_and_a_negative_one_are_refused():
    table = table_of([1], np.zeros((1, 8), np.uint8))
    query = np.zeros((1, 8), np.uint8)
    with pytest.raises(ValueError, match="max_distance needs objects to exclude"):
        search_objects(query, table, within=3)
    with pytest.raises(ValueError, match="max_distance must not be negative, got -1"):
        search_objects(query, table, without=query, within=-1)
    with pytest.raises(ValueError, match="one length"):
        search_objects(query, table, without=np.zeros((1, 4), np.uint8))
