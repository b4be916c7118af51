"""Ids and paths that are kept by folder, and whole ones of databases made before."""

import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from collection_cases import MODEL, holds, make_version, new_image
from regionhash.collection import Collection, check_folder
from regionhash.collection.database import COLUMNS, Database, FileState
from regionhash.collection.folders import parted

PICTURES = [
    ("cat.jpg", b"/photos/cat.jpg"),
    ("2019/cat.jpg", b"/photos/2019/cat.jpg"),
    ("2019/a.jpg", b"/elsewhere/2019/a.jpg"),  # the ids of two folders begin alike
    ("/photos/b/cat.jpg", b"/photos/b/cat.jpg"),
    ("cat.jpg (2)", b"/z/cat.jpg"),
    ("2007_000027", b"/voc/JPEGImages/2007_000027.jpg"),
    ("notcat.jpg", b"/y/cat.jpg"),
    ("2018/\u00fcber.jpg", "/photos/2018/\u00fcber.jpg".encode()),
    ("2018/\\xff.jpg", b"/photos/2018/\xff.jpg"),
    ("x/\ufffd.jpg", b"/x/\xff.jpg"),
    ("uploads/12345678-cat.jpg", b"uploads/1234567890abcdef.jpg"),
    ("digit 1", None),
]
"""Ids and paths; two of one path are never stored."""


def image(n, image_id, path):
    return replace(new_image(n), id=image_id, file=FileState(path, b"%d" % n))


@pytest.fixture(params=[2, 3, 4])
def database(request, tmp_path):
    """Some pictures in a database of each version."""
    Database.create(tmp_path / "collection.db", MODEL).close()
    if request.param < 4:
        make_version(request.param, tmp_path)
    with Database(tmp_path / "collection.db") as database:
        assert database.header["version"] == request.param
        assert database.store(image(n, *names) for n, names in enumerate(PICTURES)) == len(PICTURES)
        yield database


def names(database):
    return [(columns["id"], columns["path"]) for _, columns in database.rows()]


def test_a_picture_has_the_id_and_the_path_it_was_stored_with(database, tmp_path):
    assert names(database) == PICTURES
    for row, (image_id, path) in enumerate(PICTURES, 1):
        assert database.of_id(image_id)[0]["row"] == row
        found = database.of_path(path)
        assert found is None if path is None else found[0]["row"] == row
    for image_id in (
        "",
        "cat",
        "2019/",
        "2019",
        "t.jpg",
        "/2019/cat.jpg",
        "b/cat.jpg",
        "x/\\xff.jpg",
    ):
        assert database.of_id(image_id) is None
    for path in (b"", b"cat.jpg", b"/cat.jpg", b"/photos", b"/photos/", b"/photos/2019/a.jpg"):
        assert database.of_path(path) is None
    assert check_folder(tmp_path).problems == ()


def test_no_id_and_no_path_is_there_twice(database):
    again = [image(50 + n, *known) for n, known in enumerate(PICTURES) if known[1] is not None]
    database.store(again)  # other bytes of the same files
    other = [(image_id, b"/other/%d" % n) for n, (image_id, _) in enumerate(PICTURES)]
    database.store(image(80 + n, *new) for n, new in enumerate(other))
    ids, paths = zip(*names(database), strict=True)
    assert len(ids) == len(set(ids)) == 2 * len(PICTURES)
    assert len(set(paths)) == 2 * len(PICTURES)
    assert set(ids) == {name for name, _ in PICTURES} | {f"/other/{n}" for n in range(len(other))}


@pytest.mark.parametrize("after", [0, 1])
def test_pictures_are_found_by_the_folders_of_their_paths_and_ids(database, after):
    for place, below in {
        "/photos": [1, 2, 4, 8, 9],
        "/photos/2019": [2],
        "/photos/2019/cat.jpg": [2],
        "/photos/20": [],
        "/": [*range(1, 12)],
        database.path.parent / "uploads": [11],
    }.items():
        assert sorted(database.rows_at(place, after)) == [row for row in below if row > after]
    for name, below in {"2019": [2, 3], "uploads": [11], "cat.jpg": [], "2": [], "x": [10]}.items():
        assert sorted(database.rows_with_ids_below(name, after)) == below


def test_a_folder_is_kept_once_and_neither_id_nor_path_in_its_rows(tmp_path):
    with Database.create(tmp_path / "collection.db", MODEL) as database:
        database.store(image(n, f"2019/{n}.jpg", b"/photos/2019/%d.jpg" % n) for n in range(20))
        assert database.read("SELECT place, ids FROM folders") == [(b"/photos/2019/", "2019/")]
        kept = database.read("SELECT id, path, folder FROM images WHERE row = 8")
        assert kept == [(None, b"7.jpg", 1)]
        database.store([image(20, "voc", b"/photos/2019/voc.jpg")])
        database.store([image(21, "coco", b"/photos/2019/coco.jpg")])
        assert database.read("SELECT count(*) FROM folders") == [(2,)]


def damage(database, statement, *values):
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute(statement, values)


@pytest.mark.parametrize("column, value", [
    ("place", b"/photo5/"), ("place", "/photos/"), ("place", b""),
    ("ids", "2019/"), ("ids", b""), ("ids", None), ("folder", 99),
])  # fmt: skip
def test_the_pictures_of_a_damaged_folder_are_left_out_and_named(tmp_path, column, value):
    with Database.create(tmp_path / "collection.db", MODEL) as database:
        database.store([new_image(0), image(1, "1.jpg", b"/other/1.jpg")])
        damage(
            database, f"UPDATE folders SET {column} = ? WHERE place = x'2f70686f746f732f'", value
        )
    with Collection(tmp_path) as collection:
        assert [stored.row for stored in collection.images()] == [2]
        assert any(line.startswith("row 1: damaged") for line in collection.check().problems)
        assert len(collection.code_file().table) == 1


def test_ids_of_a_damaged_folder_are_restored_from_the_arrays(tmp_path):
    with Database.create(tmp_path / "collection.db", MODEL) as database:
        database.store(new_image(n) for n in range(3))
        Collection(tmp_path).close()
        damage(database, "UPDATE folders SET ids = 'lost/'")
        with Collection(tmp_path) as collection:
            assert len(collection.code_file().table) == 3
            assert len(collection.check(repair=True).repaired) == 3
        assert names(database) == [(f"{n}.jpg", b"/photos/%d.jpg" % n) for n in range(3)]
    holds(tmp_path, range(3))


def test_a_restored_row_is_in_its_folder_again(database, tmp_path):
    Collection(tmp_path).close()
    before = list(database.rows())
    kept = database.read("SELECT row, id, path, folder FROM images")
    ids = ", id = NULL" if database.header["version"] == 4 else ""  # it must not be before
    damage(database, f"UPDATE images SET region_codes = x'00'{ids} WHERE row IN (2, 5, 6, 12)")
    report = check_folder(tmp_path, repair=True)
    assert report.problems == () and "2019/cat.jpg: row 2 was restored" in str(report.repaired)
    assert list(database.rows()) == before
    assert database.read("SELECT row, id, path, folder FROM images") == kept


def test_a_picture_moves_from_folder_to_folder(database, tmp_path):
    there = FileState(b"/photos/new/cat.jpg", b"0")
    assert database.take_codes(1, "new/cat.jpg", there, None, moved=True)
    assert names(database) == [*PICTURES[1:], ("new/cat.jpg", b"/photos/new/cat.jpg")]
    assert database.remove_gone([(13, b"/photos/cat.jpg"), (2, b"/photos/2019/cat.jpg")]) == 1
    assert names(database) == [*PICTURES[2:], ("new/cat.jpg", b"/photos/new/cat.jpg")]


def test_a_database_of_before_keeps_whole_names_and_is_read_by_what_made_it(tmp_path):
    Database.create(tmp_path / "collection.db", MODEL).close()
    make_version(3, tmp_path)
    with Database(tmp_path / "collection.db") as database:
        database.store(image(n, *known) for n, known in enumerate(PICTURES))
        assert database.read("SELECT id, path FROM images") == PICTURES
        assert database.read("SELECT * FROM folders") == []
        old = f"INSERT INTO images ({', '.join(COLUMNS[1:])}) SELECT {{}} FROM images WHERE row = 1"
        values = {"id": "'new'", "path": "x'2f6e6577'"}
        columns = ", ".join(values.get(name, name) for name in COLUMNS[1:])
        damage(database, old.format(columns))  # its `INSERT` does not know of folders
        assert database.of_path(b"/new")[0]["id"] == "new"


def test_names_are_parted_at_their_last_slash():
    assert parted("a/b/c.jpg") == ("a/b/", "c.jpg")
    assert parted(b"/c.jpg") == (b"/", b"c.jpg")
    assert parted("c.jpg") == ("", "c.jpg")
    assert parted(b"a/") == (b"a/", b"")
    assert parted("") == ("", "")


def test_a_row_whose_id_was_given_away_while_it_was_damaged_is_removed(database, tmp_path):
    Collection(tmp_path).close()
    damage(database, "UPDATE images SET id = 'lost' WHERE row = 5")
    database.store([image(20, "cat.jpg (2)", b"/q/cat.jpg")])
    report = check_folder(tmp_path, repair=True)
    assert report.repaired == ("cat.jpg (2): row 5 was removed; its picture has a new row",)
    assert names(database) == [*PICTURES[:4], *PICTURES[5:], ("cat.jpg (2)", b"/q/cat.jpg")]
