"""Making a folder of unlabelled pictures searchable: fits a model on it and encodes it.

The result is one directory to copy: a collection (`regionhash.collection`) that holds its model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionhash.collection import Collection, is_collection, model_hash_of
from regionhash.collection.adding import AddReport
from regionhash.collection.box_files import detector_in, recorded_detector
from regionhash.data.detections import Detector
from regionhash.data.image_set import ImageSet
from regionhash.data.inputs import absolute_inputs, open_inputs
from regionhash.detectors import OnnxDetector, write_detector
from regionhash.encoders import DEFAULT_ENCODER, resolve
from regionhash.files.atomic import locked_folder
from regionhash.models.checkpoints import (
    CONFIG_FILE,
    MAX_SHORT,
    MIN_SHORT,
    Checkpoint,
    CheckpointError,
    copy_checkpoint,
    read_checkpoint,
)
from regionhash.models.runtime import Runtime, RuntimeName, load_runtime
from regionhash.parts.choosing import RegionChoice
from regionhash.precision import PrecisionName
from regionhash.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from regionhash.parts.hashes import FitReport

_Load = Callable[[Path], tuple[Runtime, Checkpoint]]


@dataclass(frozen=True)
class IndexSettings:
    """How to index a folder. None is the model's default, or what an existing index has.

    Attributes:
        arguments: the model's arguments, see `regionhash.models.region_hash.RegionHashSettings` or,
            with a backbone, `regionhash.models.drh.DRH`. With `boxes`, "proposals" may be
            "boxes+windows" or "boxes+pyramid"; otherwise it is "boxes".
        short: short side of the network's input, in pixels.
        seed: random seed of the sample of regions and of the fitting.
        detector: folder of a Region-DH checkpoint whose RPN proposes the regions.
        model: folder of a checkpoint to use instead of fitting a model.
        boxes: a file of boxes that become the regions, see `read_detections`, or a function that
            finds them. An `OnnxDetector` is copied into the index, for later pictures.
        classes: names of the classes of such a function, by its labels; a file has its own.
        encoder: what gives the features, see `regionhash.encoders.resolve`; None is
            `DEFAULT_ENCODER`, unless a backbone, its weights or a detector are given.
        keep_floats: keep features beside codes, see `Collection.create`; an index that has them
            keeps them in any case.
    """

    arguments: dict[str, Any]
    short: int | None = None
    seed: int = 0
    detector: Path | None = None
    model: Path | None = None
    boxes: Path | Detector | None = None
    classes: tuple[str, ...] = ()
    encoder: str | None = None
    keep_floats: bool = False

    @property
    def encoder_to_fit(self) -> str | None:
        """The encoder of a new index; None if it is a backbone of torch."""
        if self.encoder or not (self.detector or self._of_backbone):
            return self.encoder or DEFAULT_ENCODER
        return None

    @property
    def _of_backbone(self) -> list[str]:
        return [name for name in ("backbone", "weights") if name in self.arguments]

    @property
    def proposals(self) -> str | None:
        """What the regions are, see `Proposals`; None is the model's default."""
        given: str | None = self.arguments.get("proposals")
        if self.detector:
            return "rpn"
        if self.boxes and not (given or "").startswith("boxes"):
            return "boxes"
        return given

    def __post_init__(self) -> None:
        if self.detector and self.boxes:
            raise ValueError("regions are those of a detector or given boxes, not both")
        if self.model and (
            self.arguments or self.short or self.detector or self.boxes or self.encoder
        ):
            given = [*self.arguments, *["short"] * bool(self.short)]
            given += ["encoder"] * bool(self.encoder)
            given += ["proposals"] * bool(self.detector or self.boxes)
            names = ", ".join(dict.fromkeys(given))
            raise ValueError(f"a given model is not fitted: leave out {names}")
        if self.detector and self._of_backbone:
            names = ", ".join(self._of_backbone)
            raise ValueError(f"the detector has its own backbone: leave out {names}")
        given = [*self._of_backbone, *["detector"] * bool(self.detector)]
        if self.encoder and given:
            raise ValueError(f"an encoder is given: leave out {', '.join(given)}")
        only = [name for name in ("hash", "regions", "pooling") if name in self.arguments]
        if given and only:
            raise ValueError(f"{' and '.join(only)} need an encoder: leave out {', '.join(given)}")
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
    runtime: RuntimeName = "auto",
    precision: PrecisionName = "auto",
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
        runtime: what runs the model, see `load_runtime`; fitting one needs torch.
        precision: of a new index, see `load_runtime`; one that exists keeps its own.
        batch_size: pictures per batch of the model.
        workers: processes that read pictures.

    Raises:
        ValueError: there is no picture, or none that can be read; the settings are unusable, or
            not those of the existing index; or the model of the existing index is damaged.
    """
    load = partial(load_runtime, device=device, runtime=runtime)
    image_set, source = open_inputs(inputs)
    with reporter.stage("fitting"):
        fit = None
        if not _take_up_model(output, settings, load, reporter):
            output.mkdir(parents=True, exist_ok=True)
            try:
                with locked_folder(output):  # two concurrent runs must not make two models
                    if not _take_up_model(output, settings, load, reporter):
                        fit = _make_model(
                            image_set, output, settings, load, device, workers, reporter
                        )
            except BaseException:
                with suppress(OSError):  # not empty
                    output.rmdir()
                raise
    created = Collection.create(
        output,
        device=device,
        runtime=runtime,
        precision=precision,
        keep_floats=settings.keep_floats,
    )
    with created as collection:
        added = collection.add_set(
            image_set,
            absolute_inputs(inputs),
            source,
            boxes=None if isinstance(settings.boxes, OnnxDetector) else settings.boxes,
            batch_size=batch_size,
            workers=workers,
            reporter=reporter,
        )
        checkpoint = collection.model[1]
    return IndexReport(checkpoint, fit, added)


def _make_model(
    image_set: ImageSet,
    output: Path,
    settings: IndexSettings,
    load: _Load,
    device: str,
    workers: int,
    reporter: Reporter,
) -> FitReport | None:
    """Writes a model to `output`: a copy of the given one, or a fitted one."""
    if settings.model is None:
        from regionhash.collection.fitting import fit_model

        return fit_model(
            image_set, output, settings, device=device, workers=workers, reporter=reporter
        )
    load(settings.model)  # raises if it is unusable
    copy_checkpoint(settings.model, output)
    return None


def _take_up_model(output: Path, settings: IndexSettings, load: _Load, reporter: Reporter) -> bool:
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
        checkpoint = load(output)[1]
    except CheckpointError as error:
        if not has_codes:
            reporter.note(f"{error}; making the model again")
            return False
        _restore(output, settings, load, error)
        reporter.note(f"{error}; restored from {settings.model}")
        return True
    _check_same(output, checkpoint, settings)
    if isinstance(settings.boxes, OnnxDetector):
        _check_detector(output, checkpoint, settings.boxes, reporter)
    return True


def _restore(output: Path, settings: IndexSettings, load: _Load, error: CheckpointError) -> None:
    """Copies the given model to its codes. Raises ValueError if it is not the one of the codes."""
    of_codes = model_hash_of(output)
    if settings.model is None or read_checkpoint(settings.model).model_hash != of_codes:
        raise ValueError(
            f"{error}; the codes there are of model {of_codes}: pass the folder of a copy of it "
            "with --model, or choose another output"
        ) from error
    load(settings.model)
    copy_checkpoint(settings.model, output)


def _check_detector(
    output: Path, checkpoint: Checkpoint, detector: OnnxDetector, reporter: Reporter
) -> None:
    """Restores the detector of an index if it is damaged.

    Raises:
        ValueError: the index was made with another one, without one, or with another least score.
    """
    if recorded_detector(checkpoint) != detector.sha256:
        raise ValueError(
            f"{output}: is an index without the detector {detector.place}; give another folder"
        )
    try:
        stored = detector_in(output, checkpoint)
    except ValueError as error:
        write_detector(output, detector)
        reporter.note(f"{error}; restored from {detector.place}")
        return
    assert stored is not None
    asked, known = detector.asked_score, stored.settings.min_score
    if asked not in (None, known):
        raise ValueError(
            f"{output}: is an index with min_box_score {known}, got {asked}; give another folder"
        )


def _check_same(output: Path, checkpoint: Checkpoint, settings: IndexSettings) -> None:
    """Raises ValueError unless the index in `output` was made with these settings."""
    if settings.model:
        if read_checkpoint(settings.model).model_hash != checkpoint.model_hash:
            raise ValueError(f"{output}: is an index of another model than {settings.model}")
        return
    wanted = dict(settings.arguments)
    if settings.short:
        wanted["short"] = settings.short
    if settings.proposals:
        wanted["proposals"] = settings.proposals
    # What an older version did not record is its default now.
    built = asdict(RegionChoice()) | checkpoint.arguments
    known = built | {"short": checkpoint.short}
    if settings.encoder:
        _check_encoder(output, known, settings.encoder)
    for name, value in wanted.items():
        if name in known and known[name] != value:
            raise ValueError(
                f"{output}: is an index with {name} {known[name]}, got {value}; give another folder"
            )


def _check_encoder(output: Path, known: dict[str, Any], wanted: str) -> None:
    """Raises ValueError unless an index has the encoder that is asked for.

    Files are compared by their content: they may have another name now, or have changed.
    """
    there = dict(known.get("encoder", {}))
    spec = there.pop("spec", f"of backbone {known.get('backbone')}")
    local = Path(wanted.partition(":")[2]).exists()
    if there and local:
        found = resolve(wanted, words="text" in there).identity
        if json.loads(json.dumps(found)) == there:
            return
        if wanted == spec:
            raise ValueError(
                f"{output}: is an index with another encoder than {wanted} is now; give another "
                "folder"
            )
    elif wanted in (spec, spec.rpartition("@")[0]):
        return
    raise ValueError(
        f"{output}: is an index with encoder {spec}, got {wanted}; give another folder"
    )
