"""Models that were trained on labels, with their own regions and with a detector's boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regionhash.data.image_set import Image
from regionhash.experiments.boxes_methods import Method, Score, Task, nearest, scored
from regionhash.models.checkpoints import Checkpoint
from regionhash.models.encoding import encode_boxes, encode_picture
from regionhash.models.runtime import Runtime, load_runtime
from regionhash.reporter import Reporter
from regionhash.structures import Codes, Floats


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model whose regions have codes.

    Attributes:
        name: for reports, such as "region-dh".
        runtime, checkpoint: see `load_runtime`.
    """

    name: str
    runtime: Runtime
    checkpoint: Checkpoint

    @property
    def fact(self) -> str:
        """What a report must say of it."""
        pictures = self.checkpoint.provenance["data"]
        return (
            f"{self.name}: checkpoint {self.checkpoint.model_hash}, trained on the labels of "
            f"{pictures['name']}, {pictures['pictures']} pictures; {self.runtime.n_region_bits} "
            f"bits of a region, short side {self.checkpoint.short} pixels."
        )


def open_models(folders: Sequence[str]) -> list[TrainedModel]:
    """The models in some folders.

    Raises:
        ValueError: a folder holds no model, or one that was not trained or has no regions.
    """
    models = []
    for folder in folders:
        runtime, checkpoint = load_runtime(Path(folder))
        if not runtime.n_region_bits or "data" not in checkpoint.provenance:
            raise ValueError(f"{folder}: {checkpoint.name} is not trained, or has no regions")
        models.append(TrainedModel(checkpoint.name, runtime, checkpoint))
    return models


def scores_of_model(
    task: Task, model: TrainedModel, n_boxes: int, reporter: Reporter
) -> list[Score]:
    """A model with its own regions, then with a detector's best boxes in place of them.

    The whole picture is a region in both.

    Args:
        task: what is searched for.
        model: the model.
        n_boxes: how many of the detector's boxes of a picture are taken at most.
        reporter: is told the pictures done.
    """
    regions = task.regions
    asked = np.concatenate([*_asked(task, model)])
    own: list[tuple[Floats, Codes]] = []
    given: list[tuple[Floats, Codes]] = []
    for n, row in enumerate(task.database.tolist()):
        image, whole = regions.image(row), regions.boxes["whole"][row]
        boxes = np.concatenate([whole, regions.boxes["boxes"][row][:n_boxes]])
        codes = _codes(model, image, boxes)
        given.append((boxes, codes))
        found = encode_picture(model.runtime, model.checkpoint, image).regions
        assert found is not None
        own.append((np.concatenate([whole, found.boxes]), np.concatenate([codes[:1], found.codes])))
        if (n + 1) % 200 == 0:
            reporter.note(f"{model.name}: {n + 1} of {len(task.database)} pictures")
    n_bits = model.runtime.n_region_bits
    return [
        _score(task, Method(f"{model.name}, {words}"), n_bits, asked, bags)
        for words, bags in (("its own regions", own), (f"{n_boxes} best boxes", given))
    ]


def _codes(model: TrainedModel, image: Image, boxes: Floats) -> Codes:
    return encode_boxes(model.runtime, model.checkpoint, image, boxes).codes


def _asked(task: Task, model: TrainedModel) -> Iterator[Codes]:
    """The codes (1, B) of each query's box; those of one picture are encoded together."""
    known, codes = -1, np.zeros((0, 0), np.uint8)
    for row, n in task.queries.tolist():
        if row != known:
            known, codes = (
                row,
                _codes(model, task.regions.image(row), task.regions.boxes["objects"][row]),
            )
        yield codes[n : n + 1]


def _score(
    task: Task, method: Method, n_bits: int, asked: Codes, bags: list[tuple[Floats, Codes]]
) -> Score:
    boxes, codes = (np.concatenate(parts) for parts in zip(*bags, strict=True))
    offsets = np.cumsum([0, *(len(part) for part, _ in bags)])
    return scored(task, method, n_bits, *nearest(asked, codes, offsets), boxes)
