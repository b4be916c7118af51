"""Queries of one object and of several (DMIH, Figs. 3 and 4, Tables 1 and 2): page and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_rel

from regionhash.data.object_queries import ObjectQuery
from regionhash.evaluation.levels import Values
from regionhash.evaluation.metrics import ContainedLabels, RankingCurves, per_query, ranking_curves
from regionhash.evaluation.papers import PaperFigure
from regionhash.evaluation.plots import plot_at_k
from regionhash.experiments.common import bootstrap_cells, markdown_table, write_csv, write_page
from regionhash.structures import Ints

Kind = Literal["single", "combined"]

_PAPER_CLASSES = {"tvmonitor": "tv", "pottedplant": "plant", "bicycle": "bike"}
_OURS = "DMIH"


@dataclass(frozen=True, eq=False)
class ObjectResult:
    """One method with one length of code on the queries of one kind.

    Attributes:
        kind: whether the queries are of one object or of several.
        method: as the paper calls it.
        n_bits: of a code; None for floats.
        labels: of each query.
        map: (Q,), average precision over the whole ranking, tie-aware.
        chance: (Q,), share of the database that is relevant: the MAP of a random order.
        precision: P@k by k, (Q,) each, tie-aware.
        curves: means over the queries at many cuts.
        seconds: of training.
    """

    kind: Kind
    method: str
    n_bits: int | None
    labels: tuple[tuple[int, ...], ...]
    map: Values
    chance: Values
    precision: Mapping[int, Values]
    curves: RankingCurves
    seconds: float

    def of(self, labels: tuple[int, ...]) -> float:
        """MAP of the queries of a combination."""
        return float(self.map[[query == labels for query in self.labels]].mean())


@dataclass(frozen=True)
class Localisation:
    """How often the most probable proposal of a label that a picture owns lies on such an object.

    Attributes:
        method: whose proposals.
        shares: of labels with IoU >= 0.5, and of those where any proposal has that; then both as
            means over the classes.
        n_labels: how many there are.
    """

    method: str
    shares: tuple[float, ...]
    n_labels: int


@dataclass(frozen=True)
class QueryTime:
    """Milliseconds of the steps of a query: F, O + H, and S among `n_codes` codes."""

    method: str
    steps: tuple[float, ...]
    n_codes: int


@dataclass
class DMIHReport:
    """What a report says.

    Attributes:
        title, facts: of the page: its heading, and what was run on what, a line each.
        results: of all methods, lengths and kinds.
        cuts: k of P@k.
        classes: names of the classes.
        relevant: how many pictures of the database show a combination, measured or too rare.
        published: the paper's figures.
        localisation: of the proposals.
        times: of a query.
    """

    title: str
    facts: list[str]
    results: list[ObjectResult]
    cuts: Sequence[int]
    classes: tuple[str, ...]
    relevant: dict[tuple[int, ...], int]
    published: Sequence[PaperFigure]
    localisation: list[Localisation] = field(default_factory=list)
    times: list[QueryTime] = field(default_factory=list)

    def of(self, kind: Kind) -> list[ObjectResult]:
        """The results of one kind of queries, in their order."""
        return [result for result in self.results if result.kind == kind]

    def name(self, labels: tuple[int, ...]) -> str:
        """The name of a combination: "horse + person"."""
        return " + ".join(self.classes[label] for label in labels)

    def paper(self, labels: tuple[int, ...], method: str) -> str:
        """The published MAP of a combination, or a dash."""
        names = [self.classes[label] for label in labels]
        wanted = {_PAPER_CLASSES.get(name, name) for name in names}
        for figure in self.published:
            _, sign, shown = figure.metric.removesuffix(")").partition("MAP (")
            if sign and figure.method == method and set(shown.split(" + ")) == wanted:
                return f"{figure.value:.3f}"
        return "-"


def score_objects(
    kind: Kind,
    method: str,
    n_bits: int | None,
    distances: Ints,
    queries: Sequence[ObjectQuery],
    database_labels: NDArray[np.uint8],
    cuts: Sequence[int],
    seconds: float,
) -> ObjectResult:
    """The result of a ranking by integer distances (Q, N), for labels (N, C) of the database."""
    wanted = np.zeros((len(queries), database_labels.shape[1]), np.uint8)
    for row, query in zip(wanted, queries, strict=True):
        row[list(query.labels)] = 1
    relevance = ContainedLabels(wanted, database_labels)
    whole = per_query(distances, relevance, k=distances.shape[1], denominator="total")
    return ObjectResult(
        kind,
        method,
        n_bits,
        tuple(query.labels for query in queries),
        whole["map"],
        whole["relevant"] / distances.shape[1],
        {k: per_query(distances, relevance, k=k)["precision"] for k in cuts},
        ranking_curves(distances, relevance),
        seconds,
    )


def write_report(folder: Path, report: DMIHReport) -> Path:
    """Writes report.md, results.csv and a plot of P@k per kind into `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "results.csv", report)
    parts = ["## Queries of one object", "", *_overview(report, "single")]
    parts += ["", "![P@k](precision-single.png)", ""]
    if report.of("combined"):
        parts += ["## Queries of several objects", "", *_overview(report, "combined"), ""]
        parts += ["![P@k](precision-combined.png)", "", "### By combination", ""]
        parts += [*_combinations(report), "", "### By number of objects", "", *_sizes(report), ""]
    for kind in ("single", "combined"):
        curves = {r.method: r.curves for r in _longest(report, kind)}
        if curves:
            plot_at_k(folder / f"precision-{kind}.png", curves, metric="precision")
    if report.localisation:
        parts += ["## Where the objects are", "", *_localisation(report), ""]
    if report.times:
        parts += ["## Time of a query", "", *_times(report), ""]
    return write_page(folder, report.title, report.facts, parts)


def _longest(report: DMIHReport, kind: Kind) -> list[ObjectResult]:
    """The result with the longest code of each method."""
    best: dict[str, ObjectResult] = {}
    for result in report.of(kind):
        other = best.get(result.method)
        if other is None or (result.n_bits or 0) > (other.n_bits or 0):
            best[result.method] = result
    return list(best.values())


def _overview(report: DMIHReport, kind: Kind) -> list[str]:
    """MAP and P@k of all methods, and what DMIH is ahead of each of one length."""
    ours = {r.n_bits: r for r in report.of(kind) if r.method == _OURS}
    longest = ours[max(n_bits for n_bits in ours if n_bits is not None)]
    header = ["method", "bits", "MAP", *(f"P@{k}" for k in report.cuts)]
    rows = []
    for result in report.of(kind):
        row = [result.method, str(result.n_bits or "floats"), f"{result.map.mean():.4f}"]
        row += [f"{result.precision[k].mean():.4f}" for k in report.cuts]
        dmih = ours.get(result.n_bits, longest)
        if dmih is result:
            rows.append([*row, *"---"])
            continue
        difference, interval, p = bootstrap_cells(dmih.map, result.map)
        rows.append([*row, f"{difference} {interval}", p, _t_test(dmih.map, result.map)])
    words = (
        f"{len(longest.map)} queries. Differences in MAP to DMIH of the same length (to the "
        "longest one where there is none) with 95 % intervals, paired bootstrap over queries, "
        "10,000 resamples; beside its p that of the paper's paired t-test."
    )
    return [words, "", *markdown_table([*header, "DMIH less this", "p", "p, t-test"], rows)]


def _t_test(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> str:
    """Two-sided p of the paired t-test of (Q,) and (Q,); a dash if they do not differ at all."""
    with np.errstate(invalid="ignore", divide="ignore"):
        p = float(ttest_rel(a, b).pvalue) if len(a) > 1 else np.nan
    return "-" if np.isnan(p) else f"{p:.4f}" if p >= 1e-4 else "< 0.0001"


def _combinations(report: DMIHReport) -> list[str]:
    results = _longest(report, "combined")
    measured = set(results[0].labels)
    header = ["objects", "relevant", *(r.method for r in results)]
    header += ["paper, DMIH", "paper, DSRH"]
    rows = []
    for labels, n in report.relevant.items():
        row = [report.name(labels), str(n)]
        row += [f"{r.of(labels):.3f}" if labels in measured else "-" for r in results]
        rows.append([*row, report.paper(labels, "DMIH"), report.paper(labels, "DSRH")])
    means = [f"{np.mean([r.of(labels) for labels in measured]):.3f}" for r in results]
    rows.append(["mean over combinations", "", *means, "", ""])
    words = (
        "MAP with the longest codes. Combinations of the paper's Table 2, and those that at least "
        "20 pictures of the database show; a dash where there are fewer, or no picture to ask "
        "with. The paper's figures come from VOC 2007."
    )
    return [words, "", *markdown_table(header, rows)]


def _sizes(report: DMIHReport) -> list[str]:
    """MAP against the number of objects, beside what chance gives, which falls with it."""
    results = [*_longest(report, "single"), *_longest(report, "combined")]
    methods = list(dict.fromkeys(r.method for r in results))
    rows = []
    for n in sorted({len(labels) for r in results for labels in r.labels}):
        row = [str(n)]
        for method in methods:
            for r in results:
                of_size = np.array([len(labels) == n for labels in r.labels])
                if r.method == method and of_size.any():
                    if len(row) == 1:
                        row.append(f"{r.chance[of_size].mean():.3f}")
                    row.append(f"{r.map[of_size].mean():.3f}")
        rows.append(row)
    return markdown_table(["objects", "chance", *methods], rows)


def _localisation(report: DMIHReport) -> list[str]:
    header = ["proposals of", "CorLoc", "any proposal", "CorLoc, mean over classes", "any proposal"]
    rows = [
        [found.method, *(f"{share:.3f}" for share in found.shares)] for found in report.localisation
    ]
    words = (
        f"Share of the {report.localisation[0].n_labels} labels of training pictures whose most "
        "probable proposal has an IoU of at least 0.5 with such an object, and share for which any "
        "proposal has. No box was seen in training."
    )
    return [words, "", *markdown_table(header, rows)]


def _times(report: DMIHReport) -> list[str]:
    header = ["method", "F, ms", "O + H, ms", "S, ms", "F + O + H + S, ms", "paper, ms"]
    rows = []
    for time in report.times:
        steps = (*time.steps, sum(time.steps))
        rows.append([time.method, *(f"{step:.2f}" for step in steps), "18.32"])
    words = (
        f"One picture, one thread, median; search by one object among {report.times[0].n_codes:,} "
        "codes. F features, O objects, H hash, S search. The paper's time is that of 400,000 "
        "pictures of ILSVRC 2013 with a GPU."
    )
    return [words, "", *markdown_table(header, rows)]


def _write_csv(path: Path, report: DMIHReport) -> None:
    cuts = [f"precision_{k}" for k in report.cuts]
    rows = []
    for r in report.results:
        for labels in dict.fromkeys(r.labels):
            same = np.array([query == labels for query in r.labels])
            values = [r.map[same].mean(), *(r.precision[k][same].mean() for k in report.cuts)]
            line = [r.kind, report.name(labels), r.method, r.n_bits or "", int(same.sum())]
            rows.append([*line, *(f"{value:.6f}" for value in values), f"{r.seconds:.1f}"])
    write_csv(path, ["kind", "objects", "method", "bits", "queries", "map", *cuts, "seconds"], rows)
