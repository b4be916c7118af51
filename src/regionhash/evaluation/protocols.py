"""The papers' experiments as named presets: which pictures are searched, and with which queries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """One experiment.

    Attributes:
        paper, dataset: under which `paper_figures` finds what was published.
        database: spec of the pictures that are searched and trained on, as `open_dataset` takes
            it; "{root}" stands for the folder that the user names.
        queries: spec of the queries.
        layout: what has to lie in that folder, for the message where it does not.
        k: the cut of the ranking.
        bits: lengths of the codes.
    """

    paper: str
    dataset: str
    database: str
    queries: str
    layout: str
    k: int = 1000
    bits: tuple[int, ...] = (32, 48, 64)


PRESETS = {
    "region-dh/voc2007": Preset(
        "region-dh",
        "voc2007",
        database="voc:{root}/VOC2007:trainval",
        queries="voc:{root}/VOC2007:test",
        layout="VOC2007 with JPEGImages, Annotations, ImageSets/Main/trainval.txt and test.txt",
    ),
    "region-dh/voc2012": Preset(
        "region-dh",
        "voc2012",
        database="voc:{root}/VOC2012:train",
        queries="voc:{root}/VOC2012:val",
        layout="VOC2012 with JPEGImages, Annotations, ImageSets/Main/train.txt and val.txt",
    ),
}
"""Region-DH, Sec. IV-D: the database is also what is trained on. A preset runs on whatever part of
its data is there."""


def find_preset(name: str) -> Preset:
    """The preset `name`. Raises ValueError with the known names."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
