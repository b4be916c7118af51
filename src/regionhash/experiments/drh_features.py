"""What all methods of instance search read of pictures, computed once and kept on disk.

Every picture passes the network once. The descriptors of its map and the maxima in its windows are
written as float16, one file per kind.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from regionhash.collection.fitting_drh import detector_arguments, take_detector
from regionhash.data.frames import Frame
from regionhash.data.image_set import Image
from regionhash.data.images import ImageError
from regionhash.data.instances import BoxQuerySet
from regionhash.data.transforms import to_input
from regionhash.experiments.common import built, hash_ids
from regionhash.files.atomic import sync_directory
from regionhash.models.checkpoints import read_checkpoint
from regionhash.models.drh import DRH
from regionhash.parts.backbones import stack_images
from regionhash.parts.descriptors import crow, gem, mac, rmac_vectors, spoc
from regionhash.parts.windows import max_pool_windows, sliding_windows, snap_boxes
from regionhash.reporter import Reporter
from regionhash.structures import Codes, Ints

DESCRIPTORS = {"MAC": mac, "SPoC": spoc, "CroW": crow, "GeM": gem}
"""Those of one vector per picture; R-MAC has one per region until they are whitened."""

_CHUNK = 8192  # features at a time


@dataclass(frozen=True, eq=False)
class Bags:
    """Features of several pictures, those of picture n in rows `offsets[n]:offsets[n + 1]`.

    Attributes:
        values: (M, D) float16, memory-mapped.
        offsets: (N + 1,) int64.
    """

    values: NDArray[np.float16]
    offsets: Ints

    @property
    def mean_length(self) -> float:
        """Features per picture."""
        return len(self.values) / (len(self.offsets) - 1)

    def __iter__(self) -> Iterator[Tensor]:
        """All rows, some at a time, as float32."""
        for first in range(0, len(self.values), _CHUNK):
            yield torch.from_numpy(self.values[first : first + _CHUNK].astype(np.float32))

    def map(self, function: Callable[[Tensor], Tensor | Codes]) -> NDArray[Any]:
        """A function of all rows, some at a time."""
        with torch.no_grad():
            return np.concatenate([np.asarray(function(chunk)) for chunk in self])


@dataclass(frozen=True, eq=False)
class InstanceFeatures:
    """What all methods read of the database and of the queries' boxes.

    Attributes:
        ids: of the pictures that could be read.
        skipped: id and reason of each of the others.
        database: by kind: a key of DESCRIPTORS, "R-MAC", "RPN", or `windows_kind(overlap)`.
        queries: by kind, without windows.
    """

    ids: tuple[str, ...]
    skipped: dict[str, str]
    database: dict[str, Bags]
    queries: dict[str, Bags]


def windows_kind(overlap: float) -> str:
    """The kind of features that the windows of an overlap have."""
    return f"windows, overlap {overlap}"


def instance_features(
    model: DRH,
    query_set: BoxQuerySet,
    folder: Path,
    *,
    short: int,
    overlaps: Sequence[float],
    detector: Path | None,
    settings: Sequence[str],
    reporter: Reporter,
) -> InstanceFeatures:
    """The features of database and queries, computed unless they are in `folder` already.

    Args:
        model: a DRH; of it the backbone is used.
        query_set: database and queries.
        folder: of all features; each set has a folder of its own there.
        short: short side of the network's input in pixels.
        overlaps: of the windows.
        detector: folder of a Region-DH checkpoint whose RPN proposes regions, too.
        settings: what else the features depend on, such as the backbone and its weights.
        reporter: is told the progress, and the reason for each picture that is skipped.

    Raises:
        ValueError: the picture of a query cannot be read, or the checkpoint cannot be used.
    """
    known = [*settings, str(short), repr(tuple(overlaps)), query_set.database.fingerprint()]
    known += [repr(query) for query in query_set.queries]
    if detector:
        known.append(read_checkpoint(detector).model_hash)
    path = folder / hash_ids(known)
    found = _stored(path, reporter)
    if found is None:
        database = query_set.database
        reporter.note(f"{database.name}: computing the features of {len(database)} pictures")
        fresh = path.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        proposer = _proposer(detector) if detector else None
        _compute(model, proposer, query_set, overlaps, short, fresh, reporter)
        _sync(fresh)
        fresh.replace(path)
        sync_directory(folder)
        found = _opened(path)
    return found


def _stored(path: Path, reporter: Reporter) -> InstanceFeatures | None:
    """The features in `path`; None if it is missing, or damaged and therefore removed."""
    if not path.exists():
        return None
    try:
        return _opened(path)
    except (OSError, LookupError, AttributeError, TypeError, ValueError) as error:
        reporter.note(f"{path}: damaged ({error}); computed again")
        shutil.rmtree(path)
        return None


def _sync(folder: Path) -> None:
    """Flushes the files in a folder to the disk, so that none is cut once it has its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


class BagWriter:
    """Writes the features of picture after picture: one file per kind, and their numbers.

    All kinds have as many dimensions. `open_bags` reads them.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._counts: dict[str, list[int]] = {}
        self._n_dims = 0

    def add(self, features: dict[str, Tensor]) -> None:
        """The features (R, D) of one picture, by kind."""
        for kind, vectors in features.items():
            with (self._folder / f"{kind}.f16").open("ab") as file:
                file.write(vectors.half().numpy().tobytes())
            self._counts.setdefault(kind, []).append(len(vectors))
            self._n_dims = vectors.shape[1]

    def finish(self) -> None:
        """Writes what makes the files readable."""
        record = {"n_dims": self._n_dims, "counts": self._counts}
        (self._folder / "bags.json").write_text(json.dumps(record))


def _proposer(path: Path) -> DRH:
    """A DRH whose regions are the proposals of a trained detector."""
    model = built(DRH, detector_arguments(path) | {"n_classes": 0})
    take_detector(model, path)
    return model.eval()


def _compute(
    model: DRH,
    proposer: DRH | None,
    query_set: BoxQuerySet,
    overlaps: Sequence[float],
    short: int,
    folder: Path,
    reporter: Reporter,
) -> None:
    query_set.database.notices.tell(reporter)
    database, ids, skipped = BagWriter(folder / "database"), [], {}
    for n, image_id in enumerate(query_set.database.ids):
        try:
            top, frame, tensor = _map_of(model, query_set.database.images[n], short)
        except ImageError as error:
            skipped[image_id] = str(error)
            reporter.skipped(image_id, str(error))
            continue
        size = (top.shape[2], top.shape[3])
        windows = {windows_kind(o): sliding_windows(*size, o) for o in overlaps}
        if proposer is not None:
            (proposed,) = proposer.region_features([tensor])
            windows["RPN"] = snap_boxes(proposed.boxes, _stride(top, frame), *size)
        maxima = {
            kind: F.normalize(max_pool_windows(top, cells)[0], dim=1)
            for kind, cells in windows.items()
        }
        database.add(_whole(top) | maxima)
        ids.append(image_id)
        if len(ids) % 500 == 0:
            reporter.note(f"{len(ids)} of {len(query_set.database)} pictures")
    database.finish()
    queries, shown = BagWriter(folder / "queries"), ""
    for query in query_set.queries:
        if query.image_id != shown:  # the queries of one picture follow each other
            image = query_set.database.images[query_set.database.ids.index(query.image_id)]
            (top, frame, _), shown = _map_of(model, image, short), query.image_id
        box = frame.to_input(torch.tensor([query.box]))
        ((x0, y0, x1, y1),) = snap_boxes(box, _stride(top, frame), top.shape[2], top.shape[3])
        queries.add(_whole(top[:, :, y0:y1, x0:x1]))
    queries.finish()
    (folder / "pictures.json").write_text(json.dumps({"ids": ids, "skipped": skipped}))


@torch.no_grad()
def _map_of(model: DRH, image: Image, short: int) -> tuple[Tensor, Frame, Tensor]:
    """The map (1, D, h, w) that DRH reads of a picture, the frame of its boxes, and the input."""
    tensor, frame = to_input(image, short)
    batch, _ = stack_images([tensor])
    return model.backbone.top(batch).float(), frame, tensor


def _stride(top: Tensor, frame: Frame) -> float:
    """Input pixels per cell."""
    return frame.input_size[1] / top.shape[3]


def _whole(top: Tensor) -> dict[str, Tensor]:
    """The descriptors (1, D) of a map (1, D, h, w), and the regions (R, D) of R-MAC."""
    return {kind: f(top) for kind, f in DESCRIPTORS.items()} | {"R-MAC": rmac_vectors(top)[0]}


def open_bags(folder: Path) -> dict[str, Bags]:
    """What a `BagWriter` wrote, memory-mapped."""
    record = json.loads((folder / "bags.json").read_text())
    found = {}
    for kind, counts in record["counts"].items():
        values = np.memmap(folder / f"{kind}.f16", np.float16, "r")
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        found[kind] = Bags(values.reshape(offsets[-1], record["n_dims"]), offsets)
    return found


def _opened(path: Path) -> InstanceFeatures:
    pictures = json.loads((path / "pictures.json").read_text())
    database, queries = (open_bags(path / part) for part in ("database", "queries"))
    return InstanceFeatures(tuple(pictures["ids"]), pictures["skipped"], database, queries)
