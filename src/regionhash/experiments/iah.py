"""IAH's experiments (Sec. V): semantic and category-aware hashing, and their peers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class IAHPreset:
    """Pictures to search and to search with.

    Attributes:
        dataset: its name in `paper_figures`.
        pictures: specs of the pictures, as `open_dataset` takes them; "{root}" stands for the
            folder that the user names.
        layout: what must be in that folder.
        queries: spec of the queries; "" draws them from the pictures.
        n_queries: how many are drawn, with a seed; of fewer than five times as many a fifth.
        multi_label: the form of the label probabilities, see `multi_label_loss`.
        bits: lengths of the pictures' codes; category_bits: of the categories' codes.
        k: the cut of NDCG and ACG.
    """

    dataset: str
    pictures: tuple[str, ...]
    layout: str
    queries: str = ""
    n_queries: int = 2000
    multi_label: Literal["softmax", "bce"] = "softmax"
    bits: tuple[int, ...] = (16, 32, 48, 64)
    category_bits: tuple[int, ...] = (4, 8, 12)
    k: int = 1000


_VOC_FOLDER = "with JPEGImages, Annotations and, in ImageSets/Main,"

PRESETS = {
    "iah/voc2007": IAHPreset(
        "voc2007",
        ("voc:{root}/VOC2007:trainval", "voc:{root}/VOC2007:test"),
        f"VOC2007 {_VOC_FOLDER} trainval.txt and test.txt",
    ),
    "iah/voc2012": IAHPreset(
        "voc2012", ("voc:{root}/VOC2012:trainval",), f"VOC2012 {_VOC_FOLDER} trainval.txt"
    ),
    "iah/voc2012-split": IAHPreset(
        "voc2012",
        ("voc:{root}/VOC2012:train",),
        f"VOC2012 {_VOC_FOLDER} train.txt and val.txt",
        queries="voc:{root}/VOC2012:val",
    ),
    "iah/mirflickr25k": IAHPreset(
        "mirflickr25k",
        ("mirflickr:{root}/mirflickr",),
        "mirflickr with im1.jpg, im2.jpg, ... and the folder of annotations",
        multi_label="bce",
    ),
}
"""Sec. V-A: 2,000 random pictures are the queries, the rest is database and training set.
`iah/voc2012-split` has the queries of `region-dh/voc2012`, for detectors that were trained on its
database: queries drawn at random would be pictures that the detector has seen."""


@dataclass(frozen=True)
class IAHOptions:
    """How a preset is run.

    Attributes:
        backbone, weights, short: see `RegionDHOptions`; a detector brings its own.
        detector: folder of a Region-DH checkpoint, whose RPN proposes and whose backbone all
            methods read; None takes selective search and the backbone as it is.
        n_proposals: of a picture, at most.
        head_epochs: passes of each training. IAH and Region-DH, of which a part is shared by all
            lengths, take a third for what is not; what IAH shares takes the rest.
        seed: random seed.
        unseen: whether the protocol of unseen classes is run, too.
    """

    backbone: str = "mobilenet_v2_fpn"
    weights: str = "default"
    short: int = 384
    detector: Path | None = None
    n_proposals: int = 48
    head_epochs: int = 16
    seed: int = 0
    unseen: bool = True
