"""Fitting a DRH on pictures without labels, for `regionhash index`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from regionhash.data.detections import Boxes, Detector, read_detections
from regionhash.data.image_set import ImageSet
from regionhash.data.notices import Notices
from regionhash.files.names import absolute
from regionhash.models.checkpoints import (
    Checkpoint,
    build_model,
    load_checkpoint,
    provenance,
    read_checkpoint,
    save_checkpoint,
)
from regionhash.models.drh import DRH, fit_drh
from regionhash.models.encoding import Input, finder_of, pick_device, read_inputs
from regionhash.models.parameters import defaults_of
from regionhash.models.region_dh import RegionDH
from regionhash.parts.backbones import load_weights
from regionhash.parts.hashes import FitReport
from regionhash.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from regionhash.collection.indexing import IndexSettings

DEFAULT_SHORT = 384
"""Short side of the network's input, in pixels; docs/drh.md compares others."""

MAX_PICTURES = 2_000
"""Largest number of pictures to fit a model on, which takes minutes on a CPU."""

MAX_REGIONS = 40_000
"""Largest number of their regions: 205 MB of features of 1,280 dimensions."""


def fit_model(
    image_set: ImageSet,
    output: Path,
    settings: IndexSettings,
    *,
    device: str,
    workers: int,
    reporter: Reporter = SILENT,
) -> FitReport:
    """Fits a DRH on pictures and writes it to a folder.

    Args:
        image_set: the pictures.
        output: the folder.
        settings: see `IndexSettings`.
        device: see `pick_device`.
        workers: processes that read pictures.
        reporter: is told the pictures read and their number.

    Raises:
        ValueError: see `detector_arguments`, `take_detector` and `sample_features`.
    """
    arguments = defaults_of(DRH) | settings.arguments
    if settings.proposals:
        arguments["proposals"] = settings.proposals
    short = settings.short or DEFAULT_SHORT
    if settings.detector:
        arguments |= detector_arguments(settings.detector)
    boxes: Boxes | Detector | None = None
    if isinstance(settings.boxes, str | Path):
        boxes = Boxes([read_detections(settings.boxes)])
    elif settings.boxes is not None:
        boxes = settings.boxes
    names = boxes.classes if isinstance(boxes, Boxes) else settings.classes
    classes = tuple(dict.fromkeys([*settings.classes, *image_set.classes, *names]))
    torch.manual_seed(settings.seed)
    model = cast(DRH, build_model("drh", arguments).eval())
    if settings.detector:
        take_detector(model, settings.detector)
    model.to(pick_device(device))
    features = sample_features(
        model,
        image_set,
        short=short,
        seed=settings.seed,
        workers=workers,
        boxes=boxes,
        classes=classes,
        reporter=reporter,
    )
    report = fit_drh(model, features, seed=settings.seed)
    record = provenance() | {
        "data": image_set.fingerprint(),
        "fit": asdict(report) | {"regions": len(features), "seed": settings.seed},
    }
    if isinstance(settings.boxes, str | Path):
        record["boxes"] = str(absolute(settings.boxes))
    save_checkpoint(
        output,
        model,
        Checkpoint("drh", arguments, classes, short, provenance=record),
    )
    return report


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


def sample_features(
    model: DRH,
    image_set: ImageSet,
    *,
    short: int,
    seed: int,
    workers: int,
    boxes: Boxes | Detector | None = None,
    classes: Sequence[str] = (),
    reporter: Reporter = SILENT,
) -> Tensor:
    """Features (N, D) of regions of some pictures, always including the whole picture.

    At most `MAX_PICTURES` pictures and about `MAX_REGIONS` regions are drawn at random, the same
    for the same seed. Pictures that cannot be read are left out.

    Raises:
        ValueError: no picture can be read.
    """
    rng = np.random.default_rng(seed)
    rows = sorted(rng.permutation(len(image_set))[:MAX_PICTURES].tolist())
    per_picture = max(1, MAX_REGIONS // len(rows))
    device = next(model.parameters()).device
    found: list[Tensor] = []
    reason = ""
    find = None
    if boxes is not None:
        silent = replace(image_set, notices=Notices())  # encoding will notice the same
        find = finder_of(boxes, silent, rows, classes)
        workers = 0 if callable(boxes) else workers
    for n, (_, item) in enumerate(read_inputs(image_set, rows, short, workers, find=find), 1):
        if isinstance(item, Input):
            given = None if find is None else [item.boxes]
            (regions,) = model.region_features([torch.from_numpy(item.image).to(device)], given)
            chosen = 1 + rng.permutation(len(regions.features) - 1)[: per_picture - 1]
            found.append(regions.features[[0, *chosen.tolist()]].cpu())
        else:
            reason = item
        reporter.progress(n, len(rows))
    if not found:
        raise ValueError(f"no picture of {image_set.name} can be read: {reason}")
    return torch.cat(found)
