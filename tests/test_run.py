"""A search from its queries to a page, on codes alone: no network is needed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from regionhash.search.request import Filter, Query, Search
from regionhash.search.run import find, marked, run
from regionhash.store import CodeSet
from regionhash.structures import CategoryCodes, CodeTable, EncodedImage, Regions

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


MODES = {
    "image": {},
    "region": {"steps": ["exact"]},
    "steps": {"steps": ["global"]},
    "reranked": {"steps": ["global", "local"], "candidates": N},
    "objects": {"mode": "objects"},
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


@pytest.mark.parametrize("name", ["image", "region", "objects"])
@pytest.mark.parametrize("offset", [0, 3, N - 1, N, N + 5])
def test_a_page_is_a_part_of_the_ranking_and_knows_whether_there_is_more(table, name, offset):
    query = query_of()
    codes = query.encoded.regions.codes
    ranking = {
        "image": lambda: ranked(image_distances(table, query.encoded.image_code)),
        "region": lambda: ranked(region_distances(table, codes[0])),
        "objects": lambda: ranked(region_distances(table, *codes)),
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

    def encode_picture(model, checkpoint, image, *, precision):
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


def test_codes_of_another_model_and_a_filter_without_a_collection_are_refused(table):
    codes = codes_of(table, model_hash="def")
    with pytest.raises(ValueError, match=r"codes\.h5: made by the model def \(tiny\)"):
        run(MODEL, CHECKPOINT, codes, Search([query_of()]))
    with pytest.raises(ValueError, match="filter needs a collection"):
        find(codes, Search([query_of()], filter=Filter(folder="a")))
    with pytest.raises(ValueError, match="searching by id needs a collection"):
        run(MODEL, CHECKPOINT, codes_of(table), Search([Query(image_id="a.jpg")]))
