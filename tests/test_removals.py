"""Pictures that were removed stay out until they are asked for again."""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from cli_runner import run
from collection_cases import MODEL, new_image
from conftest import collect
from regionhash.collection import Collection
from regionhash.collection.database import Database, FileState
from regionhash.collection.removals import was_removed
from regionhash.collection.uploads import remove_pictures
from reporters import Recording

OUT = "removed before, left out"


@pytest.fixture
def folder(photos, tmp_path):
    """Three of the photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(3):
        shutil.copy(photos / f"{n}.png", folder)
    return folder


@pytest.fixture
def made(saved, folder, tmp_path):
    """A collection of them without 1.png, whose file is still there."""
    made = collect(folder, saved.folder, tmp_path / "made")
    run("remove", made, "1.png")
    return made


def refresh(made):
    with Collection.open(made) as collection:
        (report,) = collection.refresh(workers=0)
        return names(collection), report.encoding


def names(collection):
    return [image.id for image in collection.images()]


def test_a_removed_picture_does_not_come_back_with_refresh(made):
    ids, report = refresh(made)
    assert ids == ["0.png", "2.png"]
    assert (report.n_encoded, report.n_stored_before, report.noticed) == (0, 2, {OUT: 1})


@pytest.mark.parametrize("command", ["add", "index"])
def test_nor_when_its_folder_is_given_again(made, folder, command):
    arguments = (made, folder) if command == "add" else (folder, "-o", made)
    result = run(command, *arguments, "--workers", 0, "--json")
    assert json.loads(result.stdout)["noticed"] == {OUT: 1}
    assert f"{OUT}: 1" in result.stderr
    assert refresh(made)[0] == ["0.png", "2.png"]


def test_nor_when_it_moves_or_is_copied(made, folder):
    (folder / "1.png").rename(folder / "moved.png")
    shutil.copy(folder / "moved.png", folder / "copied.png")
    ids, report = refresh(made)
    assert ids == ["0.png", "2.png"]
    assert report.noticed == {OUT: 2}


def test_one_of_two_copies_stays_out_and_the_other_stays_in(made, folder):
    shutil.copy(folder / "0.png", folder / "copy.png")
    refresh(made)
    run("remove", made, "copy.png")
    assert refresh(made)[0] == ["0.png", "2.png"]
    (folder / "0.png").rename(folder / "00.png")
    refresh(made)
    with Collection.open(made) as collection:
        paths = {image.path.name for image in collection.images()}
    assert paths == {"00.png", "2.png"}


def test_another_picture_under_its_name_is_new(made, folder, photos):
    shutil.copy(photos / "4.png", folder / "1.png")
    assert sorted(refresh(made)[0]) == ["0.png", "1.png", "2.png"]


def test_a_picture_removed_with_its_file_leaves_nothing_to_remember(made, folder, photos):
    (folder / "2.png").unlink()
    run("remove", made, "2.png")
    shutil.copy(photos / "2.png", folder)
    assert sorted(refresh(made)[0]) == ["0.png", "2.png"]


def test_nor_when_another_picture_is_removed_from_its_place(made, folder, photos):
    (folder / "1.png").rename(folder / "moved.png")
    for other in (3, 4):  # a camera numbers from the start again
        shutil.copy(photos / f"{other}.png", folder / "1.png")
        refresh(made)
        run("remove", made, "1.png")
    ids, report = refresh(made)
    assert (ids, report.noticed) == (["0.png", "2.png"], {OUT: 2})
    shutil.copy(photos / "3.png", folder / "1.png")
    assert refresh(made)[0] == ["0.png", "2.png"]
    run("add", made, folder / "1.png", folder / "moved.png", "--workers", 0)
    assert n_left_out(made) == 1


@pytest.mark.parametrize("left", ["missing", "empty"])
def test_nor_when_it_was_removed_while_its_disk_was_away(made, folder, tmp_path, left):
    folder.rename(tmp_path / "away")
    if left == "empty":
        folder.mkdir()
    run("remove", made, "2.png")
    if left == "empty":
        folder.rmdir()
    (tmp_path / "away").rename(folder)
    ids, report = refresh(made)
    assert (ids, report.noticed) == (["0.png"], {OUT: 2})


@pytest.mark.parametrize("other", ["copy", "original"])
def test_of_two_removed_copies_one_is_taken_back(made, folder, other):
    shutil.copy(folder / "0.png", folder / "copy.png")
    refresh(made)
    run("remove", made, "copy.png", "0.png")
    run("add", made, folder / ("copy.png" if other == "copy" else "0.png"), "--workers", 0)
    with Collection.open(made) as collection:
        collection.refresh(workers=0)
        assert sorted(image.path.name for image in collection.images()) == [
            "2.png" if other == "copy" else "0.png",
            "copy.png" if other == "copy" else "2.png",
        ]


@pytest.mark.parametrize("how", ["named", "again"])
def test_it_is_taken_back_for_good(made, folder, how):
    given = [folder / "1.png"] if how == "named" else [folder, "--again"]
    result = run("add", made, *given, "--workers", 0, "--json")
    assert json.loads(result.stdout)["encoded"] == 1
    assert json.loads(result.stdout)["noticed"] == {}
    assert n_left_out(made) == 0
    with sqlite3.connect(made / "collection.db") as connection:
        connection.execute("UPDATE images SET region_codes = x'00' WHERE path LIKE '%1.png'")
    connection.close()
    shutil.rmtree(made / "arrays")
    with Collection.open(made) as collection:
        collection.refresh(workers=0)  # encodes the damaged row again
        assert len(collection) == 3


def test_it_is_taken_back_from_another_place(made, folder):
    (folder / "1.png").rename(folder / "moved.png")
    run("add", made, folder / "moved.png", "--workers", 0)
    with Collection.open(made) as collection:
        collection.refresh(workers=0)
        assert sorted(image.path.name for image in collection.images()) == [
            "0.png", "2.png", "moved.png",
        ]  # fmt: skip
    assert n_left_out(made) == 0


def n_left_out(made):
    with closing(sqlite3.connect(made / "collection.db")) as connection:
        return connection.execute("SELECT count(*) FROM left_out").fetchone()[0]


@pytest.mark.parametrize("there", [True, False])
def test_a_picture_that_is_stored_is_encoded_again_whatever_was_removed(made, folder, there):
    run("add", made, folder / "1.png", "--workers", 0)
    with closing(sqlite3.connect(made / "collection.db")) as connection, connection:
        key = os.fsencode(folder / "1.png") if there else "elsewhere"
        connection.execute("INSERT INTO left_out SELECT ?, hash FROM images WHERE row = 4", (key,))
        connection.execute("UPDATE images SET checksum = 0 WHERE row = 4")
    with Collection.open(made) as collection:
        collection.refresh(workers=0)
        assert sorted(names(collection)) == ["0.png", "1.png", "2.png"]


def test_a_source_that_is_one_file_does_not_bring_it_back(saved, folder, tmp_path):
    made = collect(folder / "0.png", saved.folder, tmp_path / "made")
    run("add", made, folder / "1.png", "--workers", 0)
    run("remove", made, folder / "1.png")
    with Collection.open(made) as collection:
        collection.refresh(workers=0)
        assert len(collection) == 1


def test_pictures_without_files_stay_out_by_their_names(saved, tmp_path):
    made = collect("digits:test:3", saved.folder, tmp_path / "made")
    with Collection.open(made) as collection:
        first = names(collection)[0]
        collection.remove([first])
        (report,) = collection.refresh(workers=0)
        assert (len(collection), report.encoding.noticed) == (2, {OUT: 1})
        collection.add(["digits:test:3"], workers=0)
        assert len(collection) == 2
        collection.add(["digits:test:3"], again=True, workers=0)
        assert first in names(collection)


def test_a_picture_is_not_stored_that_was_removed_while_it_was_encoded(
    saved, folder, tmp_path, monkeypatch
):
    from regionhash.models import encoding

    made = collect(folder, saved.folder, tmp_path / "made")
    encode = encoding.encode_images

    def slow(model, checkpoint, image_set, writer, rows, **options):
        rows = list(rows)
        with Collection.open(made) as other:
            other.remove(["0.png"])
        return encode(model, checkpoint, image_set, writer, rows, **options)

    with sqlite3.connect(made / "collection.db") as connection:  # so that it is encoded again
        connection.execute("UPDATE images SET checksum = 0 WHERE path = x'302e706e67'")
    connection.close()
    monkeypatch.setattr(encoding, "encode_images", slow)
    with Collection.open(made) as collection:
        report = collection.add([str(folder)], workers=0)
        assert report.encoding.n_encoded == 1
        assert names(collection) == ["1.png", "2.png"]


def test_nothing_is_written_to_a_collection_without_removals(tmp_path):
    with Database.create(tmp_path / "collection.db", MODEL) as database:
        file = FileState(database.path_of(tmp_path / "0.jpg"), b"0")
        database.store([replace(new_image(0), file=file), new_image(1)])
        assert not was_removed(database, b"/photos/1.jpg", b"1")
        assert remove_pictures(database, [1]) == 1  # its file is gone: nothing to remember
        assert not database.read("SELECT 1 FROM sqlite_master WHERE name = 'left_out'")


# Folders that are empty now


@pytest.fixture
def deep(saved, folder, tmp_path):
    """A collection of a folder with a disk mounted in it."""
    (folder / "disk/2024").mkdir(parents=True)
    for n in range(1, 3):
        (folder / f"{n}.png").rename(folder / f"disk/2024/{n}.png")
    return collect(folder, saved.folder, tmp_path / "deep")


def refreshed(made, **options):
    with Collection.open(made) as collection:
        told = Recording()
        reports = collection.refresh(workers=0, reporter=told, **options)
        return len(collection), [(r.removed, r.kept) for r in reports], told.notes


def test_pictures_of_a_folder_that_is_empty_now_are_kept(deep, folder):
    shutil.rmtree(folder / "disk/2024")
    line = (
        f"{folder}/disk: is empty now, or cannot be read; 2 pictures below it are kept "
        "(refresh --remove-empty removes them)"
    )
    assert refreshed(deep) == (3, [(0, 2)], [line])
    assert refreshed(deep, remove_empty=True) == (1, [(2, 0)], [])


def test_so_are_those_of_one_that_cannot_be_read(deep, folder, monkeypatch):
    scandir = os.scandir

    def failing(path):
        if os.fsdecode(path).endswith("disk"):
            raise OSError(5, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    shutil.move(folder / "disk/2024", folder.parent / "away")
    count, reports, lines = refreshed(deep)
    assert (count, reports) == (3, [(0, 2)])
    assert f"{folder}/disk: cannot be read: Input/output error" in lines


def test_pictures_of_a_folder_that_is_gone_are_removed(deep, folder):
    shutil.rmtree(folder / "disk")
    assert refreshed(deep) == (1, [(2, 0)], [])


def test_so_is_a_picture_of_a_folder_with_others(deep, folder):
    (folder / "disk/2024/1.png").unlink()
    assert refreshed(deep) == (2, [(1, 0)], [])


def test_a_source_that_is_empty_now_is_kept_unless_asked(deep, folder):
    shutil.rmtree(folder)
    folder.mkdir()
    count, reports, (line,) = refreshed(deep)
    assert (count, reports) == (3, []) and line.endswith("found; its pictures are kept")
    run("refresh", deep, "--remove-empty", "--workers", 0)
    with Collection.open(deep) as collection:
        assert len(collection) == 0


def test_a_source_of_which_only_a_part_is_empty_is_kept(saved, folder, photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(photos / "4.png", other)
    made = tmp_path / "made"
    run("index", folder, other, "-o", made, "--model", saved.folder, "--workers", 0)
    (other / "4.png").unlink()
    count, reports, (line,) = refreshed(made, remove_empty=True)
    assert (count, reports) == (4, []) and line.startswith(f"{other}: no picture")


def test_a_run_ends_with_a_line_of_all_counts(made, folder):
    (folder / "a.mov").write_bytes(b"film")
    result = run("refresh", made, "--workers", 0)
    assert result.stdout.endswith(
        ", 2 stored before, 0 skipped, 0 removed; noticed: .mov files, not read: 1; "
        "removed before, left out: 1\n"
    )
