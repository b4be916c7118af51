"""Objects with a part of the whole pictures: distance, search, command line and service."""

import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_runner import error_of, run
from regionhash.collection import Collection
from regionhash.data.images import read_image
from regionhash.models import encoding
from regionhash.models.encoding import encode_boxes, encode_picture
from regionhash.search.assignment import same_objects
from regionhash.search.exact import context_distances, search_objects
from regionhash.search.request import Query, RequestError, Search
from regionhash.search.run import QueryPicture, _classes_of
from regionhash.search.run import run as run_search
from regionhash.search.united import Costs, Unlike
from regionhash.service import create_app
from regionhash.store import CodeSet
from regionhash.structures import CodeTable, EncodedImage, Regions
from slow_assignment import bits, slow_assignment

N, BYTES, IMAGE_BYTES = 25, 2, 3
PLACES = np.array(
    [[0, 0, 30, 30], [40, 0, 70, 30], [5, 5, 25, 25], [0, 0, 30, 31], [0, 50, 90, 90]], np.float32
)
IMAGE = np.zeros((90, 90, 3), np.uint8)
BOX = (20.0, 30.0, 90.0, 100.0)


def few_codes(rng, n, n_bytes=BYTES):
    """Of few values, so that many distances are equal."""
    return rng.choice(np.array([0, 1, 7, 255], np.uint8), (n, n_bytes))


def table_of(rng, n=N):
    """Pictures of no to five regions that overlap."""
    sizes = rng.integers(0, 6, n)
    places = np.concatenate([rng.permutation(5)[:size] for size in sizes])
    m = int(sizes.sum())
    return CodeTable(
        [f"{row}.jpg" for row in range(n)],
        np.full((n, 2), 100, np.int32),
        ("cat", "dog", "cow"),
        image_codes=few_codes(rng, n, IMAGE_BYTES),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        boxes=PLACES[places],
        scores=np.ones(m, np.float32),
        labels=rng.integers(-1, 2, m),
        region_codes=few_codes(rng, m),
    )


def ranked(table, queries, apart, added, mask):
    """(distance, row) of all pictures, sorted: every assignment of every picture is tried."""
    pairs = np.full((len(queries), len(queries)), apart)
    return sorted(
        (slow_assignment(queries, table.regions(row), pairs)[0] + added[row], row)
        for row in range(len(table))
        if mask[row] and len(table.regions(row))
    )


def whole_parts(table, codes, share):
    """`share` times the mean distance between whole pictures, of each picture, in whole bits."""
    return [
        round(share * sum(bits(code, image) for code in codes) / len(codes))
        for image in table.image_codes
    ]


# -- the distance ---------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 9999),
    n_queries=st.integers(1, 3),
    top=st.integers(1, N + 1),
    apart=st.booleans(),
    most=st.sampled_from([0, 3, 40]),
)
def test_what_is_added_ranks_as_sorting_all_pictures_does(seed, n_queries, top, apart, most):
    rng = np.random.default_rng(seed)
    table, queries = table_of(rng), few_codes(rng, n_queries)
    added = rng.integers(0, most + 1, N)
    mask = rng.random(N) < 0.8
    hits = search_objects(queries, table, top=top, mask=mask, apart=apart, context=added)
    wanted = ranked(table, queries, apart, added, mask)[:top]
    assert [(hit.distance, hit.index) for hit in hits] == wanted
    for hit in hits:
        assert hit.context == added[hit.index]
        assert hit.distance == hit.context + sum(match.distance for match in hit.matches)


@pytest.mark.parametrize("candidates", [1, 4])
@pytest.mark.parametrize("seed", range(8))
def test_a_far_picture_with_near_regions_is_given_up_in_time(seed, candidates, monkeypatch):
    """The bound that ends the search holds for sums with the pictures, block by block."""
    monkeypatch.setattr("regionhash.search.exact._CANDIDATES", candidates)
    monkeypatch.setattr("regionhash.search.exact._PAIRS", 8)
    rng = np.random.default_rng(seed)
    table, queries = table_of(rng, 60), few_codes(rng, 3)
    added = rng.integers(0, 30, 60)
    hits = search_objects(queries, table, top=7, context=added)
    wanted = ranked(table, queries, True, added, np.ones(60, bool))[:7]
    assert [(hit.distance, hit.index) for hit in hits] == wanted


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 4), share=st.floats(0, 100))
def test_the_part_of_several_pictures_is_that_of_their_mean_distance(seed, n, share):
    rng = np.random.default_rng(seed)
    table, codes = table_of(rng), few_codes(rng, n, IMAGE_BYTES)
    found = context_distances(codes, table, share)
    assert found.dtype == np.int64 and found.tolist() == whole_parts(table, codes, share)


def test_parts_that_do_not_fit_are_refused():
    table = table_of(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"context must be \(25,\), got \(3,\)"):
        search_objects(table.region_codes[:1], table, context=np.zeros(3, np.int64))
    bare = CodeTable(["a"], np.full((1, 2), 9, np.int32))
    with pytest.raises(ValueError, match="no image codes"):
        context_distances(table.image_codes[:1], bare, 0.5)


# -- the search -----------------------------------------------------------------------------------


def asked(rng, places, image_code=True, **fields):
    """A query picture whose codes are known."""
    n = len(places)
    regions = Regions(
        PLACES[places], np.ones(n, np.float32), np.zeros(n, np.int64), few_codes(rng, n)
    )
    code = few_codes(rng, 1, IMAGE_BYTES)[0] if image_code else None
    return Query(IMAGE, encoded=EncodedImage((90, 90), code, None, regions), **fields)


def searched(table, queries, **options):
    checkpoint = SimpleNamespace(model_hash="abc", name="tiny")
    known = {"model": "tiny", "model_hash": "abc", "n_bits": 24, "n_region_bits": 16}
    meta = {"precision": "32-true"}
    codes = CodeSet(Path("codes.h5"), table, meta=meta, labels=None, **known)
    model = SimpleNamespace(shared_code_space=True)
    return run_search(model, checkpoint, codes, Search(queries, **options))


@pytest.mark.parametrize("share", [0.25, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_pages_of_one_object_are_those_of_the_sum(seed, share):
    rng = np.random.default_rng(seed)
    table, query = table_of(rng), asked(rng, [0, 4], regions=[1])
    added = whole_parts(table, [query.encoded.image_code], share)
    wanted = ranked(table, query.encoded.regions.codes[1:], False, added, np.ones(N, bool))
    pages = [searched(table, [query], context=share, limit=4, offset=n) for n in range(0, N, 4)]
    assert [page.steps for page in pages] == [("exact",)] * len(pages)
    found = [(hit.distance, hit.index) for page in pages for hit in page.hits]
    assert found == wanted
    assert added != [0] * N


@pytest.mark.parametrize("seed", range(4))
def test_objects_of_several_pictures_take_the_mean_of_their_pictures(seed):
    rng = np.random.default_rng(seed)
    table = table_of(rng)
    queries = [asked(rng, [0], regions=[0]), asked(rng, [1, 4], regions=[0, 1])]
    added = whole_parts(table, [query.encoded.image_code for query in queries], 0.5)
    codes = np.concatenate([query.encoded.regions.codes for query in queries])
    wanted = ranked(table, codes, True, added, np.ones(N, bool))
    answer = searched(table, queries, context=0.5, limit=N)
    assert [(hit.distance, hit.index) for hit in answer.hits] == wanted
    folded = searched(table, queries, context=0.5, limit=N, group_within=8).hits
    every = [hit for best in folded for hit in (best, *best.duplicates)]
    assert sorted((hit.distance, hit.index) for hit in every) == wanted
    assert all(hit.context == added[hit.index] for hit in every)


def test_without_a_part_nothing_changes():
    rng = np.random.default_rng(5)
    table, query = table_of(rng), asked(rng, [0, 4], regions=[1])
    plain, zero = searched(table, [query], limit=N), searched(table, [query], limit=N, context=0)
    assert plain.hits == zero.hits and {hit.context for hit in plain.hits} == {None}


@pytest.mark.parametrize("share", [-0.1, 100.5, float("nan"), float("inf")])
def test_parts_are_in_a_range(share):
    with pytest.raises(RequestError, match=r"context must be in \[0, 100\], got"):
        Search([Query(IMAGE, boxes=[BOX])], context=share)


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        ([Query(IMAGE)], {}, "context needs mode region or objects, got mode image"),
        ([Query(IMAGE)], {"mode": "category"}, "needs mode region or objects, got mode category"),
        (
            [Query(IMAGE, boxes=[BOX])],
            {"steps": ["global", "local"]},
            "needs the step exact alone, got global,local",
        ),
        (
            [Query(IMAGE, boxes=[BOX])],
            {"steps": ["exact", "local-expand"]},
            "needs the step exact alone, got exact,local-expand",
        ),
        ([Query(text="cat")], {}, "context needs a query picture, got words alone"),
    ],
)
def test_a_part_of_the_picture_is_refused_where_it_means_nothing(queries, options, message):
    with pytest.raises(RequestError, match=message):
        Search(queries, context=0.5, **options)
    Search(queries, **options)


def test_codes_without_whole_pictures_are_refused():
    rng = np.random.default_rng(0)
    query, table = asked(rng, [0], regions=[0]), table_of(rng)
    bare = CodeTable(
        table.ids,
        table.sizes,
        table.classes,
        offsets=table.offsets,
        boxes=table.boxes,
        scores=table.scores,
        labels=table.labels,
        region_codes=table.region_codes,
    )
    with pytest.raises(RequestError, match="context needs codes of whole pictures, which the mod"):
        searched(bare, [query], context=0.5)
    unknown = asked(rng, [0], image_code=False, regions=[0])
    with pytest.raises(ValueError, match="picture: its code as a whole picture is missing"):
        searched(table, [unknown], context=0.5)


# -- as a user has it -----------------------------------------------------------------------------


def expected(collection, image, boxes, share):
    """(distance, id, part of the picture), nearest first; one or several boxes of one picture."""
    model, checkpoint = collection.model
    table = collection.code_file().table
    objects = encode_boxes(model, checkpoint, image, np.array(boxes, np.float32)).codes
    whole = encode_picture(model, checkpoint, image).image_code
    added = whole_parts(table, [whole], share)
    order = ranked(table, objects, len(boxes) > 1, added, np.ones(len(table), bool))
    return [(distance, table.ids[row], added[row]) for distance, row in order]


FAR = (100.0, 100.0, 150.0, 155.0)  # overlaps BOX nowhere, so that each needs a region of its own


@pytest.mark.parametrize("name", ["photo_collection", "drh_collection"])
@pytest.mark.parametrize("boxes", [[BOX], [BOX, FAR]])
def test_the_command_adds_a_part_of_the_picture(name, boxes, photos, tmp_path, request):
    folder = request.getfixturevalue(name)
    with Collection.open(folder) as opened:
        wanted = expected(opened, read_image(photos / "2.png"), boxes, 0.5)
    command = ["search", folder, "--query", photos / "2.png", "--context", 0.5]
    for box in boxes:
        command += ["--box", ",".join(map(str, box))]
    sheet = tmp_path / "sheet.html"
    record = json.loads(run(*command, "--json", "--sheet", sheet).stdout)
    found = [(hit["distance"], hit["picture"], hit["context"]) for hit in record["hits"]]
    assert found == wanted and sum(part for *_, part in wanted)
    for hit in record["hits"]:
        parts = [match["distance"] for match in hit["matches"]]
        assert hit["distance"] == hit["context"] + sum(parts)
    parts = [match["distance"] for match in record["hits"][-1]["matches"]]
    shown = f"{wanted[-1][0]} = {' + '.join(map(str, parts))} + {wanted[-1][2]} (picture)"
    assert shown in run(*command).stdout and f"distance {shown}" in sheet.read_text()
    assert record["hits"][0]["context"] == 0 and record["hits"][0]["picture"] == "2.png"


def test_a_picture_without_a_mark_adds_its_part_too(photo_collection, photos):
    command = ("search", photo_collection, "--query", photos / "2.png", "--mode", "region")
    plain = json.loads(run(*command, "--json").stdout)["hits"]
    hits = json.loads(run(*command, "--context", 1, "--json").stdout)["hits"]
    own = {hit["picture"]: hit["distance"] for hit in plain}
    assert [hit["context"] for hit in plain] == [None] * len(plain)
    assert {hit["picture"]: hit["distance"] - hit["context"] for hit in hits} == own
    assert [hit["distance"] for hit in hits] == sorted(hit["distance"] for hit in hits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context", 0.5], "--context needs mode region or objects, got mode image"),
        (["--context", -1, "--box", "1,1,9,9"], "--context must be in [0, 100], got -1.0"),
        (
            ["--context", 1, "--box", "1,1,9,9", "--steps", "global,local"],
            "--context needs the step exact alone, got global,local",
        ),
    ],
)
def test_bad_parts_are_one_line(photo_collection, photos, options, message):
    said = error_of("search", photo_collection, "--query", photos / "2.png", *options)
    assert said == message


def test_words_beside_a_picture_take_no_part(worded, photos):
    command = ("search", worded, "--query", f"{photos / '2.png'}@5,5,80,90", "--json")
    alone = json.loads(run(*command, "--context", 0.5).stdout)["hits"]
    both = json.loads(run(*command, "--context", 0.5, "--text", "a dog").stdout)["hits"]
    parts = [{hit["picture"]: hit["context"] for hit in hits} for hits in (alone, both)]
    assert parts[0] == parts[1] and len(parts[0]) == 6
    said = error_of("search", worded, "--text", "a dog", "--context", 0.5)
    assert said == "--context needs a query picture, got words alone"


def test_boxes_and_picture_share_a_pass_if_their_codes_are_of_one_space(
    drh_collection, photo_collection, photos, monkeypatch
):
    """And the picture of a collection is not encoded again."""
    passes = []

    def counted(name, wrapped):
        def encode(*args, **options):
            passes.append(name)
            return wrapped(*args, **options)

        monkeypatch.setattr(encoding, name, encode)

    counted("encode_picture", encode_picture)
    counted("encode_boxes", encode_boxes)
    for folder, alone in (
        (drh_collection, ["encode_boxes"]),
        (photo_collection, ["encode_picture", "encode_boxes"]),
    ):
        with Collection.open(folder) as opened:
            for query, wanted in (
                ({"image": photos / "2.png"}, alone),
                ({"image_id": "2.png"}, ["encode_boxes"]),
            ):
                passes.clear()
                hits = opened.search(**query, boxes=[BOX], context=0.5).hits
                assert passes == wanted
                assert hits[0].context == 0
            passes.clear()
            opened.search(image_id="2.png", regions=[0], context=0.5)
            assert passes == []


def test_the_service_adds_a_part_of_the_picture(photo_collection, photos):
    with (
        TestClient(create_app(photo_collection), base_url="http://localhost") as client,
        Collection.open(photo_collection) as opened,
    ):
        content = (photos / "2.png").read_bytes()
        upload = client.post("/api/uploads", files={"file": content}).json()["upload"]

        def search(query, **options):
            return client.post("/api/search", json={"queries": [query]} | options)

        boxed = expected(opened, read_image(photos / "2.png"), [BOX], 0.5)
        for query in ({"upload": upload, "boxes": [BOX]}, {"image": 3, "boxes": [BOX]}):
            hits = search(query, context=0.5).json()["hits"]
            found = [(hit["distance"], hit["id"], hit["context"]) for hit in hits]
            assert found == boxed
            plain = search(query).json()["hits"]
            assert {hit["context"] for hit in plain} == {None}
        hits = search({"image": 3, "regions": [1]}, context=2).json()["hits"]
        wanted = opened.search(image_id="2.png", regions=[1], context=2).hits
        assert [(hit["distance"], hit["id"], hit["context"]) for hit in hits] == [
            (hit.distance, hit.id, hit.context) for hit in wanted
        ]
        refused = search({"image": 3}, context=0.5)
        assert refused.status_code == 422
        assert refused.json()["detail"] == "context needs mode region or objects, got mode image"
        for wrong in (-1, 101, "much"):
            assert search({"image": 3, "regions": [1]}, context=wrong).status_code == 422


# -- classes --------------------------------------------------------------------------------------


def unlike_ranked(table, codes, classes, share, added=(0,) * N):
    """(distance, row) of one object or several that share regions, sorted."""
    n_bits = 8 * BYTES
    penalty = round(share * n_bits)
    wanted = []
    for row in range(N):
        regions = table.regions(row)
        total = 0
        for code, wanted_class in zip(codes, classes, strict=True):
            each = []
            for label, other in zip(regions.labels.tolist(), regions.codes, strict=True):
                differ = wanted_class >= 0 <= label != wanted_class
                each.append(min(bits(code, other) + penalty * differ, n_bits))
            total += min(each, default=0)
        if len(regions):
            wanted.append((total + added[row], row))
    return sorted(wanted)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 9999),
    classes=st.lists(st.integers(-1, 1), min_size=1, max_size=2),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    top=st.integers(1, N),
)
def test_regions_of_another_class_are_farther(seed, classes, share, top):
    rng = np.random.default_rng(seed)
    table, codes = table_of(rng), few_codes(rng, len(classes))
    unlike = Unlike(np.array(classes), round(share * 8 * BYTES))
    costs = Costs(unlike=unlike)
    hits = search_objects(codes, table, top=top, apart=False, costs=costs)
    found = [(hit.distance, hit.index) for hit in hits]
    assert found == unlike_ranked(table, codes, classes, share)[:top]
    for hit in hits:
        assert hit.distance == sum(match.distance for match in hit.matches)
    # Regions of their own, by trying all assignments.
    hits = search_objects(codes, table, top=top, costs=costs)
    wanted = []
    for row in range(N):
        regions = table.regions(row)
        n_bits, n = 8 * BYTES, len(regions)
        same = same_objects(regions.boxes, regions.labels)
        sums = [
            sum(
                n_bits
                if region == n
                else min(
                    bits(code, regions.codes[region])
                    + unlike.bits * (own >= 0 <= regions.labels[region] != own),
                    n_bits,
                )
                for code, own, region in zip(codes, classes, chosen, strict=True)
            )
            for chosen in product(range(n + 1), repeat=len(codes))
            if len(chosen) == 1 or n in chosen or not same[chosen]
        ]
        if n:
            wanted.append((min(sums), row))
    assert [(hit.distance, hit.index) for hit in hits] == sorted(wanted)[:top]


@pytest.mark.parametrize("seed", range(4))
def test_the_class_is_that_of_the_region_that_is_searched_for(seed):
    rng = np.random.default_rng(seed)
    table, query = table_of(rng), asked(rng, [0, 4], regions=[1])  # of class 0
    codes = query.encoded.regions.codes[1:]
    answer = searched(table, [query], other_class=0.5, context=0.5, limit=N)
    added = whole_parts(table, [query.encoded.image_code], 0.5)
    assert [(hit.distance, hit.index) for hit in answer.hits] == unlike_ranked(
        table, codes, [0], 0.5, added
    )
    alone = searched(table, [query], other_class=0.5, limit=N)
    assert alone.steps == ("exact",)
    assert [(hit.distance, hit.index) for hit in alone.hits] == unlike_ranked(
        table, codes, [0], 0.5
    )


def test_a_drawn_box_has_the_class_of_the_first_region_on_it():
    labels = np.array([-1, 2, 1])
    found = Regions(PLACES[[0, 3, 0]], np.ones(3, np.float32), labels, np.zeros((3, 2), np.uint8))
    drawn = Regions(PLACES[[0, 1]], np.ones(2, np.float32), np.full(2, -1), found.codes[:2])
    query = QueryPicture("a", IMAGE, drawn.as_tuples(), found=found)
    assert _classes_of(query, drawn).tolist() == [2, -1]
    known = Regions(drawn.boxes, drawn.scores, np.array([0, 0]), drawn.codes)
    assert _classes_of(query, known).tolist() == [0, 0]
    assert _classes_of(QueryPicture("a", IMAGE), drawn).tolist() == [-1, -1]


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_the_share_of_another_class_is_in_a_range(share):
    with pytest.raises(RequestError, match=r"other_class must be in \[0, 1\], got"):
        Search([Query(IMAGE, boxes=[BOX])], other_class=share)


def test_command_and_service_add_for_another_class(photo_collection, photos):
    picture = photos / "2.png"
    with Collection.open(photo_collection) as opened:
        wanted = [
            (hit.distance, hit.id)
            for hit in opened.search(image_id="2.png", boxes=[BOX], other_class=0.5).hits
        ]
        model, checkpoint = opened.model
        own = encode_boxes(model, checkpoint, read_image(picture), np.float32([BOX]))
        table = opened.code_file().table
    slow = []
    for row, name in enumerate(table.ids):
        regions = table.regions(row)
        differ = (regions.labels >= 0) & (regions.labels != own.labels[0])
        each = np.array([bits(own.codes[0], code) for code in regions.codes])
        slow.append((int(np.minimum(each + 8 * differ, 16).min()), row, name))
    assert wanted == [(distance, name) for distance, _, name in sorted(slow)]
    command = ("search", photo_collection, "--query", picture, "--other-class", 0.5)
    hits = json.loads(run(*command, "--box", "20,30,90,100", "--json").stdout)["hits"]
    assert [(hit["distance"], hit["picture"]) for hit in hits] == wanted
    assert error_of(*command) == "--other-class needs mode region or objects, got mode image"
    with TestClient(create_app(photo_collection), base_url="http://localhost") as client:
        body = {"queries": [{"image": 3, "boxes": [BOX]}], "other_class": 0.5}
        hits = client.post("/api/search", json=body).json()["hits"]
        assert [(hit["distance"], hit["id"]) for hit in hits] == wanted
