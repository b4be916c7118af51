"""A search from its queries to a page, on codes alone: no network is needed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from regionhash.search.request import Filter, Query, Search
from regionhash.search.run import find, marked, run
from regionhash.store import CodeSet
from regionhash.structures import CategoryCodes, CodeTable, EncodedImage, Regions
from slow_assignment import slow_assignment

N, BYTES = 30, 2
CLASSES = ("cat", "dog", "cow")
IMAGE = np.arange(6 * 7 * 3, dtype=np.uint8).reshape(6, 7, 3)
MODEL = SimpleNamespace(shared_code_space=True)
CHECKPOINT = SimpleNamespace(model_hash="abc", name="tiny")


def random_codes(rng, n):
    return rng.integers(0, 256, (n, BYTES), dtype=np.uint8)


@pytest.fixture(scope="module")
def table():
    """Pictures of one to three regions; each has a code of one category, of a probability."""
    rng = np.random.default_rng(3)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 4, N))])
    return CodeTable(
        [f"{n}.jpg" for n in range(N)],
        np.full((N, 2), 10, np.int32),
        CLASSES,
        image_codes=random_codes(rng, N),
        offsets=offsets,
        boxes=rng.random((offsets[-1], 4), np.float32),
        scores=rng.random(offsets[-1], np.float32),
        labels=rng.integers(0, 3, offsets[-1]),
        region_codes=random_codes(rng, offsets[-1]),
        category_offsets=np.arange(N + 1),
        categories=np.arange(N) % 2,
        category_probs=np.linspace(0.1, 1, N, dtype=np.float32),
        category_codes=random_codes(rng, N),
    )


def codes_of(table, **fields):
    known = {"model": "tiny", "model_hash": "abc", "n_bits": 16, "n_region_bits": 16}
    meta = {"precision": "32-true"}
    return CodeSet(Path("codes.h5"), table, meta=meta, labels=None, **(known | fields))


def query_of(seed=0, n_regions=2, **fields):
    """A picture whose codes are known, so that no network sees it."""
    rng = np.random.default_rng(100 + seed)
    regions = Regions(
        rng.random((n_regions, 4), np.float32),
        np.linspace(1, 0.5, n_regions, dtype=np.float32),
        np.arange(n_regions),
        random_codes(rng, n_regions),
    )
    categories = CategoryCodes(np.arange(2), np.float32([0.4, 0.9]), random_codes(rng, 2))
    encoded = EncodedImage((6, 7), random_codes(rng, 1)[0], None, regions, categories)
    return Query(IMAGE, encoded=encoded, **fields)


def searched(table, queries, *, mask=None, alive=None, **options):
    return run(
        MODEL, CHECKPOINT, codes_of(table, alive=alive), Search(queries, **options), mask=mask
    )


def bits(first, second):
    return int(np.unpackbits(first ^ second).sum())


def ranked(distances):
    """Rows in the order (distance, row), with the distances."""
    return sorted(((distance, row) for row, distance in distances.items()))


def image_distances(table, code):
    return {n: bits(table.image_codes[n], code) for n in range(N)}


def region_distances(table, *codes):
    return {
        n: sum(min(bits(region, code) for region in table.regions(n).codes) for code in codes)
        for n in range(N)
    }


def own_distances(table, codes, apart=True):
    """Distances if every object needs a region of its own."""
    pairs = np.full((len(codes), len(codes)), apart)
    return {n: slow_assignment(codes, table.regions(n), pairs)[0] for n in range(len(table))}


MODES = {
    "image": {},
    "region": {"steps": ["exact"]},
    "steps": {"steps": ["global"]},
    "reranked": {"steps": ["global", "local"], "candidates": N},
    "objects": {"mode": "objects"},
    "shared": {"mode": "objects", "assignment": "shared"},
    "category": {"mode": "category"},
}


@pytest.mark.parametrize("name", MODES)
def test_pictures_that_were_removed_or_are_masked_are_never_found(table, name):
    query, every_second = query_of(), np.arange(N) % 2 == 0
    first_third = np.arange(N) < N // 3
    for masks, wanted in (
        ({}, np.ones(N, bool)),
        ({"alive": every_second}, every_second),
        ({"mask": first_third}, first_third),
        ({"mask": first_third & every_second, "alive": every_second}, first_third & every_second),
    ):
        answer = searched(table, [query], limit=2 * N, **masks, **MODES[name])
        hits = [*answer.hits, *(hit for group in answer.groups for hit in group.hits)]
        assert sorted(hit.index for hit in hits) == np.flatnonzero(wanted).tolist()
        assert answer.n_searched == wanted.sum() and not answer.more


@pytest.mark.parametrize("name", ["image", "region", "objects", "shared"])
@pytest.mark.parametrize("offset", [0, 3, N - 1, N, N + 5])
def test_a_page_is_a_part_of_the_ranking_and_knows_whether_there_is_more(table, name, offset):
    query = query_of()
    codes = query.encoded.regions.codes
    ranking = {
        "image": lambda: ranked(image_distances(table, query.encoded.image_code)),
        "region": lambda: ranked(region_distances(table, codes[0])),
        "objects": lambda: ranked(own_distances(table, codes)),
        "shared": lambda: ranked(region_distances(table, *codes)),
    }[name]()
    for limit in (1, 4, N):
        answer = searched(table, [query], limit=limit, offset=offset, **MODES[name])
        found = [(hit.distance, hit.index) for hit in answer.hits]
        assert found == ranking[offset : offset + limit]
        assert answer.more == (offset + limit < N) and answer.offset == offset


def test_candidates_and_expansion_are_as_many_as_were_asked_for(table):
    query = query_of()
    for candidates in (3, 7):
        steps = {"steps": ["global", "local"], "candidates": candidates, "limit": N}
        assert len(searched(table, [query], **steps).hits) == candidates
    for expand in (1, 2, 4):
        steps = {"steps": ["global", "global-expand"], "expand": expand, "limit": N}
        hits = searched(table, [query], **steps).hits
        assert sum(hit.distance == 0 for hit in hits) == expand  # all codes differ
    assert len(np.unique(table.image_codes, axis=0)) == N


def test_improbable_categories_are_left_out_of_query_and_pictures(table):
    answer = searched(table, [query_of()], mode="category", min_prob=0.5, limit=N)
    assert [group.category for group in answer.groups] == [1]
    probable = np.flatnonzero((table.categories == 1) & (table.category_probs >= 0.5))
    assert sorted(hit.index for hit in answer.groups[0].hits) == probable.tolist()
    both = searched(table, [query_of()], mode="category", limit=N)
    assert [group.category for group in both.groups] == [1, 0]


def test_only_the_best_detection_of_an_excluded_picture_is_left_out(table):
    query, unwanted = query_of(), query_of(1)
    best, _ = unwanted.encoded.regions.codes
    left = {n for n, distance in region_distances(table, best).items() if distance > 5}
    answer = searched(table, [query], exclude=[unwanted], max_distance=5, limit=N)
    assert {hit.index for hit in answer.hits} == left and 0 < len(left) < N
    assert len(answer.excluded[0].boxes) == 1 and len(answer.queries[0].boxes) == 2


def test_a_box_without_a_code_of_its_own_is_cut_out_for_the_step_that_compares_pictures(
    table, monkeypatch
):
    seen = []
    encoded = query_of().encoded

    def encode_picture(model, checkpoint, image, *, precision, **_):
        seen.append(image)
        return encoded

    monkeypatch.setattr("regionhash.models.encoding.encode_picture", encode_picture)
    monkeypatch.setattr(
        "regionhash.models.encoding.encode_boxes",
        lambda model, checkpoint, image, boxes, *, precision: Regions(
            boxes, np.ones(1, np.float32), np.zeros(1, np.int64), encoded.regions.codes[:1]
        ),
    )
    model = SimpleNamespace(shared_code_space=False)
    search = Search([Query(IMAGE, boxes=[(1.5, 2, 3.5, 4.25)])], steps=["global"], limit=3)
    answer = run(model, CHECKPOINT, codes_of(table), search)
    np.testing.assert_array_equal(seen, [IMAGE[2:5, 1:4]])
    wanted = ranked(image_distances(table, encoded.image_code))[:3]
    assert [(hit.distance, hit.index) for hit in answer.hits] == wanted


def test_regions_are_numbered_from_0_and_end_with_the_last():
    query = query_of(n_regions=2)
    encoded = query.encoded
    for numbers in ([0], [1], [1, 0]):
        found = marked("a.jpg", None, Query(IMAGE, encoded=encoded, regions=numbers), encoded)
        np.testing.assert_array_equal(found.encoded.regions.codes, encoded.regions.codes[numbers])
    for numbers in ([2], [-1], [0, 2]):
        wrong = Query(IMAGE, encoded=encoded, regions=numbers)
        with pytest.raises(ValueError, match=r"a\.jpg: has 2 regions, got \["):
            marked("a.jpg", None, wrong, encoded)


def test_shared_regions_are_refused_where_a_picture_is_compared_as_a_whole(table):
    with pytest.raises(ValueError, match="assignment needs mode objects, got mode image"):
        searched(table, [query_of()], assignment="shared")


def test_codes_of_another_model_and_a_filter_without_a_collection_are_refused(table):
    codes = codes_of(table, model_hash="def")
    with pytest.raises(ValueError, match=r"codes\.h5: made by the model def \(tiny\)"):
        run(MODEL, CHECKPOINT, codes, Search([query_of()]))
    with pytest.raises(ValueError, match="filter needs a collection"):
        find(codes, Search([query_of()], filter=Filter(folder="a")))
    with pytest.raises(ValueError, match="searching by id needs a collection"):
        run(MODEL, CHECKPOINT, codes_of(table), Search([Query(image_id="a.jpg")]))


# Different regions for different objects


PLACES = np.array(
    [[0, 0, 30, 30], [40, 0, 70, 30], [5, 5, 25, 25], [0, 0, 30, 31], [0, 50, 90, 90]], np.float32
)


def picture_of(codes, places, labels=None):
    return Regions(
        PLACES[places],
        np.ones(len(places), np.float32),
        np.zeros(len(places), np.int64) if labels is None else np.array(labels),
        codes,
    )


def crowded(seed=0, n=60):
    """Pictures of two to five regions, with few codes, so that many distances are equal."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 6, n)
    places = np.concatenate([rng.permutation(5)[:size] for size in sizes])
    m = int(sizes.sum())
    return CodeTable(
        [f"{row}.jpg" for row in range(n)],
        np.full((n, 2), 100, np.int32),
        CLASSES,
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        boxes=PLACES[places],
        scores=np.ones(m, np.float32),
        labels=rng.integers(0, 3, m),
        region_codes=rng.choice(np.array([0, 1, 7, 255], np.uint8), (m, BYTES)),
    )


def asked(codes, places, **fields):
    regions = picture_of(codes, places)
    return Query(IMAGE, encoded=EncodedImage((90, 90), None, None, regions), **fields)


CUP, DOG = np.array([[0, 0]], np.uint8), np.array([[255, 7]], np.uint8)


@pytest.mark.parametrize("seed", range(6))
def test_pages_groups_and_exclusions_are_those_of_the_assigned_ranking(seed):
    """Two cups of two pictures, with everything that a search can be asked for."""
    table = crowded(seed)
    two = [asked(CUP, [0], regions=[0]), asked(CUP, [0], regions=[0])]
    unwanted = asked(DOG, [0], regions=[0])
    mask = np.random.default_rng(seed).random(len(table)) < 0.8
    distances = own_distances(table, np.concatenate([CUP, CUP]))
    near_dog = {
        n
        for n in range(len(table))
        if any(bits(code, DOG[0]) <= 3 for code in table.regions(n).codes)
    }
    wanted = [
        (distance, n)
        for distance, n in ranked(distances)
        if mask[n] and n not in near_dog and len(table.regions(n))
    ]
    common = {"mode": "objects", "exclude": [unwanted], "max_distance": 3}
    for limit in (1, 3, 7):
        pages = [
            searched(table, two, mask=mask, limit=limit, offset=offset, **common)
            for offset in range(0, len(wanted), limit)
        ]
        found = [(hit.distance, hit.index) for page in pages for hit in page.hits]
        assert found == wanted
        assert [page.more for page in pages] == [True] * (len(pages) - 1) + [False]
    folded = searched(table, two, mask=mask, limit=99, group_within=8, **common).hits
    shown = [hit for best in folded for hit in (best, *best.duplicates)]
    assert sorted((hit.distance, hit.index) for hit in shown) == wanted
    assert any(hit.duplicates for hit in folded)
    paged = [
        hit.index
        for offset in range(0, len(folded), 2)
        for hit in searched(
            table, two, mask=mask, limit=2, offset=offset, group_within=8, **common
        ).hits
    ]
    assert paged == [hit.index for hit in folded]


def test_the_picture_of_the_query_is_at_distance_0_whatever_overlaps_in_it():
    """Cup and dog are marked in one place, and one of them inside the other."""
    codes = np.concatenate([CUP, DOG])
    for places in ([0, 3], [0, 2], [0, 1]):
        regions = picture_of(codes, places)
        table = CodeTable(
            ["a.jpg"],
            np.full((1, 2), 100, np.int32),
            CLASSES,
            offsets=np.array([0, 2]),
            boxes=regions.boxes,
            scores=regions.scores,
            labels=regions.labels,
            region_codes=codes,
        )
        marked_query = asked(codes, places, regions=[0, 1])
        unmarked = asked(codes, places)
        for query in (marked_query, unmarked):
            (hit,) = searched(table, [query], mode="objects").hits
            assert hit.distance == 0
        # But in another picture's query, they are two things, which need two places.
        apart = [asked(CUP, [0], regions=[0]), asked(DOG, [0], regions=[0])]
        (hit,) = searched(table, apart).hits
        assert (hit.distance == 0) == (places == [0, 1])


def test_an_object_marked_twice_is_searched_for_twice():
    table = crowded()
    distances = own_distances(table, np.concatenate([CUP, CUP]))
    wanted = [(d, n) for d, n in ranked(distances) if len(table.regions(n))]
    hits = searched(table, [asked(CUP, [0], regions=[0, 0])], limit=99).hits
    assert [(hit.distance, hit.index) for hit in hits] == wanted
    shared = own_distances(table, np.concatenate([CUP, CUP]), apart=False)
    wanted = [(d, n) for d, n in ranked(shared) if len(table.regions(n))]
    hits = searched(table, [asked(CUP, [0], regions=[0, 0])], limit=99, assignment="shared").hits
    assert [(hit.distance, hit.index) for hit in hits] == wanted
