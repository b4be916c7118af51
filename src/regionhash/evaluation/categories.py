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
        found: (N, C) bool, the categories that pass the threshold: whether a database picture is
            in a category's table, or a query searches it.
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
        """MAP (C,) of each category; NaN if it has no query."""
        means = np.full(n_classes, np.nan)
        for c in np.unique(self.categories):
            means[c] = self.values[self.categories == c].mean()
        return means

    def mean(self) -> float:
        """The mean over the categories with a query, as in the paper; NaN if there are none."""
        if not len(self.values):
            return float("nan")
        return float(np.nanmean(self.per_category(int(self.categories.max()) + 1)))


def category_precision(queries: CategorySide, database: CategorySide) -> CategoryScores:
    """Tie-aware average precision of the ranking of each category's table.

    A query searches the tables of its true categories. All database pictures of the category are
    relevant; those missing from its table are never found, and a query in which the category is not
    found scores 0, so a small table brings no advantage.
    """
    values, categories = [], []
    for c in range(queries.found.shape[1]):
        rows = np.flatnonzero(queries.labels[:, c])
        table = np.flatnonzero(database.found[:, c])
        relevant = database.labels[:, c].astype(np.int64)
        searched = queries.found[rows, c]
        precision = np.zeros(len(rows))
        if searched.any() and len(table) and relevant[table].any():
            distances = HammingMatrix(
                np.ascontiguousarray(queries.codes[rows[searched], c]),
                np.ascontiguousarray(database.codes[table, c]),
            )
            shared = SharedLabels(np.ones((searched.sum(), 1), int), relevant[table, None])
            scores = per_query(distances, shared, k=len(table), denominator="total")["map"]
            precision[searched] = scores * relevant[table].sum() / relevant.sum()
        values.append(precision)
        categories.append(np.full(len(rows), c))
    return CategoryScores(np.concatenate(values), np.concatenate(categories))
