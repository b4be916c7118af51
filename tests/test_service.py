"""The service as programs use it and misuse it."""

import io
import json
import shutil
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image

from regionhash.collection import Collection, Query
from regionhash.data.images import read_image
from regionhash.encoding import encode_picture
from regionhash.service import Limits, create_app
from regionhash.service.encoder import BatchedModel
from test_cli import error_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

TOKEN = {"Authorization": "Bearer secret"}
HOME = "http://127.0.0.1:8000"
HOST = {"Host": "127.0.0.1"}


@pytest.fixture(scope="module")
def client(photo_collection):
    """Of the six photos, without a token."""
    with TestClient(create_app(photo_collection), base_url=HOME) as client:
        yield client


@pytest.fixture
def own(photo_collection, tmp_path):
    """Folder and client of a collection that may be changed, with a token and small limits."""
    folder = shutil.copytree(photo_collection, tmp_path / "own")
    limits = Limits(upload_bytes=200_000, pixels=100_000)
    with TestClient(create_app(folder, token="secret", limits=limits), base_url=HOME) as client:
        yield folder, client


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


def test_objects_that_must_not_be_there_are_left_out(client, photo_collection):
    unwanted = {"image": 3, "regions": [1]}
    found = search(client, {"image": 2, "regions": [0]}, without=[unwanted], within=3)
    with Collection.open(photo_collection) as collection:
        wanted = collection.search(
            like="1.png", regions=[0], without=[Query(like="2.png", regions=[1])], within=3
        )
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in wanted.hits]
    assert [[tuple(box) for box in own] for own in found["without"]] == [
        list(own) for own in wanted.without
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
        (own["category"], own["prob"], [hit["id"] for hit in own["hits"]])
        for own in found["groups"]
    ] == [(own.category, own.prob, [hit.id for hit in own.hits]) for own in wanted.groups]


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
        found = list(pool.map(lambda own: encode_picture(model, saved.checkpoint, own), images))
    model.close()
    alone = encode_picture(saved.model, saved.checkpoint, images[0])
    for own in found:
        np.testing.assert_array_equal(own.image_code, alone.image_code)
    assert sum(sizes) == 4 and max(sizes) > 1


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
    record = json.loads(ran.stdout)
    assert record["errors"] == 0 and record["requests"] > 100
    means = record["service's MB not mapped"]["mean of each tenth"]
    assert means[-1] - means[6] <= 8, means


# Changing


def test_a_picture_is_added_found_and_removed_behind_the_token(own):
    folder, client = own
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


def test_what_another_process_removes_is_gone_soon(own):
    folder, client = own
    with Collection.open(folder) as other:
        other.remove(["2.png"])
    until = time.monotonic() + 5
    while len(search(client, {"image": 1})["hits"]) == 6 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(search(client, {"image": 1})["hits"]) == 5


def test_elsewhere_than_on_this_machine_a_token_is_needed(photo_collection):
    with pytest.raises(ValueError, match="needs a token"):
        create_app(photo_collection, loopback=False)
    assert "needs a token" in error_of("serve", photo_collection, "--host", "0.0.0.0")
    app = create_app(photo_collection, token="secret", loopback=False)
    with TestClient(app, base_url="http://example.org") as client:
        for path in ("/api/collection", "/api/images", "/api/images/1/picture", "/metrics"):
            problem(client.get(path), 401)
            problem(client.get(path, headers={"Authorization": "Bearer wrong"}), 401)
        assert client.get("/health").status_code == 200
        problem(client.post("/api/session"), 401)
        assert client.post("/api/session", headers=TOKEN).status_code == 204
        assert client.get("/api/collection").json()["can_change"]


# Misuse


def test_another_host_is_refused(client):
    assert "not 'evil.example'" in problem(client.get("/", headers={"Host": "evil.example"}), 421)


def test_what_is_too_large_is_refused_before_it_is_read(own):
    _, client = own
    assert "larger than 200,000" in problem(
        client.post("/api/uploads", files={"file": bytes(200_001)}), 413
    )
    problem(client.post("/api/uploads", files={"file": bytes(900_000)}), 413)

    def endless():
        for _ in range(100):
            yield bytes(10_000)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    problem(client.post("/api/uploads", content=endless(), headers=headers), 413)


def test_a_bomb_is_refused_before_it_is_decoded(own):
    _, client = own

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
        ({"queries": [{}]}, 422, "either an upload or an image"),
        ({"queries": [{"image": 77}]}, 404, "no such picture"),
        ({"queries": [{"upload": "gone"}]}, 404, "upload the picture again"),
        ({"queries": [{"image": 1, "boxes": [[5, 5, 1, 1]]}]}, 422, "x0 < x1"),
        ({"queries": [{"image": 1, "boxes": [[1, 2, 3]]}]}, 422, "boxes"),
        ({"queries": [{"image": 1, "regions": [500]}]}, 422, "regions"),
        ({"queries": [{"image": 1}], "filter": {"labels": ["cow"]}}, 422, "no class"),
        ({"queries": [{"image": 1}], "filter": {"folder": "\0"}}, 422, "NUL"),
        ({"queries": [{"image": 1}], "unknown": 1}, 422, "unknown"),
        ({"queries": [{"image": 1}], "mode": "category"}, 422, "no codes of categories"),
        ({"queries": [{"image": 1}], "within": 3}, 422, "must not be there"),
        ({"queries": [{"image": 1}], "without": [{}]}, 422, "either an upload or an image"),
        ({"queries": [{"image": 1}], "limit": 10**9}, 422, "limit"),
    ],
)
def test_bad_questions_are_told(client, body, status, detail):
    assert detail in problem(client.post("/api/search", json=body), status)


def test_a_slow_answer_is_given_up(photo_collection, monkeypatch):
    app = create_app(photo_collection, limits=Limits(seconds=0.05))
    service = app.state.service
    monkeypatch.setattr(service.collection, "search", lambda **_: time.sleep(0.5))
    with TestClient(app, base_url=HOME) as client:
        answer = client.post("/api/search", json={"queries": [{"image": 1}]})
        assert "took too long" in problem(answer, 504)


def test_a_picture_whose_file_is_gone_is_still_found(saved, photos, tmp_path):
    from test_cli import run

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


def test_no_request_that_the_description_allows_or_forbids_is_answered_with_500(own):
    schemathesis = pytest.importorskip("schemathesis")
    _, client = own
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
