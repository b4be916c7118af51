"""The report of Region-DH's tables (I to IV): page, table on disk and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionhash.evaluation.metrics import (
    METRICS,
    HammingMatrix,
    SharedLabels,
    per_query,
    ranking_curves,
)
from regionhash.evaluation.papers import PaperFigure
from regionhash.evaluation.plots import plot_against_bits, plot_at_k, plot_precision_recall
from regionhash.experiments.common import (
    Labels,
    bootstrap_cells,
    error_cut,
    markdown_table,
    write_csv,
    write_page,
)
from regionhash.structures import Codes


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
class RegionDHReport:
    """What a report says.

    Attributes:
        title, facts: of the page: its heading, and what was run on what, a line each.
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


def write_report(
    folder: Path, report: RegionDHReport, curves: Mapping[str, tuple[Any, ...]]
) -> Path:
    """Writes report.md, results.csv and plots into `folder`; returns the page.

    Args:
        folder: made if it is missing.
        report: what the page says.
        curves: by method, (query codes, database codes, query labels, database labels).
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "results.csv", report)
    _write_plots(folder, report, curves)
    parts = []
    k = report.k
    for metric, name in (("map", f"MAP@{k}"), ("acg", f"ACG@{k}")):
        parts += [f"## {name}", "", *_main_table(report, metric, name), ""]
    parts += ["## Differences", "", *_differences(report), ""]
    if report.detection:
        header = ["detector", "mAP at IoU 0.5"]
        rows = [[name, f"{value:.3f}"] for name, value in report.detection.items()]
        parts += ["## Detection on the queries", "", *markdown_table(header, rows), ""]
    if report.ablations:
        parts += ["## Ablations", "", *_ablation_table(report), ""]
    parts += [f"![{m.upper()} against bits]({m}.png)" for m in ("map", "acg")]
    parts += ["![precision at k](precision.png)", "![ACG at k](acg_at_k.png)"]
    parts += ["![precision and recall](precision_recall.png)"]
    return write_page(folder, report.title, report.facts, parts)


def _main_table(report: RegionDHReport, metric: str, name: str) -> list[str]:
    bits = report.bits()
    header = ["method", *(f"{b} bits" for b in bits), *(f"paper, {b}" for b in bits), "training"]
    published = {
        (figure.method.lower(), figure.bits): f"{figure.value:.4f}"
        for figure in report.published
        if figure.metric == name
    }
    rows = []
    for method in report.methods():
        row = [method, *(_mean_cell(report.of(method, b), metric) for b in bits)]
        row += [published.get((method.lower(), b), "-") for b in bits]
        seconds = np.mean([r.seconds for b in bits for r in report.of(method, b)])
        rows.append([*row, _duration(float(seconds))])
    lines = markdown_table(header, rows)
    if metric == "acg":
        lines += ["", f"The best possible ranking has {report.ceiling_acg:.4f}."]
    else:
        lines += ["", "In the stable order, as the papers' code sorts ties:", ""]
        stable = [
            [m, *(f"{np.mean([r.stable_map for r in report.of(m, b)]):.4f}" for b in bits)]
            for m in report.methods()
        ]
        lines += markdown_table(["method", *(f"{b} bits" for b in bits)], stable)
    return lines


def _mean_cell(results: Sequence[Result], metric: str) -> str:
    """The mean over seeds, and its spread if there are several."""
    values = [result.mean(metric) for result in results]
    spread = f" ± {np.std(values):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _differences(report: RegionDHReport) -> list[str]:
    """Paired bootstrap over queries against the strongest other method, at every length."""
    header = ["bits", "measure", "against", "difference", "95 % interval", "p", "error cut"]
    rows = []
    for b in report.bits():
        for metric in ("map", "acg"):
            other = report.strongest_other(b, metric)
            a, o = (
                np.mean([r.scores[metric] for r in report.of(m, b)], axis=0)
                for m in (report.ours, other)
            )
            share = report.mean(report.ours, b, "acg") / report.ceiling_acg
            cut = error_cut(a, o) if metric == "map" else f"{share:.1%} of best"
            rows.append([str(b), metric.upper(), other, *bootstrap_cells(a, o), cut])
    words = (
        f"{report.ours} against the strongest other method, means over seeds, paired bootstrap "
        f"over queries, 10,000 resamples. The error cut of MAP is 1 - (1 - ours) / (1 - other); of "
        f"ACG the share of the best possible is told."
    )
    return [words, "", *markdown_table(header, rows)]


def _ablation_table(report: RegionDHReport) -> list[str]:
    by_name: dict[str, list[Result]] = {}
    for result in report.ablations:
        by_name.setdefault(result.method, []).append(result)
    rows = [
        [name, *(_mean_cell(results, metric) for metric in ("map", "acg"))]
        for name, results in by_name.items()
    ]
    n_bits = report.ablations[0].n_bits
    header = [f"{report.ours}, {n_bits} bits", f"MAP@{report.k}", f"ACG@{report.k}"]
    return markdown_table(header, rows)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"


def _write_csv(path: Path, report: RegionDHReport) -> None:
    header = ["group", "method", "bits", "seed", *METRICS, "stable_map", "seconds"]
    rows = []
    for group, results in (("main", report.results), ("ablation", report.ablations)):
        for r in results:
            means = [f"{r.mean(metric):.6f}" for metric in METRICS]
            measured = [*means, f"{r.stable_map:.6f}", f"{r.seconds:.1f}"]
            rows.append([group, r.method, r.n_bits, r.seed, *measured])
    write_csv(path, header, rows)


def _write_plots(
    folder: Path, report: RegionDHReport, curves: Mapping[str, tuple[Any, ...]]
) -> None:
    for metric in ("map", "acg"):
        name = f"{metric.upper()}@{report.k}"
        measured = {
            method: {b: report.mean(method, b, metric) for b in report.bits()}
            for method in report.methods()
        }
        published = [figure for figure in report.published if figure.metric == name]
        plot_against_bits(folder / f"{metric}.png", measured, metric=name, published=published)
    ranked = {
        method: ranking_curves(HammingMatrix(q, db), SharedLabels(q_labels, db_labels))
        for method, (q, db, q_labels, db_labels) in curves.items()
    }
    plot_at_k(folder / "precision.png", ranked, metric="precision")
    plot_at_k(folder / "acg_at_k.png", ranked, metric="acg")
    plot_precision_recall(folder / "precision_recall.png", ranked)
