"""The service as programs use it and misuse it."""

import asyncio
import io
import json
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import traceback
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from pydantic import TypeAdapter
from pydantic_core import to_json

import costly_pictures as costly
from cli_runner import error_of, run
from conftest import collect, write_picture
from regionhash.collection import Collection, Query, database
from regionhash.collection.thumbnails import THUMBNAILS_FILE
from regionhash.data.images import ImageError, read_image
from regionhash.models.encoding import encode_picture
from regionhash.service import Limits, create_app, state
from regionhash.service.encoder import BatchedModel, EncoderError
from regionhash.service.messages import SearchOut
from regionhash.store import StoreError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

TOKEN = {"Authorization": "Bearer secret"}
HOME = "http://127.0.0.1:8000"
HOST = {"Host": "127.0.0.1"}
HEAVY = {"near": 0}
"""Makes a search one that does not share a pass."""


@pytest.fixture(scope="module")
def client(photo_collection):
    """Of the six photos, without a token."""
    with TestClient(create_app(photo_collection), base_url=HOME) as client:
        yield client


@pytest.fixture
def changeable(photo_collection, tmp_path):
    """Folder and client of a collection that may be changed, with a token and small limits."""
    others = shutil.ignore_patterns(f"{THUMBNAILS_FILE}*")  # made by other tests
    folder = shutil.copytree(photo_collection, tmp_path / "changed", ignore=others)
    limits = Limits(upload_bytes=200_000, pixels=100_000)
    with TestClient(create_app(folder, token="secret", limits=limits), base_url=HOME) as client:
        yield folder, client


def test_a_service_answers_while_its_arrays_wait_to_be_compacted(
    photo_collection, tmp_path, monkeypatch
):
    folder = shutil.copytree(photo_collection, tmp_path / "compacted")
    compact, allowed = Collection.compact, threading.Event()

    def once_allowed(self):
        assert threading.current_thread().name == "compactor"  # never in a request
        if allowed.is_set():
            compact(self)

    monkeypatch.setattr(Collection, "compact", once_allowed)
    monkeypatch.setattr(state, "COMPACT_SECONDS", 0.05)
    with TestClient(create_app(folder, token="secret"), base_url=HOME) as client:

        def generation():
            return json.loads((folder / "arrays" / "state.json").read_text())["generation"]

        def found():
            return sorted(hit["row"] for hit in search(client, {"image": 6})["hits"])

        before = generation()
        for row in (1, 2, 3):
            assert client.delete(f"/api/images/{row}", headers=TOKEN).status_code == 204
            assert row not in found()
        assert generation() == before
        allowed.set()
        until = time.monotonic() + 60
        while generation() == before and time.monotonic() < until:
            time.sleep(0.05)
        assert generation() != before
        assert found() == [4, 5, 6]


def png(width=60, height=50, seed=0):
    stream = io.BytesIO()
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def problem(answer, status):
    """The detail of an answer that must be a problem of this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    record = answer.json()
    assert record["status"] == status and record["title"]
    return record["detail"]


def soon(is_so, seconds=10):
    """Waits until something is so."""
    until = time.monotonic() + seconds
    while not is_so() and time.monotonic() < until:
        time.sleep(0.02)
    assert is_so()


def search(client, *queries, **wanted):
    answer = client.post("/api/search", json={"queries": list(queries), **wanted})
    assert answer.status_code == 200, answer.text
    return answer.json()


# Searching


def test_what_is_served_is_told(client):
    record = client.get("/api/collection").json()
    assert (record["pictures"], record["model"], record["can_change"]) == (6, "region-dh", False)
    assert client.get("/health").json() == {"status": "ok", "pictures": 6}
    assert client.get("/").text.startswith("<!doctype html>")


def test_the_answer_is_that_of_the_collection(client, photo_collection, photos):
    sent = client.post("/api/uploads", files={"file": (photos / "2.png").read_bytes()}).json()
    box = [10.0, 10.0, 90.0, 70.0]
    with Collection.open(photo_collection) as collection:
        for query, wanted in (
            ({"upload": sent["upload"]}, collection.search(photos / "2.png")),
            (
                {"upload": sent["upload"], "boxes": [box]},
                collection.search(photos / "2.png", boxes=[box]),
            ),
            ({"image": 3, "regions": [1]}, collection.search(like="2.png", regions=[1])),
            ({"image": 3, "boxes": [box]}, collection.search(like="2.png", boxes=[box])),
        ):
            found = search(client, query)
            assert [(hit["id"], hit["distance"]) for hit in found["hits"]] == [
                (hit.id, hit.distance) for hit in wanted.hits
            ]
            assert [tuple(match["box"]) for hit in found["hits"] for match in hit["matches"]] == [
                match.box for hit in wanted.hits for match in hit.matches
            ]
    both = search(client, {"image": 3, "regions": [0]}, {"upload": sent["upload"], "regions": [1]})
    assert both["mode"] == "objects" and len(both["hits"][0]["matches"]) == 2


@pytest.fixture
def light_batches(monkeypatch):
    """The numbers of light searches that ran together; they run once `release` is set."""
    sizes, release, together = [], threading.Event(), state.run_together

    def held(searches):
        assert release.wait(20)
        sizes.append(len(searches))
        return together(searches)

    monkeypatch.setattr(state, "run_together", held)
    return sizes, release


def test_searches_that_wait_share_a_pass_and_have_the_answers_of_the_collection(
    light_batches, photo_collection, monkeypatch
):
    monkeypatch.setattr(state.os, "cpu_count", lambda: 2)  # one thread for light searches
    sizes, release = light_batches
    rows, regions = range(1, 8), range(2)  # there is no row 7
    asked = [{"image": row, "regions": [region]} for row in rows for region in regions]
    asked += [{"image": 1}, {"image": 1, "regions": [99]}]
    with (
        TestClient(create_app(photo_collection), base_url=HOME) as client,
        ThreadPoolExecutor(len(asked)) as pool,
        Collection.open(photo_collection) as photos,
    ):
        passes = client.app.state.service._passes

        def ask(query):
            return client.post("/api/search", json={"queries": [query], "limit": 3})

        answers = [pool.submit(ask, asked[0])]
        soon(lambda: passes.running == 1)  # alone, whatever else the machine does
        answers += [pool.submit(ask, query) for query in asked[1:]]
        soon(lambda: len(passes._waiting) == len(asked) - 1)
        release.set()
        for query, future in zip(asked, answers, strict=True):
            answer, regions = future.result(), query.get("regions", ())
            if query["image"] == 7 or regions == [99]:
                problem(answer, 404 if query["image"] == 7 else 422)
                continue
            wanted = photos.search(image_id=query["image"], regions=regions, limit=3)
            found = answer.json()
            assert found["more"] is wanted.more and found["searched"] == wanted.searched
            assert [
                (hit["row"], hit["id"], (hit["height"], hit["width"]), hit["distance"])
                for hit in found["hits"]
            ] == [(hit.row, hit.id, hit.size, hit.distance) for hit in wanted.hits]
            assert [
                (tuple(match["box"]), match["distance"], match["score"])
                for hit in found["hits"]
                for match in hit["matches"]
            ] == [
                (match.box, match.distance, match.score)
                for hit in wanted.hits
                for match in hit.matches
            ]
            assert [tuple(hit["classes"]) for hit in found["hits"]] == [
                hit.classes for hit in wanted.hits
            ]
    assert sizes == [1, len(asked) - 1]


def test_light_searches_do_not_wait_for_heavy_ones(photo_collection, monkeypatch):
    app, release = create_app(photo_collection), threading.Event()
    collection = app.state.service.collection
    monkeypatch.setattr(collection, "results", lambda *_, **__: release.wait(20))
    with TestClient(app, base_url=HOME) as client, ThreadPoolExecutor(8) as pool:
        query = {"queries": [{"image": 1}]}
        heavy = [pool.submit(client.post, "/api/search", json=query | HEAVY) for _ in range(8)]
        soon(lambda: app.state.service.running)
        assert client.post("/api/search", json=query).status_code == 200
        assert not any(asked.done() for asked in heavy)
        release.set()


@pytest.mark.parametrize("near", [None, 64])
def test_the_answer_is_as_described(client, near):
    answer = client.post("/api/search", json={"queries": [{"image": 1}], "near": near})
    found = TypeAdapter(SearchOut).validate_json(answer.content)
    assert json.loads(to_json(found)) == answer.json()
    assert any(hit["duplicates"] for hit in found["hits"]) is (near is not None)


def test_scores_that_mean_nothing_are_null_and_no_filter(drh_collection, photos):
    with TestClient(create_app(drh_collection), base_url=HOME) as client:
        assert client.get("/api/collection").json()["has_scores"] is False
        sent = client.post("/api/uploads", files={"file": (photos / "2.png").read_bytes()}).json()
        for regions in (sent["regions"], client.get("/api/images/1").json()["regions"]):
            assert {(own["label"], own["score"]) for own in regions} == {(None, None)}
        for query in ({"upload": sent["upload"], "boxes": [[5, 5, 60, 60]]}, {"image": 1}):
            found = search(client, query, filter={"min_score": 0})["hits"]
            matches = [match for hit in found for match in hit["matches"]]
            assert all((match["label"], match["score"]) == (None, None) for match in matches)
        body = {"queries": [{"image": 1}], "filter": {"min_score": 0.5}}
        said = problem(client.post("/api/search", json=body), 422)
        assert "min_score needs scores of detected classes" in said


def test_scores_of_a_model_that_has_them_stay(client):
    assert client.get("/api/collection").json()["has_scores"] is True
    regions = client.get("/api/images/1").json()["regions"]
    assert all(own["label"] is not None and 0 < own["score"] < 1 for own in regions)


def test_probabilities_that_mean_nothing_are_null_and_no_limit(certain_collection):
    with TestClient(create_app(certain_collection), base_url=HOME) as client:
        groups = search(client, {"image": 1}, mode="category")["groups"]
        assert [(own["category"], own["prob"]) for own in groups] == [
            ("cat", None),
            ("dog", None),
            ("cow", None),
        ]
        body = {"queries": [{"image": 1}], "mode": "category", "min_prob": 0.5}
        said = problem(client.post("/api/search", json=body), 422)
        assert "min_prob needs probabilities of categories" in said


def test_a_box_that_is_cut_off_is_noted(client):
    found = search(client, {"image": 1, "boxes": [[-20, 10, 80, 50]]})
    (note,) = found["notes"]
    assert note.startswith("picture 1: box -20,10,80,50: 20% of it lies outside of the picture")
    assert found["boxes"] == [[[0, 10, 80, 50]]]
    assert search(client, {"image": 1})["notes"] == []


def test_each_object_has_a_region_of_its_own_unless_they_are_shared(cups, photos):
    with TestClient(create_app(cups), base_url=HOME) as client:
        sent = client.post("/api/uploads", files={"file": (photos / "2.png").read_bytes()}).json()
        query = {"upload": sent["upload"], "boxes": [[20, 30, 90, 100]] * 2}
        found = search(client, query)["hits"]
        assert [(hit["id"], hit["distance"]) for hit in found] == [
            ("two.png", 1),
            ("nested.png", 16),
            ("one.png", 16),
        ]
        without = {"box": None, "distance": 16, "label": None, "score": None}
        assert found[1]["matches"][1] == found[2]["matches"][1] == without
        shared = search(client, query, assignment="shared")["hits"]
        assert [(hit["id"], hit["distance"]) for hit in shared] == [
            ("nested.png", 0),
            ("one.png", 0),
            ("two.png", 0),
        ]
        body = {"queries": [query], "assignment": "own"}
        assert "assignment" in problem(client.post("/api/search", json=body), 422)


def test_objects_that_must_not_be_there_are_left_out(client, photo_collection):
    unwanted = {"image": 3, "regions": [1]}
    found = search(client, {"image": 2, "regions": [0]}, without=[unwanted], within=3)
    with Collection.open(photo_collection) as collection:
        wanted = collection.search(
            like="1.png", regions=[0], without=[Query(like="2.png", regions=[1])], within=3
        )
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in wanted.hits]
    assert [[tuple(box) for box in boxes] for boxes in found["without"]] == [
        list(boxes) for boxes in wanted.without
    ]
    assert len(found["hits"]) < 6


def test_categories_are_answered_one_by_one(client, category_collection):
    assert not client.get("/api/collection").json()["by_category"]
    with TestClient(create_app(category_collection), base_url=HOME) as other:
        assert other.get("/api/collection").json()["by_category"]
        found = search(other, {"image": 4}, mode="category", limit=2)
    with Collection.open(category_collection) as collection:
        wanted = collection.search(like="3.png", mode="category", limit=2)
    assert (found["hits"], found["more"]) == ([], wanted.more)
    assert [
        (group["category"], group["prob"], [hit["id"] for hit in group["hits"]])
        for group in found["groups"]
    ] == [(group.category, group.prob, [hit.id for hit in group.hits]) for group in wanted.groups]


def test_codes_of_categories_are_announced_once_there_are_some(category_collection, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    for path in category_collection.glob("model.*"):
        shutil.copy(path, folder)
    Collection.create(folder).close()
    with TestClient(create_app(folder, token="secret"), base_url=HOME) as client:
        assert not client.get("/api/collection").json()["by_category"]
        added = client.post("/api/images", files={"file": png()}, headers=TOKEN)
        assert added.status_code == 201
        assert client.get("/api/collection").json()["by_category"]


def test_pages_and_lists_follow_one_another(client):
    rows, after = [], 0
    while after is not None:
        record = client.get(f"/api/images?limit=4&after={after}").json()
        rows += [image["row"] for image in record["images"]]
        after = record["next"]
    assert rows == [1, 2, 3, 4, 5, 6]
    first, second = (search(client, {"image": 1}, limit=3, offset=n) for n in (0, 3))
    assert first["more"] and not second["more"]
    assert len({hit["row"] for page in (first, second) for hit in page["hits"]}) == 6


def test_thumbnails_are_small_jpegs(client):
    answer = client.get("/api/images/1/picture?size=100")
    assert answer.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(answer.content)).size) == 160


def test_pictures_asked_for_at_once_share_a_batch(saved, photos):
    images = [read_image(photos / "0.png")] * 4
    sizes = []
    model = BatchedModel(saved.model, on_batch=sizes.append)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: encode_picture(model, saved.checkpoint, image), images))
    model.close()
    alone = encode_picture(saved.model, saved.checkpoint, images[0])
    for encoded in found:
        np.testing.assert_array_equal(encoded.image_code, alone.image_code)
    assert sum(sizes) == 4 and max(sizes) > 1


class Odd:
    """Stands around a model; goes wrong in one way or another."""

    def __init__(self, model):
        self._model, self.wrong = model, None

    def __getattr__(self, name):
        return getattr(self._model, name)

    def encode(self, images):
        if self.wrong == "raises":
            raise RuntimeError("out of memory")
        results = self._model.encode(images)
        return results[:-1] if self.wrong == "too few" else results


@pytest.mark.timeout(20)
def test_the_encoder_answers_and_goes_on_whatever_goes_wrong(saved, photos):
    image, odd, counted = read_image(photos / "0.png"), Odd(saved.model), []

    def on_batch(size):
        counted.append(size)
        if odd.wrong == "count":
            raise OSError("no")

    model = BatchedModel(odd, on_batch=on_batch)
    for odd.wrong, error in (
        ("raises", RuntimeError),
        ("too few", ValueError),
        ("count", OSError),
    ):
        with pytest.raises(error):
            encode_picture(model, saved.checkpoint, image)
        assert model.is_alive
    odd.wrong = None
    assert encode_picture(model, saved.checkpoint, image).image_code is not None
    model.close()
    assert not model.is_alive
    with pytest.raises(EncoderError, match="has stopped"):
        encode_picture(model, saved.checkpoint, image)


def test_prometheus_is_told(client):
    client.get("/health")
    text = client.get("/metrics").text
    assert "regionhash_pictures 6.0" in text
    assert 'regionhash_requests_total{method="GET",route="/health",status="200"}' in text


@pytest.mark.slow
def test_under_load_nothing_fails_and_memory_stays_flat(tmp_path):
    """The benchmark, small and short: in its last third the service takes up nothing more."""
    script = Path(__file__).parents[1] / "benchmarks" / "bench_service.py"
    options = ["--images", "2000", "--clients", "8", "--seconds", "20", "--pause", "0", "--json"]
    command = [sys.executable, script, "--folder", tmp_path / "c", *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    record = json.loads(ran.stdout)["now"]
    assert record["errors"] == 0 and record["requests"] > 100
    means = record["MB not mapped"]["mean of each tenth"]
    assert means[-1] - means[6] <= 8, means


# The page


PAGE = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}


def test_the_page_may_use_its_own_files_alone(client):
    policy = client.get("/").headers["content-security-policy"]
    rules = {name: sources for name, *sources in map(str.split, policy.split(";"))}
    assert "unsafe" not in policy and rules["default-src"] == ["'none'"]
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == ["'self'"]
    for path, media_type in PAGE.items():
        answer = client.get(path)
        assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-content-type-options"] == "nosniff"
        tag = {"If-None-Match": answer.headers["etag"]}
        again = client.get(path, headers=tag)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == answer.headers["etag"]


@pytest.mark.skipif(find_spec("setuptools") is None, reason="needs setuptools")
def test_the_files_of_the_page_are_in_the_wheel(tmp_path):
    root = Path(__file__).parents[1]
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).symlink_to(root / name)
    package = tmp_path / "src" / "regionhash"
    package.mkdir(parents=True)
    (package / "__init__.py").symlink_to(root / "src" / "regionhash" / "__init__.py")
    (package / "service").symlink_to(root / "src" / "regionhash" / "service")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", tmp_path, tmp_path], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        f"regionhash/service/page/{name}" for name in ("index.html", "page.css", "page.js")
    } <= names


# Changing


def test_a_picture_is_added_found_and_removed_behind_the_token(changeable):
    folder, client = changeable
    content = png()
    problem(client.post("/api/images", files={"file": content}), 401)
    problem(client.delete("/api/images/1"), 401)
    added = client.post("/api/images", files={"file": ("a/../b c.png", content)}, headers=TOKEN)
    assert added.status_code == 201
    record = added.json()
    assert record["id"].startswith("uploads/") and record["id"].endswith("-b_c.png")
    again = client.post("/api/images", files={"file": ("x.png", content)}, headers=TOKEN)
    assert again.json() == record
    sent = client.post("/api/uploads", files={"file": content}).json()
    assert search(client, {"upload": sent["upload"]})["hits"][0]["row"] == record["row"]
    assert len(list((folder / "uploads").iterdir())) == 1
    where = f"/api/images/{record['row']}"
    assert client.delete(where, headers=TOKEN).status_code == 204
    hits = search(client, {"upload": sent["upload"]})["hits"]
    assert record["row"] not in [hit["row"] for hit in hits]
    problem(client.get(where), 404)
    problem(client.delete(where, headers=TOKEN), 404)
    assert list((folder / "uploads").iterdir()) == []


def test_what_another_process_removes_is_gone_soon(changeable):
    folder, client = changeable
    with Collection.open(folder) as other:
        other.remove(["2.png"])
    until = time.monotonic() + 5
    while len(search(client, {"image": 1})["hits"]) == 6 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(search(client, {"image": 1})["hits"]) == 5


def test_a_removed_picture_is_nowhere_left(changeable):
    folder, client = changeable
    where = "/api/images/3/picture?size=160"
    first = client.get(where)
    assert first.status_code == 200
    assert first.headers["cache-control"] == "private, no-cache"
    tag = {"If-None-Match": first.headers["etag"]}
    again = client.get(where, headers=tag)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.delete("/api/images/3", headers=TOKEN).status_code == 204
    problem(client.get(where), 404)
    problem(client.get(where, headers=tag), 404)
    with client.app.state.service.opened as opened:
        assert opened._thumbnails.rows() == []
        # What another process removes: never shown, and soon forgotten.
        assert client.get("/api/images/4/picture").status_code == 200
        with Collection.open(folder) as other:
            other.remove_rows([4])
        problem(client.get("/api/images/4/picture"), 404)
        soon(lambda: opened._thumbnails.rows() == [])


def test_a_picture_that_is_removed_while_its_thumbnail_is_made_is_not_shown(
    changeable, monkeypatch
):
    folder, client = changeable
    with client.app.state.service.opened as opened:
        original = opened._decoders.thumbnail

        def slow(*arguments):
            made = original(*arguments)
            with Collection(folder) as other:
                other.remove_rows([4])
            return made

        monkeypatch.setattr(opened._decoders, "thumbnail", slow)
        problem(client.get("/api/images/4/picture"), 404)
        assert opened._thumbnails.rows() == []


def test_a_retired_collection_is_closed_by_the_last_who_holds_it(changeable):
    _, client = changeable
    opened = client.app.state.service.opened
    with opened:
        with opened:
            opened.retire()
        assert opened.model.is_alive
        assert len(opened.collection.search(like="1.png").hits) == 6
    assert not opened.model.is_alive


def test_a_thumbnail_is_of_the_file_as_it_is_now(saved, photos, tmp_path):
    pictures = shutil.copytree(photos, tmp_path / "pictures")
    folder = collect(pictures, saved.folder, tmp_path / "c")
    with TestClient(create_app(folder), base_url=HOME) as client:
        where = "/api/images/1/picture?size=160"
        first = client.get(where)
        write_picture(pictures / "0.png", np.full((50, 60, 3), 200))
        changed = client.get(where, headers={"If-None-Match": first.headers["etag"]})
        assert changed.status_code == 200 and changed.headers["etag"] != first.headers["etag"]
        assert Image.open(io.BytesIO(changed.content)).size == (60, 50)
        (pictures / "0.png").unlink()
        problem(client.get(where, headers={"If-None-Match": changed.headers["etag"]}), 404)


def test_answers_are_kept_by_no_browser(client):
    assert client.get("/api/images/1").headers["cache-control"] == "no-store"


def test_elsewhere_than_on_this_machine_a_token_is_needed(photo_collection):
    with pytest.raises(ValueError, match="requires a token"):
        create_app(photo_collection, loopback=False)
    assert "requires a token" in error_of("serve", photo_collection, "--host", "0.0.0.0")
    app = create_app(photo_collection, token="secret", loopback=False)
    with TestClient(app, base_url="http://example.org") as client:
        for path in ("/api/collection", "/api/images", "/api/images/1/picture", "/metrics"):
            problem(client.get(path), 401)
            problem(client.get(path, headers={"Authorization": "Bearer wrong"}), 401)
        for path in (*PAGE, "/health"):
            assert client.get(path).status_code == 200
        problem(client.post("/api/session"), 401)
        assert client.post("/api/session", headers=TOKEN).status_code == 204
        assert client.get("/api/collection").json()["can_change"]


def test_on_this_machine_the_token_is_for_changes_alone(changeable):
    folder, client = changeable
    cookie = "regionhash_token_8000="
    wrong = [{}, {"Authorization": "Basic secret"}, {"Cookie": "regionhash_token=secret"}]
    for token in ("", "wrong", "secre", "secrets", "SECRET"):
        wrong += [{"Authorization": f"Bearer {token}"}, {"Cookie": cookie + token}]
    wrong += [{"Authorization": "Bearer wrong", "Cookie": cookie + "secret"}]
    for headers in wrong:
        for path in (*PAGE, "/health", "/api/collection", "/api/images", "/api/images/1/picture"):
            assert client.get(path, headers=headers).status_code == 200
        assert not client.get("/api/collection", headers=headers).json()["can_change"]
        answer = client.post("/api/images", files={"file": png()}, headers=headers)
        assert "missing or wrong" in problem(answer, 401)
        assert "missing or wrong" in problem(client.delete("/api/images/1", headers=headers), 401)
        answer = client.post("/api/session", headers=headers)
        assert "missing or wrong" in problem(answer, 401) and "set-cookie" not in answer.headers
    assert len(client.get("/api/images").json()["images"]) == 6
    assert not (folder / "uploads").exists() or not list((folder / "uploads").iterdir())


def test_the_cookie_is_of_one_port_for_half_a_day_and_can_be_given_back(changeable):
    _, client = changeable
    answer = client.post("/api/session", headers=TOKEN)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("regionhash_token_8000=secret;")
    for part in ("HttpOnly", "SameSite=strict", "Max-Age=43200"):
        assert part in cookie
    assert "Secure" not in cookie
    assert client.get("/api/collection").json()["can_change"]
    kept = {"Host": "127.0.0.1:9000", "Cookie": "regionhash_token_8000=secret"}
    assert not client.get("/api/collection", headers=kept).json()["can_change"]
    assert client.delete("/api/session").status_code == 204
    assert not client.get("/api/collection").json()["can_change"]


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "http://127.0.0.1:9000"},
    {"Origin": "https://127.0.0.1:8000"},
    {"Origin": "http://localhost:8000"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": HOME},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:9000"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_pages_of_other_sites_can_change_nothing(changeable, headers):
    _, client = changeable
    assert client.post("/api/session", headers=TOKEN).status_code == 204  # and the cookie is sent
    for method, path in (
        ("POST", "/api/uploads"),
        ("POST", "/api/images"),
        ("POST", "/api/search"),
        ("POST", "/api/session"),
        ("DELETE", "/api/session"),
        ("DELETE", "/api/images/1"),
        ("PUT", "/api/images/1"),
        ("PATCH", "/api/images/1"),
    ):
        assert "another site" in problem(client.request(method, path, headers=headers), 403)
    assert client.get("/api/collection", headers=headers).json()["pictures"] == 6


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": HOME},
        {"Origin": HOME, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_its_own_page_and_other_programs_can(changeable, headers):
    _, client = changeable
    answer = client.post("/api/images", files={"file": png()}, headers=headers | TOKEN)
    assert answer.status_code == 201
    with TestClient(client.app, base_url="http://localhost:8000") as other:
        answer = other.post(
            "/api/uploads", files={"file": png()}, headers={"Origin": "http://localhost:8000"}
        )
        assert answer.status_code == 201


# Health


def test_changes_are_followed_whatever_goes_wrong_meanwhile(changeable, monkeypatch):
    folder, client = changeable
    monkeypatch.setattr(state, "_PAUSE_SECONDS", 0.05)
    with monkeypatch.context() as broken:

        def fail():
            raise MemoryError(f"{folder}: nothing is left")

        broken.setattr(client.app.state.service.collection, "sync", fail)
        soon(lambda: client.get("/health").status_code == 503)
        report = client.get("/health").json()
        assert report["status"] == "failing" and report["reason"].startswith("changes")
        assert str(folder) not in json.dumps(report)
    soon(lambda: client.get("/health").json() == {"status": "ok", "pictures": 6})
    with Collection.open(folder) as other:
        other.remove(["2.png"])
    soon(lambda: client.get("/health").json()["pictures"] == 5)


def test_health_tells_what_no_longer_works(changeable, monkeypatch):
    folder, client = changeable
    service = client.app.state.service
    release = threading.Event()
    monkeypatch.setattr(state, "LATE_SECONDS", 0.5)
    with monkeypatch.context() as stuck:
        stuck.setattr(service.collection, "sync", release.wait)
        soon(lambda: client.get("/health").status_code == 503)
        assert "have not been seen" in client.get("/health").json()["reason"]
    release.set()
    soon(lambda: client.get("/health").status_code == 200)
    shutil.rmtree(folder)
    soon(lambda: client.get("/health").status_code == 503)
    assert client.get("/health").json()["reason"] == "the collection has been moved or deleted"
    with service.opened as opened:
        opened.model.close()
    assert "no longer be encoded" in client.get("/health").json()["reason"]


def test_another_collection_is_waited_for_until_it_is_whole(changeable, monkeypatch, tmp_path):
    folder, client = changeable
    monkeypatch.setattr(state, "_PAUSE_SECONDS", 0.05)
    before = search(client, {"image": 1})
    other = shutil.copytree(folder, tmp_path / "other")
    with Collection.open(other) as changed:
        changed.remove_rows([2])
    (other / "model.json").rename(tmp_path / "model.json")
    folder.rename(tmp_path / "before")
    other.rename(folder)
    soon(lambda: "cannot be opened" in client.get("/health").json().get("reason", ""))
    answer = client.post("/api/search", json={"queries": [{"image": 1}]})
    if answer.status_code == 200:  # of the one before, or none
        assert answer.json() == before | {"seconds": answer.json()["seconds"]}
    else:
        problem(answer, 503)
    (tmp_path / "model.json").rename(folder / "model.json")
    soon(lambda: client.get("/health").json() == {"status": "ok", "pictures": 5})
    assert client.delete("/api/images/1", headers=TOKEN).status_code == 204


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0},
        {"seconds": float("nan")},
        {"body_seconds": 1e9},
        {"connections": 0},
        {"pixels": 10**9},
    ],
)
def test_limits_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Limits(**wrong)


def test_another_collection_in_its_place_is_taken_up(changeable, other_saved, photos, tmp_path):
    folder, client = changeable
    service = client.app.state.service
    sent = client.post("/api/uploads", files={"file": (photos / "0.png").read_bytes()}).json()
    first = client.get("/api/images/1/picture").headers["etag"]
    before = client.get("/api/collection").json()
    with service.opened as opened:
        shutil.rmtree(folder)
        fewer = tmp_path / "fewer"
        fewer.mkdir()
        for n in (5, 4):
            shutil.copy(photos / f"{n}.png", fewer)
        collect(fewer, other_saved.folder, folder)
        soon(lambda: client.get("/health").json() == {"status": "ok", "pictures": 2})
        after = client.get("/api/collection").json()
        assert after["model_hash"] == other_saved.checkpoint.model_hash != before["model_hash"]
        # What was begun with the one before ends with it.
        assert len(opened.collection.search(like="1.png").hits) == 6
        assert opened.model.is_alive
    assert not opened.model.is_alive
    answer = client.get("/api/images/1/picture", headers={"If-None-Match": first})
    assert answer.status_code == 200 and answer.headers["etag"] != first
    answer = client.post("/api/search", json={"queries": [{"upload": sent["upload"]}]})
    assert "upload the picture again" in problem(answer, 404)
    new = client.post("/api/uploads", files={"file": (photos / "0.png").read_bytes()}).json()
    assert len(search(client, {"upload": new["upload"]})["hits"]) == 2


# The event loop


class Watch:
    """What uses SQLite: on the event loop or not. Where `free` is not set, each use waits."""

    def __init__(self):
        self.uses, self.on_loop, self.free = 0, [], threading.Event()
        self.free.set()

    def note(self):
        self.uses += 1
        with suppress(RuntimeError):  # no loop runs in this thread
            asyncio.get_running_loop()
            self.on_loop.append("".join(traceback.format_stack()))
        self.free.wait(5)


@pytest.fixture
def watch(monkeypatch):
    """Watches all connections to databases that are opened from now on."""
    watch = Watch()

    class Watched(database._Connection):
        def __init__(self, *arguments, **options):
            watch.note()
            super().__init__(*arguments, **options)

        def execute(self, *arguments):
            watch.note()
            return super().execute(*arguments)

        def close(self):
            watch.note()
            super().close()

    monkeypatch.setattr(database, "_Connection", Watched)
    return watch


def test_no_route_uses_the_database_on_the_event_loop(watch, changeable):
    _, client = changeable
    for method, path, sent in ROUTES:
        client.request(method, path, headers=TOKEN, **sent)
    assert watch.uses > 0
    assert watch.on_loop == []


def test_requests_that_wait_for_the_database_hold_up_no_others(watch, changeable):
    _, client = changeable
    search(client, {"image": 1})
    waiting = [asked for asked in ROUTES if asked[1] in ("/api/images", "/api/images/1")]
    waiting += [asked for asked in ROUTES if asked[1] == "/api/search"][:1]
    watch.free.clear()
    before = watch.uses
    with ThreadPoolExecutor(len(waiting)) as pool:
        asked = [
            pool.submit(client.request, method, path, headers=TOKEN, **sent)
            for method, path, sent in waiting
        ]
        soon(lambda: watch.uses > before + 1)
        started = time.monotonic()
        for path in (*PAGE, "/health", "/metrics", "/api/collection"):
            assert client.get(path).status_code == 200
        assert time.monotonic() - started < 3
        assert not any(future.done() for future in asked[:2])
        watch.free.set()
        assert {future.result().status_code for future in asked} <= {200, 201, 415}


def test_a_retired_collection_is_not_closed_on_the_event_loop(watch, changeable, monkeypatch):
    _, client = changeable
    opened, begun, release = client.app.state.service.opened, threading.Event(), threading.Event()

    def held(*_, **__):
        begun.set()
        release.wait(10)
        raise ValueError("retired meanwhile")

    monkeypatch.setattr(opened.collection, "begin", held)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, "/api/search", json={"queries": [{"image": 1}]})
        assert begun.wait(10)
        opened.retire()
        assert opened.model.is_alive
        uses = watch.uses
        release.set()
        assert asked.result().status_code == 422
    soon(lambda: not opened.model.is_alive and watch.uses > uses)
    assert watch.on_loop == []


# Misuse


def test_another_host_is_refused(client):
    assert "unknown host 'evil.example'" in problem(
        client.get("/", headers={"Host": "evil.example"}), 421
    )


def test_what_is_too_large_is_refused_before_it_is_read(changeable):
    _, client = changeable
    assert "larger than 200,000" in problem(
        client.post("/api/uploads", files={"file": bytes(200_001)}), 413
    )
    problem(client.post("/api/uploads", files={"file": bytes(900_000)}), 413)

    def endless():
        for _ in range(100):
            yield bytes(10_000)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    problem(client.post("/api/uploads", content=endless(), headers=headers), 413)


def test_a_bomb_is_refused_before_it_is_decoded(changeable):
    _, client = changeable

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    bomb += chunk(b"IDAT", zlib.compress(bytes(10_000_000))) + chunk(b"IEND", b"")
    said = problem(client.post("/api/uploads", files={"file": bomb}), 415)
    assert "more than the limit of 100,000" in said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (png()[:200], "upload: "),
    ],
)
def test_what_is_no_picture_is_refused_whatever_it_calls_itself(client, content, reason):
    file = ("cat.jpg", content, "image/jpeg")
    assert reason in problem(client.post("/api/uploads", files={"file": file}), 415)


def test_a_file_that_is_cut_off_is_taken_with_a_note(changeable, photos):
    _, client = changeable
    content = (photos / "0.png").read_bytes()
    whole = client.post("/api/uploads", files={"file": content}).json()
    assert whole["note"] is None
    cut = content[: len(content) * 4 // 5]
    sent = client.post("/api/uploads", files={"file": cut})
    assert sent.status_code == 201 and "% of the picture" in sent.json()["note"]
    added = client.post("/api/images", files={"file": cut}, headers=TOKEN)
    assert added.json()["note"] == sent.json()["note"]


def test_an_uploaded_picture_is_given_back_as_it_was_decoded(client):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "TIFF", exif=exif)
    sent = client.post("/api/uploads", files={"file": stream.getvalue()}).json()
    answer = client.get(f"/api/uploads/{sent['upload']}/picture?size=16")
    assert answer.headers["content-type"] == "image/jpeg"
    shown = Image.open(io.BytesIO(answer.content))
    assert shown.size == (sent["width"], sent["height"]) == (40, 80)
    assert shown.getpixel((20, 10))[0] > 200 and shown.getpixel((20, 70))[0] < 50
    problem(client.get("/api/uploads/unknown/picture"), 404)
    problem(client.get(f"/api/uploads/{sent['upload']}/picture?size=1"), 422)


def test_a_forged_type_does_not_matter(client, photos):
    file = ("x.exe", (photos / "0.png").read_bytes(), "text/html")
    assert client.post("/api/uploads", files={"file": file}).status_code == 201


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/api/images/..%2f..%2fetc%2fpasswd/picture",
        "/api/images/0/picture",
        "/api/images/99999999999999999999/picture",
        "/static/../../etc/passwd",
    ],
)
def test_no_path_leads_out_of_the_collection(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 422)
    assert b"root:" not in answer.content


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"queries": []}, 422, "queries"),
        ({"queries": [{}]}, 422, "one of an upload, an image and a text"),
        ({"queries": [{"image": 77}]}, 404, "no such picture"),
        ({"queries": [{"upload": "gone"}]}, 404, "upload the picture again"),
        ({"queries": [{"image": 1, "boxes": [[5, 5, 1, 1]]}]}, 422, "x0 < x1"),
        ({"queries": [{"image": 1, "boxes": [[1, 2, 3]]}]}, 422, "boxes"),
        (
            {"queries": [{"image": 1, "boxes": [[500, 0, 600, 50]]}]},
            422,
            "picture 1: box 500,0,600,50: lies outside of the picture, 160 x 100 pixels",
        ),
        (
            {"queries": [{"image": 1, "boxes": [[0, 0, 1600, 1000]]}]},
            422,
            "more than half of it lies outside of the picture, 160 x 100 pixels",
        ),
        ({"queries": [{"image": 1, "boxes": [[0, 0, 0.5, 1]]}]}, 422, "must be in pixels of"),
        (
            {"queries": [{"image": 1}], "without": [{"image": 1, "boxes": [[0, 0, 0.5, 1]]}]},
            422,
            "must be in pixels of",
        ),
        ({"queries": [{"image": 1, "regions": [500]}]}, 422, "regions"),
        ({"queries": [{"image": 1}], "filter": {"labels": ["cow"]}}, 422, "not a class"),
        ({"queries": [{"image": 1}], "filter": {"folder": "\0"}}, 422, "NUL"),
        ({"queries": [{"image": 1}], "unknown": 1}, 422, "unknown"),
        ({"queries": [{"image": 1}], "mode": "category"}, 422, "no codes of categories"),
        ({"queries": [{"image": 1}], "within": 3}, 422, "within needs objects to exclude"),
        (
            {"queries": [{"image": 1}], "without": [{}]},
            422,
            "one of an upload, an image and a text",
        ),
        ({"queries": [{"image": 1}], "limit": 10**9}, 422, "limit"),
    ],
)
def test_bad_questions_are_told(client, body, status, detail):
    assert detail in problem(client.post("/api/search", json=body), status)


@pytest.mark.parametrize("wanted", [{}, HEAVY])
def test_a_slow_answer_is_given_up(photo_collection, monkeypatch, wanted):
    app = create_app(photo_collection, limits=Limits(seconds=0.05))
    service = app.state.service
    monkeypatch.setattr(service.collection, "begin", lambda *_, **__: time.sleep(0.5))
    with TestClient(app, base_url=HOME) as client:
        answer = client.post("/api/search", json={"queries": [{"image": 1}], **wanted})
        assert "took too long" in problem(answer, 504)


def test_a_search_that_is_given_up_keeps_its_place(photo_collection, monkeypatch):
    monkeypatch.setattr(state.os, "cpu_count", lambda: 2)
    app = create_app(photo_collection, limits=Limits(seconds=0.3))
    release = threading.Event()
    monkeypatch.setattr(app.state.service.collection, "begin", lambda *_, **__: release.wait(20))
    with TestClient(app, base_url=HOME) as client:

        def ask(_):
            return client.post("/api/search", json={"queries": [{"image": 1}], **HEAVY})

        with ThreadPoolExecutor(6) as pool:
            statuses = sorted(answer.status_code for answer in pool.map(ask, range(6)))
        assert statuses == [503] * 4 + [504] * 2
        answer = ask(0)
        assert "busy" in problem(answer, 503) and answer.headers["retry-after"] == "5"
        assert app.state.service.running == 2
        assert client.get("/api/images").status_code == 200  # other work has its own places
        release.set()
        soon(lambda: app.state.service.running == 0)


def test_a_search_that_is_given_up_keeps_its_collection_open_until_it_ends(
    photo_collection, monkeypatch
):
    app = create_app(photo_collection, limits=Limits(seconds=0.3))
    opened, release = app.state.service.opened, threading.Event()
    monkeypatch.setattr(opened.collection, "begin", lambda *_, **__: release.wait(20))
    with TestClient(app, base_url=HOME) as client:
        problem(client.post("/api/search", json={"queries": [{"image": 1}]}), 504)
        opened.retire()
        assert opened.model.is_alive
        release.set()
        soon(lambda: not opened.model.is_alive)


def test_decoding_that_takes_too_long_is_ended(photo_collection, photos):
    app = create_app(photo_collection, limits=Limits(seconds=1.5))
    slow = costly.jpeg_of_many_scans(85, side=7000)
    with TestClient(app, base_url=HOME) as client:
        client.post("/api/uploads", files={"file": png()})  # now a decoder is there
        started = time.monotonic()
        problem(client.post("/api/uploads", files={"file": slow}), 504)
        assert time.monotonic() - started < 4
        soon(lambda: app.state.service.running == 0, 3)
        assert client.post("/api/uploads", files={"file": png()}).status_code == 201


def test_a_picture_whose_file_is_gone_is_still_found(saved, photos, tmp_path):
    pictures = shutil.copytree(photos, tmp_path / "pictures")
    run("index", pictures, "-o", tmp_path / "c", "--model", saved.folder, "--workers", 0)
    shutil.rmtree(pictures)
    with TestClient(create_app(tmp_path / "c"), base_url=HOME) as client:
        assert len(search(client, {"image": 1})["hits"]) == 6
        problem(client.get("/api/images/1/picture"), 404)
        problem(
            client.post("/api/search", json={"queries": [{"image": 1, "boxes": [[1, 1, 9, 9]]}]}),
            415,
        )


ROUTES = [
    ("GET", "/", {}),
    ("GET", "/page.css", {}),
    ("GET", "/page.js", {}),
    ("GET", "/health", {}),
    ("GET", "/metrics", {}),
    ("GET", "/openapi.json", {}),
    ("GET", "/api/collection", {}),
    ("GET", "/api/images", {}),
    ("GET", "/api/images/1", {}),
    ("GET", "/api/images/1/picture", {}),
    ("POST", "/api/session", {}),
    ("POST", "/api/uploads", {"files": {"file": png()}}),
    ("POST", "/api/uploads", {"files": {"file": png()[:99]}}),
    ("GET", "/api/uploads/a/picture", {}),
    ("POST", "/api/search", {"json": {"queries": [{"image": 1}]}}),
    ("POST", "/api/search", {"json": {"queries": [{"image": 1, "boxes": [[1, 1, 9, 9]]}]}}),
    ("POST", "/api/search", {"json": {"queries": [{"image": 1, "regions": [99]}]}}),
    ("POST", "/api/images", {"files": {"file": png()}}),
    ("POST", "/api/images", {"files": {"file": png()[:99]}}),
    ("DELETE", "/api/images/2", {}),
]


def test_no_answer_tells_a_path_of_the_machine(saved, photos, tmp_path, monkeypatch):
    pictures = shutil.copytree(photos, tmp_path / "pictures")
    folder = collect(pictures, saved.folder, tmp_path / "changed")
    app = create_app(folder, token="secret")
    collection, statuses = app.state.service.collection, set()

    def check():
        for method, path, sent in ROUTES:
            answer = client.request(method, path, headers=TOKEN, **sent)
            statuses.add(answer.status_code)
            assert str(tmp_path) not in answer.text, (method, path, answer.text)
            if answer.status_code >= 400 and path != "/health":
                assert answer.headers["content-type"] == "application/problem+json"

    with TestClient(app, base_url=HOME, raise_server_exceptions=False) as client:
        for error in (
            ImageError(f"{pictures}/0.png: broken"),
            ValueError(f"{folder}: the codes are of another model"),
            ValueError(f"no '{folder}/collection.db'"),
            StoreError(f"{folder}: damaged"),
            OSError(5, "broken", f"{pictures}/0.png"),
            sqlite3.OperationalError(f"cannot open {folder}"),
            KeyError(f"{folder}"),
            TimeoutError(f"{folder}"),
            RuntimeError(f"{folder}"),
        ):
            with monkeypatch.context() as broken:

                def fail(*_, error=error, **__):
                    raise error

                for name in ("begin", "get", "encoded", "images", "add_upload", "remove_rows"):
                    broken.setattr(collection, name, fail)
                check()
        (pictures / "0.png").write_bytes(b"no picture")
        check()
        shutil.rmtree(pictures)
        check()
        shutil.rmtree(folder)
        check()
    assert {200, 404, 415, 422, 500, 503, 504} <= statuses


BANNED = (
    r"\bbehind\b|\banew\b|\bgoes on\b|\bso many\b|of use only|\bas well\.|\btells?\b|\bbut for\b"
    r"|^Of |\bWhere |/docs"
)
"""Patterns that CONTRIBUTING.md bans, and a page that there is not."""


def test_descriptions_and_errors_are_in_plain_english(client):
    def texts(record):
        for key, value in record.items() if isinstance(record, dict) else enumerate(record):
            if key in ("description", "summary") and isinstance(value, str):
                yield value
            elif isinstance(value, dict | list):
                yield from texts(value)

    found = list(texts(client.get("/openapi.json").json()))
    refused = client.post("/api/images", files={"file": png()})
    assert problem(refused, 401) == "read-only: the service was started without a token"
    assert len(found) > 50
    assert [text for text in found if re.search(BANNED, text)] == []


@pytest.mark.slow
def test_no_request_that_the_description_allows_or_forbids_is_answered_with_500(changeable):
    schemathesis = pytest.importorskip("schemathesis")
    _, client = changeable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = schemathesis.openapi.from_asgi("/openapi.json", client.app, headers=HOST)
        seen = []
        for result in schema.get_all_operations():
            operation = result.ok()
            for mode in (
                schemathesis.GenerationMode.POSITIVE,
                schemathesis.GenerationMode.NEGATIVE,
            ):
                strategy = operation.as_strategy(generation_mode=mode)

                @settings(
                    max_examples=6,
                    deadline=None,
                    derandomize=True,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=strategy)
                def check(case):
                    answer = case.call(headers=TOKEN | HOST)
                    seen.append(answer.status_code)
                    assert answer.status_code < 500, (case, answer.text)

                with suppress(Unsatisfiable):  # an operation that takes nothing cannot be misused
                    check()
    assert {200, 404, 422} <= set(seen)


def test_a_search_is_small_and_its_errors_are_few(client):
    answer = client.post("/api/search", content=b"{" + b" " * 300_000 + b"}", headers=JSON)
    assert answer.status_code == 413
    keys = ",".join(f'"{n}": 0' for n in range(10_000))
    answer = client.post("/api/search", content=f"{{{keys}}}".encode(), headers=JSON)
    assert answer.status_code == 422 and len(answer.content) < 2000


def test_methods_that_somebody_invents_are_counted_as_one(client):
    for n in range(3):
        client.request(f"INVENTED{n}", "/")
    figures = client.get("/metrics").text
    assert "INVENTED" not in figures and 'method="other"' in figures


JSON = {"Content-Type": "application/json"}


def test_an_answer_does_not_read_the_database(client, monkeypatch):
    """By the region of a stored picture; each read would queue for a thread and for the lock."""
    body = {"queries": [{"image": 2, "regions": [0]}], "limit": 3}
    before = client.post("/api/search", json=body).json()
    assert before["hits"][0]["distance"] == 0 and before["hits"][0]["matches"]

    def refused(*_):
        raise AssertionError("an answer read the database")

    monkeypatch.setattr(database.Database, "read", refused)
    again = client.post("/api/search", json=body).json()
    assert again["hits"] == before["hits"]


def test_a_query_by_a_row_that_is_not_there_is_not_found(changeable):
    _, client = changeable
    body = {"queries": [{"image": 2, "regions": [0]}]}
    assert client.post("/api/search", json=body).status_code == 200
    assert client.delete("/api/images/2", headers=TOKEN).status_code == 204
    problem(client.post("/api/search", json=body), 404)
    problem(client.post("/api/search", json={"queries": [{"image": 999}]}), 404)
