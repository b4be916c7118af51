"""Ranking pictures by their nearest region, in several ways, and how right both of them are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from regionhash.codes import binarize, hamming_distances, pack_bits
from regionhash.collection.fitting import MAX_REGIONS
from regionhash.evaluation import (
    InstanceRelevance,
    dense_ranks,
    instance_average_precision,
    location_scores,
)
from regionhash.experiments.boxes_features import Regions, View
from regionhash.experiments.drh_features import Bags
from regionhash.models.drh import DRH, fit_drh
from regionhash.parts.choosing import thinned
from regionhash.parts.whitening import Whitening
from regionhash.search.united import first_least
from regionhash.structures import Codes, Floats, Floats64, Ints

SIZES = (("below 5 %", 0.0, 0.05), ("5 to 20 %", 0.05, 0.2), ("above 20 %", 0.2, 1.01))
"""Sizes of the query's box as parts of its picture."""

FLOATS = 0
"""In place of a number of bits: whitened features, compared by their cosine."""

_CHUNK = 8192  # features at a time
_BLOCK = 16  # queries at a time


@dataclass(frozen=True)
class Method:
    """How pictures are ranked.

    Attributes:
        name: for reports.
        kinds: regions beside the whole picture, in the order in which they are thinned.
        views: what a region is described by; the vectors of several are joined.
        pool: "max", "mean" or "gem".
        n_boxes: how many of a detector's boxes are taken at most.
        max_iou: see `thinned`.
        minus: the share of the picture's vector that is taken from each region's.
        picture: weight of the distance between whole pictures.
        labels: what is added to the distance of a region that has another class than the query,
            as a share of the largest distance, if the detector knows both.
        n_dims, power: of the whitening.
        fitted_on: largest region that whitening and hash are fitted on, as a part of its picture.
    """

    name: str
    kinds: tuple[str, ...] = ("windows",)
    views: tuple[View, ...] = (View(384),)
    pool: str = "max"
    n_boxes: int | None = None
    max_iou: float = 1.0
    minus: float = 0.0
    picture: float = 0.0
    labels: float = 0.0
    n_dims: int = 128
    power: float = 0.5
    fitted_on: float = 1.0


Features = Mapping[View, Mapping[str, Bags]]
"""By view, then by kind and pool, of all pictures."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is searched for in which pictures.

    Attributes:
        regions: of all pictures.
        database: (N,) rows of the pictures that are searched.
        queries: (Q, 2) int64, row of a picture, and which of its "objects" is the query.
        relevance: of the queries in the database.
        objects: for each query, what `location_scores` takes.
    """

    regions: Regions
    database: Ints
    queries: Ints
    relevance: InstanceRelevance
    objects: Sequence[Mapping[int, Floats]]

    @cached_property
    def parts(self) -> Floats64:
        """The parts (Q,) of their pictures that the queries take."""
        boxes = np.array([self.regions.boxes["objects"][row][n] for row, n in self.queries])
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).astype(np.float64)
        return np.asarray(areas / self.regions.sizes[self.queries[:, 0]].prod(1))

    def of_size(self, low: float, high: float) -> Ints:
        """The rows of queries of these sizes."""
        return np.flatnonzero((self.parts >= low) & (self.parts < high))


@dataclass(frozen=True, eq=False)
class Score:
    """What one method reached with one length of code.

    Attributes:
        method: the method.
        n_bits: of a code; `FLOATS`.
        per_picture: regions of a picture on average, the whole picture among them.
        precision: (Q,) average precision.
        located: (Q,) LocScore, NaN for a query without right hits.
    """

    method: Method
    n_bits: int
    per_picture: float
    precision: Floats64
    located: Floats64

    @property
    def n_bytes(self) -> int:
        """Bytes of a region's code."""
        return self.n_bits // 8 if self.n_bits else 4 * self.method.n_dims


@dataclass(frozen=True, eq=False)
class RegionTable:
    """The regions of all pictures of a database, those of picture n in a slice of offsets."""

    boxes: Floats  # (M, 4)
    vectors: Tensor  # (M, D) float16
    labels: Ints  # (M,), -1 for no class
    parts: Floats64  # (M,) of the picture
    offsets: Ints  # (N + 1,)


def scores(task: Task, features: Features, method: Method, bits: Sequence[int]) -> list[Score]:
    """A method with several lengths of code. Whitening and hash are fitted on the database."""
    table = region_table(task, features, method)
    asked = asked_vectors(task, features, method)
    wholes = _wholes(task, features, method) if method.picture else None
    rows = np.flatnonzero(table.parts <= method.fitted_on)
    if len(rows) > MAX_REGIONS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MAX_REGIONS, replace=False))
    labels = np.array([task.regions.asked[row][n] for row, n in task.queries])
    found = []
    for n_bits in bits:
        model = fitted(table.vectors[torch.from_numpy(rows)].float(), method, n_bits)
        distances, matched = nearest(
            describe(model, asked, n_bits),
            describe(model, table.vectors, n_bits),
            table.offsets,
            unlike=(labels, table.labels, method.labels) if method.labels else None,
        )
        if wholes is not None:
            theirs, ours = (describe(model, part, n_bits) for part in wholes)
            distances = distances + np.float32(method.picture) * compared(theirs, ours)
        found.append(scored(task, method, n_bits, distances, matched, table.boxes))
    return found


def scored(
    task: Task, method: Method, n_bits: int, distances: Floats, matched: Ints, boxes: Floats
) -> Score:
    """How right a ranking is.

    Args:
        task: what was searched for.
        method: how it was made.
        n_bits: of a region's code, or `FLOATS`.
        distances: (Q, N), see `nearest`.
        matched: (Q, N), see `nearest`.
        boxes: (M, 4), of all regions.
    """
    ranks = dense_ranks(distances)
    precision = instance_average_precision(ranks, task.relevance)
    found = [boxes[rows] for rows in matched]
    located = location_scores(ranks, task.relevance, found, task.objects)
    return Score(method, n_bits, len(boxes) / len(task.database), precision, located)


# -- vectors --------------------------------------------------------------------------------------


def _vectors(
    features: Features, method: Method, kind: str, row: int, most: int | None = None
) -> Tensor:
    """The vectors (R, D) of the first regions of one kind of a picture."""
    parts = []
    for view in method.views:
        bags = features[view][f"{kind} {method.pool}"]
        values = bags.values[bags.offsets[row] : bags.offsets[row + 1]][:most]
        parts.append(torch.from_numpy(values.astype(np.float32)))
    return F.normalize(torch.cat(parts, dim=1), dim=1)


def _less(vectors: Tensor, whole: Tensor, share: float) -> Tensor:
    """Vectors (R, D) less a share of their picture's (1, D), of unit length."""
    return F.normalize(vectors - share * whole, dim=1) if share else vectors


def region_table(task: Task, features: Features, method: Method) -> RegionTable:
    """The regions of the pictures of a database, with their vectors."""
    boxes, vectors, labels, parts, counts = [], [], [], [], [0]
    for row in task.database.tolist():
        whole = _vectors(features, method, "whole", row)
        groups = {"whole": task.regions.boxes["whole"][row]}
        described = [whole]
        for kind in method.kinds:
            most = method.n_boxes if kind == "boxes" else None
            groups[kind] = task.regions.boxes[kind][row][:most]
            own = _vectors(features, method, kind, row, most)
            described.append(_less(own, whole, method.minus))
        every = np.concatenate([*groups.values()])
        classes = np.concatenate(
            [
                task.regions.labels[row][: len(group)]
                if kind == "boxes"
                else np.full(len(group), -1)
                for kind, group in groups.items()
            ]
        )
        kept = thinned(every, method.max_iou)
        boxes.append(every[kept])
        vectors.append(torch.cat(described)[kept].half())
        labels.append(classes[kept])
        areas = (every[kept, 2:] - every[kept, :2]).prod(1)
        parts.append(areas / task.regions.sizes[row].prod())
        counts.append(len(kept))
    return RegionTable(
        np.concatenate(boxes),
        torch.cat(vectors),
        np.concatenate(labels),
        np.concatenate(parts),
        np.cumsum(counts),
    )


def asked_vectors(task: Task, features: Features, method: Method) -> Tensor:
    """The vectors (Q, D) of the queries' boxes."""
    found = []
    for row, n in task.queries.tolist():
        whole = _vectors(features, method, "whole", row)
        own = _vectors(features, method, "objects", row)[n : n + 1]
        found.append(_less(own, whole, method.minus))
    return torch.cat(found)


def _wholes(task: Task, features: Features, method: Method) -> tuple[Tensor, Tensor]:
    """The vectors of the queries' whole pictures (Q, D), and of the database's (N, D)."""
    theirs, ours = (
        torch.cat([_vectors(features, method, "whole", row) for row in rows.tolist()])
        for rows in (task.queries[:, 0], task.database)
    )
    return theirs, ours


# -- codes ----------------------------------------------------------------------------------------


def fitted(vectors: Tensor, method: Method, n_bits: int) -> DRH:
    """A DRH whose whitening and hash are fitted on vectors (N, D); its backbone is not read."""
    torch.manual_seed(0)
    n_dims = min(method.n_dims, vectors.shape[1])
    model = DRH(n_bits or 8, backbone="tiny_fpn", weights="none").eval()
    model.whitening = Whitening(vectors.shape[1], n_dims, power=method.power)
    if n_bits == FLOATS:
        model.whitening.fit(torch.split(vectors, _CHUNK))
        return model
    model.hash = nn.Linear(n_dims, n_bits)
    fit_drh(model, vectors)
    return model


@torch.no_grad()
def describe(model: DRH, vectors: Tensor, n_bits: int) -> Codes | Floats:
    """Codes (M, K/8), or whitened floats (M, P) of unit length, of vectors (M, D)."""
    parts: list[NDArray[np.float32]] = []
    packed: list[Codes] = []
    for chunk in torch.split(vectors, _CHUNK):
        x = model.whitening(chunk.float())
        if n_bits == FLOATS:
            parts.append(F.normalize(x, dim=1).numpy())
        else:
            packed.append(pack_bits(binarize(model(x).numpy(), 0.0)))
    return np.concatenate(packed) if packed else np.concatenate(parts)


def compared(asked: Codes | Floats, described: Codes | Floats) -> Floats:
    """Distances (Q, M) in [0, 1]: the share of differing bits, or (1 - cosine) / 2."""
    if asked.dtype == np.uint8:
        codes, others = cast(Codes, asked), cast(Codes, described)
        return hamming_distances(codes, others).astype(np.float32) / np.float32(8 * codes.shape[1])
    return np.asarray((1 - asked @ described.T) / 2, np.float32)


def nearest(
    asked: Codes | Floats,
    described: Codes | Floats,
    offsets: Ints,
    *,
    unlike: tuple[Ints, Ints, float] | None = None,
) -> tuple[Floats, Ints]:
    """The nearest region of each picture to each query.

    Args:
        asked: of Q queries.
        described: of M regions.
        offsets: (N + 1,), the regions of picture n are `offsets[n]:offsets[n + 1]`, at least one.
        unlike: classes (Q,) and (M,), -1 for none, and what is added to the distance of two that
            differ.

    Returns:
        Their distances (Q, N), and their rows (Q, N): of equal ones, the first.
    """
    n_pictures = len(offsets) - 1
    distances = np.empty((len(asked), n_pictures), np.float32)
    matched = np.empty((len(asked), n_pictures), np.int64)
    for n in range(len(asked)):
        if n % _BLOCK == 0:
            block = compared(asked[n : n + _BLOCK], described)
        row = block[n % _BLOCK]
        if unlike is not None and unlike[0][n] >= 0:
            differ = (unlike[1] >= 0) & (unlike[1] != unlike[0][n])
            row = row + np.float32(unlike[2]) * differ
        matched[n] = first_least(row, offsets)
        distances[n] = row[matched[n]]
    return distances, matched
