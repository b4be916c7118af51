"""The report of Region-DH's tables (I to IV): page, table on disk and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regionhash.evaluation.metrics import (
    METRICS,
    HammingMatrix,
    SharedLabels,
    per_query,
    ranking_curves,
)
from regionhash.evaluation.papers import PaperFigure
from regionhash.evaluation.plots import plot_at_k, plot_precision_recall
from regionhash.experiments.common import (
    Labels,
    bootstrap_cells,
    error_cut,
    markdown_table,
    write_csv,
    write_page,
)
from regionhash.experiments.results import Result, Results, mean_cell
from regionhash.structures import Codes

STABLE_MAP = "stable_map"  # as the papers' code sorts ties


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
    """The result of ranking `database` for `queries`, each codes (N, B) and labels (N, C).

    Its scores are each of METRICS, tie-aware, and the map in the stable order.
    """
    distances = HammingMatrix(queries[0], database[0])
    shared = SharedLabels(queries[1], database[1])
    expected = per_query(distances, shared, k=k)
    stable = per_query(distances, shared, k=k, ties="stable")
    scores = {name: expected[name] for name in METRICS} | {STABLE_MAP: stable["map"]}
    return Result(method, n_bits, scores, seconds, seed)


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
    results: Results
    ours: str
    k: int
    ceiling_acg: float
    published: Sequence[PaperFigure]
    ablations: Results = field(default_factory=Results)
    detection: dict[str, float] = field(default_factory=dict)

    def strongest_other(self, n_bits: int, metric: str) -> str:
        """The other method with the best mean."""
        means = self.results.means(metric)
        others = [method for method in means if method != self.ours]
        return max(others, key=lambda method: means[method][n_bits])


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
    lines = report.results.table(metric, report.published, name)
    if metric == "acg":
        return [*lines, "", f"The best possible ranking has {report.ceiling_acg:.4f}."]
    stable = [
        [method, *(f"{mean:.4f}" for mean in means.values())]
        for method, means in report.results.means(STABLE_MAP).items()
    ]
    header = ["method", *(f"{b} bits" for b in report.results.bits())]
    lines += ["", "In the stable order, as the papers' code sorts ties:", ""]
    return lines + markdown_table(header, stable)


def _differences(report: RegionDHReport) -> list[str]:
    """Paired bootstrap over queries against the strongest other method, at every length."""
    header = ["bits", "measure", "against", "difference", "95 % interval", "p", "error cut"]
    rows = []
    for b in report.results.bits():
        for metric in ("map", "acg"):
            other = report.strongest_other(b, metric)
            a, o = (report.results.scores(m, b, metric) for m in (report.ours, other))
            best = f"{a.mean() / report.ceiling_acg:.1%} of best"
            cut = error_cut(a, o) if metric == "map" else best
            rows.append([str(b), metric.upper(), other, *bootstrap_cells(a, o), cut])
    words = (
        f"{report.ours} against the strongest other method, means over seeds, paired bootstrap "
        f"over queries, 10,000 resamples. The error cut of MAP is 1 - (1 - ours) / (1 - other); of "
        f"ACG the share of the best possible is told."
    )
    return [words, "", *markdown_table(header, rows)]


def _ablation_table(report: RegionDHReport) -> list[str]:
    (n_bits,) = report.ablations.bits()
    rows = [
        [name, *(mean_cell(report.ablations.of(name, n_bits), metric) for metric in ("map", "acg"))]
        for name in report.ablations.methods()
    ]
    header = [f"{report.ours}, {n_bits} bits", f"MAP@{report.k}", f"ACG@{report.k}"]
    return markdown_table(header, rows)


def _write_csv(path: Path, report: RegionDHReport) -> None:
    metrics = [*METRICS, STABLE_MAP]
    rows = []
    for group, results in (("main", report.results), ("ablation", report.ablations)):
        for r in results:
            means = [f"{r.mean(metric):.6f}" for metric in metrics]
            rows.append([group, r.method, r.n_bits, r.seed, *means, f"{r.seconds:.1f}"])
    write_csv(path, ["group", "method", "bits", "seed", *metrics, "seconds"], rows)


def _write_plots(
    folder: Path, report: RegionDHReport, curves: Mapping[str, tuple[Any, ...]]
) -> None:
    for metric in ("map", "acg"):
        name = f"{metric.upper()}@{report.k}"
        report.results.plot(folder / f"{metric}.png", metric, report.published, name)
    ranked = {
        method: ranking_curves(HammingMatrix(q, db), SharedLabels(q_labels, db_labels))
        for method, (q, db, q_labels, db_labels) in curves.items()
    }
    plot_at_k(folder / "precision.png", ranked, metric="precision")
    plot_at_k(folder / "acg_at_k.png", ranked, metric="acg")
    plot_precision_recall(folder / "precision_recall.png", ranked)
