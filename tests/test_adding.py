"""Adding to a collection by several writers at once, and while files change, move and vanish."""

import hashlib
import json
import multiprocessing
import os
import shutil
import sqlite3
import time

import numpy as np
import pytest

from cli_runner import error_of, run
from conftest import write_picture
from killing import killed_in
from regionhash.collection import Collection, Filter, adding, open_codes, transfer
from regionhash.collection.database import Database, FileState, NewImage
from regionhash.data import open_dataset
from regionhash.data.images import file_version, read_image
from regionhash.models import encoding
from regionhash.models.encoding import encode_picture
from regionhash.store import CodeFileWriter, rows_of
from reporters import Recording


@pytest.fixture
def folders(tmp_path):
    """Folders "seed", "a" and "b": pictures of the same names, all different."""
    scenes = iter(open_dataset("digits:test:13").images)
    for folder, count in (("seed", 1), ("a", 6), ("b", 6)):
        (tmp_path / folder).mkdir()
        for n in range(count):
            write_picture(tmp_path / folder / f"{n}.png", next(scenes)[:80, : 80 + n])
    return tmp_path


@pytest.fixture
def made(saved, folders):
    """A collection of the folder "seed"."""
    collection = folders / "made"
    run("index", folders / "seed", "-o", collection, "--model", saved.folder, "--workers", 0)
    return collection


class Halting:
    """The command in a process that waits, once it knows what is to be done, to go on."""

    def __init__(self, *arguments):
        context = multiprocessing.get_context("fork")
        self.planned, self.go = context.Event(), context.Event()
        self.said, said = context.Pipe(duplex=False)
        self.process = context.Process(target=self._run, args=(arguments, said))
        self.process.start()
        assert self.planned.wait(60)

    def _run(self, arguments, said):
        original = encoding.encode_images

        def wait(model, checkpoint, image_set, writer, rows, **options):
            rows = list(rows)
            self.planned.set()
            assert self.go.wait(60)
            return original(model, checkpoint, image_set, writer, rows, **options)

        encoding.encode_images = wait
        said.send(run(*arguments, "--workers", 0).stdout)

    def finish(self):
        """Lets it go on; what it says at the end."""
        self.go.set()
        said = self.said.recv()
        self.process.join()
        assert self.process.exitcode == 0
        return said


def added(command, folder, *options):
    return json.loads(run(command, folder, *options, "--workers", 0, "--json").stdout)


def codes_by_path(collection, *folders):
    """What the collection holds of each file: the codes of its regions."""
    with Collection.open(collection) as opened:
        table = opened.code_file().table
        paths = {image.path: image.id for image in opened.images()}
    places = {image_id: n for n, image_id in enumerate(table.ids)}
    return {path: table.regions(places[image_id]).codes for path, image_id in paths.items()}


def assert_holds(saved, collection, *folders):
    """The collection holds each file of the folders once, with the codes of its bytes."""
    held = codes_by_path(collection)
    files = [path for folder in folders for path in sorted(folder.rglob("*.png")) or [folder]]
    assert sorted(held) == sorted(files)
    for path in files:
        wanted = encode_picture(saved.model, saved.checkpoint, read_image(path)).regions.codes
        np.testing.assert_array_equal(held[path], wanted)
    assert json.loads(run("check", collection, "--json").stdout)["problems"] == []


# Windows


@pytest.fixture
def small_windows(monkeypatch):
    """Pictures are read, encoded and stored one by one, and looked up in windows of two."""
    monkeypatch.setattr(adding, "_WINDOW", 2)
    monkeypatch.setattr(adding, "_COMMIT_IMAGES", 1)
    monkeypatch.setattr(encoding, "_WINDOW", 1)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_moves_and_copies_are_found_however_windows_divide_the_files(
    saved, made, folders, monkeypatch, small_windows, size
):
    monkeypatch.setattr(adding, "_WINDOW", size)
    folder = folders / "a"
    one_by_one = ("--batch-size", 1)
    assert added("add", made, folder, *one_by_one)["encoded"] == 6
    shutil.copy(folder / "0.png", folder / "z.png")  # later, and another is in its place now
    shutil.copy(folders / "b" / "1.png", folder / "0.png")
    (folder / "5.png").rename(folder / "00.png")  # earlier
    (folder / "1.png").rename(folder / "y.png")  # later
    shutil.copy(folder / "3.png", folder / "x.png")
    shutil.copy(folders / "b" / "2.png", folder / "4.png")
    report = added("add", made, folder, *one_by_one)
    counts = [report[name] for name in ("encoded", "moved", "copied", "stored_before")]
    assert counts == [2, 2, 2, 6]
    assert_holds(saved, made, folders / "seed", folder)


def test_the_first_picture_is_stored_before_the_last_is_looked_up(
    saved, made, folders, monkeypatch, small_windows
):
    events, look, store = [], adding.file_version, Database.store

    def looked_up(path):
        events.append(f"look {path.name}")
        return look(path)

    def stored(database, images, **options):
        events.extend(f"store {image.id}" for image in images)
        return store(database, images, **options)

    monkeypatch.setattr(adding, "file_version", looked_up)
    monkeypatch.setattr(Database, "store", stored)
    reporter = Recording()
    with Collection.open(made) as collection:
        shutil.copy(folders / "seed" / "0.png", folders / "a" / "4.png")
        (folders / "a" / "1.png").write_bytes(b"no picture")
        collection.add([str(folders / "a")], workers=0, batch_size=1, reporter=reporter)
    assert events.index("store 0.png") < events.index("look 5.png")
    assert [event for event in events if event.startswith("look")] == [
        f"look {n}.png" for n in range(6)
    ]
    dones = [done for done, _ in reporter.steps]
    assert dones == sorted(dones)
    assert reporter.steps[0] == (0, 6) and reporter.steps[-1] == (5, 5)
    (folders / "a" / "1.png").unlink()
    assert_holds(saved, made, folders / "seed", folders / "a")


def test_what_was_stored_before_an_interruption_is_not_encoded_again(
    saved, made, folders, monkeypatch, small_windows
):
    with monkeypatch.context() as interrupted:
        store, left = Database.store, iter([None] * 3)

        def third(database, images, **options):
            next(left)  # raises StopIteration, which is no error of the disk
            return store(database, images, **options)

        interrupted.setattr(Database, "store", third)
        with pytest.raises(StopIteration), Collection.open(made) as collection:
            collection.add([str(folders / "a")], workers=0, batch_size=1)
    report = added("add", made, folders / "a", "--batch-size", 1)
    assert (report["encoded"], report["stored_before"]) == (3, 3)
    assert_holds(saved, made, folders / "seed", folders / "a")


def test_a_picture_that_was_removed_since_the_first_window_stays_out(
    saved, made, folders, monkeypatch, small_windows
):
    run("add", made, folders / "a", "--workers", 0)
    shutil.copy(folders / "a" / "5.png", folders / "b" / "5.png")
    store = Database.store

    def removed(database, images, **options):
        monkeypatch.setattr(Database, "store", store)
        run("remove", made, folders / "a" / "5.png")
        return store(database, images, **options)

    run("add", made, folders / "b" / "5.png", "--workers", 0)
    shutil.copy(folders / "b" / "0.png", folders / "a" / "00.png")
    monkeypatch.setattr(Database, "store", removed)
    run("add", made, folders / "a", "--workers", 0, "--batch-size", 1)
    (folders / "a" / "5.png").unlink()
    assert_holds(saved, made, folders / "seed", folders / "a", folders / "b" / "5.png")


# Writers at once


def test_two_adds_at_once_of_the_same_names_keep_all_pictures(saved, made, folders):
    processes = [Halting("add", made, folders / name) for name in ("a", "b")]
    for process in processes:
        assert "6 encoded" in process.finish()
    assert_holds(saved, made, folders / "seed", folders / "a", folders / "b")
    assert added("add", made, folders / "a")["encoded"] == 0


def test_two_refreshes_and_an_add_at_once_encode_what_is_new_once_each(saved, made, folders):
    run("add", made, folders / "a", "--workers", 0)
    shutil.copytree(folders / "b", folders / "a" / "new")
    processes = [Halting("add", made, folders / "b"), Halting("add", made, folders / "a")]
    for process in processes:
        process.finish()
    added("refresh", made)
    assert_holds(saved, made, folders / "seed", folders / "a", folders / "b")


def test_a_picture_that_another_writer_removed_meanwhile_is_not_taken_for_stored(
    saved, made, folders
):
    process = Halting("add", made, folders / "a")
    run("remove", made, folders / "seed")
    process.finish()
    assert_holds(saved, made, folders / "a")


# Files that change


def test_a_slow_writer_does_not_put_back_what_a_quicker_one_has_replaced(
    saved, made, folders, monkeypatch
):
    target = folders / "a" / "0.png"
    run("add", made, folders / "a", "--workers", 0)
    shutil.copy(folders / "b" / "1.png", target)
    commit = adding._Writer.commit

    def late(self):  # the slow writer has read the file, and it changes once more
        monkeypatch.setattr(adding._Writer, "commit", commit)
        shutil.copy(folders / "b" / "2.png", target)
        run("add", made, folders / "a", "--workers", 0)
        commit(self)

    monkeypatch.setattr(adding._Writer, "commit", late)
    run("add", made, folders / "a", "--workers", 0)
    assert_holds(saved, made, folders / "seed", folders / "a")


def test_what_was_hashed_is_what_was_decoded(saved, made, folders):
    target, other = folders / "a" / "0.png", folders / "b" / "1.png"
    process = Halting("add", made, folders / "a")
    times = target.stat()
    shutil.copy(other, target)  # with other bytes by the time it is read
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    process.finish()
    assert_holds(saved, made, folders / "seed", folders / "a")
    connection = sqlite3.connect(made / "collection.db")
    ((known,),) = connection.execute(
        "SELECT hash FROM images JOIN folders USING (folder) WHERE place || path = ?",
        (str(target),),
    )
    connection.close()
    assert known == hashlib.sha256(target.read_bytes()).digest()


def test_a_file_that_was_written_just_now_is_hashed_again_next_time(saved, made, folders):
    target = folders / "seed" / "0.png"
    other = (folders / "a" / "0.png").read_bytes()
    size = max(len(other), target.stat().st_size)  # what follows a PNG is not read
    soon = time.time_ns() + 10**12
    target.write_bytes(target.read_bytes().ljust(size, b"\0"))
    os.utime(target, ns=(soon, soon))
    assert file_version(target).mtime_ns is None
    added("refresh", made)
    target.write_bytes(other.ljust(size, b"\0"))
    os.utime(target, ns=(soon, soon))  # as by the same tick of the disk's clock
    assert json.loads(run("check", made, "--json").stdout)["changed"] == []
    added("refresh", made)
    assert_holds(saved, made, folders / "seed")
    os.utime(target, ns=(10**18, 10**18))
    assert file_version(target).mtime_ns == 10**18


# Files that are gone, or not


def test_what_cannot_be_looked_at_is_kept(saved, made, folders):
    run("add", made, folders / "a", "--workers", 0)
    (folders / "a" / "sub").mkdir()
    shutil.move(folders / "a" / "5.png", folders / "a" / "sub" / "5.png")
    run("refresh", made, "--workers", 0)
    shutil.move(folders / "a" / "sub", folders / "away")
    (folders / "a" / "sub").symlink_to("sub")  # a circle: neither there nor gone
    (folders / "a" / "4.png").unlink()
    result = run("refresh", made, "--workers", 0, "--json")
    reports = json.loads(result.stdout)["added"]
    assert [(report["removed"], report["kept"]) for report in reports] == [(0, 0), (1, 1)]
    assert "sub/5.png: its file cannot be accessed; the picture is kept" in result.stderr
    assert json.loads(run("check", made, "--json").stdout)["unreadable"] == ["sub/5.png"]
    (folders / "a" / "sub").unlink()
    shutil.move(folders / "away", folders / "a" / "sub")
    reports = added("refresh", made)["added"]
    assert [(report["encoded"], report["removed"]) for report in reports] == [(0, 0), (0, 0)]
    assert_holds(saved, made, folders / "seed", folders / "a")


def test_what_cannot_be_looked_at_is_not_taken_for_moved(saved, made, folders):
    run("add", made, folders / "a", "--workers", 0)
    away = (folders / "a").rename(folders / "away")
    (folders / "a").symlink_to("a")  # a circle
    report = added("add", made, away)
    assert (report["encoded"], report["moved"], report["copied"]) == (0, 0, 6)
    assert json.loads(run("info", made, "--json").stdout)["pictures"] == 13


@pytest.mark.parametrize("error", [PermissionError, OSError(5, "EIO"), OSError(116, "ESTALE")])
def test_only_a_file_that_the_disk_says_is_not_there_is_gone(
    made, folders, monkeypatch, saved, error
):
    run("add", made, folders / "a", "--workers", 0)
    stat = os.stat

    def failing(path, *arguments, **options):
        if isinstance(path, bytes) and path.endswith(b"a/3.png"):
            raise error
        return stat(path, *arguments, **options)

    with Collection.open(made) as collection:
        monkeypatch.setattr(os, "stat", failing)
        told = Recording()
        reports = collection.refresh(workers=0, reporter=told)
        monkeypatch.undo()
        assert [(report.removed, report.kept) for report in reports] == [(0, 0), (0, 1)]
        assert told.notes == ["3.png: its file cannot be accessed; the picture is kept"]
        assert len(collection) == 7


def test_a_picture_that_moves_between_two_sources_is_not_encoded_again(saved, made, folders):
    run("add", made, folders / "a", "--workers", 0)
    run("add", made, folders / "b", "--workers", 0)
    shutil.move(folders / "a" / "2.png", folders / "b" / "from-a.png")
    shutil.move(folders / "b" / "3.png", folders / "seed" / "from-b.png")
    reports = added("refresh", made)["added"]
    assert [report["encoded"] for report in reports] == [0, 0, 0]
    assert sum(report["moved"] for report in reports) == 2
    assert_holds(saved, made, folders / "seed", folders / "a", folders / "b")


def test_a_damaged_row_is_encoded_again_by_refresh(saved, made, folders):
    run("add", made, folders / "a", "--workers", 0)
    connection = sqlite3.connect(made / "collection.db")
    with connection:
        connection.execute("UPDATE images SET region_codes = x'0000' WHERE row = 3")
        connection.execute("UPDATE images SET path = x'00' WHERE row = 4")
    connection.close()
    shutil.rmtree(made / "arrays")
    assert len(open_codes(made).compact().table) == 5
    assert "2 problems" in run("check", made, code=1).stdout
    reports = added("refresh", made)["added"]
    assert sum(report["encoded"] for report in reports) == 2
    assert_holds(saved, made, folders / "seed", folders / "a")


def test_a_header_is_built_anew_from_the_model(saved, made, folders):
    connection = sqlite3.connect(made / "collection.db")
    with connection:
        connection.execute("UPDATE about SET header = 'lost'")
    connection.close()
    assert "the header is damaged" in error_of("search", made, "--query", folders / "a" / "0.png")
    assert "the header is damaged" in run("check", made, code=1).stdout
    assert "the header was rebuilt from the model" in run("check", made, "--repair").stdout
    assert_holds(saved, made, folders / "seed")
    run("add", made, folders / "a", "--workers", 0)
    assert_holds(saved, made, folders / "seed", folders / "a")


# Names


def test_names_that_are_no_text_are_added_found_and_removed(saved, made, folders):
    odd = folders / os.fsdecode(b"odd \xe9")
    odd.mkdir()
    raw, literal = odd / os.fsdecode(b"\xff.png"), odd / "\\xff.png"
    shutil.copy(folders / "a" / "0.png", raw)
    shutil.copy(folders / "a" / "1.png", literal)
    shutil.copy(folders / "a" / "2.png", folders / "seed" / os.fsdecode(b"\xfe.png"))
    assert added("add", made, odd)["encoded"] == 2
    run("refresh", made, "--workers", 0)
    assert_holds(saved, made, folders / "seed", odd)
    query = ["--query", raw, "--json"]
    for wanted in (odd, os.fsdecode(b"odd \xe9")):
        hits = json.loads(run("search", made, *query, "--folder", wanted).stdout)["hits"]
        assert len(hits) == (2 if wanted == odd else 0)
    with Collection.open(made) as collection:
        within = collection.search(image_id="0.png", filter=Filter(folder=str(odd))).hits
        assert {hit.path for hit in within} == {raw, literal}
        assert {hit.id for hit in within} == {"\\xff.png", "\\\\xff.png"}
        assert collection.get(os.fsdecode(b"\xff.png")) == collection.get("\\xff.png")
    assert "1 removed" in run("remove", made, raw).stdout
    assert "1 removed" in run("remove", made, "\\\\xff.png").stdout
    assert "no picture of" in error_of("remove", made, os.fsdecode(b"\xfd"))
    assert_holds(saved, made, folders / "seed")


def test_a_path_with_dots_is_the_same_picture_and_no_name_removes_nothing(
    saved, made, folders, monkeypatch
):
    (folders / "sub").mkdir()
    monkeypatch.chdir(folders / "sub")
    report = added("add", made, "../seed")
    assert (report["stored_before"], report["copied"]) == (1, 0)
    monkeypatch.chdir(folders)
    assert "must not be empty" in error_of("remove", made, "")
    assert_holds(saved, made, folders / "seed")


def test_a_picture_whose_file_was_deleted_while_it_was_encoded_is_not_stored(
    saved, made, folders, monkeypatch
):
    commit = adding._Writer.commit

    def late(self):
        (folders / "a" / "0.png").unlink(missing_ok=True)
        commit(self)

    monkeypatch.setattr(adding._Writer, "commit", late)
    run("add", made, folders / "a", "--workers", 0)
    monkeypatch.undo()
    assert_holds(saved, made, folders / "seed", folders / "a")


# Code files


def test_pictures_of_one_name_from_two_code_files_are_two(saved, made, folders):
    for name in ("a", "b"):
        run("encode", saved.folder, folders / name, "-o", folders / f"{name}.h5", "--workers", 0)
        shutil.move(folders / name, folders / f"{name}-moved")  # the codes alone are left
        assert "6 pictures" in run("import", made, folders / f"{name}.h5").stdout
    assert len(open_codes(made).compact().table) == 13
    for name in ("a", "b"):
        assert "0 pictures" in run("import", made, folders / f"{name}.h5").stdout
    wanted = [
        open_codes(folders / f"{name}.h5").compact().table.region_codes for name in ("a", "b")
    ]
    held = open_codes(made).compact().table.region_codes
    np.testing.assert_array_equal(held[-len(wanted[0]) - len(wanted[1]) :], np.vstack(wanted))


def test_an_import_into_a_new_folder_that_was_killed_leaves_a_whole_collection_or_none(
    made, folders, monkeypatch
):
    run("add", made, folders / "a", "--workers", 0)
    old = folders / "old"
    old.mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(made / name, old)
    run("export", made, "-o", old / "codes.h5")
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_IMPORTED_AT_A_TIME", 2)
        killed_in(Database, "store", lambda: Collection.of_code_file(old, old / "codes.h5"))
    assert not (old / "collection.db").exists()
    run("import", old, old / "codes.h5")
    assert len(open_codes(old)) == 7
    assert sorted(path.name for path in old.iterdir() if path.is_file()) == [
        "codes.h5",
        "collection.db",
        "model.json",
        "model.safetensors",
    ]


def test_codes_without_a_source_do_not_stand_for_a_picture_of_a_data_set(saved, made, folders):
    (image_id,) = open_dataset("digits:test:1").ids
    other = encode_picture(saved.model, saved.checkpoint, read_image(folders / "a" / "0.png"))
    with Database(made / "collection.db") as database:
        rows = rows_of(image_id, other, None, database.header)
        database.store([NewImage(image_id, FileState(), None, rows)])
    assert added("add", made, "digits:test:1")["encoded"] == 1
    assert added("add", made, "digits:test:1")["encoded"] == 0
    assert len(open_codes(made).compact().table) == 3


def test_an_exported_id_leads_to_the_file_of_its_picture(saved, made, folders):
    run("add", made, folders / "a", "--workers", 0)
    run("add", made, folders / "b", "--workers", 0)
    run("remove", made, folders / "a" / "2.png")
    run("remove", made, folders / "b" / "2.png")
    run("add", made, folders / "b", "--workers", 0)  # its 2.png has the short id now
    run("export", made, "-o", folders / "codes.h5")
    again = folders / "again"
    run("import", again, folders / "codes.h5")
    held, wanted = codes_by_path(again), codes_by_path(made)
    assert sorted(held) == sorted(wanted)
    for path, codes in wanted.items():
        np.testing.assert_array_equal(held[path], codes)


def test_an_export_takes_nothing_from_one_that_was_killed(made, folders):
    output = folders / "codes.h5"
    killed_in(CodeFileWriter, "add", lambda: Collection.open(made).export(output))
    run("add", made, folders / "a", "--workers", 0)
    run("remove", made, folders / "seed")
    assert "6 pictures" in run("export", made, "-o", output).stdout
    assert len(open_codes(output).compact().table) == 6
    assert [path.name for path in folders.iterdir() if "codes.h5" in path.name] == ["codes.h5"]


def test_a_sheet_shows_the_file_of_the_picture_and_no_other_of_its_name(made, folders, tmp_path):
    run("add", made, folders / "a", "--workers", 0)
    run("remove", made, folders / "a" / "1.png")
    run("add", made, folders / "b" / "1.png", "--workers", 0)
    with Collection.open(made) as collection:
        (image,) = [image for image in collection.images() if image.path.parent.name == "b"]
        shown = collection.pixels(image.id)
    np.testing.assert_array_equal(shown, read_image(folders / "b" / "1.png"))
