"""Each step of a search against a slow loop over all pictures and regions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionhash.search import search_regions
from regionhash.search.steps import (
    check_steps,
    default_steps,
    expand_images,
    expand_regions,
    hits_of,
    rank_images,
    rank_regions,
    search_in_steps,
)
from regionhash.structures import CodeTable


def table_of(rng, n=12, n_bytes=2, low=0):
    """Pictures with 0 to 4 regions and few distinct codes, so that many are equal."""
    lengths = rng.integers(low, 5, n)
    m = int(lengths.sum())
    return CodeTable(
        ids=[f"p{row}" for row in range(n)],
        sizes=np.full((n, 2), 100, np.int32),
        image_codes=rng.integers(0, 8, (n, n_bytes), np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        boxes=np.arange(4 * m, dtype=np.float32).reshape(m, 4),
        scores=rng.random(m, np.float32),
        labels=rng.integers(-1, 3, m),
        region_codes=rng.integers(0, 8, (m, n_bytes), np.uint8),
    )


def bits_between(a, b):
    return sum(int(x ^ y).bit_count() for x, y in zip(a.tolist(), b.tolist(), strict=True))


class Slow:
    """The steps as the paper tells them, over lists of (row, distance, region)."""

    def __init__(self, table):
        self.table = table

    def images(self, query):
        codes = self.table.image_codes
        found = [(row, bits_between(query, codes[row]), None) for row in range(len(codes))]
        return sorted(found, key=lambda entry: entry[1])

    def images_expanded(self, ranking, q):
        codes = self.table.image_codes
        queries = [codes[row] for row, _, _ in ranking[:q]]
        found = [
            (row, min(bits_between(query, codes[row]) for query in queries), None)
            for row, _, _ in ranking
        ]
        return sorted(found, key=lambda entry: entry[1])

    def regions(self, queries, rows):
        found = []
        for row in rows:
            codes = self.table.regions(row).codes
            if len(codes):
                each = [min(bits_between(query, code) for query in queries) for code in codes]
                found.append((row, min(each), each.index(min(each))))
        return sorted(found, key=lambda entry: entry[1])

    def regions_expanded(self, ranking, q):
        queries = [self.table.regions(row).codes[region] for row, _, region in ranking[:q]]
        return self.regions(queries, [row for row, _, _ in ranking])


def check(hits, wanted, table):
    assert [(hit.index, hit.distance) for hit in hits] == [entry[:2] for entry in wanted]
    for hit, (row, distance, region) in zip(hits, wanted, strict=True):
        assert hit.image_id == f"p{row}"
        if region is None:
            assert hit.matches == ()
        else:
            (match,) = hit.matches
            regions = table.regions(row)
            assert list(match.box) == regions.boxes[region].tolist()
            assert (match.distance, match.label) == (distance, regions.labels[region])
            assert match.score == regions.scores[region]


seeds = st.integers(0, 10_000)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 15), st.integers(1, 15))
def test_all_steps_of_the_paper_in_order(seed, m, q):
    rng = np.random.default_rng(seed)
    table = table_of(rng)
    query = rng.integers(0, 8, 2, np.uint8)
    slow = Slow(table)
    wanted = slow.images(query)[:m]
    ranking = rank_images(query, table).first(m)
    check(hits_of(ranking, table), wanted, table)
    wanted = slow.images_expanded(wanted, q)
    ranking = expand_images(ranking, table, q)
    check(hits_of(ranking, table), wanted, table)
    wanted = slow.regions([query], [row for row, _, _ in wanted])
    ranking = rank_regions(query, table, ranking)
    check(hits_of(ranking, table), wanted, table)
    wanted = slow.regions_expanded(wanted, q) if wanted else []
    ranking = expand_regions(ranking, table, q)
    check(hits_of(ranking, table), wanted, table)
    steps = ["global", "global-expand", "local", "local-expand"]
    hits = search_in_steps(
        table, steps, image_query=query, region_query=query, top=99, candidates=m, expand=q
    )
    check(hits, wanted, table)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 15), st.integers(1, 15))
def test_the_exact_step_and_its_expansion(seed, m, q):
    rng = np.random.default_rng(seed)
    table = table_of(rng)
    query = rng.integers(0, 8, 2, np.uint8)
    slow = Slow(table)
    wanted = slow.regions([query], range(len(table)))
    check(search_in_steps(table, ["exact"], region_query=query, top=99), wanted, table)
    check(search_regions(query, table, top=99), wanted, table)
    if wanted:
        hits = search_in_steps(
            table, ["exact", "local-expand"], region_query=query, top=3, candidates=m, expand=q
        )
        check(hits, slow.regions_expanded(wanted[:m], q)[:3], table)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 15), st.integers(1, 15))
def test_candidates_are_the_first_of_the_pictures_that_are_searched(seed, m, top):
    rng = np.random.default_rng(seed)
    table = table_of(rng)
    query, among = rng.integers(0, 8, 2, np.uint8), rng.random(len(table)) < 0.6
    slow = Slow(table)
    wanted = [entry for entry in slow.images(query) if among[entry[0]]]
    hits = search_in_steps(table, ["global"], image_query=query, top=top, among=among)
    check(hits, wanted[:top], table)
    wanted = slow.regions([query], [row for row, _, _ in wanted[:m]])
    hits = search_in_steps(
        table,
        ["global", "local"],
        image_query=query,
        region_query=query,
        top=top,
        candidates=m,
        among=among,
    )
    check(hits, wanted[:top], table)


ORDERS = (
    ["exact"],
    ["exact", "local-expand"],
    ["global"],
    ["global", "global-expand"],
    ["global", "local"],
    ["global", "global-expand", "local"],
    ["global", "local", "local-expand"],
    ["global", "global-expand", "local", "local-expand"],
)


numbers = st.sampled_from([1, 2, 5, 12, 13, 400, 1 << 62, 10**30])


@pytest.mark.timeout(120)
@settings(deadline=None, max_examples=150)
@given(
    seed=seeds,
    steps=st.sampled_from(ORDERS),
    n=st.sampled_from([0, 1, 2, 12]),
    n_bytes=st.sampled_from([1, 2, 8, 9, 32]),
    share=st.sampled_from([None, 0, 0.1, 0.6, 1]),
    top=numbers,
    m=numbers,
    q=numbers,
)
def test_steps_in_any_order_rank_as_the_paper_tells_whatever_is_asked(
    seed, steps, n, n_bytes, share, top, m, q
):
    rng = np.random.default_rng(seed)
    table = table_of(rng, n=n, n_bytes=n_bytes)
    query = rng.integers(0, 8, n_bytes, np.uint8)
    among = None if share is None else rng.random(n) < share
    slow = Slow(table)
    wanted = slow.images(query) if steps[0] == "global" else slow.regions([query], range(n))
    wanted = [entry for entry in wanted if among is None or among[entry[0]]]
    wanted = wanted[: top if len(steps) == 1 else m]
    for step in steps[1:]:
        if step == "local":
            wanted = slow.regions([query], [row for row, _, _ in wanted])
        elif wanted:
            wanted = (slow.images_expanded if "global" in step else slow.regions_expanded)(
                wanted, q
            )
    hits = search_in_steps(
        table,
        steps,
        image_query=query,
        region_query=query,
        top=top,
        candidates=m,
        expand=q,
        among=among,
    )
    check(hits, wanted[:top], table)


def test_with_all_pictures_as_candidates_two_steps_find_what_the_exact_search_finds():
    rng = np.random.default_rng(0)
    table = table_of(rng, n=200, n_bytes=64, low=1)  # long codes, hardly a tie
    query = rng.integers(0, 8, 64, np.uint8)
    exact = search_in_steps(table, ["exact"], region_query=query, top=200)
    both = search_in_steps(
        table, ["global", "local"], image_query=query, region_query=query, top=200, candidates=200
    )
    assert [hit.distance for hit in both] == [hit.distance for hit in exact]
    assert {hit.index for hit in both} == {hit.index for hit in exact}


def test_distances_beyond_16_bits_are_sorted_as_well():
    table = table_of(np.random.default_rng(0), n=3, n_bytes=10_000)
    codes = np.zeros((3, 10_000), np.uint8)
    codes[0], codes[2, :9000] = 255, 255  # 80,000 and 72,000 bits
    table = CodeTable(ids=table.ids, sizes=table.sizes, image_codes=codes)
    hits = hits_of(rank_images(np.zeros(10_000, np.uint8), table), table)
    assert [(hit.index, hit.distance) for hit in hits] == [(1, 0), (2, 72_000), (0, 80_000)]


def test_the_exact_search_is_the_default_while_it_is_quick(monkeypatch):
    table = table_of(np.random.default_rng(0))
    assert default_steps(table, shared_code_space=True) == ("exact",)
    monkeypatch.setattr("regionhash.search.steps.EXACT_SECONDS", 1e-9)
    assert default_steps(table, shared_code_space=True) == ("global", "local")
    assert default_steps(table, shared_code_space=False) == ("exact",)
    bare = CodeTable(ids=["a"], sizes=np.ones((1, 2), np.int32))
    assert default_steps(bare, shared_code_space=True) == ("exact",)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "steps must begin with exact or global, got none"),
        (["local"], "steps must begin with exact or global, got local"),
        (["global", "locale"], "unknown step 'locale'; known: exact, global,"),
        (["global", "local-expand"], "local-expand cannot follow global; it follows local or exac"),
        (["exact", "local"], "step local cannot follow exact; it follows global or global-expand"),
        (["global", "exact"], "step exact cannot follow global; it can only be the first"),
        (["global", "global"], "step global cannot follow global"),
    ],
)
def test_steps_without_something_to_work_on_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        check_steps(steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top must be at least 1, got 0"),
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
        ({"expand": 0}, "expand must be at least 1, got 0"),
        ({"image_query": None}, "step global needs a code of the query"),
    ],
)
def test_bad_input_is_refused(options, message):
    table = table_of(np.random.default_rng(0))
    query = np.zeros(2, np.uint8)
    arguments = {"image_query": query, "region_query": query} | options
    with pytest.raises(ValueError, match=message):
        search_in_steps(table, ["global", "local"], **arguments)


def test_codes_that_a_step_needs_must_be_there():
    bare = CodeTable(ids=["a"], sizes=np.ones((1, 2), np.int32))
    query = np.zeros(2, np.uint8)
    with pytest.raises(ValueError, match="these codes have no image codes"):
        search_in_steps(bare, ["global"], image_query=query)
    with pytest.raises(ValueError, match="these codes have no regions"):
        search_in_steps(bare, ["exact"], region_query=query)
    table = table_of(np.random.default_rng(0), low=1)
    with pytest.raises(ValueError, match="no matched regions"):
        expand_regions(rank_images(query, table), table, 3)


def test_pictures_without_any_region_leave_no_result():
    table = table_of(np.random.default_rng(0))
    empty = CodeTable(
        ids=table.ids,
        sizes=table.sizes,
        image_codes=table.image_codes,
        offsets=np.zeros(len(table) + 1, np.int64),
        boxes=table.boxes[:0],
        scores=table.scores[:0],
        labels=table.labels[:0],
        region_codes=table.region_codes[:0],
    )
    query = np.zeros(2, np.uint8)
    steps = ["global", "local", "local-expand"]
    assert search_in_steps(empty, steps, image_query=query, region_query=query) == []
    assert search_in_steps(empty, ["exact"], region_query=query) == []
