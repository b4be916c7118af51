"""Exact search, against loops over unpacked bits."""

from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from regionhash.codes import codes_within
from regionhash.search import exact as search
from regionhash.search import (
    nearest_bags,
    search_categories,
    search_images,
    search_objects,
    search_regions,
    united_hamming,
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
        patch.setattr(search, "_BLOCK", block)
        united = united_hamming(queries, codes, offsets)
    assert united.dtype == np.int64
    assert united.tolist() == slow_united(queries, codes, offsets)


SAMPLES = st.sampled_from([(4096, 16), (1, 2), (1, 7)])  # the small ones mislead


@contextmanager
def sampling(sample):
    """Guesses levels by other samples of the distances: what is found may not depend on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_SAMPLE", sample[0])
        patch.setattr(search, "_SHARE", sample[1])
        yield


@given(queries_and_bags(), st.integers(1, 10), SAMPLES)
def test_objects_are_ranked_by_distance_then_row_with_the_first_best_region(drawn, top, sample):
    queries, sizes, codes = drawn
    table = table_of(sizes, codes)
    united = slow_united(queries, codes, table.offsets)
    rows = sorted((n for n, size in enumerate(sizes) if size), key=lambda n: (united[n], n))[:top]

    with sampling(sample):
        hits = search_objects(queries, table, top=top, apart=False)

    assert [(hit.index, hit.image_id, hit.distance) for hit in hits] == [
        (n, f"image{n}", united[n]) for n in rows
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


@pytest.fixture
def levels(monkeypatch):
    """The distances within which `nearest_bags` has looked, one for each pass."""
    levels = []

    def within(query, codes, level):
        levels.append(level)
        return codes_within(query, codes, level)

    monkeypatch.setattr(search, "codes_within", within)
    return levels


def test_bags_are_ranked_as_all_distances_rank_them_whatever_the_sample_tells(levels):
    """The sampled bags are all nearer than the others, or all further."""
    by_distance = np.packbits(np.arange(128) < np.arange(129)[:, None], axis=1)
    n_passes = set()

    @given(
        st.integers(0, 2**32),
        st.sampled_from([2, 5, 16]),
        st.booleans(),
        st.sampled_from([1, 3, 8, 40, 300]),
        st.booleans(),
    )
    @example(0, 16, True, 8, False)  # three of the sample are near, and the next six far enough
    def check(seed, stride, nearer, top, all_searched):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 4, 200)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        among = None if all_searched else rng.random(200) < 0.9
        searched = np.arange(200) if among is None else np.flatnonzero(among)
        sampled = np.isin(np.arange(200), searched[::stride])
        least = rng.integers(0, 60, 200) + np.where(sampled == nearer, 0, 60)
        distances = np.repeat(least, sizes) + rng.integers(0, 9, offsets[-1])
        each = np.minimum.reduceat(distances, offsets[:-1])
        levels.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "_SAMPLED_CODES", len(distances) // (stride - 1))
            bags, found = nearest_bags(
                by_distance[0], by_distance[distances], offsets, top=top, among=among
            )
        wanted = searched[np.argsort(each[searched], kind="stable")][:top]
        np.testing.assert_array_equal(bags, wanted)
        np.testing.assert_array_equal(found, each[wanted])
        assert (bags.dtype, found.dtype) == (np.int64, np.int64)
        n_passes.add(len(levels))

    check()
    assert {0, 1, 2} <= n_passes


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


SAMPLED_CODES = st.sampled_from([1, 3, 20, 20_000])


@pytest.mark.timeout(120)
@given(tables(), SAMPLED_CODES)
def test_bags_are_ranked_as_their_bits_rank_them_whatever_is_asked(drawn, sampled):
    queries, codes, offsets, among, top = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_SAMPLED_CODES", sampled)
        bags, distances = nearest_bags(queries[0], codes, offsets, top=top, among=among)
    wanted = slow_ranking(queries[:1], codes, offsets, among, top)
    assert list(zip(bags.tolist(), distances.tolist(), strict=True)) == wanted


@pytest.mark.timeout(120)
@given(tables(), st.integers(1, 3), SAMPLED_CODES)
def test_pictures_are_ranked_as_the_bits_of_their_regions_rank_them(drawn, n_queries, sampled):
    queries, codes, offsets, among, top = drawn
    table = table_of(np.diff(offsets), codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_SAMPLED_CODES", sampled)
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


@pytest.mark.timeout(60)
@pytest.mark.parametrize("top", [1, 9_998, 10_001, 20_000, 20_003, np.int64(1 << 62), 10**30])
def test_a_large_table_gives_all_that_match_where_more_are_asked_for(top):
    codes = np.random.default_rng(0).integers(0, 256, (20_001, 8), dtype=np.uint8)
    sizes = np.ones(20_002, np.int64)
    sizes[3] = 0
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    each = np.insert(np.unpackbits(codes ^ codes[0], axis=1).sum(axis=1, dtype=np.int64), 3, 99)
    half = np.arange(len(sizes)) < 10_000
    for among in (None, half, half & (sizes > 1), half | True):
        expected = np.flatnonzero((sizes > 0) & (True if among is None else among))
        expected = expected[np.lexsort([expected, each[expected]])][:top]
        bags, distances = nearest_bags(codes[0], codes, offsets, top=top, among=among)
        np.testing.assert_array_equal(bags, expected)
        np.testing.assert_array_equal(distances, each[expected])


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("top", "n_passes"), [(1, 1), (8, 2), (200, 3), (20_000, 1)])
def test_a_sample_that_misleads_costs_another_pass_and_changes_nothing(levels, top, n_passes):
    """Each sampled bag is one bit further away than the last, and all others are far away."""
    distances = np.full(240_000, 500)
    stride = 1 + len(distances) // search._SAMPLED_CODES
    distances[::stride] = np.arange(len(distances[::stride])).clip(max=400)
    by_distance = np.packbits(np.arange(512) < np.arange(513)[:, None], axis=1)
    offsets = np.arange(len(distances) + 1)
    bags, found = nearest_bags(by_distance[0], by_distance[distances], offsets, top=top)
    wanted = np.argsort(distances, kind="stable")[:top]
    np.testing.assert_array_equal(bags, wanted)
    np.testing.assert_array_equal(found, distances[wanted])
    assert len(levels) == n_passes  # of 20,000 there are too few even where the sample ends


@pytest.mark.parametrize("n_near", [3, 500, 30_000])
def test_bags_of_a_large_table_are_ranked_as_all_distances_rank_them(n_near):
    """Codes near to the query in a few bags, in one corner: what a sample sees badly."""
    rng = np.random.default_rng(n_near)
    codes = rng.integers(0, 256, (250_000, 8), dtype=np.uint8)
    query = codes[0].copy()
    codes[:n_near] = query ^ (rng.integers(0, 256, (n_near, 8), dtype=np.uint8) & 1)
    offsets = np.arange(0, len(codes) + 1, 10)
    united = united_hamming(query[None], codes, offsets)
    for among in (None, np.arange(len(united)) % 2 == 1, np.arange(len(united)) < 100):
        searched = np.arange(len(united)) if among is None else np.flatnonzero(among)
        rows = searched[np.argsort(united[searched], kind="stable")][:60]
        bags, distances = nearest_bags(query, codes, offsets, top=60, among=among)
        np.testing.assert_array_equal(bags, rows)
        np.testing.assert_array_equal(distances, united[rows])


@given(queries_and_bags(), st.integers(1, 20))
def test_images_are_ranked_by_distance_then_row(drawn, top):
    queries, _, codes = drawn
    table = table_of([0] * len(codes), codes[:0], image_codes=codes)
    distances = [slow_distance(queries[0], code) for code in codes]
    rows = sorted(range(len(codes)), key=lambda n: (distances[n], n))[:top]
    hits = search_images(queries[0], table, top=top)
    assert [(hit.index, hit.distance) for hit in hits] == [(n, distances[n]) for n in rows]
    assert all(hit.matches == () for hit in hits)


@given(
    arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]),
        st.integers(0, 60),
        elements=st.sampled_from([0, 1, 2, 7, 100, 255]),  # ties, and levels that nothing has
    ),
    st.integers(1, 70),
    SAMPLES,
)
def test_the_nearest_rows_are_those_of_a_sorting_with_ties_in_their_order(distances, top, sample):
    rows = sorted(range(len(distances)), key=lambda n: (int(distances[n]), n))[:top]
    with sampling(sample):
        assert search._nearest(distances, top).tolist() == rows


@pytest.mark.parametrize("rest", [0, 300, 512])
def test_a_sample_that_is_like_nothing_else_does_not_mislead(rest):
    distances = np.random.default_rng(0).integers(200, 300, 100_000).astype(np.uint16)
    distances[:: search._SHARE] = rest  # all that the sample sees
    order = np.argsort(distances, kind="stable")
    for top in (1, 400, 99_000, 200_000):
        assert search._nearest(distances, top).tolist() == order[:top].tolist()


def test_equal_distances_are_all_in_the_order_of_rows():
    for n, top in ((0, 3), (1, 3), (50_000, 7), (5, 9)):
        for value in (0, 9):
            rows = search._nearest(np.full(n, value, np.uint16), top)
            assert rows.tolist() == list(range(min(n, top)))


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


@pytest.mark.parametrize("offsets", [[1, 2], [0, 1], [0, 3], [0, 2, 1, 2]])
def test_offsets_that_do_not_divide_the_codes_are_refused(offsets):
    codes = np.zeros((2, 8), np.uint8)
    with pytest.raises(ValueError, match="offsets must rise from 0 to 2"):
        united_hamming(codes, codes, np.array(offsets))
    with pytest.raises(ValueError, match=r"offsets must be \(N \+ 1,\), got \(0,\)"):
        united_hamming(codes, codes, np.zeros(0, np.int64))


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
