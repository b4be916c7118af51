"""What several benchmarks of searching share."""

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from regionhash.structures import CodeTable


def milliseconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median time of each after one round that warms up.

    The runs take turns, so that other work on the machine slows all of them alike.
    """
    times = _seconds(runs, repeats, time.perf_counter)
    return {name: 1000 * median(taken) for name, taken in times.items()}


def least_milliseconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least time of each, after one round that warms up; the runs take turns."""
    times = _seconds(runs, repeats, time.perf_counter)
    return {name: 1000 * min(taken) for name, taken in times.items()}


def least_cpu_milliseconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least CPU time of this thread in each, after one round that warms up; the runs take turns."""
    times = _seconds(runs, repeats, time.thread_time)
    return {name: 1000 * min(taken) for name, taken in times.items()}


def _seconds(
    runs: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """The times of each in turn, without those of a first round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + repeats):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: taken[1:] for name, taken in times.items()}


def random_table(n_images: int, n_regions: int, n_bytes: int) -> CodeTable:
    """Pictures with random codes of `n_bytes`, of their own and of `n_regions` regions each."""
    rng = np.random.default_rng(0)
    m = n_images * n_regions
    boxes = np.random.default_rng(3).integers(0, 500, (m, 2, 2), dtype=np.int32)
    boxes.sort(axis=1)  # two corners
    return CodeTable(
        ids=[f"{n:08}" for n in range(n_images)],
        sizes=np.full((n_images, 2), 500, np.int32),
        image_codes=rng.integers(0, 256, (n_images, n_bytes), dtype=np.uint8),
        offsets=np.arange(n_images + 1, dtype=np.int64) * n_regions,
        boxes=boxes.reshape(m, 4).astype(np.float32),
        scores=np.ones(m, np.float32),
        labels=np.full(m, -1, np.int64),
        region_codes=rng.integers(0, 256, (m, n_bytes), dtype=np.uint8),
    )
