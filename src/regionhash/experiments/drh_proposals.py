"""Compares what DRH may take as regions: windows, a pyramid, a detector's boxes, and all together.

    python -m regionhash.experiments.drh_proposals --data indoor --boxes detections.json -o out.json

Instance search in a table of boxes, as in `regionhash reproduce drh/instances`, over all regions of
all pictures. Whitening and hash are fitted for each kind of regions on these regions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from regionhash.codes import binarize, hamming_distances, pack_bits
from regionhash.collection.fitting import MAX_REGIONS
from regionhash.data import open_dataset
from regionhash.data.detections import Boxes, read_detections
from regionhash.data.image_set import ImageSet
from regionhash.data.images import ImageError
from regionhash.data.instances import BoxQuerySet, read_instances
from regionhash.data.transforms import to_input
from regionhash.evaluation import InstanceRelevance, instance_average_precision, location_scores
from regionhash.experiments.common import body, built, facts_of_run
from regionhash.experiments.drh import DRHOptions
from regionhash.files.atomic import write_text
from regionhash.models.drh import DRH, fit_drh
from regionhash.parts.backbones import stack_images
from regionhash.parts.choosing import thinned
from regionhash.parts.windows import (
    max_pool_windows,
    pyramid_windows,
    sliding_windows,
    snap_boxes,
)
from regionhash.structures import Detections, Floats

KINDS = ("windows", "pyramid", "boxes")
SIZES = (("below 5 %", 0.0, 0.05), ("5 to 20 %", 0.05, 0.2), ("above 20 %", 0.2, 1.01))
"""Sizes of the query's box as parts of its picture."""


class Picture(NamedTuple):
    """The regions of one picture by kind, the whole picture first.

    Attributes:
        boxes: (R, 4), in pixels of the picture.
        features: (R, D) float16, max-pooled, of unit length.
    """

    boxes: dict[str, Tensor]
    features: dict[str, Tensor]


class Queries(NamedTuple):
    """The queries: features (Q, D) of their boxes, and the parts (Q,) of the pictures they take."""

    features: Tensor
    parts: Floats


@torch.no_grad()
def regions_of_sets(
    model: DRH, image_sets: Sequence[ImageSet], boxes: Boxes, *, short: int, n_proposals: int
) -> tuple[list[str], list[Picture]]:
    """Ids and regions of the pictures that can be read."""
    ids, pictures = [], []
    for image_set in image_sets:
        found = boxes.of(image_set, range(len(image_set)), boxes.classes)
        for row, image_id in enumerate(image_set.ids):
            try:
                tensor, frame = to_input(image_set.images[row], short)
            except ImageError:
                continue
            top = model.backbone.top(stack_images([tensor])[0]).float()
            height, width = top.shape[2:]
            cell = top.new_tensor([frame.size[1] / width, frame.size[0] / height] * 2)
            given = found.get(row, Detections.none())
            best = torch.from_numpy(given.boxes[np.argsort(-given.scores, kind="stable")])
            whole = torch.tensor([[0.0, 0, frame.size[1], frame.size[0]]])
            own = torch.cat([whole, best[:n_proposals]])
            stride = frame.input_size[1] / width
            cells = {
                "windows": sliding_windows(height, width, model.choice.overlap),
                "pyramid": pyramid_windows(height, width, n_proposals),
                "boxes": snap_boxes(frame.to_input(own), stride, height, width),
            }
            placed = {kind: torch.tensor(cells[kind]) * cell for kind in KINDS} | {"boxes": own}
            pooled = {
                kind: F.normalize(max_pool_windows(top, cells[kind])[0], dim=1).half()
                for kind in KINDS
            }
            ids.append(image_id)
            pictures.append(Picture(placed, pooled))
    return ids, pictures


@torch.no_grad()
def queries_of(model: DRH, query_set: BoxQuerySet, *, short: int) -> Queries:
    """What a search computes of each query's box."""
    features, parts, shown = [], [], ""
    database = query_set.database
    for query in query_set.queries:
        if query.image_id != shown:  # the queries of one picture follow each other
            shown = query.image_id
            image = database.images[database.ids.index(shown)]
            tensor, frame = to_input(image, short)
            top = model.backbone.top(stack_images([tensor])[0]).float()
        box = torch.tensor([query.box])
        stride = frame.input_size[1] / top.shape[3]
        cells = snap_boxes(frame.to_input(box), stride, *top.shape[2:])
        features.append(F.normalize(max_pool_windows(top, cells)[0], dim=1))
        x0, y0, x1, y1 = query.box
        parts.append((x1 - x0) * (y1 - y0) / (frame.size[0] * frame.size[1]))
    return Queries(torch.cat(features), np.array(parts, np.float32))


def joined_regions(picture: Picture, kinds: Sequence[str], max_iou: float) -> tuple[Tensor, Tensor]:
    """Boxes and features of several kinds, boxes of a detector first; the whole picture once."""
    boxes = torch.cat([picture.boxes[kind][n > 0 :] for n, kind in enumerate(kinds)])
    features = torch.cat([picture.features[kind][n > 0 :] for n, kind in enumerate(kinds)])
    kept = thinned(boxes.numpy(), max_iou)
    return boxes[kept], features[kept]


def measured(
    options: DRHOptions,
    query_set: BoxQuerySet,
    ids: list[str],
    pictures: list[Picture],
    queries: Queries,
    *,
    kinds: Sequence[str],
    max_iou: float,
    n_bits: int,
) -> dict[str, Any]:
    """The figures of one choice of regions."""
    found = [joined_regions(picture, kinds, max_iou) for picture in pictures]
    boxes = torch.cat([boxes for boxes, _ in found]).numpy()
    features = torch.cat([features for _, features in found])
    offsets = np.concatenate([[0], np.cumsum([len(own) for own, _ in found])])
    torch.manual_seed(0)
    model = built(DRH, body(options) | {"n_bits": n_bits, "n_classes": 0}).eval()
    rows = np.arange(len(features))
    if len(rows) > MAX_REGIONS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MAX_REGIONS, replace=False))
    fit_drh(model, features[rows].float())

    def codes_of(values: Tensor) -> Any:
        with torch.no_grad():
            parts = [
                binarize(model(model.whitening(part.float())).numpy(), 0.0)
                for part in torch.split(values, 8192)
            ]
        return pack_bits(np.concatenate(parts))

    codes, asked = codes_of(features), codes_of(queries.features)
    distances = np.empty((len(asked), len(ids)), np.int64)
    matched = []
    for query, code in enumerate(asked):
        every = hamming_distances(code[None], codes)[0]
        nearest = [low + int(every[low:high].argmin()) for low, high in pairwise(offsets.tolist())]
        distances[query] = every[nearest]
        matched.append(boxes[nearest])
    relevance = InstanceRelevance.of_ids(
        ids,
        [query.positives for query in query_set.queries],
        [query.junk for query in query_set.queries],
    )
    precision = instance_average_precision(distances, relevance)
    located = location_scores(distances, relevance, matched, _objects(query_set, ids))
    record: dict[str, Any] = {
        "regions": "+".join(kinds) + (f", max_iou {max_iou:g}" if max_iou < 1 else ""),
        "per_picture": round(len(boxes) / len(ids), 1),
    }
    for name, low, high in (("all", 0.0, 1.01), *SIZES):
        rows = np.flatnonzero((queries.parts >= low) & (queries.parts < high))
        hits = located[rows][~np.isnan(located[rows])]
        record[name] = {
            "queries": len(rows),
            "mAP": round(float(precision[rows].mean()), 4) if len(rows) else None,
            "LocScore": round(float(hits.mean()), 4) if len(hits) else None,
        }
    return record


def _objects(query_set: BoxQuerySet, ids: list[str]) -> list[dict[int, Floats]]:
    """The boxes of each query's object in its positive pictures, by row."""
    database = query_set.database
    row_of = {image_id: row for row, image_id in enumerate(ids)}
    target_of = dict(zip(database.ids, database.targets, strict=True))
    classes = {name: label for label, name in enumerate(database.classes)}
    objects = []
    for query in query_set.queries:
        # `read_instances` names a query by its class, number and picture.
        label = classes[query.name.removesuffix(f" of {query.image_id}").rpartition(" ")[0]]
        boxes = {
            row_of[image_id]: target_of[image_id].boxes[target_of[image_id].labels == label]
            for image_id in query.positives
            if image_id in row_of
        }
        objects.append({row: own for row, own in boxes.items() if len(own)})
    return objects


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all choices and writes them, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of objects.csv, images")
    parser.add_argument("--boxes", type=Path, action="append", required=True)
    parser.add_argument("--distractors", action="append", default=[], help="further pictures")
    parser.add_argument("--backbone", default="mobilenet_v2_fpn")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--short", type=int, default=384)
    parser.add_argument("--bits", type=int, default=1024)
    parser.add_argument("--n-proposals", type=int, default=300)
    parser.add_argument("--max-iou", type=float, default=0.7, help="of the thinned rows")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    options = DRHOptions(given.backbone, given.weights, given.short)
    query_set = read_instances(given.data / "objects.csv", images_dir=given.data / "images")
    image_sets = [query_set.database, *map(open_dataset, given.distractors)]
    boxes = Boxes([read_detections(path) for path in given.boxes])
    model = built(DRH, body(options) | {"n_bits": given.bits, "n_classes": 0}).eval()
    ids, pictures = regions_of_sets(
        model, image_sets, boxes, short=given.short, n_proposals=given.n_proposals
    )
    queries = queries_of(model, query_set, short=given.short)
    rows = []
    for kinds, max_iou in (
        (("windows",), 1.0),
        (("pyramid",), 1.0),
        (("boxes",), 1.0),
        (("boxes", "windows"), 1.0),
        (("boxes", "pyramid", "windows"), 1.0),
        (("pyramid",), given.max_iou),
        (("boxes",), given.max_iou),
        (("boxes", "windows"), given.max_iou),
        (("boxes", "pyramid", "windows"), given.max_iou),
    ):
        row = measured(
            options,
            query_set,
            ids,
            pictures,
            queries,
            kinds=kinds,
            max_iou=max_iou,
            n_bits=given.bits,
        )
        rows.append(row)
        print(json.dumps(row), flush=True)
    record = {"pictures": len(ids), "facts": facts_of_run(), "rows": rows}
    write_text(given.output, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
