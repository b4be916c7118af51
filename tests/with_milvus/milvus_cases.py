"""Pictures with random codes and facts, and what a local search finds among them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regionhash.collection.arrays import Snapshot
from regionhash.collection.filters import mask_of
from regionhash.engines import Condition, Nearest
from regionhash.search.request import Filter
from regionhash.search.scan import BagSearch, scan_bags
from regionhash.search.united import united_hamming
from regionhash.store import CodeSet
from regionhash.store.parquet import Facts
from regionhash.structures import CodeTable

CLASSES = ("cat", "dog", "a bird")
NOBODY = np.zeros(0, np.int64)


@dataclass
class Pictures:
    """Pictures with their numbers, which have gaps, and when they were taken."""

    table: CodeTable
    numbers: np.ndarray
    taken: np.ndarray
    labels: np.ndarray | None

    def __len__(self):
        return len(self.numbers)

    def codes(self, rows):
        """These pictures, as an engine receives them, and their facts."""
        table = self.table.take(rows)
        labels = None if self.labels is None else self.labels[rows]
        n_bits = 0 if table.image_codes is None else 8 * table.image_codes.shape[1]
        n_region_bits = 0 if table.region_codes is None else 8 * table.region_codes.shape[1]
        codes = CodeSet(Path("x"), table, "m", "abc", n_bits, n_region_bits, {}, labels)
        facts = [
            Facts(
                int(self.numbers[row]),
                None if row % 5 == 0 else f"/photos/{row % 3}/{row}.jpg",
                taken=None if np.isnan(self.taken[row]) else float(self.taken[row]),
            )
            for row in rows.tolist()
        ]
        return codes, facts

    def insert(self, engine, rows=None, batch=300):
        rows = np.arange(len(self)) if rows is None else rows
        for first in range(0, len(rows), batch):
            engine.insert(*self.codes(rows[first : first + batch]))

    def bags(self, part):
        if part == "picture":
            return self.table.image_codes, np.arange(len(self) + 1)
        return self.table.region_codes, self.table.offsets

    def search(self, part, queries, top, max_distance=None, condition=None):
        """The search, and what the local one finds."""
        condition = condition or everything(self)
        snapshot = Snapshot(
            self.table, self.numbers, self.taken, self.labels, None, (len(self), 0), "g"
        )
        passing = mask_of(condition.filter, snapshot, None)
        mask = np.ones(len(self), bool) if passing is None else passing
        mask = mask & (self.numbers <= condition.up_to)
        mask &= ~np.isin(self.numbers, condition.without)
        if condition.among is not None:
            mask &= np.isin(self.numbers, condition.among)
        codes, offsets = self.bags(part)
        united = united_hamming(queries, codes, offsets)

        def distances_of(numbers):
            return united[np.searchsorted(self.numbers, numbers)]

        def may_be_found(numbers):
            return mask[np.searchsorted(self.numbers, numbers)]

        search = Nearest(part, queries, top, condition, max_distance, distances_of, may_be_found)
        asked = BagSearch(queries, top, mask, max_distance)
        rows, distances = scan_bags([asked], codes, offsets)[0]
        return search, self.numbers[rows], distances


def everything(pictures, wanted=None, **changes):
    """A condition that all pictures meet, but for the changes."""
    last = int(pictures.numbers[-1]) if len(pictures) else 0
    given = {"filter": wanted or Filter(), "up_to": last, "among": None, "without": NOBODY}
    return Condition(**(given | changes))


def some_pictures(n, seed=0, n_bytes=2, few=40, most_regions=4, image_codes=True):
    """Pictures of few codes, so that many are equally far; some have no regions."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (few, n_bytes), dtype=np.uint8)
    offsets = np.cumsum([0, *rng.integers(0, most_regions + 1, n)])
    m = int(offsets[-1])
    scores = rng.choice(np.array([0.2, 0.5, 0.7001, 1.0], np.float16), m)
    table = CodeTable(
        [f"{row}.jpg" for row in range(n)],
        np.full((n, 2), 100, np.int32),
        CLASSES,
        image_codes=values[rng.integers(0, few, n)] if image_codes else None,
        class_probs=None,
        offsets=offsets,
        boxes=rng.integers(0, 1600, (m, 4)).astype(np.float32) / 16,
        scores=scores,
        labels=rng.integers(-1, len(CLASSES), m).astype(np.int8),
        region_codes=values[rng.integers(0, few, m)],
    )
    taken = rng.choice([-5.0, 0.0, 1e-7, 1.7e9, 1.7e9 + 1 / 3, np.nan], n)
    labels = (rng.random((n, len(CLASSES))) < 0.2).astype(np.uint8)
    return Pictures(table, np.cumsum(rng.integers(1, 4, n)), taken, labels)
