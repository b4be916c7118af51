"""How well codes of categories find pictures with the category (IAH, Sec. V-D and Fig. 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.evaluation.metrics import HammingMatrix, SharedLabels, per_query
from regionhash.structures import Codes, Ints

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class CategorySide:
    """The category codes of N pictures.

    Attributes:
        codes: (N, C, B) uint8, packed.
        found: (N, C) bool, the categories that pass the threshold: whether the picture is in a
            category's table, or asks it.
        labels: (N, C), 0 or 1, the true categories.
    """

    codes: Codes
    found: Bools
    labels: NDArray[np.integer[Any]]

    def __post_init__(self) -> None:
        if self.codes.ndim != 3 or self.codes.shape[:2] != self.found.shape:
            raise ValueError(
                f"codes must be (N, C, B) and found (N, C), got {self.codes.shape} and "
                f"{self.found.shape}"
            )
        if self.labels.shape != self.found.shape:
            raise ValueError(f"labels must be {self.found.shape}, got {self.labels.shape}")


@dataclass(frozen=True, slots=True, eq=False)
class CategoryScores:
    """Average precision of each query in each category that it truly has.

    Attributes:
        values: (P,) float64; categories: (P,) the category of each.
    """

    values: NDArray[np.float64]
    categories: Ints

    def per_category(self, n_classes: int) -> NDArray[np.float64]:
        """MAP (C,) of each category; NaN without a query."""
        means = np.full(n_classes, np.nan)
        for c in np.unique(self.categories):
            means[c] = self.values[self.categories == c].mean()
        return means

    def mean(self) -> float:
        """The mean over the categories with a query, as the paper averages; NaN without any."""
        if not len(self.values):
            return float("nan")
        return float(np.nanmean(self.per_category(int(self.categories.max()) + 1)))


def category_precision(queries: CategorySide, database: CategorySide) -> CategoryScores:
    """Tie-aware average precision of the ranking of each category's table.

    A query asks the tables of its true categories. Relevant are all pictures of the database with
    the category; those that are not in its table are never found, and a query in which the
    category is not found has 0, so that a narrow table does not pay.
    """
    values, categories = [], []
    for c in range(queries.found.shape[1]):
        rows = np.flatnonzero(queries.labels[:, c])
        table = np.flatnonzero(database.found[:, c])
        relevant = database.labels[:, c].astype(np.int64)
        asked = queries.found[rows, c]
        own = np.zeros(len(rows))
        if asked.any() and len(table) and relevant[table].any():
            distances = HammingMatrix(
                np.ascontiguousarray(queries.codes[rows[asked], c]),
                np.ascontiguousarray(database.codes[table, c]),
            )
            shared = SharedLabels(np.ones((asked.sum(), 1), int), relevant[table, None])
            scores = per_query(distances, shared, k=len(table), denominator="total")["map"]
            own[asked] = scores * relevant[table].sum() / relevant.sum()
        values.append(own)
        categories.append(np.full(len(rows), c))
    return CategoryScores(np.concatenate(values), np.concatenate(categories))
