"""Searches that run together: each has the answer it has alone, and they share passes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionhash.collection import Collection, Filter, Query, Search
from regionhash.search import search_categories, search_images, search_objects, search_regions
from regionhash.search import together as module
from regionhash.search.scan import BagSearch
from regionhash.search.steps import search_in_steps
from regionhash.search.together import Scan, run_alone, run_together
from regionhash.structures import CategoryCodes, CodeTable

N_PICTURES, N_CLASSES = 30, 3


def made_table(seed):
    """Pictures with few byte values, so that there are many ties, and codes of categories."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(0, 4, N_PICTURES)])
    m = int(offsets[-1])
    categories = np.cumsum([0, *rng.integers(0, 3, N_PICTURES)])
    k = int(categories[-1])
    return CodeTable(
        ids=[str(n) for n in range(N_PICTURES)],
        sizes=np.full((N_PICTURES, 2), 100, np.int32),
        image_codes=codes_of(rng, N_PICTURES),
        offsets=offsets,
        boxes=np.sort(rng.random((m, 2, 2), np.float32), axis=1).reshape(m, 4),
        scores=np.ones(m, np.float32),
        labels=rng.integers(0, N_CLASSES, m),
        region_codes=codes_of(rng, m),
        classes=tuple("abc"),
        category_offsets=categories,
        categories=np.concatenate([np.arange(n) for n in np.diff(categories)]),
        category_probs=np.full(k, 0.5, np.float32),
        category_codes=codes_of(rng, k),
    )


def codes_of(rng, n):
    return rng.choice(np.array([0, 1, 3, 255], np.uint8), (n, 2))


TABLES = [made_table(seed) for seed in range(2)]


DRAWN = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "table": st.integers(0, 1),
        "masked": st.booleans(),
        "top": st.integers(0, 40),  # 0 is refused
        "bytes": st.sampled_from([1, 2, 2, 2]),  # one does not fit
        "kind": st.sampled_from(["image", "region", "category", "steps", "objects"]),
        "steps": st.sampled_from([["exact"], ["global", "local"], ["global-expand"]]),
        "apart": st.booleans(),
        "exclude": st.booleans(),
        "max_distance": st.sampled_from([None, None, 3]),  # refused without `exclude`
    }
)


def made_search(drawn):
    """A function of searching, with arguments that it may refuse."""
    rng, table = np.random.default_rng(drawn["seed"]), TABLES[drawn["table"]]
    query = codes_of(rng, 3)[:, : drawn["bytes"]]
    mask = rng.random(N_PICTURES) < 0.5 if drawn["masked"] else None
    options = {"top": drawn["top"], "mask": mask}
    if drawn["kind"] == "image":
        return search_images, (query[0], table), options
    if drawn["kind"] == "region":
        return search_regions, (query[0], table), options
    if drawn["kind"] == "category":
        asked = CategoryCodes(np.arange(3), np.array([0.2, 0.5, 0.3], np.float32), query)
        return search_categories, (asked, table), options
    if drawn["kind"] == "steps":
        options |= {"image_query": query[0], "region_query": query[0]}
        return search_in_steps, (table, drawn["steps"]), options
    exclude = query[:1] if drawn["exclude"] else None
    options |= {"exclude": exclude} | {name: drawn[name] for name in ("apart", "max_distance")}
    return search_objects, (query, table), options


def outcome(answer):
    """What can be compared of an answer or an error."""
    return (type(answer), str(answer)) if isinstance(answer, Exception) else answer


def alone(function, arguments, options):
    try:
        return function(*arguments, **options)
    except ValueError as error:
        return error


@settings(deadline=None)
@given(st.lists(DRAWN, max_size=8))
def test_the_answers_are_those_of_the_searches_alone(drawn):
    asked = [made_search(each) for each in drawn]
    found = run_together(
        [function.begin(*arguments, **options) for function, arguments, options in asked]
    )
    assert [outcome(answer) for answer in found] == [outcome(alone(*each)) for each in asked]


@pytest.fixture
def passes(monkeypatch):
    """How many searches each pass had."""
    sizes, scan = [], module.scan_bags

    def counted(searches, *codes):
        sizes.append(len(searches))
        return scan(searches, *codes)

    monkeypatch.setattr(module, "scan_bags", counted)
    return sizes


def test_what_is_wanted_of_the_same_codes_is_one_pass(passes):
    table, other = TABLES
    queries = table.region_codes[:3]
    run_together(
        [
            *(search_regions.begin(query, table) for query in queries),
            search_objects.begin(queries, table, exclude=queries[:2]),  # 2, then 1
            search_images.begin(queries[0], table),
            search_regions.begin(queries[0], other),
        ]
    )
    assert sorted(passes) == [1, 1, 1, 3 + 2]


def test_views_of_the_same_memory_share_a_pass_and_other_bags_do_not(passes):
    codes, offsets = TABLES[0].region_codes, TABLES[0].offsets

    def search(codes, offsets=None):
        return (yield Scan("region", [BagSearch(codes[:1], 3)], codes, offsets))

    wanted = [(codes,), (codes[:],), (codes[:-1],), (codes, offsets)]
    found = run_together([search(*each) for each in wanted])
    assert sorted(passes) == [1, 1, 2]
    np.testing.assert_equal(found, [run_alone(search(*each)) for each in wanted])


def test_an_error_is_the_answer_of_one_search_only(passes):
    codes = TABLES[0].region_codes
    good = search_regions.begin(codes[0], TABLES[0])
    bad = search_regions.begin(codes[0], TABLES[0], top=0)
    unready = search_regions.begin(codes, TABLES[0])  # fails before it wants a scan
    hits, refused, wrong = run_together([good, bad, unready])
    assert hits == search_regions(codes[0], TABLES[0])
    assert "top must be at least 1" in str(refused)
    assert "query must be (B,) uint8" in str(wrong)
    with pytest.raises(ValueError, match="top must be at least 1"):
        search_regions(codes[0], TABLES[0], top=0)


def test_a_search_can_handle_the_error_of_its_scan():
    def search():
        try:
            yield Scan("region", [BagSearch(TABLES[0].region_codes[:1], 0)], TABLES[0].region_codes)
        except ValueError:
            return "handled"

    assert run_together([search(), search()]) == ["handled"] * 2


def test_nothing_is_asked_of_no_search():
    assert run_together([]) == []


QUERIES = st.builds(
    lambda n, regions: Query(image_id=n, regions=regions),
    st.one_of(st.integers(0, 7), st.sampled_from(["1.png", "none"])),
    st.lists(st.integers(0, 3), max_size=2),
)


@st.composite
def requests(draw):
    options = draw(
        st.fixed_dictionaries(
            {"limit": st.integers(1, 5), "offset": st.integers(0, 3)},
            optional={
                "group_within": st.integers(0, 8),
                "context": st.sampled_from([0.0, 0.5]),
                "exclude": st.lists(QUERIES, max_size=1),
                "filter": st.sampled_from([Filter(folder="/"), Filter(after=0.0), Filter(("?",))]),
            },
        )
    )
    try:
        return Search(draw(st.lists(QUERIES, min_size=1, max_size=2)), **options)
    except ValueError:
        return Search([Query(image_id=1)])


@settings(deadline=None, max_examples=50)
@given(st.lists(requests(), max_size=6))
def test_searches_of_a_collection_can_run_together(photo_collection, asked):
    with Collection.open(photo_collection) as photos:

        def alone(search):
            try:
                return photos.results(search)
            except (ValueError, KeyError) as error:
                return error

        found = run_together([photos.begin(search) for search in asked])
        assert [outcome(answer) for answer in found] == [outcome(alone(each)) for each in asked]
