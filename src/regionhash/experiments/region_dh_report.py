"""A comparison of methods as a Markdown page, a CSV file and plots."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.evaluation.bootstrap import error_reduction, paired_bootstrap
from regionhash.evaluation.metrics import (
    METRICS,
    HammingMatrix,
    SharedLabels,
    per_query,
    ranking_curves,
)
from regionhash.evaluation.papers import PaperFigure
from regionhash.evaluation.plots import plot_against_bits, plot_at_k, plot_precision_recall
from regionhash.files.atomic import replacing, write_text
from regionhash.structures import Codes

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Result:
    """One method with one length of code and one seed.

    Attributes:
        method: as the paper calls it.
        n_bits, seed: of the run.
        scores: each of METRICS per query, tie-aware, (Q,).
        stable_map: mean of the map in the stable order, as the papers' code sorts.
        seconds: of training; what several lengths share is counted in each.
    """

    method: str
    n_bits: int
    seed: int
    scores: dict[str, NDArray[np.float64]]
    stable_map: float
    seconds: float

    def mean(self, metric: str) -> float:
        """The mean of a metric over the queries."""
        return float(self.scores[metric].mean())


def score(
    method: str,
    n_bits: int,
    seed: int,
    queries: tuple[Codes, Labels],
    database: tuple[Codes, Labels],
    *,
    k: int,
    seconds: float,
) -> Result:
    """The result of ranking `database` for `queries`, each codes (N, B) and labels (N, C)."""
    distances = HammingMatrix(queries[0], database[0])
    shared = SharedLabels(queries[1], database[1])
    expected = per_query(distances, shared, k=k)
    stable = per_query(distances, shared, k=k, ties="stable")
    scores = {name: expected[name] for name in METRICS}
    return Result(method, n_bits, seed, scores, float(stable["map"].mean()), seconds)


@dataclass
class Comparison:
    """What a report says.

    Attributes:
        title: of the page.
        facts: what was run on what, in order: a line each.
        results: of all methods, lengths and seeds.
        ours: the method that is compared with the strongest of the others.
        k: the cut of the ranking.
        ceiling_acg: ACG@k of the best possible ranking.
        published: the paper's figures.
        ablations: rows of name and result, all of one length.
        detection: mAP at IoU 0.5 by name of the detector.
    """

    title: str
    facts: list[str]
    results: list[Result]
    ours: str
    k: int
    ceiling_acg: float
    published: Sequence[PaperFigure]
    ablations: list[Result] = field(default_factory=list)
    detection: dict[str, float] = field(default_factory=dict)

    def methods(self) -> list[str]:
        """In the order of their first result."""
        return list(dict.fromkeys(result.method for result in self.results))

    def bits(self) -> list[int]:
        """All lengths, ascending."""
        return sorted({result.n_bits for result in self.results})

    def of(self, method: str, n_bits: int) -> list[Result]:
        """The results of all seeds."""
        return [r for r in self.results if r.method == method and r.n_bits == n_bits]

    def mean(self, method: str, n_bits: int, metric: str) -> float:
        """The mean over seeds and queries."""
        return float(np.mean([result.mean(metric) for result in self.of(method, n_bits)]))

    def strongest_other(self, n_bits: int, metric: str) -> str:
        """The other method with the best mean."""
        others = [method for method in self.methods() if method != self.ours]
        return max(others, key=lambda method: self.mean(method, n_bits, metric))


def best_acg(query_labels: Labels, database_labels: Labels, k: int) -> float:
    """ACG@k of the ranking by shared labels itself: no ranking has more."""
    shared = SharedLabels(query_labels, database_labels)
    cut = min(k, len(database_labels))
    rows = (shared[slice(n, n + 1)][0] for n in range(len(query_labels)))
    return float(np.mean([np.partition(row, -cut)[-cut:].mean() for row in rows]))


def hash_ids(ids: Iterable[str]) -> str:
    """A short hash of a list of image ids, by which a report names what it ran on."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def write_report(
    folder: Path, comparison: Comparison, curves: Mapping[str, tuple[Any, ...]]
) -> Path:
    """Writes report.md, results.csv and plots into `folder`; returns the page.

    Args:
        folder: made where it is missing.
        comparison: see `Comparison`.
        curves: by method, (query codes, database codes, query labels, database labels).
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "results.csv", comparison)
    _write_plots(folder, comparison, curves)
    parts = [f"# {comparison.title}", "", *(f"- {fact}" for fact in comparison.facts), ""]
    k = comparison.k
    for metric, name in (("map", f"MAP@{k}"), ("acg", f"ACG@{k}")):
        parts += [f"## {name}", "", *_main_table(comparison, metric, name), ""]
    parts += ["## Differences", "", *_differences(comparison), ""]
    if comparison.detection:
        header = ["detector", "mAP at IoU 0.5"]
        rows = [[name, f"{value:.3f}"] for name, value in comparison.detection.items()]
        parts += ["## Detection on the queries", "", *markdown_table(header, rows), ""]
    if comparison.ablations:
        parts += ["## Ablations", "", *_ablation_table(comparison), ""]
    parts += [f"![{m.upper()} against bits]({m}.png)" for m in ("map", "acg")]
    parts += ["![precision at k](precision.png)", "![ACG at k](acg_at_k.png)"]
    parts += ["![precision and recall](precision_recall.png)"]
    page = folder / "report.md"
    write_text(page, "\n".join(parts) + "\n")
    return page


def _main_table(comparison: Comparison, metric: str, name: str) -> list[str]:
    bits = comparison.bits()
    header = ["method", *(f"{b} bits" for b in bits), *(f"paper, {b}" for b in bits), "training"]
    published = {
        (figure.method.lower(), figure.bits): figure.value
        for figure in comparison.published
        if figure.metric == name
    }
    rows = []
    for method in comparison.methods():
        row = [method]
        for b in bits:
            values = [result.mean(metric) for result in comparison.of(method, b)]
            spread = f" ± {np.std(values):.4f}" if len(values) > 1 else ""
            row.append(f"{np.mean(values):.4f}{spread}")
        for b in bits:
            figure = published.get((method.lower(), b))
            row.append("-" if figure is None else f"{figure:.4f}")
        seconds = np.mean([r.seconds for b in bits for r in comparison.of(method, b)])
        rows.append([*row, _duration(float(seconds))])
    lines = markdown_table(header, rows)
    if metric == "acg":
        lines += ["", f"The best possible ranking has {comparison.ceiling_acg:.4f}."]
    else:
        lines += ["", "In the stable order, as the papers' code sorts ties:", ""]
        stable = [
            [m, *(f"{np.mean([r.stable_map for r in comparison.of(m, b)]):.4f}" for b in bits)]
            for m in comparison.methods()
        ]
        lines += markdown_table(["method", *(f"{b} bits" for b in bits)], stable)
    return lines


def _differences(comparison: Comparison) -> list[str]:
    """Paired bootstrap over queries against the strongest other method, at every length."""
    header = ["bits", "measure", "against", "difference", "95 % interval", "p", "error cut"]
    rows = []
    for b in comparison.bits():
        for metric in ("map", "acg"):
            other = comparison.strongest_other(b, metric)
            a, o = (
                np.mean([r.scores[metric] for r in comparison.of(m, b)], axis=0)
                for m in (comparison.ours, other)
            )
            result = paired_bootstrap(a, o)
            cut = (
                f"{comparison.mean(comparison.ours, b, 'acg') / comparison.ceiling_acg:.1%} of best"
            )
            if metric == "map":
                reduction = error_reduction(a, o)
                cut = f"{reduction.ratio:.1%} [{reduction.low:.1%}, {reduction.high:.1%}]"
            interval = f"[{result.low:+.4f}, {result.high:+.4f}]"
            difference = f"{result.mean_difference:+.4f}"
            rows.append(
                [str(b), metric.upper(), other, difference, interval, f"{result.p_value:.4f}", cut]
            )
    words = (
        f"{comparison.ours} against the strongest other method, means over seeds, paired bootstrap "
        f"over queries, 10,000 resamples. The error cut of MAP is 1 - (1 - ours) / (1 - other); of "
        f"ACG the share of the best possible is told."
    )
    return [words, "", *markdown_table(header, rows)]


def _ablation_table(comparison: Comparison) -> list[str]:
    names = list(dict.fromkeys(result.method for result in comparison.ablations))
    rows = []
    for name in names:
        own = [result for result in comparison.ablations if result.method == name]
        row = [name]
        for metric in ("map", "acg"):
            values = [result.mean(metric) for result in own]
            spread = f" ± {np.std(values):.4f}" if len(values) > 1 else ""
            row.append(f"{np.mean(values):.4f}{spread}")
        rows.append(row)
    n_bits = comparison.ablations[0].n_bits
    header = [f"{comparison.ours}, {n_bits} bits", f"MAP@{comparison.k}", f"ACG@{comparison.k}"]
    return markdown_table(header, rows)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"


def _write_csv(path: Path, comparison: Comparison) -> None:
    with replacing(path) as new, new.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["group", "method", "bits", "seed", *METRICS, "stable_map", "seconds"])
        for group, results in (("main", comparison.results), ("ablation", comparison.ablations)):
            for r in results:
                means = [f"{r.mean(metric):.6f}" for metric in METRICS]
                line = [group, r.method, r.n_bits, r.seed, *means]
                table.writerow([*line, f"{r.stable_map:.6f}", f"{r.seconds:.1f}"])


def _write_plots(
    folder: Path, comparison: Comparison, curves: Mapping[str, tuple[Any, ...]]
) -> None:
    for metric in ("map", "acg"):
        name = f"{metric.upper()}@{comparison.k}"
        measured = {
            method: {b: comparison.mean(method, b, metric) for b in comparison.bits()}
            for method in comparison.methods()
        }
        own = [figure for figure in comparison.published if figure.metric == name]
        plot_against_bits(folder / f"{metric}.png", measured, metric=name, published=own)
    ranked = {
        method: ranking_curves(HammingMatrix(q, db), SharedLabels(q_labels, db_labels))
        for method, (q, db, q_labels, db_labels) in curves.items()
    }
    plot_at_k(folder / "precision.png", ranked, metric="precision")
    plot_at_k(folder / "acg_at_k.png", ranked, metric="acg")
    plot_precision_recall(folder / "precision_recall.png", ranked)
