"""The models by name. A builder pins a paper's values and takes plain keyword arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from regionhash.models.dmih import dmih
from regionhash.models.drh import drh
from regionhash.models.iah import iah
from regionhash.models.image_level import category_baseline, control, dlbhc, dsrh, one_stage, ssdh
from regionhash.models.region_dh import region_dh
from regionhash.parts.proposals import Targets
from regionhash.structures import EncodedImage, Regions


class HashModel(Protocol):
    """What encoding and search need of a model; every model is a `torch.nn.Module` too.

    Attributes:
        one_space: whether codes of boxes and of whole pictures can be compared with each other.
        n_bits: of the image code, 0 where there is none; n_region_bits: of a region's code.
    """

    one_space: bool
    n_bits: int
    n_region_bits: int

    def encode(self, images: list[Tensor]) -> list[EncodedImage]:
        """Codes of pictures; boxes in pixels of the pictures given."""

    def encode_boxes(self, images: list[Tensor], boxes: list[Tensor]) -> list[Regions]:
        """Codes of given boxes of pictures."""


class TrainedHashModel(HashModel, Protocol):
    """What `regionhash train` needs besides, of a model that learns from labels.

    A model that learns from the labels of whole pictures says so with `weak = True`: boxes are then
    taken away before anything is read. One without image codes has no `hash_features`. One with a
    part that is never trained, such as an RPN for IAH, says `wants_start = True`.

    Attributes:
        ramped_terms: names of the losses that training may bring in slowly.
    """

    ramped_terms: tuple[str, ...]

    def losses(self, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Weighted loss terms by name."""

    def frozen_features(
        self, images: list[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """What the layers of the hash read, without gradient; with targets, what trains them."""

    def hash_features(self, features: dict[str, Tensor]) -> Tensor:
        """Activations (B, n_bits) of the image hash, of what `frozen_features` gives."""

    def head_losses(self, features: dict[str, Tensor], image_labels: Tensor) -> dict[str, Tensor]:
        """The loss terms of these layers alone."""

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights of these layers."""


MODELS: dict[str, Callable[..., Any]] = {
    "region-dh": region_dh,
    "ssdh": ssdh,
    "dlbhc": dlbhc,
    "control": control,
    "iah": iah,
    "one-stage": one_stage,
    "dsrh": dsrh,
    "category-baseline": category_baseline,
    "drh": drh,
    "dmih": dmih,
}
