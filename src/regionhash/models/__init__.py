"""The models. What needs torch is imported when asked for (PEP 562): graphs run without it."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from regionhash.extras import imported_when_asked

if TYPE_CHECKING:
    from regionhash.models.families import (
        MODELS as MODELS,
    )
    from regionhash.models.families import (
        HashModel as HashModel,
    )
    from regionhash.models.families import (
        ImageHashModel as ImageHashModel,
    )
    from regionhash.models.families import (
        TrainedHashModel as TrainedHashModel,
    )
    from regionhash.models.families import (
        learns_from_labels as learns_from_labels,
    )

ENCODED_REGIONS = "region-hash"
"""The model of `regionhash.models.region_hash`, which needs no torch and is none of `MODELS`."""

NAMES = (
    "region-dh",
    "ssdh",
    "dlbhc",
    "control",
    "iah",
    "one-stage",
    "dsrh",
    "category-baseline",
    "drh",
    "dmih",
    ENCODED_REGIONS,
)
"""Names of our models: the keys of `MODELS`, which imports torch, and the one without."""

ENTRY_POINTS = "regionhash.models"
"""Group of the entry points with which other packages offer models: what builds each."""


def known_names() -> tuple[str, ...]:
    """Names of all models that are installed."""
    others = sorted(entry_points(group=ENTRY_POINTS).names - set(NAMES))
    return (*NAMES, *others)


_OF_FAMILIES = ("MODELS", "HashModel", "ImageHashModel", "TrainedHashModel", "learns_from_labels")

__getattr__ = imported_when_asked(__name__, {name: f"families:{name}" for name in _OF_FAMILIES})
