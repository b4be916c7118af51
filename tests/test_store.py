"""The code file: what goes in comes out, whatever kills the writer."""

import json
import os
import re
import signal
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from code_file_cases import MODEL, add_range, child, encoded, image_id, journal_of, write
from regionhash.search import search_regions
from regionhash.store import CodeFile, CodeFileWriter, StoreError, journal
from regionhash.store import writer as writing
from regionhash.structures import EncodedImage, Regions


def check_holds_first(path, count):
    """The file holds the pictures 0 to `count` in order, as they went in."""
    file = CodeFile.open(path)
    table = file.table
    assert list(table.ids) == [image_id(n) for n in range(count)]
    assert file.labels.tolist() == [[n % 3 == c for c in range(3)] for n in range(count)]
    for n in range(count):
        wanted = encoded(n)
        assert tuple(table.sizes[n]) == wanted.size
        np.testing.assert_array_equal(table.image_codes[n], wanted.image_code)
        np.testing.assert_array_equal(table.class_probs[n], wanted.class_probs)
        regions = table.regions(n)
        for name in ("boxes", "scores", "labels", "codes"):
            np.testing.assert_array_equal(getattr(regions, name), getattr(wanted.regions, name))
        rows = slice(table.category_offsets[n], table.category_offsets[n + 1])
        np.testing.assert_array_equal(table.categories[rows], wanted.categories.categories)
        np.testing.assert_array_equal(table.category_probs[rows], wanted.categories.probs)
        np.testing.assert_array_equal(table.category_codes[rows], wanted.categories.codes)


def files_beside(path):
    return sorted(entry.name for entry in path.parent.iterdir())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "codes.h5"


# Reading


def test_what_was_written_is_read(path):
    write(path, 9, meta={"checkpoint": "model.safetensors", "numpy": "2"})
    check_holds_first(path, 9)
    file = CodeFile.open(str(path))
    assert (file.model, file.model_hash) == ("region-dh", "abc123")
    assert file.classes == file.table.classes == ("cat", "dog", "cow")
    assert (file.n_bits, file.n_region_bits) == (32, 64)
    assert file.meta == {"checkpoint": "model.safetensors", "numpy": "2"}
    assert files_beside(path) == ["codes.h5"]


def test_arrays_are_aligned_views_of_the_file_and_cannot_be_changed(path):
    write(path, 9)
    table = CodeFile.open(path).table
    for name in ("image_codes", "region_codes", "boxes", "labels", "offsets"):
        array = getattr(table, name)
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert array.ctypes.data % 64 == 0
    assert search_regions(table.region_codes[3], table, top=1)[0].distance == 0


def test_ids_are_a_sequence(path):
    write(path, 5)
    ids = CodeFile.open(path).table.ids
    assert (len(ids), ids[0], ids[-1], ids[1:3]) == (
        5,
        image_id(0),
        image_id(4),
        [image_id(1), image_id(2)],
    )
    assert image_id(3) in ids
    with pytest.raises(IndexError):
        ids[5]


@given(ids=st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=5))
@settings(max_examples=20, deadline=None)
def test_any_text_is_an_id(tmp_path_factory, ids):
    path = tmp_path_factory.mktemp("ids") / "codes.h5"
    with CodeFileWriter(path, **MODEL) as writer:
        for name in ids:
            writer.add(name, EncodedImage((1, 1)))
        writer.finish()
    table = CodeFile.open(path).table
    assert list(table.ids) == [table.ids[n] for n in range(len(table))] == ids


def test_a_file_name_that_is_no_utf8_comes_back_as_it_was(path):
    name = os.fsdecode(b"caf\xe9.jpg")
    with CodeFileWriter(path, **MODEL) as writer:
        writer.add(name, EncodedImage((1, 1)))
        writer.finish()
    assert os.fsencode(CodeFile.open(path).table.ids[0]) == b"caf\xe9.jpg"


def test_parts_that_were_not_given_are_absent(path):
    with CodeFileWriter(path, **MODEL) as writer:
        writer.add("a", EncodedImage((1, 2), image_code=np.zeros(4, np.uint8)))
        writer.finish()
    file = CodeFile.open(path)
    assert file.table.class_probs is file.table.offsets is file.table.region_codes is None
    assert file.table.category_offsets is file.labels is None
    with h5py.File(path) as hdf5:
        assert set(hdf5) == {"id_bytes", "id_offsets", "sizes", "image_codes"}


def test_pictures_without_any_region_are_stored(path):
    write(path, 0, 12, 12)  # only picture 0, which has none
    table = CodeFile.open(path).table
    assert table.offsets.tolist() == [0, 0]
    assert table.region_codes.shape == (0, 8)
    assert table.category_codes.shape == (0, 2)
    write(path, 9)
    check_holds_first(path, 9)


def test_a_file_of_no_picture_is_valid_and_can_be_added_to(path):
    write(path, 0)
    assert len(CodeFile.open(path).table) == 0
    write(path, 3)
    check_holds_first(path, 3)


def test_the_layout_is_the_documented_one(path):
    write(path, 6)  # 0 + 1 + 2 + 3 + 0 + 1 = 7 regions, 0 + 1 + 2 + 0 + 1 + 2 = 6 categories
    with h5py.File(path) as hdf5:
        layout = {name: (dataset.dtype.str, dataset.shape) for name, dataset in hdf5.items()}
        assert json.loads(hdf5.attrs["header"]) == {
            "format": "regionhash codes",
            "version": 1,
            "model": "region-dh",
            "model_hash": "abc123",
            "classes": ["cat", "dog", "cow"],
            "n_bits": 32,
            "n_region_bits": 64,
            "meta": {},
        }
    assert layout == {
        "id_bytes": ("|u1", (6 * len(image_id(0).encode()),)),
        "id_offsets": ("<i8", (7,)),
        "sizes": ("<i4", (6, 2)),
        "image_codes": ("|u1", (6, 4)),
        "class_probs": ("<f4", (6, 3)),
        "image_labels": ("|u1", (6, 3)),
        "offsets": ("<i8", (7,)),
        "boxes": ("<f4", (7, 4)),
        "scores": ("<f4", (7,)),
        "labels": ("<i8", (7,)),
        "region_codes": ("|u1", (7, 8)),
        "category_offsets": ("<i8", (7,)),
        "categories": ("<i8", (6,)),
        "category_probs": ("<f4", (6,)),
        "category_codes": ("|u1", (6, 2)),
    }


# Resuming and adding


def test_a_writer_goes_on_where_another_stopped(path):
    with CodeFileWriter(path, **MODEL) as writer:
        add_range(writer, 5)
    assert files_beside(path) == ["codes.h5.part"]
    with CodeFileWriter(path, **MODEL) as writer:
        assert writer.done == {image_id(n) for n in range(5)}
        add_range(writer, 9)
        writer.finish()
    check_holds_first(path, 9)


def test_a_finished_file_can_be_added_to_again_and_again(path):
    for count in (3, 4, 9):
        write(path, count)
        check_holds_first(path, count)


def test_small_chunks_give_the_same_file(path, monkeypatch):
    write(path, 20)
    whole = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(writing, "_CHUNK_BYTES", 16)
    write(path, 20)
    assert path.read_bytes() == whole


def test_a_finished_file_is_not_written_again_when_nothing_is_added(path):
    write(path, 5)
    before = path.stat()
    write(path, 5, meta={"other": "meta"})
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert files_beside(path) == ["codes.h5"]


def test_a_journal_cut_at_any_byte_keeps_the_whole_records(path):
    with CodeFileWriter(path, **MODEL) as writer:
        ends = [0]
        for n in range(4):
            add_range(writer, n, n + 1)
            ends.append(journal_of(path).stat().st_size)
    journal = journal_of(path).read_bytes()
    for size in range(0, len(journal), 3):
        journal_of(path).write_bytes(journal[:size])
        with CodeFileWriter(path, **MODEL) as writer:
            assert len(writer.done) == sum(end <= size for end in ends[1:])
    journal_of(path).write_bytes(journal[:-5])
    write(path, 6)
    check_holds_first(path, 6)


def test_zeros_behind_the_last_record_are_cut_off(path):
    with CodeFileWriter(path, **MODEL) as writer:
        add_range(writer, 4)
    with journal_of(path).open("ab") as journal:
        journal.write(bytes(10_000))
    with CodeFileWriter(path, **MODEL) as writer:
        assert len(writer.done) == 4
        add_range(writer, 8)
        writer.finish()
    check_holds_first(path, 8)


def test_a_record_with_a_wrong_bit_and_what_follows_is_encoded_again(path):
    with CodeFileWriter(path, **MODEL) as writer:
        add_range(writer, 3)
        kept = journal_of(path).stat().st_size
        add_range(writer, 3, 6)
    journal = bytearray(journal_of(path).read_bytes())
    journal[kept + 30] ^= 4
    journal_of(path).write_bytes(journal)
    with CodeFileWriter(path, **MODEL) as writer:
        assert len(writer.done) == 3
        add_range(writer, 6)
        writer.finish()
    check_holds_first(path, 6)


def test_a_kill_between_putting_the_file_in_place_and_emptying_the_journal_doubles_nothing(path):
    with CodeFileWriter(path, **MODEL) as writer:
        add_range(writer, 5)
    journal = journal_of(path).read_bytes()
    write(path, 5)
    journal_of(path).write_bytes(journal)
    with CodeFileWriter(path, **MODEL) as writer:
        add_range(writer, 5, 7)
    write(path, 8)
    check_holds_first(path, 8)


def test_a_killed_process_loses_nothing_that_it_reported(path, tmp_path_factory):
    code = """
        with CodeFileWriter(sys.argv[1], **MODEL) as writer:
            for n in range(len(writer.done), 10**6):
                add_range(writer, n, n + 1)
                print(n + 1, flush=True)
    """
    reported = 0
    for lines in (3, 40):
        with child(code, path) as process:
            for _ in range(lines):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            reported = int((process.stdout.read().split() or [reported + lines])[-1])
        with CodeFileWriter(path, **MODEL) as writer:
            assert len(writer.done) >= reported
    count = reported + 10
    write(path, count)
    undisturbed = tmp_path_factory.mktemp("undisturbed") / "codes.h5"
    write(undisturbed, count)
    assert path.read_bytes() == undisturbed.read_bytes()


def test_a_process_killed_while_it_packs_leaves_the_old_file_and_the_journal(path):
    write(path, 4)
    code = """
        from regionhash.store.writer import _NewFile
        def stop(self):
            print("packing", flush=True)
            time.sleep(60)
        _NewFile.finish = stop
        write(sys.argv[1], 9)
    """
    with child(code, path) as process:
        assert process.stdout.readline() == "packing\n"
        process.kill()
    check_holds_first(path, 4)
    with CodeFileWriter(path, **MODEL) as writer:
        assert len(writer.done) == 9
        writer.finish()
    check_holds_first(path, 9)
    assert files_beside(path) == ["codes.h5"]


def test_a_second_writer_is_refused_while_the_first_is_at_work(path, monkeypatch):
    monkeypatch.setattr(journal, "LOCK_SECONDS", 0.2)
    with CodeFileWriter(path, **MODEL) as writer:
        add_range(writer, 2)
        with pytest.raises(StoreError, match=r"codes\.h5\.part: another writer is at work on it"):
            CodeFileWriter(path, **MODEL)
        writer.finish()
    check_holds_first(path, 2)


# Refusals


@pytest.mark.parametrize(
    ("field", "name", "other"),
    [
        ("model_hash", "model_hash", "def456"),
        ("model_name", "model", "iah"),
        ("n_bits", "n_bits", 48),
        ("n_region_bits", "n_region_bits", 32),
        ("classes", "classes", ("cat",)),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_file_or_journal_of_another_model_is_refused_and_kept(path, finished, field, name, other):
    with CodeFileWriter(path, **MODEL) as writer:
        add_range(writer, 2)
        if finished:
            writer.finish()
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
    with pytest.raises(StoreError, match=f"codes.h5.*: {name} must be .*, got ") as caught:
        CodeFileWriter(path, **(MODEL | {field: other}))
    shown = list(other) if field == "classes" else other
    assert f"must be {shown!r}" in str(caught.value)
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before


def test_a_file_of_another_version_is_refused(path):
    write(path, 2)
    with h5py.File(path, "r+") as hdf5:
        hdf5.attrs["header"] = hdf5.attrs["header"].replace('"version": 1', '"version": 2')
    for use in (CodeFile.open, lambda path: CodeFileWriter(path, **MODEL)):
        with pytest.raises(StoreError, match=r"codes\.h5: version must be 1, got 2"):
            use(path)


def test_a_stranger_in_the_place_of_the_journal_is_kept(path):
    journal_of(path).write_text("a letter to my aunt")
    with pytest.raises(StoreError, match=r"codes\.h5\.part: not a journal"):
        CodeFileWriter(path, **MODEL)
    assert journal_of(path).read_text() == "a letter to my aunt"


def test_a_missing_file_a_directory_and_other_files_are_reported_by_name(path, tmp_path):
    with pytest.raises(StoreError, match=r"codes\.h5: no such file"):
        CodeFile.open(path)
    with pytest.raises(StoreError, match=f"{tmp_path.name}: "):
        CodeFile.open(tmp_path)
    for content in (b"", b"text", bytes(5000)):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"codes\.h5: not a readable HDF5 file"):
            CodeFile.open(path)
    with h5py.File(path, "w") as hdf5:
        hdf5["features"] = np.zeros(3)
    with pytest.raises(StoreError, match=r"format must be 'regionhash codes', got None"):
        CodeFile.open(path)
    with pytest.raises(
        StoreError, match=r"nowhere/codes\.h5: cannot write: its folder does not exist$"
    ):
        CodeFileWriter(tmp_path / "nowhere" / "codes.h5", **MODEL)


def test_a_truncated_file_is_refused_wherever_it_was_cut(path):
    write(path, 5)
    content = path.read_bytes()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        with pytest.raises(StoreError, match=r"codes\.h5: "):
            CodeFile.open(path)


def test_damaged_structures_are_refused_or_harmless(path):
    write(path, 3)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(0, len(content), 200):
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            len(CodeFile.open(path).table)
        except StoreError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("sizes", None, "no 'sizes'"),
        ("scores", None, "offsets needs scores"),
        ("scores", np.zeros(2, "<f4"), "scores must have 3 rows, got 2"),
        ("scores", np.zeros(3, "<f8"), "scores must be float32, got float64"),
        ("offsets", np.array([0, 2, 1, 3]), "offsets must start at 0 and never fall"),
        ("id_offsets", np.array([0, 1, 2, 3]), "id_offsets must end at 24"),
    ],
)
def test_datasets_that_do_not_fit_together_are_refused(path, name, rows, message):
    write(path, 3)
    with h5py.File(path, "r+") as hdf5:
        del hdf5[name]
        if rows is not None:
            hdf5[name] = rows
    with pytest.raises(StoreError, match=rf"codes\.h5: .*{message}"):
        CodeFile.open(path)


def test_a_compressed_dataset_is_refused(path):
    write(path, 3)
    with h5py.File(path, "r+") as hdf5:
        scores = hdf5["scores"][:]
        del hdf5["scores"]
        hdf5.create_dataset("scores", data=scores, compression="gzip")
    with pytest.raises(StoreError, match="scores must be contiguous"):
        CodeFile.open(path)


def test_pictures_that_do_not_fit_the_file_are_refused_and_the_others_kept(path):
    whole = encoded(1)
    with CodeFileWriter(path, **MODEL) as writer:
        add_range(writer, 3)
        with pytest.raises(ValueError, match=r"00001-é: is stored already"):
            writer.add(image_id(1), whole, labels=[1])
        with pytest.raises(ValueError, match="x: image_codes must have 4 columns, got 6"):
            writer.add("x", EncodedImage((1, 1), image_code=np.zeros(6, np.uint8)))
        with pytest.raises(ValueError, match="x: class_probs must have 3 columns, got 2"):
            writer.add("x", EncodedImage((1, 1), class_probs=np.zeros(2, np.float32)))
        with pytest.raises(ValueError, match=r"x: every image .* image_labels x 3, .*, got id_"):
            writer.add("x", whole)
        with pytest.raises(ValueError, match=r"x: every image .* region_codes x 8"):
            writer.add("x", EncodedImage((1, 1), image_code=np.zeros(4, np.uint8)))
        for labels in ([3], [-1], [0, 0, 1]):
            with pytest.raises(ValueError, match="x: labels must be distinct indices of 3 classes"):
                writer.add("x", whole, labels=labels)
        writer.finish()
    check_holds_first(path, 3)


def test_later_pictures_must_have_the_parts_of_the_finished_file(path):
    write(path, 3)
    with (
        CodeFileWriter(path, **MODEL) as writer,
        pytest.raises(ValueError, match="x: every image"),
    ):
        writer.add("x", EncodedImage((1, 1)))


@pytest.mark.parametrize("name", ["n_bits", "n_region_bits"])
def test_bits_that_do_not_fill_bytes_are_refused(path, name):
    with pytest.raises(ValueError, match=f"{name} must be a multiple of 8, got 12"):
        CodeFileWriter(path, **(MODEL | {name: 12}))
    assert files_beside(path) == []


# A full disk: a limit on the size of files stands for it, in a process of its own


def limited(code, path, limit):
    """Runs `code` while no file may grow beyond `limit` bytes; returns what it prints."""
    prelude = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, -1))\n"
    with child(prelude + textwrap.dedent(code), path) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def test_a_disk_that_fills_while_adding_keeps_every_picture_before(path):
    write(path, 2)
    old = path.read_bytes()
    code = """
        with CodeFileWriter(sys.argv[1], **MODEL) as writer:
            try:
                add_range(writer, 10**6)
            except StoreError as error:
                print(len(writer.done), error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))  # room is made
            add_range(writer, len(writer.done) + 5)
    """
    count, message = limited(code, path, 10_000).split(" ", 1)
    assert message == f"{journal_of(path)}: cannot write: File too large\n"
    assert int(count) > 20
    assert path.read_bytes() == old
    with CodeFileWriter(path, **MODEL) as writer:
        assert len(writer.done) == int(count) + 5
        writer.finish()
    check_holds_first(path, int(count) + 5)


@pytest.mark.parametrize("limit", [8_000, 500_000, 1_050_000])
def test_a_disk_that_fills_while_packing_keeps_the_old_file_and_the_journal(path, limit):
    write(path, 2)
    old = path.read_bytes()
    with CodeFileWriter(path, **MODEL) as writer:
        add_range(writer, 20)
    journal = journal_of(path).read_bytes()
    code = """
        with CodeFileWriter(sys.argv[1], **MODEL) as writer:
            try:
                writer.finish()
            except StoreError as error:
                print(error)
    """
    message = limited(code, path, limit)
    assert message == f"{path}.tmp: cannot write: File too large\n"
    assert path.read_bytes() == old
    assert journal_of(path).read_bytes() == journal
    assert files_beside(path) == ["codes.h5", "codes.h5.part"]
    write(path, 20)
    check_holds_first(path, 20)


def test_a_disk_that_fails_under_the_rows_is_reported(path, monkeypatch):
    def fail(self, name, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing._NewFile, "_write", fail)
    with pytest.raises(StoreError, match=r"codes\.h5\.tmp: cannot write: No space left on device"):
        write(path, 3)
    monkeypatch.undo()
    write(path, 3)
    check_holds_first(path, 3)


def test_a_million_ids_open_at_once(path):
    write(path, 1)
    ids = np.char.zfill(np.arange(10**6).astype("S"), 7).view("u1")
    with h5py.File(path, "r+") as hdf5:
        for name in set(hdf5) - {"id_bytes", "sizes"}:
            del hdf5[name]
        del hdf5["id_bytes"], hdf5["sizes"]
        hdf5["id_bytes"] = ids
        hdf5["id_offsets"] = np.arange(10**6 + 1) * 7
        hdf5["sizes"] = np.ones((10**6, 2), "<i4")
    start = time.perf_counter()
    table = CodeFile.open(path).table
    assert table.ids[123456] == "0123456"
    assert time.perf_counter() - start < 0.5  # decoding them all takes about as long


def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[1] / "docs" / "code-file.md"
    reading, writing = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    code = np.zeros(8, np.uint8)
    regions = Regions(
        np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), code[None]
    )
    names = {
        "pictures": [("a", None)],
        "encode": lambda _: EncodedImage((1, 1), code, None, regions),
    }
    monkeypatch.chdir(tmp_path)
    exec(writing, names)
    exec(reading, names)
    assert capsys.readouterr().out == "a 0 (0.0, 0.0, 0.0, 0.0)\n"
