import numpy as np
import pytest

from regionhash.data import open_dataset
from regionhash.data.image_set import ImageSet
from regionhash.data.object_queries import draw_queries, frequent_combinations, hold_out
from regionhash.structures import Target


def _set(*labels):
    """Pictures with one box, 10 pixels wide or more, for each label."""
    targets = []
    for row in labels:
        boxes = [[0, 0, 10 + n, 10] for n in range(len(row))]
        targets.append(
            Target(
                np.array(boxes, np.float32).reshape(-1, 4),
                np.array(row, np.int64),
                np.zeros(len(row), bool),
            )
        )
    ids = tuple(f"{n}" for n in range(len(labels)))
    return ImageSet(
        "set", ("a", "b", "c"), ids, [np.zeros((20, 20, 3), np.uint8)] * len(ids), tuple(targets)
    )


def test_a_marked_object_is_the_largest_of_its_class_in_a_picture_of_its_own():
    image_set = _set([0, 0, 1], [1], [2])
    (query,) = draw_queries(image_set, (0,), 5, marked=True, seed=0)
    assert query.objects[0].row == 0 and query.objects[0].box.tolist() == [0, 0, 11, 10]
    for query in draw_queries(image_set, (0, 1), 8, marked=True, seed=0):
        assert query.labels == (0, 1) and len(query.objects) == 2
        labels = [
            image_set.targets[box.row]
            .labels[(image_set.targets[box.row].boxes == box.box).all(axis=1)]
            .tolist()
            for box in query.objects
        ]
        assert sorted(label for row in labels for label in row) == [0, 1]


def test_unmarked_pictures_show_the_whole_combination_and_nothing_else():
    image_set = _set([0], [1], [0, 1], [0, 2], [])
    table = image_set.labels()
    queries = draw_queries(image_set, (0, 1), 30, marked=False, seed=0)
    assert len(queries) == 30
    for query in queries:
        shown = table[[box.row for box in query.objects]]
        assert shown.any(axis=0).tolist() == [True, True, False]
        assert all(box.box is None for box in query.objects)
    assert {len(query.objects) for query in queries} == {1, 2}


def test_the_draw_of_a_combination_depends_on_the_seed_alone():
    image_set = open_dataset("digits:test:40")

    def draw(seed):
        queries = draw_queries(image_set, (1, 3), 6, marked=True, seed=seed)
        return [[box.row for box in query.objects] for query in queries]

    assert draw(0) == draw(0) != draw(1)


def test_a_class_without_a_picture_has_no_query():
    assert draw_queries(_set([0], [1]), (0, 2), 5, marked=True, seed=0) == []
    assert draw_queries(_set([0, 1]), (0,), 5, marked=False, seed=0) == []  # shows b as well


def test_frequent_combinations_are_counted_by_pictures():
    labels = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 0, 0]], np.uint8)
    assert frequent_combinations(labels, least=2) == [(0, 1), (1, 2)]
    assert frequent_combinations(labels, least=1) == [(0, 1), (1, 2), (0, 2), (0, 1, 2)]
    assert frequent_combinations(labels, least=3) == []


def test_holding_out_takes_so_many_of_each_class_and_leaves_one():
    image_set = open_dataset("digits:train:60")
    rest, held = hold_out(image_set, 2, seed=0)
    assert not set(rest.ids) & set(held.ids) and len(rest) + len(held) == 60
    assert len(held) == 2 * 10 and (held.labels().sum(0) >= 2).all()
    rest, held = hold_out(_set([0], [1], [1]), 5, seed=0)
    assert rest.labels().sum(0).tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="per_class must be at least 1, got 0"):
        hold_out(image_set, 0, seed=0)
