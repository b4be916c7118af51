"""Which region stands for which object of a query, if different objects need different regions.

The distance of a picture is the least sum of Hamming distances over all ways to give each object a
region of its own, or none: an object without a region costs all bits. Regions that show the same
object twice (`same_objects`) are never given to two objects that must be apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regionhash.structures import Floats, Ints, Mask

SAME_IOU = 0.5
"""Overlap of boxes of the same object, the usual threshold of a correct detection (VOC)."""

SAME_SHARE = 0.8
"""Share of the smaller box inside the larger one, from which boxes of one class show one object."""

_FREE_STEPS = 50
"""Steps of one picture's assignment that are always allowed; real pictures take a handful."""

_MOST_STEPS = 100_000
"""Steps beyond these, in all pictures of a search; they take a few seconds."""

_MOST_PAIRS = 15
"""Pairs of objects up to which the bounds of all pairs are computed: six objects."""

Distances = NDArray[np.int32]


class Steps:
    """What a search may spend on pictures in which many objects are in conflict."""

    def __init__(self) -> None:
        self._left = _MOST_STEPS

    def take(self) -> None:
        """Counts one. Raises ValueError when all are spent."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(
                "too many objects compete for the same regions to give each one of its own; "
                "search for fewer objects, or let them share regions"
            )


def same_objects(boxes: Floats, labels: Ints) -> Mask:
    """Which regions show the same object: (..., R, R) bool, symmetric.

    Boxes do so whose intersection is at least half of their union, and boxes of one class of which
    the smaller lies in the larger by at least four fifths. Boxes of different classes may be
    nested: a cup is not the table it stands on. Every region is the same as itself.

    Args:
        boxes: (..., R, 4) float32, xyxy; without area they overlap nothing.
        labels: (..., R) int64, class indices; -1 is a class here.
    """
    boxes = boxes.astype(np.float64)  # areas of large boxes do not fit a float32
    low = np.maximum(boxes[..., :, None, :2], boxes[..., None, :, :2])
    high = np.minimum(boxes[..., :, None, 2:], boxes[..., None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)  # (..., R, R)
    areas = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1)  # (..., R)
    first, second = areas[..., :, None], areas[..., None, :]
    nested = shared >= SAME_SHARE * np.minimum(first, second)
    nested &= labels[..., :, None] == labels[..., None, :]
    same: Mask = (shared > 0) & (nested | (shared >= SAME_IOU * (first + second - shared)))
    return same | np.eye(boxes.shape[-2], dtype=bool)


def assign(distances: Distances, apart: Mask, same: Mask, n_bits: int, steps: Steps) -> list[int]:
    """The region of each of Q objects, -1 for none, with the least sum of distances.

    Of several ways with that sum, the one whose first object has the earliest region, then the
    second, and so on; no region comes last.

    Args:
        distances: (Q, R), at most `n_bits`.
        apart: (Q, Q) bool, symmetric: objects that need different regions.
        same: (R, R) bool, regions that count as one, see `same_objects`.
        n_bits: cost of an object without a region.
        steps: of the search.

    Raises:
        ValueError: too many objects are in conflict.
    """
    if not distances.shape[1]:
        return [-1] * len(distances)
    nearest = distances.argmin(axis=1)
    if not _conflicts(nearest, apart, same).any():
        return [int(region) for region in nearest]
    total = least_sum(distances, apart, same, n_bits, steps)
    chosen: list[int] = []
    left = distances
    for q in range(len(distances)):
        below, others = left[1:], apart[q + 1 :, q + 1 :]
        spare = total - int(below.min(axis=1, initial=n_bits).sum())
        # What another object has taken costs all bits in `left`, and so does no region at all.
        regions = np.flatnonzero(left[0] <= min(spare, n_bits))
        taken = [r for r in regions.tolist() if not _is_taken(r, q, chosen, apart, same)]
        for region in (*taken, -1):
            rest = below if region < 0 else _without(below, apart[q, q + 1 :], same[region], n_bits)
            cost = n_bits if region < 0 else int(left[0, region])
            if region < 0 or cost + least_sum(rest, others, same, n_bits, steps) == total:
                chosen.append(region)
                left, total = rest, total - cost
                break
    return chosen


def least_sum(
    distances: Distances,
    apart: Mask,
    same: Mask,
    n_bits: int,
    steps: Steps,
    limit: int | None = None,
) -> int:
    """The sum of distances of `assign`; `limit` if it is not below that.

    Raises:
        ValueError: too many objects are in conflict.
    """
    best = len(distances) * n_bits if limit is None else limit
    taken = 0

    def search(left: Distances, pairs: Mask, cost: int) -> None:
        nonlocal best, taken
        taken += 1
        if taken > _FREE_STEPS:
            steps.take()
        least = left.min(axis=1, initial=n_bits)
        total = cost + int(least.sum())
        if total >= best:
            return
        conflicts = _conflicts(left.argmin(axis=1), pairs, same)
        conflicts &= least < n_bits
        conflicts &= (least < n_bits)[:, None]
        rows = np.flatnonzero(conflicts.any(axis=1))
        if not len(rows):
            best = total
            return
        row = int(rows[0])
        others = np.arange(len(left)) != row
        below, below_pairs = left[others], pairs[others][:, others]
        without_row = total - int(least[row])
        for region in np.argsort(left[row], kind="stable").tolist():
            own = int(left[row, region])
            if own >= n_bits or without_row + own >= best:
                break
            search(
                _without(below, pairs[row][others], same[region], n_bits), below_pairs, cost + own
            )
        if without_row + n_bits < best:
            search(below, below_pairs, cost + n_bits)

    if distances.size:
        search(distances, apart, 0)
    return best


def least_sums(
    distances: Distances,
    apart: Mask,
    same: Mask,
    n_bits: int,
    steps: Steps,
    limit: int | Ints | None,
) -> Ints:
    """`least_sum` (P,) of P pictures; where it is above `limit`, some number above `limit`.

    Args:
        distances: (P, Q, R); `n_bits` in places without a region.
        apart: (Q, Q) bool.
        same: (P, R, R) bool.
        n_bits: cost of an object without a region.
        steps: of the search.
        limit: of all pictures, or (P,) of each; None is no limit.

    Raises:
        ValueError: too many objects are in conflict.
    """
    n_objects = len(apart)
    sums = pair_bounds(distances, apart, n_bits, same)
    if n_objects == 2:  # the bound is the sum
        return sums
    limits = None if limit is None else np.broadcast_to(limit, sums.shape)
    left = np.arange(len(sums)) if limits is None else np.flatnonzero(sums <= limits)
    if n_objects == 3:
        sums[left] = triple_sums(distances[left], apart, same[left], n_bits)
        return sums
    for n in left.tolist():
        most = None if limits is None else int(limits[n]) + 1
        sums[n] = least_sum(distances[n], apart, same[n], n_bits, steps, most)
    return sums


def pair_bounds(distances: Distances, apart: Mask, n_bits: int, same: Mask | None = None) -> Ints:
    """A sum (P,) that `least_sum` does not go below in P pictures; for two objects, that sum.

    Two objects that are apart cost at least the best pair of different regions, all others at least
    their nearest region. If all are apart, each is in Q - 1 of the pairs.

    Args:
        distances: (P, Q, R); `n_bits` in places without a region.
        apart: (Q, Q) bool.
        n_bits: cost of an object without a region.
        same: (P, R, R) bool; without it, a region is only the same as itself, which takes a
            fraction of the time.
    """
    least = distances.min(axis=2)  # (P, Q)
    plain: Ints = least.sum(axis=1, dtype=np.int64)
    pairs = [(i, j) for i, j in np.argwhere(apart).tolist() if i < j]
    if len(pairs) > _MOST_PAIRS:
        return plain
    nearest = distances.argmin(axis=2)
    second = least
    if same is None:
        others = distances.copy()
        np.put_along_axis(others, nearest[:, :, None], n_bits, axis=2)
        second = others.min(axis=2)
    bound, total, n_objects = plain, np.zeros(len(plain), np.int64), len(apart)
    for i, j in pairs:
        if same is None:
            pair = least[:, i] + least[:, j]
            other = np.minimum(least[:, i] + second[:, j], second[:, i] + least[:, j])
            pair = np.where(nearest[:, i] == nearest[:, j], other, pair)
        else:
            pair = _pair_sums(distances[:, i], distances[:, j], same, n_bits)
        bound = np.maximum(bound, plain - least[:, i] - least[:, j] + pair)
        total += pair
    if len(pairs) == n_objects * (n_objects - 1) // 2:
        bound = np.maximum(bound, -(-total // (n_objects - 1)))
    return bound


def triple_sums(distances: Distances, apart: Mask, same: Mask, n_bits: int) -> Ints:
    """`least_sum` (P,) of three objects in P pictures, without a step for each picture.

    Args:
        distances: (P, 3, R); `n_bits` in places without a region.
        apart: (3, 3) bool.
        same: (P, R, R) bool.
        n_bits: cost of an object without a region.
    """

    def of_the_others(taken: Mask | None) -> Ints:
        first, second = distances[:, 1], distances[:, 2]
        if taken is not None:
            first = np.where(apart[0, 1] & taken, np.int32(n_bits), first)
            second = np.where(apart[0, 2] & taken, np.int32(n_bits), second)
        if apart[1, 2]:
            return _pair_sums(first, second, same, n_bits)
        both: Ints = first.min(axis=1).astype(np.int64) + second.min(axis=1)
        return both

    sums = n_bits + of_the_others(None)
    for region in range(distances.shape[2]):
        sums = np.minimum(sums, distances[:, 0, region] + of_the_others(same[:, region]))
    return sums


def _pair_sums(first: Distances, second: Distances, same: Mask, n_bits: int) -> Ints:
    """The least sums (P,) of two objects that are apart, of their distances (P, R)."""
    other = np.where(same, np.int32(n_bits), second[:, None, :]).min(axis=2)  # (P, R)
    sums = (first + other).min(axis=1)
    # If one has no region, the other has its nearest.
    alone = np.minimum(first.min(axis=1), second.min(axis=1)) + n_bits
    least: Ints = np.minimum(sums, alone).astype(np.int64)
    return least


def _conflicts(regions: NDArray[np.intp], apart: Mask, same: Mask) -> Mask:
    """Which objects (Q, Q) that must be apart have regions that count as one."""
    found: Mask = apart & same[regions[:, None], regions[None, :]]
    return found


def _without(distances: Distances, rows: Mask, regions: Mask, n_bits: int) -> Distances:
    """The distances with some regions out of reach of some objects."""
    return np.where(rows[:, None] & regions, np.int32(n_bits), distances)


def _is_taken(region: int, q: int, chosen: list[int], apart: Mask, same: Mask) -> bool:
    return any(other >= 0 and apart[q, n] and same[region, other] for n, other in enumerate(chosen))
