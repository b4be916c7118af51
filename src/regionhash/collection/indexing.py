"""One folder of pictures without labels made searchable: a model fitted on it, and its codes.

The result is one directory to copy: a collection (`regionhash.collection`) with the model in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from regionhash.collection import Collection, is_collection, model_hash_of
from regionhash.collection.adding import AddReport
from regionhash.data.image_set import ImageSet
from regionhash.data.inputs import absolute_inputs, open_inputs
from regionhash.files.atomic import locked_folder
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
from regionhash.models.encoding import Input, pick_device, read_inputs
from regionhash.models.parameters import defaults_of
from regionhash.models.region_dh import RegionDH

MAX_PICTURES = 2_000
"""Pictures that a model is fitted on, at most: some minutes on a CPU."""

MAX_REGIONS = 40_000
"""Regions of these, at most: 205 MB of features of 1,280 dimensions."""

DEFAULT_SHORT = 384
"""Short side of the network's input; docs/drh.md has figures for others."""

Progress = Callable[[int, int], None]
Stage = Callable[[str], AbstractContextManager[tuple[Progress, Callable[[str], None]]]]
"""Opens the progress of a stage by name: what is called with (done, total), and with a line."""


@dataclass(frozen=True)
class IndexSettings:
    """How a folder becomes an index. None takes the model's default or what is there already.

    Attributes:
        arguments: for the builder of DRH; see `regionhash.models.drh.DRH`.
        short: short side of the network's input in pixels.
        seed: of the sample of regions and of the fitting.
        detector: folder of a Region-DH checkpoint whose RPN proposes the regions.
        model: folder of a checkpoint that is taken as it is; nothing is fitted then.
    """

    arguments: dict[str, Any]
    short: int | None = None
    seed: int = 0
    detector: Path | None = None
    model: Path | None = None

    def __post_init__(self) -> None:
        if self.model and (self.arguments or self.short or self.detector):
            given = [*self.arguments, *["short"] * bool(self.short)]
            given += ["proposals"] * bool(self.detector)
            raise ValueError(f"a model that is given is not fitted: leave out {', '.join(given)}")
        own = [name for name in ("backbone", "weights") if name in self.arguments]
        if self.detector and own:
            raise ValueError(f"the detector brings its backbone: leave out {', '.join(own)}")
        if self.short is not None and not MIN_SHORT <= self.short <= MAX_SHORT:
            raise ValueError(f"short must be in [{MIN_SHORT}, {MAX_SHORT}], got {self.short}")


@dataclass(frozen=True)
class IndexReport:
    """What came of it: the model, how it was fitted if it was now, and the pictures added."""

    checkpoint: Checkpoint
    fit: FitReport | None
    added: AddReport


def build_index(
    inputs: Sequence[str],
    output: Path,
    settings: IndexSettings,
    *,
    stage: Stage,
    device: str = "auto",
    batch_size: int = 8,
    workers: int = 1,
) -> IndexReport:
    """Makes `output` the index of some pictures, or adds to it those that it does not hold yet.

    The model is fitted once, on a sample of the pictures that are there at the first call, and is
    written before the first picture is encoded. A run that was killed goes on there: it fits again
    only if it was killed before, or if what it left of the model is damaged and no code was made.

    Args:
        inputs: see `open_inputs`. Labels are stored with the codes and used for nothing.
        output: the directory.
        settings: see `IndexSettings`.
        stage: progress, of "fitting" and of "encoding".
        device: see `pick_device`.
        batch_size: pictures that the model takes at a time.
        workers: processes that read pictures.

    Raises:
        ValueError: no picture there or none that can be read, settings that are unusable or not
            those of the index that is there, or an index whose model is damaged.
    """
    where = pick_device(device)
    image_set, source = open_inputs(inputs)
    with stage("fitting") as (show, note):
        fit = None
        if not _take_up_model(output, settings, note):
            output.mkdir(parents=True, exist_ok=True)
            try:
                with locked_folder(output):  # two runs at once must not make two models
                    if not _take_up_model(output, settings, note):
                        fit = _make_model(image_set, output, settings, where, workers, show)
            except BaseException:
                with suppress(OSError):  # something is in it
                    output.rmdir()
                raise
    with (
        Collection.create(output, device=device) as collection,
        stage("encoding") as (show, note),
    ):
        added = collection.add_set(
            image_set,
            absolute_inputs(inputs),
            source,
            batch_size=batch_size,
            workers=workers,
            on_skip=lambda _, reason: note(f"skipped: {reason}"),
            on_progress=show,
        )
        checkpoint = collection.model[1]
    return IndexReport(checkpoint, fit, added)


def detector_arguments(path: Path) -> dict[str, Any]:
    """Arguments of a DRH whose regions a trained Region-DH proposes; `take_detector` fills it.

    Raises:
        ValueError: no checkpoint, or one of another model.
    """
    theirs = read_checkpoint(path)
    if theirs.name != "region-dh":
        raise ValueError(f"{path}: a {theirs.name} proposes no regions")
    built = defaults_of(RegionDH) | theirs.arguments
    own = {name: built[name] for name in ("backbone", "fpn_channels")}
    return own | {"weights": "none", "proposals": "rpn"}


def take_detector(model: DRH, path: Path) -> None:
    """Gives a DRH with an RPN the backbone, the pyramid and the RPN of a Region-DH checkpoint.

    Raises:
        ValueError: no checkpoint, or one with another backbone or pyramid.
    """
    detector, _ = load_checkpoint(path, RegionDH)
    detector.backbone.freeze_all_but(0)  # folds what was still trainable, as DRH's own is
    if model.rpn is None:
        raise ValueError("the model has no RPN; build it with proposals='rpn'")
    try:
        model.backbone.load_state_dict(detector.backbone.state_dict())
        model.rpn.load_state_dict(detector.rpn.state_dict())
    except RuntimeError as error:
        raise ValueError(f"{path}: its detector does not fit this model: {error}") from error


def sample_features(
    model: DRH,
    image_set: ImageSet,
    *,
    short: int,
    seed: int,
    workers: int,
    on_progress: Progress | None = None,
) -> Tensor:
    """Features (N, D) of regions of some pictures, the whole picture always among them.

    At most `MAX_PICTURES` pictures and about `MAX_REGIONS` regions, drawn at random; the same for
    the same seed. What cannot be read is left out.

    Raises:
        ValueError: no picture can be read.
    """
    rng = np.random.default_rng(seed)
    rows = sorted(rng.permutation(len(image_set))[:MAX_PICTURES].tolist())
    per_picture = max(1, MAX_REGIONS // len(rows))
    device = next(model.parameters()).device
    found: list[Tensor] = []
    reason = ""
    for n, (_, item) in enumerate(read_inputs(image_set, rows, short, workers), 1):
        if isinstance(item, Input):
            (regions,) = model.region_features([item.image.to(device)])
            chosen = 1 + rng.permutation(len(regions.features) - 1)[: per_picture - 1]
            found.append(regions.features[[0, *chosen.tolist()]].cpu())
        else:
            reason = item
        if on_progress:
            on_progress(n, len(rows))
    if not found:
        raise ValueError(f"no picture of {image_set.name} can be read: {reason}")
    return torch.cat(found)


def _make_model(
    image_set: ImageSet,
    output: Path,
    settings: IndexSettings,
    device: torch.device,
    workers: int,
    show: Progress,
) -> FitReport | None:
    """Leaves a model in `output`: a copy of the one that is given, or one that is fitted."""
    if settings.model is None:
        return _fit(image_set, output, settings, device, workers, show)
    load_checkpoint(settings.model)  # refuses one that cannot be used
    copy_checkpoint(settings.model, output)
    return None


def _fit(
    image_set: ImageSet,
    output: Path,
    settings: IndexSettings,
    device: torch.device,
    workers: int,
    show: Progress,
) -> FitReport:
    """Fits a DRH on the pictures and leaves it in `output`."""
    arguments = defaults_of(DRH) | settings.arguments
    short = settings.short or DEFAULT_SHORT
    if settings.detector:
        arguments |= detector_arguments(settings.detector)
    torch.manual_seed(settings.seed)
    model = cast(DRH, build_model("drh", arguments).eval())
    if settings.detector:
        take_detector(model, settings.detector)
    model.to(device)
    features = sample_features(
        model, image_set, short=short, seed=settings.seed, workers=workers, on_progress=show
    )
    report = fit_drh(model, features, seed=settings.seed)
    record = provenance() | {
        "data": image_set.fingerprint(),
        "fit": asdict(report) | {"regions": len(features), "seed": settings.seed},
    }
    save_checkpoint(
        output,
        model,
        Checkpoint("drh", arguments, image_set.classes, short, provenance=record),
    )
    return report


def _take_up_model(output: Path, settings: IndexSettings, note: Callable[[str], None]) -> bool:
    """Whether the model of an earlier run is in `output`, and that of these settings.

    One that is damaged is left to be made anew, unless there are codes of it.

    Raises:
        ValueError: it is of other settings; or it is damaged or gone, and there are codes of it.
    """
    has_codes = is_collection(output)
    if not (output / CONFIG_FILE).exists() and not has_codes:
        return False
    try:
        there = load_checkpoint(output)[1]
    except CheckpointError as error:
        if not has_codes:
            note(f"{error}; the model is made anew")
            return False
        _restore(output, settings, error)
        note(f"{error}; restored from {settings.model}")
        return True
    _check_same(output, there, settings)
    return True


def _restore(output: Path, settings: IndexSettings, error: CheckpointError) -> None:
    """Copies the given model to the codes that were made with it. Raises ValueError for another."""
    of_codes = model_hash_of(output)
    if settings.model is None or read_checkpoint(settings.model).model_hash != of_codes:
        raise ValueError(
            f"{error}; the codes there are of the model {of_codes}: name the folder of a copy of "
            "it with --model, or give another output"
        ) from error
    load_checkpoint(settings.model)
    copy_checkpoint(settings.model, output)


def _check_same(output: Path, there: Checkpoint, settings: IndexSettings) -> None:
    """Raises ValueError unless the index in `output` was made with these settings."""
    if settings.model:
        if read_checkpoint(settings.model).model_hash != there.model_hash:
            raise ValueError(f"{output}: is an index of another model than {settings.model}")
        return
    wanted = dict(settings.arguments)
    if settings.short:
        wanted["short"] = settings.short
    if settings.detector:
        wanted["proposals"] = "rpn"
    known = there.arguments | {"short": there.short}
    for name, value in wanted.items():
        if name in known and known[name] != value:
            raise ValueError(
                f"{output}: is an index with {name} {known[name]}, got {value}; give another folder"
            )
