"""Removal of pictures by name, and of the files that belong to the collection."""

import pytest

from collection_cases import MODEL, encoded, new_image
from regionhash.collection import Collection
from regionhash.collection.database import Database
from regionhash.collection.uploads import remove_pictures, rows_named


@pytest.fixture
def database(tmp_path):
    with Database.create(tmp_path / "collection.db", MODEL) as database:
        database.store(new_image(n) for n in range(4))
        yield database


def test_a_name_is_an_id_a_file_or_a_folder_with_all_below_it(database):
    assert rows_named(database, []) == set()
    assert rows_named(database, ["0.jpg", "/photos/2.jpg"]) == {1, 3}
    assert rows_named(database, ["/photos"]) == {1, 2, 3, 4}


def test_one_unknown_name_keeps_everything(database, tmp_path):
    with Collection(tmp_path) as collection:
        row, image_id = collection.add_upload(b"content", "cat.jpg", ".jpg", encoded(9))
        path = collection.get(row).path
    for names, message in (
        ([image_id, "nobody.jpg"], r"nobody\.jpg: no picture of"),
        ([""], "emp"),
    ):
        with pytest.raises(ValueError, match=message):
            remove_pictures(database, [1], names)
    assert database.count() == 5 and path.exists()
    assert remove_pictures(database, [1, 1, 99], [image_id, "1.jpg"]) == 3
    assert database.count() == 2 and not path.exists()


def test_files_outside_of_the_collection_stay_whatever_their_name(database, tmp_path):
    with Collection(tmp_path) as collection:
        row, _ = collection.add_upload(b"content", "cat.jpg", ".jpg", encoded(9))
        upload = collection.get(row).path
    namesake = new_image(7)
    path = f"/photos/{upload.name}".encode()
    database.store([type(namesake)("7.jpg", type(namesake.file)(path), None, namesake.rows)])
    assert remove_pictures(database, [], ["7.jpg"]) == 1
    assert upload.read_bytes() == b"content"
