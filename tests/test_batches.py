import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regionhash.data.batches import batches_of_one_shape, shuffled_batches

SHAPES = ((3, 1, 1), (3, 1, 2), (3, 2, 1))


def items(shapes):
    return [(n, torch.zeros(SHAPES[shape])) for n, shape in enumerate(shapes)]


def image_of(item):
    return item[1]


def numbers(batch):
    return [n for n, _ in batch]


def test_batches_of_one_shape_are_filled_in_order():
    batches = batches_of_one_shape(items([0, 1, 0, 1, 0]), image_of, 2)
    assert [numbers(batch) for batch in batches] == [[0, 2], [1, 3], [4]]


@given(shapes=st.lists(st.integers(0, 2), max_size=60), size=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_every_item_is_in_one_batch_of_its_own_shape(shapes, size):
    batches = list(batches_of_one_shape(items(shapes), image_of, size))
    assert sorted(n for batch in batches for n in numbers(batch)) == list(range(len(shapes)))
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert len({image.shape for _, image in batch}) == 1


def test_no_more_than_eight_batches_of_items_wait():
    # Every item has its own shape, so that no batch fills.
    drawn = []

    def endless():
        for n in range(1000):
            drawn.append(n)
            yield n, torch.zeros(3, 1, 1 + n)

    batches = batches_of_one_shape(endless(), image_of, 2)
    next(batches)
    assert len(drawn) == 17


def test_nothing_gives_no_batch():
    assert list(batches_of_one_shape([], image_of, 2)) == []
    assert list(shuffled_batches([], image_of, 2, np.random.default_rng(0))) == []


@given(shapes=st.lists(st.integers(0, 2), max_size=40), size=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_shuffled_batches_hold_every_item_once(shapes, size):
    batches = list(shuffled_batches(items(shapes), image_of, size, np.random.default_rng(0)))
    assert sorted(n for batch in batches for n in numbers(batch)) == list(range(len(shapes)))
    assert all(1 <= len(batch) <= size for batch in batches)


def test_shuffled_batches_hold_items_of_like_aspect_in_the_generators_order():
    def first_numbers(seed):
        rng = np.random.default_rng(seed)
        return [numbers(batch) for batch in shuffled_batches(items([0, 1] * 4), image_of, 2, rng)]

    batches = first_numbers(0)
    assert all(len({n % 2 for n in batch}) == 1 for batch in batches)
    assert first_numbers(0) == batches
    assert any(first_numbers(seed) != batches for seed in range(1, 10))
