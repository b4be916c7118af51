"""Whatever lies in the place of a code file works, or one line names the file and the reason."""

import json
import os
import random
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_runner import error_of
from code_file_cases import MODEL, add_range, encoded, image_id, journal_of, write
from mutations import changed, damaged
from regionhash.data.images import ImageError
from regionhash.data.inputs import Pictures
from regionhash.models.checkpoints import CheckpointError, model_folder
from regionhash.search import search_categories, search_images, search_objects, search_regions
from regionhash.store import CodeFile, CodeFileWriter, StoreError, row_shapes_of
from regionhash.structures import CategoryCodes, EncodedImage, Regions

META = {
    "checkpoint": "/nowhere/model",
    "precision": "32-true",
    "sources": [{"folder": "/nowhere/", "suffix": ".jpg"}],
    "provenance": {"versions": {}},
}
COUNT = 6


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A code file of six pictures, not to be changed."""
    path = tmp_path_factory.mktemp("good") / "codes.h5"
    write(path, COUNT, meta=META)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with all parts, that is with features too."""
    path = tmp_path_factory.mktemp("whole") / "codes.h5"
    write(path, COUNT, keep_features=True, meta=META)
    return path


@pytest.fixture
def path(good: Path, tmp_path: Path) -> Path:
    """A code file to damage."""
    return Path(shutil.copy(good, tmp_path / "codes.h5"))


def use(path: Path) -> None:
    """Opens, searches in all ways, and looks for model and pictures."""
    file = CodeFile.open(path)
    table, probe = file.table, encoded(3)
    ids = list(table.ids)
    assert len(ids) == len(table)
    if table.image_codes is not None and file.n_bits == MODEL["n_bits"]:
        search_images(probe.image_code, table, top=3)
    if table.region_codes is not None and file.n_region_bits == MODEL["n_region_bits"]:
        for hit in search_regions(probe.regions.codes[0], table, top=3):
            if hit.matches[0].label >= 0:
                assert file.classes[hit.matches[0].label]
        search_objects(probe.regions.codes, table, top=3)
    if table.category_codes is not None and table.category_codes.shape[1] == 2:
        asked = CategoryCodes(
            np.array([1]), np.ones(1, np.float32), np.zeros((1, 2), np.uint8)
        )  # fmt: skip
        search_categories(asked, table, top=3)
    for n in range(min(len(table), 3)):
        if table.offsets is not None:
            table.regions(n)
    if "checkpoint" in file.meta:
        model_folder(file.path, file.model_hash, file.meta)
    if "sources" in file.meta and not any("data" in source for source in file.meta["sources"]):
        for name in ids[:2]:
            with pytest.raises(ImageError):
                Pictures(file.meta["sources"])[name]


def take_up(path: Path) -> None:
    """Adds to it."""
    with CodeFileWriter(path, **MODEL, keep_features=True, meta=META) as writer:
        try:
            add_range(writer, 20, 22)
        except ValueError as error:  # the parts of these pictures are not those of the file
            assert f"every image of {path} must have the parts" in str(error)
        writer.finish()
    CodeFile.open(path)


def works(function: Any, path: Path) -> bool:
    """Whether it works; if not, it is refused in one line that names a file."""
    try:
        function(path)
    except (StoreError, CheckpointError) as error:
        said = str(error)
        assert said.startswith(str(path)) and "\n" not in said and len(said) < 1000
        return False
    return True


def refusal(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        CodeFile.open(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and "\n" not in said and len(said) < 700
    return said.partition(": ")[2]


def header_of(path: Path) -> dict[str, Any]:
    with h5py.File(path, "r") as hdf5:
        return dict(json.loads(hdf5.attrs["header"]))


def set_header(path: Path, header: Any) -> None:
    with h5py.File(path, "r+") as hdf5:
        hdf5.attrs["header"] = json.dumps(header)


def set_rows(path: Path, name: str, rows: Any) -> None:
    with h5py.File(path, "r+") as hdf5:
        del hdf5[name]
        if rows is not None:
            hdf5[name] = rows


# -- header ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "header: model must be text, got 3"),
        ({"model_hash": None}, "header: model_hash must be text, got None"),
        ({"classes": "cat"}, "header: classes must be a list, got 'cat'"),
        ({"classes": ["cat", 3, "cow"]}, "header: classes must be names, got 3"),
        ({"classes": ["cat", "cat", "cow"]}, "header: classes must be distinct"),
        ({"classes": ["cat", "dog"]}, "class_probs must be (*, 2), got (6, 3)"),
        ({"n_bits": "32"}, "header: n_bits must be a whole number, got '32'"),
        ({"n_bits": -8}, "header: n_bits must be in [0, 65536], got -8"),
        ({"n_bits": 12}, "header: n_bits must be a multiple of 8, got 12"),
        ({"n_bits": 64}, "image_codes must be (*, 8), got (6, 4)"),
        ({"n_region_bits": 10**10}, "header: n_region_bits must be in [0, 65536], got 10000000000"),
        ({"n_region_bits": 32}, "region_codes must be (*, 4), got (7, 8)"),
        ({"meta": [1]}, "header: meta must be an object, got [1]"),
        ({"meta": {"checkpoint": 3}}, "header: checkpoint must be text, got 3"),
        ({"meta": {"checkpoint": "a\0"}}, "header: meta: checkpoint must be a path"),
        ({"meta": {"precision": 16}}, "header: meta: precision must be one of 32-true, bf16-mixed"),
        ({"meta": {"sources": {}}}, "header: sources must be a list, got {}"),
        ({"meta": {"sources": ["a"]}}, "header: meta: sources must be objects"),
        ({"meta": {"sources": [{"folder": "a"}]}}, "header: meta: sources must be objects"),
        ({"meta": {"sources": [{"data": 3}]}}, "header: meta: sources must be objects"),
        ({"version": "1"}, "version must be 1, got '1'"),
    ],
)
def test_a_field_that_cannot_be_right_is_named(path, change, message):
    set_header(path, header_of(path) | change)
    assert refusal(path).startswith(message)


@pytest.mark.parametrize(
    "value",
    [3, np.zeros(3), np.bytes_(b"{}"), h5py.Empty("f4"), ["a", "b"], "{", "[1]", '{"a":' * 10_000],
)
def test_a_header_of_any_kind_is_one_line(path, value):
    with h5py.File(path, "r+") as hdf5:
        hdf5.attrs["header"] = value
    assert refusal(path).startswith("header")
    with h5py.File(path, "r+") as hdf5:
        hdf5.attrs["header"] = hdf5["sizes"].ref
    assert refusal(path).startswith("header must be text")


def test_a_heap_without_an_end_is_not_read_for_ever(path):
    content = path.read_bytes()
    at = content.index(b"GCOL")
    (size,) = struct.unpack_from("<Q", content, at + 24)  # of the header
    free = at + 32 + -(-size // 8) * 8
    assert struct.unpack_from("<H", content, free) == (0,)
    path.write_bytes(content[: free + 8] + bytes(8) + content[free + 16 :])
    assert refusal(path).startswith("not a readable HDF5 file: object 2 of 0 bytes in the heap")


def test_what_the_writer_did_not_record_is_named_when_it_is_asked_for(path):
    header = header_of(path)
    set_header(path, header | {"meta": {}})
    file = CodeFile.open(path)
    with pytest.raises(StoreError, match=r"codes\.h5: its writer recorded no 'checkpoint' in meta"):
        model_folder(file.path, file.model_hash, file.meta)


@pytest.mark.parametrize("change", [{"classes": ("a", "a")}, {"meta": {"precision": 3}}])
def test_a_writer_does_not_begin_what_could_not_be_opened(tmp_path, change):
    with pytest.raises(StoreError, match=r"codes\.h5: header: "):
        CodeFileWriter(tmp_path / "codes.h5", **(MODEL | change))
    assert not list(tmp_path.iterdir())


# -- datasets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("labels", np.array([0, 1, 2, 0, 1, 2, 3]), "labels must be in [-1, 2], got values"),
        ("labels", np.array([0, 1, 2, 0, 1, 2, -2]), "labels must be in [-1, 2], got values"),
        ("categories", np.array([0, 1, 2, 0, 1, 3]), "categories must be in [0, 2], got values"),
        ("boxes", np.full((7, 4), np.nan, "<f4"), "boxes must be finite, got values from nan"),
        ("boxes", np.full((7, 4), np.inf, "<f4"), "boxes must be finite, got values from inf"),
        ("boxes", np.zeros((7, 5), "<f4"), "boxes must be (*, 4), got (7, 5)"),
        ("boxes", np.zeros(7, "<f4"), "boxes must be (*, 4), got (7,)"),
        ("scores", np.full(7, -np.inf, "<f4"), "scores must be finite, got values from -inf"),
        ("scores", np.zeros((7, 1), "<f4"), "scores must be (*), got (7, 1)"),
        ("scores", np.zeros(7, ">f4"), "scores must be float32, got >f4"),
        ("scores", np.zeros(7, [("a", "<f4")]), "scores must be float32, got [('a', '<f4')]"),
        ("scores", np.float32(1), "scores must be an array"),
        ("scores", h5py.Empty("<f4"), "scores must be an array"),
        ("sizes", np.full((6, 2), -1, "<i4"), "sizes must be in [0, inf], got values from -1"),
        ("image_labels", np.full((6, 3), 2, "u1"), "image_labels must be in [0, 1], got values"),
        ("image_labels", np.zeros((5, 3), "u1"), "image_labels must have 6 rows, got 5"),
        ("class_probs", np.full((6, 3), np.nan, "<f4"), "class_probs must be finite"),
        ("category_codes", np.zeros(6, "u1"), "category_codes must be (*, *), got (6,)"),
        ("offsets", np.array([1, 0, 1, 3, 6, 6, 7]), "offsets must start at 0 and never fall"),
        (
            "offsets",  # differences that overflow are positive all the same
            np.array([0, 2**62, -(2**63), -(2**62), 0, 6, 7]),
            "offsets must start at 0 and never fall",
        ),
        ("id_offsets", np.array([0, 9, 7, 24, 32, 40, 48]), "id_offsets must start at 0 and"),
    ],
)
def test_datasets_that_cannot_be_right_are_named(path, name, rows, message):
    set_rows(path, name, rows)
    assert message in refusal(path)


@pytest.mark.parametrize(
    "link",
    [
        h5py.SoftLink("/boxes"),
        h5py.SoftLink("/nowhere"),
        h5py.ExternalLink("other.h5", "/scores"),
        h5py.ExternalLink("pipe", "/scores"),
    ],
)
def test_links_are_not_followed(path, link):
    os.mkfifo(path.parent / "pipe")  # to open it would take for ever
    shutil.copy(path, path.parent / "other.h5")
    set_rows(path, "scores", link)
    assert refusal(path) == "scores must be a dataset of this file, got a link"


def test_what_lies_in_other_files_or_chunks_or_is_a_group_is_refused(path):
    def make(create: Any) -> str:
        with h5py.File(path, "r+") as hdf5:
            del hdf5["scores"]
            create(hdf5)
        return refusal(path)

    (path.parent / "raw").write_bytes(bytes(28))
    layout = h5py.VirtualLayout((7,), "<f4")
    layout[:] = h5py.VirtualSource("other.h5", "scores", (7,))
    for create in (
        lambda hdf5: hdf5.create_dataset("scores", (7,), "<f4", external=[("raw", 0, 28)]),
        lambda hdf5: hdf5.create_virtual_dataset("scores", layout),
        lambda hdf5: hdf5.create_dataset("scores", data=np.zeros(7, "<f4"), compression="gzip"),
        lambda hdf5: hdf5.create_dataset("scores", (0,), "<f4", maxshape=(None,)),
    ):
        assert make(create).startswith("scores must be contiguous")
    assert make(lambda hdf5: hdf5.create_group("scores")) == "scores must be an array"


def test_two_pictures_of_one_id_are_found_when_the_file_is_added_to(path):
    with h5py.File(path, "r+") as hdf5:
        hdf5["id_bytes"][8:16] = hdf5["id_bytes"][:8]
    with pytest.raises(StoreError, match=r"codes\.h5: damaged: two pictures have the same id"):
        CodeFileWriter(path, **MODEL)


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "codes.h5")
    assert refusal(tmp_path / "codes.h5") == "not an ordinary file"
    os.mkfifo(tmp_path / "new.h5.part")
    with pytest.raises(StoreError, match=r"new\.h5\.part: not an ordinary file; move it away"):
        CodeFileWriter(tmp_path / "new.h5", **MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.full((3, 4), np.nan, np.float32)}, "x: boxes must be finite"),
        ({"scores": np.full(3, np.inf, np.float32)}, "x: scores must be finite"),
        ({"labels": np.array([0, 1, 3])}, r"x: labels must be in \[-1, 2\]"),
    ],
)
def test_a_picture_that_would_make_the_file_unreadable_is_refused(tmp_path, change, message):
    whole = encoded(3)
    parts = {name: getattr(whole.regions, name) for name in ("boxes", "scores", "labels", "codes")}
    bad = EncodedImage(whole.size, regions=Regions(**(parts | change)))
    with CodeFileWriter(tmp_path / "codes.h5", **MODEL) as writer:
        with pytest.raises(ValueError, match=message):
            writer.add("x", bad)
        add_range(writer, 2)
        writer.finish()
    assert len(CodeFile.open(tmp_path / "codes.h5").table) == 2


# -- journals -------------------------------------------------------------------------------------


def records_of(journal: Path) -> list[bytes]:
    content, at, found = journal.read_bytes(), 8, []
    while at < len(content):
        (length,) = struct.unpack_from("<I", content, at)
        found.append(content[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def write_records(journal: Path, records: list[bytes]) -> None:
    """A journal whose checksums are right."""
    parts = [struct.pack("<II", len(record), zlib.crc32(record)) + record for record in records]
    journal.write_bytes(b"RHJOURN1" + b"".join(parts))


@pytest.fixture(scope="module")
def good_journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("journal") / "codes.h5"
    with CodeFileWriter(path, **MODEL, meta=META) as writer:
        add_range(writer, 4)
    return journal_of(path)


def rows_changed(name: str, shape: Any) -> Any:
    return lambda header: header | {"rows": header["rows"] | {name: shape}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [1], "must be an object, got [1]"),
        (lambda header: {k: v for k, v in header.items() if k != "rows"}, "'rows' is missing"),
        (lambda header: header | {"rows": []}, "rows must be an object, got []"),
        (lambda header: header | {"rows": {}}, "rows: []"),
        (rows_changed("other", [3]), "rows: {'other': [3]}"),
        (rows_changed("boxes", [5]), "rows: {'boxes': [5]}"),
        (rows_changed("boxes", 4), "rows: {'boxes': 4}"),
        (rows_changed("boxes", ["4"]), "rows: {'boxes': ['4']}"),
        (rows_changed("category_codes", [10**10]), "rows: {'category_codes': [10000000000]}"),
        (rows_changed("category_codes", [3]), "a picture of "),
    ],
)
def test_a_journal_whose_first_record_cannot_be_right_is_named(
    good_journal, tmp_path, change, message
):
    path = tmp_path / "codes.h5"
    first, *others = records_of(good_journal)
    write_records(journal_of(path), [json.dumps(change(json.loads(first))).encode(), *others])
    before = journal_of(path).read_bytes()
    with pytest.raises(StoreError) as caught:
        CodeFileWriter(path, **MODEL)
    assert str(caught.value).startswith(f"{journal_of(path)}: damaged: {message}")
    assert str(caught.value).endswith("; move it away")
    assert journal_of(path).read_bytes() == before


def test_a_journal_whose_pictures_cannot_be_right_is_named(good_journal, path):
    before = path.read_bytes()
    records = records_of(good_journal)
    for broken in (b"short", records[1][:-1], struct.pack("<3I", 7, 2**31, 2**31) + b"x"):
        write_records(journal_of(path), [records[0], broken])
        with pytest.raises(StoreError, match=r"codes\.h5\.part: damaged: a picture of \d+ bytes"):
            CodeFileWriter(path, **MODEL)
    # Labels that no class has pass until they are packed; the file that is there stays.
    assert records[3].count(struct.pack("<q", 2)) >= 1
    other = records[3].replace(struct.pack("<q", 2), struct.pack("<q", 9))
    other = other.replace(image_id(2).encode(), b"another!")
    write_records(journal_of(path), [records[0], other])
    with (
        CodeFileWriter(path, **MODEL) as writer,
        pytest.raises(StoreError, match=r"codes\.h5\.part: damaged: .* must be in"),
    ):
        writer.finish()
    assert path.read_bytes() == before


def test_a_record_longer_than_the_journal_takes_no_memory(path):
    journal_of(path).write_bytes(b"RHJOURN1" + struct.pack("<II", 2**32 - 1, 0) + b"x")
    with CodeFileWriter(path, **MODEL) as writer:
        assert len(writer.done) == COUNT


# -- anything -------------------------------------------------------------------------------------


def mutate(path: Path, rng: random.Random) -> None:
    """Damages a code file."""
    kind = rng.choice(["bytes", "bytes", "header", "header", "rows", "rows"])
    if kind == "bytes":
        path.write_bytes(damaged(path.read_bytes(), rng))
    elif kind == "header":
        set_header(path, changed(header_of(path), rng))
    else:
        names = [*row_shapes_of({"classes": (), "n_bits": 0, "n_region_bits": 0})]
        name = rng.choice([*names, "offsets", "id_offsets", "category_offsets"])
        with h5py.File(path, "r") as hdf5:
            there = hdf5[name][:]
        odd = [np.nan, np.inf, -1, 0, 1, 255, 2**31 - 1, 2**62, -(2**63)]
        with np.errstate(all="ignore"):
            filled = np.array(rng.choice(odd)).astype(there.dtype)
        one = there.copy()
        if one.size:
            one.flat[rng.randrange(one.size)] = filled
        rows: list[Any] = [None, there[:-1], there[::-1], there.astype("<f8"), there.T, one, one]
        rows += [np.full(there.shape, filled), np.zeros((0, 2), there.dtype), np.float64(3), "text"]
        set_rows(path, name, rng.choice(rows))


def mutate_journal(journal: Path, rng: random.Random) -> None:
    """Damages a journal, half of the time with checksums that fit."""
    records = records_of(journal)
    n = rng.randrange(len(records))
    if rng.random() < 0.5:
        journal.write_bytes(damaged(journal.read_bytes(), rng))
    elif n == 0 or rng.random() < 0.3:
        records[0] = json.dumps(changed(json.loads(records[0]), rng)).encode()
        write_records(journal, records)
    else:
        records[n] = damaged(records[n], rng)
        write_records(journal, records)


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_a_mutant_works_or_is_refused_in_one_line(whole, tmp_path_factory, seed):
    path = Path(shutil.copy(whole, tmp_path_factory.mktemp("mutant") / "codes.h5"))
    mutate(path, random.Random(seed))
    if works(use, path):
        works(take_up, path)


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_mutant_of_a_journal_is_taken_up_or_refused(good_journal, tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("mutant") / "codes.h5"
    shutil.copy(good_journal, journal_of(path))
    mutate_journal(journal_of(path), random.Random(seed))
    works(take_up, path)


@pytest.mark.parametrize("change", [{"classes": 3}, {"meta": 3}, {"meta": {}}, {"n_bits": "a"}])
def test_commands_end_with_one_line(path, photos, change):
    set_header(path, header_of(path) | change)
    commands = [["search", path, "--query", photos / "0.png"], ["evaluate", path, path]]
    if change == {"meta": {}}:  # which a measure does not need
        commands = commands[:1]
    else:
        commands.append(["info", path])
    for command in commands:
        message = error_of(*command)
        assert "\n" not in message and message.startswith(f"{path}: ")
