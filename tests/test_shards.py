"""Folders of Parquet files: each picture once, whatever was killed or has changed."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from collection_cases import MODEL, encoded
from regionhash.collection import Collection, transfer
from regionhash.collection.database import Database
from regionhash.store import CodeFileWriter, CodeSet, StoreError
from regionhash.store.parquet import Facts
from regionhash.store.parquet_reader import ParquetCodes
from regionhash.store.shards import Shards, newest_in

pytest.importorskip("pyarrow")
fsspec = pytest.importorskip("fsspec")


@pytest.fixture(params=["path", "url"])
def shards(request, tmp_path):
    """A folder that is not there yet, on the disk or in fsspec's memory."""
    if request.param == "path":
        yield Shards(tmp_path / "made" / "shards")
        return
    yield Shards(f"memory://{tmp_path.name}/shards")
    memory = fsspec.filesystem("memory")
    if memory.exists(tmp_path.name):
        memory.rm(tmp_path.name, recursive=True)


def write(shards, path, run, pictures, *, first=0, precision="32-true", model="abc"):
    """Writes a shard of pictures, given the number that makes the codes and hash of each id."""
    writer = CodeFileWriter(
        path / f"{run}.h5",
        model_hash=model,
        model_name="region-dh",
        classes=["cat", "dog"],
        n_bits=16,
        n_region_bits=8,
        meta={"precision": precision},
    )
    for image_id, n in pictures.items():
        writer.add(image_id, encoded(n))
    writer.finish()
    facts = [Facts(first + row, None, bytes([n]) * 32) for row, n in enumerate(pictures.values())]
    with shards.reserved():
        shards.write(first, run, CodeSet.open(path / f"{run}.h5"), facts)


def codes_in(shards):
    """Id and code of each picture, in the order of an import."""
    found = []
    for path in shards.files():
        file = ParquetCodes.open(path)
        for codes, _ in file.parts(file.header):
            found += zip(codes.table.ids, codes.table.image_codes.tolist(), strict=True)
    return found


def code(n):
    return encoded(n).image_code.tolist()


def test_what_is_stored_is_known_by_id_and_hash(shards, tmp_path):
    assert shards.tidy("abc") == shards.tidy("def")
    assert (shards.tidy("abc").next_number, shards.tidy("abc").precision) == (0, None)
    write(shards, tmp_path, "a", {"x": 1, "y": 2}, first=5)
    write(shards, tmp_path, "b", {"z": 3}, first=2)
    stored = shards.tidy("abc")
    assert stored.hashes == {"x": b"\1" * 32, "y": b"\2" * 32, "z": b"\3" * 32}
    assert (stored.next_number, stored.precision) == (7, "32-true")


def test_of_a_changed_picture_the_newest_codes_stay(shards, tmp_path):
    write(shards, tmp_path, "a", {"x": 1, "y": 2, "z": 3})
    write(shards, tmp_path, "b", {"y": 4}, first=3)
    write(shards, tmp_path, "c", {"y": 5, "w": 6}, first=4)
    stored = shards.tidy("abc")
    assert codes_in(shards) == [("x", code(1)), ("z", code(3)), ("y", code(5)), ("w", code(6))]
    assert len(shards.files()) == 2  # nothing is left of the second
    assert stored.hashes["y"] == b"\5" * 32
    assert shards.tidy("abc") == stored
    for path in shards.files():
        assert ParquetCodes.open(path).header["classes"] == ["cat", "dog"]


def test_two_runs_that_took_the_same_numbers_lose_nothing(shards, tmp_path):
    write(shards, tmp_path, "a", {"x": 1, "y": 2})
    write(shards, tmp_path, "b", {"v": 3, "w": 4})
    write(shards, tmp_path, "c", {"x": 1, "y": 2})  # a copy of the first
    assert set(shards.tidy("abc").hashes) == {"x", "y", "v", "w"}
    assert sorted(codes_in(shards)) == sorted(
        [("v", code(3)), ("w", code(4)), ("x", code(1)), ("y", code(2))]
    )


def test_a_second_run_at_once_is_refused(tmp_path):
    shards = Shards(tmp_path / "made" / "shards")
    with shards.reserved():
        with pytest.raises(StoreError) as refused, Shards(shards.folder).reserved():
            pass
        with Shards(tmp_path / "other").reserved():
            pass
    assert str(refused.value) == f"{shards.folder}: another run writes to this folder"
    with shards.reserved():
        assert not shards.files()


def test_a_shard_can_be_written_again(shards, tmp_path):
    """Ray repeats what an actor did that died before it could say so."""
    write(shards, tmp_path, "a", {"x": 1})
    (tmp_path / "a.h5").unlink()
    write(shards, tmp_path, "a", {"x": 2})
    assert codes_in(shards) == [("x", code(2))]


def test_shards_that_do_not_belong_together_are_refused(shards, tmp_path):
    write(shards, tmp_path, "a", {"x": 1})
    with pytest.raises(StoreError, match=r"a\.parquet: made by model abc, but this is def"):
        shards.tidy("def")
    write(shards, tmp_path, "b", {"y": 1}, precision="bf16-mixed")
    with pytest.raises(StoreError, match=r"b\.parquet: precision must be 32-true, got bf16-mixed"):
        shards.tidy("abc")


def test_a_model_that_a_damaged_header_names_stays_in_its_line(shards, tmp_path):
    write(shards, tmp_path, "a", {"x": 1}, model="a\nb")
    with pytest.raises(StoreError, match="made by model a b, but this is abc"):
        shards.tidy("abc")


def test_a_file_that_is_no_shard_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"text")
    with pytest.raises(StoreError, match=r"a\.parquet: "):
        Shards(tmp_path).tidy("abc")
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(StoreError, match=r"a\.parquet: has no header"):
        Shards(tmp_path).tidy("abc")
    with pytest.raises(StoreError, match=r"a\.parquet: no column picture"):
        list(ParquetCodes.open(tmp_path / "a.parquet").stored())


def changed(path, name, values, kind=None):
    """Gives a column of a file other values, and rewrites it as another program might."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = pq.read_table(path)
    column = pa.array(values(rows[name].to_pylist()), kind)
    pq.write_table(rows.set_column(rows.column_names.index(name), name, column), path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda numbers: [None] * len(numbers), "picture must be a number in each row"),
        (lambda numbers: ["x"] * len(numbers), "picture: "),
        (lambda numbers: numbers[::-1], "pictures must be in ascending order"),
        (lambda numbers: [0] * len(numbers), "pictures must be in ascending order"),
    ],
)
def test_a_shard_whose_numbers_are_wrong_is_named(tmp_path, values, message):
    shards = Shards(tmp_path / "shards")
    write(shards, tmp_path, "a", {"x": 1, "y": 2})
    changed(shards.files()[0], "picture", values)
    with pytest.raises(StoreError, match=rf"-a\.parquet: {message}"):
        shards.tidy("abc")


def test_what_another_program_has_rewritten_is_reduced(tmp_path):
    """With other types, and without what may be missing."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    shards = Shards(tmp_path / "shards")
    write(shards, tmp_path, "a", {"x": 1, "y": 2})
    (path,) = shards.files()
    changed(path, "picture", lambda numbers: numbers, pa.uint8())
    pq.write_table(pq.read_table(path).drop_columns("sha256"), path)
    write(shards, tmp_path, "b", {"y": 4}, first=2)
    assert shards.tidy("abc").hashes == {"x": None, "y": b"\4" * 32}
    assert codes_in(shards) == [("x", code(1)), ("y", code(4))]


def test_unreadable_pictures_are_rows_of_a_table(tmp_path):
    rows = [("a,b.jpg", "/photos/a,b.jpg", 'not "a" picture'), ("ä", "s3://b/ä", "gone")]
    Shards(tmp_path).write_unreadable(rows)
    with (tmp_path / "unreadable.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["id", "path", "reason"], *map(list, rows)]
    odd = "/photos/\udcff.jpg"  # a name that is not UTF-8, as Python has it
    Shards(tmp_path).write_unreadable([("x", odd, f"{odd}: gone")])
    assert "/photos/\\udcff.jpg: gone" in (tmp_path / "unreadable.csv").read_text()
    Shards(tmp_path).write_unreadable([])
    assert (tmp_path / "unreadable.csv").read_bytes() == b"id,path,reason\n"


# -- import ---------------------------------------------------------------------------------------


@pytest.fixture
def imported(tmp_path):
    """Imports into a new collection; gives the code of each picture."""

    def run(*paths):
        folder = tmp_path / f"collection-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        Database.create(folder / "collection.db", MODEL).close()
        with Collection(folder) as collection:
            collection.import_codes(*paths)
            table = collection.code_file().table
            return dict(zip(table.ids, np.asarray(table.image_codes).tolist(), strict=True))

    return run


def test_of_a_folder_that_a_killed_run_has_left_the_newest_codes_are_imported(
    shards, tmp_path, imported
):
    write(shards, tmp_path, "a", {"x": 1, "y": 2, "z": 3})
    write(shards, tmp_path, "c", {"y": 4}, first=3)
    write(shards, tmp_path, "b", {"y": 5, "w": 6}, first=1_000_000_000_000)  # sorts before c
    newest = {"x": code(1), "y": code(5), "z": code(3), "w": code(6)}
    assert imported(shards.folder) == newest
    assert imported(*shards.files()) == newest
    shards.tidy("abc")
    assert imported(shards.folder) == newest


def test_pictures_of_one_id_in_two_folders_are_two(tmp_path, imported):
    for name, n in (("one", 1), ("two", 2)):
        shards = Shards(tmp_path / name)
        (tmp_path / f"of-{name}").mkdir()
        write(shards, tmp_path / f"of-{name}", "a", {"x": n})
    found = imported(tmp_path / "one", tmp_path / "two")
    assert sorted(found.values()) == sorted([code(1), code(2)])


def test_equal_ids_of_exports_in_a_folder_may_be_different_pictures(tmp_path, imported):
    shards = Shards(tmp_path / "shards")
    write(shards, tmp_path, "a", {"x": 1})
    write(shards, tmp_path, "b", {"x": 2}, first=1)
    for n, path in enumerate(shards.files()):
        path.rename(path.with_name(f"{n}.parquet"))
    assert sorted(imported(tmp_path / "shards").values()) == sorted([code(1), code(2)])


def test_a_shard_that_a_run_reduces_during_an_import_is_named(tmp_path, imported, monkeypatch):
    shards = Shards(tmp_path / "shards")
    write(shards, tmp_path, "a", {"x": 1, "y": 2})

    def newest_then_a_run(paths):
        found = newest_in(paths)
        write(shards, tmp_path, "b", {"y": 3}, first=2)
        shards.tidy("abc")
        return found

    monkeypatch.setattr(transfer, "newest_in", newest_then_a_run)
    with pytest.raises(
        StoreError, match=r"-a\.parquet: changed while it was read; import it again"
    ):
        imported(tmp_path / "shards")
    monkeypatch.undo()
    assert imported(tmp_path / "shards") == {"x": code(1), "y": code(3)}


def test_the_statement_of_the_documentation_takes_the_newest_codes(tmp_path, monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    text = (Path(__file__).parents[1] / "docs" / "ray.md").read_text()
    (statement,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    shards = Shards(tmp_path / "shards")
    write(shards, tmp_path, "a", {"x": 1, "y": 2})
    write(shards, tmp_path, "b", {"y": 3}, first=2)
    monkeypatch.chdir(tmp_path)
    found = duckdb.sql(
        f"SELECT id, image_code FROM ({statement}) WHERE part = 'picture'"
    ).fetchall()
    assert sorted((name, [*value]) for name, value in found) == [("x", code(1)), ("y", code(3))]
    regions = duckdb.sql(f"SELECT id FROM ({statement}) WHERE part = 'region'").fetchall()
    assert sorted(regions) == [("x",), ("x",), ("y",), ("y",)]
