"""Fitting a DRH, which needs torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from regionhash.data.frames import Pixels
from regionhash.models.checkpoints import build_model, load_checkpoint, read_checkpoint
from regionhash.models.drh import DRH, fit_drh
from regionhash.models.parameters import defaults_of
from regionhash.models.region_dh import RegionDH
from regionhash.models.runtime import pick_device
from regionhash.parts.backbones import load_weights
from regionhash.parts.hashes import FitReport
from regionhash.structures import Detections, Floats


def fitted(
    arguments: dict[str, Any],
    detector: Path | None,
    sample: Callable[[Described], Floats],
    *,
    device: str,
    seed: int,
) -> tuple[DRH, dict[str, Any], Floats, FitReport]:
    """A DRH fitted on features of regions.

    Args:
        arguments: those of the model that differ from its defaults.
        detector: folder of a Region-DH checkpoint whose RPN proposes the regions.
        sample: gives the features of regions, see `sample_features`.
        device: see `pick_device`.
        seed: of the hash.

    Returns:
        The model, its arguments, the features (N, D), and the report.

    Raises:
        ValueError: see `detector_arguments`, `take_detector` and `sample_features`.
    """
    arguments = defaults_of(DRH) | arguments
    if detector:
        arguments |= detector_arguments(detector)
    torch.manual_seed(seed)
    model = cast(DRH, build_model("drh", arguments).eval())
    if detector:
        take_detector(model, detector)
    model.to(pick_device(device))
    features = sample(Described(model))
    return model, arguments, features, fit_drh(model, torch.from_numpy(features), seed=seed)


class Described:
    """A DRH that describes pictures one by one; see `regionhash.collection.fitting.Describes`."""

    def __init__(self, model: DRH) -> None:
        self._model = model

    def describe(self, image: Pixels, given: Detections | None = None) -> tuple[Detections, Floats]:
        """The regions of a picture (3, h, w), whole picture first, and their features (R, D)."""
        device = self._model.hash.weight.device
        (found,) = self._model.region_features(
            [torch.from_numpy(image).to(device)], None if given is None else [given]
        )
        parts = (part.cpu().numpy() for part in (found.boxes, found.scores, found.labels))
        return Detections(*parts), found.features.cpu().numpy()


def detector_arguments(path: Path) -> dict[str, Any]:
    """Arguments of a DRH that uses the regions of a Region-DH; see `take_detector`.

    Raises:
        ValueError: there is no checkpoint, or it is of another model.
    """
    theirs = read_checkpoint(path)
    if theirs.name != "region-dh":
        raise ValueError(f"{path}: a {theirs.name} proposes no regions")
    built = defaults_of(RegionDH) | theirs.arguments
    shared = {name: built[name] for name in ("backbone", "fpn_channels")}
    return shared | {"weights": "none", "proposals": "rpn"}


def take_detector(model: DRH, path: Path) -> None:
    """Copies the backbone, the pyramid and the RPN of a Region-DH checkpoint into a DRH.

    Raises:
        ValueError: there is no checkpoint, it has another backbone or pyramid, or the DRH has no
            RPN.
    """
    detector, _ = load_checkpoint(path, RegionDH)
    detector.backbone.freeze_all_but(0)  # folds what was still trainable, as in a DRH
    if model.rpn is None:
        raise ValueError("the model has no RPN; build it with proposals='rpn'")
    message = f"{path}: its detector does not fit this model"
    load_weights(model.backbone, detector.backbone.state_dict(), message)
    load_weights(model.rpn, detector.rpn.state_dict(), message)
