"""Stored pictures: pages of them, their files, and rows that are damaged."""

import sqlite3
from dataclasses import replace

import pytest

from collection_cases import MODEL, encoded, new_image
from regionhash.collection import Collection
from regionhash.collection.database import Database, FileState
from regionhash.collection.pictures import columns_of, paths_of, pixels_of


@pytest.fixture
def database(tmp_path):
    with Database.create(tmp_path / "collection.db", MODEL) as database:
        yield database


def test_a_page_of_pictures_is_full_and_leaves_out_damaged_rows(database, tmp_path):
    database.store(new_image(n) for n in range(5))
    with sqlite3.connect(tmp_path / "collection.db") as connection:
        connection.execute("UPDATE images SET height = 7 WHERE row = 2")
    connection.close()
    with Collection(tmp_path) as collection:

        def rows(**page):
            return [image.row for image in collection.images(**page)]

        assert rows() == [1, 3, 4, 5]
        assert [rows(limit=n) for n in range(4)] == [[], [1], [1, 3], [1, 3, 4]]
        assert rows(after=1, limit=2) == [3, 4] and rows(after=4, limit=9) == [5]
        for image in (2, "1.jpg", 6, "6.jpg"):
            for read in (collection.get, collection.pixels):
                with pytest.raises(KeyError):
                    read(image)


def test_paths_are_those_of_the_disk_and_missing_without_a_file(database, tmp_path):
    without_file = replace(new_image(1), file=FileState())
    database.store([new_image(0), without_file])
    with Collection(tmp_path) as collection:
        row, _ = collection.add_upload(b"content", "cat.jpg", ".jpg", encoded(2))
        upload = collection.get(row).path
        assert upload.read_bytes() == b"content"
    paths = paths_of(database, [1, 2, row, 99])
    assert {row: str(path) for row, path in paths.items()} == {1: "/photos/0.jpg", row: str(upload)}


def test_a_picture_without_a_file_is_read_by_its_name_from_its_own_source(database, monkeypatch):
    monkeypatch.setattr(
        "regionhash.data.inputs.Pictures", lambda places: {"1.jpg": ("1.jpg", places)}
    )
    places = [{"data": "one"}, {"data": "two"}]
    sources = [database.source([place["data"]], place) for place in places]
    database.store([new_image(1)])  # takes the id
    database.store([replace(new_image(1), file=FileState(), source=sources[1])])
    columns = columns_of(database, 2)
    assert (columns["id"], columns["name"]) == ("1.jpg (2)", "1.jpg")
    assert pixels_of(database, columns) == ("1.jpg", [places[1]])
