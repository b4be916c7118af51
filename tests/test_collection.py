"""A collection: pictures come and go, processes die, disks fill, and nothing is lost."""

import json
import os
import shutil
import signal
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_runner import error_of, run
from collection_cases import MODEL, child, encoded, holds, new_image
from conftest import write_picture
from regionhash.collection import Collection, Filter, Query, open_codes, transfer
from regionhash.collection.database import Database, FileState, NewImage
from regionhash.collection.filters import Masks, mask_of
from regionhash.data import open_dataset
from regionhash.data.images import read_image
from regionhash.search import search_categories, search_objects, search_regions
from regionhash.store import CodeFile, StoreError, rows_of


@pytest.fixture
def database(tmp_path):
    with Database.create(tmp_path / "collection.db", MODEL) as database:
        yield database


@pytest.fixture
def pictures(photos, tmp_path):
    """A folder of three photos that a test may change."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(3):
        shutil.copy(photos / f"{n}.png", folder)
    return folder


@pytest.fixture
def made(saved, pictures, tmp_path):
    """Their collection."""
    folder = tmp_path / "made"
    run("index", pictures, "-o", folder, "--model", saved.folder, "--workers", 0)
    return folder


def added(command, folder, *options):
    return json.loads(run(command, folder, *options, "--workers", 0, "--json").stdout)


def ids(folder):
    return list(open_codes(folder).compact().table.ids)


# The arrays follow the database


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "remove", "compact", "reopen"]), st.integers(0, 7)),
        max_size=12,
    )
)
def test_whatever_is_added_and_removed_the_arrays_are_the_database(steps, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    Database.create(folder / "collection.db", MODEL).close()
    there = {}
    collection = Collection(folder)
    for what, n in steps:
        if what == "add":
            collection._database.store([new_image(n)])
            there.setdefault(n)
        elif what == "remove":
            collection._database.remove(
                [image.row for image in collection.images() if image.id == f"{n}.jpg"]
            )
            there.pop(n, None)
        elif what == "compact":
            collection.compact()
        else:
            collection.close()
            collection = Collection(folder)
        assert len(collection) == len(there)
        assert collection.check().problems == ()
    collection.close()
    holds(folder, list(there))


def test_lost_torn_and_foreign_arrays_are_built_anew(database, tmp_path):
    database.store(new_image(n) for n in range(5))
    holds(tmp_path, range(5))
    state = tmp_path / "arrays" / "state.json"
    shutil.rmtree(tmp_path / "arrays")
    holds(tmp_path, range(5))
    state.write_text("{")
    holds(tmp_path, range(5))
    foreign = json.loads(state.read_text())
    state.write_text(json.dumps(foreign | {"uuid": "0"}))
    holds(tmp_path, range(5))
    assert json.loads(state.read_text())["generation"] != foreign["generation"]
    codes = next((tmp_path / "arrays").glob("*/region_codes"))
    codes.write_bytes(codes.read_bytes()[:-1])
    holds(tmp_path, range(5))


def test_bytes_behind_a_killed_append_are_written_over(database, tmp_path):
    database.store(new_image(n) for n in range(3))
    holds(tmp_path, range(3))
    for path in (tmp_path / "arrays").glob("*/*"):
        with path.open("ab") as file:
            file.write(b"torn")
    database.store([new_image(7)])
    holds(tmp_path, [0, 1, 2, 7])


def test_a_snapshot_stays_what_it_was(database, tmp_path):
    database.store(new_image(n) for n in range(4))
    with Collection(tmp_path) as collection:
        before = collection.snapshot
        codes = before.table.region_codes.copy()
        database.remove([1, 2, 3])
        database.store([new_image(9)])
        assert len(collection.snapshot) == 2
        collection.compact()
        assert collection.snapshot.alive is None
        np.testing.assert_array_equal(before.table.region_codes, codes)
        assert list(before.table.ids) == [f"{n}.jpg" for n in range(4)]


def test_a_rotten_array_is_found_and_repaired(made):
    codes = next((made / "arrays").glob("*/region_codes"))
    damaged = bytearray(codes.read_bytes())
    damaged[3] ^= 1
    codes.write_bytes(damaged)
    said = run("check", made, code=1).stdout
    assert "arrays: region_codes of picture 0.png (row 1) differ" in said
    assert "0 problems" in run("check", made, "--repair").stdout
    assert "0 problems" in run("check", made).stdout


# Processes


STORE = """
    database = Database(Path(sys.argv[1]) / "collection.db")
    for n in range(int(sys.argv[2]), int(sys.argv[3])):
        database.store([new_image(n)])
        print(n, flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_stored(database, tmp_path):
    reported = -1
    for _ in range(2):
        with child(STORE, tmp_path, reported + 1, 10**6) as process:
            for _ in range(20):
                reported = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            reported = int((process.stdout.read().split() or [reported])[-1])
        with Collection(tmp_path) as collection:
            stored = [image.id for image in collection.images()]
        assert len(stored) >= reported + 1
        reported = len(stored) - 1
    holds(tmp_path, range(reported + 1))


def test_a_process_killed_while_it_appends_leaves_arrays_that_go_on(database, tmp_path):
    database.store(new_image(n) for n in range(10))
    holds(tmp_path, range(10))
    database.store(new_image(n) for n in range(10, 20))
    code = """
        from regionhash.collection import arrays
        def stop(self):
            for name in self._pending:
                self._write(name)
            print("appended", flush=True)
            time.sleep(60)
        import time
        arrays._Appender.finish = stop
        Collection(Path(sys.argv[1]))
    """
    with child(code, tmp_path) as process:
        assert process.stdout.readline() == "appended\n"
        process.kill()
    holds(tmp_path, range(20))


def test_two_writers_at_once_lose_nothing_and_count_nothing_twice(database, tmp_path):
    with child(STORE, tmp_path, 0, 60) as one, child(STORE, tmp_path, 30, 90) as other:
        said = [process.communicate() for process in (one, other)]
    assert [line[1] for line in said] == ["", ""]
    with Collection(tmp_path) as collection:
        stored = [image.id for image in collection.images()]
    assert sorted(stored) == sorted(f"{n}.jpg" for n in range(90))
    holds(tmp_path, [int(image_id.removesuffix(".jpg")) for image_id in stored])


def test_a_full_disk_is_reported_and_nothing_is_half_there(database, tmp_path):
    database.store(new_image(n) for n in range(10))
    code = """
        import resource
        database = Database(Path(sys.argv[1]) / "collection.db")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))  # stands for a full disk
        stored = 10
        try:
            while True:
                database.store([new_image(n) for n in range(stored, stored + 10)])
                stored += 10
        except StoreError as error:
            print(stored, error)
    """
    with child(code, tmp_path) as process:
        stored, _, message = process.communicate()[0].partition(" ")
    assert message.startswith(f"{tmp_path / 'collection.db'}: ")
    holds(tmp_path, range(int(stored)))
    database.store([new_image(3000)])  # room is made
    holds(tmp_path, [*range(int(stored)), 3000])


@pytest.mark.parametrize("folder", ["/photos/1", "photos/1", "/photos", "/"])
def test_the_mask_of_a_folder_is_extended_by_new_pictures(database, tmp_path, folder):
    """Also where some were removed, and one of the new ones has moved there."""
    masks, wanted, added = Masks(), Filter(folder=folder), 0
    with Collection(tmp_path) as collection:
        for round_ in range(4):
            images = []
            for n in range(added, added + 5):
                name = f"photos/{(n + round_) % 3}/{n}.jpg"
                images.append(replace(new_image(n), id=name, file=FileState(b"/" + name.encode())))
            database.store(images)
            added += 5
            database.remove([added - 4])
            snapshot = collection.snapshot
            mask = masks.of(wanted, snapshot, database)
            np.testing.assert_array_equal(mask, mask_of(wanted, snapshot, database))
            there = [x.path for x in collection.images()]
            below = [path for path in there if path.is_relative_to("/" + folder.lstrip("/"))]
            assert np.count_nonzero(mask) == len(below) > 0


@pytest.mark.slow
def test_an_index_that_was_killed_goes_on(saved, tmp_path):
    code = """
        from regionhash import cli
        from regionhash.collection import adding
        adding._COMMIT_IMAGES = 2
        store = adding.Database.store
        def told(self, images, **options):
            stored = store(self, images, **options)
            print(stored, flush=True)
            return stored
        adding.Database.store = told
        arguments = ["index", "digits:test:40", "-o", sys.argv[1], "--model", sys.argv[2]]
        cli.app([*arguments, "--workers", "0", "--batch-size", "1"])
    """
    folder = tmp_path / "index"
    with child(code, folder, saved.folder) as process:
        for _ in range(3):
            assert process.stdout.readline() == "2\n"
        process.kill()
    report = json.loads(
        run("index", "digits:test:40", "-o", folder, "--workers", 0, "--json").stdout
    )
    assert 6 <= report["stored_before"] < 40
    assert report["encoded"] == 40 - report["stored_before"]
    assert ids(folder) == list(open_dataset("digits:test:40").ids)


# Adding, removing, refreshing


def test_a_moved_file_is_not_encoded_again_and_a_changed_one_is(made, pictures, photos):
    (pictures / "0.png").rename(pictures / "zero.png")
    shutil.copy(photos / "5.png", pictures / "1.png")
    shutil.copy(photos / "2.png", pictures / "copy.png")
    before = {
        image_id: open_codes(made).compact().table.regions(n).codes
        for n, image_id in enumerate(ids(made))
    }
    report = added("add", made, pictures)
    assert (report["encoded"], report["moved"], report["copied"]) == (1, 1, 1)
    table = open_codes(made).compact().table
    now = {image_id: table.regions(n).codes for n, image_id in enumerate(table.ids)}
    assert sorted(now) == ["1.png", "2.png", "copy.png", "zero.png"]
    np.testing.assert_array_equal(now["zero.png"], before["0.png"])
    np.testing.assert_array_equal(now["copy.png"], before["2.png"])
    assert not np.array_equal(now["1.png"], before["1.png"])
    again = added("add", made, pictures)
    assert (again["encoded"], again["stored_before"], again["moved"]) == (0, 4, 0)


def test_files_of_one_name_in_two_folders_are_two_pictures(made, photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(photos / "4.png", other / "0.png")
    assert added("add", made, other)["encoded"] == 1
    assert ids(made) == ["0.png", "1.png", "2.png", str(other / "0.png")]


def test_a_removed_picture_is_found_no_more_at_once(made, pictures):
    query = ["--query", pictures / "1.png"]
    with Collection.open(made) as opened:
        assert opened.search(pictures / "1.png").hits[0].id == "1.png"
        assert run("remove", made, "1.png").stdout == f"{made}: 1 removed, 2 left\n"
        assert [hit.id for hit in opened.search(pictures / "1.png").hits] != []
        assert "1.png" not in [hit.id for hit in opened.search(pictures / "1.png").hits]
    assert "1.png" not in run("search", made, *query).stdout
    assert "gone: no picture of" in error_of("remove", made, "0.png", "gone")
    assert ids(made) == ["0.png", "2.png"]
    run("remove", made, pictures)
    assert ids(made) == []
    assert "no picture has a region" in run("search", made, *query).stdout


def test_refresh_follows_the_folder_and_keeps_what_a_lost_disk_held(made, pictures, photos):
    (pictures / "0.png").unlink()
    (pictures / "sub").mkdir()
    (pictures / "1.png").rename(pictures / "sub" / "1.png")
    shutil.copy(photos / "4.png", pictures)
    (report,) = added("refresh", made)["added"]
    counts = [report[name] for name in ("encoded", "moved", "removed")]
    assert counts == [1, 1, 1]
    assert sorted(ids(made)) == ["2.png", "4.png", "sub/1.png"]
    away = pictures.rename(pictures.with_name("away"))
    result = run("refresh", made, "--workers", 0)
    assert result.stderr == f"{pictures}: no such file or folder; its pictures are kept\n"
    assert len(ids(made)) == 3
    assert added("add", made, away)["moved"] == 3


def test_check_tells_of_files_that_are_gone_or_changed(made, pictures, photos):
    (pictures / "0.png").unlink()
    shutil.copy(photos / "5.png", pictures / "1.png")
    report = json.loads(run("check", made, "--json").stdout)
    assert (report["missing"], report["changed"]) == (["0.png"], ["1.png"])


def test_export_and_import_give_the_same_codes(made, tmp_path, saved):
    run("export", made, "-o", tmp_path / "codes.h5")
    again = tmp_path / "again"
    run("import", again, tmp_path / "codes.h5")
    tables = [open_codes(path).compact().table for path in (made, again, tmp_path / "codes.h5")]
    for name in ("image_codes", "region_codes", "boxes", "labels", "scores", "offsets", "sizes"):
        for other in tables[1:]:
            np.testing.assert_array_equal(getattr(tables[0], name), getattr(other, name))
    assert "0 pictures" in run("import", again, tmp_path / "codes.h5").stdout
    assert "already exists" in error_of("export", made, "-o", tmp_path / "codes.h5")


def test_known_labels_are_exported_and_imported_with_the_codes(database, tmp_path, monkeypatch):
    labelled = replace(new_image(0), rows=rows_of("0.jpg", encoded(0), [1], MODEL))
    database.store([labelled, new_image(1), new_image(2)])
    with Collection(tmp_path) as collection:
        assert collection.export(tmp_path / "codes.h5") == 3
    monkeypatch.setattr(transfer, "_IMPORTED_AT_A_TIME", 1)
    (tmp_path / "again").mkdir()
    with Database.create(tmp_path / "again" / "collection.db", MODEL) as again:
        file = CodeFile.open(tmp_path / "codes.h5")
        assert transfer.import_codes(again, file) == 3
        assert transfer.import_codes(again, file) == 0
    with Collection(tmp_path / "again") as collection:
        assert collection.code_file().labels.tolist() == [[0, 1], [0, 0], [0, 0]]
    holds(tmp_path / "again", range(3))


def test_an_id_with_an_escaped_byte_is_imported_as_it_is(database, tmp_path):
    shown = "\u00e4\\xff.jpg"  # of a file whose name is not valid UTF-8
    database.store([replace(new_image(0), id=shown, file=FileState())])
    with Collection(tmp_path) as collection:
        collection.export(tmp_path / "codes.h5")
    (tmp_path / "again").mkdir()
    with Database.create(tmp_path / "again" / "collection.db", MODEL) as again:
        transfer.import_codes(again, CodeFile.open(tmp_path / "codes.h5"))
    assert ids(tmp_path / "again") == [shown]


def test_a_file_that_came_while_the_collection_was_exported_is_kept(
    database, tmp_path, monkeypatch
):
    database.store([new_image(0)])
    output, original = tmp_path / "codes.h5", transfer._write

    def slow(path, *arguments):
        original(path, *arguments)
        output.write_text("theirs")

    monkeypatch.setattr(transfer, "_write", slow)
    with Collection(tmp_path) as collection, pytest.raises(ValueError, match=r"exists|is there"):
        collection.export(output)
    assert output.read_text() == "theirs"


def test_codes_of_another_model_are_not_imported(database, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with Database.create(other / "collection.db", MODEL | {"model_hash": "def"}) as theirs:
        theirs.store([new_image(0)])
    with Collection(other) as collection:
        collection.export(tmp_path / "codes.h5")
    with Collection(tmp_path) as collection:
        with pytest.raises(StoreError, match=r"codes\.h5: made by model def, but .* needs abc"):
            collection.import_codes(tmp_path / "codes.h5")
        assert len(collection) == 0


# Searching


def test_the_search_is_that_of_the_code_file(made, pictures):
    file = open_codes(made).compact()
    with Collection.open(made) as collection:
        for n in range(3):
            found = collection.search(image_id=f"{n}.png", regions=[1]).hits
            wanted = search_regions(file.table.regions(n).codes[1], file.table)
            assert [(hit.id, hit.distance, hit.matches) for hit in found] == [
                (hit.image_id, hit.distance, hit.matches) for hit in wanted
            ]
        hit = collection.search(pictures / "1.png").hits[0]
        assert (hit.id, hit.distance, hit.path) == ("1.png", 0, pictures / "1.png")


def test_pages_follow_one_another_without_gap_or_repetition(photo_collection):
    with Collection.open(photo_collection) as collection:
        whole = collection.search(image_id="3.png").hits
        pages = [collection.search(image_id="3.png", limit=2, offset=n) for n in (0, 2, 4, 6)]
    assert [hit for page in pages for hit in page.hits] == list(whole)
    assert [page.more for page in pages] == [True, True, False, False]


def test_filters_let_through_what_they_name(made, pictures, photos, tmp_path):
    os.utime(pictures / "0.png", (1_000, 1_000))
    (pictures / "sub").mkdir()
    shutil.copy(photos / "4.png", pictures / "sub")
    os.utime(pictures / "sub" / "4.png", (86_400 * 400, 86_400 * 400))
    added("add", made, pictures)

    def found(**wanted):
        with Collection.open(made) as collection:
            return {
                hit.id for hit in collection.search(image_id="1.png", filter=Filter(**wanted)).hits
            }

    assert found() == {"0.png", "1.png", "2.png", "sub/4.png"}
    assert found(folder="sub") == found(folder=str(pictures / "sub")) == {"sub/4.png"}
    assert found(before=86_400 * 500) == {"sub/4.png"}  # the others were made now
    assert found(after=86_400 * 500) == {"0.png", "1.png", "2.png"}
    table = open_codes(made).compact().table
    for label, least in (("3", 0.0), ("3", 0.2), ("7", 0.15)):
        wanted = set()
        for n, image_id in enumerate(table.ids):
            regions = table.regions(n)
            if any(regions.labels[regions.scores >= least] == int(label)):
                wanted.add(image_id)
        assert found(labels=(label,), min_score=least) == wanted
    assert found(min_score=1.0) == set()
    options = ["--query", pictures / "1.png", "--folder", "sub", "--json"]
    hits = json.loads(run("search", made, *options).stdout)["hits"]
    assert [hit["picture"] for hit in hits] == ["sub/4.png"]
    options = ["--query", pictures / "1.png", "--before", "1971-06-01", "--json"]
    hits = json.loads(run("search", made, *options).stdout)["hits"]
    assert [hit["picture"] for hit in hits] == ["sub/4.png"]


def let_through(folder, /, **wanted):
    """Ids of the pictures that a filter lets through."""
    with Database(folder / "collection.db") as database, Collection(folder) as collection:
        snapshot = collection.snapshot
        alive = snapshot.alive if snapshot.alive is None else snapshot.alive.copy()
        mask = mask_of(Filter(**wanted), snapshot, database)
        np.testing.assert_array_equal(snapshot.alive, alive)
        return [snapshot.table.ids[n] for n in np.flatnonzero(mask)]


def test_a_span_begins_with_its_first_moment_and_ends_before_its_last(database, tmp_path):
    database.store(new_image(n, taken=float(n)) for n in range(5))
    database.store([new_image(5)])  # nobody knows when
    Collection(tmp_path).close()
    database.remove([3])  # the arrays still hold it
    assert let_through(tmp_path, after=1.0, before=4.0) == ["1.jpg", "3.jpg"]
    assert let_through(tmp_path, after=4.0) == ["4.jpg"]
    assert let_through(tmp_path, before=1.0) == ["0.jpg"]


def test_a_class_that_is_known_of_a_picture_counts_as_well_as_one_that_is_detected(
    database, tmp_path
):
    for n, labels in enumerate([[0], [1], None]):
        rows = rows_of(f"{n}.jpg", encoded(n, n_regions=0), labels, MODEL)
        database.store([replace(new_image(n), rows=rows)])
    assert let_through(tmp_path, labels=("dog",)) == ["1.jpg"]
    assert let_through(tmp_path, labels=("dog",), min_score=0.9) == ["1.jpg"]
    assert let_through(tmp_path, min_score=0.1) == []


BELOW = {"a/0.jpg": True, "a/b/1.jpg": True, "a.jpg": False, "a0/2.jpg": False, "ab/3.jpg": False}
"""Which of some files are below the folder "a"."""


def test_a_folder_is_what_lies_below_it_and_nothing_that_begins_like_it(database, tmp_path):
    for n, name in enumerate(BELOW):
        file = FileState(f"/photos/{name}".encode(), b"%d" % n)
        database.store([NewImage(name, file, None, new_image(n).rows)])
    below = [name for name, is_below in BELOW.items() if is_below]
    for folder in ("/photos/a", "/photos/a/", "a"):
        assert let_through(tmp_path, folder=folder) == below
    with Collection(tmp_path) as collection:
        assert collection.remove(["/photos/a"]) == 2
        assert [image.id for image in collection.images()] == list(BELOW)[2:]


def test_a_picture_that_is_newer_than_the_snapshot_can_be_asked_for(database, tmp_path):
    with Collection(tmp_path, follow=False) as collection:
        database.store([new_image(5)])
        assert len(collection) == 0
        row, found = collection.get("5.jpg").row, collection.encoded("5.jpg")
        assert row == 1
        np.testing.assert_array_equal(found.image_code, encoded(5).image_code)


def test_categories_are_searched_page_by_page_among_what_is_left(category_collection, tmp_path):
    folder = shutil.copytree(category_collection, tmp_path / "c")
    with Collection.open(folder) as collection:
        collection.remove(["1.png"])  # the arrays still hold it
        query = collection.encoded("3.png")
        filter = Filter(before=collection.search(image_id="2.png").hits[0].taken)
        whole = collection.search(image_id="3.png", mode="category")
        pages = [
            collection.search(image_id="3.png", mode="category", limit=2, offset=n)
            for n in (0, 2, 4)
        ]
        nothing = collection.search(image_id="3.png", mode="category", filter=Filter(before=0.0))
        near = collection.search(image_id="3.png", mode="category", group_within=16, limit=1)
        late = collection.search(image_id="3.png", mode="category", filter=filter)
        names = collection.classes
    table = open_codes(folder).compact().table
    wanted = search_categories(query.categories, table)
    assert len(wanted) > 1 and max(len(group.hits) for group in wanted) == 5
    assert whole.hits == () and whole.mode == "category"
    assert [
        (group.category, group.prob, [(hit.id, hit.distance) for hit in group.hits])
        for group in whole.groups
    ] == [
        (names[group.category], group.prob, [(hit.image_id, hit.distance) for hit in group.hits])
        for group in wanted
    ]
    for group, *parts in zip(whole.groups, *(page.groups for page in pages), strict=True):
        assert group.hits == sum((part.hits for part in parts), ())
    assert [page.more for page in pages] == [True, True, False]
    assert all(group.hits == () for group in nothing.groups)
    assert [len(group.hits) for group in near.groups] == [1] * len(near.groups)
    assert len(near.groups[0].hits[0].duplicates) == len(wanted[0].hits) - 1
    assert late.searched < 5


def test_what_must_not_be_there_is_left_out(photo_collection, photos):
    file = open_codes(photo_collection)
    with Collection.open(photo_collection) as collection:
        unwanted = [Query(image_id="2.png", regions=[1]), Query(photos / "4.png")]
        found = collection.search(image_id="1.png", regions=[0], exclude=unwanted, max_distance=0)
        best = collection.encoded("4.png").regions
        codes = np.stack([file.table.regions(2).codes[1], best.codes[0]])
        wanted = search_objects(
            file.table.regions(1).codes[:1], file.table, exclude=codes, max_distance=0
        )
        assert [(hit.id, hit.distance) for hit in found.hits] == [
            (hit.image_id, hit.distance) for hit in wanted
        ]
        assert 0 < len(found.hits) < 6 and found.mode == "objects"
        ((stored,), (encoded,)) = found.without
        assert stored == tuple(file.table.regions(2).boxes[1].tolist())
        assert encoded == pytest.approx(best.boxes[0].tolist(), abs=1 / 32)


def test_collections_are_searched_by_category_and_without_objects_from_the_command_line(
    category_collection, photo_collection, photos, tmp_path
):
    command = ["search", category_collection, "--query", photos / "3.png", "--mode", "category"]
    sheet = tmp_path / "found.html"
    record = json.loads(run(*command, "--json", "--top", 2, "--offset", 1, "--sheet", sheet).stdout)
    with Collection.open(category_collection) as collection:
        found = collection.search(photos / "3.png", mode="category", limit=2, offset=1)
    assert [
        (group["category"], [(hit["rank"], hit["picture"]) for hit in group["hits"]])
        for group in record["groups"]
    ] == [
        (group.category, [(n, hit.id) for n, hit in enumerate(group.hits, 2)])
        for group in found.groups
    ]
    assert sheet.stat().st_size > 0
    said = run(*command, "--folder", "nowhere").stdout
    assert said.startswith(f"{found.groups[0].category}, probability ") and ", 0 pictures" in said
    command = ["search", photo_collection, "--query", photos / "1.png", "--json"]
    command += ["--without", photos / "4.png", "--without-distance", 0, "--top", 2, "--offset", 1]
    record = json.loads(run(*command).stdout)
    with Collection.open(photo_collection) as collection:
        unwanted = [Query(photos / "4.png")]
        hits = collection.search(photos / "1.png", exclude=unwanted, max_distance=0).hits
    assert [hit["picture"] for hit in record["hits"]] == [hit.id for hit in hits[1:3]]
    assert len(record["without"][0]["boxes"]) == 1


def test_near_duplicates_stand_together(made, pictures):
    shutil.copy(pictures / "1.png", pictures / "9.png")
    changed = read_image(pictures / "1.png")
    changed[0, 0] ^= 1
    write_picture(pictures / "8.png", changed)
    added("add", made, pictures)
    with Collection.open(made) as collection:
        hits = collection.search(image_id="1.png", group_within=1, limit=1)
        assert hits.more
        (first,) = hits.hits
        assert {first.id, *(copy.id for copy in first.duplicates)} == {"1.png", "8.png", "9.png"}
        everything = collection.search(image_id="1.png", group_within=1)
        shown = [result for hit in everything.hits for result in (hit, *hit.duplicates)]
        assert len(shown) == 5 and len(everything.hits) == 3


def test_a_query_picture_passes_the_network_once_whatever_is_folded(made, pictures):
    for n in range(3, 9):
        shutil.copy(pictures / "1.png", pictures / f"{n}.png")
    added("add", made, pictures)
    with Collection.open(made) as collection:
        model, _ = collection.model
        passes = []

        def counted(name, original):
            return lambda *arguments: passes.append(name) or original(*arguments)

        for name in ("encode", "encode_boxes"):
            setattr(model, name, counted(name, getattr(model, name)))
        box = (10.0, 10.0, 60.0, 60.0)
        for boxes, wanted in (((), ["encode"]), ((box,), ["encode_boxes"])):
            passes.clear()
            query = Query(pictures / "1.png", boxes=boxes)
            found = collection.search(queries=[query], group_within=64, limit=1)
            assert len(found.hits) == 1 and found.hits[0].duplicates
            assert passes == wanted


def test_looking_at_a_collection_leaves_every_byte_of_it_alone(saved, photos, tmp_path):
    folder = tmp_path / "labelled"
    run("index", "digits:test:12", "-o", folder, "--model", saved.folder, "--workers", 0)
    run("remove", folder, "test-0-00003")

    def content():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content()
    query = photos / "0.png"
    for options in ((), ("--box", "1,2,30,40", "--near", 4), ("--steps", "exact")):
        record = json.loads(run("search", folder, "--query", query, *options, "--json").stdout)
        assert record["hits"]
        assert "test-0-00003" not in [hit["picture"] for hit in record["hits"]]
    described = json.loads(run("info", folder, "--json").stdout)
    assert (described["pictures"], described["regions"]) == (
        11,
        len(open_codes(folder).table.region_codes),
    )
    measured = json.loads(run("evaluate", folder, folder, "--json").stdout)
    assert (measured["queries"], measured["database"]) == (11, 11)
    command = ["evaluate", folder, folder, "--detection", "digits:test:12", "--json"]
    assert json.loads(run(*command).stdout)["detection"]["missing"] == ["test-0-00003"]
    run("export", folder, "-o", tmp_path / "codes.h5")
    assert len(open_codes(tmp_path / "codes.h5").table) == 11
    with Collection.open(folder) as collection:
        codes = collection.codes()
    assert (len(codes), len(codes.table), len(open_codes(folder).table)) == (11, 12, 11)
    assert "test-0-00003" not in list(open_codes(folder).table.ids)
    np.testing.assert_array_equal(open_codes(folder).labels, np.delete(codes.labels, 3, axis=0))
    assert content() == before


def test_equal_distances_keep_the_order_in_which_pictures_were_stored(saved, photos, tmp_path):
    pictures = tmp_path / "same"
    pictures.mkdir()
    for n in (3, 1, 2):
        shutil.copy(photos / "0.png", pictures / f"{n}.png")
    folder = tmp_path / "index"
    run("index", pictures, "-o", folder, "--model", saved.folder, "--workers", 0)
    with Collection.open(folder) as collection:
        collection.remove(["1.png"])
        assert [hit.id for hit in collection.search(image_id="3.png").hits] == ["2.png", "3.png"]


def test_bad_questions_are_named(photo_collection, photos):
    with Collection.open(photo_collection) as collection:
        for arguments, message in (
            ({}, "nothing to search by"),
            ({"like": "0.png", "regions": [99]}, r"0.png: has \d regions, got \[99\]"),
            ({"like": "0.png", "limit": 0}, "limit must be at least 1"),
            ({"like": "0.png", "near": -1}, "group_within must be at least 0"),
            ({"like": "0.png", "mode": "category"}, "has no codes of categories"),
            ({"like": "0.png", "min_prob": 0.5}, "min_prob needs mode category, got mode image"),
            ({"like": "0.png", "within": 3}, "max_distance needs objects to exclude"),
            (
                {"like": "0.png", "without": [Query(image_id="1.png")], "mode": "image"},
                "exclude needs mode objects, got mode image",
            ),
            ({"like": "0.png", "filter": Filter(labels=("cow",))}, "not a class of the model"),
            ({"image": photos / "0.png", "boxes": [(1, 2, 3)]}, "four numbers"),
            ({"image": photos / "0.png", "boxes": [(5, 5, 1, 1)]}, "x0 < x1"),
            ({"image": photos / "0.png", "boxes": [(0, 0, 0.5, 0.5)]}, "must be in pixels"),
            ({"like": "0.png", "boxes": [(999, 0, 1099, 9)]}, "0.png: box 999,.* lies outside"),
            (
                {
                    "queries": [
                        Query(photos / "0.png"),
                        Query(photos / "1.png", boxes=[(9, 9, 999, 9e9)]),
                    ]
                },
                "1.png: box 9,9,999,9e.09: more than half",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                collection.search(**arguments)
        with pytest.raises(KeyError):
            collection.search(image_id="gone.png")
    with pytest.raises(ValueError, match="one of an image, the id"):
        Query()
    with pytest.raises(ValueError, match="min_score must be in"):
        Filter(min_score=2)


def test_a_score_that_means_nothing_is_none_and_no_filter(drh_collection, photos):
    with Collection.open(drh_collection) as collection:
        found = collection.search(photos / "0.png", boxes=[(5, 5, 60, 60)])
        assert {match.score for hit in found.hits for match in hit.matches} == {None}
        for wanted in (Filter(min_score=0.5), Filter(min_score=1)):
            with pytest.raises(ValueError, match="min_score needs scores of detected classes"):
                collection.search(photos / "0.png", filter=wanted)


def test_a_box_that_is_cut_off_is_noted(photo_collection, photos):
    with Collection.open(photo_collection) as collection:
        for picture in ({"image": photos / "0.png"}, {"image_id": "0.png"}):
            found = collection.search(boxes=[(-20, 10, 80, 50)], **picture)
            (note,) = found.notes
            assert "0.png: box -20,10,80,50: 20% of it lies outside of the picture, 160 x" in note
            assert found.boxes == (((0, 10, 80, 50),),)
            assert collection.search(boxes=[(0, 10, 80, 50)], **picture).notes == ()


def test_what_is_no_collection_is_refused(tmp_path, made, other_saved):
    with pytest.raises(StoreError, match="no collection; `regionhash index"):
        Collection.open(tmp_path)
    (tmp_path / "collection.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match=r"collection\.db: file is not a database"):
        Collection.open(tmp_path)
    connection = sqlite3.connect(made / "collection.db")
    with connection:
        connection.execute(
            "UPDATE about SET header = replace(header, '\"version\": 4', '\"version\": 5')"
        )
    connection.close()
    with pytest.raises(StoreError, match="version must be 4, got 5"):
        Collection.open(made)
    assert "version must be 4" in error_of("search", made, "--query", "x.png")


def test_repair_gives_the_space_of_removed_pictures_back(database, tmp_path):
    database.store(new_image(n) for n in range(2000))
    with Collection(tmp_path) as reader:
        before = reader.snapshot.version
        database.remove(range(1, 301))
        assert not any("given back" in line for line in reader.check(repair=True).repaired)
        database.remove(range(301, 1501))
        database.read("PRAGMA wal_checkpoint(TRUNCATE)")  # all of it is in the file
        size = database.path.stat().st_size
        report = reader.check(repair=True)
        assert any("MB of removed pictures were given back" in line for line in report.repaired)
        assert database.path.stat().st_size < size / 2
        assert report.n_images == 500 and not report.problems
        assert [row for row, _ in database.rows()] == [*range(1501, 2001)]
        assert reader.sync().version == (before[0], before[1] + 1500)
        assert len(reader) == 500
    database.store([new_image(5000)])
    assert database.version() == (2001, before[1] + 1500)  # no number is used again
    assert not any("given back" in line for line in check_of(tmp_path).repaired)


def check_of(folder):
    with Collection(folder) as collection:
        return collection.check(repair=True)


def test_space_that_the_disk_needs_for_it_is_not_given_back(database, tmp_path, monkeypatch):
    database.store(new_image(n) for n in range(500))
    database.remove(range(1, 400))

    def full(self):
        raise StoreError("disk full")

    monkeypatch.setattr(Database, "give_back_space", full)
    report = check_of(tmp_path)
    assert report.n_images == 101 and not report.problems
