"""Fitting a model on pictures without labels, for `regionhash index`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from regionhash.data.detections import Boxes, Detector, read_detections
from regionhash.data.frames import Pixels
from regionhash.data.image_set import ImageSet
from regionhash.data.notices import Notices
from regionhash.detectors import OnnxDetector, write_detector
from regionhash.encoders import resolve
from regionhash.files.names import absolute
from regionhash.models import ENCODED_REGIONS
from regionhash.models.checkpoints import Checkpoint, provenance, save_checkpoint
from regionhash.models.encoding import Input, detector_of, finder_of, read_inputs
from regionhash.models.region_hash import RegionHash
from regionhash.models.runtime import Runtime
from regionhash.parts.hashes import FitReport
from regionhash.reporter import SILENT, Reporter
from regionhash.structures import Detections, Floats

if TYPE_CHECKING:
    from regionhash.collection.indexing import IndexSettings
    from regionhash.models import HashModel

DEFAULT_SHORT = 384
"""Short side of the network's input, in pixels; docs/drh.md compares others."""

DEFAULT_CROP_SHORT = 768
"""Short side of the picture that regions are cut from, in pixels."""

MAX_PICTURES = 2_000
"""Largest number of pictures to fit a model on, which takes minutes on a CPU."""

MAX_REGIONS = 40_000
"""Largest number of their regions: 205 MB of features of 1,280 dimensions."""


class Describes(Protocol):
    """What fitting needs of a model."""

    def describe(self, image: Pixels, given: Detections | None = None) -> tuple[Detections, Floats]:
        """The regions of a picture (3, h, w), whole picture first, and their features (R, D)."""


def fit_model(
    image_set: ImageSet,
    output: Path,
    settings: IndexSettings,
    *,
    device: str,
    workers: int,
    reporter: Reporter = SILENT,
) -> FitReport:
    """Fits a model on pictures and writes it to a folder.

    Args:
        image_set: the pictures.
        output: the folder.
        settings: see `IndexSettings`; with an encoder it is a `RegionHash`, otherwise a DRH.
        device: see `pick_device`; an encoder runs on the CPU.
        workers: processes that read pictures.
        reporter: is told the pictures read and their number.

    Raises:
        ValueError: there is no such encoder; an argument is out of range; no picture can be read.
    """
    boxes: Boxes | Detector | None = None
    if isinstance(settings.boxes, str | Path):
        boxes = Boxes([read_detections(settings.boxes)])
    elif settings.boxes is not None:
        boxes = settings.boxes
    detector = settings.boxes if isinstance(settings.boxes, OnnxDetector) else None
    arguments = dict(settings.arguments)
    if settings.proposals:
        arguments["proposals"] = settings.proposals
    names = getattr(boxes, "classes", ())  # a function has none
    classes = tuple(dict.fromkeys([*settings.classes, *image_set.classes, *names]))
    sample = partial(
        sample_features,
        image_set=image_set,
        seed=settings.seed,
        workers=workers,
        boxes=boxes,
        classes=classes,
        reporter=reporter,
    )
    model: RegionHash | HashModel
    if (spec := settings.encoder_to_fit) is None:
        from regionhash.collection import fitting_drh

        short = settings.short or DEFAULT_SHORT
        model, arguments, features, report = fitting_drh.fitted(
            arguments,
            settings.detector,
            partial(sample, short=short),
            device=device,
            seed=settings.seed,
        )
    else:
        # The words of an encoder can be as large as the rest, and need cut-out regions.
        resolved = resolve(spec, reporter, words=arguments.get("regions", "crop") == "crop")
        unfitted = RegionHash.of_encoder(resolved, arguments)
        if unfitted.settings.regions == "crop" and "regions" not in arguments:
            reporter.note(
                "each region is cut out and encoded on its own"
                + (", so that words can be searched for" if unfitted.text else "")
                + "; --regions map is faster" * resolved.encoder.gives_map
            )
        short = settings.short or (
            DEFAULT_SHORT if unfitted.settings.regions == "map" else DEFAULT_CROP_SHORT
        )
        features = sample(unfitted, short=short, runtime=unfitted)
        model, report = unfitted.fitted(features, seed=settings.seed, reporter=reporter)
        arguments = model.arguments
        resolved.write(output)
    record = provenance() | {
        "data": image_set.fingerprint(),
        "fit": asdict(report) | {"regions": len(features), "seed": settings.seed},
    }
    if isinstance(settings.boxes, str | Path):
        record["boxes"] = str(absolute(settings.boxes))
    if detector is not None:
        record["detector"] = {"file": detector.place, "sha256": detector.sha256}
        write_detector(output, detector)
    name = "drh" if spec is None else ENCODED_REGIONS
    save_checkpoint(output, model, Checkpoint(name, arguments, classes, short, provenance=record))
    return report


def sample_features(
    model: Describes,
    image_set: ImageSet,
    *,
    short: int,
    seed: int,
    workers: int,
    runtime: Runtime | None = None,
    boxes: Boxes | Detector | None = None,
    classes: Sequence[str] = (),
    reporter: Reporter = SILENT,
) -> Floats:
    """Features (N, D) of regions of some pictures, always including the whole picture.

    At most `MAX_PICTURES` pictures and about `MAX_REGIONS` regions are drawn at random, the same
    for the same seed. Pictures that cannot be read are left out. `runtime` prepares the
    pictures, see `read_inputs`.

    Raises:
        ValueError: no picture can be read.
    """
    rng = np.random.default_rng(seed)
    rows = sorted(rng.permutation(len(image_set))[:MAX_PICTURES].tolist())
    per_picture = max(1, MAX_REGIONS // len(rows))
    found: list[Floats] = []
    reason = ""
    find = None
    if boxes is not None:
        silent = replace(image_set, notices=Notices())  # encoding will notice the same
        find = finder_of(boxes, silent, rows, classes)
        workers = 0 if detector_of(boxes) else workers
    inputs = read_inputs(image_set, rows, short, workers, find=find, runtime=runtime)
    for n, (_, item) in enumerate(inputs, 1):
        if isinstance(item, Input):
            _, features = model.describe(item.image, None if find is None else item.boxes)
            chosen = 1 + rng.permutation(len(features) - 1)[: per_picture - 1]
            found.append(features[[0, *chosen.tolist()]])
        else:
            reason = item
        reporter.progress(n, len(rows))
    if not found:
        raise ValueError(f"no picture of {image_set.name} can be read: {reason}")
    return np.concatenate(found)
