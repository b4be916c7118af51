"""A collection that an engine holds too: by an engine in memory that can be spoilt."""

import json
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_runner import error_of, run
from engine_cases import MemoryBackend, add, made, random_array, random_picture, same_answers
from regionhash import engines
from regionhash.collection import Collection, Filter, Query, Search
from regionhash.collection.arrays import Snapshot
from regionhash.collection.engine import CollectionEngine, EngineReport
from regionhash.engines import EngineError, Owner
from regionhash.search.request import RequestError
from regionhash.service import create_app


@pytest.fixture
def memory(monkeypatch):
    """Registers the engine in memory; gives what was opened."""
    opened = []

    def open_memory(address, owner):
        assert address == ""
        opened.append(MemoryBackend(owner))
        return opened[-1]

    monkeypatch.setitem(engines.ENGINES, "memory", open_memory)
    return opened


@pytest.fixture
def collection(tmp_path, memory):
    with made(tmp_path / "c", "memory") as collection:
        add(collection, np.random.default_rng(0), 60)
        yield collection


def backend_of(collection):
    return collection.engine()._backend


def test_a_filled_engine_answers_as_the_collection_does(collection):
    assert collection.sync_engine() == (60, 0)
    assert collection.check_engine().ok
    same_answers(collection, None, np.random.default_rng(1))
    assert collection.sync_engine() == (0, 0)


def test_an_engine_that_is_behind_answers_as_the_collection_does(collection):
    collection.sync_engine()
    add(collection, np.random.default_rng(2), 25)
    collection.remove_rows([3, 4, 60, 61, 80])
    same_answers(collection, None, np.random.default_rng(3))
    report = collection.check_engine()
    assert report.ok and report.waiting == 23
    assert collection.sync_engine() == (23, 3 + 2)  # two of them never came there
    assert set(backend_of(collection).entries) == set(range(1, 86)) - {3, 4, 60, 61, 80}
    same_answers(collection, None, np.random.default_rng(4))


def test_removed_pictures_that_left_the_arrays_are_not_found(collection):
    collection.sync_engine()
    collection.remove([f"{n}.jpg" for n in range(0, 40)])  # more than a quarter: compacted
    assert len(collection.snapshot.rows) == 20
    same_answers(collection, None, np.random.default_rng(5))


def add_some(collection, rng):
    add(collection, rng, int(rng.integers(1, 9)))


def remove_some(collection, rng):
    alive = collection.snapshot.rows[collection.codes().rows]
    if len(alive):
        collection.remove_rows(rng.choice(alive, min(3, len(alive)), replace=False).tolist())


def sync(collection, rng):
    collection.sync_engine()
    assert collection.check_engine().ok


def sync_and_die(collection, rng):
    backend = backend_of(collection)
    backend.n_inserts_left = int(rng.integers(0, 6))
    with suppress(EngineError):
        collection.sync_engine()
    backend.n_inserts_left = None


def lose_one(collection, rng):
    collection.sync_engine()
    backend = backend_of(collection)
    if backend.entries:
        del backend.entries[int(rng.choice([*backend.entries]))]
        with pytest.raises(EngineError, match="has lost codes"):
            same_answers(collection, None, rng)


def change_one(collection, rng):
    """It has as many as before, but others."""
    collection.sync_engine()
    entries = backend_of(collection).entries
    numbers = [number for number, (_, regions) in entries.items() if len(regions)]
    if numbers:
        changed = int(rng.choice(numbers))
        entries[changed] = entries[changed][0], entries[changed][1] ^ 255
        assert collection.check_engine().different == (changed,)


def swap_one(collection, rng):
    """A picture is missing, and one is there that should not."""
    collection.sync_engine()
    entries = backend_of(collection).entries
    if entries:
        number = int(rng.choice([*entries]))
        entries[10**6] = entries.pop(number)
        report = collection.check_engine()
        assert (report.missing, report.extra, report.different) == ((number,), (10**6,), ())


EVENTS = (add_some, remove_some, sync, sync_and_die, lose_one, change_one, swap_one)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.lists(st.sampled_from(EVENTS), max_size=6))
def test_whatever_happens_answers_are_right_and_a_sync_mends_all(tmp_path_factory, seed, events):
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engines.ENGINES, "memory", lambda _, owner: MemoryBackend(owner))
        patch.setattr("regionhash.collection.engine._AT_A_TIME", 4)
        with made(tmp_path_factory.mktemp("c") / "c", "memory") as collection:
            add(collection, rng, 11)
            collection.sync_engine()
            for event in events:
                event(collection, rng)
                with suppress(EngineError):  # but never a wrong answer
                    same_answers(collection, None, rng)
            collection.sync_engine()
            same_answers(collection, None, rng)
            alive = collection.snapshot.rows[collection.codes().rows].tolist()
            assert sorted(backend_of(collection).entries) == alive
            assert collection.check_engine() == EngineReport(len(alive), 0, (), (), ())


def test_killed_in_the_midst_of_a_batch_nothing_is_stored_twice(collection):
    collection.sync_engine()
    add(collection, np.random.default_rng(5), 25)
    backend = backend_of(collection)
    for n_inserts in (0, 7, 20):
        backend.n_inserts_left = n_inserts
        with pytest.raises(EngineError, match="is gone"):
            collection.sync_engine()
        same_answers(collection, None, np.random.default_rng(6))
    backend.n_inserts_left = None
    assert collection.sync_engine().added == 25
    assert collection.check_engine() == EngineReport(85, 0, (), (), ())


def test_a_picture_that_lost_a_region_is_brought_back(collection):
    collection.sync_engine()
    entries = backend_of(collection).entries
    number = next(number for number, (_, regions) in entries.items() if len(regions) > 1)
    entries[number] = entries[number][0], entries[number][1][:-1]
    report = collection.check_engine()
    assert report.missing == (number,) and not report.ok
    assert collection.sync_engine() == (1, 1)
    assert collection.check_engine().ok


def test_killed_while_it_mends_it_goes_on(collection, monkeypatch):
    monkeypatch.setattr("regionhash.collection.engine._AT_A_TIME", 1)
    collection.sync_engine()
    backend = backend_of(collection)
    del backend.entries[5], backend.entries[50]
    backend.n_inserts_left = 1
    with pytest.raises(EngineError, match="is gone"):
        collection.sync_engine()
    backend.n_inserts_left = None
    same_answers(collection, None, np.random.default_rng(9))
    assert collection.sync_engine() == (1, 0)
    assert collection.check_engine().ok


def on_record(monkeypatch, event):
    """Lets something happen with each state that a sync records, except the last one."""
    record = CollectionEngine._record

    def recording(engine, state):
        if state.adding:
            event(state)
        record(engine, state)

    monkeypatch.setattr(CollectionEngine, "_record", recording)


def test_a_sync_counts_the_pictures_once_however_many_batches_it_has(collection, monkeypatch):
    monkeypatch.setattr("regionhash.collection.engine._AT_A_TIME", 1)
    collection.sync_engine()
    add(collection, np.random.default_rng(2), 25)
    recorded, counted, n_regions = [], [], Snapshot.n_regions.fget

    def counting(snapshot):
        counted.append(len(snapshot))
        return n_regions(snapshot)

    monkeypatch.setattr(Snapshot, "n_regions", property(counting))
    on_record(monkeypatch, recorded.append)
    collection.sync_engine()
    assert len(recorded) == 25 and len(counted) == 1


def test_a_sync_records_what_the_engine_has_at_least(collection, monkeypatch):
    """Some pictures were removed before, and others while it stores."""
    monkeypatch.setattr("regionhash.collection.engine._AT_A_TIME", 7)
    n_regions = np.diff(collection.snapshot.table.offsets)
    gone, recorded = {2, 30}, []
    collection.remove_rows([*gone])
    backend = backend_of(collection)
    insert = backend.insert

    def insert_and_remove(codes, facts):
        insert(codes, facts)
        removed = {facts[0].number, 61 - facts[0].number} - gone
        collection.remove_rows([*removed])
        gone.update(removed)

    monkeypatch.setattr(backend, "insert", insert_and_remove)
    on_record(monkeypatch, lambda state: recorded.append((state, {*gone})))
    collection.sync_engine()
    assert len(recorded) == 9 and len(gone) > 10
    for state, removed in recorded:
        there = [number for number in range(1, state.row + 1) if number not in removed]
        n_there = sum(int(n_regions[number - 1]) for number in there)
        assert (state.pictures, state.regions) == (len(there), n_there)


def test_what_is_stored_twice_is_found(collection, monkeypatch):
    collection.sync_engine()
    backend = backend_of(collection)
    stored = backend.stored

    def twice(part, *, codes):
        for batch in stored(part, codes=codes):
            yield batch
            if len(batch.numbers) > 1:
                yield batch._replace(
                    numbers=batch.numbers[-1:],
                    positions=batch.positions[-1:],
                    codes=batch.codes[-1:],
                )

    monkeypatch.setattr(backend, "stored", twice)
    report = collection.check_engine()
    regions = [number for number, (_, own) in backend.entries.items() if len(own) > 1]
    assert report.different == tuple(regions)


def test_found_to_lack_a_picture_it_is_searched_up_to_there(collection, monkeypatch):
    collection.sync_engine()
    entries = backend_of(collection).entries
    entries[10**6] = entries.pop(8)
    assert not collection.check_engine().ok
    same_answers(collection, None, np.random.default_rng(7))

    def fail(_):
        raise EngineError("memory: is gone")

    monkeypatch.setattr(backend_of(collection), "remove", fail)
    with pytest.raises(EngineError, match="is gone"):
        collection.sync_engine()
    same_answers(collection, None, np.random.default_rng(8))


def one_object():
    rng = np.random.default_rng(0)
    return Query(random_array(rng), encoded=random_picture(rng, 1), regions=(0,))


def test_an_engine_that_was_never_filled_says_so(collection):
    for ask in (lambda: collection.results(Search([one_object()])), collection.check_engine):
        with pytest.raises(
            EngineError,
            match=r"^memory: holds nothing of this collection yet; `regionhash engine sync` fills",
        ):
            ask()


def test_what_finds_another_picture_than_the_collection_is_not_believed(collection):
    collection.sync_engine()
    entries = backend_of(collection).entries
    number = next(number for number, (_, regions) in entries.items() if len(regions) > 1)
    entries[number] = (
        entries[number][0],
        entries[number][1] * 0 + one_object().encoded.regions.codes[0],
    )
    with pytest.raises(EngineError, match=f"finds picture {number} where the collection does not"):
        collection.results(Search([one_object()], limit=60))


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (Search([one_object()], context=0.5), "context"),
        (Search([one_object()], other_class=0.5), "other_class"),
        (Search([Query(text="a cat")]), "text"),
    ],
)
def test_what_an_engine_cannot_search_is_refused(collection, asked, field):
    collection.sync_engine()
    with pytest.raises(RequestError, match="memory, only without an engine") as caught:
        collection.results(asked)
    assert caught.value.field == field


def test_dropped_it_is_as_never_filled(collection):
    collection.sync_engine()
    collection.drop_engine()
    assert backend_of(collection).entries == {}
    with pytest.raises(EngineError, match="holds nothing"):
        collection.results(Search([one_object()]))
    assert collection.sync_engine() == (60, 0)


def test_codes_of_another_model_or_version_are_not_searched(collection):
    collection.sync_engine()
    backend = backend_of(collection)
    for name, value in (("version", 2), ("n_region_bits", 16), ("model_hash", "def")):
        backend.record = backend.owner.record | {name: value}
        for ask in (collection.sync_engine, lambda: collection.results(Search([one_object()]))):
            with pytest.raises(EngineError, match=f"memory: holds codes with {name} {value!r}"):
                ask()


def test_a_state_that_is_damaged_is_made_anew(collection):
    collection.sync_engine()
    state = collection.folder / "engines" / "state.json"
    right = json.loads(state.read_text())["memory"]
    wrong = [{"row": 1}, 1, None, [], "row", {"more": 1} | right]
    for name in right:
        values = (None, [None], {}, "x", -1, 1.5, 10**30, [[10**400]], [["x", 1]], [[1, 2, 3, 4]])
        wrong += [right | {name: value} for value in values]
    deep = "[" * 10**5
    for content in ("{", "[]", deep, *(json.dumps({"memory": value}) for value in wrong)):
        state.write_text(content)
        with suppress(EngineError):
            same_answers(collection, None, np.random.default_rng(1))
        assert collection.sync_engine() == (0, 0)
        assert collection.check_engine().ok


def test_engines_are_named(collection):
    with pytest.raises(ValueError, match="engine must be one of local, "):
        collection.results(Search([one_object()]), engine="elastic")
    with pytest.raises(ValueError, match=r"engine local has no address$"):
        collection.results(Search([one_object()]), engine="local:clickhouse://u:s3cret@h")
    with pytest.raises(ValueError, match="engine local is the collection itself"):
        collection.sync_engine("local")


def test_filters_reach_the_engine_but_for_folders(collection, memory):
    collection.sync_engine()
    rows = collection.snapshot.rows
    for chosen in (Filter(labels=("cat",), after=3.0), Filter(folder="/photos/a")):
        collection.results(Search([one_object()], filter=chosen))
        condition = backend_of(collection).seen[-1]
        assert condition.filter == (Filter() if chosen.folder else chosen)
        among = condition.among
        assert among is None if chosen.folder is None else set(among) == set(rows[::2].tolist())


# -- as users see it ------------------------------------------------------------------------------


@pytest.fixture
def kept(photo_collection, tmp_path, monkeypatch):
    """A copy of the collection of photos; its engine in memory outlives the commands."""
    backends = {}

    def open_memory(_, owner):
        return backends.setdefault(owner.uuid, MemoryBackend(owner))

    monkeypatch.setitem(engines.ENGINES, "memory", open_memory)
    shutil.copytree(photo_collection, tmp_path / "photos.collection")
    return tmp_path / "photos.collection", backends


def test_an_engine_is_filled_searched_checked_and_dropped_by_commands(kept, photos):
    folder, backends = kept
    memory = ("--engine", "memory")
    query = ("--query", f"{photos / '1.png'}@10,20,60,90", "--json")
    assert error_of("search", folder, *query, *memory) == (
        "memory: holds nothing of this collection yet; `regionhash engine sync` fills it"
    )
    assert run("engine", "sync", folder, *memory).stdout == "memory: 6 pictures added, 0 removed\n"
    found, expected = run("search", folder, *query, *memory), run("search", folder, *query)
    assert json.loads(found.stdout) == json.loads(expected.stdout)
    (backend,) = backends.values()
    assert len(backend.seen) == 1
    del backend.entries[2]
    checked = run("engine", "check", folder, *memory, code=1)
    assert checked.stdout == (
        "picture 2: missing in the engine, wholly or in part\n"
        "memory: 6 pictures, 0 not there yet, 1 wrong\n"
    )
    synced = run("engine", "sync", folder, *memory, "--json")
    assert json.loads(synced.stdout) == {
        "collection": str(folder),
        "engine": "memory",
        "added": 1,
        "removed": 0,
    }
    run("engine", "check", folder, *memory)
    run("engine", "drop", folder, *memory)
    assert backend.entries == {}


def test_what_only_the_collection_can_search_is_named_by_its_flag(kept, photos):
    folder, _ = kept
    run("engine", "sync", folder, "--engine", "memory")
    asked = ("--query", photos / "1.png", "--mode", "objects", "--context", "0.5")
    assert error_of("search", folder, *asked, "--engine", "memory") == (
        "--context cannot be searched in memory, only without an engine"
    )
    assert error_of("engine", "sync", folder, "--engine", "local") == (
        "engine local is the collection itself, which needs no filling"
    )


def test_a_service_searches_an_engine_and_says_when_it_is_gone(kept):
    folder, backends = kept
    run("engine", "sync", folder, "--engine", "memory")
    asked = {"queries": [{"image": 3, "regions": [0]}], "limit": 3}
    (backend,) = backends.values()
    with TestClient(create_app(folder), base_url="http://127.0.0.1") as client:
        expected = client.post("/api/search", json=asked).json()["hits"]
    assert backend.seen == []
    with TestClient(create_app(folder, engine="memory"), base_url="http://127.0.0.1") as client:
        assert client.post("/api/search", json=asked).json()["hits"] == expected
        assert len(backend.seen) == 1
        backend.entries.clear()
        failed = client.post("/api/search", json=asked)
        assert (failed.status_code, failed.json()["detail"]) == (
            503,
            "the collection is not available at the moment",
        )


# -- what a stranger found ------------------------------------------------------------------------


def test_a_copy_of_a_collection_has_a_place_of_its_own(collection, tmp_path, monkeypatch):
    """Both may change, and then one number stands for two pictures."""
    collection.sync_engine()
    shutil.copytree(collection.folder, tmp_path / "copy")
    with made(tmp_path / "copy", "memory") as copy:
        assert copy.owner.uuid != collection.owner.uuid
        assert copy.header["uuid"] == collection.header["uuid"]


@pytest.fixture
def shared(monkeypatch):
    """Registers an engine whose place is one for all objects of a collection, and its clones."""
    places = {}
    monkeypatch.setattr(Collection, "owner", Owner("0" * 32, "abc", 16, 8, Path()))
    monkeypatch.setitem(
        engines.ENGINES,
        "memory",
        lambda _, owner: places.setdefault(owner.uuid, MemoryBackend(owner)),
    )


def right_or_refused(collection, rng):
    """Whether an engine answers; if so, then as the collection does."""
    try:
        same_answers(collection, None, rng)
    except EngineError as error:
        assert "`regionhash engine sync` mends it" in str(error)
        return False
    return True


def put_back(backup, folder):
    """Restores files in place, as `cp -r` does: the database keeps its inode number."""
    for path in folder.glob("*.db-*"):
        path.unlink()
    if backup.is_file():
        shutil.copyfile(backup, folder / backup.name)
    else:
        shutil.copytree(backup, folder, dirs_exist_ok=True)


@pytest.mark.parametrize("restored", ["", "collection.db"])
@pytest.mark.parametrize(
    ("lost", "since"),
    [((10, 10), (0, 0)), ((0, 10), (0, 10)), ((1, 0), (1, 0)), ((3, 5), (3, 5)), ((0, 5), (0, 0))],
)
def test_restored_from_a_backup_it_is_mended(tmp_path, shared, restored, lost, since):
    """Pictures that were removed and added before and after the collection was restored."""
    rng = np.random.default_rng(0)

    def change(collection, removed, added, first):
        collection.remove_rows([*range(first, first + removed)])
        add(collection, rng, added)

    with made(tmp_path / "c", "memory") as collection:
        add(collection, rng, 60)
        collection.sync_engine()
    shutil.copytree(tmp_path / "c", tmp_path / "backup")
    with made(tmp_path / "c", "memory") as collection:
        change(collection, *lost, first=5)
        collection.sync_engine()
        same_answers(collection, None, rng)
    put_back(tmp_path / "backup" / restored, tmp_path / "c")
    with made(tmp_path / "c", "memory") as collection:
        change(collection, *since, first=20)
        assert not right_or_refused(collection, rng)
        collection.sync_engine()
        same_answers(collection, None, rng)
        assert collection.check_engine() == EngineReport(60 - since[0] + since[1], 0, (), (), ())


def test_clones_that_share_a_place_never_believe_each_other(tmp_path, shared):
    """As two snapshots of a file system do, in which the database has one inode number."""
    rng = np.random.default_rng(0)
    with made(tmp_path / "a", "memory") as collection:
        add(collection, rng, 60)
        collection.sync_engine()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with made(tmp_path / "a", "memory") as one, made(tmp_path / "b", "memory") as other:
        for collection in (one, other, one, other):
            add(collection, rng, 3)
            collection.sync_engine()
            same_answers(collection, None, rng)
            assert not right_or_refused(other if collection is one else one, rng)
            assert collection.check_engine().ok


def test_a_check_that_finds_all_is_as_good_as_a_sync(tmp_path, shared):
    with made(tmp_path / "c", "memory") as collection:
        add(collection, np.random.default_rng(0), 60)
        collection.sync_engine()
        backend_of(collection).stamp("0" * 32)
        assert not right_or_refused(collection, np.random.default_rng(1))
        assert collection.check_engine().ok
        assert right_or_refused(collection, np.random.default_rng(1))


@pytest.mark.parametrize("stop", ["record", "stamp"])
def test_killed_while_it_marks_the_place_nothing_is_wrong(collection, monkeypatch, stop):
    collection.sync_engine()
    add(collection, np.random.default_rng(5), 5)
    backend = backend_of(collection)
    stamp = backend.stamp

    def stamp_and_die(mark):
        if stop == "stamp":
            stamp(mark)
        raise EngineError("memory: is gone")

    for _ in range(3):
        monkeypatch.setattr(backend, "stamp", stamp_and_die)
        with pytest.raises(EngineError, match="is gone"):
            collection.sync_engine()
        assert right_or_refused(collection, np.random.default_rng(6))
    monkeypatch.setattr(backend, "stamp", stamp)
    compared = []
    monkeypatch.setattr(CollectionEngine, "_compared", lambda *_: compared.append(1))
    assert collection.sync_engine() == (5, 0) and not compared
    assert right_or_refused(collection, np.random.default_rng(6))


def test_what_others_have_stored_too_is_not_stored_twice(collection):
    """As by another name of the same place, which has a state of its own."""
    collection.sync_engine()
    state = (collection.folder / "engines" / "state.json").read_text()
    add(collection, np.random.default_rng(3), 7)
    collection.sync_engine()
    (collection.folder / "engines" / "state.json").write_text(state)
    assert collection.sync_engine() == (0, 0)
    assert collection.check_engine() == EngineReport(67, 0, (), (), ())


def test_an_engine_that_is_emptied_during_a_search_gives_no_answer(collection, monkeypatch):
    collection.sync_engine()
    backend = backend_of(collection)
    nearest = backend.nearest
    for filled_again in (False, True):

        def emptied(search, filled_again=filled_again):
            collection.drop_engine()
            found = nearest(search)
            if filled_again:
                collection.sync_engine()
            return found

        monkeypatch.setattr(backend, "nearest", emptied)
        with pytest.raises(EngineError, match=r"filled again during the search|holds nothing"):
            collection.results(Search([one_object()]))
        monkeypatch.setattr(backend, "nearest", nearest)
        collection.sync_engine()


def test_a_search_beside_a_removal_is_no_loss(collection, monkeypatch):
    """`held` answers after the state was read, and a sync has removed pictures in between."""
    collection.sync_engine()
    backend = backend_of(collection)
    held, calls = backend.held, []

    def late():
        calls.append(None)
        if len(calls) == 1:
            collection.remove_rows([5, 6])
            collection.sync_engine()
        return held()

    monkeypatch.setattr(backend, "held", late)
    found = collection.results(Search([one_object()], limit=60))
    assert calls and not {5, 6} & {hit.row for hit in found.hits}


def test_pictures_that_another_process_adds_before_the_lock_are_stored_once(
    collection, monkeypatch
):
    locked = CollectionEngine._locked

    @contextmanager
    def late(engine):
        add(collection, np.random.default_rng(4), 5)
        with locked(engine):
            yield

    monkeypatch.setattr(CollectionEngine, "_locked", late)
    assert collection.sync_engine().added == 65
    monkeypatch.setattr(CollectionEngine, "_locked", locked)
    assert collection.check_engine() == EngineReport(65, 0, (), (), ())
