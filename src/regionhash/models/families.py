"""The models by name, and what a model must offer. Defaults are the paper's unless stated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol, Self, TypeGuard

from torch import Tensor, nn

from regionhash.files.text import reason_of
from regionhash.models import ENCODED_REGIONS, ENTRY_POINTS, known_names
from regionhash.models.dmih import DMIH
from regionhash.models.drh import DRH
from regionhash.models.iah import IAH
from regionhash.models.image_level import DLBHC, DSRH, SSDH, CategoryBaseline, Control, OneStage
from regionhash.models.region_dh import RegionDH
from regionhash.parts.backbones import Backbone
from regionhash.parts.proposals import Targets
from regionhash.structures import EncodedImage, Regions


class HashModel(Protocol):
    """What encoding and search need of a model, which is a `torch.nn.Module` too.

    Attributes:
        shared_code_space: whether codes of boxes and of whole pictures can be compared.
        n_bits: bits of the image code, 0 if there is none; n_region_bits: bits of a region's code.
    """

    shared_code_space: bool
    n_bits: int
    n_region_bits: int

    def encode(self, images: list[Tensor]) -> list[EncodedImage]:
        """Codes of pictures; boxes in pixels of the pictures given."""

    def encode_boxes(self, images: list[Tensor], boxes: list[Tensor]) -> list[Regions]:
        """Codes of given boxes of pictures."""

    # Of torch.nn.Module

    def to(self, *args: Any, **options: Any) -> Self: ...  # noqa: D102
    def train(self, mode: bool = True) -> Self: ...  # noqa: D102
    def eval(self) -> Self: ...  # noqa: D102
    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...  # noqa: D102
    def state_dict(self) -> dict[str, Tensor]: ...  # noqa: D102
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...  # noqa: D102


class TrainedHashModel(HashModel, Protocol):
    """What `regionhash train` also needs, from a model that learns from labels.

    Attributes:
        backbone: what all other layers read.
        learns_boxes: has a detector that is trained on the boxes of objects.
        weakly_supervised: learns from the labels of whole pictures; boxes are removed before
            anything is read.
        needs_trained_rpn: has an RPN that is never trained, so it must start from another model.
        ramped_terms: names of the losses that training may bring in slowly.
        held_out_term: the loss that chooses the best epoch; None takes the sum of all.
    """

    backbone: Backbone
    learns_boxes: bool
    weakly_supervised: bool
    needs_trained_rpn: bool

    # Read-only, since a class has a narrower type.
    @property
    def ramped_terms(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def held_out_term(self) -> str | None: ...  # noqa: D102

    def losses(self, images: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        """Weighted loss terms by name."""

    def frozen_features(
        self, images: list[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """What the layers of the hash read, without gradient; with targets, what trains them."""

    def head_losses(self, features: dict[str, Tensor], image_labels: Tensor) -> dict[str, Tensor]:
        """The loss terms of these layers alone."""

    def head_parameters(self) -> list[nn.Parameter]:
        """The weights of these layers."""


class ImageHashModel(TrainedHashModel, Protocol):
    """A trained model with a code of the whole picture."""

    def hash_features(self, features: dict[str, Tensor]) -> Tensor:
        """Activations (B, n_bits) of the image hash, from what `frozen_features` gives."""


def learns_from_labels(model: HashModel) -> TypeGuard[TrainedHashModel]:
    """Whether `regionhash train` can train a model."""
    return hasattr(model, "losses")


class _Models(Mapping[str, Callable[..., HashModel]]):
    """Our models, and those of other packages, which are imported when they are asked for."""

    def __init__(self, own: dict[str, Callable[..., HashModel]]) -> None:
        self._own = own

    def __getitem__(self, name: str) -> Callable[..., HashModel]:
        if name in self._own:
            return self._own[name]
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            try:
                builder: Callable[..., HashModel] = entry.load()
            except Exception as error:  # of another package
                raise ValueError(f"model {name}: {entry.value}: {reason_of(error)}") from error
            if not isinstance(builder, type) or not hasattr(builder, "encode"):
                raise ValueError(f"model {name}: {entry.value}: is no class of a model")
            return builder
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(name for name in known_names() if name != ENCODED_REGIONS)

    def __len__(self) -> int:
        return len(known_names()) - 1


MODELS = _Models(
    {
        "region-dh": RegionDH,
        "ssdh": SSDH,
        "dlbhc": DLBHC,
        "control": Control,
        "iah": IAH,
        "one-stage": OneStage,
        "dsrh": DSRH,
        "category-baseline": CategoryBaseline,
        "drh": DRH,
        "dmih": DMIH,
    }
)
"""What builds each model, by its name; a package adds its own by an entry point `ENTRY_POINTS`."""
