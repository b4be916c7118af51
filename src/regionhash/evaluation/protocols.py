"""The papers' experiments as named presets: which pictures are searched, and with which queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from regionhash.data.instances import InstanceSearch, read_instances
from regionhash.data.oxford import read_oxford


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


@dataclass(frozen=True)
class InstancePreset:
    """One experiment of instance search.

    Attributes:
        read: reads the pictures and queries in the folder that the user names.
        distractors: specs of further pictures, as `open_dataset` takes them; "{root}" stands for
            that folder.
        layout: what has to lie in it, for the message where it does not.
        bits: lengths of the codes (DRH, Table 1).
        overlaps: of the windows; the paper varies them on Oxford 5k alone (Table 2).
    """

    read: Callable[[Path], InstanceSearch]
    layout: str
    distractors: tuple[str, ...] = ()
    bits: tuple[int, ...] = (128, 256, 512, 1024, 4096)
    overlaps: tuple[float, ...] = (0.6,)


_OXFORD = "oxford5k with the 5,062 pictures and the files of the ground truth"
_PARIS = "paris6k with the 6,412 pictures and the files of the ground truth"
_FLICKR = "; flickr100k with the 100,071 other pictures"

INSTANCE_PRESETS = {
    "drh/oxford5k": InstancePreset(
        lambda root: read_oxford(root / "oxford5k"), _OXFORD, overlaps=(0.4, 0.5, 0.6, 0.7)
    ),
    "drh/oxford105k": InstancePreset(
        lambda root: read_oxford(root / "oxford5k"),
        _OXFORD + _FLICKR,
        ("folder:{root}/flickr100k",),
    ),
    "drh/paris6k": InstancePreset(lambda root: read_oxford(root / "paris6k"), _PARIS),
    "drh/paris106k": InstancePreset(
        lambda root: read_oxford(root / "paris6k"), _PARIS + _FLICKR, ("folder:{root}/flickr100k",)
    ),
    "drh/instances": InstancePreset(
        lambda root: read_instances(root / "objects.csv", images_dir=root / "images"),
        "objects.csv with the header image,label,xmin,ymin,xmax,ymax and the pictures in images",
        overlaps=(0.4, 0.5, 0.6, 0.7),
    ),
}
"""DRH, Sec. "Experiments": the database is also what whitening and hash are fitted on."""


def find_preset(name: str) -> Preset:
    """The preset `name` of labelled pictures. Raises ValueError with the known names."""
    if name not in PRESETS:
        raise ValueError(
            f"unknown preset {name!r}; known: {', '.join([*PRESETS, *INSTANCE_PRESETS])}"
        )
    return PRESETS[name]


def find_instance_preset(name: str) -> InstancePreset:
    """The preset `name` of instance search. Raises ValueError with the known names."""
    if name not in INSTANCE_PRESETS:
        raise ValueError(
            f"unknown preset {name!r}; known: {', '.join([*PRESETS, *INSTANCE_PRESETS])}"
        )
    return INSTANCE_PRESETS[name]
