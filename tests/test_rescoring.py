"""Ranking the best again by more than bits: against slow loops, and as a user asks for it."""

import json
import shutil
import sqlite3
import zlib
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from cli_runner import error_of, run
from regionhash.codes import pack_directions
from regionhash.collection import Collection
from regionhash.collection.database import COLUMNS, DATABASE_FILE, Database
from regionhash.collection.folders import PICTURES
from regionhash.data.images import read_image
from regionhash.models.encoding import encode_boxes, encode_picture
from regionhash.search.request import Filter, Query, RequestError, Search
from regionhash.search.steps import search_in_steps
from regionhash.service.app import create_app
from regionhash.structures import CodeTable
from tiny_encoders import write_encoder

BOX = (10.0, 5.0, 60.0, 40.0)
SMALL = ("--bits", 64, "--short", 64, "--workers", 0)


@pytest.fixture(scope="module", params=["backbone", "encoder"])
def kept(request, photos, tmp_path_factory):
    """A collection of the six photos that keeps floats, by torch and by an encoder."""
    folder = tmp_path_factory.mktemp("kept")
    model = ("--backbone", "tiny_fpn", "--weights", "none")
    if request.param == "encoder":
        model = ("--encoder", f"onnx:{write_encoder(folder)}", "--regions", "map")
    run("index", photos, "-o", folder / "c", "--keep-floats", *model, *SMALL)
    return folder / "c"


def found(codes, photos, *options):
    mark = ("--query", photos / "1.png", "--box", ",".join(map(str, BOX)))
    return json.loads(run("search", codes, *mark, "--json", *options).stdout)


# Steps


def table_of(rng, n=12):
    """Pictures with 0 to 4 regions, of which some are equal."""
    lengths = rng.integers(0, 5, n)
    m = int(lengths.sum())
    features = rng.integers(-3, 4, (m, 4)).astype(np.float32)
    return CodeTable(
        ids=[f"p{row}" for row in range(n)],
        sizes=np.full((n, 2), 100, np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        boxes=np.arange(4 * m, dtype=np.float32).reshape(m, 4),
        scores=rng.random(m, np.float32),
        labels=rng.integers(-1, 3, m),
        region_codes=rng.integers(0, 8, (m, 2), np.uint8),
        region_features=pack_directions(features),
    )


def slow_ranking(table, candidates, distance):
    """Candidates by the least distance of a region, in their order if equal."""
    ranked = []
    for row in candidates:
        regions = range(*table.offsets[row : row + 2])
        best = min(regions, key=distance)
        ranked.append((row, distance(best), best))
    return sorted(ranked, key=lambda entry: entry[1])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 14), st.integers(1, 14), st.booleans())
def test_steps_rank_the_candidates_as_a_slow_loop_does(seed, candidates, top, floats):
    rng = np.random.default_rng(seed)
    table, mask = table_of(rng), rng.random(12) < 0.8
    query, weights = rng.integers(0, 8, 2, np.uint8), rng.integers(1, 5, 16).astype(np.float32)
    features = rng.integers(-3, 4, 4).astype(np.float32)
    features[0] += 0.5  # not zero
    bits = np.unpackbits(query)

    def hamming(item):
        return int((np.unpackbits(table.region_codes[item]) != bits).sum())

    def weighted(item):
        return float(weights[np.unpackbits(table.region_codes[item]) != bits].sum())

    def angle(item):
        other = table.region_features[item].astype(np.float64)
        lengths = np.linalg.norm(other) * np.linalg.norm(features)
        cosine = other @ features / lengths if lengths else 0.0
        # rounded, since regions of one direction may differ in the last digit
        return round(16 * float(np.arccos(np.clip(cosine, -1, 1))) / np.pi, 3)

    rows = [row for row in range(12) if mask[row] and table.offsets[row] < table.offsets[row + 1]]
    first = [row for row, _, _ in slow_ranking(table, rows, hamming)][:candidates]
    wanted = slow_ranking(table, first, angle if floats else weighted)[:top]
    hits = search_in_steps(
        table,
        ("exact", "floats" if floats else "asymmetric"),
        region_query=query,
        weights=weights,
        features=features,
        candidates=candidates,
        top=top,
        mask=mask,
    )
    assert len(hits) == len(wanted)
    if not floats:
        assert [hit.index for hit in hits] == [row for row, _, _ in wanted]
    for hit, (_, distance, _) in zip(hits, wanted, strict=True):
        assert abs(hit.distance - distance) <= 0.51
        (match,) = hit.matches
        (item,) = np.flatnonzero((table.boxes == match.box).all(1))
        own = (angle if floats else weighted)(item)
        assert abs(own - distance) < 2e-3 and match.distance == hit.distance
        assert table.offsets[hit.index] <= item < table.offsets[hit.index + 1]


def test_a_table_without_features_has_no_step_floats():
    table = table_of(np.random.default_rng(0))
    bare = CodeTable(
        table.ids,
        table.sizes,
        offsets=table.offsets,
        boxes=table.boxes,
        scores=table.scores,
        labels=table.labels,
        region_codes=table.region_codes,
    )
    query = np.zeros(2, np.uint8)
    with pytest.raises(ValueError, match="these codes have no floats beside them"):
        search_in_steps(bare, ("exact", "floats"), region_query=query, features=np.ones(4))
    with pytest.raises(ValueError, match="step asymmetric needs a code of the query, or what"):
        search_in_steps(table, ("exact", "asymmetric"), region_query=query)


# Requests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rescore": "bytes"}, "rescore must be one of asymmetric, floats, got 'bytes'"),
        ({"rescore": "floats", "mode": "objects"}, r"rescore needs .*\(mode region\), got objects"),
        ({"rescore": "floats", "context": 0.5}, "context needs the step exact alone, got floats"),
        ({"steps": ["global"], "rescore": "floats"}, "step floats cannot follow global"),
        ({"candidates": 5}, "candidates needs several steps"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Search([Query("a.png", boxes=[BOX])], **options)


def test_several_objects_are_refused():
    with pytest.raises(RequestError, match="rescore takes one picture with at most one box"):
        Search([Query("a.png", boxes=[BOX, BOX])], rescore="asymmetric")
    with pytest.raises(RequestError, match=r"rescore needs .* got objects"):
        Search([Query("a.png"), Query("b.png")], rescore="asymmetric")
    with pytest.raises(RequestError, match="rescore takes a picture; the bits of words are"):
        Search([Query(text="a cat")], rescore="asymmetric")


# A collection


def features_of(collection, photos, name=None):
    """What the model gives for the regions of a photo, or for the box in the first one."""
    model, checkpoint = collection.model
    if name is None:
        boxes = np.array([BOX], np.float32)
        return encode_boxes(model, checkpoint, read_image(photos / "1.png"), boxes)
    return encode_picture(model, checkpoint, read_image(photos / name)).regions


def test_floats_rank_as_a_slow_loop_over_all_features_does(kept, photos):
    with Collection.open(kept) as collection:
        (query,) = features_of(collection, photos).features
        angles = {}
        for name in collection.snapshot.table.ids:
            others = features_of(collection, photos, name).features
            cosines = others @ query / np.linalg.norm(others, axis=1) / np.linalg.norm(query)
            angles[name] = float(np.arccos(np.clip(cosines, -1, 1)).min() / np.pi)
    hits = found(kept, photos, "--rescore", "floats")["hits"]
    assert found(kept, photos, "--rescore", "floats")["steps"] == ["exact", "floats"]
    assert len(hits) == 6
    ranked = [angles[hit["picture"]] for hit in hits]
    np.testing.assert_allclose(ranked, sorted(angles.values()), atol=0.01)  # int8
    for hit in hits:
        assert abs(hit["distance"] - 64 * angles[hit["picture"]]) < 1.2
        assert hit["matches"][0]["distance"] == hit["distance"]


def test_asymmetric_weighs_the_bits_of_the_query(kept, photos):
    with Collection.open(kept) as collection:
        regions, table = features_of(collection, photos), collection.snapshot.table
        model, _ = collection.model
        (sure,) = np.abs(model.activations_of(regions.features))
        assert np.packbits(model.activations_of(regions.features)[0] >= 0).tolist() == (
            regions.codes[0].tolist()
        )
    differ = np.unpackbits(table.region_codes ^ regions.codes[0], axis=1)
    least = np.minimum.reduceat(differ @ sure / sure.mean(), table.offsets[:-1])
    hits = found(kept, photos, "--rescore", "asymmetric")["hits"]
    wanted = dict(zip(table.ids, least.tolist(), strict=True))
    np.testing.assert_allclose([wanted[hit["picture"]] for hit in hits], sorted(least), atol=1e-3)
    assert all(abs(hit["distance"] - wanted[hit["picture"]]) <= 0.51 for hit in hits)


def test_pages_filters_removals_and_near_duplicates_work_with_it(kept, photos, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "c")
    whole = [hit["picture"] for hit in found(folder, photos, "--rescore", "floats")["hits"]]
    pages = [
        [hit["picture"] for hit in found(folder, photos, "--rescore", "floats", *page)["hits"]]
        for page in (("--top", 2), ("--top", 2, "--offset", 2), ("--top", 4, "--offset", 4))
    ]
    assert [*chain(*pages)] == whole
    run("remove", folder, whole[1])
    rest = [hit["picture"] for hit in found(folder, photos, "--rescore", "floats")["hits"]]
    assert rest == [name for name in whole if name != whole[1]]
    few = found(folder, photos, "--rescore", "floats", "--candidates", 3)["hits"]
    plain = [hit["picture"] for hit in found(folder, photos, "--mode", "region")["hits"]]
    assert {hit["picture"] for hit in few} == set(plain[:3])
    with Collection.open(folder) as collection:
        nowhere = Search(
            [Query(photos / "1.png", boxes=[BOX])], rescore="floats", filter=Filter(folder="/none")
        )
        assert collection.find(nowhere).hits == ()
        folded = Search([Query(photos / "1.png", boxes=[BOX])], rescore="floats", group_within=64)
        (hit,) = collection.find(folded).hits
        assert hit.image_id == rest[0] and len(hit.duplicates) == 4
        by_id = Search([Query(image_id=rest[0], regions=[0])], rescore="floats")
        assert collection.find(by_id).hits[0].image_id == rest[0]
        assert collection.find(by_id).hits[0].distance == 0
        with pytest.raises(RequestError, match="asymmetric needs the pixels of the query: mark"):
            collection.find(Search([Query(image_id=rest[0], regions=[0])], rescore="asymmetric"))


def test_without_floats_it_is_said_how_to_get_them(drh_collection, photo_collection, photos):
    query = ("--query", photos / "1.png", "--box", "10,5,60,40")
    text = error_of("search", drh_collection, *query, "--rescore", "floats")
    assert "--rescore floats needs features beside the codes" in text
    assert "index --keep-floats" in text
    assert len(found(drh_collection, photos, "--rescore", "asymmetric")["hits"]) == 6
    text = error_of("search", photo_collection, *query, "--rescore", "asymmetric")
    assert "--rescore asymmetric needs more than bits of the query, and region-dh" in text


def test_an_index_keeps_floats_from_its_first_picture_on(kept, drh_collection, photos, tmp_path):
    folder = shutil.copytree(drh_collection, tmp_path / "drh")
    text = error_of("index", photos, "-o", folder, "--keep-floats")
    assert "keeps no floats beside its codes; give another folder" in text
    folder = shutil.copytree(kept, tmp_path / "c")
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "2.png", tmp_path / "more" / "again.png")
    with Collection.open(folder) as collection:
        collection.remove(["2.png"])
    run("add", folder, tmp_path / "more", "--workers", 0, "--again")
    assert json.loads(run("info", folder, "--json").stdout)["floats"] is True
    with Collection.open(folder) as collection:
        table = collection.codes().compact().table
        assert table.region_features.shape == (len(table.boxes), table.region_features.shape[1])
        row = table.ids.index("again.png")
        expected = pack_directions(features_of(collection, photos, "2.png").features)
        assert table.regions(row).features.tolist() == expected.tolist()
    assert json.loads(run("check", folder, "--json").stdout)["problems"] == []


def test_a_code_file_takes_the_floats_along(kept, photos, tmp_path):
    run("export", kept, "-o", tmp_path / "all.h5")
    copy = tmp_path / "copy"
    run("import", copy, tmp_path / "all.h5")
    hits = found(tmp_path / "all.h5", photos, "--rescore", "floats", "--model", kept)["hits"]
    assert hits == found(kept, photos, "--rescore", "floats")["hits"]
    assert hits == found(copy, photos, "--rescore", "floats")["hits"]


def test_a_database_of_before_is_opened_and_its_rows_are_intact(drh_collection, tmp_path):
    folder = shutil.copytree(drh_collection, tmp_path / "c")
    with sqlite3.connect(folder / DATABASE_FILE) as connection:
        connection.execute("ALTER TABLE images DROP COLUMN region_features")
        names = [name for name in COLUMNS if name != "region_features"]
        others = [name for name in names if name not in ("id", "path")]
        connection.execute(PICTURES.format(others=", ".join([*others, "checksum"])))
        query = f"SELECT {', '.join(names)}, checksum FROM pictures"
        for *values, known in connection.execute(query):
            facts, blobs = values[:12], values[12:]  # as it was before there was that column
            lengths = [-1 if blob is None else len(blob) for blob in blobs]
            content = f"{facts}{lengths}".encode() + b"".join(filter(None, blobs))
            assert zlib.crc32(content) == known
    connection.close()
    assert json.loads(run("check", folder, "--json").stdout)["problems"] == []
    with Collection.open(folder) as collection:
        assert len(collection) == 6


def test_a_rebuilt_header_still_keeps_floats(kept, photos, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "c")
    with Database(folder / DATABASE_FILE) as database:
        before = database.header
    with sqlite3.connect(folder / DATABASE_FILE) as connection:
        connection.execute("UPDATE about SET header = 'x'")
    connection.close()
    run("check", folder, "--repair")
    with Database(folder / DATABASE_FILE) as database:
        assert database.keeps_floats and database.header["rows"] == before["rows"]
    assert found(folder, photos, "--rescore", "floats")["hits"]


# The service


def test_the_service_ranks_again(kept, drh_collection, photos):
    body = {"queries": [{"image": 1, "boxes": [BOX]}], "rescore": "floats", "candidates": 4}
    with TestClient(create_app(kept), base_url="http://localhost") as client:
        assert client.get("/api/collection").json()["has_floats"] is True
        hits = client.post("/api/search", json=body).json()["hits"]
        plain = client.post("/api/search", json=body | {"rescore": None, "candidates": None})
        assert len(hits) == 4 and len(plain.json()["hits"]) == 6
    with TestClient(create_app(drh_collection), base_url="http://localhost") as client:
        assert client.get("/api/collection").json()["has_floats"] is False
        answer = client.post("/api/search", json=body)
        assert answer.status_code == 422
        assert "rescore floats needs features beside the codes" in answer.json()["detail"]
