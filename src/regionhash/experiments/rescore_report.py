"""The report of `rescore` as a Markdown page and a CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from regionhash.evaluation import paired_bootstrap
from regionhash.experiments.common import markdown_table, write_csv, write_page
from regionhash.structures import Floats, Floats64


class Part(NamedTuple):
    """A part of a search, which reads one thing that is kept of each region.

    Attributes:
        what: "codes", which are scanned; "bits", the codes again, by the asymmetric distance;
            "floats", "int8" or "PQ", product quantisation.
        n_bytes: kept of each region.
        n_pictures: how many pictures a scan passes on, or are ranked again; 0 ranks all.
    """

    what: str
    n_bytes: int
    n_pictures: int = 0


@dataclass(frozen=True, eq=False)
class Row:
    """A way to rank pictures.

    Attributes:
        n_dims: of the features after whitening.
        name: for the report.
        precision: (Q,) average precision.
        recall: (Q,) share of the first pictures by floats that are among its first.
        parts: of a search, in their order.
    """

    n_dims: int
    name: str
    precision: Floats64
    recall: Floats
    parts: tuple[Part, ...]

    @property
    def n_bytes(self) -> int:
        """Kept of a region; of codes that are compared twice, the longer ones hold the others."""
        codes = [part.n_bytes for part in self.parts if part.what in ("codes", "bits")]
        others = [part.n_bytes for part in self.parts if part.what not in ("codes", "bits")]
        return max(codes, default=0) + sum(others)


@dataclass(frozen=True, eq=False)
class RescoreReport:
    """What a preset found.

    Attributes:
        title, facts: of the page.
        rows: in any order.
        milliseconds: of each part of the rows, in a random collection.
        timed: pictures of that collection.
    """

    title: str
    facts: Sequence[str]
    rows: Sequence[Row]
    milliseconds: Mapping[Part, float]
    timed: int


def write_report(folder: Path, report: RescoreReport) -> Path:
    """Writes report.md and results.csv into `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [_ABOUT.format(timed=f"{report.timed:,}")]
    for n_dims in dict.fromkeys(row.n_dims for row in report.rows):
        rows = [row for row in report.rows if row.n_dims == n_dims]
        parts += ["", f"## Features of {n_dims} dimensions", "", *_table(rows, report)]
    _write_csv(folder / "results.csv", report)
    return write_page(folder, report.title, report.facts, parts)


def _table(rows: Sequence[Row], report: RescoreReport) -> list[str]:
    header = ["ranked by", "bytes of a region", "recall", "MAP"]
    header += ["recall, less bits", "MAP, less bits", "ms"]
    return markdown_table(
        header,
        [
            [
                row.name,
                f"{row.n_bytes}",
                f"{100 * row.recall.mean():.1f}",
                f"{100 * row.precision.mean():.1f}",
                *_less_bits(row, rows),
                f"{_milliseconds(row, report):.1f}",
            ]
            for row in sorted(rows, key=lambda row: row.n_bytes)
        ],
    )


def _write_csv(path: Path, report: RescoreReport) -> None:
    header = ["dimensions", "method", "bytes_per_region", "recall_20", "map", "milliseconds"]
    table = [
        [
            row.n_dims,
            row.name,
            row.n_bytes,
            f"{row.recall.mean():.6f}",
            f"{row.precision.mean():.6f}",
            f"{_milliseconds(row, report):.3f}",
        ]
        for row in report.rows
    ]
    write_csv(path, header, table)


_ABOUT = (
    "Recall, MAP and differences in per cent. A picture has the distance of its nearest region. "
    "Recall is the share of the first 20 pictures by floats that are among the first 20; equal "
    "distances are in the order of the database, and count in MAP as the mean over their orders. "
    '"X of 400": codes are compared by their Hamming distance, then the first 400 pictures are '
    "ranked again by X, and the others follow as they were. Floats are whitened features, compared "
    "by their cosine; int8 has 127 as the greatest part of each feature; PQ is product "
    "quantisation; asymmetric weighs each bit by how sure the query is of it, and keeps nothing; "
    '"64 of 1024 bits" compares the first 64 of each code before that. '
    "**Less bits**: less codes of as many bytes alone, the first 400 ranked again by the "
    "asymmetric distance; intervals are of 95 %, paired bootstrap over queries, 10,000 resamples. "
    "Queries of one picture are not independent, so they are too narrow. Times are of one search "
    "of {timed} pictures with ten random regions each: processor time, least of five, without "
    "encoding the query. Floats, int8 and PQ alone are searched by FAISS in a tenth "
    "of the regions, and ten times that is shown."
)


def _less_bits(row: Row, rows: Sequence[Row]) -> list[str]:
    """Recall and MAP less those of codes of as many bytes; dashes if there are none."""
    name = f"{8 * row.n_bytes} bits, asymmetric of 400"
    base = next((other for other in rows if other.name == name), row)
    if base is row:
        return ["-", "-"]
    cells = []
    for ours, theirs in ((row.recall, base.recall), (row.precision, base.precision)):
        found = paired_bootstrap(ours, theirs)
        ends = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        cells.append(f"{100 * found.mean_difference:+.1f} {ends}")
    return cells


def _milliseconds(row: Row, report: RescoreReport) -> float:
    return sum(report.milliseconds[part] for part in row.parts)
