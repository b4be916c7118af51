"""The report of `boxes` as a Markdown page and a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regionhash.evaluation import paired_bootstrap
from regionhash.experiments.boxes_methods import FLOATS, SIZES, Score, Task
from regionhash.experiments.common import markdown_table, write_csv, write_page
from regionhash.structures import Floats64, Ints

ALL = ("all", 0.0, 1.01)
SMALL = SIZES[0]


@dataclass(frozen=True, eq=False)
class BoxesReport:
    """What a preset found.

    Attributes:
        title, facts: of the page.
        task: the queries, of which the sizes are read.
        compared: kinds of regions with every length of code; the first method is windows.
        chosen: what was chosen for small objects, with every length of code.
        trained: trained models, each with its own regions and then with a detector's boxes.
        tried: the queries held out of the database, and each method with codes of the default
            length there; None if nothing was chosen here.
        best: names of the methods that were best there.
        default_bits: the default length.
    """

    title: str
    facts: Sequence[str]
    task: Task
    compared: Sequence[Score]
    chosen: Sequence[Score]
    trained: Sequence[Score]
    tried: tuple[Task, Sequence[Score]] | None
    best: Sequence[str]
    default_bits: int


def write_report(folder: Path, report: BoxesReport) -> Path:
    """Writes report.md and results.csv into `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = list(dict.fromkeys(score.n_bits for score in report.compared))
    parts = [_ABOUT, ""]
    for n_bits in sorted(lengths, key=lambda n: (n != report.default_bits, n != FLOATS, -n)):
        rows = [score for score in report.compared if score.n_bits == n_bits]
        parts += [f"## Regions: {_length(n_bits)}", "", *_regions(report.task, rows), ""]
    parts += ["## Against windows", "", *_against(report, report.compared, report.default_bits), ""]
    if report.trained:
        parts += ["## Models trained on labels", "", *_trained(report.task, report.trained), ""]
    if report.tried is not None:
        parts += ["## Small objects: what was tried", "", *_tried(report, *report.tried), ""]
    parts += ["## Small objects: what was chosen", "", *_chosen(report)]
    _write_csv(folder / "results.csv", report)
    return write_page(folder, report.title, report.facts, parts)


_ABOUT = (
    "MAP and LocScore in per cent. A picture has the distance of its nearest region, the whole "
    "picture being one. LocScore is the share of right pictures, among as many results as there "
    "are, whose nearest region has an IoU of .5 with an object that was searched for. Sizes are "
    "parts of the query's picture that its box takes. Intervals are of 95 %, paired bootstrap over "
    "queries, 10,000 resamples; queries of one picture are not independent, so they are too narrow."
)


def _length(n_bits: int) -> str:
    return "floats, by cosine" if n_bits == FLOATS else f"codes of {n_bits} bits"


def _rows(task: Task, size: tuple[str, float, float]) -> Ints:
    return task.of_size(*size[1:])


def mean_of(values: Floats64, rows: Ints) -> float:
    """The mean of values (Q,) of some rows, without those that are NaN; NaN if none is left."""
    known = values[rows][~np.isnan(values[rows])]
    return float(known.mean()) if len(known) else float("nan")


def _pair(task: Task, score: Score, size: tuple[str, float, float]) -> str:
    rows = _rows(task, size)
    values = [mean_of(part, rows) for part in (score.precision, score.located)]
    return ", ".join("-" if np.isnan(value) else f"{100 * value:.1f}" for value in values)


def _regions(task: Task, rows: Sequence[Score]) -> list[str]:
    sizes = [ALL, *SIZES]
    header = ["regions", "per picture", "bytes per picture"]
    header += [f"{size[0]}: {len(_rows(task, size))} queries" for size in sizes]
    table = [
        [
            score.method.name,
            f"{score.per_picture:.1f}",
            f"{score.per_picture * score.n_bytes:,.0f}",
            *(_pair(task, score, size) for size in sizes),
        ]
        for score in rows
    ]
    return markdown_table(header, table)


def _difference(a: Floats64, b: Floats64, rows: Ints) -> str:
    """Difference of means of a and b (Q,), its interval, and the relative gain."""
    rows = rows[~np.isnan(a[rows]) & ~np.isnan(b[rows])]
    if not len(rows):
        return "-"
    found = paired_bootstrap(a[rows], b[rows])
    base = float(b[rows].mean())
    ends = f"{100 * found.mean_difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    if base <= 0:
        return ends
    gains = [x / base for x in (found.mean_difference, found.low, found.high)]
    return f"{ends}, {gains[0]:+.0%} [{gains[1]:+.0%}, {gains[2]:+.0%}]"


def _against(report: BoxesReport, scores: Sequence[Score], n_bits: int) -> list[str]:
    rows = [score for score in scores if score.n_bits == n_bits]
    base = next(score for score in report.compared if score.n_bits == n_bits)
    words = (
        f"{_length(n_bits).capitalize()}, less {base.method.name}: difference in points with its "
        "interval, and the same as a share of what windows have."
    )
    pairs = [(score, base) for score in rows if score is not base]
    return [words, "", *_differences(report.task, pairs)]


def _differences(task: Task, pairs: Sequence[tuple[Score, Score]]) -> list[str]:
    """A table of what the first of each pair has more than the second."""
    table = []
    for score, base in pairs:
        row = [score.method.name, f"{score.per_picture / base.per_picture:.2f}"]
        for size in (ALL, SMALL):
            which = _rows(task, size)
            row.append(_difference(score.precision, base.precision, which))
            ours, theirs = (mean_of(x.located, which) for x in (score, base))
            row.append(f"{ours / theirs:.1f} x" if theirs > 0 else f"{100 * ours:.1f} against 0")
        table.append(row)
    header = ["regions", "codes", "MAP", "LocScore", f"MAP, {SMALL[0]}", f"LocScore, {SMALL[0]}"]
    return markdown_table(header, table)


def _trained(task: Task, scores: Sequence[Score]) -> list[str]:
    words = "With the detector's boxes, less the same model with its own regions:"
    pairs = list(zip(scores[1::2], scores[::2], strict=True))
    return [*_regions(task, scores), "", words, "", *_differences(task, pairs)]


def _tried(report: BoxesReport, task: Task, scores: Sequence[Score]) -> list[str]:
    n_pictures = len(np.unique(task.queries[:, 0]))
    words = (
        f"On pictures held out of the database: {len(task.queries)} objects in {n_pictures} "
        f"pictures of a third of it are the queries, the other {len(task.database)} pictures are "
        f"the database. {_length(report.default_bits).capitalize()}. Best for small objects with a "
        f"quarter of the codes of windows: {' and '.join(report.best)}."
    )
    return [words, "", *_regions(task, scores)]


def _chosen(report: BoxesReport) -> list[str]:
    lines = []
    lengths = list(dict.fromkeys(score.n_bits for score in report.chosen))
    for n_bits in lengths:
        lines += _against(report, report.chosen, n_bits)
        rows = [score for score in report.compared if score.n_bits == n_bits][:1]
        rows += [score for score in report.chosen if score.n_bits == n_bits]
        lines += ["", *_regions(report.task, rows), ""]
    return lines


def _write_csv(path: Path, report: BoxesReport) -> None:
    header = ["part", "method", "bits", "regions_per_picture", "bytes_per_picture", "size"]
    rows: list[list[object]] = []
    groups = [("compared", report.task, report.compared), ("chosen", report.task, report.chosen)]
    groups.append(("trained", report.task, report.trained))
    if report.tried is not None:
        groups.append(("tried", *report.tried))
    for part, task, scores in groups:
        for score in scores:
            for size in (ALL, *SIZES):
                which = _rows(task, size)
                values = [mean_of(x, which) for x in (score.precision, score.located)]
                rows.append(
                    [
                        part,
                        score.method.name,
                        score.n_bits or "floats",
                        f"{score.per_picture:.2f}",
                        f"{score.per_picture * score.n_bytes:.0f}",
                        size[0],
                        len(which),
                        *(f"{value:.6f}" for value in values),
                    ]
                )
    write_csv(path, [*header, "queries", "map", "locscore"], rows)
