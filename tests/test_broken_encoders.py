"""Encoders that were exchanged, damaged or are broken: one line, and no wrong answer in silence."""

import json
import os
import shutil
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from cli_runner import error_of, run
from regionhash.encoders import EncoderError, read_encoder, resolve, sources
from regionhash.models import region_hash
from regionhash.parts.hashes import LinearHash
from tiny_encoders import write_encoder, write_encoder_with_words

SMALL = ("--bits", 64, "--short", 96, "--workers", 0)


@pytest.fixture
def graph(tmp_path):
    (tmp_path / "encoder").mkdir()
    return write_encoder(tmp_path / "encoder")


def index(photos, folder, encoder, *options):
    return run("index", photos, "-o", folder, "--encoder", encoder, *SMALL, *options)


def rewrite_words(folder, change):
    """Changes text.onnx or tokenizer.json of a stored encoder, and what encoder.json says of it."""
    from regionhash.encoders.stored import sha256_of

    change(folder)
    record = json.loads((folder / "encoder.json").read_text())
    for name, file in (("graph", "text.onnx"), ("tokenizer", "tokenizer.json")):
        record["text"][name] = {
            "bytes": (folder / file).stat().st_size, "sha256": sha256_of(folder / file)
        }  # fmt: skip
    (folder / "encoder.json").write_text(json.dumps(record))


def test_the_words_of_another_encoder_are_not_taken(photos, worded, tmp_path):
    shutil.copytree(worded, tmp_path / "i")

    def other_words(folder):
        content = json.loads((folder / "tokenizer.json").read_text())
        known = content["model"]["vocab"]
        known["cat"], known["dog"] = known["dog"], known["cat"]
        (folder / "tokenizer.json").write_text(json.dumps(content))

    rewrite_words(tmp_path / "i", other_words)
    said = error_of("search", tmp_path / "i", "--text", "cat")
    assert "is not the one that model.json describes" in said
    assert "1 problems" in run("check", tmp_path / "i", code=1).stdout


def test_a_damaged_folder_is_no_source(graph, photos, tmp_path):
    run("fetch", f"onnx:{graph}", "-o", tmp_path / "stored")
    content = bytearray((tmp_path / "stored/encoder.onnx").read_bytes())
    content[2000] ^= 32
    (tmp_path / "stored/encoder.onnx").write_bytes(content)
    for words in (
        ("fetch", f"onnx:{tmp_path / 'stored'}", "-o", tmp_path / "again"),
        ("index", photos, "-o", tmp_path / "i", "--encoder", f"onnx:{tmp_path / 'stored'}"),
    ):
        assert "not the file that encoder.json describes" in error_of(*words)
    assert not (tmp_path / "again").exists() and not (tmp_path / "i").exists()


def test_fetch_does_not_write_into_a_collection(graph, photos, tmp_path):
    index(photos, tmp_path / "i", f"onnx:{graph}")
    said = error_of("fetch", f"onnx:{graph}", "-o", tmp_path / "i")
    assert said == f"{tmp_path / 'i'}: holds a model or a collection; name a new folder"


def test_the_same_encoder_is_known_under_another_name_and_another_is_not(graph, photos, tmp_path):
    run("fetch", f"onnx:{graph}", "-o", tmp_path / "stored")
    index(photos, tmp_path / "i", f"onnx:{tmp_path / 'stored'}")
    for name in (tmp_path / "stored", graph, os.path.relpath(graph)):
        index(photos, tmp_path / "i", f"onnx:{name}")
    (tmp_path / "other").mkdir()
    shutil.copy(write_encoder(tmp_path / "other", seed=1), graph)
    said = error_of("index", photos, "-o", tmp_path / "i", "--encoder", f"onnx:{graph}")
    assert "is an index with another encoder than" in said or "got onnx:" in said


def test_check_finds_a_damaged_encoder(graph, photos, tmp_path):
    index(photos, tmp_path / "i", f"onnx:{graph}")
    assert "0 problems" in run("check", tmp_path / "i").stdout
    with (tmp_path / "i/encoder.onnx").open("ab") as file:
        file.write(b"x")
    assert "encoder.onnx: " in run("check", tmp_path / "i", code=1).stdout


@pytest.mark.timeout(20)
def test_numbers_without_end_and_pipes_do_not_hang(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\xff" * 3_000_000)
    with pytest.raises(EncoderError, match=r"x\.onnx"):
        resolve(f"onnx:{tmp_path / 'x.onnx'}")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_weights_beside_a_graph_are_files_of_its_folder(tmp_path, kind):
    import onnx

    (tmp_path / "in").mkdir()
    model = onnx.load(write_encoder(tmp_path / "in"))
    beside = {"save_as_external_data": True, "location": "data", "size_threshold": 0}
    onnx.save(model, tmp_path / "in/encoder.onnx", **beside)
    resolve(f"onnx:{tmp_path / 'in/encoder.onnx'}")
    data = tmp_path / "in/data"
    shutil.move(data, tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(data)
    else:
        data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EncoderError, match="data: cannot read the weights"):
        resolve(f"onnx:{tmp_path / 'in/encoder.onnx'}")


def test_text_that_is_no_unicode_is_one_line(worded):
    assert "text must be words in Unicode" in error_of("search", worded, "--text", "\udcff")


def test_a_tokenizer_that_fails_is_one_line(tmp_path):
    (tmp_path / "encoder").mkdir()
    resolve(write_encoder_with_words(tmp_path / "encoder")).write(tmp_path / "stored")

    def without_unknown(folder):
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"]["unk_token"] = "[NONE]"
        (folder / "tokenizer.json").write_text(json.dumps(content))

    rewrite_words(tmp_path / "stored", without_unknown)
    with pytest.raises(EncoderError, match="tokenizer: "):
        read_encoder(tmp_path / "stored").text.vectors(["backpack"])


@pytest.mark.parametrize(
    "change", [{"ids": "foo"}, {"mask": "foo"}, {"output": "foo"}, {"n_vector": 5}]
)
def test_a_layout_of_other_words_is_one_line(tmp_path, change):
    (tmp_path / "encoder").mkdir()
    resolve(write_encoder_with_words(tmp_path / "encoder")).write(tmp_path / "stored")
    record = json.loads((tmp_path / "stored/encoder.json").read_text())
    record["text"]["layout"] |= change
    (tmp_path / "stored/encoder.json").write_text(json.dumps(record))
    with pytest.raises(EncoderError):
        read_encoder(tmp_path / "stored").text.vectors(["cat"])


def test_words_are_left_out_of_a_stored_encoder_too(tmp_path):
    (tmp_path / "encoder").mkdir()
    resolve(write_encoder_with_words(tmp_path / "encoder")).write(tmp_path / "stored")
    assert resolve(f"onnx:{tmp_path / 'stored'}").text is not None
    resolve(f"onnx:{tmp_path / 'stored'}", words=False).write(tmp_path / "bare")
    assert not (tmp_path / "bare/text.onnx").exists()
    resolve(f"onnx:{tmp_path / 'bare'}").write(tmp_path / "stored")
    assert not (tmp_path / "stored/tokenizer.json").exists()


# -- of other packages ----------------------------------------------------------------------------


class Broken:
    """An encoder of six channels, of which one thing is wrong."""

    n_channels, n_vector, gives_map, stride, pooling, fixed_size = 6, 0, True, 16, "mean", None

    def __init__(self, wrong):
        self.wrong = wrong
        for name, value in {"channels": ("n_channels", "6"), "pooling": ("pooling", "sum")}.items():
            if wrong == name:
                setattr(self, *value)

    def prepare(self, image, short):
        from regionhash.data.frames import to_pixels

        return to_pixels(image, short, 16)

    def map(self, pixels):
        if self.wrong == "raises":
            raise RuntimeError("of itself")
        shape = (6, pixels.shape[1] // 16, pixels.shape[2] // 16)
        found = np.random.default_rng(0).random(shape).astype(np.float32)
        if self.wrong == "nan":
            found[0] = np.nan
        return found.transpose(0, 2, 1)[:, :1] if self.wrong == "shape" else found

    def vectors(self, inputs):
        raise NotImplementedError


@pytest.mark.parametrize("wrong", ["raises", "nan", "shape", "channels", "pooling"])
def test_a_broken_encoder_of_another_package_is_one_line(photos, tmp_path, monkeypatch, wrong):
    entry = EntryPoint("bad", f"{__name__}:Broken", sources.ENTRY_POINTS)

    def entries(group, name=None):
        return [entry] if name in (None, "bad") else []

    monkeypatch.setattr(sources, "entry_points", entries)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    said = error_of("index", photos, "-o", tmp_path / "i", "--encoder", f"bad:{wrong}", *SMALL)
    assert said.startswith("encoder bad:") and "\n" not in said
    assert not (tmp_path / "i/model.json").exists()


@pytest.mark.parametrize(
    "start", ["", "onnx:", "hf:", "timm:", "timm:test_vit=", "torchvision:", "other:"]
)
def test_a_spec_of_thousands_of_characters_is_one_short_line(photos, tmp_path, start):
    spec = start.ljust(5000, "x")
    said = error_of("index", photos, "-o", tmp_path / "i", "--encoder", spec, *SMALL)
    assert "\n" not in said and len(said) < 200
    assert said.startswith("encoder '") and "at most 4,500 characters, got 5,000" in said
    assert not (tmp_path / "i/model.json").exists()


def test_models_lists_the_others_beside_a_broken_package(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    (folder / "broken-1.0.dist-info").mkdir(parents=True)
    (folder / "broken-1.0.dist-info/METADATA").write_text("Name: broken\nVersion: 1.0\n")
    (folder / "broken-1.0.dist-info/entry_points.txt").write_text(
        "[regionhash.models]\na-raising = broken_package:Model\nz-working = fine_package:Model\n"
        "m-missing = broken_package.nowhere:Model\nf-function = fine_package:function\n"
    )
    (folder / "broken_package.py").write_text('raise RuntimeError("first line\\nsecond line")\n')
    (folder / "fine_package.py").write_text(
        'class Model:\n    """Of tests."""\n    def encode(self): ...\ndef function(): ...\n'
    )
    monkeypatch.syspath_prepend(folder)
    plain = json.loads(run("models", "--json").stdout)["models"]
    assert plain["drh"] and plain["region-dh"] and plain["z-working"] == "Of tests."
    raises = "broken_package:Model: first line second line"
    assert plain["a-raising"] == f"cannot be used: model a-raising: {raises}"
    assert plain["m-missing"].startswith("cannot be used: model m-missing: broken_package.nowhere:")
    assert plain["f-function"].endswith("fine_package:function: is no class of a model")
    assert not any("\n" in line for line in plain.values())
    drawn = run("models").stdout
    assert all(name in drawn for name in plain)


def hash_raises(*_):
    raise RuntimeError("of itself")


def hash_none(*_):
    return None


def hash_shape(x, n_bits, generator, reporter):
    return LinearHash(np.zeros((n_bits, 1), np.float32), np.zeros(n_bits, np.float32))


def hash_nan(x, n_bits, generator, reporter):
    return LinearHash(np.full((n_bits, x.shape[1]), np.nan), np.zeros(n_bits))


@pytest.mark.parametrize(
    "name", ["hash_raises", "hash_none", "hash_shape", "hash_nan", "hash_missing"]
)
def test_a_broken_hash_of_another_package_is_one_line(graph, photos, tmp_path, monkeypatch, name):
    entry = EntryPoint("bad", f"{__name__}:{name}", region_hash.HASH_ENTRY_POINTS)
    monkeypatch.setattr(region_hash, "entry_points", lambda group: [entry])
    words = ("index", photos, "-o", tmp_path / "i", "--encoder", f"onnx:{graph}", *SMALL)
    said = error_of(*words, "--hash", "bad")
    assert "hash" in said and "\n" not in said
    assert not (tmp_path / "i/model.json").exists()
