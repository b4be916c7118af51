"""The records refuse what does not fit together, and need no torch."""

import numpy as np
import pytest

from regionhash.structures import (
    CategoryCodes,
    CodeTable,
    EncodedImage,
    Match,
    Regions,
    Target,
    renamed,
)


def regions(n=2, n_bytes=8):
    return Regions(
        boxes=np.arange(4 * n, dtype=np.float32).reshape(n, 4),
        scores=np.linspace(1, 0, n, dtype=np.float32),
        labels=np.arange(n, dtype=np.int64),
        codes=np.zeros((n, n_bytes), np.uint8),
    )


def table(**changes):
    """Three pictures with two, no and one region."""
    chosen = regions(3)
    fields = {
        "ids": ["a", "b", "c"],
        "sizes": np.ones((3, 2), np.int32),
        "offsets": np.array([0, 2, 2, 3]),
        "boxes": chosen.boxes,
        "scores": chosen.scores,
        "labels": chosen.labels,
        "region_codes": chosen.codes,
    }
    return CodeTable(**(fields | changes))


def test_labels_of_a_picture_are_sorted_and_leave_out_difficult_objects():
    target = Target(
        boxes=np.zeros((3, 4), np.float32),
        labels=np.array([7, 3, 5]),
        difficult=np.array([False, True, False]),
        image_labels=(1, 7),
    )
    assert target.all_labels() == (1, 5, 7)
    assert target.all_labels(with_difficult=True) == (1, 3, 5, 7)
    assert Target.empty([4]).all_labels() == (4,)


def test_boxes_of_another_shape_or_type_are_refused():
    empty = Target.empty()
    with pytest.raises(ValueError, match=r"boxes must be \(\*, 4\), got \(4,\)"):
        Target(np.zeros(4, np.float32), empty.labels, empty.difficult)
    with pytest.raises(ValueError, match="boxes must be float32, got float64"):
        Target(np.zeros((0, 4)), empty.labels, empty.difficult)
    with pytest.raises(ValueError, match=r"labels must be \(0\), got \(1,\)"):
        Target(empty.boxes, np.zeros(1, np.int64), empty.difficult)


def test_regions_and_categories_must_have_one_row_each():
    good = regions(2)
    with pytest.raises(ValueError, match=r"scores must be \(2\), got \(1,\)"):
        Regions(good.boxes, good.scores[:1], good.labels, good.codes)
    with pytest.raises(ValueError, match="codes must be uint8, got bool"):
        Regions(good.boxes, good.scores, good.labels, good.codes.astype(bool))
    with pytest.raises(ValueError, match=r"probs must be \(2\), got \(1,\)"):
        CategoryCodes(good.labels, good.scores[:1], good.codes)
    assert len(good) == 2
    assert len(regions(0)) == 0


def test_an_image_code_is_flat_and_packed():
    with pytest.raises(ValueError, match=r"image_code must be \(\*\), got \(1, 8\)"):
        EncodedImage((10, 20), image_code=np.zeros((1, 8), np.uint8))
    with pytest.raises(ValueError, match="class_probs must be float32, got float64"):
        EncodedImage((10, 20), class_probs=np.zeros(3))


def test_a_table_gives_the_regions_of_each_picture():
    codes = table()
    assert len(codes) == 3
    assert [codes.regions(n).labels.tolist() for n in range(3)] == [[0, 1], [], [2]]
    assert codes.regions(2).boxes.tolist() == [[8, 9, 10, 11]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ["a"]}, r"sizes must be \(1, 2\), got \(3, 2\)"),
        ({"image_codes": np.zeros((2, 8), np.uint8)}, r"image_codes must be \(3, \*\)"),
        ({"image_codes": np.zeros((3, 8), bool)}, "image_codes must be uint8, got bool"),
        ({"offsets": None}, "boxes needs offsets"),
        ({"scores": None}, "offsets needs scores"),
        ({"offsets": np.array([0, 3])}, r"offsets must be \(4\)"),
        ({"offsets": np.array([0, 2, 1, 3])}, "offsets must start at 0 and never fall"),
        ({"offsets": np.array([1, 2, 2, 3])}, "offsets must start at 0 and never fall"),
        ({"offsets": np.array([0, 2, 2, 4])}, "boxes must have 4 rows, got 3"),
        ({"category_offsets": np.zeros(4, np.int64)}, "category_offsets needs categories"),
    ],
)
def test_a_table_whose_parts_do_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**changes)


def test_a_table_without_regions_says_so():
    with pytest.raises(ValueError, match="these codes have no regions"):
        CodeTable(ids=["a"], sizes=np.ones((1, 2), np.int32)).regions(0)


def whole_table():
    """Four pictures with 2, 0, 3 and 1 regions and 1, 2, 0 and 1 categories."""
    rng = np.random.default_rng(0)
    offsets, bounds = np.array([0, 2, 2, 5, 6]), np.array([0, 1, 3, 3, 4])
    return CodeTable(
        ids=list("abcd"),
        sizes=np.arange(8, dtype=np.int32).reshape(4, 2),
        classes=("x", "y"),
        image_codes=rng.integers(0, 256, (4, 3), dtype=np.uint8),
        class_probs=rng.random((4, 2), np.float32),
        offsets=offsets,
        boxes=rng.random((6, 4), np.float32),
        scores=rng.random(6, np.float32),
        labels=np.arange(6),
        region_codes=rng.integers(0, 256, (6, 2), dtype=np.uint8),
        category_offsets=bounds,
        categories=np.arange(4),
        category_probs=rng.random(4, np.float32),
        category_codes=rng.integers(0, 256, (4, 1), dtype=np.uint8),
    )


def content_of(picture):
    regions, categories = picture.regions, picture.categories
    parts = [picture.size, picture.image_code, picture.class_probs]
    parts += [regions.boxes, regions.scores, regions.labels, regions.codes]
    parts += [categories.categories, categories.probs, categories.codes]
    return [np.asarray(part).tolist() for part in parts]


def test_a_picture_of_a_table_has_all_its_parts_and_no_others():
    table = whole_table()
    assert content_of(table.picture(2)) == [
        [4, 5],
        table.image_codes[2].tolist(),
        table.class_probs[2].tolist(),
        table.boxes[2:5].tolist(),
        table.scores[2:5].tolist(),
        [2, 3, 4],
        table.region_codes[2:5].tolist(),
        [],
        [],
        [],
    ]


@pytest.mark.parametrize("rows", [[2, 0], [1], [3, 1, 2], [], [0, 1, 2, 3]])
def test_some_pictures_of_a_table_are_taken_whole_and_in_their_order(rows):
    table = whole_table()
    taken = table.take(np.array(rows, np.int64))
    assert list(taken.ids) == [table.ids[row] for row in rows]
    assert taken.classes == table.classes
    assert [content_of(taken.picture(n)) for n in range(len(rows))] == [
        content_of(table.picture(row)) for row in rows
    ]


def test_parts_that_a_table_lacks_are_not_in_its_pictures_nor_taken():
    bare = CodeTable(ids=["a", "b"], sizes=np.ones((2, 2), np.int32))
    picture = bare.take(np.array([1])).picture(0)
    assert (picture.image_code, picture.class_probs) == (None, None)
    assert (picture.regions, picture.categories) == (None, None)


def test_an_older_name_is_taken_but_not_together_with_the_newer_one():
    @renamed(among="mask")
    def search(*, mask=None):
        return mask

    assert search(among=1) == search(mask=1) == 1
    with pytest.raises(TypeError, match="search: among is an older name of mask"):
        search(among=1, mask=2)


@pytest.mark.parametrize(
    ("label", "score", "shown"),
    [(-1, 1.0, None), (-1, 0.75, 0.75), (0, 1.0, 1.0), (3, 0.0, 0.0), (-1, 0.0, 0.0)],
)
def test_a_score_of_1_without_a_class_means_nothing(label, score, shown):
    regions = Regions(
        np.float32([[1, 2, 3, 4]]),
        np.float32([score]),
        np.array([label]),
        np.zeros((1, 1), np.uint8),
    )
    assert regions.match(0, 5) == Match((1, 2, 3, 4), 5, label, shown)
