"""Different regions for different objects, by trying every way to assign them."""

from itertools import combinations, product

import numpy as np


def bits(first, second):
    return int((np.unpackbits(first) != np.unpackbits(second)).sum())


def slow_same(a, b, label_a, label_b):
    """The rule for two boxes, in words of its own."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return False
    area_a, area_b = ((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    shared = width * height
    nested = 5 * shared >= 4 * min(area_a, area_b) and label_a == label_b
    return nested or 2 * shared >= area_a + area_b - shared


def slow_assignment(queries, regions, apart):
    """The least sum and its first assignment: every object tries every region, and none."""
    n_bits, n_regions = 8 * queries.shape[1], len(regions)
    best = None
    for chosen in product(range(n_regions + 1), repeat=len(queries)):
        if any(
            apart[i][j]
            and a < n_regions
            and b < n_regions
            and (a == b or slow_same(*regions.boxes[[a, b]].tolist(), *regions.labels[[a, b]]))
            for (i, a), (j, b) in combinations(enumerate(chosen), 2)
        ):
            continue
        each = [
            n_bits if n == n_regions else bits(query, regions.codes[n])
            for query, n in zip(queries, chosen, strict=True)
        ]
        best = min(best or (10**9,), (sum(each), chosen, each))
    return best
