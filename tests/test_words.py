"""Searching by words: the distance, the search, the command line, the service and the page."""

import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_runner import error_of, run
from regionhash.codes import asymmetric_distances, hamming_distances, pack_signs
from regionhash.collection import Collection, open_codes
from regionhash.models.runtime import load_runtime
from regionhash.search.exact import search_objects
from regionhash.search.request import Query, Search
from regionhash.search.united import Costs, united_hamming
from regionhash.service import create_app
from regionhash.structures import CodeTable
from tiny_encoders import WORDS, word_vectors, write_encoder

SMALL = ("--bits", 64, "--short", 96, "--workers", 0)


# -- the distance ---------------------------------------------------------------------------------


def slow_distances(queries, weights, database):
    bits, others = np.unpackbits(queries, axis=1), np.unpackbits(database, axis=1)
    found = []
    for query, weight in zip(bits, weights, strict=True):
        weight = np.ones(len(query)) if weight is None else weight.astype(float)
        found.append([weight[query != other].sum() for other in others])
    return np.array(found).reshape(len(queries), len(database))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 9),
    n_bytes=st.integers(1, 9),
    kinds=st.lists(st.booleans(), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_weighted_bits_are_summed_as_in_a_loop(n, n_bytes, kinds, seed):
    rng = np.random.default_rng(seed)
    queries = rng.integers(0, 256, (len(kinds), n_bytes), np.uint8)
    database = rng.integers(0, 256, (n, n_bytes), np.uint8)
    weights = [rng.random(8 * n_bytes).astype(np.float32) * 2 if kind else None for kind in kinds]
    found = asymmetric_distances(queries, weights, database)
    assert found.dtype == np.int32
    np.testing.assert_allclose(found, slow_distances(queries, weights, database), atol=0.501)
    np.testing.assert_array_equal(
        asymmetric_distances(queries, None, database), hamming_distances(queries, database)
    )
    ones = [np.ones(8 * n_bytes, np.float32)] * len(kinds)
    np.testing.assert_array_equal(
        asymmetric_distances(queries, ones, database), hamming_distances(queries, database)
    )


def table_of(rng, n_images, n_bytes):
    lengths = rng.integers(0, 5, n_images)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    n = int(offsets[-1])
    low = rng.random((n, 2)).astype(np.float32) * 50
    return CodeTable(
        ids=[f"{i}" for i in range(n_images)],
        sizes=np.full((n_images, 2), 100, np.int32),
        offsets=offsets,
        boxes=np.concatenate([low, low + 10 + 30 * rng.random((n, 2))], axis=1).astype(np.float32),
        scores=np.ones(n, np.float32),
        labels=np.full(n, -1, np.int64),
        region_codes=rng.integers(0, 256, (n, n_bytes), np.uint8),
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), n_queries=st.integers(1, 2), top=st.integers(1, 12))
def test_a_search_by_weighted_bits_is_that_of_sorting_all(seed, n_queries, top):
    rng = np.random.default_rng(seed)
    table = table_of(rng, 15, 4)
    queries = rng.integers(0, 256, (n_queries, 4), np.uint8)
    weights = [rng.random(32).astype(np.float32) * 2, None][:n_queries]
    costs = Costs(weights)
    mask = rng.random(15) < 0.8
    hits = search_objects(queries, table, top=top, mask=mask, apart=False, costs=costs)
    wanted = []
    for row in range(15):
        own = table.region_codes[table.offsets[row] : table.offsets[row + 1]]
        if len(own) and mask[row]:
            distances = asymmetric_distances(queries, weights, own)
            wanted.append((int(distances.min(1).sum()), row))
    assert [(hit.distance, hit.index) for hit in hits] == sorted(wanted)[:top]
    for hit in hits:
        assert sum(match.distance for match in hit.matches) == hit.distance
    united = united_hamming(queries, table.region_codes, table.offsets, costs)
    assert {row: int(united[row]) for _, row in wanted} == {row: d for d, row in wanted}
    # Regions of their own cost at least as much, and matches are different regions.
    apart = search_objects(queries, table, top=15, mask=mask, costs=costs)
    least = {row: d for d, row in wanted}
    assert all(hit.distance >= least[hit.index] for hit in apart)


def test_words_that_are_sure_of_a_bit_are_farther_from_its_opposite():
    activations = np.array([[4.0, -0.1, 0.1, -3.8, 0, 0, 0, 0]], np.float32)
    query = pack_signs(activations)
    weights = [np.abs(activations[0]) / np.abs(activations[0]).mean()]
    bits = np.array([[0, 0, 1, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1, 1, 1]], np.uint8)
    sure, unsure = asymmetric_distances(query, weights, np.packbits(bits, axis=1))[0]
    assert sure > 3 and unsure == 0
    assert hamming_distances(query, np.packbits(bits, axis=1)).tolist() == [[1, 2]]


# -- the search -----------------------------------------------------------------------------------


def expected(folder, words):
    """Id and distance of each picture, nearest first: from the stored codes and arrays."""
    model, _ = load_runtime(folder)
    table = open_codes(folder).compact().table
    tokens = [WORDS.index(word) + 2 for word in words.split()]
    vector = word_vectors()[tokens + [0] * (12 - len(tokens))].mean(0)
    activations = model.activations((vector / np.linalg.norm(vector))[None])[0]
    weights = np.abs(activations) / np.abs(activations).mean()
    bits = np.unpackbits(table.region_codes, axis=1)
    cost = np.rint((bits != (activations >= 0)) @ weights)
    least = np.minimum.reduceat(cost, table.offsets[:-1])
    order = np.argsort(least, kind="stable")
    return [(table.ids[row], int(least[row])) for row in order]


@pytest.mark.parametrize("words", ["red cat", "a chair", "blue"])
def test_pictures_come_in_the_order_of_their_nearest_region(worded, words):
    with Collection.open(worded) as opened:
        found = opened.search(text=words)
    got = [(hit.id, hit.distance) for hit in found.hits]
    wanted = expected(worded, words)
    for (_, ours), (_, theirs) in zip(got, wanted, strict=True):
        assert abs(ours - theirs) <= 1  # a sum near a half
    assert found.mode == "objects" and all(len(hit.matches) == 1 for hit in found.hits)


def test_the_command_takes_words_alone_and_beside_a_box(worded, photos, tmp_path):
    record = json.loads(run("search", worded, "--text", "red cat", "--json").stdout)
    assert record["mode"] == "objects" and record["queries"] == [{"text": "red cat"}]
    assert len(record["hits"]) == 6 and record["hits"][0]["matches"][0]["box"]
    words = ("search", worded, "--query", f"{photos / '2.png'}@5,5,80,90", "--text", "a dog")
    both = json.loads(run(*words, "--json", "--sheet", tmp_path / "s.html").stdout)
    assert [len(hit["matches"]) for hit in both["hits"]] == [2] * 6
    assert both["queries"][1] == {"text": "a dog"}
    assert "\u201ca dog\u201d" in (tmp_path / "s.html").read_text()
    run("search", worded, "--text", "dog", "--sheet", tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size
    two = json.loads(run("search", worded, "--text", "cat", "--text", "dog", "--json").stdout)
    assert [len(hit["matches"]) for hit in two["hits"]] == [2] * 6


def test_filters_and_pages_hold_for_words(worded):
    with Collection.open(worded) as opened:
        every = opened.search(text="green chair").hits
        page = opened.search(text="green chair", limit=2, offset=2)
        assert [hit.id for hit in page.hits] == [hit.id for hit in every[2:4]] and page.more


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--text", " "), "text must be words in Unicode"),
        (("--text", "cat", "--mode", "region"), "must be objects for words"),
        (("--text", "cat", "--mode", "image"), "must be objects for words"),
        (("--text", "cat", "--steps", "exact"), "must be objects for words"),
        ((), "nothing to search by: give --query or --text"),
    ],
)
def test_bad_words_are_one_line(worded, words, message):
    assert message in error_of("search", worded, *words)


def test_words_exclude_marks_and_are_not_excluded():
    with pytest.raises(ValueError, match="one of an image, the id of a picture"):
        Query("a.png", text="cat")
    with pytest.raises(ValueError, match="words are one object, without boxes"):
        Query(text="cat", boxes=[(1, 1, 2, 2)])
    with pytest.raises(ValueError, match="exclude takes pictures, not words"):
        Search([Query("a.png")], exclude=[Query(text="cat")], mode="objects")


def test_a_model_without_words_says_what_it_needs(saved, photos, worded, tmp_path):
    run("encode", saved.folder, photos, "-o", tmp_path / "codes.h5", "--workers", 0)
    said = error_of("search", tmp_path / "codes.h5", "--text", "cat")
    assert "has no words: it needs an encoder with a text tower" in said
    (tmp_path / "plain").mkdir()
    spec = f"onnx:{write_encoder(tmp_path / 'plain')}"
    run("index", photos, "-o", tmp_path / "i", "--encoder", spec, *SMALL)
    assert "has no words: it needs a text tower, as CLIP" in error_of(
        "search", tmp_path / "i", "--text", "cat"
    )


# -- the service and the page ---------------------------------------------------------------------


def test_the_service_searches_by_words(worded, photos, tmp_path):
    with TestClient(create_app(worded), base_url="http://localhost") as client:
        assert client.get("/api/collection").json()["words"] is True

        def search(*queries):
            return client.post("/api/search", json={"queries": queries})

        found = search({"text": "red cat"}).json()
        assert [hit["distance"] for hit in found["hits"]] == pytest.approx(
            [distance for _, distance in expected(worded, "red cat")], abs=1
        )
        row = found["hits"][0]["row"]
        mixed = search({"image": row, "boxes": [[5, 5, 60, 60]]}, {"text": "a dog"}).json()
        assert mixed["mode"] == "objects" and len(mixed["hits"][0]["matches"]) == 2
        for wrong in ({"text": "cat", "image": row}, {}, {"text": ""}, {"text": "x" * 501}):
            assert search(wrong).status_code == 422
        assert search({"text": "cat", "boxes": [[1, 1, 9, 9]]}).status_code == 422
        assert search({"text": "  "}).status_code in (400, 422)


def test_a_service_without_words_refuses_them(drh_collection):
    with TestClient(create_app(drh_collection), base_url="http://localhost") as client:
        assert client.get("/api/collection").json()["words"] is False
        answer = client.post("/api/search", json={"queries": [{"text": "cat"}]})
        assert answer.status_code in (400, 422) and "has no words" in answer.json()["detail"]
