"""Precision of codes: what the CPU has, what is recorded, and that it stays."""

from pathlib import Path

import numpy as np
import pytest

from cli_runner import error_of, run
from regionhash.collection import Collection
from regionhash.collection.indexing import IndexSettings, build_index
from regionhash.data.images import read_image
from regionhash.models import runtime
from regionhash.models.encoding import encode, encode_picture
from regionhash.precision import bf16_of_cpu, check_precision, check_same_precision
from regionhash.store import CodeFile

ONE_PRECISION = "all codes of a collection or code file are of one precision"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f avx512_bf16 amx_bf16 amx_tile", "fast"),
        ("fpu avx512f avx512_bf16", "slow"),
        ("fpu avx2 avx512f avx512_fp16", "none"),
        ("", "none"),
    ],
)
def test_bfloat16_of_a_cpu_is_what_the_system_says(tmp_path, flags, expected):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nbugs\t\t: amx_bf16\nflags\t\t: {flags}\n")
    assert bf16_of_cpu(cpuinfo) == expected


def test_a_system_that_does_not_say_has_no_bfloat16(tmp_path):
    assert bf16_of_cpu(tmp_path / "missing") == "none"
    (tmp_path / "arm").write_text("Features\t: fp asimd bf16\n")
    assert bf16_of_cpu(tmp_path / "arm") == "none"


def test_a_precision_is_one_of_two():
    check_precision("bf16-mixed")
    with pytest.raises(ValueError, match="must be one of 32-true, bf16-mixed, got 'auto'"):
        check_precision("auto")
    check_same_precision("here", "bf16-mixed", "auto")
    check_same_precision("here", "bf16-mixed", "bf16-mixed")
    with pytest.raises(ValueError, match="here: holds codes of precision bf16-mixed, got 32-true"):
        check_same_precision("here", "bf16-mixed", "32-true")


@pytest.fixture
def with_bf16(monkeypatch):
    """A CPU that multiplies bfloat16 fast."""
    monkeypatch.setattr(runtime, "bf16_of_cpu", lambda: "fast")


def indexed(pictures, saved, folder):
    """A collection in `folder`, one picture at a time: others affect a code by rounding."""
    settings = IndexSettings({}, model=saved.folder)
    build_index([str(pictures)], folder, settings, workers=0, batch_size=1)
    return folder


@pytest.fixture
def halved(saved, photos, tmp_path, with_bf16):
    """A collection of three of the photos, made on a CPU that multiplies bfloat16 fast."""
    some = tmp_path / "some"
    some.mkdir()
    for n in range(3):
        (some / f"{n}.png").write_bytes((photos / f"{n}.png").read_bytes())
    return indexed(some, saved, tmp_path / "c")


def check_codes(collection, saved, photos, precision):
    """Asserts that every picture has the codes of this precision."""
    for stored in collection.images():
        image = read_image(photos / Path(stored.id).name)
        wanted = encode_picture(saved.model, saved.checkpoint, image, precision=precision)
        found = collection.encoded(stored.id)
        np.testing.assert_array_equal(found.class_probs, np.float16(wanted.class_probs))
        np.testing.assert_array_equal(found.image_code, wanted.image_code)


def test_a_new_collection_has_the_precision_of_its_machine(saved, photos, halved):
    with Collection.open(halved) as collection:
        assert collection.precision == "bf16-mixed"
        check_codes(collection, saved, photos, "bf16-mixed")


def test_a_cpu_without_fast_bfloat16_makes_codes_of_float32(saved, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "bf16_of_cpu", lambda: "slow")
    with Collection.open(indexed(photos, saved, tmp_path / "c")) as collection:
        assert collection.precision == "32-true"
        check_codes(collection, saved, photos, "32-true")


def test_a_collection_keeps_its_precision_on_another_machine(
    saved, photos, halved, tmp_path, monkeypatch
):
    monkeypatch.setattr(runtime, "bf16_of_cpu", lambda: "none")
    (tmp_path / "some" / "3.png").write_bytes((photos / "3.png").read_bytes())
    with Collection.open(indexed(tmp_path / "some", saved, halved)) as collection:
        assert len(collection) == 4
        collection.add([str(photos)], workers=0, batch_size=1)
        assert len(collection) == 4 + 6
        check_codes(collection, saved, photos, "bf16-mixed")


def test_a_search_computes_in_the_precision_of_the_collection(halved, monkeypatch, photos):
    monkeypatch.setattr(runtime, "bf16_of_cpu", lambda: "none")
    with Collection.open(halved) as collection:
        assert collection.model[0].precision == "bf16-mixed"
        found = collection.search(photos / "1.png", mode="image")
        assert found.hits[0].id.endswith("1.png") and found.hits[0].distance == 0


def test_another_precision_is_refused_and_nothing_changes(saved, photos, halved):
    before = (halved / "collection.db").read_bytes()
    line = f"{halved}: holds codes of precision bf16-mixed, got 32-true; {ONE_PRECISION}"
    asked = ("--precision", "32-true")
    assert error_of("index", photos, "-o", halved, "--model", saved.folder, *asked) == line
    assert error_of("add", halved, photos, *asked) == line
    assert (halved / "collection.db").read_bytes() == before
    run("add", halved, photos, "--precision", "bf16-mixed", "--workers", "0")
    with Collection.open(halved) as collection:
        assert len(collection) == 3 + 6


def test_codes_of_another_precision_are_not_imported(saved, photos, halved, tmp_path):
    encode(saved.folder, [str(photos)], tmp_path / "full.h5", precision="32-true", workers=0)
    error = error_of("import", halved, tmp_path / "full.h5")
    assert error.startswith(f"{tmp_path / 'full.h5'}: holds codes of precision 32-true, got bf16")
    with Collection.open(halved) as collection:
        assert len(collection) == 3


def test_a_code_file_keeps_its_precision_too(saved, photos, tmp_path, with_bf16, monkeypatch):
    codes = tmp_path / "codes.h5"
    run("encode", saved.folder, photos / "0.png", "-o", codes, "--workers", "0")
    assert CodeFile.open(codes).meta["precision"] == "bf16-mixed"
    monkeypatch.setattr(runtime, "bf16_of_cpu", lambda: "none")
    run("encode", saved.folder, photos, "-o", codes, "--workers", "0")
    assert len(CodeFile.open(codes).table) == 1 + 6
    assert CodeFile.open(codes).meta["precision"] == "bf16-mixed"
    line = f"{codes}: holds codes of precision bf16-mixed, got 32-true; {ONE_PRECISION}"
    words = ("encode", saved.folder, photos, "-o", codes, "--precision", "32-true")
    assert error_of(*words) == line


def test_a_precision_can_be_chosen_whatever_the_machine_has(saved, photos, tmp_path, with_bf16):
    words = ("index", photos, "--model", saved.folder, "--workers", "0", "--batch-size", "1")
    for precision in ("32-true", "bf16-mixed"):
        run(*words, "-o", tmp_path / precision, "--precision", precision)
        with Collection.open(tmp_path / precision) as collection:
            check_codes(collection, saved, photos, precision)
