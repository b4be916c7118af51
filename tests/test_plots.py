from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from regionhash.evaluation.metrics import RankingCurves, ranking_curves
from regionhash.evaluation.papers import paper_figures
from regionhash.evaluation.plots import (
    method_style,
    plot_against_bits,
    plot_at_k,
    plot_precision_recall,
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Axes]]:
    """The axes of the plots that the test writes."""
    axes: list[Axes] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **options: object) -> None:
        axes.extend(figure.axes)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    yield axes


@pytest.fixture
def curves() -> dict[str, RankingCurves]:
    rng = np.random.default_rng(0)
    relevant = rng.integers(0, 2, (3, 200))
    far = rng.integers(0, 64, (3, 200))
    return {
        "Region-DH": ranking_curves(np.maximum(0, far - 20 * relevant), relevant),
        "SSDH": ranking_curves(far, relevant),
    }


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        return image.size == (960, 660) and len(image.convert("RGB").getcolors(2**24)) > 50


def test_bits_are_drawn_solid_as_measured_and_dashed_as_published(
    tmp_path: Path, drawn: list[Axes]
) -> None:
    path = tmp_path / "acg.png"
    plot_against_bits(
        path,
        {"Region-DH": {64: 0.8, 32: 0.7}, "SSDH": {32: 0.6}},
        metric="ACG@1000",
        published=paper_figures("region-dh", "voc2007"),
    )
    assert is_picture(path)
    lines = {line.get_label(): line for line in drawn[0].get_lines()}
    assert lines["Region-DH"].get_xydata().tolist() == [[32, 0.7], [64, 0.8]]
    assert lines["Region-DH (paper)"].get_ydata().tolist() == [0.6862, 0.6832, 0.7048]
    assert lines["Region-DH"].get_linestyle() == "-"
    assert lines["Region-DH (paper)"].get_linestyle() == "--"
    assert lines["Region-DH"].get_color() == lines["Region-DH (paper)"].get_color()
    assert set(lines) == {"Region-DH", "SSDH"} | {
        f"{method} (paper)" for method in ("Region-DH", "SSDH", "IAH", "DLBHC")
    }
    assert drawn[0].get_xticks().tolist() == [32, 48, 64]


@pytest.mark.parametrize("metric", ["precision", "recall", "acg"])
def test_measures_at_k_are_drawn_against_k(
    metric: str, tmp_path: Path, drawn: list[Axes], curves: dict[str, RankingCurves]
) -> None:
    path = tmp_path / "k.png"
    plot_at_k(path, curves, metric=metric)
    assert is_picture(path)
    for line, curve in zip(drawn[0].get_lines(), curves.values(), strict=True):
        assert line.get_xdata().tolist() == curve.ks.tolist()
        assert line.get_ydata().tolist() == getattr(curve, metric).tolist()


def test_precision_is_drawn_against_recall(
    tmp_path: Path, drawn: list[Axes], curves: dict[str, RankingCurves]
) -> None:
    path = tmp_path / "pr.png"
    plot_precision_recall(path, curves)
    assert is_picture(path)
    line = drawn[0].get_lines()[0]
    assert line.get_xdata().tolist() == curves["Region-DH"].recall.tolist()
    assert line.get_ydata().tolist() == curves["Region-DH"].precision.tolist()


def test_a_method_looks_the_same_whatever_the_case_of_its_name() -> None:
    assert method_style("Region-DH") == method_style("region-dh")
    assert method_style("my own method") == method_style("my own method")


def test_the_methods_of_the_package_are_told_apart() -> None:
    names = ["region-dh", "iah", "ssdh", "dlbhc", "itq", "itq-cca", "one-stage"]
    names.append("control")
    names += ["drh", "dmih", "dsrh", "sh", "lsh", "pmh", "dmih-ind", "l2-scan"]
    assert len({method_style(name) for name in names}) == len(names)
    assert len({method_style(name)[0] for name in names[:8]}) == 8


def test_a_plot_of_nothing_is_an_empty_plot(tmp_path: Path) -> None:
    plot_precision_recall(tmp_path / "none.png", {})
    assert (tmp_path / "none.png").stat().st_size > 0


def test_plots_leave_the_global_state_of_pyplot_alone(
    tmp_path: Path, curves: dict[str, RankingCurves]
) -> None:
    plot_precision_recall(tmp_path / "pr.png", curves)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_a_plot_is_replaced_whole_or_not_at_all(
    tmp_path: Path, curves: dict[str, RankingCurves], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pr.png"
    path.write_text("old")

    def half(figure: Figure, path: Path, **_: object) -> None:
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="disk full"):
        plot_precision_recall(path, curves)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["pr.png"]
