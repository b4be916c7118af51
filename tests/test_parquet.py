"""Codes as Parquet files: there and back, read by others, and files that are none."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chdb_cases import run_by_chdb
from cli_runner import error_of, run
from collection_cases import MODEL, encoded, new_image
from regionhash.collection import Collection, open_codes
from regionhash.collection.database import Database, FileState
from regionhash.search import search_regions
from regionhash.store import CodeSet, StoreError, parquet, parquet_reader, rows_of
from regionhash.store.parquet import Facts, write_parquet
from regionhash.store.parquet_reader import ParquetCodes
from regionhash.structures import CodeTable

pa = pytest.importorskip("pyarrow")
pc = pytest.importorskip("pyarrow.compute")
pq = pytest.importorskip("pyarrow.parquet")

CLASSES = ("cat", "dog", "hen")
ARRAYS = (
    *("sizes", "image_codes", "class_probs", "offsets", "boxes", "scores", "labels"),
    *(
        "region_codes",
        "region_features",
        "category_offsets",
        "categories",
        "category_probs",
        "category_codes",
    ),
)


@pytest.fixture
def made(tmp_path):
    """A collection without a model, of five pictures."""
    (tmp_path / "made").mkdir()
    with Database.create(tmp_path / "made" / "collection.db", MODEL) as database:
        for n in range(5):
            labels = [n % 2] if n else None
            rows = rows_of(f"{n}.jpg", encoded(n, n), labels, MODEL)
            database.store([replace(new_image(n, taken=1.7e9 + n / 7), rows=rows)])
    return tmp_path / "made"


def copied(made, path):
    """The pictures of a Parquet file in a new collection."""
    folder = path.with_suffix("")
    folder.mkdir()
    Database.create(folder / "collection.db", MODEL).close()
    with Collection(folder) as collection:
        collection.import_codes(path)
    return folder


def random_codes(seed, counts, with_categories, with_labels):
    """Codes of pictures that have some numbers of regions and categories."""
    rng = np.random.default_rng(seed)
    n = len(counts)
    regions, categories = (np.array([pair[x] for pair in counts], np.int64) for x in (0, 1))
    m, g = int(regions.sum()), int(categories.sum())
    parts = {
        "offsets": np.concatenate([[0], np.cumsum(regions)]),
        "boxes": rng.random((m, 4), np.float32) * 100,
        "scores": rng.random(m, np.float32),
        "labels": rng.integers(-1, 3, m),
        "region_codes": rng.integers(0, 256, (m, 5), dtype=np.uint8),
    }
    if with_categories:
        parts |= {
            "region_features": rng.integers(-127, 128, (m, 7), dtype=np.int8),
            "category_offsets": np.concatenate([[0], np.cumsum(categories)]),
            "categories": rng.integers(0, 3, g),
            "category_probs": rng.random(g, np.float32),
            "category_codes": rng.integers(0, 256, (g, 3), dtype=np.uint8),
            "class_probs": rng.random((n, 3), np.float32),
        }
    table = CodeTable(
        [f"{row} ä.jpg" for row in range(n)],
        rng.integers(1, 5000, (n, 2)).astype(np.int32),
        CLASSES,
        rng.integers(0, 256, (n, 2), dtype=np.uint8),
        **parts,
    )
    labels = rng.integers(0, 2, (n, 3), dtype=np.uint8) if with_labels else None
    return CodeSet("x", table, "iah", "abc", 16, 40, {"precision": "32-true"}, labels)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 99),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=9),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 3, 1000]),
    st.sampled_from([1, 4, 1000]),
)
def test_there_and_back(tmp_path_factory, seed, counts, categories, labels, written, read):
    path = tmp_path_factory.mktemp("parquet") / "codes.parquet"
    codes = random_codes(seed, counts, categories, labels)
    facts = [
        Facts(10 + 3 * n, f"/p/{n}", bytes([n]) * 32, None if n % 3 else 1.7e9 + n / 7)
        for n in range(len(counts))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_PICTURES_AT_A_TIME", written)
        patch.setattr(parquet_reader, "_ROWS_AT_A_TIME", read)
        assert write_parquet(path, codes, facts) == len(counts)
        file = ParquetCodes.open(path)
        assert file.header["classes"] == [*CLASSES]
        parts = list(file.parts(file.header))
    assert [fact for _, known in parts for fact in known] == facts
    assert [x for part, _ in parts for x in part.table.ids] == codes.table.ids
    for name in ARRAYS:
        wanted = getattr(codes.table, name)
        found = [getattr(part.table, name) for part, _ in parts]
        if wanted is None or not parts:
            assert not [x for x in found if x is not None]
            continue
        if "offsets" in name:
            wanted, found = np.diff(wanted), [np.diff(x) for x in found]
        np.testing.assert_array_equal(np.concatenate(found), wanted, err_msg=name)
    if labels and parts:
        np.testing.assert_array_equal(np.concatenate([p.labels for p, _ in parts]), codes.labels)


def test_a_collection_comes_back_with_its_facts(made, tmp_path):
    there = tmp_path / "3.jpg"
    there.write_bytes(b"a picture")
    state = FileState(bytes(there), b"h" * 32, taken=12.345678901)
    with Database(made / "collection.db") as database:
        known = rows_of("9.jpg", encoded(9), [1], MODEL)
        database.store([replace(new_image(9), file=state, rows=known)])
    with Collection(made) as collection:
        collection.remove(["2.jpg"])
        assert collection.export(tmp_path / "codes.parquet") == 5
        with pytest.raises(ValueError, match="already exists"):
            collection.export(tmp_path / "codes.parquet")
        wanted = collection.code_file()
    with Collection(copied(made, tmp_path / "codes.parquet")) as again:
        found = again.code_file()
        assert again.import_codes(tmp_path / "codes.parquet") == 0
        query = "SELECT path, hash, taken FROM pictures WHERE id = ?"
        assert again._database.read(query, "9.jpg") == [(bytes(there), b"h" * 32, 12.345678901)]
        assert again._database.read(query, "1.jpg") == [(None, None, 1.7e9 + 1 / 7)]
    assert list(found.table.ids) == list(wanted.table.ids)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found.table, name), getattr(wanted.table, name))


def test_an_older_file_does_not_replace_newer_codes(made, tmp_path):
    there = tmp_path / "there.jpg"
    there.write_bytes(b"a picture")
    stored = replace(new_image(7), file=FileState(bytes(there), b"1" * 32))
    with Database(made / "collection.db") as database:
        database.store([stored])
    with Collection(made) as collection:
        collection.export(tmp_path / "older.parquet")
        newer = replace(stored, rows=rows_of("7.jpg", encoded(8), None, MODEL))
        newer = replace(newer, file=FileState(bytes(there), b"2" * 32))
        assert collection._database.store([newer]) == 1
        assert collection.import_codes(tmp_path / "older.parquet") == 0
        found = collection.encoded("7.jpg")
    np.testing.assert_array_equal(found.image_code, encoded(8).image_code)


def test_pictures_that_share_a_file_are_all_kept(made, tmp_path):
    """As crops do; one of them is linked to it."""
    there = tmp_path / "there.jpg"
    there.write_bytes(b"a picture")
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
    rows = pq.read_table(tmp_path / "codes.parquet")
    shared = pa.array([str(there)] * len(rows))
    rows = rows.set_column(rows.column_names.index("path"), "path", shared)
    pq.write_table(rows, tmp_path / "shared.parquet")
    with Collection(copied(made, tmp_path / "shared.parquet")) as again:
        assert len(again) == 5
        assert [image.path for image in again.images()].count(there) == 1
        assert again.import_codes(tmp_path / "shared.parquet") == 0


def test_a_user_takes_codes_elsewhere_and_back(cups, tmp_path):
    path, again = tmp_path / "cups.parquet", tmp_path / "again"
    run("export", cups, "-o", path)
    assert "3 pictures" in run("import", again, path).stdout  # with a copy of the model
    tables = [open_codes(folder).compact().table for folder in (cups, again)]
    np.testing.assert_array_equal(tables[0].region_codes, tables[1].region_codes)
    assert (again / "model.json").exists()
    assert "0 pictures" in run("import", again, path).stdout


def test_without_pyarrow_the_extra_is_named(cups, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    said = error_of("export", cups, "-o", tmp_path / "cups.parquet")
    assert 'pip install "regionhash[parquet]"' in said
    assert not (tmp_path / "cups.parquet").exists()


# -- other programs -------------------------------------------------------------------------------


def test_duckdb_finds_what_the_exact_search_finds(made, tmp_path):
    duckdb = pytest.importorskip("duckdb")
    with Collection(made) as collection:
        collection.export(path := tmp_path / "codes.parquet")
        table = collection.code_file().table
    query = table.region_codes[3]
    found = duckdb.sql(
        f"""
        SELECT id, min(bit_count(xor(region_code::BIT, '{query[0]:08b}'::BIT))) AS distance
        FROM '{path}' WHERE part = 'region' GROUP BY picture, id ORDER BY distance, picture
        """
    ).fetchall()
    assert found == [(hit.image_id, hit.distance) for hit in search_regions(query, table, top=9)]
    named = duckdb.sql(f"SELECT count(*) FROM '{path}' WHERE class = 'dog' AND part = 'region'")
    assert named.fetchall() == [(np.count_nonzero(table.labels == 1),)]
    dated = duckdb.sql(
        f"SELECT id FROM '{path}' WHERE part = 'picture' AND taken > to_timestamp(1.7e9 + .5)"
    )
    assert {name for (name,) in dated.fetchall()} == {"4.jpg"}


def test_the_statement_of_the_documentation_is_right(made, tmp_path, monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    text = (Path(__file__).parents[1] / "docs" / "parquet.md").read_text()
    (statement,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    with Collection(made) as collection:
        collection.export(Path("codes.parquet"))
        table = collection.code_file().table
    hits = search_regions(table.region_codes[0], table, top=20)
    assert len(hits) == 4
    assert duckdb.sql(statement).fetchall() == [(hit.image_id, hit.distance) for hit in hits]


def test_chdb_finds_what_the_exact_search_finds(made, tmp_path, chdb_folder):
    with Collection(made) as collection:
        collection.export(path := tmp_path / "codes.parquet")
        table = collection.code_file().table
    query = table.region_codes[3]
    distance = (
        f"bitHammingDistance(region_code, toFixedString(unhex('{query.tobytes().hex()}'), 1))"
    )
    found = run_by_chdb(
        f"""
        SELECT id, min({distance}) AS distance FROM file('{path}', 'Parquet')
        WHERE part = 'region' GROUP BY picture, id ORDER BY distance, picture
        """,
        chdb_folder,
    )
    assert found == [(hit.image_id, hit.distance) for hit in search_regions(query, table, top=9)]
    dated = f"SELECT id FROM file('{path}', 'Parquet') WHERE part = 'picture' AND has(shows, 'dog')"
    assert run_by_chdb(f"{dated} AND taken > toDateTime64(1700000000.3, 9)", chdb_folder) == [
        ("3.jpg",)
    ]


def test_lancedb_finds_what_the_exact_search_finds(made, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
        table = collection.code_file().table
    rows = pq.read_table(tmp_path / "codes.parquet")
    database = lancedb.connect(tmp_path / "lance")
    stored = database.create_table("rows", rows)
    dogs = stored.search().where("part = 'region' AND class = 'dog'").limit(99).to_arrow()
    assert len(dogs) == np.count_nonzero(table.labels == 1)
    regions = rows.filter(pc.equal(rows["part"], "region"))
    codes = pa.array(np.frombuffer(b"".join(regions["region_code"].to_pylist()), np.uint8))
    regions = regions.append_column("code", pa.FixedSizeListArray.from_arrays(codes, 1))
    stored = database.create_table("regions", regions)
    query = table.region_codes[3]
    found = stored.search(query.tolist(), vector_column_name="code").distance_type("hamming")
    least = {}
    for row in found.limit(99).to_arrow().to_pylist():
        key = row["picture"], row["id"]
        least[key] = min(least.get(key, 99), int(row["_distance"]))
    ranked = sorted((distance, key) for key, distance in least.items())
    assert [(key[1], distance) for distance, key in ranked] == [
        (hit.image_id, hit.distance) for hit in search_regions(query, table, top=9)
    ]


def test_pandas_reads_it(made, tmp_path):
    pandas = pytest.importorskip("pandas")
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
        table = collection.code_file().table
    frame = pandas.read_parquet(tmp_path / "codes.parquet")
    regions = frame[frame["part"] == "region"]
    assert b"".join(regions["region_code"]) == np.asarray(table.region_codes).tobytes()
    np.testing.assert_array_equal(regions[["x0", "y0", "x1", "y1"]], table.boxes)


def test_a_file_that_another_program_has_written_again_is_imported(made, tmp_path):
    """Without metadata, with other types, columns in another order, and a further one."""
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
    rows = pq.read_table(tmp_path / "codes.parquet")
    columns = {"note": pa.array(["x"] * len(rows))}
    for name in reversed(rows.column_names):
        column = rows[name].combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.cast(pa.large_string())
        elif pa.types.is_fixed_size_binary(column.type):
            column = column.cast(pa.large_binary())
        elif pa.types.is_int32(column.type):
            column = column.cast(pa.int64())
        columns[name] = column
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table(columns), other)
    assert "has no header" in error_of("import", tmp_path / "new", other)
    tables = [open_codes(x).compact().table for x in (made, copied(made, other))]
    np.testing.assert_array_equal(tables[0].region_codes, tables[1].region_codes)
    np.testing.assert_array_equal(tables[0].boxes, tables[1].boxes)


# -- files that cannot be right -------------------------------------------------------------------


def with_value(name, row, value):
    def change(rows):
        values = rows[name].to_pylist()
        values[row] = value
        field = rows.schema.field(name)
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        return rows.set_column(rows.column_names.index(name), name, pa.array(values, kind))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop_columns(["class"]), "no column class"),
        (lambda rows: rows.drop_columns(["region_code"]), "part region, but no column region_code"),
        (lambda rows: rows.take(np.arange(len(rows))[::-1]), "is out of order"),
        (lambda rows: rows.filter(pc.not_equal(rows["number"], 0)), "is out of order"),
        (lambda rows: pa.concat_tables([rows, rows]), "is out of order"),
        (with_value("number", 4, 7), "picture 3: region 7 is out of order"),
        (with_value("part", 0, "photo"), "part must be one of ['picture', 'region', 'category']"),
        (with_value("class", 2, "cow"), "class must be one of ['cat', 'dog'], got 'cow'"),
        (with_value("region_code", 2, None), "region_code is missing"),
        (with_value("image_code", 0, None), "image_code is missing"),
        (with_value("score", 2, None), "score must be a number in each row, got nothing"),
        (with_value("x1", 2, float("nan")), "boxes must be finite"),
        (with_value("height", 0, -1), "sizes must be in [0"),
        (with_value("picture", 0, None), "picture must be a number"),
        (with_value("id", 0, None), "id must be a text"),
        (with_value("shows", 0, ["cow"]), "shows must be classes of the model, got 'cow'"),
        (with_value("class_probs", 0, [1.0]), "class_probs must have 2 values in each picture"),
        (lambda rows: rows.drop_columns(["precision"]), "no column precision"),
        (lambda rows: rows.append_column("score", rows["score"]), "column score is there 2 times"),
        (with_value("precision", 1, "bf16-mixed"), "precision must be 32-true, got 'bf16-mixed'"),
        (with_value("model_hash", 1, "def"), "model_hash must be abc, got 'def'"),
        (
            lambda rows: rows.set_column(
                rows.column_names.index("x0"), "x0", pa.array(["a"] * len(rows))
            ),
            "x0: ",
        ),
    ],
)
def test_what_no_export_has_written_is_refused_in_one_line(made, tmp_path, change, message):
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
    rows = pq.read_table(tmp_path / "codes.parquet")
    pq.write_table(change(rows), tmp_path / "changed.parquet")
    with Collection(made) as collection:
        before = len(collection)
        with pytest.raises(StoreError) as refused:
            collection.import_codes(tmp_path / "changed.parquet")
        assert len(collection) == before
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / 'changed.parquet'}: ") and "\n" not in said
    assert message in said


def test_pictures_ascend_through_the_whole_file(made, tmp_path, monkeypatch):
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
        rows = pq.read_table(tmp_path / "codes.parquet")
        pq.write_table(pa.concat_tables([rows, rows]), tmp_path / "twice.parquet")
        monkeypatch.setattr(parquet_reader, "_ROWS_AT_A_TIME", 1)
        with pytest.raises(StoreError, match="picture 1: picture 0 is out of order"):
            collection.import_codes(tmp_path / "twice.parquet")


def as_type(name, kind):
    def change(rows):
        column = pa.array(rows[name].to_pylist(), kind)
        return rows.set_column(rows.column_names.index(name), name, column)

    return change


@pytest.mark.parametrize(
    "kind", [pa.large_list(pa.float32()), pa.list_(pa.float64(), 2), pa.list_(pa.float16())]
)
def test_lists_of_other_types_are_taken(made, tmp_path, kind):
    """Even of fixed size: those of regions are missing."""
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
    rows = as_type("class_probs", kind)(pq.read_table(tmp_path / "codes.parquet"))
    assert rows["class_probs"].type == kind
    pq.write_table(rows, tmp_path / "other.parquet")
    with Collection(copied(made, tmp_path / "other.parquet")) as again:
        np.testing.assert_array_equal(again.code_file().table.class_probs, np.full((5, 2), 0.5))


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(4), pa.int64(), pa.list_(pa.string())])
def test_what_is_no_list_of_numbers_is_refused_in_one_line(made, tmp_path, kind):
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
        rows = pq.read_table(tmp_path / "codes.parquet")
        column = pa.nulls(len(rows), kind)
        if kind == pa.list_(pa.string()):
            column = pa.array([["a", "b"]] * len(rows))
        rows = rows.set_column(rows.column_names.index("class_probs"), "class_probs", column)
        pq.write_table(rows, tmp_path / "other.parquet")
        with pytest.raises(StoreError, match=r"other\.parquet: ") as refused:
            collection.import_codes(tmp_path / "other.parquet")
    assert "\n" not in str(refused.value)


def test_a_picture_has_a_limit_of_rows_that_are_held_in_memory(made, tmp_path, monkeypatch):
    """What is written is what can be read, however it is divided."""
    monkeypatch.setattr(parquet, "MOST_ROWS", 6)
    monkeypatch.setattr(parquet_reader, "MOST_ROWS", 6)
    codes = random_codes(0, [(1, 0), (3, 2), (0, 5)], True, False)
    facts = [Facts(n) for n in range(3)]
    write_parquet(tmp_path / "most.parquet", codes, facts)
    for read in (1, 4, 1000):
        monkeypatch.setattr(parquet_reader, "_ROWS_AT_A_TIME", read)
        file = ParquetCodes.open(tmp_path / "most.parquet")
        assert sum(len(part) for part, _ in file.parts(file.header)) == 3
        monkeypatch.setattr(parquet_reader, "MOST_ROWS", 5)
        with pytest.raises(StoreError, match="picture 1 must have at most 5 rows, got 6"):
            list(file.parts(file.header))
        monkeypatch.setattr(parquet_reader, "MOST_ROWS", 6)
    codes = random_codes(0, [(1, 0), (3, 3)], True, False)
    with pytest.raises(ValueError, match=r"^1 ä\.jpg: a Parquet file has at most 6 rows"):
        write_parquet(tmp_path / "more.parquet", codes, facts[:2])
    assert not (tmp_path / "more.parquet").exists()


def test_a_picture_without_end_is_not_read_to_the_end(made, tmp_path, monkeypatch):
    """Which takes a few bytes of a file for millions of rows."""
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
        rows = pq.read_table(tmp_path / "codes.parquet")
        endless = pa.concat_tables([rows.slice(0, 1), *[rows.slice(1, 1)] * 500])
        pq.write_table(endless, tmp_path / "endless.parquet")
        monkeypatch.setattr(parquet_reader, "MOST_ROWS", 50)
        monkeypatch.setattr(parquet_reader, "_ROWS_AT_A_TIME", 20)
        largest = []
        joined = pa.concat_tables

        def joining(tables):
            largest.append(len(table := joined(tables)))
            return table

        monkeypatch.setattr(pa, "concat_tables", joining)
        with pytest.raises(StoreError, match="must have at most 50 rows"):
            collection.import_codes(tmp_path / "endless.parquet")
    assert max(largest) <= 70


def test_ids_are_read_a_part_at_a_time(made, tmp_path, monkeypatch):
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
    monkeypatch.setattr(parquet_reader, "_ROWS_AT_A_TIME", 4)
    parts = list(ParquetCodes.open(tmp_path / "codes.parquet").stored())
    assert len(parts) > 2
    assert [n for numbers, _, _ in parts for n in numbers.tolist()] == [1, 2, 3, 4, 5]
    assert [x for _, ids, _ in parts for x in ids] == [f"{n}.jpg" for n in range(5)]
    assert [x for _, _, digests in parts for x in digests] == [None] * 5


def test_bits_that_change_on_a_disk_are_not_taken_for_codes(tmp_path):
    """Of the pages; the few bytes between them and the footer have no checksum."""
    codes = random_codes(0, [(2, 1)] * 30, True, True)
    write_parquet(path := tmp_path / "codes.parquet", codes, [Facts(n) for n in range(30)])
    content = path.read_bytes()
    pages = range(4, len(content) - 8 - int.from_bytes(content[-8:-4], "little"), 7)
    file = ParquetCodes.open(path)

    def read():
        parts = list(file.parts(file.header))
        arrays = [np.asarray(getattr(part.table, name)) for part, _ in parts for name in ARRAYS]
        return [(part.table.ids, facts) for part, facts in parts], [x.tobytes() for x in arrays]

    wanted, taken = read(), 0
    for n in pages:
        changed = bytearray(content)
        changed[n] ^= 1 << n % 8
        path.write_bytes(changed)
        try:
            taken += read() != wanted
        except StoreError as refused:
            assert "\n" not in str(refused)
    assert taken <= len(pages) // 100


def test_a_file_that_ends_early_is_damaged(made, tmp_path, monkeypatch):
    with Collection(made) as collection:
        collection.export(path := tmp_path / "codes.parquet")
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: iter(()))
        with pytest.raises(StoreError, match=r"codes\.parquet: damaged: has 0 of 15 rows"):
            collection.import_codes(path)


def test_files_that_are_none(made, tmp_path):
    with Collection(made) as collection:
        collection.export(whole := tmp_path / "whole.parquet")
        content = whole.read_bytes()
        for name, bad in {"text": b"text", "cut": content[:-40], "empty": b""}.items():
            path = tmp_path / f"{name}.parquet"
            path.write_bytes(bad)
            with pytest.raises(StoreError, match=f"{name}.parquet: "):
                collection.import_codes(path)
        with pytest.raises(StoreError, match=r"missing\.parquet: "):
            collection.import_codes(tmp_path / "missing.parquet")
        rows = pq.read_table(whole)
        header = json.loads(rows.schema.metadata[parquet.METADATA]) | {"version": 2}
        newer = rows.replace_schema_metadata({parquet.METADATA: json.dumps(header)})
        pq.write_table(newer, tmp_path / "newer.parquet")
        with pytest.raises(StoreError, match="version must be 1, got 2"):
            collection.import_codes(tmp_path / "newer.parquet")


# -- several files --------------------------------------------------------------------------------


def test_a_folder_of_files_is_taken_in_the_order_of_their_names(made, tmp_path):
    (tmp_path / "shards").mkdir()
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
    rows = pq.read_table(tmp_path / "codes.parquet")
    for name, pictures in (("b", [0, 1, 2]), ("a", [4, 5])):
        of = pc.is_in(rows["picture"], pa.array(pictures, pa.int64()))
        pq.write_table(rows.filter(of), tmp_path / "shards" / f"{name}.parquet")
    (tmp_path / "shards" / ".c.parquet").write_bytes(b"hidden")
    (tmp_path / "shards" / "unreadable.csv").write_text("id,reason\n")
    (tmp_path / "new").mkdir()
    Database.create(tmp_path / "new" / "collection.db", MODEL).close()
    with Collection(tmp_path / "new") as collection:
        assert collection.import_codes(tmp_path / "shards") == 4
        assert [image.id for image in collection.images()] == ["3.jpg", "4.jpg", "0.jpg", "1.jpg"]
        assert collection.import_codes(tmp_path / "shards", tmp_path / "codes.parquet") == 1
        with pytest.raises(StoreError, match="name a file of codes"):
            collection.import_codes()


def test_a_user_takes_several_files_at_once(cups, tmp_path):
    (tmp_path / "shards").mkdir()
    path = tmp_path / "shards" / "cups.parquet"
    run("export", cups, "-o", path)
    run("export", cups, "-o", tmp_path / "cups.h5")
    said = run("import", tmp_path / "new", tmp_path / "shards", tmp_path / "cups.h5").stdout
    assert said == (
        f"{tmp_path / 'new'}: 3 pictures of {path.parent} {tmp_path / 'cups.h5'} are new\n"
    )
    path.unlink()
    said = error_of("import", tmp_path / "new", path.parent)
    assert said == f"{path.parent}: no Parquet file is in this folder"


def test_a_picture_behind_a_url_has_no_file(made, tmp_path, monkeypatch):
    """Even if there is a file of that name."""
    (tmp_path / "s3:" / "bucket").mkdir(parents=True)
    (tmp_path / "s3:" / "bucket" / "0.jpg").write_bytes(b"another picture")
    monkeypatch.chdir(tmp_path)
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
    rows = pq.read_table(tmp_path / "codes.parquet")
    urls = pa.array([f"s3://bucket/{name}" for name in rows["id"].to_pylist()])
    rows = rows.set_column(rows.column_names.index("path"), "path", urls)
    pq.write_table(rows, tmp_path / "remote.parquet")
    with Collection(copied(made, tmp_path / "remote.parquet")) as again:
        assert len(again) == 5
        assert {image.path for image in again.images()} == {None}


def test_files_behind_a_url_are_taken_as_those_of_a_folder(made, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    with Collection(made) as collection:
        collection.export(tmp_path / "codes.parquet")
    memory = fsspec.filesystem("memory")
    memory.pipe("/shards/a.parquet", (tmp_path / "codes.parquet").read_bytes())
    try:
        (tmp_path / "new").mkdir()
        Database.create(tmp_path / "new" / "collection.db", MODEL).close()
        with Collection(tmp_path / "new") as collection:
            assert collection.import_codes("memory://shards/a.parquet") == 5
            assert collection.import_codes("memory://shards") == 0
            for url in ("memory://shards/b.parquet", "memory://none"):
                with pytest.raises(StoreError, match=f"{url}: "):
                    collection.import_codes(url)
            with pytest.raises(ValueError, match="nothing://x: Protocol not known"):
                collection.import_codes("nothing://x")
    finally:
        memory.rm("/shards", recursive=True)
