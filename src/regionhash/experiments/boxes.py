"""What a detector's boxes are worth as regions: search by a box, with windows and with boxes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BoxesPreset:
    """A database and the boxes that are searched for in it, in a folder that the user names.

    Attributes:
        layout: what must be in the user's folder, for the message if it is not.
        database: spec of the pictures that are searched, as `open_dataset` takes it; "{root}" is
            the user's folder. "" reads a table of boxes, whose pictures are also the queries'.
        queries: spec of the pictures whose objects are the queries.
    """

    layout: str
    database: str = ""
    queries: str = ""


PRESETS = {
    "boxes/voc2012": BoxesPreset(
        "VOC2012 with JPEGImages, Annotations, ImageSets/Main/train.txt and val.txt",
        "voc:{root}/VOC2012:train",
        "voc:{root}/VOC2012:val",
    ),
    "boxes/instances": BoxesPreset(
        "objects.csv with the header image,label,xmin,ymin,xmax,ymax and the pictures in images"
    ),
}
"""With "boxes/voc2012" a picture is right if it has an object of the query's class. Choices are
made on pictures held out of its database, and "boxes/instances" takes them over."""


@dataclass(frozen=True)
class BoxesOptions:
    """How a preset is run.

    Attributes:
        backbone, weights, short: see `RegionDHOptions`.
        detections: files of boxes, see `read_detections`; at least one.
        models: folders of trained models, such as Region-DH, IAH and DMIH: each is a row with its
            own regions, and one with the detector's boxes.
        distractors: specs of further pictures to search, as `open_dataset` takes them.
        more: also tries larger inputs, finer maps and wider crops, which double the time.
    """

    backbone: str = "mobilenet_v2_fpn"
    weights: str = "default"
    short: int = 384
    detections: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    more: bool = False
