"""A server that dies, loses or changes something: nothing wrong is found, and a sync mends it."""

import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from cli_runner import run
from engine_cases import add, made, same_answers, searches
from regionhash.collection.engine import EngineReport
from regionhash.engines import EngineError
from regionhash.store import CodeSet
from regionhash.store.parquet import Facts

AT_A_TIME = 40


@pytest.fixture
def collection(server, tmp_path, monkeypatch):
    monkeypatch.setattr("regionhash.collection.engine._AT_A_TIME", AT_A_TIME)
    with made(tmp_path / "c", f"milvus:{server.address}?timeout=4") as collection:
        add(collection, np.random.default_rng(0), 100)
        yield collection
        collection.drop_engine()


def backend_of(collection):
    return collection.engine()._backend


def once(owner, name, after, event):
    """Lets something happen before the call of a method after so many others."""
    original, calls = getattr(owner, name), []

    def called(*arguments, **options):
        calls.append(arguments)
        if len(calls) == after + 1:
            event()
        return original(*arguments, **options)

    setattr(owner, name, called)


def is_right(collection):
    """It holds all, once, and answers as the collection does."""
    alive = len(collection.snapshot)
    assert collection.check_engine() == EngineReport(alive, 0, (), (), ())
    table, rows = collection.snapshot.table, collection.codes().rows
    assert backend_of(collection).held() == (alive, np.diff(table.offsets)[rows].sum())
    some_searches(collection)


def in_one_line(caught, server):
    message = str(caught.value)
    assert message.startswith(f"milvus:{server.address}: ") and "\n" not in message, message
    assert len(message) < 300, message


def some_searches(collection, engine=None):
    """As `same_answers`, but a few, since each waits for a tick of the server's clock."""
    for search in [*searches(np.random.default_rng(1))][::6]:
        expected = collection.results(search, engine="local").hits
        assert collection.results(search, engine=engine).hits == expected, search


def loaded(backend):
    """What it holds, once a server that was started again has loaded it."""
    end = time.monotonic() + 120
    while True:
        try:
            return backend.held()
        except EngineError as error:
            assert "\n" not in str(error) and time.monotonic() < end, error
            time.sleep(0.5)


def test_what_milvus_lost_changed_or_has_too_much_is_found_and_mended(collection):
    collection.sync_engine()
    same_answers(collection, None, np.random.default_rng(1))
    backend, snapshot = backend_of(collection), collection.snapshot
    n_regions = np.diff(snapshot.table.offsets)
    lost, partly, changed = (int(row) for row in snapshot.rows[n_regions > 1][:3])

    backend.remove(np.array([lost]))
    with pytest.raises(EngineError, match="has lost codes of the collection"):
        some_searches(collection)
    first = backend._client.query(
        backend._name("region"), filter=f"id == {partly << 16}", output_fields=["*"]
    )
    assert len(first) == 1
    backend._client.delete(backend._name("region"), filter=f"id == {partly << 16}")

    def insert(number, like, codes):
        table = snapshot.table.take(np.array([snapshot.index_of(like)]))
        table.region_codes[:] ^= codes
        backend.insert(
            CodeSet(collection.folder, table, "m", "abc", 16, 8, {}, None), [Facts(number)]
        )

    insert(changed, changed, 255)
    insert(10**6, changed, 0)
    report = collection.check_engine()
    assert (report.missing, report.extra) == ((lost, partly), (10**6,))
    assert report.different == (changed,)
    some_searches(collection)  # of what is sound, and the rest here
    assert collection.sync_engine() == (3, 3)
    is_right(collection)


def test_a_server_that_is_killed_in_a_search_and_comes_back_empty(collection, server):
    collection.sync_engine()
    once(backend_of(collection)._client, "search", 3, server.kill)
    with pytest.raises(EngineError) as caught:
        some_searches(collection)
    in_one_line(caught, server)
    server.start(empty=True)
    assert loaded(backend_of(collection)) == (0, 0)
    with pytest.raises(EngineError, match="has lost codes of the collection"):
        some_searches(collection)
    assert collection.sync_engine() == (100, 0)
    is_right(collection)


def test_a_server_that_is_killed_in_a_sync(collection, server):
    collection.sync_engine()
    collection.remove_rows([3, 50])
    add(collection, np.random.default_rng(2), 100)
    once(backend_of(collection)._client, "insert", 3, server.kill)
    with pytest.raises(EngineError) as caught:
        collection.sync_engine()
    in_one_line(caught, server)
    server.start()
    assert loaded(backend_of(collection)).pictures >= 98
    some_searches(collection)  # the rest here
    collection.sync_engine()
    is_right(collection)


def test_a_server_that_is_not_there_is_not_reported_by_the_client():
    pytest.importorskip("pymilvus", reason="needs the client: make test-milvus")
    code = """
        from pathlib import Path
        from regionhash.engines import EngineError, Owner, open_backend
        address = "milvus:http://127.0.0.1:1?timeout=1&token=me:secret"
        try:
            open_backend(address, Owner("0" * 32, "", 8, 8, Path())).held()
        except EngineError as error:
            print(error)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("milvus:http://127.0.0.1:1: ")
    assert ran.stdout.count("\n") == 1 and ran.stderr == "" and "secret" not in ran.stdout


def test_a_check_measures_an_index_that_is_not_exact(collection, server):
    spec = f"milvus:{server.address}?timeout=60&index=BIN_IVF_FLAT&token=me:secret"
    collection.sync_engine(spec)
    assert collection.check_engine(spec).recall == 1  # so few are not divided
    ran = run("engine", "check", collection.folder, "--engine", spec)
    assert "finds 100.0% of the regions that are nearest" in ran.output
    assert "secret" not in ran.output
    collection.drop_engine(spec)
    collection.sync_engine()
    assert collection.check_engine().recall is None


def test_a_network_that_hangs_is_waited_for_no_longer_than_is_said(collection, server, tmp_path):
    collection.sync_engine()
    spec = f"milvus:{server.address}?timeout=3"
    some_searches(collection, spec)
    server.freeze()
    began = time.monotonic()
    try:
        with pytest.raises(EngineError) as caught:
            some_searches(collection, spec)
    finally:
        server.thaw()
    assert time.monotonic() - began < 30
    in_one_line(caught, server)
    is_right(collection)
