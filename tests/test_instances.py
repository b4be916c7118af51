import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionhash.data.folder import read_folder
from regionhash.data.image_set import ImageSet
from regionhash.data.images import ImageError
from regionhash.data.instances import (
    BoxQuerySet,
    InstanceQuery,
    read_instances,
    with_distractors,
)
from regionhash.structures import Target

DATA = Path(os.environ.get("REGIONHASH_DATA", Path(__file__).parents[2] / "shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no photographs in {DATA}")

TABLE = """image,label,xmin,ymin,xmax,ymax
a.png,cup,1,2,3,4
a.png,cup,5,2,8,4
a.png,bed,0,0,10,8
b.png,cup,1,1,9,7
c.png,lamp,2,2,4,4
c.png,bed,,,,
"""


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for n, name in enumerate("abc"):
        Image.new("RGB", (10, 8), (n, n, n)).save(folder / f"{name}.png")
    (folder / "objects.csv").write_text(TABLE)
    return folder / "objects.csv"


def test_a_query_is_each_box_whose_label_another_picture_has(table):
    search = read_instances(table)
    assert search.name == "objects"
    assert [(q.name, q.image_id, q.box, q.positives, q.junk) for q in search.queries] == [
        ("cup 1 of a.png", "a.png", (1, 2, 3, 4), ("b.png",), ("a.png",)),
        ("cup 2 of a.png", "a.png", (5, 2, 8, 4), ("b.png",), ("a.png",)),
        ("bed 3 of a.png", "a.png", (0, 0, 10, 8), ("c.png",), ("a.png",)),
        ("cup 1 of b.png", "b.png", (1, 1, 9, 7), ("a.png",), ("b.png",)),
    ]


def test_a_table_whose_labels_are_all_different_is_refused(table):
    table.write_text("image,label,x0,y0,x1,y1\na.png,cup,1,2,3,4\nb.png,bed,1,2,3,4\n")
    with pytest.raises(ValueError, match=r"objects\.csv: no label of a box occurs in two pictures"):
        read_instances(table)


def test_distractors_join_the_database_and_nothing_else(table, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (4, 6), (200, 0, 0)).save(other / "a.png")
    (other / "broken.png").write_bytes(b"")
    search = read_instances(table)
    larger = with_distractors(search, [read_folder(other)])
    assert larger.queries == search.queries
    assert larger.database.ids == ("a.png", "b.png", "c.png", "other/a.png", "other/broken.png")
    assert larger.database.name == "objects + other"
    assert [larger.database.images[n][0, 0].tolist() for n in (0, 2, 3)] == [
        [0, 0, 0],
        [2, 2, 2],
        [200, 0, 0],
    ]
    assert larger.database.images[3].shape == (6, 4, 3)
    assert not len(larger.database.targets[3].boxes)
    with pytest.raises(ImageError, match=r"broken\.png: the file is empty"):
        larger.database.images[4]


def test_distractors_of_one_name_and_one_id_are_refused(table, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (4, 6)).save(other / "a.png")
    twice = [read_folder(other)] * 2
    with pytest.raises(ValueError, match="image ids must be unique"):
        with_distractors(read_instances(table), twice)


def test_a_query_whose_picture_is_missing_is_refused(table):
    search = read_instances(table)
    with pytest.raises(ValueError, match=r"the picture a\.png of query cup 1 of a\.png is missing"):
        BoxQuerySet("x", search.database.subset([1, 2]), search.queries)
    with pytest.raises(ValueError, match="x: there is nothing to search for"):
        BoxQuerySet("x", search.database, ())


@pytest.mark.data
@needs_data
def test_the_flat_has_queries_for_almost_all_of_its_objects():
    search = read_instances(DATA / "indoor/objects.csv", images_dir=DATA / "indoor/images")
    assert len(search.database) == 85
    image_set = search.database
    n_pictures = image_set.labels().sum(0)
    alone = sum(
        n_pictures[label] == 1 for target in image_set.targets for label in target.labels.tolist()
    )
    assert len(search.queries) == 686 - alone
    assert all(
        query.positives and query.image_id not in query.positives for query in search.queries
    )
    rows = np.array([len(query.positives) for query in search.queries])
    assert rows.max() < 85


def test_a_search_in_which_nothing_can_be_found_is_refused(tmp_path):
    query = InstanceQuery("q", "a", (0, 0, 1, 1), ("b", "gone"), ("b",))
    database = ImageSet("x", (), ("a", "b"), [None] * 2, (Target.empty(),) * 2)
    for changed in (query, replace(query, positives=("gone",), junk=())):
        with pytest.raises(ValueError, match="x: no positive picture of any query is in the data"):
            BoxQuerySet("x", database, (changed,))
    assert BoxQuerySet("x", database, (query, replace(query, junk=())))
