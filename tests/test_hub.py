"""Encoders of the hub, fetched from a small one on this machine, and without any."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from cli_runner import error_of, run
from encoder_cases import SQUARE, Encoded
from regionhash.encoders import EncoderError, read_encoder, resolve
from reporters import Recording

COMMIT, OLD = "c" * 40, "0" * 40


class Hub:
    """Speaks of the hub's protocol what fetching files needs.

    Attributes:
        files: content of each file, by repository, commit and name.
        asked: method and path of each request, and its Range.
        cut: names of files whose next download ends in the middle.
        refuse: status and error code for each request, if any.
    """

    def __init__(self):
        self.files, self.asked, self.cut, self.refuse = {}, [], set(), None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                path = self.path.partition("?")[0]
                hub.asked.append((self.command, path, self.headers.get("Range")))
                if hub.refuse:
                    status, code = hub.refuse
                    return self.answer(status, b"{}", {"X-Error-Code": code})
                if path.startswith("/api/models/"):
                    return self.about(path.removeprefix("/api/models/"))
                owner, name, _, revision, file = path.strip("/").split("/", 4)
                return self.file(f"{owner}/{name}", revision, file)

            def about(self, path):
                name, _, revision = path.partition("/revision/")
                commit = COMMIT if revision in ("", "main") else revision
                if not any(known == name for known, _ in hub.files):
                    return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                if (name, commit) not in hub.files:
                    return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                siblings = [
                    {"rfilename": file, "size": len(content)}
                    for file, content in hub.files[name, commit].items()
                ]
                record = {"id": name, "sha": commit, "siblings": siblings, "tags": []}
                record["cardData"] = {"license": "apache-2.0"}
                return self.answer(200, json.dumps(record).encode())

            def file(self, name, revision, file):
                content = hub.files[name, revision].get(file)
                if content is None:
                    return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                facts = {
                    "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                    "X-Repo-Commit": revision,
                    "Accept-Ranges": "bytes",
                }
                start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
                if start:
                    facts["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                status = 206 if start else 200
                return self.answer(status, content[start:], facts, cut=file in hub.cut and file)

            def answer(self, status, content, headers=None, cut=None):
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if cut:
                    hub.cut.discard(cut)
                    content = content[: len(content) // 2]
                    self.close_connection = True
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def downloads(self):
        """Names and ranges of the files that were sent."""
        return [
            (path.split("/", 5)[5], part)
            for method, path, part in self.asked
            if method == "GET" and "/resolve/" in path
        ]


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return Encoded("vit", tmp_path_factory.mktemp("vit") / "vit")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's library."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(vit, cache, monkeypatch):
    """A hub that has the repository tiny/vit, in two revisions."""
    made = Hub()
    files = {
        str(path.relative_to(vit.folder)): path.read_bytes()
        for path in vit.folder.rglob("*")
        if path.is_file()
    }
    files |= {"README.md": b"read me", "pytorch_model.bin": b"weights" * 99}
    made.files["tiny/vit", COMMIT] = files
    config = json.loads(files["preprocessor_config.json"])
    old = json.dumps(config | {"resample": 3}).encode()
    made.files["tiny/vit", OLD] = files | {"preprocessor_config.json": old}
    made.files["tiny/bare", COMMIT] = {"config.json": b"{}", "model.safetensors": b"x"}
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", made.url)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        made.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def no_hub(monkeypatch):
    """No hub: nothing listens there."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


def refusal(spec):
    with pytest.raises(EncoderError) as caught:
        resolve(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_what_is_needed_is_fetched_and_said_before(hub, vit):
    reporter = Recording()
    found = resolve("hf:tiny/vit", reporter)
    assert found.spec == f"hf:tiny/vit@{COMMIT}"
    assert (found.revision, found.licence) == (COMMIT, "apache-2.0")
    names = ["preprocessor_config.json", "config.json", "onnx/model.onnx"]
    assert sorted(name for name, _ in hub.downloads()) == sorted(names)
    assert hub.downloads()[-1][0] == "onnx/model.onnx"
    n_bytes = sum((vit.folder / name).stat().st_size for name in names)
    assert reporter.notes == [
        f"hf:tiny/vit: {n_bytes / 1e6:.1f} MB, licence apache-2.0, revision {COMMIT}"
    ]
    assert found.identity == resolve(f"onnx:{vit.folder}").identity


def test_what_was_fetched_is_not_fetched_again(hub):
    first = resolve("hf:tiny/vit")
    n_downloads = len(hub.downloads())
    assert resolve("hf:tiny/vit").identity == first.identity
    assert len(hub.downloads()) == n_downloads


def test_a_revision_that_is_named_is_taken_and_kept(hub, tmp_path):
    old = resolve(f"hf:tiny/vit@{OLD}")
    assert old.revision == OLD and old.encoder.preprocessing.resample == "bicubic"
    assert resolve("hf:tiny/vit").identity != old.identity
    old.write(tmp_path / "stored")
    assert read_encoder(tmp_path / "stored").spec == f"hf:tiny/vit@{OLD}"
    assert read_encoder(tmp_path / "stored").revision == OLD


def test_a_download_that_is_cut_off_resumes(hub, vit, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # of 10 MB
    hub.cut.add("onnx/model.onnx")
    found = resolve("hf:tiny/vit")
    content = vit.graph.read_bytes()
    assert found.graph == content
    parts = [part for name, part in hub.downloads() if name == "onnx/model.onnx"]
    assert parts == [None, f"bytes={len(content) // 2 // 10_000 * 10_000}-"]
    pixels, _ = found.encoder.prepare(SQUARE, 64)
    whole = resolve(f"onnx:{vit.folder}").encoder
    np.testing.assert_array_equal(found.encoder.map(pixels), whole.map(pixels))


def test_weights_beside_the_graph_and_words_are_fetched_with_it(hub, cache):
    files = hub.files["tiny/vit", COMMIT]
    hub.files["tiny/words", COMMIT] = files | {
        "onnx/model.onnx_data": b"data",
        "onnx/model_quantized.onnx": b"other",
        "onnx/text_model.onnx": b"text",
        "onnx/text_model.onnx_data": b"more data",
        "tokenizer.json": b"{}",
    }
    refusal("hf:tiny/words")  # the text is no graph
    fetched = {name for name, _ in hub.downloads()}
    words = {"onnx/text_model.onnx", "onnx/text_model.onnx_data", "tokenizer.json"}
    assert words | {"onnx/model.onnx_data"} <= fetched
    assert not any("quantized" in name for name in fetched)
    hub.asked.clear()
    hub.files["tiny/again", COMMIT] = hub.files["tiny/words", COMMIT]
    assert resolve("hf:tiny/again", words=False).text is None
    assert not words & {name for name, _ in hub.downloads()}


def test_the_graph_of_pictures_alone_is_preferred(hub):
    files = dict(hub.files["tiny/vit", COMMIT])
    files["onnx/vision_model.onnx"] = files["onnx/model.onnx"]
    files["onnx/model.onnx"] = b"of pictures and words"
    hub.files["tiny/clip", COMMIT] = files
    assert resolve("hf:tiny/clip").encoder.n_channels == 32
    assert "onnx/model.onnx" not in {name for name, _ in hub.downloads()}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:tiny/none", "hf:tiny/none: no such repository, or a private one"),
        (f"hf:tiny/vit@{'a' * 40}", f"the repository has no revision {'a' * 40}"),
        ("hf:tiny/vit@v9", "hf:tiny/vit@v9: the repository has no revision v9"),
        ("hf:tiny/bare", "has no ONNX file (onnx/vision_model.onnx or onnx/model.onnx); repo"),
        ("hf:tiny/bare", "`optimum-cli export onnx`"),
        ("hf:a/b/c", "hf:a/b/c: must be hf:NAME or hf:NAME@REVISION"),
        ("hf:../b", "hf:../b: "),
        ("hf:a b", "hf:a b: must be hf:NAME or hf:NAME@REVISION"),
        ("hf:a--b/..c", "hf:a--b/..c: "),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, spec, message):
    assert message in refusal(spec)


@pytest.mark.parametrize("status", [401, 403])
def test_a_repository_with_terms_says_what_to_do(hub, status):
    hub.refuse = (status, "GatedRepo")
    assert refusal("hf:tiny/vit") == (
        "hf:tiny/vit: access is restricted; accept its terms at its page, then set HF_TOKEN"
    )


def test_a_hub_that_fails_is_one_line(hub):
    hub.refuse = (500, "")
    assert "hf:tiny/vit: not in the cache, and the hub cannot be reached (" in refusal(
        "hf:tiny/vit"
    )


def test_without_a_hub_the_line_says_what_to_do(cache, no_hub, tmp_path):
    found = refusal("hf:tiny/vit")
    assert "the hub cannot be reached (" in found
    assert "run `regionhash fetch hf:tiny/vit --output FOLDER`, and pass onnx:FOLDER" in found
    assert error_of("fetch", "hf:tiny/vit", "-o", tmp_path / "kept") == found
    assert not (tmp_path / "kept").exists()


def test_without_a_hub_the_cache_is_taken(hub, monkeypatch):
    first, old = resolve("hf:tiny/vit"), resolve(f"hf:tiny/vit@{OLD}")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    reporter = Recording()
    pinned = resolve(first.spec, reporter)
    assert pinned.identity == first.identity and pinned.revision == COMMIT
    assert reporter.notes == [
        f"{first.spec}: the hub cannot be reached; revision {COMMIT} is in the cache"
    ]
    assert resolve(old.spec).identity == old.identity
    assert "not in the cache" in refusal(f"hf:tiny/vit@{'a' * 40}")


def test_a_download_that_was_not_finished_is_not_taken_for_a_copy(hub, monkeypatch):
    del hub.files["tiny/vit", COMMIT]["onnx/model.onnx"]
    hub.files["tiny/vit", COMMIT]["onnx/model.onnx"] = b""  # comes last, and is no graph
    refusal("hf:tiny/vit")
    found = json.loads((Path(resolve(f"hf:tiny/vit@{OLD}").folder) / "config.json").read_text())
    assert found["patch_size"] == 16


def test_a_folder_needs_no_hub(vit, no_hub):
    assert resolve(f"hf:{vit.folder}").identity == resolve(f"onnx:{vit.folder}").identity


def test_the_environment_is_read_as_by_other_programs(hub, tmp_path):
    command = [sys.executable, "-m", "regionhash", "fetch", f"hf:tiny/vit@{COMMIT}", "--json"]
    settings = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    record = json.loads(done.stdout)
    assert record["folder"].startswith(str(tmp_path / "home")) and record["words"] is False
    assert record["licence"] == "apache-2.0" and record["revision"] == COMMIT
    n_asked = len(hub.asked)
    settings |= {"HF_HUB_OFFLINE": "1"}
    again = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["folder"] == record["folder"] and len(hub.asked) == n_asked
    command[4] = "hf:tiny/other"
    none = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert none.returncode == 2 and none.stderr.count("\n") == 1
    assert "(HF_HUB_OFFLINE is set)" in none.stderr


def test_the_command_says_where_the_files_are(hub, cache):
    lines = run("fetch", "hf:tiny/vit").stdout.splitlines()
    assert lines[0] == (
        f"hf:tiny/vit@{COMMIT}: a map of 32 channels, one cell every 16 pixels "
        "and a vector of 32 numbers"
    )
    assert lines[1].startswith(str(cache))
