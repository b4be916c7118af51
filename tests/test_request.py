"""A search as it is asked for: what it means, and what it cannot be."""

import numpy as np
import pytest

from regionhash.search.request import Filter, Query, RequestError, Search
from regionhash.search.run import marked

BOX = (1.0, 2.0, 3.0, 4.0)
IMAGE = np.zeros((5, 5, 3), np.uint8)


def query(*boxes):
    return Query(IMAGE, boxes=boxes)


@pytest.mark.parametrize(
    ("queries", "options", "mode"),
    [
        ([query()], {}, "image"),
        ([query(BOX)], {}, "region"),
        ([Query(image_id="a", regions=[3])], {}, "region"),
        ([query(BOX, BOX)], {}, "objects"),
        ([Query(image_id="a", regions=[3, 1])], {}, "objects"),
        ([query(), query()], {}, "objects"),
        ([query(BOX), query()], {}, "objects"),
        ([query()], {"steps": ["exact"]}, "region"),
        ([query()], {"exclude": [query(BOX)]}, "objects"),
        ([query(BOX)], {"mode": "objects"}, "objects"),
    ],
)
def test_pictures_and_marks_ask_for_a_mode(queries, options, mode):
    assert Search(queries, **options).mode_for(whole_pictures=True) == mode


def test_without_codes_of_pictures_one_picture_asks_for_its_objects():
    assert Search([query()]).mode_for(whole_pictures=False) == "objects"


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        ([], {}, "nothing to search by"),
        ([query()], {"mode": "colour"}, "mode must be one of image, region, objects, category"),
        ([query()], {"limit": 0}, "limit must be at least 1, got 0"),
        ([query()], {"offset": -1}, "offset must be at least 0, got -1"),
        ([query()], {"group_within": -1}, "group_within must be at least 0, got -1"),
        (
            [query()],
            {"steps": ["global", "local"], "candidates": 0},
            "candidates must be at least 1",
        ),
        ([query()], {"steps": ["global", "global-expand"], "expand": 0}, "expand must be at least"),
        ([query(BOX, BOX)], {"assignment": "own"}, "assignment must be one of distinct, shared"),
        (
            [query(BOX)],
            {"assignment": "shared"},
            "assignment needs mode objects, got mode region",
        ),
        (
            [query()],
            {"assignment": "shared", "mode": "image"},
            "assignment needs mode objects, got mode image",
        ),
        ([query()], {"max_distance": 3}, "max_distance needs objects to exclude"),
        ([query()], {"exclude": [query()], "max_distance": -1}, "max_distance must be at least 0"),
        (
            [query()],
            {"mode": "category", "min_prob": 1.5},
            r"min_prob must be in \[0, 1\], got 1.5",
        ),
        ([query()], {"mode": "category", "min_prob": np.nan}, r"min_prob must be in \[0, 1\]"),
        ([query()], {"min_prob": 0.5}, "min_prob needs mode category, got mode image"),
        ([query()], {"exclude": [query()], "mode": "image"}, "exclude needs mode objects"),
        ([query()], {"exclude": [query()], "steps": ["exact"]}, "exclude needs mode objects"),
        ([query(BOX, BOX)], {"steps": ["exact"], "mode": "objects"}, "steps need a search for one"),
        ([query(), query()], {"steps": ["exact"]}, "steps need a search for one"),
        ([query()], {"steps": ["sideways"]}, "unknown step 'sideways'"),
        ([query()], {"steps": ["local"]}, "steps must begin with exact or global"),
        ([query()], {"steps": ["exact"], "candidates": 5}, "candidates needs several steps"),
        (
            [query()],
            {"steps": ["global", "local"], "expand": 2},
            "expand needs a step that expands",
        ),
        ([query(BOX)], {"mode": "image"}, "mode image takes one whole picture, got 1 pictures and"),
        ([query(), query()], {"mode": "category"}, "mode category takes one whole picture, got 2"),
        (
            [query(BOX, BOX)],
            {"steps": ["exact"]},
            "steps take one picture with at most one box, got 1 pictures and 2 boxes",
        ),
        (
            [query()],
            {"mode": "category", "min_prob": 1.5},
            r"min_prob must be in \[0, 1\], got 1.5",
        ),
        ([query()], {"mode": "category", "min_prob": -1}, r"min_prob must be in \[0, 1\], got -1"),
        ([query(BOX, BOX)], {"mode": "region"}, "mode region takes one picture with at most one"),
        ([Query(image_id="a", regions=[0, 1])], {"mode": "region"}, "got 1 pictures and 2 boxes"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_read(queries, options, message):
    with pytest.raises(ValueError, match=message):
        Search(queries, **options)


def test_a_refusal_names_its_field_so_that_others_can_name_it_their_way():
    with pytest.raises(RequestError) as caught:
        Search([query()], limit=0)
    assert (caught.value.field, caught.value.reason) == ("limit", "must be at least 1, got 0")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "one of an image, the id"),
        ({"image": IMAGE, "image_id": "a"}, "one of an image, the id"),
        ({"image": IMAGE, "regions": [0]}, "regions need a picture whose codes are known"),
        ({"image_id": "a", "regions": [0], "boxes": [BOX]}, "and exclude boxes"),
        ({"image": IMAGE, "boxes": [(1, 2, 3)]}, "a box must be four numbers"),
    ],
)
def test_a_query_is_one_picture_with_one_kind_of_marks(fields, message):
    with pytest.raises(ValueError, match=message):
        Query(**fields)


def test_marks_may_be_arrays_and_stay_what_they_were_when_checked():
    boxes, regions = np.array([BOX, BOX], np.float32), np.array([0])
    boxed, numbered = Query(IMAGE, boxes=boxes), Query(image_id="a", regions=regions)
    boxes[:], regions[:] = 9, 9
    assert boxed.boxes == (BOX, BOX) and marked("a", IMAGE, boxed, None).boxes == (BOX, BOX)
    assert numbered.regions == (0,) and Search([numbered]).mode_for(whole_pictures=True) == "region"
    with pytest.raises(TypeError):
        Query(image_id="a", regions=[0.5])
    queries = [query(BOX)]
    search = Search(queries, steps=["exact"])
    queries.append(query())
    assert len(search.queries) == 1 and search.steps == ("exact",)


def test_the_older_name_of_an_id_is_taken():
    assert Query(like="a.jpg").image_id == "a.jpg"
    with pytest.raises(TypeError, match="like is an older name of image_id"):
        Query(like="a.jpg", image_id="b.jpg")


KNOWN, REGION = Query(image_id=1), Query(image_id=1, regions=[3])


@pytest.mark.parametrize(
    ("queries", "options", "light"),
    [
        ([KNOWN], {}, True),
        ([REGION], {}, True),
        ([REGION], {"limit": 200, "offset": 800}, True),
        ([REGION], {"filter": Filter(labels=("cat",), after=0.0)}, True),
        ([KNOWN], {"mode": "region"}, True),
        ([REGION], {"limit": 201, "offset": 800}, False),
        ([REGION], {"filter": Filter(folder="a")}, False),
        ([REGION], {"group_within": 0}, False),
        ([REGION], {"context": 0.5}, False),
        ([REGION], {"other_class": 0.5}, False),
        ([REGION], {"steps": ["global", "local"]}, False),
        ([REGION], {"mode": "objects"}, False),
        ([KNOWN], {"mode": "category"}, False),
        ([REGION], {"exclude": [REGION]}, False),
        ([REGION], {"rescore": "floats"}, False),
        ([REGION, REGION], {}, False),
        ([Query(image_id=1, regions=[3, 4])], {}, False),
        ([Query(image_id=1, boxes=[BOX])], {}, False),
        ([Query(text="cat")], {}, False),
        ([Query(IMAGE)], {}, False),
    ],
)
def test_a_search_is_light_if_it_is_one_pass_and_little_else(queries, options, light):
    assert Search(queries, **options).is_light(whole_pictures=True) is light


def test_a_whole_picture_that_stands_for_its_objects_is_not_light():
    assert Search([KNOWN]).is_light(whole_pictures=False) is False
    assert Search([REGION]).is_light(whole_pictures=False) is True
