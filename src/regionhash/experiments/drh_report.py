"""The tables of DRH (Tables 1 to 5) as a Markdown page, a CSV file and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from regionhash.evaluation.instance import InstanceRelevance, instance_average_precision
from regionhash.evaluation.levels import IntegerMatrix, Values
from regionhash.evaluation.papers import PaperFigure
from regionhash.evaluation.plots import plot_against_bits
from regionhash.experiments.common import bootstrap_cells, markdown_table, write_csv, write_page

_PAPER_NAMES = {
    "oxford5k": "Oxford 5k",
    "oxford105k": "Oxford 105k",
    "paris6k": "Paris 6k",
    "paris106k": "Paris 106k",
}
_BLOCK_QUERIES = 16
MAX_POOLED = "max-pooled floats"
HYPERPLANES = "random hyperplanes"


@dataclass(frozen=True, eq=False)
class InstanceResult:
    """One method on all queries.

    Attributes:
        table: the table of the report, "1" to "4".
        method: as the paper calls it, if it has it.
        n_bits: of a code; None for floats.
        ap: (Q,) float64, trapezoid, tie-aware.
        rectangle_map: mean of the other form, tie-aware.
        stable_map: mean of the trapezoid in the stable order, as the papers' code sorts ties.
        remark: what else the table states of it.
    """

    table: str
    method: str
    n_bits: int | None
    ap: Values
    rectangle_map: float
    stable_map: float
    remark: str = ""

    @property
    def map(self) -> float:
        """The mean over the queries."""
        return float(self.ap.mean())


@dataclass(frozen=True)
class ScanTime:
    """One row of Table 5.

    Attributes:
        what: what is scanned.
        single, batch: milliseconds per query, one at a time and all at once.
        paper_method, n_bits: under which the paper's figures stand.
    """

    what: str
    single: float
    batch: float
    paper_method: str
    n_bits: int | None


@dataclass
class DRHReport:
    """What a report says.

    Attributes:
        title, facts: of the page: its heading, and what was run on what, a line each.
        results: of all tables.
        published: the paper's figures of all data sets.
        default_bits: the length that Tables 2 to 4 have.
        times: Table 5.
        batch_size: queries at once in it.
    """

    title: str
    facts: list[str]
    results: list[InstanceResult]
    published: Sequence[PaperFigure]
    default_bits: int
    times: list[ScanTime] = field(default_factory=list)
    batch_size: int = 0

    def of(self, table: str) -> list[InstanceResult]:
        """The results of one table, in their order."""
        return [result for result in self.results if result.table == table]

    def find(self, table: str, method: str, n_bits: int | None) -> InstanceResult:
        """One result. Raises KeyError if it was not measured."""
        for result in self.of(table):
            if (result.method, result.n_bits) == (method, n_bits):
                return result
        raise KeyError((table, method, n_bits))

    def paper(self, table: str, method: str, n_bits: int | None, dataset: str) -> str:
        """The published figure, or a dash."""
        for figure in self.published:
            place = (figure.table, figure.method, figure.bits, figure.dataset)
            if place == (table, method, n_bits, dataset):
                return f"{figure.value:g}" if "time" in figure.metric else f"{figure.value:.3f}"
        return "-"


def score_instances(
    table: str,
    method: str,
    n_bits: int | None,
    distances: IntegerMatrix,
    relevance: InstanceRelevance,
    remark: str = "",
) -> InstanceResult:
    """The result of a ranking by integer distances (Q, N), a few queries at a time."""
    n_queries = relevance.shape[0]
    ap, rectangle, stable = [], 0.0, 0.0
    for first in range(0, n_queries, _BLOCK_QUERIES):
        rows = slice(first, min(first + _BLOCK_QUERIES, n_queries))
        wanted, block = relevance.of_queries(rows), distances[rows]
        ap += instance_average_precision(block, wanted).tolist()
        rectangle += instance_average_precision(block, wanted, form="rectangle").sum()
        stable += instance_average_precision(block, wanted, ties="stable").sum()
    return InstanceResult(
        table, method, n_bits, np.array(ap), rectangle / n_queries, stable / n_queries, remark
    )


def write_report(folder: Path, report: DRHReport) -> Path:
    """Writes report.md, results.csv and map.png into `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "results.csv", report)
    _write_plot(folder / "map.png", report)
    bits = report.default_bits
    parts = ["## Table 1: length of the code", "", *_table_1(report), ""]
    parts += [f"## Table 2: windows and candidates, gDRH+lDRH, {bits} bits", "", *_table_2(report)]
    parts += ["", f"## Table 3: query expansion, {bits} bits", "", *_table_3(report), ""]
    parts += ["## Table 4: float descriptors", "", *_table_4(report), ""]
    if report.times:
        parts += ["## Table 5: time of the filter step", "", *_table_5(report), ""]
    parts += ["![mAP against bits](map.png)"]
    return write_page(folder, report.title, report.facts, parts)


def _difference(a: InstanceResult, b: InstanceResult) -> list[str]:
    difference, interval, p = bootstrap_cells(a.ap, b.ap)
    return [f"{difference} {interval}", p]


def _papers(report: DRHReport, table: str) -> list[str]:
    """The data sets of the paper's table, in its order."""
    return list(dict.fromkeys(f.dataset for f in report.published if f.table == table))


def _headers(datasets: list[str]) -> list[str]:
    return [f"paper, {_PAPER_NAMES[dataset]}" for dataset in datasets]


def _table_1(report: DRHReport) -> list[str]:
    datasets = _papers(report, "1")
    floats = report.find("1", MAX_POOLED, None)
    header = ["bits", "gDRH", HYPERPLANES, "gDRH - hyperplanes", "p", "gDRH - floats", "p"]
    rows = []
    for ours in report.of("1"):
        if ours.method != "gDRH":
            continue
        other = report.find("1", f"gDRH, {HYPERPLANES}", ours.n_bits)
        rows.append(
            [str(ours.n_bits), f"{ours.map:.4f}", f"{other.map:.4f}"]
            + _difference(ours, other)
            + _difference(ours, floats)
            + [report.paper("1", "gDRH", ours.n_bits, dataset) for dataset in datasets]
        )
    published = [report.paper("1", "max-pooled conv5 (512-d floats)", None, d) for d in datasets]
    rows.append([f"{MAX_POOLED}, {floats.remark}", f"{floats.map:.4f}", *"-----", *published])
    words = (
        "Whole pictures by their global code. Random hyperplanes read the same whitened features. "
        "Differences with 95 % intervals, paired bootstrap over queries, 10,000 resamples."
    )
    return [words, "", *markdown_table([*header, *_headers(datasets)], rows)]


def _table_2(report: DRHReport) -> list[str]:
    """Rows: M and hash; columns: the ways to make regions. Measured above, published below."""
    cells = {_place_in_table_2(result.method): result for result in report.of("2")}
    ways, rows = (list(dict.fromkeys(places)) for places in zip(*cells, strict=True))
    remarks = {way: result.remark for (way, _), result in cells.items()}
    measured = [[row, *(f"{cells[way, row].map:.4f}" for way in ways)] for row in rows]
    published = []
    for row in rows:
        results = [cells[way, row] for way in ways]
        figures = [report.paper("2", r.method, r.n_bits, "oxford5k") for r in results]
        if set(figures) != {"-"}:
            published.append([row, *figures])
    words = (
        "Boxes are those of a picture on average, the whole picture among them; an RPN gives its "
        "300 best. All are hashed alike, by what was fitted on the windows."
    )
    lines = markdown_table(["", *(f"{way}, {remarks[way]}" for way in ways)], measured)
    lines += ["", "The paper, on Oxford 5k:", "", *markdown_table(["", *ways], published)]
    return [words, "", *lines]


def _place_in_table_2(method: str) -> tuple[str, str]:
    """Column and row of "gDRH+lDRH (way; M = 100)" and of what may follow it, the hash."""
    settings, _, hashed_by = method.removeprefix("gDRH+lDRH (").partition(")")
    way, m = settings.split("; ")
    return way, m + hashed_by


def _table_3(report: DRHReport) -> list[str]:
    return _compared(report, "3", report.of("3")[0], ["steps"])


def _table_4(report: DRHReport) -> list[str]:
    base = next(result for result in report.of("4") if result.method == "DRH")
    return _compared(report, "4", base, ["method", "a picture takes"])


def _compared(report: DRHReport, table: str, base: InstanceResult, columns: list[str]) -> list[str]:
    """Rows: methods; columns: method, remark if there is a second one, mAP, what it is ahead."""
    datasets = _papers(report, table)
    rows = [
        [*(r.method, r.remark)[: len(columns)], f"{r.map:.4f}"]
        + (_difference(r, base) if r is not base else ["-", "-"])
        + [report.paper(table, _paper_name(r.method), r.n_bits, d) for d in datasets]
        for r in report.of(table)
    ]
    header = [*columns, "mAP", f"less {base.method}", "p", *_headers(datasets)]
    return markdown_table(header, rows)


def _paper_name(method: str) -> str:
    """Which row of the paper's tables has the same method; descriptors are of another network."""
    names = {
        "SPoC": "Babenko et al. 2015",
        "R-MAC": "Tolias et al. 2015",
        "CroW": "Kalantidis et al. 2015",
    }
    return names.get(method, method)


def _table_5(report: DRHReport) -> list[str]:
    datasets = _papers(report, "5")
    header = ["what is scanned", "ms, one query", f"ms, each of {report.batch_size}"]
    header += ["floats / this, one query", "floats / this, batch"]
    floats = report.times[0]
    rows = []
    for scan in report.times:
        published = [report.paper("5", scan.paper_method, scan.n_bits, d) for d in datasets]
        ratios = [f"{floats.single / scan.single:.1f}", f"{floats.batch / scan.batch:.1f}"]
        rows.append([scan.what, f"{scan.single:.3f}", f"{scan.batch:.3f}", *ratios, *published])
    headers = [f"paper, {_PAPER_NAMES[dataset]}, ms" for dataset in datasets]
    words = (
        "All on one thread, on this database, the 400 nearest of each query, the fastest of "
        "several runs. The paper's floats were scanned by code of its own; here FAISS scans them "
        "as fast as a core reads memory. "
        "`benchmarks/bench_hamming_float.py` measures the same with 105,000 pictures."
    )
    return [words, "", *markdown_table([*header, *headers], rows)]


def _write_csv(path: Path, report: DRHReport) -> None:
    rows = []
    for r in report.results:
        values = [f"{value:.6f}" for value in (r.map, r.rectangle_map, r.stable_map)]
        rows.append([r.table, r.method, r.n_bits or "", *values])
    write_csv(path, ["table", "method", "bits", "map", "rectangle_map", "stable_map"], rows)


def _write_plot(path: Path, report: DRHReport) -> None:
    measured: dict[str, dict[int, float]] = {}
    for result in report.of("1"):
        if result.n_bits is not None:
            measured.setdefault(result.method, {})[result.n_bits] = result.map
    floats = report.find("1", MAX_POOLED, None).map
    measured[MAX_POOLED] = dict.fromkeys(measured["gDRH"], floats)
    published = [
        replace(figure, method=f"gDRH, {_PAPER_NAMES[figure.dataset]}")
        for figure in report.published
        if figure.table == "1"
    ]
    plot_against_bits(path, measured, metric="MAP", published=published)
