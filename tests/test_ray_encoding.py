"""Encoding with Ray: the parts without it, quickly, and whole runs of the command, slowly."""

import csv
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cli_runner import error_of, run
from conftest import write_picture
from regionhash.collection import Collection
from regionhash.data import open_dataset
from regionhash.data.images import FileImages
from regionhash.models import ray_encoding
from regionhash.models.encoding import encode_set
from regionhash.models.ray_encoding import (
    Encoder,
    Job,
    Pool,
    open_pictures,
    pieces_of,
    pool_of,
)
from regionhash.store import CodeSet
from regionhash.store.parquet_reader import ParquetCodes
from regionhash.store.shards import Contents, Shards

pytest.importorskip("pyarrow")
fsspec = pytest.importorskip("fsspec")

CODES = ("sizes", "image_codes", "offsets", "labels", "region_codes")


@pytest.fixture
def folder(photos, tmp_path):
    """The photos and a file that is none, in a folder that may be changed."""
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no picture")
    return tmp_path / "photos"


def job_of(saved, shards, source=None, **changes):
    job = Job(
        model_folder=saved.folder,
        model_hash=saved.checkpoint.model_hash,
        shards=shards,
        run="run",
        source=source,
        batch_size=2,
        precision="32-true",
        device="cpu",
        runtime="torch",
    )
    return replace(job, **changes)


def encoded(saved, shards, inputs, run="run", n_actors=3):
    """What became of all pieces, done in this process."""
    images, source = open_pictures(inputs)
    with shards.reserved():
        stored = shards.tidy(saved.checkpoint.model_hash)
        encoder = Encoder(job_of(saved, shards, source, run=run), None)
        pieces = pickle.loads(pickle.dumps(list(pieces_of(images, stored, n_actors))))
        return [encoder.encode(piece) for piece in pieces]


def paths_in(shards):
    """The paths in all shards, in the order of the pictures."""
    files = map(ParquetCodes.open, shards.files())
    return [fact.path for file in files for _, facts in file.parts(file.header) for fact in facts]


def check_same(collection, codes):
    """A collection has the ids and codes of a code file, and links the same files."""
    with Collection(collection) as opened:
        found = opened.code_file()
    assert list(found.table.ids) == list(codes.table.ids)
    for name in CODES:
        np.testing.assert_array_equal(getattr(found.table, name), getattr(codes.table, name))


# -- without Ray ----------------------------------------------------------------------------------


def test_codes_are_those_of_encode_and_the_collection_links_the_files(saved, folder, tmp_path):
    outcomes = encoded(saved, Shards(tmp_path / "shards"), [str(folder)])
    assert [outcome.n_encoded for outcome in outcomes] == [3, 3, 0]
    assert [list(outcome.skipped) for outcome in outcomes] == [[], [], ["bad.jpg"]]
    assert paths_in(Shards(tmp_path / "shards")) == list(map(str, sorted(folder.glob("*.png"))))
    images, source = open_pictures([str(folder)])
    encode_set(
        saved.model,
        saved.checkpoint,
        images,
        tmp_path / "codes.h5",
        checkpoint_path=saved.folder,
        source=source,
        workers=0,
    )
    run("import", tmp_path / "new", tmp_path / "shards")
    check_same(tmp_path / "new", CodeSet.open(tmp_path / "codes.h5"))
    with Collection(tmp_path / "new") as collection:
        assert [image.path for image in collection.images()] == sorted(folder.glob("*.png"))
    said = run("add", tmp_path / "new", folder).stdout
    assert "0 encoded" in said and "6 stored before, 1 skipped" in said


def test_what_is_stored_is_not_encoded_again_and_what_has_changed_is(saved, folder, tmp_path):
    shards = Shards(tmp_path / "shards")
    encoded(saved, shards, [str(folder)])
    before = {path: path.read_bytes() for path in shards.files()}
    again = encoded(saved, shards, [str(folder)], "again")
    assert [(outcome.n_encoded, outcome.has_changed) for outcome in again] == [(0, False)] * 3
    assert {path: path.read_bytes() for path in shards.files()} == before
    shutil.copy(folder / "4.png", folder / "1.png")
    shutil.copy(folder / "4.png", folder / "copy.png")
    third = encoded(saved, shards, [str(folder)], "third")
    assert sum(outcome.n_encoded for outcome in third) == 2
    assert any(outcome.has_changed for outcome in third)
    hashes = shards.tidy(saved.checkpoint.model_hash).hashes
    assert len(hashes) == 7
    assert hashes["1.png"] == hashes["copy.png"] == hashes["4.png"]


def test_pictures_and_shards_may_be_behind_urls(saved, folder, tmp_path):
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe(f"/{tmp_path.name}/photos/{path.name}", path.read_bytes())
    shards, local = Shards(f"memory://{tmp_path.name}/shards"), Shards(tmp_path / "shards")
    try:
        outcomes = encoded(saved, shards, [f"memory://{tmp_path.name}/photos"])
        skipped = {name: why for outcome in outcomes for name, why in outcome.skipped.items()}
        (why,) = skipped.values()
        assert why.startswith(f"memory://{tmp_path.name}/photos/bad.jpg: ")
        again = encoded(saved, shards, [f"memory://{tmp_path.name}/photos"], "again")
        assert [outcome.n_encoded for outcome in again] == [0, 0, 0]
        assert paths_in(shards)[0] == f"memory://{tmp_path.name}/photos/0.png"
        encoded(saved, local, [str(folder)])
        with Collection.of_code_file(tmp_path / "remote", shards.folder) as remote:
            assert {image.path for image in remote.images()} == {None}
            table = remote.code_file()
        with Collection.of_code_file(tmp_path / "local", local.folder):
            check_same(tmp_path / "local", table)
    finally:
        memory.rm(f"/{tmp_path.name}", recursive=True)


def test_labels_of_a_data_set_are_stored(saved, tmp_path):
    scene = open_dataset("digits:test:1").images[0]
    for label in ("3", "7"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        write_picture(tmp_path / "photos" / label / "a.png", scene)
    encoded(saved, Shards(tmp_path / "shards"), [f"labelled-folder:{tmp_path / 'photos'}"])
    with Collection.of_code_file(tmp_path / "new", tmp_path / "shards") as collection:
        labels = collection.code_file().labels
    assert labels.nonzero()[1].tolist() == [3, 7]


def test_pictures_must_be_files_or_urls(folder):
    with pytest.raises(ValueError, match="has no files of pictures, which Ray needs"):
        open_pictures(["digits:test:2"])
    with pytest.raises(ValueError, match="memory://a: URLs and files cannot be encoded"):
        open_pictures([str(folder), "memory://a"])


def test_paths_do_not_depend_on_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    images, _ = open_pictures(["photos"])
    assert images.images.paths[0] == folder / "0.png"
    assert images.ids[0] == "0.png"


def test_another_model_on_a_machine_is_noticed(saved, folder, tmp_path):
    job = job_of(saved, Shards(tmp_path / "shards"), model_hash="abc")
    with pytest.raises(ValueError, match=rf"is model {saved.checkpoint.model_hash}, not abc"):
        job.load()


def tries_here():
    """A handle of `Tries`, as Ray has them, in this process."""
    tries = ray_encoding.Tries()
    begin, read = SimpleNamespace(remote=tries.begin), SimpleNamespace(remote=tries.read)
    return SimpleNamespace(begin=begin, read=read)


@pytest.fixture
def no_ray(monkeypatch):
    """Where `ray.get` gives what it is given."""
    monkeypatch.setitem(sys.modules, "ray", type("Ray", (), {"get": staticmethod(lambda x: x)}))


def test_a_piece_that_kills_every_actor_is_given_up(saved, folder, tmp_path, no_ray):
    shards = Shards(tmp_path / "shards")
    shards.folder.mkdir()
    images, source = open_pictures([str(folder)])
    (piece,) = pieces_of(images, Contents({}, 0, None), 1)
    tries, row = tries_here(), {"piece": pickle.dumps(piece)}
    for _ in range(3):
        dying = Encoder(job_of(saved, shards, source), tries)
        dying.encode = lambda *_: sys.exit(1)  # as for lack of memory
        with pytest.raises(SystemExit):
            dying(row)
    outcome = ray_encoding._checked(Encoder(job_of(saved, shards, source), tries)(row))
    assert outcome.n_encoded == 0
    assert outcome.skipped.keys() == set(images.ids)
    assert outcome.skipped["3.png"] == (
        f"{folder / '3.png'}: the process that encodes it, with 6 others, died 3 times"
    )


def test_a_picture_that_kills_the_process_is_left_out(saved, folder, tmp_path, no_ray, monkeypatch):
    def read(self, index, _original=FileImages.read):
        if self.paths[index].name in ("1.png", "4.png"):
            sys.exit(1)  # as by a fault of a decoder
        return _original(self, index)

    monkeypatch.setattr(FileImages, "read", read)
    shards = Shards(tmp_path / "shards")
    shards.folder.mkdir()
    images, source = open_pictures([str(folder)])
    (piece,) = pieces_of(images, Contents({}, 0, None), 1)
    tries, row = tries_here(), {"piece": pickle.dumps(piece)}
    for _ in range(3):  # encoding the piece, then reading each of the two
        with pytest.raises(SystemExit):
            Encoder(job_of(saved, shards, source), tries)(row)
    outcome = ray_encoding._checked(Encoder(job_of(saved, shards, source), tries)(row))
    assert outcome.n_encoded == 4
    assert outcome.skipped.keys() == {"1.png", "4.png", "bad.jpg"}
    assert outcome.skipped["4.png"] == f"{folder / '4.png'}: reading it kills the process"
    stored = shards.tidy(saved.checkpoint.model_hash)
    assert stored.hashes.keys() == {"0.png", "2.png", "3.png", "5.png"}


def test_an_error_of_an_actor_is_one_line(saved, folder, tmp_path, no_ray):
    images, source = open_pictures([str(folder)])
    (piece,) = pieces_of(images, Contents({}, 0, None), 1)
    encoder = Encoder(job_of(saved, Shards(tmp_path / "missing"), source), tries_here())
    with pytest.raises(ValueError, match="its folder does not exist") as refused:
        ray_encoding._checked(encoder({"piece": pickle.dumps(piece)}))
    assert "\n" not in str(refused.value)


def test_pieces_have_the_numbers_after_those_that_are_stored(folder, monkeypatch):
    images, _ = open_pictures([str(folder)])
    stored = Contents({"2.png": b"2" * 32, "gone.png": b"3" * 32}, 70, "32-true")
    pieces = list(pieces_of(images, stored, 2))
    assert [(piece.number, len(piece.images)) for piece in pieces] == [(70, 4), (74, 3)]
    assert [piece.hashes for piece in pieces] == [{"2.png": b"2" * 32}, {}]
    monkeypatch.setattr(ray_encoding, "_PIECE_SIZE", 2)
    assert [len(piece.images) for piece in pieces_of(images, stored, 2)] == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("machines", "workers", "on_gpu", "pool"),
    [
        ([{"CPU": 2.0}], None, False, Pool(2, 1, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}, {}], None, False, Pool(12, 1, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}], None, True, Pool(1, 4, 1)),
        ([{"CPU": 64.0, "GPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}], None, True, Pool(9, 4, 1)),
        ([{"CPU": 2.0, "GPU": 4.0}], 3, True, Pool(3, 1, 1)),
        ([{"CPU": 8.0}], 3, False, Pool(3, 1, 0)),
        ([{"CPU": 2.0}], 3, False, Pool(2, 1, 0)),
    ],
)
def test_there_is_an_actor_per_gpu_or_core(machines, workers, on_gpu, pool):
    assert pool_of(machines, workers, on_gpu=on_gpu) == pool


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["photos", "--ray"], "local"),
        (["--ray", "photos"], "local"),
        (["photos", "--ray", "head:6379"], "head:6379"),
        (["photos", "--ray", "auto"], "auto"),
        (["--ray=ray://head:10001", "photos"], "ray://head:10001"),
        (["photos"], None),
    ],
)
def test_ray_may_have_an_address(monkeypatch, arguments, address):
    asked = {}

    def encode(*given, **options):
        asked.update(options, given=given)
        raise ValueError("stop")

    monkeypatch.setattr(ray_encoding, "encode", encode)
    monkeypatch.setattr("regionhash.models.encoding.encode", encode)
    assert error_of("encode", "model", *arguments, "-o", "out", "--batch-size", 3) == "stop"
    assert asked.get("address") == address
    assert asked["given"][1:] == (["photos"], "out")
    assert asked["batch_size"] == 3


def test_a_second_run_into_a_folder_is_refused_before_ray_starts(
    saved, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_encoding, "_import_ray", lambda address: None)
    with Shards(tmp_path / "shards").reserved():
        said = error_of("encode", saved.folder, photos, "--ray", "-o", tmp_path / "shards")
    assert said == f"{tmp_path / 'shards'}: another run writes to this folder"


def test_without_ray_the_extra_is_named(saved, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
    said = error_of("encode", saved.folder, photos, "--ray", "-o", tmp_path / "shards")
    assert said == 'this needs ray: pip install "regionhash[scale]"'
    assert not (tmp_path / "shards").exists()


# -- with Ray -------------------------------------------------------------------------------------


def command(*arguments, **environment):
    """What the command prints, run in a process of its own."""
    environment = os.environ | {"HOME": environment.pop("home")} | environment
    done = subprocess.run(
        [sys.executable, "-m", "regionhash", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_ray_encodes_what_is_not_encoded_yet(saved, folder, tmp_path):
    pytest.importorskip("ray.data", reason="needs regionhash[scale]")
    options = ("--precision", "32-true", "--runtime", "torch")
    home = {"home": str(tmp_path)}
    encode = ("encode", saved.folder, folder, *options)
    shutil.copytree(folder, tmp_path / "later")
    for name in ("3.png", "4.png", "5.png", "bad.jpg"):
        (folder / name).unlink()
    encoded(saved, Shards(tmp_path / "shards"), [str(folder)])
    shutil.copytree(tmp_path / "later", folder, dirs_exist_ok=True)
    said = command(*encode, "--ray", "-o", tmp_path / "shards", **home)
    assert "3 encoded" in said and "3 stored before, 1 skipped" in said
    assert not (tmp_path / ".ray").exists()  # no token of Ray's
    with (tmp_path / "shards" / "unreadable.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["id"], row["path"]) == ("bad.jpg", str(folder / "bad.jpg"))
    assert row["reason"].endswith("not a picture of a known format, or broken")
    run(*encode, "-o", tmp_path / "codes.h5")
    run("import", tmp_path / "new", tmp_path / "shards")
    check_same(tmp_path / "new", CodeSet.open(tmp_path / "codes.h5"))


@pytest.mark.slow
def test_ray_encodes_what_is_in_s3_to_s3(saved, folder, tmp_path, monkeypatch):
    pytest.importorskip("ray.data", reason="needs regionhash[scale]")
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        bucket = s3fs.S3FileSystem(skip_instance_cache=True)
        bucket.mkdir("pictures")
        bucket.put(str(folder), "pictures/photos", recursive=True)
        said = command(
            *(
                "encode",
                saved.folder,
                "s3://pictures/photos",
                "--ray",
                "-o",
                "s3://pictures/shards",
            ),
            *("--precision", "32-true", "--runtime", "torch", "--workers", 1),
            home=str(tmp_path),
        )
        assert "6 encoded" in said and "1 skipped" in said
        assert b"s3://pictures/photos/bad.jpg" in bucket.cat("pictures/shards/unreadable.csv")
        run("import", tmp_path / "new", "s3://pictures/shards")
        encoded(saved, Shards(tmp_path / "shards"), [str(folder)])
        with Collection.of_code_file(tmp_path / "local", tmp_path / "shards") as local:
            check_same(tmp_path / "new", local.code_file())
    finally:
        server.stop()
