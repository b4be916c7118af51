"""What all experiments do: open both sides, train on kept features, and write page and table."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from regionhash.data import open_dataset
from regionhash.data.image_set import ImageSet, joined
from regionhash.evaluation import error_reduction, paired_bootstrap
from regionhash.files.atomic import replacing, write_text
from regionhash.models import MODELS, HashModel
from regionhash.models.checkpoints import Checkpoint, Kind, build_model, load_checkpoint, provenance
from regionhash.models.encoding import encode_set
from regionhash.reporter import SILENT, Reporter
from regionhash.store import CodeSet
from regionhash.training import Cache, TrainingConfig, train
from regionhash.training.feature_cache import PRECISION

Labels = NDArray[np.uint8]
Values = NDArray[np.floating[Any]]

_FLAGS = ("backbone", "weights", "short", "detector")
"""Options that `regionhash reproduce` takes as flags; it takes the others after --set."""

# -- data -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sides:
    """What is searched and trained on, and the pictures to search with."""

    database: ImageSet
    queries: ImageSet


@contextmanager
def needed(layout: str, root: Path) -> Iterator[None]:
    """Adds what must be in `root` to the message of a ValueError about the data."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}\nthis preset needs, below {root}: {layout}") from error


def open_sides(
    database: Sequence[str],
    queries: str,
    layout: str,
    root: Path,
    draw: Callable[[ImageSet], tuple[ImageSet, ImageSet]] | None = None,
) -> Sides:
    """Both sides of an experiment.

    Args:
        database: specs of its pictures, as `open_dataset` takes them; "{root}" stands for `root`.
        queries: spec of the queries; "" draws them.
        layout: what must be in `root`.
        root: folder of the data.
        draw: splits the pictures into database and queries.

    Raises:
        ValueError: missing data, pictures on both sides, or no label on both.
    """
    with needed(layout, root):
        sets = [open_dataset(spec.format(root=root)) for spec in database]
        pictures = joined(" + ".join(each.name for each in sets), sets) if sets[1:] else sets[0]
        if queries or draw is None:
            sides = Sides(pictures, open_dataset(queries.format(root=root)))
        else:
            sides = Sides(*draw(pictures))
    common = set(sides.database.ids) & set(sides.queries.ids)
    if common:
        raise ValueError(f"{len(common)} pictures are queries and database at once: {min(common)}")
    if not (sides.database.labels().any(0) & sides.queries.labels().any(0)).any():
        raise ValueError(
            f"{sides.database.name} and {sides.queries.name}: no query shares a label with a "
            "picture of the database, so there is nothing to measure"
        )
    return sides


# -- models ---------------------------------------------------------------------------------------


def name_of(kind: type[HashModel]) -> str:
    """The name of a class in MODELS."""
    return next(name for name, known in MODELS.items() if known is kind)


def body(options: Any) -> dict[str, Any]:
    """Arguments of any model that reads the backbone of these options."""
    return {"backbone": options.backbone, "weights": options.weights}


def built(kind: type[Kind], arguments: dict[str, Any]) -> Kind:
    """A model as `build_model` makes it."""
    return cast(Kind, build_model(name_of(kind), arguments))


def trained(
    kind: type[Kind],
    arguments: dict[str, Any],
    pictures: ImageSet,
    folder: Path,
    config: TrainingConfig,
    *,
    start: HashModel | None = None,
    cache: Cache | None = None,
    reporter: Reporter = SILENT,
) -> tuple[Kind, float]:
    """A model trained in `folder`, unless it has been before, and the seconds that it took."""
    reporter.note(f"training in {folder}")
    train(
        name_of(kind),
        arguments,
        pictures,
        folder,
        config,
        start=start,
        cache=cache,
        reporter=reporter,
    )
    model, checkpoint = load_checkpoint(folder, kind)
    return model, training_seconds(checkpoint)


def training_seconds(checkpoint: Checkpoint) -> float:
    """How long the training of a model took."""
    return float(sum(row["seconds"] for row in checkpoint.provenance["epochs"]))


def encoded(
    model: HashModel, checkpoint: Checkpoint, folder: Path, pictures: ImageSet, path: Path
) -> CodeSet:
    """The codes of pictures by a model in `folder`, in the file `path`, made or kept."""
    encode_set(model, checkpoint, pictures, path, checkpoint_path=folder, precision=PRECISION)
    return CodeSet.open(path)


# -- facts ----------------------------------------------------------------------------------------


def hash_ids(ids: Iterable[str]) -> str:
    """A short hash of a list of image ids, by which a report names what it ran on."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def described(name: str, ids: Sequence[str]) -> str:
    """A set of pictures, as a report names it."""
    return f"{name}, {len(ids)} pictures, hash of ids {hash_ids(ids)}"


def command(preset: str, data: Path, options: Any) -> str:
    """The command that runs a preset with these options; it has only the names of files."""
    words = ["regionhash", "reproduce", preset, "--data", _without_folder(data)]
    for field in fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        if isinstance(value, tuple):
            value = [":".join(map(_without_folder, spec.split(":"))) for spec in value]
        elif isinstance(value, str | Path):
            value = _without_folder(value)
        if field.name in _FLAGS:
            words += [f"--{field.name}", str(value)]
        else:
            words += ["--set", f"{field.name}={json.dumps(value, ensure_ascii=False)}"]
    return shlex.join(words)


def _without_folder(path: str | Path) -> str:
    return Path(path).name or str(path)


def facts_of_sides(
    database: ImageSet, queries: ImageSet, query_labels: Labels, database_labels: Labels
) -> list[str]:
    """What was searched with what, and how often chance is right."""
    shared = query_labels.astype(np.int64) @ database_labels.T.astype(np.int64)
    return [
        f"Database and training: {described(database.name, database.ids)}",
        f"Queries: {described(queries.name, queries.ids)}",
        f"Chance: {float((shared > 0).mean()):.3f} of the database shares a label with a query.",
    ]


def facts_of_run() -> list[str]:
    """With what versions a report was made, and on which machine."""
    facts = provenance()
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items())
    return [
        f"Versions: {versions}; Python {facts['python']}; git {facts['git']}.",
        f"Machine: {facts['machine']}.",
    ]


# -- reports --------------------------------------------------------------------------------------


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def bootstrap_cells(a: Values, b: Values) -> tuple[str, str, str]:
    """Mean difference of paired values (Q,), its 95 % interval, and p of the bootstrap."""
    found = paired_bootstrap(a, b)
    interval = f"[{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.mean_difference:+.4f}", interval, f"{found.p_value:.4f}"


def error_cut(a: Values, b: Values) -> str:
    """How much of the error of `b` is gone in `a`, with its 95 % interval."""
    found = error_reduction(a, b)
    return f"{found.ratio:.1%} [{found.low:.1%}, {found.high:.1%}]"


def write_page(folder: Path, title: str, facts: Iterable[str], parts: Iterable[str]) -> Path:
    """Writes report.md into `folder`: a title, a list of facts, and lines; returns the page."""
    lines = [f"# {title}", "", *(f"- {fact}" for fact in facts), "", *parts]
    page = folder / "report.md"
    write_text(page, "\n".join(lines).rstrip("\n") + "\n")
    return page


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a table."""
    with replacing(path) as new, new.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
