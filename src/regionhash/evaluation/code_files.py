"""Measures of code files: their rankings and detections, and curves on disk."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regionhash.data.image_set import ImageSet
from regionhash.data.inputs import class_indices
from regionhash.evaluation.detection import DetectionMap, detection_map
from regionhash.evaluation.metrics import RankingCurves
from regionhash.files.atomic import replacing
from regionhash.store import CodeSet
from regionhash.structures import Codes, Floats, Ints

Detections = tuple[Floats, Floats, Ints]


class LabelledCodes(NamedTuple):
    """The input of a ranking measure, in the order of `evaluate_ranking`'s arguments.

    Attributes:
        query_codes: (Q, B) uint8, packed; database_codes: (N, B) uint8.
        query_labels: (Q, C) uint8, 0 or 1; database_labels: (N, C) uint8.
    """

    query_codes: Codes
    database_codes: Codes
    query_labels: Codes
    database_labels: Codes


def labelled_codes(queries: CodeSet, database: CodeSet) -> LabelledCodes:
    """Codes and labels of the pictures of two code files.

    Raises:
        ValueError: codes of different models, a file without labels or image codes, or no query
            that shares a label with a picture of the database.
    """
    if queries.model_hash != database.model_hash:
        raise ValueError(
            f"{queries.path} and {database.path}: codes of different models, "
            f"{queries.model_hash} and {database.model_hash}"
        )
    codes, labels = [], []
    for file in (queries, database):
        if file.table.image_codes is None:
            raise ValueError(f"{file.path}: has no codes of whole pictures")
        if file.labels is None:
            raise ValueError(f"{file.path}: has no labels; encode a labelled data set")
        kept = slice(None) if file.alive is None else file.rows
        codes.append(file.table.image_codes[kept])
        labels.append(file.labels[kept])
    if not (labels[0].any(0) & labels[1].any(0)).any():
        raise ValueError(
            f"{queries.path} and {database.path}: no query shares a label with a picture of the "
            "database, so no picture is relevant and there is nothing to measure"
        )
    return LabelledCodes(*codes, *labels)


def detections_of_file(file: CodeSet, image_set: ImageSet) -> tuple[DetectionMap, tuple[str, ...]]:
    """mAP@0.5 of the stored regions, and the ids of the pictures missing from the file.

    A missing picture, such as one that could not be read, counts as having no detections.

    Args:
        file: codes with regions.
        image_set: pictures with boxes; its classes must be the model's, in any order.

    Raises:
        ValueError: a class unknown to the model, no boxes, or no picture in common.
    """
    label_of = np.array(class_indices(image_set, file.classes), np.int64)
    if all(target.difficult.all() for target in image_set.targets):
        raise ValueError(f"{image_set.name}: has no boxes to measure detections against")
    row_of = {file.table.ids[row]: row for row in file.rows.tolist()}
    missing = tuple(image_id for image_id in image_set.ids if image_id not in row_of)
    if len(missing) == len(image_set):
        raise ValueError(f"{file.path}: holds no picture of {image_set.name}")
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    found: list[Detections] = []
    for image_id in image_set.ids:
        if image_id in row_of:
            regions = file.table.regions(row_of[image_id])
            found.append((regions.boxes, regions.scores, regions.labels))
        else:
            found.append(none)
    targets = [
        replace(target, labels=label_of[target.labels], image_labels=())
        for target in image_set.targets
    ]
    return detection_map(found, targets, len(file.classes)), missing


def write_curves(folder: Path, method: str, curves: RankingCurves) -> None:
    """Writes curves.csv, precision_recall.png, precision_at_k.png and acg_at_k.png.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "curves.csv") as new, new.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["k", "precision", "recall", "acg"])
        table.writerows(zip(curves.ks, curves.precision, curves.recall, curves.acg, strict=True))
    from regionhash.evaluation.plots import plot_at_k, plot_precision_recall  # need matplotlib

    plot_precision_recall(folder / "precision_recall.png", {method: curves})
    plot_at_k(folder / "precision_at_k.png", {method: curves}, metric="precision")
    plot_at_k(folder / "acg_at_k.png", {method: curves}, metric="acg")
