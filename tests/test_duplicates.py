"""Near-duplicates share a place in the ranking."""

import numpy as np

from regionhash.search.duplicates import fold_duplicates
from regionhash.structures import CodeTable, Hit


def table_of(image_codes=None, regions=None):
    """A table of codes of one byte: of whole pictures, of regions (a list per picture), or both."""
    n = len(image_codes if regions is None else regions)
    parts = {}
    if image_codes is not None:
        parts["image_codes"] = np.array(image_codes, np.uint8)[:, None]
    if regions is not None:
        codes = np.array([code for picture in regions for code in picture], np.uint8)[:, None]
        parts |= {
            "offsets": np.cumsum([0, *map(len, regions)]),
            "boxes": np.zeros((len(codes), 4), np.float32),
            "scores": np.ones(len(codes), np.float32),
            "labels": np.zeros(len(codes), np.int64),
            "region_codes": codes,
        }
    return CodeTable([f"{n}.jpg" for n in range(n)], np.ones((n, 2), np.int32), **parts)


def folded(table, bits):
    """Rows of the hits, each with the rows of its duplicates; the ranking is that of the table."""
    hits = [Hit(n, table.ids[n], n) for n in range(len(table))]
    return [
        [hit.index, *(other.index for other in hit.duplicates)]
        for hit in fold_duplicates(hits, table, bits)
    ]


def test_codes_may_differ_in_as_many_bits_as_are_allowed_and_no_more():
    table = table_of([0b0, 0b11, 0b111])
    assert folded(table, 1) == [[0], [1, 2]]
    assert folded(table, 2) == [[0, 1], [2]]
    assert folded(table, 3) == [[0, 1, 2]]


def test_a_picture_is_compared_with_the_best_of_a_group_alone():
    assert folded(table_of([0b0, 0b1, 0b11]), 1) == [[0, 1], [2]]


def test_each_region_of_either_needs_one_like_it_in_the_other():
    assert folded(table_of(regions=[[0], [0, 255]]), 1) == [[0], [1]]
    assert folded(table_of(regions=[[0, 255], [0]]), 1) == [[0], [1]]
    assert folded(table_of(regions=[[0, 255], [255, 1]]), 1) == [[0, 1]]


def test_pictures_without_regions_are_alike_and_like_no_other():
    assert folded(table_of(regions=[[], [0], []]), 8) == [[0, 2], [1]]


def test_image_codes_and_regions_must_both_be_alike():
    assert folded(table_of([0, 255], [[0], [0]]), 1) == [[0], [1]]
    assert folded(table_of([0, 0], [[0], [255]]), 1) == [[0], [1]]
