from __future__ import annotations

from collections import Counter

import pytest

from regionhash.evaluation.papers import paper_figures

TOLIAS = "Tolias et al. 2015 (512-d floats)"


def value(
    paper: str, dataset: str, method: str, metric: str, bits: int | None, table: str
) -> float:
    [figure] = [
        figure
        for figure in paper_figures(paper, dataset)
        if (figure.method, figure.metric, figure.bits, figure.table)
        == (method, metric, bits, table)
    ]
    return figure.value


@pytest.mark.parametrize(
    ("printed", "where"),
    [
        (0.6862, ("region-dh", "voc2007", "Region-DH", "ACG@1000", 32, "I")),
        (0.9288, ("region-dh", "voc2007", "Region-DH", "MAP@1000", 64, "II")),
        (0.5965, ("region-dh", "voc2007", "DLBHC", "MAP@1000", 32, "II")),
        (0.6200, ("region-dh", "voc2012", "SSDH", "ACG@1000", 48, "III")),
        (0.9041, ("region-dh", "voc2012", "Region-DH", "MAP@1000", 48, "IV")),
        (0.8549, ("region-dh", "voc2012", "IAH", "MAP@1000", 64, "IV")),
        (0.7963, ("iah", "voc2007", "IAH", "NDCG@1000", 16, "II")),
        (2.9642, ("iah", "mirflickr25k", "One-Stage", "ACG@1000", 64, "II")),
        (0.3485, ("iah", "voc2012", "SH", "MAP", 64, "II")),
        (0.7725, ("iah", "voc2007", "ITQ-CCA", "WMAP", 32, "II")),
        (0.851, ("drh", "oxford5k", "DRH", "MAP", 1024, "4")),
        (0.425, ("drh", "oxford5k", "gDRH", "MAP", 128, "1")),
        (0.854, ("drh", "paris6k", "gDRH+gQE+lDRH+lQE (q = 7)", "MAP", 1024, "3")),
        (1137, ("drh", "paris106k", TOLIAS, "filter time (ms)", None, "5")),
        (12, ("drh", "oxford105k", "DRH", "filter time (ms)", 1024, "5")),
        (0.857, ("dmih", "voc2007-multi", "DMIH", "MAP", 64, "2")),
        (18.32, ("dmih", "ilsvrc2013det", "DMIH", "query time (ms)", 64, "1")),
    ],
)  # fmt: skip
def test_figures_are_those_of_the_printed_tables(
    printed: float, where: tuple[str, str, str, str, int | None, str]
) -> None:
    assert value(*where) == printed


def test_the_four_tables_of_region_dh_are_complete() -> None:
    figures = paper_figures("region-dh")
    assert Counter(figure.table for figure in figures) == {"I": 12, "II": 12, "III": 12, "IV": 12}
    assert {figure.bits for figure in figures} == {32, 48, 64}


def test_no_figure_stands_twice() -> None:
    places = Counter(
        (figure.paper, figure.table, figure.dataset, figure.method, figure.metric, figure.bits)
        for figure in paper_figures()
    )
    assert set(places.values()) == {1}


def test_no_weighted_map_is_below_the_map_of_the_same_ranking() -> None:
    values = {(f.dataset, f.method, f.bits, f.metric): f.value for f in paper_figures("iah")}
    weighted = {place[:3]: v for place, v in values.items() if place[3] == "WMAP"}
    assert len(weighted) == 59
    assert all(v > values[(*place, "MAP")] for place, v in weighted.items())


def test_papers_and_data_sets_are_selected_together() -> None:
    assert {f.paper for f in paper_figures(dataset="voc2007")} == {"region-dh", "iah"}
    assert paper_figures("drh", "voc2007") == []


def test_an_unknown_paper_or_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="paper must be one of dmih, drh, iah, region-dh, got 'x'"):
        paper_figures("x")
    with pytest.raises(ValueError, match=r"dataset must be one of .*voc2007.*, got 'coco'"):
        paper_figures(dataset="coco")
