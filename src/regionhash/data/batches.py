"""Batches of pictures of similar shapes, so that they need little or no padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")


def batches_of_one_shape(
    items: Iterable[Item], image_of: Callable[[Item], Any], size: int
) -> Iterator[list[Item]]:
    """Batches of at most `size` items whose images (3, h, w) have the same shape.

    So a model's output for a picture does not depend on the rest of its batch. At most 8 * `size`
    items wait at a time; beyond that the fullest batch is yielded as it is.
    """
    waiting: dict[tuple[int, ...], list[Item]] = {}
    n_waiting = 0
    for item in items:
        shape = tuple(image_of(item).shape)
        batch = waiting.setdefault(shape, [])
        batch.append(item)
        n_waiting += 1
        if len(batch) < size and n_waiting > 8 * size:
            shape = max(waiting, key=lambda key: len(waiting[key]))
            batch = waiting[shape]
        if len(batch) == size or n_waiting > 8 * size:
            yield waiting.pop(shape)
            n_waiting -= len(batch)
    yield from waiting.values()


def shuffled_batches(
    items: Iterable[Item],
    image_of: Callable[[Item], Any],
    size: int,
    rng: np.random.Generator,
) -> Iterator[list[Item]]:
    """Batches of `size` items of similar aspect in random order, for training.

    Every 4 * `size` items are sorted by aspect, cut into batches, and the batches shuffled.
    """
    pool: list[Item] = []
    for item in items:
        pool.append(item)
        if len(pool) == 4 * size:
            yield from _shuffled(pool, image_of, size, rng)
            pool = []
    yield from _shuffled(pool, image_of, size, rng)


def _shuffled(
    pool: list[Item], image_of: Callable[[Item], Any], size: int, rng: np.random.Generator
) -> Iterator[list[Item]]:
    pool.sort(key=lambda item: image_of(item).shape[1] / image_of(item).shape[2])
    batches = [pool[first : first + size] for first in range(0, len(pool), size)]
    for index in rng.permutation(len(batches)):
        yield batches[index]
