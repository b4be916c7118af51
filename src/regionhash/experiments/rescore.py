"""What ranking the best pictures again by more than their codes is worth, at equal bytes."""

from __future__ import annotations

from dataclasses import dataclass

from regionhash.experiments import boxes

PRESETS = {
    "rescore/voc2012": boxes.PRESETS["boxes/voc2012"],
    "rescore/instances": boxes.PRESETS["boxes/instances"],
}
"""The pictures and queries of "boxes/voc2012" and "boxes/instances"."""


@dataclass(frozen=True)
class RescoreOptions:
    """How a preset is run.

    Attributes:
        backbone, weights, short: see `RegionDHOptions`.
        distractors: specs of further pictures to search, as `open_dataset` takes them.
        timed: pictures of the random collection that is timed, with ten regions each.

    Raises:
        ValueError: there are none to time.
    """

    backbone: str = "mobilenet_v2_fpn"
    weights: str = "default"
    short: int = 384
    distractors: tuple[str, ...] = ()
    timed: int = 1_000_000

    def __post_init__(self) -> None:
        if self.timed < 1:
            raise ValueError(f"timed must be at least 1, got {self.timed}")
