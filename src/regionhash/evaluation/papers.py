"""The figures in the four papers' tables, for reports to print next to measured ones."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class PaperFigure:
    """One published number.

    Attributes:
        paper: "region-dh", "iah", "drh" or "dmih".
        table: its number as printed, or the section if the figure is in the text.
        dataset: as in the names of the protocols, such as "voc2007".
        method: the paper's name for it; "ours" is replaced by the name of the paper.
        metric: "MAP@1000", "ACG@1000", "NDCG@1000", "MAP", "WMAP"; a name with a unit for times.
        bits: length of the code; None if there is none or it is not stated.
        value: percentages in the papers are given as fractions.
    """

    paper: str
    table: str
    dataset: str
    method: str
    metric: str
    bits: int | None
    value: float


def paper_figures(paper: str | None = None, dataset: str | None = None) -> list[PaperFigure]:
    """The published figures in the papers' order, optionally of one paper or data set.

    Tables I-IV of Region-DH, Table II of IAH, Tables 1-5 of DRH and Tables 1-2 of DMIH, except the
    MAP and weighted MAP of ITQ with 32 bits on VOC 2012 in IAH's Table II: they contradict each
    other, as a weighted MAP cannot be below the MAP.

    Raises:
        ValueError: no figure of this paper, or of this data set.
    """
    figures = _all_figures()
    for name, wanted in (("paper", paper), ("dataset", dataset)):
        known = {getattr(figure, name) for figure in figures}
        if wanted is not None and wanted not in known:
            raise ValueError(f"{name} must be one of {', '.join(sorted(known))}, got {wanted!r}")
    return [
        figure
        for figure in figures
        if paper in (None, figure.paper) and dataset in (None, figure.dataset)
    ]


@cache
def _all_figures() -> tuple[PaperFigure, ...]:
    text = resources.files("regionhash.evaluation").joinpath("paper_figures.csv").read_text("utf-8")
    return tuple(
        PaperFigure(
            row["paper"],
            row["table"],
            row["dataset"],
            row["method"],
            row["metric"],
            int(row["bits"]) if row["bits"] else None,
            float(row["value"]),
        )
        for row in csv.DictReader(text.splitlines())
    )
