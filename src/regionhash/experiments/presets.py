"""The papers' experiments as named presets: which pictures are searched, and with which queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regionhash.data.instances import BoxQuerySet, read_instances
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

    read: Callable[[Path], BoxQuerySet]
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


@dataclass(frozen=True)
class MultiLabelPreset:
    """One experiment of IAH (Sec. V).

    Attributes:
        dataset: under which `paper_figures` finds what was published.
        pictures: specs of the pictures, as `open_dataset` takes them; "{root}" stands for the
            folder that the user names.
        layout: what has to lie in that folder.
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

MULTI_LABEL_PRESETS = {
    "iah/voc2007": MultiLabelPreset(
        "voc2007",
        ("voc:{root}/VOC2007:trainval", "voc:{root}/VOC2007:test"),
        f"VOC2007 {_VOC_FOLDER} trainval.txt and test.txt",
    ),
    "iah/voc2012": MultiLabelPreset(
        "voc2012", ("voc:{root}/VOC2012:trainval",), f"VOC2012 {_VOC_FOLDER} trainval.txt"
    ),
    "iah/voc2012-split": MultiLabelPreset(
        "voc2012",
        ("voc:{root}/VOC2012:train",),
        f"VOC2012 {_VOC_FOLDER} train.txt and val.txt",
        queries="voc:{root}/VOC2012:val",
    ),
    "iah/mirflickr25k": MultiLabelPreset(
        "mirflickr25k",
        ("mirflickr:{root}/mirflickr",),
        "mirflickr with im1.jpg, im2.jpg, ... and the folder of annotations",
        multi_label="bce",
    ),
}
"""IAH, Sec. V-A: 2,000 random pictures are the queries, the rest is database and training set.
`iah/voc2012-split` has the queries of `region-dh/voc2012`, for detectors that were trained on its
database: queries drawn at random would be pictures that the detector has seen."""


def find_multi_label_preset(name: str) -> MultiLabelPreset:
    """The preset `name` of IAH. Raises ValueError with the known names."""
    if name not in MULTI_LABEL_PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {_known()}")
    return MULTI_LABEL_PRESETS[name]


@dataclass(frozen=True)
class ObjectPreset:
    """One experiment of DMIH (Sec. 4).

    Attributes:
        dataset: under which `paper_figures` finds what was published.
        pictures: specs of the pictures, as `open_dataset` takes them; "{root}" stands for the
            folder that the user names.
        layout: what has to lie in that folder.
        queries: spec of the pictures of the queries; "" draws them from `pictures`.
        per_class: how many queries of one object are drawn for each class.
        marked: whether a query object is a box; otherwise it is a whole picture.
        combined: how many queries are drawn for each combination of classes; 0 leaves them out.
        cuts: k of P@k.
        bits: lengths of the codes.
    """

    dataset: str
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

OBJECT_PRESETS = {
    "dmih/sival": ObjectPreset(
        "sival",
        ("sival:{root}/SIVAL",),
        "SIVAL with a folder for each category",
        per_class=8,
        marked=False,
    ),
    "dmih/voc2007": ObjectPreset("voc2007", _VOC_2007, _VOC_2007_FOLDER),
    "dmih/voc2007-multi": ObjectPreset(
        "voc2007-multi", _VOC_2007, _VOC_2007_FOLDER, combined=50, bits=(64,)
    ),
    "dmih/ilsvrc2013det": ObjectPreset(
        "ilsvrc2013det",
        ("ilsvrc:{root}:train",),
        "ILSVRC2013_DET_train with pictures and ILSVRC2013_DET_bbox_train with XML files",
        per_class=100,
        marked=False,
        bits=(64,),
    ),
    "dmih/voc2012-multi": ObjectPreset(
        "voc2007-multi",
        ("voc:{root}/VOC2012:train",),
        "VOC2012 with JPEGImages, Annotations, ImageSets/Main/train.txt and val.txt",
        queries="voc:{root}/VOC2012:val",
        combined=50,
        bits=(64,),
    ),
}
"""DMIH, Sec. 4: the database is also what is trained on. Combinations of classes are those of its
Table 2 and those that at least 20 pictures of the database show."""

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


def find_object_preset(name: str) -> ObjectPreset:
    """The preset `name` of DMIH. Raises ValueError with the known names."""
    if name not in OBJECT_PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {_known()}")
    return OBJECT_PRESETS[name]


def find_preset(name: str) -> Preset:
    """The preset `name` of labelled pictures. Raises ValueError with the known names."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {_known()}")
    return PRESETS[name]


def find_instance_preset(name: str) -> InstancePreset:
    """The preset `name` of instance search. Raises ValueError with the known names."""
    if name not in INSTANCE_PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {_known()}")
    return INSTANCE_PRESETS[name]


def _known() -> str:
    return ", ".join([*PRESETS, *MULTI_LABEL_PRESETS, *INSTANCE_PRESETS, *OBJECT_PRESETS])
