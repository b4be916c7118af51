"""Showing an answer."""

from pathlib import Path

import numpy as np
import pytest

from regionhash.search import answer as module
from regionhash.search.answer import distance_text, write_answer
from regionhash.search.run import Answer, QueryPicture
from regionhash.search.sheet import Tile, write_sheet
from regionhash.store import CodeSet
from regionhash.structures import CategoryHits, CodeTable, Hit, Match

BOX = (1.0, 2.0, 3.0, 4.0)
PICTURE = np.full((4, 6, 3), 9, np.uint8)


def test_the_distance_of_several_objects_is_shown_with_its_parts():
    matches = tuple(Match(BOX, distance, 0, 0.5) for distance in (5, 7))
    assert distance_text(Hit(0, "a", 12, matches)) == "12 = 5 + 7"
    assert distance_text(Hit(0, "a", 5, matches[:1])) == "5"
    assert distance_text(Hit(0, "a", 3)) == "3"


@pytest.fixture
def tiles_of(monkeypatch):
    """Gives the results of a sheet instead of writing it."""

    def tiles_of(*, hits=(), groups=(), offset=0, wanted=(), find_picture=lambda _: PICTURE):
        table = CodeTable(
            ["a", "b"],
            np.full((2, 2), 4, np.int32),
            ("cat", "dog"),
            offsets=np.array([0, 2, 2]),
            boxes=np.float32([[0, 0, 3, 4], [3, 0, 6, 4]]),
            scores=np.float32([0.8, 0.9]),
            labels=np.array([0, 1]),
            region_codes=np.zeros((2, 1), np.uint8),
        )
        labels = np.array([[1, 0], [1, 1]], np.uint8)
        codes = CodeSet(Path("codes.h5"), table, "tiny", "abc", 8, 8, {}, labels)
        query = QueryPicture("query", PICTURE)
        answer = Answer("image", codes, (query,), hits, groups, (), (), offset, False, 2)
        written = []
        monkeypatch.setattr(
            module, "write_sheet", lambda path, queries, results, *, title: written.extend(results)
        )
        write_answer("sheet.html", answer, find_picture, title="found", wanted=wanted)
        return written

    return tiles_of


def test_results_of_a_later_page_are_numbered_from_its_offset(tiles_of):
    hits = (Hit(0, "a", 3), Hit(1, "b", 5))
    tiles = tiles_of(hits=hits, groups=(CategoryHits(1, 0.75, hits),), offset=20)
    assert [tile.caption for tile in tiles] == ["21. a\ndistance 3", "22. b\ndistance 5"] * 2
    assert [tile.heading for tile in tiles] == ["", "", "dog, probability 0.75", ""]


def test_a_result_is_right_if_it_shows_all_that_was_wanted(tiles_of):
    hits = (Hit(0, "a", 3), Hit(1, "b", 5))
    assert [tile.good for tile in tiles_of(hits=hits, wanted=[0, 1])] == [False, True]
    assert [tile.good for tile in tiles_of(hits=hits, wanted=[0])] == [True, True]
    assert [tile.good for tile in tiles_of(hits=hits)] == [None, None]
    groups = (CategoryHits(1, 0.75, hits),)
    assert [tile.good for tile in tiles_of(groups=groups)] == [False, True]


def test_a_picture_that_is_gone_or_removed_has_a_tile_that_says_so(tiles_of):
    def find_picture(name):
        raise KeyError(name)

    (tile,) = tiles_of(hits=(Hit(0, "a", 3),), find_picture=find_picture)
    assert tile.caption == "1. a\ndistance 3, picture not found"


def test_the_saliency_of_a_category_is_that_of_its_own_regions(tiles_of):
    (tile,) = tiles_of(groups=(CategoryHits(1, 0.75, (Hit(0, "a", 3),)),))
    np.testing.assert_array_equal(tile.image[:, :6], PICTURE)
    saliency = np.zeros((4, 6), np.uint8)
    saliency[:, 3:] = 255
    np.testing.assert_array_equal(tile.image[:, 6:, 0], saliency)


def test_an_object_without_a_region_has_no_box_on_the_sheet(tmp_path):
    tile = Tile(PICTURE, [None, BOX], "found")
    query = Tile(PICTURE, [BOX, BOX], "query")
    write_sheet(tmp_path / "sheet.html", [query], [tile], title="found")
    html = (tmp_path / "sheet.html").read_text()
    (own,) = html.split('aria-label="results"')[1:]
    assert (
        own.count("<rect") == 2 and "#38b6ff" in own and "#ffb000" not in own
    )  # the second colour
    write_sheet(tmp_path / "sheet.png", [query], [tile], title="found")
