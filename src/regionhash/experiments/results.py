"""Results of methods that rank by codes, at several lengths, and how a report shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from regionhash.evaluation.papers import PaperFigure
from regionhash.evaluation.plots import plot_against_bits
from regionhash.experiments.common import markdown_table


@dataclass(frozen=True)
class Result:
    """One method with one length of code and one seed.

    Attributes:
        method: as the paper calls it.
        n_bits: of the code.
        scores: by name of the metric, per query (Q,).
        seconds: of training; what several lengths share is counted in each.
        seed: of the run.
    """

    method: str
    n_bits: int
    scores: dict[str, NDArray[np.float64]]
    seconds: float
    seed: int = 0

    def mean(self, metric: str) -> float:
        """The mean of a metric over the queries."""
        return float(self.scores[metric].mean())


class Results(list[Result]):
    """The results of several methods, lengths and seeds."""

    def methods(self) -> list[str]:
        """In the order of their first result."""
        return list(dict.fromkeys(result.method for result in self))

    def bits(self) -> list[int]:
        """All lengths, ascending."""
        return sorted({result.n_bits for result in self})

    def of(self, method: str, n_bits: int) -> list[Result]:
        """The results of all seeds."""
        return [r for r in self if (r.method, r.n_bits) == (method, n_bits)]

    def scores(self, method: str, n_bits: int, metric: str) -> NDArray[np.float64]:
        """The means over seeds (Q,)."""
        return np.asarray(np.mean([r.scores[metric] for r in self.of(method, n_bits)], axis=0))

    def means(self, metric: str) -> dict[str, dict[int, float]]:
        """The mean over seeds and queries by method and length."""
        return {
            method: {
                b: float(np.mean([result.mean(metric) for result in self.of(method, b)]))
                for b in self.bits()
                if self.of(method, b)
            }
            for method in self.methods()
        }

    def table(self, metric: str, published: Sequence[PaperFigure], name: str) -> list[str]:
        """Rows: methods; columns: each length measured and in the paper, and the training.

        Args:
            metric: as in the scores.
            published: the paper's figures.
            name: of the metric in the paper.
        """
        bits = self.bits()
        figures = [figure for figure in published if figure.metric == name]
        paper = {(f.method.lower(), f.bits): f"{f.value:.4f}" for f in figures}
        rows = []
        for method in self.methods():
            row = [method, *(mean_cell(self.of(method, b), metric) for b in bits)]
            row += [paper.get((method.lower(), b), "-") for b in bits]
            seconds = fmean(result.seconds for result in self if result.method == method)
            rows.append([*row, _duration(seconds)])
        columns = [*(f"{b} bits" for b in bits), *(f"paper, {b}" for b in bits)]
        return markdown_table(["method", *columns, "training"], rows)

    def plot(self, path: Path, metric: str, published: Sequence[PaperFigure], name: str) -> None:
        """Plots what `table` shows."""
        plot_against_bits(path, self.means(metric), metric=name, published=published)


def mean_cell(results: Sequence[Result], metric: str) -> str:
    """The mean over seeds, and its spread if there are several; a dash for no result."""
    values = [result.mean(metric) for result in results]
    spread = f" ± {np.std(values):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}" if values else "-"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"
