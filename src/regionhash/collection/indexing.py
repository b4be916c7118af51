"""Making a folder of unlabelled pictures searchable: fits a model on it and encodes it.

The result is one directory to copy: a collection (`regionhash.collection`) that holds its model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from regionhash.collection import Collection, is_collection, model_hash_of
from regionhash.collection.adding import AddReport
from regionhash.data.detections import Boxes, Detector, read_detections
from regionhash.data.image_set import ImageSet
from regionhash.data.inputs import absolute_inputs, open_inputs
from regionhash.data.notices import Notices
from regionhash.files.atomic import locked_folder
from regionhash.files.names import absolute
from regionhash.models import MODELS
from regionhash.models.checkpoints import (
    CONFIG_FILE,
    MAX_SHORT,
    MIN_SHORT,
    Checkpoint,
    CheckpointError,
    build_model,
    copy_checkpoint,
    load_checkpoint,
    provenance,
    read_checkpoint,
    save_checkpoint,
)
from regionhash.models.drh import DRH, FitReport, fit_drh
from regionhash.models.encoding import Input, finder_of, pick_device, read_inputs
from regionhash.models.parameters import defaults_of
from regionhash.models.region_dh import RegionDH
from regionhash.parts.backbones import load_weights
from regionhash.reporter import SILENT, Reporter

MAX_PICTURES = 2_000
"""Largest number of pictures to fit a model on, which takes minutes on a CPU."""

MAX_REGIONS = 40_000
"""Largest number of their regions: 205 MB of features of 1,280 dimensions."""

DEFAULT_SHORT = 384
"""Short side of the network's input, in pixels; docs/drh.md compares others."""


@dataclass(frozen=True)
class IndexSettings:
    """How to index a folder. None is the model's default, or what an existing index has.

    Attributes:
        arguments: the model's arguments, see `regionhash.models.drh.DRH`.
        short: short side of the network's input, in pixels.
        seed: random seed of the sample of regions and of the fitting.
        detector: folder of a Region-DH checkpoint whose RPN proposes the regions.
        model: folder of a checkpoint to use instead of fitting a model.
        boxes: a file of boxes that become the regions, see `read_detections`, or a function that
            finds them.
        classes: names of the classes of such a function, by its labels; a file has its own.
    """

    arguments: dict[str, Any]
    short: int | None = None
    seed: int = 0
    detector: Path | None = None
    model: Path | None = None
    boxes: Path | Detector | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.detector and self.boxes:
            raise ValueError("regions are those of a detector or given boxes, not both")
        if self.model and (self.arguments or self.short or self.detector or self.boxes):
            given = [*self.arguments, *["short"] * bool(self.short)]
            given += ["proposals"] * bool(self.detector or self.boxes)
            raise ValueError(f"a given model is not fitted: leave out {', '.join(given)}")
        given = [name for name in ("backbone", "weights") if name in self.arguments]
        if self.detector and given:
            raise ValueError(f"the detector has its own backbone: leave out {', '.join(given)}")
        if self.short is not None and not MIN_SHORT <= self.short <= MAX_SHORT:
            raise ValueError(f"short must be in [{MIN_SHORT}, {MAX_SHORT}], got {self.short}")


@dataclass(frozen=True)
class IndexReport:
    """Result of indexing: the model, its fit if it was fitted now, and the pictures added."""

    checkpoint: Checkpoint
    fit: FitReport | None
    added: AddReport


def build_index(
    inputs: Sequence[str],
    output: Path,
    settings: IndexSettings,
    *,
    reporter: Reporter = SILENT,
    device: str = "auto",
    batch_size: int = 8,
    workers: int = 1,
) -> IndexReport:
    """Indexes pictures into `output`, or adds new and changed ones to the index there.

    The model is fitted once, on a sample of the pictures of the first call, and written before the
    first picture is encoded. After a kill, the same call resumes: it fits again only if it was
    killed before the model was written, or if the model is damaged and nothing was encoded.

    Args:
        inputs: see `open_inputs`. Labels are stored with the codes but not used.
        output: the directory.
        settings: see `IndexSettings`.
        reporter: is told of the stages "fitting" and "encoding".
        device: see `pick_device`.
        batch_size: pictures per batch of the model.
        workers: processes that read pictures.

    Raises:
        ValueError: there is no picture, or none that can be read; the settings are unusable, or
            not those of the existing index; or the model of the existing index is damaged.
    """
    chosen_device = pick_device(device)
    image_set, source = open_inputs(inputs)
    with reporter.stage("fitting"):
        fit = None
        if not _take_up_model(output, settings, reporter):
            output.mkdir(parents=True, exist_ok=True)
            try:
                with locked_folder(output):  # two concurrent runs must not make two models
                    if not _take_up_model(output, settings, reporter):
                        fit = _make_model(
                            image_set, output, settings, chosen_device, workers, reporter
                        )
            except BaseException:
                with suppress(OSError):  # not empty
                    output.rmdir()
                raise
    with Collection.create(output, device=device) as collection:
        added = collection.add_set(
            image_set,
            absolute_inputs(inputs),
            source,
            boxes=settings.boxes,
            batch_size=batch_size,
            workers=workers,
            reporter=reporter,
        )
        checkpoint = collection.model[1]
    return IndexReport(checkpoint, fit, added)


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
            (regions,) = model.region_features([item.image.to(device)], given)
            chosen = 1 + rng.permutation(len(regions.features) - 1)[: per_picture - 1]
            found.append(regions.features[[0, *chosen.tolist()]].cpu())
        else:
            reason = item
        reporter.progress(n, len(rows))
    if not found:
        raise ValueError(f"no picture of {image_set.name} can be read: {reason}")
    return torch.cat(found)


def _make_model(
    image_set: ImageSet,
    output: Path,
    settings: IndexSettings,
    device: torch.device,
    workers: int,
    reporter: Reporter,
) -> FitReport | None:
    """Writes a model to `output`: a copy of the given one, or a fitted one."""
    if settings.model is None:
        return _fit(image_set, output, settings, device, workers, reporter)
    load_checkpoint(settings.model)  # raises if it is unusable
    copy_checkpoint(settings.model, output)
    return None


def _fit(
    image_set: ImageSet,
    output: Path,
    settings: IndexSettings,
    device: torch.device,
    workers: int,
    reporter: Reporter,
) -> FitReport:
    """Fits a DRH on the pictures and writes it to `output`."""
    arguments = defaults_of(DRH) | settings.arguments
    short = settings.short or DEFAULT_SHORT
    if settings.detector:
        arguments |= detector_arguments(settings.detector)
    boxes: Boxes | Detector | None = None
    if isinstance(settings.boxes, str | Path):
        boxes = Boxes([read_detections(settings.boxes)])
    elif settings.boxes is not None:
        boxes = settings.boxes
    if boxes is not None:
        arguments["proposals"] = "boxes"
    names = boxes.classes if isinstance(boxes, Boxes) else settings.classes
    classes = tuple(dict.fromkeys([*settings.classes, *image_set.classes, *names]))
    torch.manual_seed(settings.seed)
    model = cast(DRH, build_model("drh", arguments).eval())
    if settings.detector:
        take_detector(model, settings.detector)
    model.to(device)
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


def _take_up_model(output: Path, settings: IndexSettings, reporter: Reporter) -> bool:
    """Whether `output` has the model of an earlier run with these settings.

    A damaged model is made again if it has no codes yet, else restored from `settings.model`.

    Raises:
        ValueError: it is of other settings; or it is damaged or gone, has codes and cannot be
            restored.
    """
    has_codes = is_collection(output)
    if not (output / CONFIG_FILE).exists() and not has_codes:
        return False
    try:
        checkpoint = load_checkpoint(output)[1]
    except CheckpointError as error:
        if not has_codes:
            reporter.note(f"{error}; making the model again")
            return False
        _restore(output, settings, error)
        reporter.note(f"{error}; restored from {settings.model}")
        return True
    _check_same(output, checkpoint, settings)
    return True


def _restore(output: Path, settings: IndexSettings, error: CheckpointError) -> None:
    """Copies the given model to its codes. Raises ValueError if it is not the one of the codes."""
    of_codes = model_hash_of(output)
    if settings.model is None or read_checkpoint(settings.model).model_hash != of_codes:
        raise ValueError(
            f"{error}; the codes there are of model {of_codes}: pass the folder of a copy of it "
            "with --model, or choose another output"
        ) from error
    load_checkpoint(settings.model)
    copy_checkpoint(settings.model, output)


def _check_same(output: Path, checkpoint: Checkpoint, settings: IndexSettings) -> None:
    """Raises ValueError unless the index in `output` was made with these settings."""
    if settings.model:
        if read_checkpoint(settings.model).model_hash != checkpoint.model_hash:
            raise ValueError(f"{output}: is an index of another model than {settings.model}")
        return
    wanted = dict(settings.arguments)
    if settings.short:
        wanted["short"] = settings.short
    if settings.detector:
        wanted["proposals"] = "rpn"
    if settings.boxes:
        wanted["proposals"] = "boxes"
    # What an older version did not record is its default now.
    built = defaults_of(MODELS[checkpoint.name]) | checkpoint.arguments
    known = built | {"short": checkpoint.short}
    for name, value in wanted.items():
        if name in known and known[name] != value:
            raise ValueError(
                f"{output}: is an index with {name} {known[name]}, got {value}; give another folder"
            )
