"""What a collection adds to the hits of a search."""

from pathlib import Path

import numpy as np

from regionhash.collection.arrays import Snapshot
from regionhash.collection.results import results_of, rows_of_hits
from regionhash.search.run import Answer, QueryPicture
from regionhash.store import CodeSet
from regionhash.structures import CategoryHits, CodeTable, Hit

TABLE = CodeTable(
    ["a", "b", "c"],
    np.array([[10, 20], [30, 40], [50, 60]], np.int32),
    ("cat", "dog", "cow"),
    offsets=np.array([0, 2, 3, 3]),
    boxes=np.zeros((3, 4), np.float32),
    scores=np.float32([0.5, 0.49, 0.9]),
    labels=np.array([1, 2, -1]),
    region_codes=np.zeros((3, 1), np.uint8),
)
SNAPSHOT = Snapshot(
    TABLE,
    np.array([4, 7, 9]),
    np.array([1000.0, np.nan, 3.0]),
    np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1]], np.uint8),
    None,
    (9, 0),
    "g",
)
BOX = (1.0, 2.0, 3.0, 4.0)


def answer_of(hits=(), groups=(), *, more=False):
    codes = CodeSet(Path("collection.db"), TABLE, "tiny", "abc", 8, 8, {}, None)
    query, excluded = QueryPicture("q", None, (BOX,)), QueryPicture("e", None, (BOX, BOX))
    return Answer("image", codes, (query,), hits, groups, (excluded,), ("exact",), 20, more, 3)


def test_a_result_has_what_is_known_of_its_picture():
    hits = (Hit(0, "a", 3), Hit(1, "b", 4), Hit(2, "c", 5))
    results = results_of(answer_of(hits), SNAPSHOT, {4: Path("/a.jpg")})
    assert [(hit.id, hit.row, hit.path) for hit in results.hits] == [
        ("a", 4, Path("/a.jpg")),
        ("b", 7, None),
        ("c", 9, None),
    ]
    assert [(hit.size, hit.distance, hit.taken) for hit in results.hits] == [
        ((10, 20), 3, 1000.0),
        ((30, 40), 4, None),
        ((50, 60), 5, 3.0),
    ]
    # Known labels, and detections of at least half; a region of no class has no name.
    assert [hit.classes for hit in results.hits] == [("cat", "dog"), (), ("cow",)]


def test_a_page_has_what_the_answer_says_of_it():
    for more in (True, False):
        results = results_of(answer_of(more=more), SNAPSHOT, {})
        assert (results.mode, results.steps, results.hits) == ("image", ("exact",), ())
        assert (results.offset, results.more, results.searched) == (20, more, 3)
        assert (results.boxes, results.without) == (((BOX,),), ((BOX, BOX),))


def test_duplicates_and_groups_are_pictures_of_the_collection_too():
    folded = Hit(0, "a", 3, duplicates=(Hit(1, "b", 4),))
    paths = {4: Path("/a.jpg"), 7: Path("/b.jpg"), 9: Path("/c.jpg")}
    answer = answer_of((folded,))
    assert sorted(rows_of_hits(answer, SNAPSHOT)) == [4, 7]
    (first,) = results_of(answer, SNAPSHOT, paths).hits
    assert [(hit.id, hit.path) for hit in first.duplicates] == [("b", Path("/b.jpg"))]
    answer = answer_of(groups=(CategoryHits(2, 0.5, (folded, Hit(2, "c", 5))),))
    assert sorted(rows_of_hits(answer, SNAPSHOT)) == [4, 7, 9]
    (group,) = results_of(answer, SNAPSHOT, paths).groups
    assert (group.category, group.prob, [hit.id for hit in group.hits]) == ("cow", 0.5, ["a", "c"])
    assert group.hits[0].duplicates[0].path == Path("/b.jpg")
    assert rows_of_hits(answer_of(), SNAPSHOT) == []
