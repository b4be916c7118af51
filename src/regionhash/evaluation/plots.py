"""Plots of results as PNG files. A method has the same colour and marker in each."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from regionhash.evaluation.metrics import RankingCurves
from regionhash.evaluation.papers import PaperFigure
from regionhash.files.atomic import replacing

# Okabe and Ito, "Color Universal Design", 2008; grey for yellow, which is too pale on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#888888")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# The first eight differ in colour, and so do the methods that a paper compares.
_METHODS = (
    "region-dh",
    "iah",
    "ssdh",
    "dlbhc",
    "itq",
    "itq-cca",
    "one-stage",
    "control",
    "drh",
    "dmih",
    "dsrh",
    "sh",
    "lsh",
    "pmh",
    "dmih-ind",
    "l2-scan",
    "thresholded classes",
    "random hyperplanes",
    "ssdh, fine-tuned",
    "pmh+cnn",
    "region-dh, trained on boxes",
)
_WIDTH, _HEIGHT, _DPI = 6.4, 4.4, 150  # inches, inches, dots per inch
_MOST_MARKERS = 12  # on one curve
_MOST_LINEAR = 8  # longest over shortest code; beyond that the axis is logarithmic


def plot_against_bits(
    path: str | Path,
    measured: Mapping[str, Mapping[int, float]],
    *,
    metric: str,
    published: Sequence[PaperFigure] = (),
) -> None:
    """Plots a metric against code length: solid if measured, dashed if published.

    Args:
        path: the PNG file.
        measured: for each method, the value at each number of bits.
        metric: its name, for the axis; only figures of this metric in `published` are drawn.
        published: figures for one data set from `paper_figures`; those without bits are left out.
    """
    figure, axes = _blank(xlabel="code length (bits)", ylabel=metric)
    lengths = {n_bits for values in measured.values() for n_bits in values}
    for method, values in measured.items():
        _line(axes, method, method, sorted(values.items()))
    papers: dict[str, dict[int, float]] = {}
    for entry in published:
        if entry.metric == metric and entry.bits is not None:
            papers.setdefault(entry.method, {})[entry.bits] = entry.value
            lengths.add(entry.bits)
    for method, values in papers.items():
        _line(axes, method, f"{method} (paper)", sorted(values.items()), published=True)
    if lengths and max(lengths) > _MOST_LINEAR * min(lengths):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(sorted(lengths))
    _write(figure, axes, path)


def plot_at_k(
    path: str | Path,
    curves: Mapping[str, RankingCurves],
    *,
    metric: Literal["precision", "recall", "acg"],
) -> None:
    """Plots a measure of the top k against k, on a logarithmic scale, one curve per method."""
    label = {"precision": "precision@k", "recall": "recall@k", "acg": "ACG@k"}[metric]
    figure, axes = _blank(xlabel="k, top-ranked images", ylabel=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    for method, curve in curves.items():
        _line(axes, method, method, list(zip(curve.ks, getattr(curve, metric), strict=True)))
    _write(figure, axes, path)


def plot_against_m(
    path: str | Path, measured: Mapping[str, Mapping[int, float]], *, metric: str
) -> None:
    """Plots a metric of the top m against m, one curve per method (IAH, Figs. 6 and 7).

    Args:
        path: the PNG file.
        measured: for each method, the value at each m.
        metric: its name, for the axis.
    """
    figure, axes = _blank(xlabel="m, top-ranked images", ylabel=metric)
    for method, values in measured.items():
        _line(axes, method, method, sorted(values.items()))
    _write(figure, axes, path)


def plot_precision_recall(path: str | Path, curves: Mapping[str, RankingCurves]) -> None:
    """Plots mean precision against mean recall at the same cuts, one curve per method."""
    figure, axes = _blank(xlabel="recall", ylabel="precision")
    for method, curve in curves.items():
        _line(axes, method, method, list(zip(curve.recall, curve.precision, strict=True)))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    _write(figure, axes, path)


def method_style(method: str) -> tuple[str, str]:
    """The colour and the marker of a method, regardless of the case of its name.

    The style of an unknown method is derived from its name, so it also looks the same in every
    plot; it may coincide with another's.
    """
    name = method.lower()
    index = _METHODS.index(name) if name in _METHODS else zlib.crc32(name.encode())
    return (
        _COLORS[index % len(_COLORS)],
        _MARKERS[(index + index // len(_COLORS)) % len(_MARKERS)],
    )


def _blank(*, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    # not pyplot: it keeps every figure in global state and may look for a screen
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(
    axes: Axes,
    method: str,
    label: str,
    points: Sequence[tuple[float, float]],
    *,
    published: bool = False,
) -> None:
    color, marker = method_style(method)
    x, y = np.array(points, float).reshape(-1, 2).T
    axes.plot(
        x,
        y,
        label=label,
        color=color,
        marker=marker,
        markersize=5,
        markevery=max(1, len(x) // _MOST_MARKERS),
        markerfacecolor="white" if published else color,
        linestyle="--" if published else "-",
        linewidth=1.2 if published else 1.8,
        clip_on=False,
    )


def _write(figure: Figure, axes: Axes, path: str | Path) -> None:
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    with replacing(Path(path)) as new:
        figure.savefig(new, dpi=_DPI, format="png")
