"""DMIH's experiments (Sec. 4): queries of one object and of several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DMIHPreset:
    """Pictures to search, and queries of one object or of several.

    Attributes:
        pictures: specs of the pictures, as `open_dataset` takes them; "{root}" stands for the
            folder that the user names.
        layout: what must be in that folder.
        queries: spec of the pictures of the queries; "" draws them from `pictures`.
        per_class: how many queries of one object are drawn for each class.
        marked: whether a query object is a box; otherwise it is a whole picture.
        combined: how many queries are drawn for each combination of classes; 0 leaves them out.
        cuts: k of P@k.
        bits: lengths of the codes.
    """

    pictures: tuple[str, ...]
    layout: str
    queries: str = ""
    per_class: int = 50
    marked: bool = True
    combined: int = 0
    cuts: tuple[int, ...] = (30, 100)
    bits: tuple[int, ...] = (8, 16, 32, 64)


_VOC_2007 = ("voc:{root}/VOC2007:trainval", "voc:{root}/VOC2007:test")
_VOC_2007_FOLDER = "VOC2007 with JPEGImages, Annotations, ImageSets/Main/trainval.txt and test.txt"

PRESETS = {
    "dmih/sival": DMIHPreset(
        ("sival:{root}/SIVAL",), "SIVAL with a folder for each category", per_class=8, marked=False
    ),
    "dmih/voc2007": DMIHPreset(_VOC_2007, _VOC_2007_FOLDER),
    "dmih/voc2007-multi": DMIHPreset(_VOC_2007, _VOC_2007_FOLDER, combined=50, bits=(64,)),
    "dmih/ilsvrc2013det": DMIHPreset(
        ("ilsvrc:{root}:train",),
        "ILSVRC2013_DET_train with pictures and ILSVRC2013_DET_bbox_train with XML files",
        per_class=100,
        marked=False,
        bits=(64,),
    ),
    "dmih/voc2012-multi": DMIHPreset(
        ("voc:{root}/VOC2012:train",),
        "VOC2012 with JPEGImages, Annotations, ImageSets/Main/train.txt and val.txt",
        queries="voc:{root}/VOC2012:val",
        combined=50,
        bits=(64,),
    ),
}
"""The database is also what is trained on. Combinations of classes are those of Table 2 and those
that at least 20 pictures of the database show."""

TABLE_2 = (
    ("bottle", "tvmonitor"),
    ("horse", "person"),
    ("bus", "car"),
    ("dog", "cat"),
    ("bottle", "chair", "tvmonitor"),
    ("dog", "cat", "person"),
    ("bus", "car", "bicycle"),
    ("horse", "person", "car", "dog"),
    ("chair", "pottedplant", "sofa", "tvmonitor"),
)
"""The combinations of DMIH's Table 2, in VOC's names."""


@dataclass(frozen=True)
class DMIHOptions:
    """How a preset is run.

    Attributes:
        backbone, weights, short: see `RegionDHOptions`.
        epochs: passes of every training.
        views: cached views of each training picture.
        margin: of DMIH's pair loss, in place of the paper's.
        channels: of the multi-scale maps, and features of a proposal.
        detector: folder of a Region-DH checkpoint, whose codes of regions are a further row.
        sift: whether PmH on SIFT words is run; it needs OpenCV.
        seed: of the trainings and of the draw of the queries.
    """

    backbone: str = "mobilenet_v2_fpn"
    weights: str = "default"
    short: int = 384
    epochs: int = 8
    views: int = 2
    margin: float = 1.25
    channels: int = 128
    detector: Path | None = None
    sift: bool = True
    seed: int = 0
