"""Runs a preset of `boxes`: windows and a detector's boxes as regions, and small objects.

What is chosen is chosen on a third of the database that is held out: its objects are the queries to
the rest. The queries of the report are ranked once, by what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regionhash.data import open_dataset
from regionhash.data.detections import Boxes, read_detections
from regionhash.data.image_set import ImageSet
from regionhash.data.instances import read_instances
from regionhash.evaluation import InstanceRelevance
from regionhash.experiments.boxes import PRESETS, BoxesOptions, BoxesPreset
from regionhash.experiments.boxes_features import Regions, View, features_of, regions_of
from regionhash.experiments.boxes_methods import FLOATS, SIZES, Method, Score, Task, scores
from regionhash.experiments.boxes_report import BoxesReport, write_report
from regionhash.experiments.boxes_trained import TrainedModel, open_models, scores_of_model
from regionhash.experiments.common import body, built, command, described, facts_of_run, needed
from regionhash.experiments.drh_features import Bags
from regionhash.experiments.drh_run import DEFAULT_BITS
from regionhash.models.drh import DRH
from regionhash.reporter import Reporter
from regionhash.structures import Floats, Ints

FEW = 9
"""Boxes of a picture for a quarter of the codes of windows, of which there are 41 or 44."""

CHOSEN = (
    "crops and map, 32 dimensions, picture .5",
    "crops and map, 32 dimensions, picture .5, labels .1",
)
"""The `levers` that were best for small objects on the pictures held out of VOC's train."""

_BITS = (FLOATS, DEFAULT_BITS, 256)


def reproduce(name: str, root: Path, out: Path, options: BoxesOptions, reporter: Reporter) -> Path:
    """Runs a preset, see `Experiment.run`."""
    preset = PRESETS[name]
    with needed(preset.layout, root):
        sides, image_sets = open_sets(preset, root, options.distractors)
        if not options.detections:
            raise ValueError("no boxes: give files of detections with --set detections='[FILE]'")
        boxes = Boxes([read_detections(path) for path in options.detections])
        models = open_models(options.models)
    model = built(DRH, body(options) | {"n_bits": DEFAULT_BITS, "n_classes": 0}).eval()
    reporter.note(f"{name}: laying regions on the pictures")
    regions = regions_of(model, image_sets, boxes, short=options.short)
    rows, labels = rows_of(image_sets), labels_of(image_sets)
    task = task_of_sides(regions, sides, image_sets)
    short = options.short
    of_all = {view for method in (*kinds(short), *levers(short)) for view in method.views}

    def describe(view: View) -> Mapping[str, Bags]:
        most = FEW if view.margin is not None else None
        wanted: dict[str, int | None] = {"whole": None, "boxes": most, "objects": None}
        if view == View(short):
            wanted |= {"windows": None, "pyramid": None}
        return features_of(
            model,
            regions,
            view,
            wanted,
            out / "features" / regions.fingerprint(),
            reporter,
            n_pictures=None if view in of_all else len(rows[0]),  # only what is tried needs it
        )

    features = _Views(describe)

    def measured(task: Task, methods: Sequence[Method], bits: Sequence[int]) -> list[Score]:
        found = []
        for method in methods:
            found += _told(scores(task, features, method, bits), reporter)
        return found

    tried, best = None, [*CHOSEN]
    if len(sides) > 1:
        held, rest = held_out(rows[0])
        practice = task_of(regions, labels, rest, held)
        found = measured(practice, levers(short), [DEFAULT_BITS])
        best = best_of(practice, found)
        if options.more:
            found += measured(practice, more_levers(short), [DEFAULT_BITS])
        tried = (practice, found)
    trained = []
    for each in models:
        trained += _told(scores_of_model(task, each, FEW, reporter), reporter)
    report = BoxesReport(
        title=f"{name}: windows and a detector's boxes",
        facts=_facts(
            command(name, root, options), options, image_sets, sides, regions, task, models
        ),
        task=task,
        compared=measured(task, kinds(short), _BITS),
        chosen=measured(task, named(short, best), _BITS),
        trained=trained,
        tried=tried,
        best=best,
        default_bits=DEFAULT_BITS,
    )
    return write_report(out, report)


def _told(found: list[Score], reporter: Reporter) -> list[Score]:
    for score in found:
        values = f"MAP {score.precision.mean():.4f}, {score.per_picture:.1f} regions a picture"
        reporter.note(f"{score.method.name}, {score.n_bits or 'floats'}: {values}")
    return found


# -- what is searched -----------------------------------------------------------------------------


def open_sets(
    preset: BoxesPreset, root: Path, distractors: Sequence[str]
) -> tuple[list[ImageSet], list[ImageSet]]:
    """The sides of a preset, database first, and then also the distractors.

    A database whose objects are the queries is the only side. Raises ValueError for missing data.
    """
    if preset.database:
        sides = [open_dataset(s.format(root=root)) for s in (preset.database, preset.queries)]
    else:
        sides = [read_instances(root / "objects.csv", images_dir=root / "images").database]
    return sides, [*sides, *(open_dataset(spec.format(root=root)) for spec in distractors)]


def rows_of(image_sets: Sequence[ImageSet]) -> list[Ints]:
    """The rows of the pictures of each set among those of all."""
    ends = np.cumsum([0, *map(len, image_sets)])
    return [np.arange(*ends[n : n + 2]) for n in range(len(image_sets))]


def labels_of(image_sets: Sequence[ImageSet]) -> list[Ints]:
    """The classes of the objects of each picture that are not difficult."""
    return [target.labels[~target.difficult] for each in image_sets for target in each.targets]


def task_of_sides(
    regions: Regions, sides: Sequence[ImageSet], image_sets: Sequence[ImageSet]
) -> Task:
    """The objects of the last side as queries to the database with the distractors."""
    rows = rows_of(image_sets)
    searched = np.concatenate([rows[0], *rows[len(sides) :]])
    return task_of(regions, labels_of(image_sets), searched, rows[len(sides) - 1])


def held_out(rows: Ints) -> tuple[Ints, Ints]:
    """A third of the pictures, drawn at random, and the others; both ascending."""
    order = np.random.default_rng(0).permutation(rows)
    third = len(rows) // 3
    return np.sort(order[:third]), np.sort(order[third:])


def task_of(regions: Regions, labels: Sequence[Ints], database: Ints, asked: Ints) -> Task:
    """The objects of some pictures as queries to others.

    A picture is right if it has an object of the query's class. The query's own picture does not
    count, and an object whose class no other picture of the database has is no query.

    Args:
        regions: of all pictures.
        labels: the class of each of their "objects".
        database: rows of the pictures that are searched.
        asked: rows of the pictures whose objects are the queries.

    Raises:
        ValueError: nothing is left to search for.
    """
    pictures: dict[int, dict[int, Floats]] = {}
    for place, row in enumerate(database.tolist()):
        boxes = regions.boxes["objects"][row]
        for label in np.unique(labels[row]).tolist():
            pictures.setdefault(label, {})[place] = boxes[labels[row] == label]
    place_of = {row: place for place, row in enumerate(database.tolist())}
    queries, objects, junk = [], [], []
    for row in asked.tolist():
        own = place_of.get(row)
        for n, label in enumerate(labels[row].tolist()):
            others = {
                place: boxes for place, boxes in pictures.get(label, {}).items() if place != own
            }
            if others:
                queries.append((row, n))
                objects.append(others)
                junk.append(np.array([] if own is None else [own], np.int64))
    if not queries:
        raise ValueError("no object is in two pictures, so there is nothing to search for")
    positives = tuple(np.array([*others], np.int64) for others in objects)
    counts = np.array([len(rows) for rows in positives], np.int64)
    relevance = InstanceRelevance(positives, tuple(junk), counts, len(database))
    return Task(regions, database, np.array(queries, np.int64), relevance, objects)


class _Views(Mapping[View, Mapping[str, Bags]]):
    """The features of all views, computed when they are first asked for.

    Args:
        describe: computes those of a view.
    """

    def __init__(self, describe: Callable[[View], Mapping[str, Bags]]) -> None:
        self._describe = describe
        self._known: dict[View, Mapping[str, Bags]] = {}

    def __getitem__(self, view: View) -> Mapping[str, Bags]:
        if view not in self._known:
            self._known[view] = self._describe(view)
        return self._known[view]

    def __iter__(self) -> Iterator[View]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


# -- methods --------------------------------------------------------------------------------------


def kinds(short: int) -> list[Method]:
    """Kinds of regions, described as `regionhash index` does it; the first is its default."""
    views = (View(short),)
    together = ("boxes", "windows", "pyramid")
    return [
        Method("windows", ("windows",), views),
        Method("pyramid", ("pyramid",), views),
        Method("boxes", ("boxes",), views),
        Method(f"{FEW} best boxes", ("boxes",), views, n_boxes=FEW),
        Method("boxes and windows", ("boxes", "windows"), views),
        Method("all together, max_iou .7", together, views, max_iou=0.7),
    ]


def levers(short: int) -> list[Method]:
    """What is tried for small objects on pictures held out, windows first."""
    picture, crops = View(short), _crops(short)
    windows = Method("windows", views=(picture,))
    boxes = Method(f"{FEW} best boxes", ("boxes",), (picture,), n_boxes=FEW)
    mean = replace(boxes, name="boxes, mean", pool="mean")
    joined = replace(mean, name="crops and map", views=(crops, picture))
    return [
        windows,
        _like(windows, "mean", pool="mean"),
        _like(windows, "mean, 64 dimensions, picture .5", pool="mean", n_dims=64, picture=0.5),
        boxes,
        mean,
        replace(boxes, name="boxes, GeM", pool="gem"),
        _like(mean, "picture .25", picture=0.25),
        _like(mean, "labels .1", labels=0.1),
        replace(mean, name="crops", views=(crops,)),
        joined,
        _like(joined, "less .3 of the picture", minus=0.3),
        _like(joined, "fitted on regions below 20 %", fitted_on=0.2),
        _like(joined, "full whitening", power=1.0),
        _like(joined, "64 dimensions", n_dims=64),
        _like(joined, "32 dimensions", n_dims=32),
        _like(joined, "picture .5", picture=0.5),
        _like(joined, "64 dimensions, picture .5", n_dims=64, picture=0.5),
        _like(joined, "32 dimensions, picture .5", n_dims=32, picture=0.5),
        _like(joined, "labels .1", labels=0.1),
        _like(joined, "64 dimensions, picture .25, labels .1", n_dims=64, picture=0.25, labels=0.1),
        _like(joined, "32 dimensions, picture .5, labels .1", n_dims=32, picture=0.5, labels=0.1),
    ]


def more_levers(short: int) -> list[Method]:
    """Those that need further views."""
    picture, crops, finer = View(short), _crops(short), View(short, stage=-2)
    large, wide = View(640 * short // 384), View(crops.side, 0.5)
    mean = Method("boxes, mean", ("boxes",), (picture,), pool="mean", n_boxes=FEW)
    side = f"input of {large.side}"
    return [
        _like(mean, "stage of stride 16 joined", views=(finer, picture)),
        _like(mean, side, views=(large,)),
        replace(mean, name=f"crops and map, {side} too", views=(crops, picture, large)),
        replace(mean, name="crops, margin .5", views=(wide,)),
        replace(mean, name="crops and map, margin .5", views=(wide, picture)),
    ]


def _like(method: Method, words: str, **changes: Any) -> Method:
    return replace(method, name=f"{method.name}, {words}", **changes)


def _crops(short: int) -> View:
    """A region as a picture of its own: 160 pixels for a short side of 384."""
    return View(160 * short // 384, 0.1)


def named(short: int, names: Sequence[str]) -> list[Method]:
    """Some of the `levers`."""
    return [method for method in levers(short) if method.name in names]


def best_of(task: Task, found: Sequence[Score]) -> list[str]:
    """The methods of most MAP for small objects with a quarter of the codes of the first one.

    The first of both does without the detector's classes, the second takes them.
    """
    rows = task.of_size(*SIZES[0][1:])
    few = [score for score in found if 4 * score.per_picture <= found[0].per_picture]
    ranked = sorted(few, key=lambda score: -float(score.precision[rows].mean()))
    return [
        next(score.method.name for score in ranked if bool(score.method.labels) == labelled)
        for labelled in (False, True)
    ]


# -- facts ----------------------------------------------------------------------------------------


def _facts(
    words: str,
    options: BoxesOptions,
    image_sets: Sequence[ImageSet],
    sides: Sequence[ImageSet],
    regions: Regions,
    task: Task,
    models: Sequence[TrainedModel],
) -> list[str]:
    ids = [regions.ids[row] for row in task.database]
    name = " + ".join(each.name for each in image_sets if each not in sides[1:])
    known = np.mean([regions.asked[row][n] >= 0 for row, n in task.queries])
    right = task.relevance.n_positives.mean()
    return [
        f"Command: `{words}`",
        f"Database: {described(name, ids)}.",
        f"Queries: {len(task.queries)} objects of {sides[-1].name}, with {right:.1f} right "
        f"pictures on average; {known:.0%} have a class from a box of the detector with an IoU of "
        ".5.",
        "Whitening (128 dimensions, power 0.5, if not stated) and hash are fitted on at most "
        "40,000 regions of the database, for each row by itself, without labels; one seed.",
        f"Backbone {options.backbone}, weights `{Path(options.weights).name}`, short side "
        f"{options.short} pixels.",
        *[model.fact for model in models],
        *facts_of_run(),
    ]
