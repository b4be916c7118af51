"""The demonstration: four methods side by side on built-in scenes, and a search of each mode.

The models are trained on scenes of handwritten digits (`regionhash.data.digits`). The database
holds other scenes of the same handwriting, much as the paper searches the pictures that it trained
on. The queries are of handwriting that no model has seen.
"""

from __future__ import annotations

import shlex
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from rich.console import Console
from rich.table import Column, Table

from regionhash.collection import Collection
from regionhash.data import open_dataset
from regionhash.data.image_set import Image, ImageSet
from regionhash.data.inputs import Source, open_inputs
from regionhash.evaluation import SharedLabels, evaluate_ranking, per_query
from regionhash.evaluation.code_files import LabelledCodes, labelled_codes
from regionhash.files.atomic import replacing
from regionhash.models.encoding import encode_set
from regionhash.models.runtime import load_runtime
from regionhash.reporter import SILENT, Reporter
from regionhash.search.answer import write_answer
from regionhash.search.request import Mode, Query, Search
from regionhash.search.run import run
from regionhash.sessions import n_threads
from regionhash.store import CodeSet
from regionhash.structures import Box
from regionhash.training.config import TrainingConfig

SHIPPED = Path(__file__).parents[1] / "demo_model"
"""Checkpoints of all `METHODS`, made by scripts/train_demo.py."""

TRAINING_SCENES = "digits:train:3000:0"
DATABASE_SCENES = "digits:train:{n}:1"
QUERY_SCENES = "digits:test:{n}:2"

K = 1000
"""The cut of the rankings."""

SHOWN = 10
"""Results on a contact sheet."""

MEASURES = ("map", "acg")

Measures = dict[str, float]
"""Values of a ranking, by the names of `MEASURES`."""


@dataclass(frozen=True)
class Method:
    """A row of the table, and how its model is trained.

    Attributes:
        title: what the table calls it.
        arguments: of the model's builder.
        training: see `TrainingConfig`.
        start: the method whose weights it starts from, as far as they fit.
    """

    title: str
    arguments: dict[str, Any]
    training: TrainingConfig
    start: str | None = None


_ARGUMENTS: dict[str, Any] = {
    "n_bits": 48,
    "backbone": "tiny_fpn",
    "weights": "none",
    "dropout": 0.1,
}
_TRAINING = TrainingConfig(
    epochs=6,
    batch_size=4,
    optimizer="adamw",
    learning_rate=1e-3,
    backbone_rate=1.0,  # nothing in it was trained before
    ramp_start=0.4,
    ramp_end=0.7,
    short=160,
    flip=False,  # a mirrored digit is none
    held_out=0.05,
    precision="bf16-mixed",
)

METHODS = {
    "region-dh": Method(
        "Region-DH",
        _ARGUMENTS
        | {
            "n_hidden": 128,
            "fpn_channels": 48,
            "n_proposals": 24,
            "semantic": False,
            "context": False,
            "gamma_h2": 1.0,  # the paper's 10 had a lower ACG on scenes for tuning
        },
        _TRAINING,
    ),
    "ssdh": Method("SSDH", _ARGUMENTS, _TRAINING, start="region-dh"),
    "dlbhc": Method("DLBHC", _ARGUMENTS, _TRAINING, start="region-dh"),
    "control": Method(
        "control",
        _ARGUMENTS | {"n_hidden": 128},
        replace(_TRAINING, epochs=40, batch_size=64, cached_views=4),
        start="region-dh",
    ),
}
"""By the model's name in `MODELS`; a method follows the one that it starts from.

The digits have no pretrained backbone, and from nothing SSDH, tried on 900 scenes for 14 epochs,
had not learned anything. So the methods without boxes take over Region-DH's trained backbone.
"""


def train_models(folder: Path, *, reporter: Reporter) -> None:
    """Trains the models of all methods into subfolders of `folder`.

    A training that was interrupted resumes after its last whole epoch.

    Raises:
        ValueError: `folder` holds trainings with other settings.
    """
    from regionhash.models.checkpoints import load_checkpoint
    from regionhash.training import train as train_model

    scenes = open_dataset(TRAINING_SCENES)
    for name, method in METHODS.items():
        start = load_checkpoint(folder / method.start)[0] if method.start else None
        reporter.note(f"training {method.title}")
        with reporter.stage(f"training {method.title}"):
            train_model(
                name,
                method.arguments,
                scenes,
                folder / name,
                method.training,
                start=start,
                reporter=reporter,
            )


def run_demo(
    folder: Path,
    *,
    train: bool = False,
    n_database: int = 1200,
    n_queries: int = 200,
    console: Console,
    reporter: Reporter = SILENT,
) -> dict[str, Measures]:
    """Compares the methods, searches in each mode, and says what to type next.

    Leaves in `folder` the code files, a query picture, and a contact sheet of each search.

    Args:
        folder: made if it is missing; files of an earlier demonstration are replaced.
        train: trains the models in `folder` instead of taking those of the package.
        n_database: scenes to search.
        n_queries: scenes to measure the methods with.
        console: where all this is printed, except the progress.
        reporter: is told of each training and of the encoding of each set.

    Returns:
        MAP@1000 and ACG@1000 of each method, tie-aware, by its name in `MODELS`.

    Raises:
        ValueError: a number of scenes is not positive.
        OSError: `folder` cannot be written.
    """
    described = {
        "database": open_inputs([DATABASE_SCENES.format(n=n_database)]),
        "queries": open_inputs([QUERY_SCENES.format(n=n_queries)]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    models = folder / "models" if train else SHIPPED
    if train:
        train_models(models, reporter=reporter)
    console.print(
        f"Drawing {n_database} scenes to search and {n_queries} to search by ...", highlight=False
    )
    scenes = {part: _drawn(*opened) for part, opened in described.items()}
    results: dict[str, Measures] = {}
    for name, method in METHODS.items():
        files = {}
        for part, drawn in scenes.items():
            with reporter.stage(f"{method.title}: {part}"):
                files[part] = _encode(models / name, drawn, folder / f"{name}-{part}.h5", reporter)
        codes = labelled_codes(files["queries"], files["database"])
        measures = evaluate_ranking(*codes, k=K)
        results[name] = {measure: measures[measure] for measure in MEASURES}
    console.print(_table(results, codes))
    console.print(
        "Tie-aware. The others start from the backbone that Region-DH has trained with boxes; SSDH "
        "and DLBHC train it further, the control does not.\n",
        highlight=False,
    )
    example = _choose(scenes["queries"][0])
    query, database = folder / "query.png", folder / "region-dh-database.h5"
    with replacing(query) as new:
        PILImage.fromarray(example.image).save(new, "PNG")
    shown = scenes["database"][0]
    pictures = dict(zip(shown.ids, shown.images, strict=True))
    _write_sheets(models / "region-dh", CodeSet.open(database), pictures, example, console)
    _print_next_steps(query, database, example, console)
    return results


def make_collection(folder: Path) -> Path:
    """A collection of the scenes that `run_demo` has left in `folder`; replaces an earlier one."""
    path = folder / "scenes.collection"
    shutil.rmtree(path, ignore_errors=True)
    Collection.of_code_file(path, folder / "region-dh-database.h5").close()
    return path


def _drawn(scenes: ImageSet, source: Source) -> tuple[ImageSet, Source]:
    """The scenes, drawn once for all methods by all cores, and what code files call them."""
    with ProcessPoolExecutor(n_threads(), mp_context=get_context("spawn")) as pool:
        images = pool.map(scenes.images.__getitem__, range(len(scenes)), chunksize=50)
        return replace(scenes, images=list(images)), source


def _encode(
    checkpoint_folder: Path,
    scenes: tuple[ImageSet, Source],
    path: Path,
    reporter: Reporter,
) -> CodeSet:
    """The code file `path` of `scenes`, in place of what an earlier demonstration left there."""
    for left in (path, path.with_name(f"{path.name}.part")):
        left.unlink(missing_ok=True)
    model, checkpoint = load_runtime(checkpoint_folder)
    image_set, source = scenes
    encode_set(
        model,
        checkpoint,
        image_set,
        path,
        checkpoint_path=checkpoint_folder,
        source=source,
        workers=0,
        reporter=reporter,
    )
    return CodeSet.open(path)


def _table(results: dict[str, Measures], codes: LabelledCodes) -> Table:
    """The methods between the random order and the best one."""
    n_queries, n_database = len(codes.query_codes), len(codes.database_codes)
    k = min(K, n_database)
    table = Table(
        "ranked by",
        *(Column(f"{measure.upper()}@{k}", justify="right") for measure in MEASURES),
        title=f"{n_queries} queries, {n_database} scenes, {8 * codes.query_codes.shape[1]} bits",
    )
    similarities = SharedLabels(codes.query_labels, codes.database_labels)[:]  # (Q, N)
    rows = {METHODS[name].title: measures for name, measures in results.items()}
    for title, distances in (
        ("nothing (random order)", np.zeros_like(similarities)),
        ("the labels (best order)", similarities.max() - similarities),
    ):
        values = per_query(distances, similarities, k=k)
        rows[title] = {measure: float(values[measure].mean()) for measure in MEASURES}
    for title, measures in rows.items():
        table.add_row(title, *(f"{measures[measure]:.3f}" for measure in MEASURES))
    return table


@dataclass(frozen=True, eq=False)
class _Example:
    """A scene to search by, and one digit of each class in it: its box and its class."""

    image: Image
    boxes: tuple[Box, ...]
    labels: tuple[int, ...]


def _choose(scenes: ImageSet) -> _Example:
    """The first scene with three different digits, or as close to three as there is."""
    firsts = [np.unique(target.labels, return_index=True)[1] for target in scenes.targets]
    row = min(range(len(scenes)), key=lambda n: abs(len(firsts[n]) - 3))
    target = scenes.targets[row]
    boxes = target.boxes[firsts[row]].tolist()
    return _Example(
        scenes.images[row],
        tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes),
        tuple(target.labels[firsts[row]].tolist()),
    )


def _write_sheets(
    checkpoint_folder: Path,
    file: CodeSet,
    pictures: dict[str, Image],
    example: _Example,
    console: Console,
) -> None:
    """Searches `file` by the whole example, by one digit of it, and by two."""
    model, checkpoint = load_runtime(checkpoint_folder)
    searches: dict[Mode, int] = {"image": 0, "region": 1, "objects": 2}  # boxes of the query
    for mode, n_boxes in searches.items():
        query = Query(example.image, boxes=example.boxes[:n_boxes], name="query")
        answer = run(model, checkpoint, file, Search([query], mode=mode, limit=SHOWN))
        wanted = example.labels[: n_boxes or None]
        digits = " and ".join(file.classes[label] for label in wanted)
        title = f"{SHOWN} nearest of {len(file.table)} scenes, by {mode}; right: with {digits}"
        path = file.path.with_name(f"{mode}.png")
        write_answer(path, answer, pictures.__getitem__, title=title, wanted=wanted)
        console.print(f"{path}: {title}", soft_wrap=True, highlight=False)


def _print_next_steps(query: Path, database: Path, example: _Example, console: Console) -> None:
    """Commands that search the demonstration's scenes, and one's own pictures."""
    box = ",".join(f"{edge:.0f}" for edge in example.boxes[0])
    codes, picture, sheet = (
        shlex.quote(str(path)) for path in (database, query, query.with_name("hits.html"))
    )
    console.print(
        f"""
Search these scenes yourself:
  regionhash search {codes} --query {picture} --box {box} --sheet {sheet}
  regionhash demo --serve

Your own pictures, labelled with boxes (regionhash datasets lists the layouts):
  regionhash train region-dh voc:VOCdevkit/VOC2012:train -o runs/mine --backbone mobilenet_v2_fpn
  regionhash encode runs/mine photos -o photos.h5
  regionhash search photos.h5 --query cat.jpg --box 40,30,220,200 --sheet hits.html""",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
