"""Refreshing: pictures whose file is gone are removed, damaged rows are encoded again."""

import os
import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import pytest

from collection_cases import MODEL, new_image
from regionhash.collection import refreshing
from regionhash.collection.database import Database, FileState
from regionhash.collection.refreshing import encode_damaged_again, remove_gone
from regionhash.files.names import condition_of
from regionhash.reporter import SILENT
from reporters import Recording


@pytest.fixture
def database(tmp_path):
    with Database.create(tmp_path / "collection.db", MODEL) as database:
        yield database


@pytest.fixture
def sources(database, tmp_path):
    """Two sources of two files each, rows 1 and 3, and 2 and 4; rows 3 and 4 have lost theirs."""
    sources = [database.source([name], {"folder": name}) for name in ("a", "b")]
    for n in range(4):
        path = tmp_path / f"{n}.jpg"
        if n < 2:
            path.write_bytes(b"%d" % n)
        file = FileState(os.fsencode(path), b"%d" % n)
        database.store([replace(new_image(n), file=file, source=sources[n % 2])])
    database.store([replace(new_image(5), file=FileState(), source=sources[0])])  # row 5: no file
    return sources


def rows(database):
    return [row for row, _ in database.rows()]


def test_pictures_of_the_given_sources_alone_are_removed_when_their_file_is_gone(database, sources):
    assert remove_gone(database, sources[:1], SILENT) == {sources[0]: (1, 0)}
    assert rows(database) == [1, 2, 4, 5]
    assert remove_gone(database, sources, SILENT) == {sources[0]: (0, 0), sources[1]: (1, 0)}
    assert rows(database) == [1, 2, 5]


def test_a_picture_whose_file_cannot_be_accessed_is_kept_counted_and_named(
    database, sources, monkeypatch
):
    told = Recording()
    monkeypatch.setattr(refreshing, "condition_of", lambda _: "unreadable")
    assert remove_gone(database, sources, told) == dict.fromkeys(sources, (0, 2))
    assert rows(database) == [1, 2, 3, 4, 5]
    assert told.notes[0] == "0.jpg: its file cannot be accessed; the picture is kept"
    assert len(told.notes) == 4


def test_damaged_rows_of_other_sources_are_encoded_again_under_their_ids(
    database, sources, tmp_path, monkeypatch
):
    for name in ("0.jpg", "1.jpg"):
        assert condition_of(os.fsencode(tmp_path / name)) == "there"
    with sqlite3.connect(tmp_path / "collection.db") as connection:
        connection.execute("UPDATE images SET height = 7, id = 'shown/' || CAST(path AS TEXT)")
    connection.close()
    calls = []
    monkeypatch.setattr(
        refreshing, "add_pictures", lambda *arguments, **options: calls.append((arguments, options))
    )
    collection = SimpleNamespace(model=("model", "checkpoint"))
    encode_damaged_again(database, collection, {sources[0]}, workers=0)
    ((_, model, checkpoint, image_set, source), options) = calls[0]
    assert (model, checkpoint, source, options) == ("model", "checkpoint", None, {"workers": 0})
    assert image_set.ids == ("shown/1.jpg",)  # row 4 has no file any more
    assert image_set.images.paths == (tmp_path / "1.jpg",)
    assert rows(database) == [2, 4]  # those of the refreshed source have new rows by now
    assert encode_damaged_again(database, collection, set(sources)) is None
    assert rows(database) == [] and len(calls) == 1
