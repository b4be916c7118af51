"""The database of a collection: what a picture is, one moment, and rows that are damaged."""

import hashlib
import os
import shutil
import sqlite3
import threading
from dataclasses import replace
from itertools import combinations, count, takewhile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collection_cases import MODEL, child, encoded, holds, make_version, new_image
from regionhash.collection import (
    Collection,
    CollectionReplacedError,
    arrays,
    check_folder,
    uploads,
)
from regionhash.collection import database as module
from regionhash.collection.arrays import Arrays
from regionhash.collection.database import (
    BLOBS,
    COLUMNS,
    OF_HASH,
    Database,
    FileState,
    HeaderError,
    NewImage,
    fits,
)
from regionhash.store import StoreError, rows_of
from regionhash.structures import CategoryCodes


@pytest.fixture
def database(tmp_path):
    with Database.create(tmp_path / "collection.db", MODEL) as database:
        yield database


@pytest.fixture
def old_database(tmp_path):
    """One of version 2, with the types of the code file."""
    Database.create(tmp_path / "collection.db", MODEL).close()
    make_version(2, tmp_path)
    with Database(tmp_path / "collection.db") as database:
        yield database


def picture(image_id, n, path=None, content=None, source=None):
    """A picture with the codes of number `n`."""
    file = FileState(path and os.fsencode(path), content)
    return NewImage(image_id, file, source, rows_of(image_id, encoded(n), None, MODEL))


KEPT = 10**6
"""Number of the first picture that a test leaves alone."""


def places_of_alive(snapshot):
    """Where in the arrays the pictures are that were not removed."""
    alive = np.ones(len(snapshot.rows), bool) if snapshot.alive is None else snapshot.alive
    return np.flatnonzero(alive)


def stored(database):
    """Ids of the pictures by what is in them."""
    codes = {encoded(n).image_code.tobytes(): n for n in range(100)}
    return {columns["id"]: codes[columns["image_codes"]] for _, columns in database.rows()}


# What a picture is


def test_an_id_that_is_taken_is_made_free(database):
    database.store([picture("a.jpg", 1, "/x/a.jpg", b"1")])
    assert database.store([picture("a.jpg", 2, "/y/a.jpg", b"2")]) == 1
    assert database.store([picture("/y/a.jpg", 3, "/z/a.jpg", b"3")]) == 1
    assert database.store([picture("/y/a.jpg", 4, "/z/a.jpg/b", b"4")]) == 1
    assert stored(database) == {"a.jpg": 1, "/y/a.jpg": 2, "/z/a.jpg": 3, "/z/a.jpg/b": 4}
    assert database.store([picture("/z/a.jpg/b", 5), picture("/z/a.jpg/b", 6)]) == 2
    assert stored(database) | {"/z/a.jpg/b (2)": 5, "/z/a.jpg/b (3)": 6} == stored(database)


def test_a_picture_without_a_file_is_found_by_its_name_however_many_there_are(database):
    """SQLite is asked every hundred instructions whether to continue."""

    def work(first):
        n_asked = 0

        def count():
            nonlocal n_asked
            n_asked += 1
            return 0

        database._connection.set_progress_handler(count, 100)
        database.store(picture(f"{n}", n % 100) for n in range(first, first + 100))
        database._connection.set_progress_handler(None, 0)
        return n_asked

    few = work(0)
    database.store(picture(f"{n}", n % 100) for n in range(100, 1000))
    assert work(1000) < 2 * few


def test_the_file_says_which_picture_is_replaced(database):
    database.store([picture("a.jpg", 1, "/x/a.jpg", b"1")])
    assert database.store([picture("other", 2, "/x/a.jpg", b"1")]) == 0  # the same bytes
    assert database.store([picture("other", 2, "/x/a.jpg", b"2")]) == 1
    assert stored(database) == {"a.jpg": 2}  # it keeps the id that people know


def test_a_picture_without_file_is_the_same_if_its_codes_are(database):
    assert database.store([picture("a", 1)]) == 1
    assert database.store([picture("a", 1)]) == 0
    assert database.store([picture("a", 2)]) == 1
    assert stored(database) == {"a": 1, "a (2)": 2}
    assert database.store([picture("a", 2), picture("a", 1)]) == 0
    source = database.source(["digits:test:2"], {"data": "digits:test:2"})
    assert database.store([picture("scene", 3, source=source)]) == 1
    assert database.store([picture("scene", 4, source=source)]) == 0  # named by its data set


def test_a_file_whose_codes_were_there_before_it_takes_them_over(database):
    database.store([picture("a.jpg", 1), picture("b.jpg", 2)])
    database.store([picture("a.jpg", 1, "/x/a.jpg", b"1"), picture("b.jpg", 3, "/x/b.jpg", b"3")])
    assert stored(database) == {"a.jpg": 1, "b.jpg": 2, "/x/b.jpg": 3}
    (known,) = database.read("SELECT path FROM pictures WHERE id = 'a.jpg'")
    assert known == (b"/x/a.jpg",)


def test_codes_of_unknown_bytes_do_not_replace_codes_of_known_ones(database):
    database.store([picture("a.jpg", 1, "/x/a.jpg", b"1")])
    assert database.store([picture("a.jpg", 2, "/x/a.jpg")]) == 0
    assert stored(database) == {"a.jpg": 1}


def test_codes_are_taken_over_only_from_a_row_that_is_still_what_it_was(database):
    database.store([picture("a.jpg", 1, "/x/a.jpg", b"1"), picture("b.jpg", 2, "/x/b.jpg", b"2")])
    new = FileState(b"/y/a.jpg", b"1")
    assert not database.take_codes(2, "a.jpg", new, None, moved=False)  # other bytes
    assert not database.take_codes(9, "a.jpg", new, None, moved=True)  # removed meanwhile
    assert database.take_codes(1, "c.jpg", new, None, moved=False)
    assert database.take_codes(1, "c.jpg", new, None, moved=False)  # another writer was quicker
    assert stored(database) == {"a.jpg": 1, "b.jpg": 2, "c.jpg": 1}
    assert database.take_codes(1, "a.jpg", FileState(b"/z/a.jpg", b"1"), None, moved=True)
    assert stored(database) == {"b.jpg": 2, "c.jpg": 1, "a.jpg": 1}
    assert database.read("SELECT count(*) FROM pictures WHERE path = ?", b"/x/a.jpg") == [(0,)]
    # The file was stored meanwhile, but as it was before.
    assert database.take_codes(2, "c.jpg", FileState(b"/y/a.jpg", b"2"), None, moved=False)
    assert stored(database) == {"b.jpg": 2, "c.jpg": 2, "a.jpg": 1}


def test_a_picture_that_was_found_elsewhere_is_not_removed_as_gone(database):
    database.store([picture("a.jpg", 1, "/x/a.jpg", b"1"), picture("b.jpg", 2, "/x/b.jpg", b"2")])
    assert database.remove_gone([(1, b"/old/a.jpg"), (2, b"/x/b.jpg")]) == 1
    assert stored(database) == {"a.jpg": 1}


def test_a_collection_of_another_model_is_not_taken_up(database, tmp_path):
    path = tmp_path / "collection.db"
    for field, other in (("model_hash", "def"), ("classes", ["cat"]), ("n_bits", 24)):
        with pytest.raises(StoreError, match=f"{field} must be .*, got "):
            Database.create(path, MODEL | {field: other})
    with Database.create(path, MODEL | {"meta": {}}) as again:
        assert again.identity == database.identity


def test_every_picture_has_the_parts_of_the_first(database):
    database.store([new_image(0)])
    bare = new_image(1)
    rows = {name: array for name, array in bare.rows.items() if name != "image_codes"}
    part = r"1\.jpg: every picture of .* must have image_codes of shape \[2\], got "
    with pytest.raises(ValueError, match=f"{part}none"):
        database.store([new_image(2), NewImage(bare.id, bare.file, None, rows)])
    wider = bare.rows | {"image_codes": np.zeros((1, 3), np.uint8)}
    with pytest.raises(ValueError, match=rf"{part}\[3\]"):
        database.store([NewImage(bare.id, bare.file, None, wider)])
    assert stored(database) == {"0.jpg": 0}


# One moment


def test_pictures_that_are_stored_after_the_header_was_read_come_with_the_next_moment(
    database, tmp_path, monkeypatch
):
    original, todo = Database.read_header, [new_image(n) for n in range(3)]

    def read_then_store(self):
        original(self)
        while todo:
            with monkeypatch.context() as undone:
                undone.setattr(Database, "read_header", original)
                database.store([todo.pop(0)])

    Collection(tmp_path).close()
    monkeypatch.setattr(Database, "read_header", read_then_store)
    with Collection(tmp_path) as collection:
        collection.sync()
    monkeypatch.undo()
    holds(tmp_path, range(3))


NEWBORN = """
    import os
    for _ in range(int(sys.argv[2])):
        folder = Path(sys.argv[1]) / str(_)
        folder.mkdir()
        from collection_cases import MODEL
        Database.create(folder / "collection.db", MODEL).close()
        children = []
        for job in ("write", "read", "read"):
            child = os.fork()
            if child:
                children.append(child)
                continue
            try:
                if job == "write":
                    with Database(folder / "collection.db") as database:
                        for n in range(3):
                            database.store([new_image(n)])
                else:
                    for _ in range(5):
                        with Collection(folder) as collection:
                            assert collection.check().problems == ()
                os._exit(0)
            finally:
                os._exit(1)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        with Collection(folder) as collection:
            assert len(collection) == 3, folder
            assert collection.check().problems == ()
"""


def test_a_new_collection_is_read_while_its_first_pictures_are_stored(tmp_path):
    with child(NEWBORN, tmp_path, 12) as process:
        assert process.communicate()[1] == ""
    assert process.returncode == 0


REPLACE = """
    from collection_cases import NewImage, FileState, MODEL, encoded, rows_of
    database = Database(Path(sys.argv[1]) / "collection.db")
    n = 0
    while True:
        n += 1
        rows = rows_of("x.jpg", encoded(n % 50), None, MODEL)
        file = FileState(b"/photos/x.jpg", b"%d" % n)
        database.store([NewImage("x.jpg", file, None, rows)])
        database.store([new_image(n)])
        database.remove([row for (row,) in database.read(
            "SELECT row FROM pictures WHERE id = ?", f"{n}.jpg")])
        if n == 1:
            print("begun", flush=True)
"""


def test_a_picture_that_is_replaced_all_the_time_is_there_once_at_every_moment(database, tmp_path):
    database.store(new_image(KEPT + n) for n in range(3))
    seen = set()
    with child(REPLACE, tmp_path) as process, Collection(tmp_path) as collection:
        try:
            assert process.stdout.readline() == "begun\n"
            for n in takewhile(lambda n: n < 40 or len(seen) < 12, count()):
                snapshot = collection.snapshot
                ids = [snapshot.table.ids[place] for place in places_of_alive(snapshot)]
                assert ids.count("x.jpg") == 1
                assert {f"{KEPT + kept}.jpg" for kept in range(3)} <= set(ids)
                assert 4 <= len(ids) <= 5
                seen.add(snapshot.version)
                if n % 10 == 0:
                    assert collection.check(repair=n % 20 == 0).problems == ()
        finally:
            process.kill()
            process.communicate()


def test_a_database_that_was_replaced_or_deleted_is_noticed(database, tmp_path):
    database.store([new_image(0)])
    with Collection(tmp_path, follow=False) as collection:
        (tmp_path / "collection.db").unlink()
        for name in ("collection.db-wal", "collection.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        with pytest.raises(StoreError, match="no such file"):
            collection.sync()
        with Database.create(tmp_path / "collection.db", MODEL) as other:
            other.store([new_image(1)])
        with pytest.raises(CollectionReplacedError, match="replaced by another collection"):
            collection.sync()
        with pytest.raises(CollectionReplacedError):
            collection.remove(["0.jpg"])
    holds(tmp_path, [1])


def test_a_header_that_was_built_anew_is_another_collection_to_all_threads(database, tmp_path):
    database.store([new_image(0)])
    with Collection(tmp_path, follow=False) as collection:
        with database.transaction() as connection:
            connection.execute("UPDATE about SET header = 'lost'")
        Database.rebuild_header(tmp_path / "collection.db", MODEL)
        for _ in range(2):
            with pytest.raises(CollectionReplacedError):
                collection.sync()
    holds(tmp_path, [0])


def test_closing_leaves_the_log_of_the_database_that_is_in_its_place(
    database, tmp_path, monkeypatch
):
    log = tmp_path / "collection.db-wal"
    opened = Database(tmp_path / "collection.db")
    database.store([new_image(0)])
    with monkeypatch.context() as moved:  # as by another disk in the same place
        moved.setattr(module, "_place", lambda _: (0, 0))
        database.close()
        opened.close()
    del opened
    assert log.stat().st_size > 0
    holds(tmp_path, [0])


def test_what_was_not_stored_is_not_in_the_header(database, tmp_path):
    with pytest.raises(RuntimeError), database.transaction():
        database.put(new_image(0))
        raise RuntimeError("the disk is full")
    assert "rows" not in database.header
    database.store([new_image(0)])
    holds(tmp_path, [0])


def test_the_number_of_a_row_is_never_given_twice(database, tmp_path):
    database.store(new_image(n) for n in range(3))
    with Collection(tmp_path) as collection:
        database.remove([3])
        database.store([new_image(7)])
        assert [image.row for image in collection.images()] == [1, 2, 4]
        assert collection.get(4).path.name == "7.jpg"
    holds(tmp_path, [0, 1, 7])


# Damage


def damage(folder, statement, *values):
    connection = sqlite3.connect(folder / "collection.db")
    with connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(statement, values)
    connection.close()


@pytest.mark.parametrize("value", ["text", b"\xff\x00", -7, 2.5, None], ids=str)
@pytest.mark.parametrize(
    "column", ["folder", *(name for name in COLUMNS if name not in ("row", *BLOBS[3:7]))]
)
def test_a_damaged_row_is_left_out_and_named(database, tmp_path, column, value):
    database.store(new_image(n) for n in range(4))
    if database.read(f"SELECT {column} FROM images WHERE row = 2") == [(value,)]:
        pytest.skip("it is that already")
    database.close()
    try:
        damage(tmp_path, f"UPDATE images SET {column} = ? WHERE row = 2", value)
    except sqlite3.IntegrityError:
        pytest.skip("SQLite refuses it")
    with Collection(tmp_path) as collection:
        assert [image.row for image in collection.images(limit=5)] == [1, 3, 4]
        assert [image.row for image in collection.images()] == [1, 3, 4]
        assert len(collection) == 3
        (line,) = collection.check().problems
        assert line.startswith("row 2: damaged, and left out")
        assert len(collection.code_file().table) == 3
        collection.info()
        for name in ("1.jpg", "0.jpg"):
            if name == "0.jpg":
                assert collection.get(name).row == 1
            else:
                with pytest.raises(KeyError):
                    collection.encoded(name)
        assert collection.remove(["0.jpg"]) == 1


def test_a_damaged_row_is_restored_from_the_arrays_that_hold_it(database, tmp_path):
    database.store(new_image(n) for n in range(4))
    holds(tmp_path, range(4))
    before = database.intact("row = 2")
    database.close()
    damage(tmp_path, "UPDATE images SET region_codes = zeroblob(2), taken = 5 WHERE row = 2")
    report = check_folder(tmp_path)
    assert len(report.problems) == 1 and "row 2" in report.problems[0]
    report = check_folder(tmp_path, repair=True)
    assert report.problems == ()
    assert report.repaired == ("1.jpg: row 2 was restored from the arrays",)
    with Database(tmp_path / "collection.db") as database:
        assert database.intact("row = 2") == before
    holds(tmp_path, range(4))


def test_repair_never_takes_a_damaged_row_over_into_good_arrays(database, tmp_path):
    database.store(new_image(n) for n in range(4))
    holds(tmp_path, range(4))
    database.close()
    damage(tmp_path, "UPDATE images SET hash = x'00', boxes = zeroblob(32) WHERE row = 2")
    codes = next((tmp_path / "arrays").glob("*/region_codes"))
    codes.write_bytes(bytes(8))  # these are damaged as well, and built anew
    report = check_folder(tmp_path, repair=True)
    assert len(report.problems) == 1 and "row 2" in report.problems[0]
    assert not any("restored" in line for line in report.repaired)
    with Collection(tmp_path) as collection:
        assert list(collection.code_file().table.ids) == ["0.jpg", "2.jpg", "3.jpg"]


def test_a_damaged_row_of_unknown_labels_is_restored_among_those_that_have_some(database, tmp_path):
    known = NewImage("0.jpg", FileState(), None, rows_of("0.jpg", encoded(0), [1], MODEL))
    database.store([known, new_image(1)])
    Collection(tmp_path).close()  # makes the arrays, in which row 2 has no label
    before = [database.intact(f"row = {row}") for row in (1, 2)]
    database.close()
    damage(tmp_path, "UPDATE images SET region_codes = zeroblob(2)")
    assert len(check_folder(tmp_path, repair=True).repaired) == 2
    with Database(tmp_path / "collection.db") as database:
        assert [database.intact(f"row = {row}") for row in (1, 2)] == before


def test_a_file_of_another_size_or_another_time_is_changed(database, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n, (size, time) in enumerate([(0, 0), (1, 0), (0, 1)]):
        path = folder / f"{n}.jpg"
        path.write_bytes(b"content")
        os.utime(path, ns=(10**18, 10**18))
        file = FileState(os.fsencode(path), b"%d" % n, n_bytes=7, mtime_ns=10**18)
        database.store([NewImage(path.name, file, None, new_image(n).rows)])
        path.write_bytes(b"content" + b"!" * size)
        os.utime(path, ns=(10**18, 10**18 + time))
    assert check_folder(tmp_path).changed == ("1.jpg", "2.jpg")


def test_one_copy_of_the_header_is_enough(database, tmp_path):
    database.store(new_image(n) for n in range(2))
    database.close()
    damage(tmp_path, "UPDATE about SET header = 'x' WHERE rowid = (SELECT max(rowid) FROM about)")
    holds_but_for_a_header(tmp_path)
    damage(tmp_path, "DELETE FROM about WHERE header = 'x'")
    holds_but_for_a_header(tmp_path)
    assert check_folder(tmp_path, repair=True).problems == ()
    holds(tmp_path, range(2))


def holds_but_for_a_header(folder):
    with Collection(folder) as collection:
        assert len(collection) == 2
        assert collection.check().problems == (
            f"{folder / 'collection.db'}: a copy of the header is damaged",
        )


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"format": "regionhash collection", "version": 2}',
    ],
)
def test_a_damaged_header_is_named(database, tmp_path, header):
    database.store([new_image(0)])
    database.close()
    damage(tmp_path, "UPDATE about SET header = ?", header)
    with pytest.raises(HeaderError, match=r"collection\.db: the header is damaged .*--repair"):
        Database(tmp_path / "collection.db")
    (line,) = check_folder(tmp_path).problems
    assert "the header is damaged" in line


@pytest.mark.parametrize("field", [*MODEL, "uuid", "rows"])
@pytest.mark.parametrize("value", ["5", '"x"', "null", '["a", 5]', '{"boxes": [1.5]}'])
def test_a_damaged_field_of_the_header_is_named(database, tmp_path, field, value):
    database.store([new_image(0)])
    database.close()
    damage(tmp_path, f"UPDATE about SET header = json_set(header, '$.{field}', json('{value}'))")
    with pytest.raises(HeaderError, match="the header is damaged"):
        Database(tmp_path / "collection.db")


def test_a_header_is_not_built_anew_from_the_model_of_other_codes(database, tmp_path):
    path = tmp_path / "collection.db"
    database.store([new_image(0)])
    with pytest.raises(StoreError, match="its codes are of another model than the one here"):
        Database.rebuild_header(path, MODEL | {"model_hash": "def"})
    damage(tmp_path, "UPDATE about SET header = 'lost'")  # and what it was is not known
    with pytest.raises(StoreError, match=r"0\.jpg is of another model than the one here"):
        Database.rebuild_header(path, MODEL | {"n_bits": 32})
    assert {text for text, _ in database.read("SELECT * FROM about")} == {"lost"}
    Database.rebuild_header(path, MODEL)
    holds(tmp_path, [0])


def test_a_damaged_page_hides_its_rows_alone(database, tmp_path):
    database.store(new_image(n) for n in range(200))
    boxes = database.intact("row = 3")["boxes"]
    database.close()
    path = tmp_path / "collection.db"
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")  # of a page
    content[content.index(boxes) // size * size] = 0xFF  # no kind of page
    path.write_bytes(content)
    with Database(path) as database:
        rows = dict(database.rows())
    assert list(rows) == list(range(1, 201))
    lost = [row for row, columns in rows.items() if columns is None]
    assert 3 in lost and len(lost) < 60
    assert all(columns["id"] == f"{row - 1}.jpg" for row, columns in rows.items() if columns)


@settings(max_examples=15, deadline=None)
@given(place=st.floats(0, 1), length=st.integers(1, 600), fill=st.integers(0, 255))
def test_damaged_bytes_are_reported_and_never_a_traceback(tmp_path_factory, place, length, fill):
    folder = tmp_path_factory.mktemp("damaged")
    with Database.create(folder / "collection.db", MODEL) as database:
        database.store(new_image(n) for n in range(40))
    path = folder / "collection.db"
    content = bytearray(path.read_bytes())
    at = int(place * (len(content) - 1))
    content[at : at + length] = bytes([fill]) * min(length, len(content) - at)
    path.write_bytes(content)
    known = {encoded(n).image_code.tobytes() for n in range(40)}
    try:
        report = check_folder(folder)
        with Collection.open(folder) as collection:
            table = collection.code_file().table
            found = [code.tobytes() for code in table.image_codes] if len(table) else []
            collection.images(limit=100)
            collection.info()
    except (StoreError, ValueError) as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert set(found) <= known and len(set(found)) == len(found)
    if len(found) < 40:
        assert report.problems


def test_a_schema_that_is_damaged_to_no_text_is_reported_with_the_file(database, tmp_path):
    database.store([new_image(0)])
    database.close()
    path = tmp_path / "collection.db"
    content = path.read_bytes()
    assert content.count(b"WHERE path IS NULL") == 1
    path.write_bytes(content.replace(b"WHERE path IS NULL", b"WHERE pat\x80 IS NULL"))
    with pytest.raises(StoreError, match=r"collection\.db: .*pat\\x80"):
        Collection(tmp_path)


def test_a_schema_that_is_damaged_to_several_lines_is_reported_in_one(database, tmp_path):
    database.close()
    path = tmp_path / "collection.db"
    content = path.read_bytes()
    name = b"CREATE INDEX images_without_file"
    assert content.count(name) == 1
    path.write_bytes(content.replace(name, b"CREATE INDEX images\nwithout\nfile"))
    with pytest.raises(StoreError, match=r"collection\.db: malformed .*") as raised:
        Collection(tmp_path)
    assert "\n" not in str(raised.value)


def make_version_1(folder):
    """Makes a database what it was before there were checksums and names."""
    damage(folder, "DROP INDEX images_without_file")
    for column in ("checksum", "name"):
        damage(folder, f"ALTER TABLE images DROP COLUMN {column}")
    damage(folder, "DELETE FROM about WHERE rowid = (SELECT max(rowid) FROM about)")
    damage(folder, "ALTER TABLE about DROP COLUMN checksum")
    damage(folder, "UPDATE about SET header = json_set(header, '$.version', 1)")


def test_a_database_of_version_1_is_brought_to_the_next(old_database, tmp_path):
    old_database.store(new_image(n) for n in range(3))
    header = old_database.header
    old_database.close()
    make_version_1(tmp_path)
    damage(tmp_path, "UPDATE images SET boxes = x'00' WHERE row = 2")  # never fitted
    with Database(tmp_path / "collection.db") as database:
        assert database.header == header
        assert [row and row["id"] for _, row in database.rows()] == ["0.jpg", None, "2.jpg"]
        assert database.store([new_image(1), new_image(2)]) == 1
    holds(tmp_path, [0, 2, 1])


def test_two_who_open_a_database_of_version_1_at_once_bring_it_here_once(
    old_database, tmp_path, monkeypatch
):
    old_database.store(new_image(n) for n in range(3))
    header = old_database.header
    old_database.close()
    make_version_1(tmp_path)
    original = module._migrate

    def second(connection, path):
        monkeypatch.setattr(module, "_migrate", original)
        Database(path).close()  # between the look at the version and the transaction
        original(connection, path)

    monkeypatch.setattr(module, "_migrate", second)
    with Database(tmp_path / "collection.db") as database:
        assert database.header == header
    holds(tmp_path, range(3))


def precise(n):
    """A picture whose boxes and scores small types do not hold exactly, and its regions."""
    regions = encoded(n).regions
    regions = replace(regions, boxes=regions.boxes + np.float32(0.01), scores=regions.scores / 3)
    rows = rows_of(f"{n}.jpg", replace(encoded(n), regions=regions), None, MODEL)
    return replace(new_image(n), rows=rows), regions


def test_a_collection_of_version_2_keeps_its_boxes_and_scores_as_they_are(old_database, tmp_path):
    images, regions = zip(*map(precise, range(8)), strict=True)
    assert old_database.store(images) == 8
    assert old_database.store([images[3]]) == 0
    old_database.close()
    damage(tmp_path, "UPDATE images SET name = id")  # as it was, and in the checksum
    with Database(tmp_path / "collection.db") as database, database.transaction() as connection:
        for row in database.damaged():
            values = (module.checksum(row), row["row"])
            connection.execute("UPDATE images SET checksum = ? WHERE row = ?", values)
    with Collection(tmp_path) as collection:
        assert collection.header["version"] == 2
        assert collection.check().problems == ()
        known = collection._database.read(f"SELECT row FROM images WHERE {OF_HASH}", b"5")
        assert known == [(6,)]
        collection.remove(["1.jpg", "2.jpg", "4.jpg"])
        table = collection.code_file().table
        for at, n in enumerate((0, 3, 5, 6, 7)):
            for part in ("codes", "boxes", "scores", "labels"):
                np.testing.assert_array_equal(
                    getattr(table.regions(at), part), getattr(regions[n], part)
                )
    damage(tmp_path, "UPDATE images SET boxes = zeroblob(32) WHERE row = 6")
    assert check_folder(tmp_path, repair=True).repaired == (
        "5.jpg: row 6 was restored from the arrays",
    )
    damage(tmp_path, "UPDATE about SET header = 'lost'")
    Database.rebuild_header(tmp_path / "collection.db", MODEL)
    with Collection(tmp_path) as collection:
        assert collection.header["version"] == 2
        assert collection.check().problems == ()


def test_rows_are_found_by_their_hash_with_an_index_in_both_versions(old_database, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    query = f"EXPLAIN QUERY PLAN SELECT row FROM pictures WHERE {OF_HASH}"
    with Database.create(new / "collection.db", MODEL) as database:
        for each in (old_database, database):
            assert "INDEX images_by_hash" in str(each.read(query, b"5"))


def test_parts_that_do_not_fit_together_are_told_from_those_that_do(database):
    database.store([new_image(0)])
    good = database.intact("row = 1")
    assert fits(good, database.header)
    for change in (
        {"boxes": good["boxes"][:-16]},
        {"boxes": None},
        {"scores": good["scores"] + b"\0"},
        {"categories": b""},
        {"image_labels": b"\0"},
        {"image_codes": "text"},
    ):
        assert not fits(good | change, database.header)


# Uploads


def two_contents_of_one_prefix(start):
    """Two files, different in bytes that no decoder reads, whose hashes begin alike."""
    known = {}
    for n in range(1 << 20):
        content = start + n.to_bytes(4, "little")
        prefix = hashlib.sha256(content).hexdigest()[:8]
        if prefix in known:
            return known[prefix], content
        known[prefix] = content
    raise AssertionError("no such pair")


def test_uploads_of_one_name_whose_hashes_begin_alike_are_two_pictures(database, tmp_path):
    contents = two_contents_of_one_prefix(b"picture")
    with Collection(tmp_path) as collection:
        added = [
            collection.add_upload(content, "cat.jpg", ".jpg", encoded(n))
            for n, content in enumerate(contents)
        ]
        assert added[0][1] != added[1][1]
        assert len(collection) == 2
        assert collection.add_upload(contents[0], "dog.jpg", ".jpg", encoded(0)) == added[0]
        for (row, _), content in zip(added, contents, strict=True):
            assert collection.get(row).path.read_bytes() == content
        assert collection.check().orphans == ()
        assert collection.remove_rows([added[0][0]]) == 1
        assert len(list((tmp_path / "uploads").iterdir())) == 1
        collection.remove([str(tmp_path / "uploads")])
        assert list((tmp_path / "uploads").iterdir()) == []


def test_a_file_that_a_killed_upload_left_is_named_and_removed(database, tmp_path):
    code = """
        from regionhash.collection import collection as module
        from collection_cases import encoded
        def stop(self, image):
            print("written", flush=True)
            time.sleep(60)
        Database.put = stop
        Collection(Path(sys.argv[1])).add_upload(b"content", "cat.jpg", ".jpg", encoded(0))
    """
    with child(code, tmp_path) as process:
        assert process.stdout.readline() == "written\n"
        process.kill()
        process.communicate()
    (left,) = [path for path in (tmp_path / "uploads").iterdir() if path.suffix == ".jpg"]
    assert str(left) in check_folder(tmp_path).orphans
    assert any(str(left) in line for line in check_folder(tmp_path, repair=True).repaired)
    assert list((tmp_path / "uploads").iterdir()) == []
    with Collection(tmp_path) as collection:
        collection.add_upload(b"content", "cat.jpg", ".jpg", encoded(0))
        assert len(collection) == 1


def test_repair_leaves_the_file_of_an_upload_that_is_on_its_way(database, tmp_path):
    code = """
        from collection_cases import encoded
        put = Database.put
        def wait(self, image):
            print("written", flush=True)
            sys.stdin.readline()
            return put(self, image)
        Database.put = wait
        Collection(Path(sys.argv[1])).add_upload(b"content", "cat.jpg", ".jpg", encoded(0))
    """
    with child(code, tmp_path) as process:
        assert process.stdout.readline() == "written\n"
        repair = threading.Thread(target=check_folder, args=(tmp_path,), kwargs={"repair": True})
        repair.start()
        repair.join(1)
        assert process.communicate("\n")[1] == ""
        repair.join()
    report = check_folder(tmp_path)
    assert (report.n_images, report.missing, report.orphans) == (1, (), ())


def test_a_file_that_is_uploaded_again_while_it_is_removed_stays(database, tmp_path, monkeypatch):
    original = uploads._remove_files

    def late(database, files):
        with Collection(tmp_path) as other:
            other.add_upload(b"content", "dog.jpg", ".jpg", encoded(1))
        original(database, files)

    with Collection(tmp_path) as collection:
        row, _ = collection.add_upload(b"content", "cat.jpg", ".jpg", encoded(0))
        monkeypatch.setattr(uploads, "_remove_files", late)
        assert collection.remove_rows([row]) == 1
        ((row, image_id),) = [(image.row, image.id) for image in collection.images()]
        assert image_id.endswith("dog.jpg")
        assert collection.get(row).path.read_bytes() == b"content"


def test_a_collection_that_was_moved_or_linked_keeps_its_uploads(database, tmp_path):
    database.close()
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (tmp_path / "collection.db").rename(old / "collection.db")
    with Collection(old) as collection:
        row, image_id = collection.add_upload(b"content", "cat.jpg", ".jpg", encoded(0))
    (tmp_path / "link").symlink_to(old)
    report = check_folder(tmp_path / "link", repair=True)
    assert (report.orphans, report.missing, report.repaired) == ((), (), ())
    old.rename(new)
    report = check_folder(new, repair=True)
    assert (report.orphans, report.missing, report.repaired) == ((), (), ())
    with Collection(new) as collection:
        assert collection.get(row).path == new / "uploads" / collection.get(row).path.name
        assert collection.get(row).path.read_bytes() == b"content"
        assert collection.add_upload(b"content", "dog.jpg", ".jpg", encoded(0)) == (row, image_id)
        assert collection.remove([image_id]) == 1
    assert list((new / "uploads").iterdir()) == []


def test_uploads_are_found_by_the_folders_that_they_are_in(database, tmp_path):
    database.store([new_image(0)])
    with Collection(tmp_path) as collection:
        row, _ = collection.add_upload(b"content", "cat.jpg", ".jpg", encoded(1))
        file = collection.get(row).path
        for place in (tmp_path, tmp_path.parent, tmp_path / "uploads", file):
            assert database.rows_at(place) == [row]
        assert sorted(database.rows_at("/")) == [1, row]
        for place in (tmp_path / "up", tmp_path / "arrays", file.with_suffix("")):
            assert database.rows_at(place) == []


def test_a_folder_among_the_uploads_is_left_alone(database, tmp_path):
    (tmp_path / "uploads" / "@eaDir").mkdir(parents=True)
    report = check_folder(tmp_path, repair=True)
    assert (report.orphans, report.repaired) == ((), ())


def test_a_damaged_row_whose_picture_was_stored_again_is_removed_by_repair(database, tmp_path):
    database.store(new_image(n) for n in range(3))
    holds(tmp_path, range(3))
    database.close()
    damage(tmp_path, "UPDATE images SET path = x'2f78', id = 'zz' WHERE row = 2")
    damage(tmp_path, "UPDATE images SET boxes = x'00' WHERE row = 3")
    with Database(tmp_path / "collection.db") as database:
        assert database.store([new_image(1)]) == 1
    Collection(tmp_path).close()
    report = check_folder(tmp_path, repair=True)
    assert any("row 3 was restored" in line for line in report.repaired)


# Arrays


def test_arrays_of_a_copy_that_has_gone_another_way_are_not_used(database, tmp_path):
    database.store(new_image(n) for n in range(3))
    holds(tmp_path, range(3))
    database.close()
    copy = shutil.copytree(tmp_path, tmp_path / "copy")
    for folder, n in ((tmp_path, 5), (copy, 6)):
        with Database(folder / "collection.db") as database:
            database.store([new_image(n)])
        holds(folder, [0, 1, 2, n])
    shutil.rmtree(tmp_path / "arrays")
    shutil.copytree(copy / "arrays", tmp_path / "arrays")
    holds(tmp_path, [0, 1, 2, 5])


def test_a_removal_is_seen_though_what_was_added_cannot_be(database, tmp_path, monkeypatch):
    database.store(new_image(n) for n in range(4))
    with Collection(tmp_path, follow=False) as collection:
        database.store([new_image(9)])

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Arrays, "_append", full)
        assert collection.remove_rows([2]) == 1
        assert collection.snapshot.rows[places_of_alive(collection.snapshot)].tolist() == [1, 3, 4]
        with pytest.raises(StoreError, match="No space left"):
            collection.sync()
    monkeypatch.undo()
    holds(tmp_path, [0, 2, 3, 9])


def test_arrays_of_a_later_moment_than_that_of_a_restored_database_are_not_used(database, tmp_path):
    path = tmp_path / "collection.db"
    database.store(new_image(n) for n in range(3))
    database.close()
    kept = path.read_bytes()
    with Database(path) as later:
        later.store([new_image(3), new_image(4)])
    holds(tmp_path, range(5))
    path.write_bytes(kept)
    holds(tmp_path, range(3))
    with Database(path) as restored:
        restored.store([new_image(7)])
    holds(tmp_path, [0, 1, 2, 7])


def generations(folder):
    return [path.name for path in (folder / "arrays").iterdir() if path.is_dir()]


def test_arrays_are_compacted_when_more_than_a_quarter_of_them_is_removed(database, tmp_path):
    database.store(new_image(n) for n in range(8))
    with Collection(tmp_path) as collection:
        before = collection.snapshot
        collection.remove(["0.jpg", "1.jpg"])
        assert (len(collection.snapshot.rows), len(collection.snapshot)) == (8, 6)
        collection.remove(["2.jpg"])
        after = collection.snapshot
        assert after.rows.tolist() == [4, 5, 6, 7, 8] and after.alive is None
        assert generations(tmp_path) == [after.generation] != [before.generation]
        assert collection.check().problems == ()
        database.store([new_image(9)])
        collection.remove_rows([4])
        assert collection.snapshot.generation == after.generation
    holds(tmp_path, [4, 5, 6, 7, 9])


def test_no_search_and_no_single_change_rebuilds_the_arrays(database, tmp_path):
    database.store(new_image(n) for n in range(8))
    with Collection(tmp_path) as collection:
        generation = collection.snapshot.generation
        database.remove([1, 2, 3, 4])
        assert collection.encoded("7.jpg").size == (107, 200)
        with Collection(tmp_path) as another:
            assert len(another.codes()) == 4
        assert collection.remove_rows([5]) == 1
        row, image_id = collection.add_upload(b"content", "cat.jpg", ".jpg", encoded(3))
        database.store([new_image(9)])
        assert collection.encoded(image_id).size == (103, 200)
        assert collection.encoded("9.jpg").size == (109, 200)
        assert collection.check().problems == ()
        assert collection.snapshot.generation == generation
        assert generations(tmp_path) == [generation]
        collection.remove_rows([row])
        assert len(collection.snapshot.rows) == 10
        collection.compact()
        assert collection.snapshot.rows.tolist() == [6, 7, 8, 10]
    holds(tmp_path, [5, 6, 7, 9])


def test_others_search_add_and_remove_while_arrays_are_compacted(database, tmp_path, monkeypatch):
    database.store(new_image(n) for n in range(8))
    copy, begun, resumed = arrays._copy, threading.Event(), threading.Event()

    def slow(*arguments):
        begun.set()
        assert resumed.wait(60)
        return copy(*arguments)

    monkeypatch.setattr(arrays, "_copy", slow)
    with Collection(tmp_path) as collection:
        before = collection.snapshot.generation
        collection.remove_rows([1, 2, 3])
        thread = threading.Thread(target=collection.compact)
        thread.start()
        assert begun.wait(60)
        database.store([new_image(9)])  # none of these waits
        assert collection.remove_rows([4]) == 1
        assert collection.snapshot.generation == before
        assert len(collection) == 5
        with Collection(tmp_path) as another:
            assert [image.row for image in another.images()] == [5, 6, 7, 8, 9]
        resumed.set()
        thread.join()
        assert collection.snapshot.rows.tolist() == [4, 5, 6, 7, 8, 9]
        assert collection.snapshot.alive.tolist() == [False, *[True] * 5]
        assert generations(tmp_path) == [collection.snapshot.generation] != [before]
    holds(tmp_path, [4, 5, 6, 7, 9])


def test_of_two_who_compact_at_once_one_is_enough(database, tmp_path, monkeypatch):
    database.store(new_image(n) for n in range(8))
    copy = arrays._copy

    def second(*arguments):
        monkeypatch.setattr(arrays, "_copy", copy)
        with Collection(tmp_path) as other:
            other.compact()
        return copy(*arguments)

    monkeypatch.setattr(arrays, "_copy", second)
    with Collection(tmp_path) as collection:
        collection.remove(["0.jpg", "1.jpg", "2.jpg"])
        assert len(generations(tmp_path)) == 1
        database.store([new_image(9)])
        assert len(collection) == 6
    holds(tmp_path, [3, 4, 5, 6, 7, 9])


def test_arrays_that_are_deleted_while_they_are_compacted_are_not_used(
    database, tmp_path, monkeypatch
):
    database.store(new_image(n) for n in range(8))
    copy = arrays._copy

    def deleted(old, rows, folder):
        lengths = copy(old, rows, folder)
        with Database(tmp_path / "collection.db") as other:
            assert Arrays(tmp_path).remove_stale(other) == [folder]
        return lengths

    monkeypatch.setattr(arrays, "_copy", deleted)
    with Collection(tmp_path) as collection:
        before = collection.snapshot.generation
        collection.remove(["0.jpg", "1.jpg", "2.jpg"])
        assert collection.snapshot.generation == before
    holds(tmp_path, [3, 4, 5, 6, 7])


def test_a_compaction_that_was_killed_leaves_the_arrays_as_they_were(database, tmp_path):
    database.store(new_image(n) for n in range(8))
    code = """
        from regionhash.collection import arrays
        finish = arrays._Appender.finish
        def stop(self):
            finish(self)
            print("copied", flush=True)
            time.sleep(60)
        collection = Collection(Path(sys.argv[1]))
        arrays._Appender.finish = stop
        collection._database.remove([1, 2, 3])
        collection.sync()
        collection.compact()
    """
    with child(code, tmp_path) as process:
        assert process.stdout.readline() == "copied\n"
        process.kill()
        process.communicate()
    holds(tmp_path, [3, 4, 5, 6, 7])
    assert len(generations(tmp_path)) == 2
    assert any("never finished" in line for line in check_folder(tmp_path, repair=True).repaired)
    assert len(generations(tmp_path)) == 1
    holds(tmp_path, [3, 4, 5, 6, 7])


def test_a_disk_too_full_to_compact_leaves_the_arrays_as_they_were(database, tmp_path, monkeypatch):
    database.store(new_image(n) for n in range(6))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrays._Appender, "finish", full)
    with pytest.raises(StoreError, match="No space left"):
        Collection(tmp_path)
    monkeypatch.undo()
    with Collection(tmp_path) as collection:
        monkeypatch.setattr(arrays._Appender, "finish", full)
        assert collection.remove(["0.jpg", "1.jpg", "2.jpg"]) == 3
        assert list(collection.code_file().table.ids) == ["3.jpg", "4.jpg", "5.jpg"]
        assert generations(tmp_path) == [collection.snapshot.generation]
    monkeypatch.undo()
    holds(tmp_path, [3, 4, 5])


def test_a_compaction_keeps_every_array(database, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(arrays, "_COPIED", 3)

    def stored(n):
        whole = replace(
            encoded(n, n_regions=n % 4),
            categories=CategoryCodes(
                np.arange(n % 3), rng.random(n % 3, np.float32), np.full((n % 3, 1), n, np.uint8)
            ),
        )
        labels = [n % 2] if n % 3 else None
        rows = rows_of(f"{n}.jpg", whole, labels, MODEL)
        return NewImage(f"{n}.jpg", new_image(n, taken=float(n)).file, None, rows)

    database.store(stored(n) for n in range(20))
    with Collection(tmp_path) as collection:
        collection.remove([f"{n}.jpg" for n in range(0, 20, 2)])
        snapshot = collection.snapshot
        assert snapshot.alive is None and len(snapshot) == 10
        with Collection(tmp_path) as other:
            assert other.check().problems == ()  # every column, compared with the database


def test_a_row_that_is_damaged_stays_in_arrays_that_are_compacted(database, tmp_path):
    database.store(new_image(n) for n in range(8))
    holds(tmp_path, range(8))
    damage(tmp_path, "UPDATE images SET boxes = zeroblob(16) WHERE row = 8")
    with Collection(tmp_path) as collection:
        collection.remove(["0.jpg", "1.jpg", "2.jpg"])
        assert collection.snapshot.rows.tolist() == [4, 5, 6, 7, 8]
    assert check_folder(tmp_path, repair=True).repaired == (
        "7.jpg: row 8 was restored from the arrays",
    )
    holds(tmp_path, [3, 4, 5, 6, 7])


def test_labels_that_come_late_are_appended_to_arrays_without_any(database, tmp_path):
    database.store(new_image(n) for n in range(5))
    with Collection(tmp_path) as collection:
        before = collection.snapshot
        assert before.labels is None
        rows = rows_of("5.jpg", encoded(5), [1], MODEL)
        database.store([NewImage("5.jpg", FileState(), None, rows)])
        after = collection.snapshot
        assert after.labels.tolist() == [[0, 0]] * 5 + [[0, 1]]
        assert after.generation == before.generation
        assert collection.check().problems == ()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sizes", "picture 0.jpg (row 1) has another size"),
        ("id_bytes", "picture 0.jpg (row 1) has another id"),
        ("image_codes", "image_codes of picture 0.jpg (row 1) differ"),
        ("boxes", "boxes of picture 0.jpg (row 1) differ"),
        ("rows", "picture 0.jpg (row 1) is missing"),
    ],
)
def test_one_wrong_bit_of_the_arrays_is_found_and_named(database, tmp_path, name, said):
    database.store([new_image(0), new_image(1)])
    with Collection(tmp_path) as collection:
        array = next((tmp_path / "arrays").glob(f"*/{name}"))
        content = array.read_bytes()
        array.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert collection.check().problems == (f"arrays: {said}",)
        assert len(collection.check(repair=True).repaired) == 1
    holds(tmp_path, range(2))


def test_arrays_that_were_deleted_and_built_anew_are_not_masked_as_the_old_ones(database, tmp_path):
    database.store(new_image(n) for n in range(6))
    with Collection(tmp_path) as one, Collection(tmp_path) as other:
        database.remove([1])
        assert len(one.snapshot) == 5  # with a mask
        for path in (tmp_path / "arrays").rglob("*"):
            if path.is_file():
                path.unlink()
        other.code_file()
        database.remove([3])
        database.store([new_image(8)])
        for collection in (one, other):
            snapshot = collection.snapshot
            rows = snapshot.rows[places_of_alive(snapshot)].tolist()
            assert rows == [2, 4, 5, 6, 7]
    holds(tmp_path, [1, 3, 4, 5, 8])


def test_pictures_that_the_arrays_alone_hold_are_found_and_left_out(database, tmp_path):
    database.store(new_image(n) for n in range(3))
    Collection(tmp_path).close()
    damage(tmp_path, "DROP TRIGGER removed")
    damage(tmp_path, "DELETE FROM images WHERE row = 2")  # and no removal is noted
    assert check_folder(tmp_path).problems == (
        "arrays: hold pictures that the database does not have",
    )
    assert len(check_folder(tmp_path, repair=True).repaired) == 1
    holds(tmp_path, [0, 2])


def test_damaged_arrays_are_built_anew_by_whoever_opens_them(database, tmp_path):
    database.store(new_image(n) for n in range(5))
    holds(tmp_path, range(5))
    for name in ("offsets", "id_offsets", "rows", "labels"):
        path = next((tmp_path / "arrays").glob(f"*/{name}"))
        path.write_bytes(np.full(path.stat().st_size // 8, 77, "<i8").tobytes())
        holds(tmp_path, range(5))
    for name in ("offsets", "taken", "sizes"):
        next((tmp_path / "arrays").glob(f"*/{name}")).unlink()
        holds(tmp_path, range(5))


def test_everything_of_a_row_has_a_part_in_its_checksum(database):
    database.store([new_image(0, n_bytes=5, mtime_ns=6, taken=7.0)])
    columns = database.intact("row = 1")
    from regionhash.collection.database import checksum

    seen = {checksum(columns)}
    for name in COLUMNS:
        for value in (None, 1, 2.5, b"", b"x"):
            changed = columns | {name: value}
            if changed == columns or (name in BLOBS and not isinstance(value, bytes | None)):
                continue
            seen.add(checksum(changed))
    for one, other in combinations(BLOBS, 2):
        if columns[one] != columns[other]:
            seen.add(checksum(columns | {one: columns[other], other: columns[one]}))
    n_swaps = sum(columns[one] != columns[other] for one, other in combinations(BLOBS, 2))
    n_changes = sum(
        columns | {name: value} != columns
        for name in COLUMNS
        for value in (None, 1, 2.5, b"", b"x")
        if not (name in BLOBS and not isinstance(value, bytes | None))
    )
    assert len(seen) == 1 + n_changes + n_swaps


def test_what_is_in_the_way_of_the_arrays_is_told(database, tmp_path):
    database.store([new_image(0)])
    Path(tmp_path / "arrays").write_text("a file")
    with pytest.raises(StoreError, match=r"arrays.*: Not a directory"):
        Collection(tmp_path)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_rebuilt_header_still_has_the_precision_of_the_codes(tmp_path, precision):
    path = tmp_path / "collection.db"
    Database.create(path, MODEL | {"meta": {"precision": precision}}).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE about SET header = 'x'")
    connection.close()
    Database.rebuild_header(path, MODEL)
    with Database(path) as database:
        assert database.header["meta"]["precision"] == precision
