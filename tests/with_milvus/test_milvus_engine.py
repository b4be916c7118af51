"""Searches of a real server find what the local search finds, and nothing is lost or doubled."""

import socket
import time
from dataclasses import replace
from itertools import product
from threading import Barrier

import numpy as np
import pytest
from milvus_cases import Pictures, everything, some_pictures

from regionhash.engines import EngineError, Owner, open_backend
from regionhash.engines.milvus.rows import LIMIT, expression
from regionhash.search.request import Filter
from regionhash.structures import CodeTable


def found(engine, pictures, part, queries, top, **conditions):
    """The search finds what the local one does; returns how many."""
    search, numbers, distances = pictures.search(part, queries, top, **conditions)
    got = engine.nearest(search)
    np.testing.assert_array_equal(got[0], numbers)
    np.testing.assert_array_equal(got[1], distances)
    return len(numbers)


def holds(engine, pictures, rows=None):
    """The engine holds exactly these pictures, with their codes, in order."""
    rows = np.arange(len(pictures)) if rows is None else rows
    table, numbers = pictures.table.take(rows), pictures.numbers[rows]
    counts = np.diff(table.offsets)
    assert engine.held() == (len(rows), counts.sum())
    for part, wanted, codes in (
        ("picture", numbers, table.image_codes),
        ("region", np.repeat(numbers, counts), table.region_codes),
    ):
        batches = [*engine.stored(part, codes=True)]
        got = [np.concatenate(column) for column in zip(*batches, strict=True)]
        np.testing.assert_array_equal(got[0], wanted)
        np.testing.assert_array_equal(got[2], codes)
        starts = np.repeat(table.offsets[:-1], counts) if part == "region" else None
        positions = np.arange(len(wanted)) - starts if part == "region" else 0 * wanted
        np.testing.assert_array_equal(got[1], positions)
        alone = [*engine.stored(part, codes=False)]
        assert {batch.codes.shape[1] for batch in alone} == {0}
        np.testing.assert_array_equal(np.concatenate([batch[0] for batch in alone]), wanted)


@pytest.fixture(scope="module")
def pictures():
    return some_pictures(1500)


@pytest.fixture(scope="module")
def filled(server, pictures, tmp_path_factory):
    owner = Owner("f" * 32, "abc", 16, 16, tmp_path_factory.mktemp("x"))
    engine = open_backend(f"milvus:{server.address}?timeout=60", owner)
    engine.create()
    pictures.insert(engine, batch=1000)
    yield engine
    engine.drop()
    engine.close()


def test_what_is_inserted_is_held_at_once(filled, pictures):
    holds(filled, pictures)
    filled.create()  # there is one
    holds(filled, pictures)


@pytest.mark.parametrize("part", ["picture", "region"])
@pytest.mark.parametrize("n_queries", [1, 2, 3])
def test_a_search_finds_what_the_local_one_finds(filled, pictures, part, n_queries):
    rng = np.random.default_rng(n_queries)
    queries = rng.integers(0, 256, (n_queries, 2), dtype=np.uint8)
    for top, max_distance in ((1, None), (20, None), (2000, None), (2000, 5 * n_queries), (5, 0)):
        found(filled, pictures, part, queries, top, max_distance=max_distance)


WANTED = [
    Filter(labels=("cat",)),
    Filter(labels=("dog", "a bird")),
    Filter(labels=("dog",), min_score=0.7001),
    Filter(labels=("dog",), min_score=0.5),
    Filter(min_score=1.0),
    Filter(min_score=0.2),
    Filter(after=0.0),
    Filter(after=1e-7, before=1.7e9),
    Filter(before=1.7e9 + 1 / 3),
    Filter(after=1.7e9 + 1 / 3),
    Filter(after=float("-inf"), labels=("cat",)),
]


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_a_filter_passes_the_pictures_of_the_local_one(filled, pictures, wanted):
    queries = np.array([[7, 7]], np.uint8)
    for part in ("picture", "region"):
        condition = everything(pictures, wanted)
        assert found(filled, pictures, part, queries, 2000, condition=condition)
        assert found(filled, pictures, part, queries, 10, condition=condition)


def test_numbers_limit_a_search(filled, pictures):
    rng, queries = np.random.default_rng(0), np.array([[1, 2], [200, 100]], np.uint8)
    few, many = (pictures.numbers[rng.random(1500) < share] for share in (0.01, 0.7))
    for among, without in product((None, few, many, few[:0]), (few, many, few[:0])):
        condition = everything(
            pictures, among=among, without=without, up_to=int(pictures.numbers[900])
        )
        found(filled, pictures, "region", queries, 30, condition=condition)


def asked(engine, monkeypatch):
    """What the server is asked to search from now on: the expressions."""
    expressions = []
    original = engine._client.search

    def search(*arguments, **options):
        expressions.append(options["filter"])
        return original(*arguments, **options)

    monkeypatch.setattr(engine._client, "search", search)
    return expressions


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_an_expression_selects_what_a_filter_passes(filled, pictures, wanted):
    """These scores are none that are rounded, so it selects no others either."""
    condition = everything(pictures, wanted)
    rows = filled._client.query(
        filled._name("picture"),
        filter=expression("picture", condition),
        output_fields=["id"],
        limit=LIMIT,
    )
    everyone = np.zeros((1, 2), np.uint8), 2000
    passing = pictures.search("picture", *everyone, condition=condition)[1]
    assert sorted(row["id"] for row in rows) == sorted(passing.tolist())


def test_a_condition_that_leaves_nearly_nothing_is_asked_once(filled, pictures, monkeypatch):
    expressions = asked(filled, monkeypatch)
    rare = everything(pictures, among=pictures.numbers[5:8], without=pictures.numbers[6:7])
    assert found(filled, pictures, "picture", np.zeros((1, 2), np.uint8), 9, condition=rare) == 2
    late = everything(pictures, Filter(after=1.7e9 + 0.2, labels=("cat", "dog", "a bird")))
    found(filled, pictures, "region", np.zeros((1, 2), np.uint8), 9, condition=late)
    assert len(expressions) == 2


def test_nothing_is_asked_if_nothing_is_searched(filled, pictures, monkeypatch):
    expressions = asked(filled, monkeypatch)
    nothing = everything(pictures, among=pictures.numbers[:0])
    assert found(filled, pictures, "region", np.zeros((1, 2), np.uint8), 9, condition=nothing) == 0
    assert not expressions


def test_rows_that_are_written_twice_are_noticed(empty, monkeypatch):
    """As by a client that asks again, when a server has written but could not answer."""
    pictures, engine = some_pictures(20), empty
    original = engine._client.insert

    def insert(*arguments, **options):
        original(*arguments, **options)
        return original(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(EngineError, match="but has"):
        patch.setattr(engine._client, "insert", insert)
        pictures.insert(engine)
    pictures.insert(engine)
    holds(engine, pictures)


def test_rows_are_written_by_two_requests_at_once_each_of_them_once(empty, monkeypatch):
    monkeypatch.setattr("regionhash.engines.milvus.engine._WRITTEN", 50)
    pictures, engine = some_pictures(300), empty
    both, original, sizes = Barrier(2, timeout=60), engine._client.insert, []

    def insert(name, rows, **options):
        sizes.append(len(rows))
        if len(sizes) <= 2:
            both.wait()
        return original(name, rows, **options)

    monkeypatch.setattr(engine._client, "insert", insert)
    pictures.insert(engine)
    assert max(sizes) == 50 and sum(sizes) == 300 + len(pictures.table.region_codes)
    holds(engine, pictures)


def test_if_one_of_two_requests_fails_it_is_said_and_mended(empty, monkeypatch):
    from pymilvus.exceptions import MilvusException

    monkeypatch.setattr("regionhash.engines.milvus.engine._WRITTEN", 50)
    pictures, engine = some_pictures(300), empty
    original, calls = engine._client.insert, []

    def insert(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise MilvusException(message="out of order")
        return original(*arguments, **options)

    monkeypatch.setattr(engine._client, "insert", insert)
    with pytest.raises(EngineError, match="out of order"):
        pictures.insert(engine)
    assert engine.held().pictures == 0  # not before all of their regions
    pictures.insert(engine)
    holds(engine, pictures)


def test_what_is_inserted_again_is_not_doubled_and_what_is_removed_is_gone(empty):
    pictures, engine = some_pictures(300), empty
    for _ in range(2):
        pictures.insert(engine, np.arange(100, 300), batch=150)
    pictures.insert(engine, np.arange(0, 150))
    holds(engine, pictures)
    gone, kept = np.split(np.random.default_rng(0).permutation(300), [120])
    for _ in range(2):
        engine.remove(np.sort(pictures.numbers[gone]))
    kept.sort()
    holds(engine, pictures, kept)
    condition = everything(pictures, among=pictures.numbers[kept])
    found(engine, pictures, "region", np.array([[3, 4]], np.uint8), 300, condition=condition)
    engine.remove(pictures.numbers)
    assert engine.held() == (0, 0) and not [*engine.stored("region", codes=True)]
    for part in ("picture", "region"):
        search, _, _ = pictures.search(part, np.zeros((2, 2), np.uint8), 5)
        assert [len(column) for column in engine.nearest(search)] == [0, 0]


@pytest.mark.parametrize("n_queries", [1, 2])
def test_more_regions_than_are_given_at_once_may_be_equally_far(
    filled, pictures, monkeypatch, n_queries
):
    monkeypatch.setattr("regionhash.engines.milvus.engine.LIMIT", 30)
    monkeypatch.setattr("regionhash.engines.milvus.engine._Searched.limit", 30)
    expressions = asked(filled, monkeypatch)
    queries = np.array([[0, 0], [255, 1]], np.uint8)[:n_queries]
    condition = everything(pictures, up_to=int(pictures.numbers[200]))
    for max_distance in (None, 5 * n_queries, 16 * n_queries):
        options = {"condition": condition, "max_distance": max_distance}
        for top in (3, 60):
            found(filled, pictures, "region", queries, top, **options)
    assert any("id >= " in expression for expression in expressions)


def test_more_regions_than_milvus_gives_may_be_equally_far(empty, monkeypatch):
    pictures = some_pictures(6000, few=1, most_regions=7, seed=3)
    assert len(pictures.table.region_codes) > LIMIT
    engine = empty
    pictures.insert(engine, batch=3000)
    expressions = asked(engine, monkeypatch)
    assert found(engine, pictures, "region", np.array([[0, 0]], np.uint8), 3) == 3
    assert any("id >= " in expression for expression in expressions)
    assert sum(len(batch.numbers) for batch in engine.stored("region", codes=False)) > LIMIT


def test_a_collection_may_lack_codes_of_pictures_or_of_regions(engine_of):
    pictures = some_pictures(50, image_codes=False)
    engine = engine_of(n_bits=0)
    engine.create()
    pictures.insert(engine)
    counts = np.diff(pictures.table.offsets)
    assert engine.held() == (50, counts.sum())
    (batch,) = engine.stored("picture", codes=True)
    assert batch.numbers.tolist() == pictures.numbers.tolist() and batch.codes.shape == (50, 0)
    found(engine, pictures, "region", np.array([[3, 4]], np.uint8), 20)
    engine.remove(pictures.numbers[:20])
    assert engine.held() == (30, counts[20:].sum())

    whole = some_pictures(50)
    names = ("offsets", "boxes", "scores", "labels", "region_codes")
    alone = replace(whole, table=replace(whole.table, **dict.fromkeys(names)))
    engine = engine_of(n_region_bits=0)
    engine.create()
    alone.insert(engine)
    assert engine.held() == (50, 0) and not [*engine.stored("region", codes=True)]
    found(engine, alone, "picture", np.array([[3, 4]], np.uint8), 20)


@pytest.mark.parametrize("partition", ["folder", "picture"])
def test_rows_may_be_partitioned(engine_of, partition):
    pictures, engine = some_pictures(100), engine_of(f"timeout=60&partition={partition}")
    engine.create()
    for _ in range(2):
        pictures.insert(engine)
    holds(engine, pictures)
    few = everything(pictures, among=pictures.numbers[[1, 50]])
    for condition in (None, few):
        found(engine, pictures, "region", np.array([[3, 4]], np.uint8), 30, condition=condition)
    engine.remove(pictures.numbers[:40])
    holds(engine, pictures, np.arange(40, 100))


def flush(engine, part):
    """Makes Milvus build the index now; it would do so later."""
    client, name = engine._client, engine._name(part)
    if hasattr(client, "flush"):
        client.flush(name)
    else:  # before pymilvus 2.4
        from pymilvus import Collection

        Collection(name, using=client._using).flush()


def test_an_index_of_lists_finds_most_and_says_what_it_is(engine_of):
    pictures = some_pictures(4000, n_bytes=8, few=10**5, most_regions=8, seed=4)
    options = "timeout=60&index=BIN_IVF_FLAT&nlist=128&nprobe="
    engine = engine_of(options + "4", n_bits=64, n_region_bits=64)
    assert engine.place.endswith(" (BIN_IVF_FLAT)")
    engine.create()
    pictures.insert(engine, batch=2000)
    assert engine.recall("region", pictures.table.region_codes[:20]) == 1  # no index yet
    flush(engine, "region")
    queries = np.random.default_rng(0).integers(0, 256, (20, 8), dtype=np.uint8)
    end = time.monotonic() + 120
    while (recall := engine.recall("region", queries)) == 1 and time.monotonic() < end:
        time.sleep(1)
    assert 0.05 < recall < 1
    every = engine_of(options + "128", engine._owner.uuid, n_bits=64, n_region_bits=64)
    assert every.recall("region", queries) == 1
    found(every, pictures, "region", queries[:2], 30)
    search, numbers, _ = pictures.search("region", queries[:1], 30)
    got, distances = engine.nearest(search)
    np.testing.assert_array_equal(distances, search.distances_of(got))
    assert 0 < len(np.intersect1d(got, numbers)) <= 30


def test_a_mark_stays_until_the_place_is_dropped(engine_of):
    engine, first, second = engine_of(), "1" * 32, "2" * 32
    assert engine.stamps() == set()
    engine.create()
    assert engine.stamps() == set()
    engine.stamp(first)
    engine.create()
    assert engine.stamps() == {first}
    engine.stamp(second)
    assert engine.stamps() == {second}
    engine.drop()
    assert engine.stamps() == set()
    engine.create()
    assert engine.stamps() == set()


def test_a_place_that_is_not_that_of_the_collection_is_refused(engine_of, monkeypatch):
    engine = engine_of()
    assert engine.held() == (0, 0) and not [*engine.stored("picture", codes=True)]
    engine.remove(np.array([3]))
    engine.drop()
    engine.create()
    uuid = engine._owner.uuid
    for options, changes, said in (
        ("", {"n_region_bits": 32}, "holds codes with n_region_bits 16, but .* needs 32"),
        ("index=BIN_IVF_FLAT", {}, "was made with index BIN_FLAT, partition None, but the address"),
        ("partition=folder", {}, "but the address says index BIN_FLAT, partition folder"),
    ):
        other = engine_of(options, uuid, **changes)
        for use in (other.held, other.create, lambda other=other: other.remove(np.array([1]))):
            with pytest.raises(EngineError, match=said):
                use()
    monkeypatch.setattr("regionhash.engines.backend.VERSION", 2)
    with pytest.raises(EngineError, match="holds codes with version 1, but the collection needs 2"):
        engine.held()


def test_what_another_program_made_is_refused(engine_of):
    engine = engine_of()
    engine._client.create_collection(engine._name("picture"), dimension=8)
    with pytest.raises(EngineError, match="holds codes with format None"):
        engine.held()


def test_a_picture_of_more_regions_than_ids_can_number_is_refused(empty):
    engine = empty
    n = (1 << 16) + 1
    table = CodeTable(
        ["a"],
        np.ones((1, 2), np.int32),
        image_codes=np.zeros((1, 2), np.uint8),
        offsets=np.array([0, n]),
        boxes=np.zeros((n, 4), np.float32),
        scores=np.zeros(n, np.float32),
        labels=np.full(n, -1),
        region_codes=np.zeros((n, 2), np.uint8),
    )
    pictures = Pictures(table, np.array([1]), np.array([0.0]), None)
    with pytest.raises(EngineError, match="keeps at most 65536 regions of a picture"):
        pictures.insert(engine)
    assert engine.held() == (0, 0)


def test_a_server_that_does_not_answer_is_waited_for_no_longer_than_is_said(tmp_path):
    pytest.importorskip("pymilvus", reason="needs pymilvus: make test-milvus")
    owner = Owner("a" * 32, "abc", 16, 16, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        engine = open_backend(f"milvus:http://127.0.0.1:{port}?timeout=2&token=me:secret", owner)
        began = time.monotonic()
        with pytest.raises(EngineError) as caught:
            engine.held()
        assert time.monotonic() - began < 20
    message = str(caught.value)
    assert message.startswith(f"milvus:http://127.0.0.1:{port}: ") and "\n" not in message
    assert "secret" not in message
