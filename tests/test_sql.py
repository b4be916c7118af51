"""The SQL engine: DuckDB over Parquet files, and ClickHouse through chDB, against a local scan."""

import errno
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clickhouse_stub
from chdb_cases import run_by_chdb
from cli_runner import error_of as error_of_command
from cli_runner import run
from engine_cases import add, made, same_answers
from regionhash.collection import Collection
from regionhash.collection.arrays import Snapshot
from regionhash.collection.filters import mask_of
from regionhash.collection.packing import as_kept
from regionhash.engines import (
    Condition,
    EngineError,
    Held,
    Nearest,
    Owner,
    open_backend,
    sql_clickhouse,
    sql_shards,
    sql_statements,
)
from regionhash.engines.sql_clickhouse import ClickHouse, InProcess, Server
from regionhash.engines.sql_rows import codes_of, words_of
from regionhash.engines.sql_shards import DuckDB
from regionhash.search.request import Filter
from regionhash.search.scan import BagSearch, scan_bags
from regionhash.store import CodeSet
from regionhash.store.parquet import Facts, write_parquet
from regionhash.structures import CodeTable

pytest.importorskip("pyarrow")

CLASSES = ("cat", "d'og \\' \"x", "hen")
NOTHING = np.zeros(0, np.int64)


def owner_of(codes, folder):
    return Owner(uuid4().hex, "abc", codes.n_bits, codes.n_region_bits, folder)


@contextmanager
def clickhouse_in_process(owner, folder):
    pytest.importorskip("chdb")
    yield ClickHouse(InProcess(folder), owner)


@contextmanager
def clickhouse_behind_http(owner, folder):
    """The server is a stub, see `clickhouse_stub`."""
    pytest.importorskip("chdb")
    pytest.importorskip("clickhouse_connect")
    user, password = clickhouse_stub.USER, "p%40ss%3Aword%2F"
    with clickhouse_stub.served(InProcess(folder)) as port:
        backend = ClickHouse(Server(f"clickhouse://{user}:{password}@127.0.0.1:{port}"), owner)
        yield backend
        backend.close()


@contextmanager
def duckdb_on_files(owner, folder):
    pytest.importorskip("duckdb")
    backend = DuckDB(folder / "a [b]*'s" / owner.uuid, owner)
    yield backend
    backend.close()


OPENERS = (duckdb_on_files, clickhouse_in_process, clickhouse_behind_http)
each_backend = pytest.mark.parametrize("opened", OPENERS)


def random_codes(seed, counts, n_bytes=1, image_bytes=2, *, labelled=True):
    """Pictures with some numbers of regions, codes of few values, their facts, and a snapshot."""
    rng = np.random.default_rng(seed)
    n, m = len(counts), sum(counts)
    table = CodeTable(
        [f"{row}.jpg" for row in range(n)],
        np.ones((n, 2), np.int32),
        CLASSES,
        few_values(rng, n, image_bytes) if image_bytes else None,
        offsets=np.cumsum([0, *counts]),
        boxes=np.zeros((m, 4), np.float32),
        scores=rng.choice([0, 0.3, 0.7, 0.9, 1], m).astype(np.float16),
        labels=rng.integers(-1, 3, m),
        region_codes=few_values(rng, m, n_bytes),
    )
    labels = rng.integers(0, 2, (n, 3), dtype=np.uint8) if labelled else None
    taken = rng.choice([np.nan, -1.5, 0, 1.7e9 + 1 / 7, np.nextafter(1.7e9 + 1 / 7, 2e9)], n)
    numbers = np.cumsum(rng.integers(1, 4, n)).astype(np.int64)
    codes = CodeSet(
        "x", table, "m", "abc", 8 * image_bytes, 8 * n_bytes, {"precision": "32-true"}, labels
    )
    facts = [
        Facts(number, taken=None if np.isnan(time) else time)
        for number, time in zip(numbers.tolist(), taken.tolist(), strict=True)
    ]
    return codes, facts, Snapshot(table, numbers, taken, labels, None, (0, 0), "g")


def few_values(rng, count, n_bytes):
    values = rng.integers(0, 256, (6, n_bytes), dtype=np.uint8)
    return values[rng.integers(0, 6, count)]


def part_of(codes, facts, rows):
    """Some of the pictures."""
    rows = np.asarray(rows)
    labels = None if codes.labels is None else codes.labels[rows]
    taken = CodeSet(
        codes.path,
        codes.table.take(rows),
        codes.model,
        codes.model_hash,
        codes.n_bits,
        codes.n_region_bits,
        codes.meta,
        labels,
    )
    return taken, [facts[row] for row in rows.tolist()]


def fill(backend, codes, facts, batch=3):
    backend.create()
    for first in range(0, len(codes), batch):
        rows = range(first, min(first + batch, len(codes)))
        backend.insert(*part_of(codes, facts, rows))


def nearest(backend, queries, top, *, part="region", wanted=None, codes=None, **options):
    """What a backend finds; a least score is given as it is kept, as the interface demands."""
    wanted = wanted or Filter()
    if wanted.min_score:
        kept = float(as_kept(wanted.min_score, codes.table.scores.dtype))
        wanted = Filter(wanted.labels, kept, None, wanted.after, wanted.before)
    up_to = options.pop("up_to", 10**6)
    condition = Condition(
        wanted, up_to, options.pop("among", None), options.pop("without", NOTHING)
    )
    search = Nearest(part, queries, top, condition, options.pop("max_distance", None), None, None)
    numbers, distances = backend.nearest(search)
    assert numbers.dtype == distances.dtype == np.int64
    return list(zip(numbers.tolist(), distances.tolist(), strict=True))


def scanned(codes, snapshot, queries, top, mask, *, part="region", max_distance=None):
    """The same by a local scan."""
    table = codes.table
    searched = (
        (table.image_codes, None) if part == "picture" else (table.region_codes, table.offsets)
    )
    ((bags, distances),) = scan_bags([BagSearch(queries, top, mask, max_distance)], *searched)
    return list(zip(snapshot.rows[bags].tolist(), distances.tolist(), strict=True))


FILTERS = (
    Filter(),
    Filter(labels=("cat",)),
    Filter(labels=CLASSES),
    Filter(labels=CLASSES[1:2], min_score=0.7),
    Filter(labels=("cat", "hen"), min_score=0.9),
    Filter(min_score=0.9),
    Filter(min_score=1),
    Filter(after=0),
    Filter(before=1.7e9 + 1 / 7),
    Filter(after=1.7e9 + 1 / 7),
    Filter(after=float(np.nextafter(1.7e9 + 1 / 7, 2e9))),
    Filter(labels=("hen",), after=-2, before=0.5),
    Filter(after=-np.inf),
    Filter(after=np.inf),
    Filter(before=np.inf),
    Filter(after=np.nan),
    Filter(before=np.nan),
)


@st.composite
def cases(draw):
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=12))
    return (
        draw(st.integers(0, 999)),
        counts,
        draw(st.sampled_from([1, 3, 8, 17])),
        draw(st.sampled_from([0, 2, 9])),
        draw(st.booleans()),
    )


@pytest.mark.parametrize("opened", OPENERS[:2])
@settings(deadline=None, max_examples=12)
@given(case=cases())
def test_answers_are_those_of_a_local_scan(chdb_folder, opened, case):
    check_answers(chdb_folder, opened, case)


def test_answers_come_whole_over_http(chdb_folder):
    check_answers(chdb_folder, clickhouse_behind_http, (7, [2, 0, 4, 1, 3], 17, 9, True))


def check_answers(folder, opened, case):
    seed, counts, n_bytes, image_bytes, labelled = case
    codes, facts, snapshot = random_codes(seed, counts, n_bytes, image_bytes, labelled=labelled)
    rng = np.random.default_rng(seed)
    with opened(owner_of(codes, folder), folder) as backend:
        fill(backend, codes, facts)
        for n, wanted in enumerate(FILTERS):
            if wanted.min_score and not codes.table.has_scores:
                continue  # no collection searches so
            part = "picture" if image_bytes and n % 3 == 0 else "region"
            queries = few_values(rng, 1 + n % 3, image_bytes if part == "picture" else n_bytes)
            mask = mask_of(wanted, snapshot, None)
            mask = np.ones(len(counts), bool) if mask is None else mask.copy()
            options, given = {"part": part}, {}
            if n % 2:
                options["max_distance"] = int(rng.integers(0, 4 * n_bytes * len(queries)))
            if n % 4 == 1:
                given["up_to"] = int(rng.choice(snapshot.rows))
                mask &= snapshot.rows <= given["up_to"]
            if n % 4 == 2:
                given["without"] = np.sort(rng.choice(snapshot.rows, len(counts) // 2, False))
                mask &= ~np.isin(snapshot.rows, given["without"])
            if n % 4 == 3:
                given["among"] = np.sort(rng.choice(snapshot.rows, len(counts) // 2, False))
                mask &= np.isin(snapshot.rows, given["among"])
            top = int(rng.integers(1, 15))
            found = nearest(backend, queries, top, wanted=wanted, codes=codes, **options, **given)
            assert found == scanned(codes, snapshot, queries, top, mask, **options), (n, wanted)
        backend.drop()


@each_backend
def test_all_that_is_stored_comes_back_and_removals_are_whole(chdb_folder, opened):
    codes, facts, snapshot = random_codes(3, [2, 0, 3, 1, 4, 0, 2, 1], 9, 2)
    table = codes.table
    with opened(owner_of(codes, chdb_folder), chdb_folder) as backend:
        assert backend.held() == Held(0, 0)
        assert list(backend.stored("region", codes=True)) == []
        fill(backend, codes, facts)
        backend.create()  # again changes nothing
        assert backend.held() == Held(8, 13)
        gone = snapshot.rows[[0, 1, 4]]
        backend.remove(np.sort(np.concatenate([gone, [10**6]])))
        backend.remove(NOTHING)
        backend.remove(gone)
        assert backend.held() == Held(5, 7)
        backend.insert(*part_of(codes, facts, [1, 4]))  # in the middle of the others
        kept = np.array([1, 2, 3, 4, 5, 6, 7])
        assert backend.held() == Held(7, 11)
        for part, bounds, own in (
            ("picture", np.arange(9), table.image_codes),
            ("region", table.offsets, table.region_codes),
        ):
            rows = [(row, n) for row in kept for n in range(bounds[row + 1] - bounds[row])]
            for with_codes in (True, False):
                batches = list(backend.stored(part, codes=with_codes))
                numbers, positions, packed = (
                    np.concatenate([getattr(batch, name) for batch in batches])
                    for name in ("numbers", "positions", "codes")
                )
                assert numbers.dtype == positions.dtype == np.int64 and packed.dtype == np.uint8
                assert numbers.tolist() == [snapshot.rows[row] for row, _ in rows]
                assert positions.tolist() == [n for _, n in rows]
                wanted = own[[bounds[row] + n for row, n in rows]]
                np.testing.assert_array_equal(packed, wanted if with_codes else wanted[:, :0])
        backend.drop()
        backend.drop()
        assert backend.held() == Held(0, 0)


@each_backend
def test_a_mark_stays_until_the_place_is_dropped(chdb_folder, opened):
    codes, facts, _ = random_codes(3, [2, 0, 3], 9, 2)
    first, second = "1" * 32, "2" * 32
    with opened(owner_of(codes, chdb_folder), chdb_folder) as backend:
        assert backend.stamps() == set()
        backend.create()
        assert backend.stamps() == set()
        backend.stamp(first)
        fill(backend, codes, facts)
        backend.create()
        assert backend.stamps() == {first} and backend.held() == Held(3, 5)
        backend.stamp(second)
        backend.remove(np.array([1]))
        assert backend.stamps() == {second}
        backend.drop()
        assert backend.stamps() == set()
        backend.create()
        assert backend.stamps() == set()
        backend.drop()


@each_backend
def test_a_place_of_another_record_is_refused_until_it_is_dropped(chdb_folder, opened):
    codes, facts, _ = random_codes(3, [2, 0, 3])
    owner = owner_of(codes, chdb_folder)
    other = Owner(owner.uuid, "def", owner.n_bits, owner.n_region_bits, chdb_folder)
    with opened(owner, chdb_folder) as backend, opened(other, chdb_folder) as second:
        fill(backend, codes, facts)
        for asked in (
            second.create,
            second.held,
            lambda: list(second.stored("region", codes=False)),
        ):
            with pytest.raises(EngineError, match="holds codes with model_hash 'abc', but"):
                asked()
        second.drop()
        second.create()
        with pytest.raises(EngineError, match="holds codes with model_hash 'def', but"):
            backend.held()
        second.drop()


@pytest.mark.parametrize(
    "comment", [None, 5, float("nan"), "", "5", "[" * 100_000, '{"format": 1e999}']
)
def test_a_table_with_a_comment_that_is_no_record_is_refused_in_one_line(tmp_path, comment):
    import pyarrow as pa

    row = pa.record_batch([pa.array([comment])], ["comment"])
    table = SimpleNamespace(place="server", batches=lambda _: [row])
    codes, _, _ = random_codes(5, [1])
    refused = error_of(ClickHouse(table, owner_of(codes, tmp_path)).held)
    assert re.fullmatch(r"server/regionhash_\w+: holds codes with format .*", refused)


@each_backend
def test_a_hundred_thousand_numbers_are_one_condition(chdb_folder, opened):
    codes, facts, snapshot = random_codes(5, [1] * 20, 8)
    queries = codes.table.region_codes[:1]
    many = np.arange(int(snapshot.rows[9]), 100_000, dtype=np.int64)
    with opened(owner_of(codes, chdb_folder), chdb_folder) as backend:
        fill(backend, codes, facts, 20)
        mask = np.isin(snapshot.rows, many)
        assert 0 < mask.sum() < 20
        wanted = scanned(codes, snapshot, queries, 30, mask)
        assert nearest(backend, queries, 30, among=many) == wanted
        wanted = scanned(codes, snapshot, queries, 30, ~mask)
        assert nearest(backend, queries, 30, without=many) == wanted
        assert nearest(backend, queries, 30, among=NOTHING) == []
        backend.drop()


@each_backend
def test_threads_share_a_backend(chdb_folder, opened):
    codes, facts, snapshot = random_codes(6, [3] * 30, 8)
    queries = codes.table.region_codes[:2]
    wrong = []
    with opened(owner_of(codes, chdb_folder), chdb_folder) as backend:
        fill(backend, codes, facts, 30)
        wanted = scanned(codes, snapshot, queries, 5, None)

        def search():
            for _ in range(5):
                if nearest(backend, queries, 5) != wanted:
                    wrong.append(1)

        threads = [threading.Thread(target=search) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        backend.drop()
    assert not wrong


def test_rows_that_are_inserted_twice_count_once(chdb_folder):
    """As after an answer of a server that was lost."""
    codes, facts, snapshot = random_codes(6, [3, 1, 2], 8)
    queries = codes.table.region_codes[:2]
    with clickhouse_in_process(owner_of(codes, chdb_folder), chdb_folder) as backend:
        fill(backend, codes, facts)
        backend.insert(*part_of(codes, facts, [1, 2]))
        assert backend.held() == Held(3, 6)
        stored = [batch.numbers for batch in backend.stored("region", codes=True)]
        assert len(np.concatenate(stored)) == 6
        assert nearest(backend, queries, 5) == scanned(codes, snapshot, queries, 5, None)
        backend.remove(snapshot.rows[1:])
        assert backend.held() == Held(1, 3)
        backend.drop()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_to_the_last_bit(value):
    duckdb = pytest.importorskip("duckdb")
    text = sql_statements._number(value)
    assert duckdb.sql(f"SELECT {text}").fetchall() == [(value,)]


def test_the_statement_of_the_documentation_is_right():
    page = (Path(__file__).parents[1] / "docs" / "engines.md").read_text()
    command, _, shown = page.partition("$ regionhash sql ")[2].partition("```")[0].partition("\n")
    assert command.endswith("--only dog --after 2024-06-01")
    rows = sql_statements.Rows.of_shards(
        sql_statements.DUCKDB, re.findall(r"'(photos\.collection/.*?)'", shown)
    )
    code = codes_of(np.array([[7406473163062462414]], np.uint64), 8)
    wanted = Filter(labels=("dog",), after=datetime(2024, 6, 1, tzinfo=UTC).timestamp())
    conditions = sql_statements.passing(rows, wanted)
    statement = sql_statements.nearest(rows, "region", code, conditions, top=20)
    assert f"{statement};\n" == shown


def test_words_are_codes():
    rng = np.random.default_rng(0)
    for n_bytes in (1, 7, 8, 9, 16):
        codes = rng.integers(0, 256, (5, n_bytes), dtype=np.uint8)
        words = words_of(codes)
        assert words.shape == (5, -(-n_bytes // 8))
        assert words[2, 0] == int.from_bytes(codes[2, :8].tobytes().ljust(8, b"\0"))
        np.testing.assert_array_equal(codes_of(words, n_bytes), codes)
        wider = np.pad(words, ((0, 0), (0, 2)))
        np.testing.assert_array_equal(codes_of(wider, n_bytes), codes)


# -- files ----------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """A backend of files with six pictures in two of them, and what they are."""
    pytest.importorskip("duckdb")
    codes, facts, snapshot = random_codes(8, [4, 4, 4, 4, 1, 1], 8)
    backend = DuckDB(tmp_path / "shards", owner_of(codes, tmp_path))
    backend.create()
    for rows in (range(4), [4, 5]):
        backend.insert(*part_of(codes, facts, rows))
    yield backend, codes, facts, snapshot
    backend.close()


def files_of(backend):
    return sorted(path.name for path in Path(backend.place).iterdir())


def test_small_shards_are_taken_into_the_next_one_and_large_ones_are_left(shards, monkeypatch):
    backend, codes, facts, snapshot = shards
    backend.remove(snapshot.rows)
    assert files_of(backend) == ["shards.json"]
    sizes = []
    for row in (4, 5, 0, 1, 2, 3):  # of 2, 2, 5, 5, 5, 5 rows
        backend.insert(*part_of(codes, facts, [row]))
        sizes.append(len(files_of(backend)) - 1)
    assert sizes == [1, 1, 1, 2, 1, 2]
    assert backend.held() == Held(6, 18)
    monkeypatch.setattr(sql_shards, "_SHARD_ROWS", 3)
    backend.remove(snapshot.rows[:4])
    backend.remove(snapshot.rows[4:5])
    backend.insert(*part_of(codes, facts, [4]))
    assert len(files_of(backend)) == 3


def test_an_insert_that_is_killed_leaves_all_as_it_was(shards):
    backend, codes, facts, snapshot = shards
    backend.remove(snapshot.rows[4:])
    before = files_of(backend)
    queries = codes.table.region_codes[:1]
    found = nearest(backend, queries, 9)

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql_shards, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            backend.insert(*part_of(codes, facts, [4, 5]))
    assert len(files_of(backend)) == len(before) + 1
    assert backend.held() == Held(4, 16)
    assert nearest(backend, queries, 9) == found
    backend.insert(*part_of(codes, facts, [4, 5]))
    assert backend.held() == Held(6, 18)
    assert len(files_of(backend)) == len(before) + 1  # what was left behind is gone


@pytest.mark.parametrize("fails", ["os.fsync", "write_text"])
def test_a_change_for_which_there_is_no_space_leaves_no_files(shards, fails):
    backend, codes, facts, snapshot = shards
    before = files_of(backend)

    def refused(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    changes = (
        lambda: backend.insert(*part_of(codes, facts, [0])),
        lambda: backend.remove(snapshot.rows[[0, 5]]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"regionhash.engines.sql_shards.{fails}", refused)
        for change in changes:
            assert error_of(change) == f"{backend.place}: No space left on device"
            assert files_of(backend) == before
    assert backend.held() == Held(6, 18)


def test_a_shard_that_is_lost_is_not_held_and_no_search_is_answered_without_it(shards):
    backend, codes, facts, snapshot = shards
    (small,) = Path(backend.place).glob(f"{snapshot.rows[4]}-*.parquet")
    content = small.read_bytes()
    for damage in (small.unlink, lambda: small.write_bytes(content[:-9])):
        damage()
        assert backend.held() == Held(4, 16)
        assert sum(len(batch.numbers) for batch in backend.stored("region", codes=True)) == 16
        with pytest.raises(EngineError) as refused:
            nearest(backend, codes.table.region_codes[:1], 3)
        assert str(refused.value).startswith(f"{backend.place}: ")
        assert "\n" not in str(refused.value)
    backend.insert(*part_of(codes, facts, [4, 5]))
    assert backend.held() == Held(6, 18)
    wanted = scanned(codes, snapshot, codes.table.region_codes[:1], 3, None)
    assert nearest(backend, codes.table.region_codes[:1], 3) == wanted


def test_a_search_whose_files_are_replaced_starts_again(shards, monkeypatch):
    backend, codes, _, snapshot = shards
    queries, original = codes.table.region_codes[:1], sql_shards.nearest
    changes = [
        lambda: backend.remove(snapshot.rows[:1]),
        lambda: backend.remove(snapshot.rows[4:5]),
    ]

    def changed(*args, **options):
        if changes:
            changes.pop()()
        return original(*args, **options)

    monkeypatch.setattr(sql_shards, "nearest", changed)
    kept = ~np.isin(snapshot.rows, snapshot.rows[[0, 4]])
    assert nearest(backend, queries, 9) == scanned(codes, snapshot, queries, 9, kept)
    assert not changes


def test_what_is_held_is_counted_again_if_files_are_replaced(shards, monkeypatch):
    backend, _, _, snapshot = shards
    changes, original = [lambda: backend.remove(snapshot.rows[:1])], backend._whole

    def changed(given):
        if changes:
            changes.pop()()
        return original(given)

    monkeypatch.setattr(backend, "_whole", changed)
    assert backend.held() == Held(5, 14)


def test_removals_leave_other_files_alone(shards):
    backend, _, _, snapshot = shards
    before = set(files_of(backend))
    backend.remove(snapshot.rows[5:])
    after = set(files_of(backend))
    assert len(before & after) == 2 and len(before) == len(after) == 3
    (Path(backend.place) / "mine.txt").write_text("mine")
    backend.drop()
    assert files_of(backend) == ["mine.txt"]


A_SHARD = '["1-2.aa.parquet", 1, 2, 2, 4, 99]'


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[1]", '{"record": 1, "shards": [[1]]}', "\0", "[" * 100_000),
        *('{"record": {}, "shards": {}}', '{"record": 1, "shards": []}', '{"record": {}}'),
        *(
            f'{{"record": {{}}, "shards": [{A_SHARD.replace(right, wrong)}]}}'
            for right, wrong in (
                ('"1-2.aa.parquet"', "1.5"),
                ("1-2", "../1-2"),
                ("1-2", "1-2\\u0000"),
                ("[", "[1, "),
                (", 99", ""),
                ("99", '"99"'),
                ("1, 2", "1.0, 2"),
                ("4", "null"),
                (A_SHARD, "7"),
            )
        ),
    ],
)
def test_a_damaged_list_of_shards_is_named(shards, text):
    backend, *_ = shards
    (Path(backend.place) / "shards.json").write_text(text)
    with pytest.raises(EngineError, match=r"shards\.json: damaged; `regionhash engine drop`"):
        backend.held()
    backend.drop()
    backend.create()
    assert backend.held() == Held(0, 0)


@pytest.mark.parametrize("extra", [{"more": 1}, {"more": None}, {"a\nb": "x" * 9999}])
def test_a_record_that_says_more_is_of_something_else(shards, extra):
    backend, codes, *_ = shards
    record = json.loads((Path(backend.place) / "shards.json").read_text())["record"]
    owner = owner_of(codes, Path("x"))
    owner.check("place", owner.record)
    with pytest.raises(EngineError, match="place: holds codes with ") as refused:
        owner.check("place", owner.record | extra)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300
    text = json.dumps({"record": record | extra, "shards": []})
    (Path(backend.place) / "shards.json").write_text(text)
    assert "holds codes with" in error_of(backend.held)


def test_a_disk_that_refuses_is_one_line(tmp_path):
    pytest.importorskip("duckdb")
    codes, facts, _ = random_codes(8, [1, 1])
    (tmp_path / "file").write_text("")
    backend = DuckDB(tmp_path / "file" / "below", owner_of(codes, tmp_path))
    for asked in (backend.create, lambda: backend.insert(codes, facts)):
        with pytest.raises(EngineError, match="below: Not a directory"):
            asked()


# -- addresses and servers ------------------------------------------------------------------------


def opened(spec, folder=Path("/collection")):
    return open_backend(f"sql{spec}", Owner("0" * 32, "abc", 8, 8, folder))


def test_addresses():
    pytest.importorskip("duckdb")
    assert opened("").place == opened(":").place == "/collection/sql"
    assert opened(":elsewhere").place == f"{Path.cwd()}/elsewhere/regionhash-{'0' * 32}"
    assert opened(":./trip:2024").place.startswith(f"{Path.cwd()}/trip:2024/")
    assert opened(":/home/me@there/codes").place.startswith("/home/me@there/codes/")


@pytest.mark.parametrize(
    "address",
    [
        "http://user:s3cret@host:8123/db",
        "ClickHouse://host/db",
        "s3://bucket/x",
        "clickhouse:/user:s3cret@host",
        "clickhouse//user:s3cret@host/db",
        "mysql:user:s3cret@host",
        "//user:s3cret@host",
        "/user:s3\ncret@host",
        "./user:s3cret@host",
        "s3cret@host",
        "a:b",
    ],
)
@pytest.mark.parametrize("engine", [":", ":chdb:"])
def test_a_folder_that_looks_like_an_address_is_refused(engine, address):
    if engine == ":chdb:":
        pytest.importorskip("chdb")
    with pytest.raises(ValueError, match="engine sql needs a folder, or a server as") as refused:
        opened(engine + address)
    assert "s3cret" not in str(refused.value) and "\n" not in str(refused.value)


def test_addresses_of_servers(monkeypatch):
    pytest.importorskip("clickhouse_connect")
    backend = opened(":clickhouse://me:s3cret@host")
    assert backend.place == f"clickhouse://host:8123/default/regionhash_{'0' * 32}"
    assert opened(":clickhouses://host/a%20b").place.startswith("clickhouses://host:8443/a%20b/")
    assert opened(":clickhouse://[::1]/").place.startswith("clickhouse://[::1]:8123/default/")
    for bad in (
        *("", "host:x", "host/a/b", "host?user=s3cret", ":s3cret@", "host:99999999", "host:0"),
        *("me:12/s3cret@host:1", "host&password=s3cret", "host/db;password=s3cret", "host#s3cret"),
    ):
        with pytest.raises(ValueError, match="needs an address clickhouse://user:pass") as refused:
            opened(f":clickhouse://{bad}")
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("package", "spec", "extra"),
    [
        ("duckdb", "", "sql"),
        ("clickhouse_connect", ":clickhouse://host", "clickhouse"),
        ("chdb", ":chdb:folder", "chdb"),
    ],
)
def test_a_package_that_is_missing_is_named(monkeypatch, package, spec, extra):
    from regionhash.extras import missing

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError) as refused:
        opened(spec)
    assert missing(refused.value) == f'this needs {package}: pip install "regionhash[{extra}]"'


def test_chdb_needs_a_folder():
    with pytest.raises(ValueError, match="sql:chdb:FOLDER"):
        opened(":chdb:")


def test_a_server_that_hangs_or_is_not_there_is_one_line(monkeypatch):
    pytest.importorskip("clickhouse_connect")
    monkeypatch.setattr(sql_clickhouse, "_ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        hanging = opened(f":clickhouse://me:s3cret@{address}")
        start = time.monotonic()
        messages = [error_of(hanging.held), error_of(hanging.create)]
        assert time.monotonic() - start < 20
    messages += [
        error_of(hanging.held),
        error_of(lambda: list(hanging.stored("region", codes=True))),
    ]
    for message in messages:
        assert message.startswith(f"clickhouse://{address}/default: ")
        assert "s3cret" not in message and "\n" not in message


def test_a_server_that_is_not_there_is_not_reported_by_others():
    pytest.importorskip("clickhouse_connect")
    code = """
        from pathlib import Path
        from regionhash.engines import EngineError, Owner, open_backend
        try:
            open_backend("sql:clickhouse://127.0.0.1:1", Owner("0" * 32, "", 8, 8, Path())).held()
        except EngineError as error:
            print(error)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("clickhouse://127.0.0.1:1/default: ")
    assert ran.stdout.count("\n") == 1 and ran.stderr == ""


def error_of(call):
    with pytest.raises(EngineError) as refused:
        call()
    return str(refused.value)


def test_a_wrong_password_is_one_line_without_it(chdb_folder):
    pytest.importorskip("chdb")
    pytest.importorskip("clickhouse_connect")
    with clickhouse_stub.served(InProcess(chdb_folder)) as port:
        message = error_of(opened(f":clickhouse://reader:s3cret@127.0.0.1:{port}").held)
        assert "Authentication failed" in message
        assert "s3cret" not in message and "\n" not in message


def test_a_password_may_come_from_the_environment(chdb_folder, monkeypatch):
    pytest.importorskip("chdb")
    pytest.importorskip("clickhouse_connect")
    monkeypatch.setenv("CLICKHOUSE_PASSWORD", clickhouse_stub.PASSWORD)
    with clickhouse_stub.served(InProcess(chdb_folder)) as port:
        backend = opened(f":clickhouse://reader@127.0.0.1:{port}")
        assert backend.held() == Held(0, 0)
        backend.close()


def test_a_table_that_is_not_there_is_one_line(chdb_folder):
    pytest.importorskip("chdb")
    backend = opened(f":chdb:{chdb_folder}")
    message = error_of(lambda: nearest(backend, np.zeros((1, 1), np.uint8), 1))
    assert message.startswith(f"chdb:{chdb_folder}: ")
    assert "\n" not in message


# -- the command ----------------------------------------------------------------------------------


def run_by_duckdb(statement):
    duckdb = pytest.importorskip("duckdb")
    return duckdb.sql(statement).fetchall()


@pytest.fixture(scope="module")
def exported(photo_collection, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "it's [one].parquet"
    run("export", photo_collection, "-o", path)
    return path


@pytest.fixture(scope="module")
def collected(photo_collection, tmp_path_factory):
    """A copy of the collection of the photos, which engines may know."""
    folder = tmp_path_factory.mktemp("collected") / "photos.collection"
    shutil.copytree(photo_collection, folder)
    return folder


@pytest.fixture(scope="module")
def place(collected, tmp_path_factory):
    """An engine of files that has them."""
    pytest.importorskip("duckdb")
    spec = f"sql:{tmp_path_factory.mktemp('places')}"
    run("engine", "sync", collected, "--engine", spec)
    return spec


BOXES = "--box 10,20,60,80 --box 40,30,110,90"
SEARCHES = (
    "",
    "--box 10,20,60,80",
    "--box 10,20,60,80 --top 2 --offset 1",
    f"{BOXES} --shared-regions",
    f"{BOXES} --shared-regions --without {{photos}}/2.png@5,5,60,60 --without-distance 1",
    "--without {photos}/2.png@5,5,60,60 --shared-regions",
    "--box 10,20,60,80 --only 6 --only 7 --min-score 0.19",
    "--box 10,20,60,80 --only 6 --min-score 0.2",
    "--box 10,20,60,80 --min-score 0.2",
    "--box 10,20,60,80 --min-score 0.20269",  # more than a score that is kept as float16
    "--box 10,20,60,80 --only 3",
    "--box 10,20,60,80 --after 2001-01-01 --before 2101-01-01",
    "--box 10,20,60,80 --before 2001-01-01",
    "--mode image --folder {photos}",
    "--mode image --folder /elsewhere",
)


def options_of(text, photos):
    return ["--query", photos / "1.png", *text.format(photos=photos).split()]


def searched(folder, options):
    """What `search` finds: ids and distances."""
    if "--box" in options and options.count("--box") == 1:
        options = [*options, "--steps", "exact"]
    hits = json.loads(run("search", folder, *options, "--json").stdout)["hits"]
    return [(hit["picture"], hit["distance"]) for hit in hits]


def named(folder, found):
    """What a statement for an engine finds, with ids in place of numbers."""
    with Collection.open(folder) as collection:
        return [(collection.get(number).id, distance) for number, distance in found]


@pytest.mark.parametrize("text", SEARCHES)
def test_what_is_printed_for_an_export_finds_what_a_search_finds(
    photo_collection, photos, exported, text
):
    options = options_of(text, photos)
    wanted = searched(photo_collection, options)
    printed = run("sql", photo_collection, *options, "--from", exported).stdout
    assert [found[1:] for found in run_by_duckdb(printed)] == wanted
    assert not printed.startswith("--")


@pytest.mark.parametrize("text", SEARCHES)
def test_what_is_printed_for_an_engine_finds_what_a_search_finds(collected, photos, place, text):
    options = options_of(text, photos)
    printed = run("sql", collected, *options, "--engine", place).stdout
    assert named(collected, run_by_duckdb(printed)) == searched(collected, options)


def test_searches_find_something(photo_collection, photos):
    """Of those above: most, and not all pictures."""
    counts = {len(searched(photo_collection, options_of(text, photos))) for text in SEARCHES}
    assert counts == {0, 1, 2, 3, 4, 6}


@pytest.mark.parametrize("text", SEARCHES)
def test_what_is_printed_for_clickhouse_finds_what_a_search_finds(
    photo_collection, photos, exported, chdb_folder, text
):
    pytest.importorskip("chdb")
    options = options_of(text, photos)
    wanted = searched(photo_collection, options)
    more = ("--from", exported, "--dialect", "clickhouse")
    printed = run("sql", photo_collection, *options, *more).stdout
    assert [found[1:] for found in run_by_chdb(printed, chdb_folder)] == wanted


@pytest.mark.parametrize("dialect", ["duckdb", "clickhouse"])
def test_the_name_of_a_folder_is_no_column(
    photo_collection, photos, exported, tmp_path, chdb_folder, dialect
):
    path = tmp_path / "class=x" / "id=y" / "codes.parquet"
    path.parent.mkdir(parents=True)
    shutil.copy(exported, path)
    options = options_of("--box 10,20,60,80 --only 6", photos)
    more = ("--from", path, "--dialect", dialect)
    printed = run("sql", photo_collection, *options, *more).stdout
    run_it = run_by_duckdb if dialect == "duckdb" else partial(run_by_chdb, folder=chdb_folder)
    wanted = searched(photo_collection, options)
    assert [found[1:] for found in run_it(printed)] == wanted != []


def test_the_name_of_the_temporary_folder_is_no_column(chdb_folder, tmp_path, monkeypatch):
    (tmp_path / "part=picture").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "part=picture"))
    codes, facts, _ = random_codes(5, [2, 3])
    with clickhouse_in_process(owner_of(codes, chdb_folder), chdb_folder) as backend:
        fill(backend, codes, facts)
        assert backend.held() == Held(2, 5)
        backend.drop()


def test_what_is_printed_for_a_table_finds_what_a_search_finds(collected, photos, chdb_folder):
    pytest.importorskip("chdb")
    spec = f"sql:chdb:{chdb_folder}"
    run("engine", "sync", collected, "--engine", spec)
    for text in SEARCHES:
        options = options_of(text, photos)
        printed = run("sql", collected, *options, "--engine", spec)
        found = run_by_chdb(printed.stdout, chdb_folder)
        assert named(collected, found) == searched(collected, options)
    run("engine", "drop", collected, "--engine", spec)
    message = error_of_command("sql", collected, *options, "--engine", spec)
    assert "no sync has filled it" in message


def test_what_is_printed_for_an_engine_leaves_out_what_was_removed_since(
    photo_collection, photos, tmp_path
):
    pytest.importorskip("duckdb")
    folder = tmp_path / "photos.collection"
    shutil.copytree(photo_collection, folder)
    run("engine", "sync", folder, "--engine", "sql")
    options = options_of("--box 10,20,60,80", photos)
    before = searched(folder, options)
    run("remove", folder, before[0][0], before[2][0])
    printed = run("sql", folder, *options)
    assert named(folder, run_by_duckdb(printed.stdout)) == searched(folder, options) != before
    run("engine", "sync", folder, "--engine", "sql")
    assert (
        "NOT picture" in printed.stdout and "NOT picture" not in run("sql", folder, *options).stdout
    )


def test_what_is_printed_for_an_engine_says_what_it_lacks(photo_collection, photos, tmp_path):
    pytest.importorskip("duckdb")
    folder = tmp_path / "photos.collection"
    shutil.copytree(photo_collection, folder)
    run("engine", "sync", folder, "--engine", "sql")
    shutil.copy(photos / "1.png", tmp_path / "later.png")
    options = options_of("--box 10,20,60,80", photos)
    before = run("sql", folder, *options)
    run("add", folder, tmp_path / "later.png")
    after = run("sql", folder, *options)
    assert before.stderr == ""
    assert "note: 1 pictures are not there yet; `regionhash engine sync` adds them" in after.stderr
    assert run_by_duckdb(after.stdout) == run_by_duckdb(before.stdout)


def test_objects_that_must_be_apart_are_said_to_be_a_lower_bound(
    photo_collection, photos, exported
):
    options = options_of(BOXES, photos)
    printed = run("sql", photo_collection, *options, "--from", exported).stdout
    assert printed.startswith("-- ") and "lower bounds" in printed
    wanted = dict(searched(photo_collection, options))
    found = {name: distance for _, name, distance in run_by_duckdb(printed)}
    assert found.keys() == wanted.keys()
    assert all(found[name] <= wanted[name] for name in wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to search by: give --query"),
        (("--query", "{photo}", "--engine", "sql", "--from", "x"), "exclude each other"),
        (("--query", "{photo}", "--dialect", "duckdb"), "--dialect needs --from"),
        (("--query", "{photo}", "--engine", "local"), "--engine must be sql or sql:PLACE, got"),
        (("--query", "{photo}", "--engine", "x"), "engine must be one of local"),
        (("--query", "{photo}"), "engines/sql: holds no codes; `regionhash engine sync`"),
        (("--query", "{photo}", "--from", "no.parquet"), "no.parquet"),
        (("--query", "{photo}", "--from", "{export}", "--top", "0"), "--top must be at least 1"),
        (("--query", "{photo}", "--from", "{export}", "--only", "cow"), "label 'cow': not a class"),
        (("--query", "{photo}", "--from", "{export}", "--box", "1,2"), "four numbers"),
        (("--query", "{photo}", "--from", "{export}", "--mode", "objects"), None),
    ],
)
def test_bad_options_are_one_line(photo_collection, photos, exported, options, message):
    given = [option.format(photo=photos / "1.png", export=exported) for option in options]
    if message is None:
        run("sql", photo_collection, *given)
    else:
        assert message in error_of_command("sql", photo_collection, *given)


def test_a_name_that_clickhouse_takes_for_a_pattern_is_refused(
    photo_collection, photos, exported, tmp_path
):
    path = tmp_path / "a{1,2}.parquet"
    path.write_bytes(exported.read_bytes())
    given = ("--query", photos / "1.png", "--from", path, "--dialect")
    assert "for a pattern" in error_of_command("sql", photo_collection, *given, "clickhouse")
    found = run_by_duckdb(run("sql", photo_collection, *given, "duckdb").stdout)
    assert len(found) == 6


def test_a_file_of_another_model_is_refused(photo_collection, photos, tmp_path):
    import pyarrow.parquet as pq

    codes, facts, _ = random_codes(1, [1, 1])
    write_parquet(path := tmp_path / "other.parquet", codes, facts)
    given = ("--query", photos / "1.png", "--from", path)
    assert "other.parquet: made by model abc" in error_of_command("sql", photo_collection, *given)
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    assert "has no header" in error_of_command("sql", photo_collection, *given)


@pytest.mark.parametrize("name", ["class=dog", "taken=2024", "part=a", "picture=7", "score=1"])
def test_a_folder_that_looks_like_a_partition_is_a_folder(tmp_path, name):
    """DuckDB would take the values of a column from it."""
    pytest.importorskip("duckdb")
    folder = tmp_path / name / "c"
    folder.mkdir(parents=True)
    with made(folder, "sql") as collection:
        add(collection, np.random.default_rng(0), 25)
        collection.sync_engine()
        assert collection.check_engine().ok
        same_answers(collection, None, np.random.default_rng(1))


@pytest.mark.parametrize("name", ["a\\*b", "\\[", "a\\?", "\udcff"])
def test_a_folder_that_duckdb_cannot_read_is_refused_before_anything_is_written(tmp_path, name):
    pytest.importorskip("duckdb")
    folder = tmp_path / name
    folder.mkdir()
    with made(folder, "sql") as collection:
        add(collection, np.random.default_rng(0), 3)
        with pytest.raises(ValueError, match="DuckDB reads no file whose path ") as refused:
            collection.sync_engine()
        assert "\n" not in str(refused.value)
        assert not (folder / "engines").exists()


@pytest.mark.parametrize("name", ["a*?[b", "a\\b\n{c,d}"])
def test_other_odd_names_are_folders(tmp_path, name):
    pytest.importorskip("duckdb")
    folder = tmp_path / name
    folder.mkdir()
    with made(folder, "sql") as collection:
        add(collection, np.random.default_rng(0), 9)
        collection.sync_engine()
        assert collection.check_engine().ok
        same_answers(collection, None, np.random.default_rng(1))


@pytest.mark.parametrize("name", ["a?b=1", "\udcff"])
def test_a_folder_that_chdb_cannot_open_is_refused(name):
    pytest.importorskip("chdb")
    with pytest.raises(ValueError, match="chDB opens no folder"):
        opened(f":chdb:{name}")


def test_relative_names_with_a_colon_are_files(tmp_path, monkeypatch):
    pytest.importorskip("duckdb")
    monkeypatch.chdir(tmp_path)
    with made(Path("trip:2024.collection"), "sql") as collection:
        for _ in range(3):
            add(collection, np.random.default_rng(0), 9)
            collection.sync_engine()
        assert collection.export(Path("a:b.parquet")) == 27
        assert collection.import_codes(Path("a:b.parquet")) == 0
