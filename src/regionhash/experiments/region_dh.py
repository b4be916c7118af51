"""Region-DH's experiments (Sec. IV-D): Region-DH and whole-image hashing on PASCAL VOC."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RegionDHPreset:
    """Pictures to search and to search with.

    Attributes:
        dataset: its name in `paper_figures`.
        database: spec of the pictures that are searched and trained on, as `open_dataset` takes
            it; "{root}" stands for the folder that the user names.
        queries: spec of the queries.
        layout: what must be in that folder, for the message if it is not.
        k: the cut of the ranking.
        bits: lengths of the codes.
    """

    dataset: str
    database: str
    queries: str
    layout: str
    k: int = 1000
    bits: tuple[int, ...] = (32, 48, 64)


PRESETS = {
    "region-dh/voc2007": RegionDHPreset(
        "voc2007",
        database="voc:{root}/VOC2007:trainval",
        queries="voc:{root}/VOC2007:test",
        layout="VOC2007 with JPEGImages, Annotations, ImageSets/Main/trainval.txt and test.txt",
    ),
    "region-dh/voc2012": RegionDHPreset(
        "voc2012",
        database="voc:{root}/VOC2012:train",
        queries="voc:{root}/VOC2012:val",
        layout="VOC2012 with JPEGImages, Annotations, ImageSets/Main/train.txt and val.txt",
    ),
}
"""A preset runs on whatever part of its data is there."""


@dataclass(frozen=True)
class RegionDHOptions:
    """How a preset is run; the defaults are those of the report in docs/results.

    Attributes:
        backbone, weights: see `build_backbone`.
        short: short side of the network's input in pixels.
        seeds: how often each hash is trained on the cached features; these have seed 0.
        detector_epochs: passes of the detector's training, and of SSDH's with its backbone.
        trained_stages: stages of the backbone that these trainings change.
        head_epochs: passes of each hash's training. Region-DH, which learns from dozens of regions
            in each picture, takes half of them.
        views: cached views of each training picture.
        processes: that train the detector together; on a CPU one per core is fastest.
        ablations: whether the variants of Region-DH are run, with the first seed.
    """

    backbone: str = "mobilenet_v2_fpn"
    weights: str = "default"
    short: int = 384
    seeds: int = 2
    detector_epochs: int = 6
    trained_stages: int = 1
    head_epochs: int = 16
    views: int = 2
    processes: int = 1
    ablations: bool = True

    def __post_init__(self) -> None:
        for name in ("seeds", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
