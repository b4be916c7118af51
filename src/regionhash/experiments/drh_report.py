"""The tables of DRH (Tables 1 to 5) as a Markdown page, a CSV file and a plot."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from regionhash.evaluation.bootstrap import paired_bootstrap
from regionhash.evaluation.instance import (
    InstanceRelevance,
    instance_average_precision,
)
from regionhash.evaluation.levels import IntegerMatrix, Values
from regionhash.evaluation.papers import PaperFigure
from regionhash.evaluation.plots import plot_against_bits
from regionhash.experiments.region_dh_report import markdown_table
from regionhash.files.atomic import replacing, write_text

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
        method: as the paper calls it, where it has it.
        n_bits: of a code; None for floats.
        ap: (Q,) float64, trapezoid, tie-aware.
        rectangle_map: mean of the other form, tie-aware.
        stable_map: mean of the trapezoid in the stable order, as the papers' code sorts ties.
        note: what else the table tells of it.
    """

    table: str
    method: str
    n_bits: int | None
    ap: Values
    rectangle_map: float
    stable_map: float
    note: str = ""

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
class InstanceReport:
    """What a report says.

    Attributes:
        title: of the page.
        facts: what was run on what, in order: a line each.
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
        """One result. Raises KeyError where it was not measured."""
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
    note: str = "",
) -> InstanceResult:
    """The result of a ranking, a few queries at a time.

    Args:
        table: as in `InstanceResult`.
        method: as well.
        n_bits: as well.
        distances: (Q, N), integers.
        relevance: what is wanted.
        note: as in `InstanceResult`.
    """
    n_queries = relevance.shape[0]
    ap, rectangle, stable = [], 0.0, 0.0
    for first in range(0, n_queries, _BLOCK_QUERIES):
        rows = slice(first, min(first + _BLOCK_QUERIES, n_queries))
        own, block = relevance.of_queries(rows), distances[rows]
        ap += instance_average_precision(block, own).tolist()
        rectangle += instance_average_precision(block, own, form="rectangle").sum()
        stable += instance_average_precision(block, own, ties="stable").sum()
    return InstanceResult(
        table,
        method,
        n_bits,
        np.array(ap),
        rectangle / n_queries,
        stable / n_queries,
        note,
    )


def write_instance_report(folder: Path, report: InstanceReport) -> Path:
    """Writes report.md, results.csv and map.png into `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "results.csv", report)
    _write_plot(folder / "map.png", report)
    bits = report.default_bits
    parts = [f"# {report.title}", "", *(f"- {fact}" for fact in report.facts), ""]
    parts += ["## Table 1: length of the code", "", *_table_1(report), ""]
    parts += [f"## Table 2: windows and candidates, gDRH+lDRH, {bits} bits", "", *_table_2(report)]
    parts += ["", f"## Table 3: query expansion, {bits} bits", "", *_table_3(report), ""]
    parts += ["## Table 4: float descriptors", "", *_table_4(report), ""]
    if report.times:
        parts += ["## Table 5: time of the filter step", "", *_table_5(report), ""]
    parts += ["![mAP against bits](map.png)"]
    page = folder / "report.md"
    write_text(page, "\n".join(parts) + "\n")
    return page


def _difference(a: InstanceResult, b: InstanceResult) -> list[str]:
    result = paired_bootstrap(a.ap, b.ap)
    interval = f"[{result.low:+.4f}, {result.high:+.4f}]"
    return [f"{result.mean_difference:+.4f} {interval}", f"{result.p_value:.4f}"]


def _papers(report: InstanceReport, table: str) -> list[str]:
    """The data sets of the paper's table, in its order."""
    return list(dict.fromkeys(f.dataset for f in report.published if f.table == table))


def _headers(datasets: list[str]) -> list[str]:
    return [f"paper, {_PAPER_NAMES[dataset]}" for dataset in datasets]


def _table_1(report: InstanceReport) -> list[str]:
    datasets = _papers(report, "1")
    floats = report.find("1", MAX_POOLED, None)
    header = ["bits", "gDRH", HYPERPLANES, "gDRH - hyperplanes", "p", "gDRH - floats", "p"]
    rows = []
    for own in report.of("1"):
        if own.method != "gDRH":
            continue
        other = report.find("1", f"gDRH, {HYPERPLANES}", own.n_bits)
        rows.append(
            [str(own.n_bits), f"{own.map:.4f}", f"{other.map:.4f}"]
            + _difference(own, other)
            + _difference(own, floats)
            + [report.paper("1", "gDRH", own.n_bits, dataset) for dataset in datasets]
        )
    published = [report.paper("1", "max-pooled conv5 (512-d floats)", None, d) for d in datasets]
    rows.append([f"{MAX_POOLED}, {floats.note}", f"{floats.map:.4f}", *"-----", *published])
    words = (
        "Whole pictures by their global code. Random hyperplanes read the same whitened features. "
        "Differences with 95 % intervals, paired bootstrap over queries, 10,000 resamples."
    )
    return [words, "", *markdown_table([*header, *_headers(datasets)], rows)]


def _table_2(report: InstanceReport) -> list[str]:
    """Rows: M and hash; columns: the ways to make regions. Measured above, published below."""
    cells = {_place_in_table_2(result.method): result for result in report.of("2")}
    ways, rows = (list(dict.fromkeys(places)) for places in zip(*cells, strict=True))
    notes = {way: result.note for (way, _), result in cells.items()}
    measured = [[row, *(f"{cells[way, row].map:.4f}" for way in ways)] for row in rows]
    published = []
    for row in rows:
        own = [cells[way, row] for way in ways]
        figures = [report.paper("2", r.method, r.n_bits, "oxford5k") for r in own]
        if set(figures) != {"-"}:
            published.append([row, *figures])
    words = (
        "Boxes are those of a picture on average, the whole picture among them; an RPN gives its "
        "300 best. All are hashed alike, by what was fitted on the windows."
    )
    lines = markdown_table(["", *(f"{way}, {notes[way]}" for way in ways)], measured)
    lines += ["", "The paper, on Oxford 5k:", "", *markdown_table(["", *ways], published)]
    return [words, "", *lines]


def _place_in_table_2(method: str) -> tuple[str, str]:
    """Column and row of "gDRH+lDRH (way; M = 100)" and of what may follow it, the hash."""
    settings, _, hashed_by = method.removeprefix("gDRH+lDRH (").partition(")")
    way, m = settings.split("; ")
    return way, m + hashed_by


def _table_3(report: InstanceReport) -> list[str]:
    datasets = _papers(report, "3")
    results = report.of("3")
    base = results[0]
    header = ["steps", "mAP", f"less {base.method}", "p"]
    rows = [
        [r.method, f"{r.map:.4f}"]
        + (_difference(r, base) if r is not base else ["-", "-"])
        + [report.paper("3", r.method, r.n_bits, dataset) for dataset in datasets]
        for r in results
    ]
    return markdown_table([*header, *_headers(datasets)], rows)


def _table_4(report: InstanceReport) -> list[str]:
    datasets = _papers(report, "4")
    results = report.of("4")
    base = next(result for result in results if result.method == "DRH")
    header = ["method", "a picture takes", "mAP", "less DRH", "p"]
    rows = [
        [r.method, r.note, f"{r.map:.4f}"]
        + (_difference(r, base) if r is not base else ["-", "-"])
        + [report.paper("4", _paper_name(r.method), r.n_bits, dataset) for dataset in datasets]
        for r in results
    ]
    return markdown_table([*header, *_headers(datasets)], rows)


def _paper_name(method: str) -> str:
    """Which row of the paper's Table 4 has the same descriptor, on another network."""
    names = {
        "SPoC": "Babenko et al. 2015",
        "R-MAC": "Tolias et al. 2015",
        "CroW": "Kalantidis et al. 2015",
    }
    return names.get(method, method)


def _table_5(report: InstanceReport) -> list[str]:
    datasets = _papers(report, "5")
    header = ["what is scanned", "ms, one query", f"ms, each of {report.batch_size}"]
    header += ["floats / this, one query", "floats / this, batch"]
    floats = report.times[0]
    rows = []
    for own in report.times:
        metric = [report.paper("5", own.paper_method, own.n_bits, d) for d in datasets]
        ratios = [f"{floats.single / own.single:.1f}", f"{floats.batch / own.batch:.1f}"]
        rows.append([own.what, f"{own.single:.3f}", f"{own.batch:.3f}", *ratios, *metric])
    headers = [f"paper, {_PAPER_NAMES[dataset]}, ms" for dataset in datasets]
    words = (
        "All on one thread, on this database, the 400 nearest of each query, the fastest of "
        "several runs. The paper's floats were scanned by code of its own; here FAISS scans them "
        "as fast as a core reads memory. "
        "`benchmarks/bench_hamming_float.py` measures the same with 105,000 pictures."
    )
    return [words, "", *markdown_table([*header, *headers], rows)]


def _write_csv(path: Path, report: InstanceReport) -> None:
    with replacing(path) as new, new.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["table", "method", "bits", "map", "rectangle_map", "stable_map"])
        for r in report.results:
            values = [f"{value:.6f}" for value in (r.map, r.rectangle_map, r.stable_map)]
            table.writerow([r.table, r.method, r.n_bits or "", *values])


def _write_plot(path: Path, report: InstanceReport) -> None:
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
