"""Whatever lies in the place of a checkpoint works, or one line names the file and the reason."""

import hashlib
import json
import os
import random
import shutil
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cli_runner import error_of
from conftest import TINY_BACKBONE, SavedModel, build_tiny, save_tiny
from mutations import changed, damaged
from regionhash.models.checkpoints import (
    Checkpoint,
    CheckpointError,
    copy_checkpoint,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from regionhash.models.encoding import encode_picture

PICTURE = np.zeros((40, 50, 3), np.uint8)


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the hash that belongs to it: anybody who knows the code can write it."""
    identity = {
        name: record.get(name) for name in ("format", "model", "arguments", "classes", "short")
    }
    text = json.dumps(identity, sort_keys=True) + str(record.get("weights_hash"))
    return record | {"model_hash": hashlib.sha256(text.encode()).hexdigest()[:16]}


def use(folder: Path) -> None:
    """Loads and encodes."""
    model, checkpoint = load_checkpoint(folder)
    assert encode_picture(model, checkpoint, PICTURE).regions is not None


def refusal(folder: Path) -> str:
    """Why it cannot be loaded: one line that names a file."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    said = str(caught.value)
    assert said.startswith((f"{folder / 'model.json'}: ", f"{folder / 'model.safetensors'}: "))
    assert "\n" not in said and len(said) < 700
    return said.partition(": ")[2]


@pytest.fixture
def folder(saved: SavedModel, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(saved.folder, tmp_path / "model"))


def record_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "model.json").read_text()))


def rewrite(folder: Path, record: Any) -> None:
    (folder / "model.json").write_text(json.dumps(record))


# -- model.json -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "model must be text, got 3"),
        ({"model": ["region-dh"]}, "model must be text"),
        ({"arguments": []}, "arguments must be an object, got []"),
        ({"classes": "0123456789"}, "classes must be a list, got '0123456789'"),
        ({"classes": 10}, "classes must be a list, got 10"),
        ({"classes": [*"012345678", 9]}, "classes must be names, got 9"),
        ({"classes": [*"012345678", ""]}, "classes must be names, got ''"),
        ({"classes": [*"012345678", "0"]}, "classes must be distinct"),
        ({"classes": [*"012345678"]}, "arguments: n_classes is 10, of 9"),
        ({"short": "160"}, "short must be a whole number, got '160'"),
        ({"short": 64.0}, "short must be a whole number, got 64.0"),
        ({"short": True}, "short must be a whole number, got True"),
        ({"short": 20_000}, "short must be in [32, 2048], got 20000"),
        ({"short": -1}, "short must be in [32, 2048], got -1"),
        ({"weights_hash": None}, "weights_hash must be text, got None"),
        ({"weights_hash": "../../etc/passwd"}, "weights_hash must be 64 digits"),
        ({"provenance": "mine"}, "provenance must be an object, got 'mine'"),
    ],
)
def test_a_field_that_cannot_be_right_is_named(folder, change, message):
    rewrite(folder, sealed(record_of(folder) | change))
    assert refusal(folder).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_bits": "32"}, "arguments: n_bits: must be int, got '32'"),
        ({"n_bits": 10**10}, "arguments: n_bits: must be from 0 to 65536, got 10000000000"),
        ({"n_bits": 10**400}, "arguments: n_bits: must be from 0 to 65536, got "),
        ({"n_bits": 12}, "arguments: the number of bits must be a positive multiple of 8"),
        ({"n_bits": -8}, "arguments: n_bits: must be from 0 to 65536, got -8"),
        ({"dropout": float("nan")}, "arguments: dropout: must be finite, got nan"),
        ({"dropout": 10**400}, "arguments: dropout: must be finite, got 1000"),
        ({"dropout": 7.0}, "arguments: dropout probability has to be between 0 and 1, but got 7.0"),
        ({"gamma_h2": True}, "arguments: gamma_h2: must be float, got True"),
        ({"fusion": "sum"}, "arguments: fusion: must be one of"),
        ({"backbone": {"a": 1}}, "arguments: backbone: must be str, got {'a': 1}"),
        ({"backbone": "vgg"}, "arguments: unknown backbone 'vgg'"),
        ({"n_proposals": 60_000}, "arguments: n_proposals must be in [1, 10000], got 60000"),
        ({"hidden": 3}, "arguments: 'hidden' is unknown; known are n_bits, "),
        ({"n_hidden": 64}, "the weights do not fit the model: 'head.fc6.weight' must be float (64"),
        ({"n_hidden": 65_536}, "the weights do not fit the model: 'head.fc6.weight' must be float"),
    ],
)
def test_an_argument_that_cannot_be_right_is_named(folder, change, message):
    record = record_of(folder)
    rewrite(folder, sealed(record | {"arguments": record["arguments"] | change}))
    assert refusal(folder).startswith(message)


def test_every_field_and_every_argument_without_a_default_is_needed(folder):
    record = record_of(folder)
    for name in ("model", "arguments", "classes", "short", "weights_hash", "provenance"):
        rewrite(folder, sealed({key: value for key, value in record.items() if key != name}))
        assert refusal(folder) == f"{name!r} is missing"
    less = {name: value for name, value in record["arguments"].items() if name != "n_bits"}
    rewrite(folder, sealed(record | {"arguments": less}))
    assert refusal(folder) == "arguments: n_bits is missing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read the checkpoint: Expecting value"),
        (b"[1, 2]", "cannot read the checkpoint: must be an object, got [1, 2]"),
        (b"1" * 5000, "cannot read the checkpoint: Exceeds the limit"),
        (b'{"short": 1e400, "format": 1e400}', "checkpoint format inf, this version"),
        (b'{"format": "\xff"}', "cannot read the checkpoint: 'utf-8' codec can't decode"),
        (
            b'{"format": 1, "format": 1}',
            "cannot read the checkpoint: duplicate key 'format'",
        ),
        (b'{"a":' * 100_000, "cannot read the checkpoint: nested too deeply"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "cannot read the checkpoint: nested too deeply"),
        (b"[" + b"0," * (9 << 20) + b"0]", "cannot read the checkpoint: longer than 16 MiB"),
    ],
)
def test_json_of_any_kind_is_one_line(folder, content, message):
    (folder / "model.json").write_bytes(content)
    assert refusal(folder).startswith(message)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_what_is_no_ordinary_file_is_not_waited_for(folder, name):
    for make in (os.mkdir, os.mkfifo):
        path = folder / name
        path.unlink()
        make(path)
        assert any(word in refusal(folder) for word in ("file", "directory"))
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(b"")


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    for name in ("x" * 300, "x/" * 3000):
        with pytest.raises(CheckpointError, match=r": (File name too|no such file)"):
            load_checkpoint(tmp_path / name)


def test_a_changed_field_has_another_hash_and_is_refused(folder):
    record = record_of(folder)
    for change in (
        {"short": 96},
        {"classes": ["9", *"012345678"]},
        {"arguments": record["arguments"] | {"max_regions": 6}},
        {"arguments": {k: v for k, v in record["arguments"].items() if k != "dropout"}},
        {"model_hash": "0" * 16},
    ):
        rewrite(folder, record | change)
        with pytest.raises(CheckpointError, match=r"model\.json: model_hash is .*: changed since"):
            read_checkpoint(folder)
    rewrite(folder, record | {"provenance": {"note": "copied"}})  # no code depends on it
    assert read_checkpoint(folder).model_hash == record["model_hash"]


def test_the_defaults_of_the_builder_are_saved_and_hashed(tmp_path, monkeypatch):
    first = save_tiny(tmp_path / "a")
    assert first.checkpoint.arguments["min_score"] == 0.05
    assert record_of(tmp_path / "a")["arguments"] == first.checkpoint.arguments
    second = save_tiny(tmp_path / "b", min_score=0.05)
    assert second.checkpoint.model_hash == first.checkpoint.model_hash
    third = save_tiny(tmp_path / "c", min_score=0.06)
    assert third.checkpoint.model_hash != first.checkpoint.model_hash


def test_the_shipped_models_have_the_hashes_that_code_files_refer_to():
    shipped = Path(__file__).parents[1] / "src" / "regionhash" / "demo_model"
    hashes = {folder.name: load_checkpoint(folder)[1].model_hash for folder in shipped.iterdir()}
    assert hashes == {
        "control": "c2c93a79fb65a45c",
        "dlbhc": "49bb7d45e291d121",
        "region-dh": "ca81037725b92321",
        "ssdh": "f99327409e532f46",
    }


def test_a_checkpoint_that_could_not_be_read_is_not_written(tmp_path):
    arguments = TINY_BACKBONE | {"n_bits": 16, "n_classes": 2}
    model = build_tiny("ssdh", **arguments)
    bare = Checkpoint("ssdh", arguments, ("a", "b"), short=64)
    kept = save_checkpoint(tmp_path, model, bare)
    with pytest.raises(CheckpointError, match=r"model\.json: not written: short must be in"):
        save_checkpoint(tmp_path, model, Checkpoint("ssdh", arguments, ("a", "b"), short=9000))
    assert read_checkpoint(tmp_path).model_hash == kept.model_hash


# -- weights --------------------------------------------------------------------------------------


def with_weights(folder: Path, change: dict[str, Any]) -> None:
    """Other weights, with hashes that fit."""
    weights = folder / "model.safetensors"
    state = load_file(weights) | change
    save_file({name: value for name, value in state.items() if value is not None}, weights)
    with_hash(folder)


def with_hash(folder: Path) -> None:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    rewrite(folder, sealed(record_of(folder) | {"weights_hash": digest}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h2.linear.bias": torch.full((32,), torch.nan)}, "h2.linear.bias holds values that are"),
        ({"h2.linear.bias": torch.full((32,), torch.inf)}, "h2.linear.bias holds values that are"),
        (
            {"h2.linear.bias": torch.full((32,), 1e300, dtype=torch.float64)},
            "h2.linear.bias holds values that are not finite",
        ),
        (
            {"h2.linear.bias": torch.zeros(33)},
            "the weights do not fit the model: 'h2.linear.bias' must be float (32,), got float",
        ),
        (
            {"h2.linear.bias": torch.zeros(32, dtype=torch.int64)},
            "the weights do not fit the model: 'h2.linear.bias' must be float (32,), got int (32,)",
        ),
        (
            {"h2.linear.bias": torch.zeros(32, dtype=torch.bool)},
            "the weights do not fit the model: 'h2.linear.bias' must be float (32,), got BOOL",
        ),
        (
            {"h2.linear.bias": None},
            "the weights do not fit the model: 'h2.linear.bias' must be float (32,), got left out",
        ),
        (
            {"x": torch.zeros(3)},
            "the weights do not fit the model: 'x' must be left out, got float (3,)",
        ),
    ],
)
def test_weights_that_the_model_cannot_have_are_named(folder, change, message):
    with_weights(folder, change)
    assert refusal(folder).startswith(message)


def header(content: bytes, size: int = 0) -> bytes:
    return struct.pack("<Q", len(content)) + content + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 90 << 20) + b"{}",
        header(b"{}"),
        header(b"[]"),
        header(b'{"a":' * 10_000),
        header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', 4),
        header(b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', 4),
        header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}', 4),
        header(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'),
        header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            4,
        ),
    ],
)
def test_weights_of_any_kind_are_one_line(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with_hash(folder)
    assert refusal(folder).startswith(("damaged: ", "the weights do not fit the model: "))


def test_a_file_of_many_gigabytes_is_not_read(folder):
    weights = folder / "model.safetensors"
    os.truncate(weights, 100 << 30)  # a hole
    assert refusal(folder).startswith("damaged: ")


# -- kills ----------------------------------------------------------------------------------------


def killed_at(step: int, origin: Path, folder: Path) -> bool:
    """Whether a process was killed before its `step`-th syncing or renaming while it copies."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    calls = 0

    def counted(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call

    try:
        os.fsync, Path.replace = counted(os.fsync), counted(Path.replace)  # type: ignore[method-assign]
        copy_checkpoint(origin, folder)
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_at_any_step_a_writer_leaves_the_old_model_or_the_new_one(
    saved, other_saved, tmp_path
):
    old, new = other_saved.checkpoint.model_hash, saved.checkpoint.model_hash
    found: list[str] = []
    for step in range(1, 30):
        folder = tmp_path / str(step)
        copy_checkpoint(other_saved.folder, folder)
        killed = killed_at(step, saved.folder, folder)
        found.append(load_checkpoint(folder)[1].model_hash)
        if not killed:
            break
        # The next writer finds what this one has left, whatever it is killed at.
        killed_at(1 + step % 5, other_saved.folder, folder)
        assert load_checkpoint(folder)[1].model_hash in (old, new)
        copy_checkpoint(other_saved.folder, folder)
        assert load_checkpoint(folder)[1].model_hash == old
        assert {path.name for path in folder.iterdir()} == {"model.json", "model.safetensors"}
    assert not killed and len(found) > 5, found
    assert found == sorted(found, key=[old, new].index)  # once new, always new
    assert found[0] == old and found[-2:] == [new, new]


def test_weights_that_wait_do_not_hide_that_the_others_are_damaged(folder):
    shutil.copy(folder / "model.safetensors", folder / "model.safetensors.new")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x77")
    use(folder)  # the copy has the hash
    (folder / "model.safetensors.new").write_bytes(b"cut")
    assert refusal(folder) == "damaged, or not the weights that model.json describes"


# -- anything -------------------------------------------------------------------------------------


def mutate(folder: Path, rng: random.Random) -> None:
    """Damages one of the two files, half of the time with hashes that fit."""
    if rng.random() < 0.6:
        record = changed(record_of(folder), rng)
        for _ in range(rng.choice([0, 0, 1])):
            record = changed(record, rng) if record else record
        rewrite(
            folder, sealed(record) if isinstance(record, dict) and rng.random() < 0.7 else record
        )
        return
    name = rng.choice(["model.json", "model.safetensors", "model.safetensors"])
    path = folder / name
    content = path.read_bytes()
    if name == "model.json" or rng.random() < 0.3:
        path.write_bytes(damaged(content, rng))
    else:  # near the start, where names, shapes and offsets stand
        n = 8 + struct.unpack("<Q", content[:8])[0]
        path.write_bytes(damaged(content[:n], rng) + content[n:])
    if name != "model.json" and rng.random() < 0.7:
        with_hash(folder)


def check(folder: Path) -> bool:
    """Whether the checkpoint works; if not, it is refused in one line."""
    try:
        use(folder)
    except CheckpointError as error:
        said = str(error)
        assert said.startswith(str(folder)) and "\n" not in said and len(said) < 1000
        return False
    return True


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_mutant_works_or_is_refused_in_one_line(saved, tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("mutant") / "model"
    shutil.copytree(saved.folder, folder)
    mutate(folder, random.Random(seed))
    check(folder)


@pytest.mark.parametrize("change", [{"short": "a"}, {"short": 20_000}, {"classes": 3}])
def test_commands_end_with_one_line(folder, photos, tmp_path, change):
    rewrite(folder, sealed(record_of(folder) | change))
    for command in (
        ["info", folder],
        ["encode", folder, photos, "-o", tmp_path / "codes.h5"],
        ["index", photos, "-o", tmp_path / "index", "--model", folder],
    ):
        message = error_of(*command)
        assert "\n" not in message and message.startswith(f"{folder / 'model.json'}: ")
