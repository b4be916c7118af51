import numpy as np
import pytest

from regionhash.evaluation.categories import CategoryScores, CategorySide, category_precision
from regionhash.search import search_categories
from regionhash.structures import CategoryCodes, CodeTable


def _side(codes, found, labels):
    return CategorySide(
        np.array(codes, np.uint8)[..., None], np.array(found, bool), np.array(labels, np.uint8)
    )


def test_what_is_not_in_a_table_is_never_found_but_counts_as_relevant():
    queries = _side([[0], [0]], [[True], [False]], [[1], [1]])
    codes, found, labels = [[0], [1], [3], [0]], [[1], [1], [1], [0]], [[1], [0], [1], [1]]
    scores = category_precision(queries, _side(codes, found, labels))
    # At distances 0, 1, 2 stand a right, a wrong and a right one; the third right one is not there.
    assert scores.values.tolist() == pytest.approx([(1 / 1 + 2 / 3) / 3, 0])
    assert scores.per_category(1).tolist() == pytest.approx([(1 + 2 / 3) / 6])


def test_ties_count_as_the_mean_over_their_orders():
    queries = _side([[0]], [[True]], [[1]])
    database = _side([[7], [7]], [[True], [True]], [[1], [0]])
    assert category_precision(queries, database).values.tolist() == pytest.approx([0.75])


def test_a_category_without_queries_or_pictures_is_lossless():
    queries = _side([[0, 0, 0]], [[True] * 3], [[1, 0, 1]])
    database = _side([[0, 0, 0]], [[True, True, False]], [[1, 1, 0]])
    scores = category_precision(queries, database)
    assert scores.categories.tolist() == [0, 2] and scores.values.tolist() == [1, 0]
    np.testing.assert_array_equal(scores.per_category(3), [1, np.nan, 0])
    assert scores.mean() == 0.5
    assert np.isnan(CategoryScores(np.zeros(0), np.zeros(0, np.int64)).mean())


def test_sides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"codes must be \(N, C, B\)"):
        CategorySide(np.zeros((2, 1), np.uint8), np.ones((2, 1), bool), np.ones((2, 1), int))
    with pytest.raises(ValueError, match="labels must be"):
        CategorySide(np.zeros((2, 1, 1), np.uint8), np.ones((2, 1), bool), np.ones((1, 1), int))


def _table():
    """Four pictures; the third has no category."""
    return CodeTable(
        ids=["a", "b", "c", "d"],
        sizes=np.full((4, 2), 10, np.int32),
        classes=("cat", "dog", "cow"),
        category_offsets=np.array([0, 2, 3, 3, 5]),
        categories=np.array([0, 1, 1, 0, 1]),
        category_probs=np.array([0.9, 0.3, 0.6, 0.25, 0.7], np.float32),
        category_codes=np.array([[0b1111], [0b0001], [0b0011], [0b0111], [0b0001]], np.uint8),
    )


def _query(*categories):
    index, probs, codes = zip(*categories, strict=True) if categories else ((), (), ())
    return CategoryCodes(
        np.array(index, np.int64),
        np.array(probs, np.float32),
        np.array(codes, np.uint8).reshape(-1, 1),
    )


def test_each_category_is_searched_in_its_own_table():
    dog, cat = search_categories(_query((0, 0.3, 0b1111), (1, 0.6, 0b0001)), _table())
    assert (dog.category, cat.category) == (1, 0)  # the most probable first
    assert dog.prob == pytest.approx(0.6)
    assert [(hit.image_id, hit.distance) for hit in dog.hits] == [("a", 0), ("d", 0), ("b", 1)]
    assert [(hit.index, hit.distance) for hit in cat.hits] == [(0, 0), (3, 1)]
    (only,) = search_categories(_query((1, 0.6, 0)), _table(), top=1)
    assert [hit.image_id for hit in only.hits] == ["a"]


def test_the_least_probability_holds_in_query_and_pictures():
    query = _query((0, 0.3, 0b1111), (1, 0.6, 0b0001))
    (dog,) = search_categories(query, _table(), min_prob=0.5)
    assert [hit.image_id for hit in dog.hits] == ["d", "b"]
    assert search_categories(query, _table(), min_prob=1.0) == []


def test_only_the_pictures_that_are_asked_for_are_searched():
    among = np.array([False, True, True, True])
    dog, cat = search_categories(
        _query((0, 0.3, 0b1111), (1, 0.6, 0b0001)), _table(), top=1, among=among
    )
    assert [hit.image_id for hit in dog.hits] == [hit.image_id for hit in cat.hits] == ["d"]


def test_a_category_that_no_picture_has_is_told_without_hits():
    (cow,) = search_categories(_query((2, 0.5, 0)), _table())
    assert cow.hits == ()
    assert search_categories(_query(), _table()) == []


def test_tables_without_categories_and_bad_probabilities_are_refused():
    bare = CodeTable(ids=["a"], sizes=np.zeros((1, 2), np.int32))
    for query in (_query(), _query((0, 0.5, 0))):
        with pytest.raises(ValueError, match="no codes of categories"):
            search_categories(query, bare)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 2"):
        search_categories(_query(), _table(), min_prob=2)
