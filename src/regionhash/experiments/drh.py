"""DRH's experiments (Sec. "Experiments"): instance search, Tables 1 to 5."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DRHPreset:
    """A database and the boxes that are searched for in it, in a folder that the user names.

    Attributes:
        buildings: folder in that of the user, as `read_oxford` takes it; "" reads a table of boxes.
        layout: what must be in the user's folder, for the message if it is not.
        distractors: specs of further pictures, as `open_dataset` takes them; "{root}" stands for
            the user's folder.
        bits: lengths of the codes (Table 1).
        overlaps: of the windows; the paper varies them on Oxford 5k alone (Table 2).
    """

    buildings: str
    layout: str
    distractors: tuple[str, ...] = ()
    bits: tuple[int, ...] = (128, 256, 512, 1024, 4096)
    overlaps: tuple[float, ...] = (0.6,)


_OXFORD = "oxford5k with the 5,062 pictures and the files of the ground truth"
_PARIS = "paris6k with the 6,412 pictures and the files of the ground truth"
_FLICKR = "; flickr100k with the 100,071 other pictures"

PRESETS = {
    "drh/oxford5k": DRHPreset("oxford5k", _OXFORD, overlaps=(0.4, 0.5, 0.6, 0.7)),
    "drh/oxford105k": DRHPreset("oxford5k", _OXFORD + _FLICKR, ("folder:{root}/flickr100k",)),
    "drh/paris6k": DRHPreset("paris6k", _PARIS),
    "drh/paris106k": DRHPreset("paris6k", _PARIS + _FLICKR, ("folder:{root}/flickr100k",)),
    "drh/instances": DRHPreset(
        "",
        "objects.csv with the header image,label,xmin,ymin,xmax,ymax and the pictures in images",
        overlaps=(0.4, 0.5, 0.6, 0.7),
    ),
}
"""The database is also what whitening and hash are fitted on."""


@dataclass(frozen=True)
class DRHOptions:
    """How a preset is run.

    Attributes:
        backbone, weights, short: see `RegionDHOptions`.
        distractors: specs of further pictures, as `open_dataset` takes them.
        detector: folder of a Region-DH checkpoint whose RPN proposes regions for Table 2.
    """

    backbone: str = "mobilenet_v2_fpn"
    weights: str = "default"
    short: int = 384
    distractors: tuple[str, ...] = ()
    detector: Path | None = None
