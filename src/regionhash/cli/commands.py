"""The command `regionhash`: each command parses, calls the package, and prints.

Modules that load torch are imported where they are used: help and lists come at once.
"""
# ruff: noqa: D301 (\b keeps the lines of a paragraph apart in the help)

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from typer.core import TyperGroup

from regionhash.cli.reproduce import reproduce

if TYPE_CHECKING:
    from regionhash.collection import Query
    from regionhash.collection.adding import AddReport
    from regionhash.models.drh import FitReport
    from regionhash.models.encoding import EncodingReport
    from regionhash.search.run import Answer, QueryPicture
    from regionhash.store import CodeFile
    from regionhash.structures import CategoryHits, Hit, Match
    from regionhash.training import EpochReport

BAD_INPUT = 2
INTERRUPTED = 130  # as shells have it: 128 + SIGINT
DEFAULT_BITS = 64
_RESUMED = ("train", "encode", "index", "add", "refresh", "import", "reproduce")
_DATES = ["%Y-%m-%d"]

_PIPE_WIDTH = 160  # columns of a table that goes to a file or another program


class _Commands(TyperGroup):
    """The group of commands; what a user can set right ends in one line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader has seen enough
        except (ValueError, OSError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            if ctx.invoked_subcommand in _RESUMED:
                typer.echo("the same command goes on where this one stopped", err=True)
            raise typer.Exit(INTERRUPTED) from error


# Plain help, without frames and colours: it reads the same on a screen, in a pipe and in docs/.
app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)


@app.callback()
def _about() -> None:
    """Find the pictures that contain an object, with a few bytes per region.

    With labelled pictures: `train` a model on them, `encode` a folder with it, and `search` the
    codes by a picture, a box, or several objects. Without labels: `index` a folder, and `search`
    it, or `serve` a page to search it with. An index is a collection: `add`, `remove` and `refresh`
    its pictures.
    """


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Where the model runs; auto takes the GPU where there is one."),
]


@app.command()
def train(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="One of those that `regionhash models` lists.")
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Labelled pictures, in a form that `regionhash datasets` lists."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run; the model is left there.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with the tables [model] and [training]."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any argument of the model or of the training; may be repeated.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(help=f"Bits of a picture's code, a multiple of 8.  [default: {DEFAULT_BITS}]"),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="One of those that `regionhash models` lists.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Of the backbone: default (ImageNet, fetched once from the internet), none, or a "
            "file with a torchvision state dict."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak of the learning rate.")] = None,
    short: Annotated[
        int | None, typer.Option(help="Short side of the network's input in pixels.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT|coco",
            help="Start from the weights of another model, as far as they fit, or from "
            "torchvision's detector trained on COCO.",
        ),
    ] = None,
    cached_views: Annotated[
        int | None,
        typer.Option(help="Train the image hash alone, on so many views of each picture."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model on labelled pictures.

    The best epoch on held-out pictures is kept. A run that was killed goes on from its last whole
    epoch when the same command is given again. What is not given by a flag comes from --set, then
    from the file of --config, then from the model's defaults.

    \b
    Example:
      regionhash train region-dh voc:VOCdevkit/VOC2007:trainval -o runs/voc --bits 48
    """
    from regionhash.data import open_dataset
    from regionhash.models.checkpoints import load_checkpoint, read_checkpoint
    from regionhash.training import train as train_model
    from regionhash.training.settings import training_settings

    flags = {
        "n_bits": bits,
        "backbone": backbone,
        "weights": weights,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": lr,
        "short": short,
        "seed": seed,
        "cached_views": cached_views,
        "init": "coco" if init == "coco" else None,
    }
    arguments, settings = training_settings(
        model, file=config, assignments=assignments or (), flags=flags
    )
    image_set = open_dataset(data)
    start = load_checkpoint(Path(init))[0] if init not in (None, "coco") else None
    reports: list[EpochReport] = []
    with _progress("training") as (show, note):

        def on_epoch(report: EpochReport) -> None:
            reports.append(report)
            note(_epoch_line(report, settings.epochs))

        train_model(
            model,
            {"n_bits": DEFAULT_BITS} | arguments,
            image_set,
            output,
            settings,
            start=start,
            on_step=show,
            on_epoch=on_epoch,
        )
    checkpoint = read_checkpoint(output)
    if as_json:
        _print_json(
            {
                "checkpoint": str(output),
                "model": checkpoint.name,
                "model_hash": checkpoint.model_hash,
                "epochs": [report.row() for report in reports],
            }
        )
    else:
        typer.echo(f"{output}: {checkpoint.name}, model {checkpoint.model_hash}")
        typer.echo(f"next: regionhash encode {output} YOUR_PICTURES -o codes.h5")


@app.command()
def encode(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a trained model.")
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Files, folders, patterns such as 'photos/**/*.jpg', @LIST with one path a line; "
            "or one data set in a form that `regionhash datasets` lists, whose labels are stored "
            "as well.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The code file.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if a picture could not be read.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Pictures that the model takes at a time.")] = 8,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that read pictures.  [default: half of the processor's cores, 8 at "
            "most]"
        ),
    ] = None,
    precision: Annotated[
        Literal["32-true", "bf16-mixed"],
        typer.Option(help="Of the network; queries then have the same."),
    ] = "32-true",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Hash pictures into a code file.

    Pictures that the file has already are left out, so an interrupted command is simply given
    again, and new pictures are added in the same way. Files that cannot be read are reported and
    skipped.

    \b
    Example:
      regionhash encode runs/voc photos -o codes.h5
    """
    from regionhash.data.inputs import open_inputs
    from regionhash.models.checkpoints import load_checkpoint
    from regionhash.models.encoding import code_file_writer, encode_images, pick_device

    model, loaded = load_checkpoint(checkpoint)
    model.to(pick_device(device))
    image_set, source = open_inputs(images)
    writer = code_file_writer(
        output, model, loaded, checkpoint_path=checkpoint, precision=precision, source=source
    )
    with writer, _progress("encoding") as (show, note):
        report = encode_images(
            model,
            loaded,
            image_set,
            writer,
            batch_size=batch_size,
            workers=_n_workers(workers),
            precision=precision,
            on_skip=lambda _, reason: note(f"skipped: {reason}"),
            on_progress=show,
        )
        writer.finish()
    if as_json:
        _print_json({"codes": str(output), **_encoding_record(report)})
    else:
        typer.echo(_encoding_line(output, report))
        typer.echo(f"next: regionhash search {output} --query PICTURE")
    if strict and report.skipped:
        raise typer.Exit(1)


@app.command()
def index(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="A folder, or what else `regionhash encode` takes. Labels are not needed.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the collection that is made.")
    ],
    bits: Annotated[
        int | None, typer.Option(help="Bits of every code, a multiple of 8.  [default: 1024]")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="One of those that `regionhash models` lists.  [default: mobilenet_v2_fpn]"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="default|none|FILE", help="Of the backbone, see `train`.  [default: default]"
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            help="Of the windows that are the regions, in [0, 1): 0.4, 0.5, 0.6 and 0.7 give 21, "
            "36, 40 and 60 windows.  [default: 0.6]"
        ),
    ] = None,
    proposals: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Folder of a trained region-dh whose 300 best proposals are the regions instead.",
        ),
    ] = None,
    short: Annotated[
        int | None,
        typer.Option(help="Short side of the network's input in pixels.  [default: 384]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT", help="Take this trained model, of any kind, and fit nothing."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if a picture could not be read.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Pictures that the model takes at a time.")] = 8,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that read pictures.  [default: half of the processor's cores, 8 at "
            "most]"
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make pictures without labels searchable: fit a model on them, and hash them.

    Leaves a collection: one folder to search, to change, to move and to copy. The model (DRH) is
    fitted once, on at most 2,000 of the pictures. Given again, the command goes on where it was
    interrupted, adds pictures that are new, and encodes again those that have changed. Files that
    cannot be read are reported and skipped.

    \b
    Example:
      regionhash index photos -o photos.collection
      regionhash search photos.collection --query photos/cat.jpg --box 40,30,220,200
      regionhash serve photos.collection
    """
    from dataclasses import asdict

    from regionhash.collection.indexing import IndexSettings, build_index

    given = {"n_bits": bits, "backbone": backbone, "weights": weights, "overlap": overlap}
    arguments = {name: value for name, value in given.items() if value is not None}
    settings = IndexSettings(arguments, short, seed, proposals, model)
    report = build_index(
        images,
        output,
        settings,
        stage=_progress,
        device=device,
        batch_size=batch_size,
        workers=_n_workers(workers),
    )
    if as_json:
        record = {
            "index": str(output),
            "model": report.checkpoint.name,
            "model_hash": report.checkpoint.model_hash,
            "fit": None if report.fit is None else asdict(report.fit),
        }
        _print_json(record | _added_record(report.added))
    else:
        if report.fit:
            typer.echo(_fit_line(report.fit))
        typer.echo(_added_line(output, report.added))
        typer.echo(f"next: regionhash search {output} --query PICTURE --box x0,y0,x1,y1")
        typer.echo(f"   or: regionhash serve {output}")
    if strict and report.added.encoding.skipped:
        raise typer.Exit(1)


Folder = Annotated[Path, typer.Argument(metavar="COLLECTION", help="Of `regionhash index`.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with 1 if a picture could not be read.")
]
BatchSize = Annotated[int, typer.Option(help="Pictures that the model takes at a time.")]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that read pictures.  [default: half of the processor's cores, 8 at most]"
    ),
]


@app.command()
def add(
    collection: Folder,
    images: Annotated[list[str], typer.Argument(metavar="IMAGES", help="See `regionhash encode`.")],
    strict: Strict = False,
    batch_size: BatchSize = 8,
    workers: Workers = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Add pictures to a collection.

    A picture is known by the content of its file: one that was moved is not encoded again, one that
    has changed is. An interrupted command is simply given again. Files that cannot be read are
    reported and skipped.

    \b
    Example:
      regionhash add photos.collection holidays
    """
    from regionhash.collection import Collection

    with (
        Collection.open(collection, device=device) as opened,
        _progress("encoding") as (show, note),
    ):
        report = opened.add(
            images,
            batch_size=batch_size,
            workers=_n_workers(workers),
            on_skip=lambda _, reason: note(f"skipped: {reason}"),
            on_progress=show,
        )
    if as_json:
        _print_json({"collection": str(collection), **_added_record(report)})
    else:
        typer.echo(_added_line(collection, report))
    if strict and report.encoding.skipped:
        raise typer.Exit(1)


@app.command()
def remove(
    collection: Folder,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES", help="Names as a search shows them, files, or whole folders."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Remove pictures from a collection; their files stay.

    They are found no more from that moment on. Is one of the names not there, nothing is removed.

    \b
    Example:
      regionhash remove photos.collection holidays/2019 cat.jpg
    """
    from regionhash.collection import Collection

    with Collection.open(collection) as opened:
        removed, left = opened.remove(images), len(opened)
    if as_json:
        _print_json({"collection": str(collection), "removed": removed, "pictures": left})
    else:
        typer.echo(f"{collection}: {removed} removed, {left} left")


@app.command()
def refresh(
    collection: Folder,
    strict: Strict = False,
    batch_size: BatchSize = 8,
    workers: Workers = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make a collection what its folders are now.

    Goes through all that `index` and `add` were given: new pictures are added, changed ones encoded
    again, moved ones found, and those whose file is gone removed. Where a whole folder is gone or
    empty, as of a disk that is not there, its pictures are kept.

    \b
    Example:
      regionhash refresh photos.collection
    """
    from regionhash.collection import Collection

    with (
        Collection.open(collection, device=device) as opened,
        _progress("encoding") as (show, note),
    ):
        reports = opened.refresh(
            batch_size=batch_size,
            workers=_n_workers(workers),
            on_skip=lambda _, reason: note(f"skipped: {reason}"),
            on_progress=show,
            on_lost=note,
        )
    if as_json:
        _print_json({"collection": str(collection), "added": [*map(_added_record, reports)]})
    for report in () if as_json else reports:
        typer.echo(f"{_added_line(collection, report)}, {report.removed} removed")
    if strict and any(report.encoding.skipped for report in reports):
        raise typer.Exit(1)


@app.command()
def check(
    collection: Folder,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set right what can be, and remove what was left over."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare a collection's database, its arrays and the files of its pictures.

    Ends with 1 if the collection itself is damaged. Files that are gone or have changed are listed,
    and `refresh` sets them right. It also encodes pictures again whose row is damaged.

    \b
    Example:
      regionhash check photos.collection
    """
    from dataclasses import asdict

    from regionhash.collection import check_folder

    report = check_folder(collection, repair=repair)
    if as_json:
        _print_json(asdict(report))
    else:
        for line in (*report.repaired, *report.problems):
            typer.echo(line)
        for line, names in (
            ("its file is gone", report.missing),
            ("its file has changed", report.changed),
            ("its file cannot be looked at", report.unreadable),
            ("belongs to no picture; --repair removes it", report.orphans),
        ):
            for name in names:
                typer.echo(f"{name}: {line}")
        typer.echo(
            f"{collection}: {report.n_images} pictures, {len(report.problems)} problems, "
            f"{len(report.missing)} files gone, {len(report.changed)} changed"
        )
    if report.problems:
        raise typer.Exit(1)


@app.command()
def export(
    collection: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="The code file, which is made.")],
    as_json: Json = False,
) -> None:
    """Write a code file (HDF5) of a collection.

    \b
    Example:
      regionhash export photos.collection -o photos.h5
    """
    from regionhash.collection import Collection

    with Collection.open(collection) as opened:
        count = opened.export(output)
    if as_json:
        _print_json({"codes": str(output), "pictures": count})
    else:
        typer.echo(f"{output}: {count} pictures")


@app.command(name="import")
def import_codes(
    collection: Annotated[
        Path,
        typer.Argument(
            metavar="COLLECTION", help="Of `regionhash index`; made where there is none."
        ),
    ],
    codes: Annotated[Path, typer.Argument(metavar="CODES", help="Code file of the same model.")],
    as_json: Json = False,
) -> None:
    """Add the pictures of a code file to a collection, without encoding them.

    A collection that is made takes a copy of the model that the code file names.

    \b
    Example:
      regionhash import photos.collection photos.h5
    """
    from regionhash.collection import Collection, is_collection

    if is_collection(collection):
        with Collection.open(collection) as opened:
            count = opened.import_codes(codes)
    else:
        with Collection.of_code_file(collection, codes) as opened:
            count = len(opened)
    if as_json:
        _print_json({"collection": str(collection), "new": count})
    else:
        typer.echo(f"{collection}: {count} pictures of {codes} are new")


@app.command()
def serve(
    collection: Folder,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Another than this machine's needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="REGIONHASH_TOKEN",
            help="What clients must know to add and remove, and elsewhere than on this machine to "
            "search; without one nothing can be added or removed.",
        ),
    ] = None,
    max_megabytes: Annotated[float, typer.Option(help="Of an upload.")] = 20,
    max_megapixels: Annotated[float, typer.Option(help="Of a picture.")] = 50,
    timeout: Annotated[float, typer.Option(help="Seconds that an answer may take.")] = 30,
    device: Device = "auto",
) -> None:
    """Offer a collection to browsers and programs: a page to search it, and an interface.

    \b
    Examples:
      regionhash serve photos.collection
      regionhash serve photos.collection --host 0.0.0.0 --token "$(openssl rand -hex 16)"
    """
    from regionhash.service import Limits, run_server

    limits = Limits(int(max_megabytes * 1e6), int(max_megapixels * 1e6), timeout)
    run_server(
        collection, host=host, port=port, token=token, limits=limits, device=device, tell=typer.echo
    )


@app.command()
def search(
    codes: Annotated[
        Path,
        typer.Argument(
            metavar="CODES",
            help="Code file of `regionhash encode`, or a collection.",
        ),
    ],
    query: Annotated[
        list[str],
        typer.Option(
            metavar="PICTURE[@x0,y0,x1,y1]",
            help="Picture to search by, with a box in it or without; may be repeated.",
        ),
    ],
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="x0,y0,x1,y1",
            help="An object in the first query picture, in its pixels; may be repeated.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="How many pictures to show.")] = 20,
    offset: Annotated[int, typer.Option(help="How many to leave out before them.")] = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Collections: search pictures with this class alone, known or detected. May be "
            "repeated; then all are wanted.",
        ),
    ] = None,
    min_score: Annotated[
        float, typer.Option(help="Collections: least score of a detection, of --only if given.")
    ] = 0.0,
    folder: Annotated[
        str | None, typer.Option(help="Collections: search pictures below this folder alone.")
    ] = None,
    after: Annotated[
        datetime | None,
        typer.Option(formats=_DATES, help="Collections: taken on this day (UTC) or later."),
    ] = None,
    before: Annotated[
        datetime | None, typer.Option(formats=_DATES, help="Collections: taken before this day.")
    ] = None,
    near: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            help="Collections: show pictures once that look nearly the same, their codes differing "
            "in at most so many bits.",
        ),
    ] = None,
    mode: Annotated[
        Literal["image", "region", "objects", "category"] | None,
        typer.Option(
            help="Compare whole pictures, one object, or several objects that are all wanted; or "
            "answer for each category in the query on its own, by a model that has codes of "
            "categories (iah).  [default: image for one picture, region for one box, objects for "
            "more of either]"
        ),
    ] = None,
    min_prob: Annotated[
        float | None,
        typer.Option(
            help="Of mode category: the least probability of a category, in the query and in the "
            "pictures; what the model found less probable has no code.  [default: 0.2, the "
            "model's]"
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="STEP,...",
            help="Of a search for one object. First exact (all regions of all pictures) or global "
            "(whole pictures). After global: global-expand, then local (regions of the "
            "candidates). After exact or local: local-expand. An expansion searches again with "
            "the best results as queries.  [default: exact, or global,local where exact would "
            "take more than about 100 ms]",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PICTURE[@x0,y0,x1,y1]",
            help="Leave out pictures that show this object: what the box marks, or the best "
            "detection; may be repeated.",
        ),
    ] = None,
    without_distance: Annotated[
        int | None,
        typer.Option(
            help="Bits up to which a region is taken for the object of --without.  [default: an "
            "eighth of the code]"
        ),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            help="Pictures that the first of several steps leaves for the others.  [default: 400]"
        ),
    ] = None,
    expand: Annotated[
        int | None,
        typer.Option(help="Results that an expansion takes as queries.  [default: 6]"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the model that made the codes.  [default: beside the codes, or as "
            "recorded]"
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Write a contact sheet of the answer, a .png or .html file."),
    ] = None,
    images_dir: Annotated[
        Path | None,
        typer.Option(help="Where the pictures lie, if they were moved since; for --sheet."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Class that a right result shows: the sheet frames right ones green and others "
            "red, where the code file has labels. May be repeated; then all are wanted.",
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the pictures that look like a picture, or that contain an object or several.

    Distances are numbers of differing bits; equal ones are ranked in the order of the code file. A
    query picture without a box stands in mode region for the best detection in it, and in mode
    objects for the best detection of each class.

    \b
    Examples:
      regionhash search codes.h5 --query cat.jpg
      regionhash search codes.h5 --query cat.jpg --box 10,20,200,220 --sheet found.html
      regionhash search codes.h5 --query cat.jpg@10,20,200,220 --query dog.jpg
      regionhash search codes.h5 --query horse.jpg --without person.jpg@30,10,90,200
      regionhash search photos.index --query cat.jpg --box 10,20,200,220 --steps exact,local-expand
      regionhash search iah.h5 --query cat_and_dog.jpg --mode category --sheet found.html
      regionhash search photos.collection --query cat.jpg --box 10,20,200,220 --near 4
    """
    from regionhash.collection import Collection, Filter, is_collection
    from regionhash.data.inputs import Pictures
    from regionhash.models.checkpoints import load_checkpoint
    from regionhash.models.encoding import pick_device
    from regionhash.search.run import find, model_folder, write_answer
    from regionhash.search.steps import CANDIDATES, EXPANSION
    from regionhash.store import CodeFile

    wanted_of_all = Filter(tuple(only or ()), min_score, folder, _seconds(after), _seconds(before))
    if not is_collection(codes) and (wanted_of_all != Filter() or near is not None or offset):
        raise ValueError(
            f"{codes}: is a code file; --only, --min-score, --folder, --after, --before, --near "
            "and --offset are for collections"
        )
    collection = Collection.open(codes, device=device) if is_collection(codes) else None
    file = CodeFile.open(codes) if collection is None else collection.code_file()
    wanted = [_class_index(name, file.classes) for name in label or ()]
    if wanted and file.labels is None:
        raise ValueError(f"{codes}: has no labels, so --label cannot tell what is right")
    if sheet is None and (wanted or images_dir):
        raise ValueError("--label and --images-dir are of use only with --sheet")
    queries = _query_pictures(query, box or [])
    chosen = [step.strip() for step in steps.split(",")] if steps is not None else []
    if candidates is not None and len(chosen) < 2:
        raise ValueError("--candidates is of use only with --steps of more than one step")
    if expand is not None and not any(step.endswith("-expand") for step in chosen):
        raise ValueError("--expand is of use only with a step of --steps that expands")
    if min_prob is not None and mode != "category":
        raise ValueError("--min-prob is of use only with --mode category")
    if without_distance is not None and not without:
        raise ValueError("--without-distance is of use only with --without")
    origin = model or model_folder(file)
    if not origin.exists():
        raise ValueError(f"{origin}: the model of these codes is not there; name it with --model")
    network, checkpoint = load_checkpoint(origin)
    network.to(pick_device(device))
    numbers: dict[str, Any] = {
        "steps": chosen,
        "candidates": CANDIDATES if candidates is None else candidates,
        "expand": EXPANSION if expand is None else expand,
        "min_prob": min_prob or 0.0,
        "within": without_distance,
    }
    unwanted = _query_pictures(without or [], [])
    if collection is not None:
        collection.model = network, checkpoint
        results = collection.search(
            queries=[_query(own) for own in queries],
            without=[_query(own) for own in unwanted],
            mode=mode,
            filter=wanted_of_all,
            limit=top,
            offset=offset,
            near=near,
            **numbers,
        )
        answer = collection.answer(results, queries, unwanted)
        file = collection.searched(results)
    else:
        answer = find(
            network,
            checkpoint,
            file,
            queries,
            mode=mode,
            top=top,
            without=unwanted,
            **numbers,
        )
    if sheet:
        find_picture = Pictures(file.recorded("sources"), images_dir).__getitem__
        if collection is not None and images_dir is None:
            find_picture = collection.picture
        n_hits = len(answer.hits) + sum(len(group.hits) for group in answer.groups)
        title = f"{n_hits} nearest of {len(file.table)} pictures, by {answer.mode}"
        write_answer(sheet, answer, file, find_picture, title=title, wanted=wanted)
    if as_json:
        _print_json(_answer_record(answer, file, offset))
    elif answer.mode == "category":
        _print_groups(answer.groups, file, offset)
    elif not answer.hits:
        left_out = without or offset or wanted_of_all != Filter()
        typer.echo(f"no picture of these codes {'is left' if left_out else 'has a region'}")
    else:
        _print_table(_hit_table(answer.hits, file, offset))


@app.command()
def evaluate(
    queries: Annotated[
        Path,
        typer.Argument(metavar="QUERIES", help="Code file, or collection, of labelled queries."),
    ],
    database: Annotated[
        Path,
        typer.Argument(metavar="DATABASE", help="Code file, or collection, of labelled pictures."),
    ],
    k: Annotated[int, typer.Option(help="Cut of the ranking.")] = 1000,
    ties: Annotated[
        Literal["expected", "stable"],
        typer.Option(
            help="Equal distances: the expectation over their random orders, or the order of the "
            "file."
        ),
    ] = "expected",
    denominator: Annotated[
        Literal["retrieved", "total", "min"],
        typer.Option(
            help="What average precision is divided by: the relevant pictures among the top k, all "
            "of them, or the smaller of k and all."
        ),
    ] = "retrieved",
    detection: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Also measure the detections of the queries against the boxes of this data set.",
        ),
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(help="Folder for curves over k: curves.csv and three plots."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how well codes rank a database: MAP, ACG, NDCG, WMAP, precision and recall.

    Both files must come from the same model and have labels, that is, be encoded from a labelled
    data set. A picture is relevant if it shares a label with the query.

    \b
    Example:
      regionhash encode runs/voc voc:VOCdevkit/VOC2007:trainval -o database.h5
      regionhash encode runs/voc voc:VOCdevkit/VOC2007:test -o queries.h5
      regionhash evaluate queries.h5 database.h5 --detection voc:VOCdevkit/VOC2007:test
    """
    from regionhash.collection import open_codes
    from regionhash.data import open_dataset
    from regionhash.evaluation import (
        HammingMatrix,
        SharedLabels,
        evaluate_ranking,
        ranking_curves,
    )
    from regionhash.evaluation.code_files import detections_of_file, labelled_codes, write_curves

    asked, searched = open_codes(queries), open_codes(database)
    codes = labelled_codes(asked, searched)
    metrics = evaluate_ranking(*codes, k=k, ties=ties, denominator=denominator)
    n_queries, n_pictures = len(codes.query_codes), len(codes.database_codes)
    record: dict[str, Any] = {
        "queries": n_queries,
        "database": n_pictures,
        "k": min(k, n_pictures),
        "ties": ties,
        "denominator": denominator,
        "metrics": metrics,
    }
    if detection:
        measured, missing = detections_of_file(asked, open_dataset(detection))
        record["detection"] = {"map": measured["map"], "missing": missing}
    if curves:
        distances = HammingMatrix(codes.query_codes, codes.database_codes)
        similarities = SharedLabels(codes.query_labels, codes.database_labels)
        write_curves(curves, asked.model, ranking_curves(distances, similarities, ties=ties))
    if as_json:
        _print_json(record)
        return
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    if detection:
        table.add_row("detection mAP@0.5", f"{measured['map']:.4f}")
    typer.echo(
        f"{n_queries} queries, {n_pictures} pictures, k = {record['k']}, "
        f"ties {ties}, denominator {denominator}"
    )
    _print_table(table)


@app.command()
def info(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A code file, a collection, or the folder of a trained model."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Say what a collection, a code file or a model is.

    \b
    Example:
      regionhash info codes.h5
    """
    record: dict[str, Any]
    from regionhash.collection import Collection, is_collection
    from regionhash.store import CODES_FILE

    is_file = path.is_file() and path.suffix not in (".json", ".safetensors")
    if is_collection(path):
        with Collection.open(path) as collection:
            record = collection.info()
    elif is_file or (path / CODES_FILE).exists():
        from regionhash.store import CodeFile

        file = CodeFile.open(path)
        codes = file.table.region_codes
        record = {
            "pictures": len(file.table),
            "regions": 0 if codes is None else len(codes),
            "bits": file.n_bits,
            "region_bits": file.n_region_bits,
            "labels": file.labels is not None,
            "classes": list(file.classes),
            "model": file.model,
            "model_hash": file.model_hash,
            **file.meta,
        }
    else:
        from regionhash.models.checkpoints import read_checkpoint

        checkpoint = read_checkpoint(path)
        record = {
            "model": checkpoint.name,
            "model_hash": checkpoint.model_hash,
            "arguments": checkpoint.arguments,
            "short": checkpoint.short,
            "classes": list(checkpoint.classes),
            "provenance": checkpoint.provenance,
        }
    if as_json:
        _print_json(record)
        return
    table = Table("what", "value")
    for name, value in record.items():
        table.add_row(name, value if isinstance(value, str) else json.dumps(value))
    _print_table(table)


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that `regionhash train` or, of drh, `regionhash index` can build.

    The backbones stand below them.

    \b
    Example:
      regionhash models
    """
    from regionhash.models import MODELS
    from regionhash.parts.backbones import BACKBONES

    builders = {name: (build.__doc__ or "").partition("\n")[0] for name, build in MODELS.items()}
    backbones = {name: spec.summary for name, spec in BACKBONES.items()}
    if as_json:
        _print_json({"models": builders, "backbones": backbones})
        return
    for title, lines in (("model", builders), ("backbone", backbones)):
        _print_lines(title, lines)


@app.command()
def datasets(as_json: Json = False) -> None:
    """List the forms in which a command takes a data set.

    \b
    Example:
      regionhash datasets
    """
    from regionhash.data import forms

    if as_json:
        _print_json(forms())
    else:
        _print_lines("form", forms())


app.command()(reproduce)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder for what it makes.")] = Path("demo"),
    train: Annotated[
        bool, typer.Option("--train", help="Train the models anew instead of taking those shipped.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="At the end offer a page to search the scenes with.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of the page; 0 takes a free one.")] = 8000,
) -> None:
    """See it work on built-in pictures: scenes of handwritten digits.

    Encodes 2,000 scenes, measures Region-DH beside whole-image hashing, runs a search of each mode
    and writes its contact sheet, and says what to type for pictures of one's own.

    \b
    Example:
      regionhash demo
    """
    from regionhash.experiments.demo import run_demo

    run_demo(folder, train=train, console=Console())
    if serve:
        from regionhash.experiments.demo import make_collection
        from regionhash.service import run_server

        run_server(make_collection(folder), port=port, tell=typer.echo)


def main() -> None:
    """The command line."""
    app(prog_name="regionhash")


# -- input ----------------------------------------------------------------------------------------


def _query_pictures(queries: list[str], boxes: list[str]) -> list[QueryPicture]:
    """The pictures of --query, the first of them with the boxes of --box as well."""
    from regionhash.data.images import read_image
    from regionhash.search.run import QueryPicture

    pictures: list[QueryPicture] = []
    for given in queries:
        name, own = given, list(boxes) if not pictures else []
        if not Path(given).exists() and "," in given.rpartition("@")[2]:
            name, _, text = given.rpartition("@")
            own.append(text)
        parsed = tuple(_parse_box(text) for text in own)
        pictures.append(QueryPicture(Path(name).name, read_image(name), parsed))
    return pictures


def _query(picture: QueryPicture) -> Query:
    """The same for a collection."""
    from regionhash.collection import Query

    return Query(picture.image, boxes=picture.boxes, name=picture.name)


def _parse_box(text: str) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"box {text!r}: must be four numbers x0,y0,x1,y1") from None
    return x0, y0, x1, y1


def _class_index(name: str, classes: tuple[str, ...]) -> int:
    if name not in classes:
        raise ValueError(f"label {name!r}: no class of the model, which knows {', '.join(classes)}")
    return classes.index(name)


def _n_workers(given: int | None) -> int:
    """Processes that read pictures."""
    return min(8, max(1, (os.cpu_count() or 1) // 2)) if given is None else given


# -- output ---------------------------------------------------------------------------------------


@contextmanager
def _progress(what: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """A bar on stderr, and lines above it: called with (done, total), and with the text.

    Where stderr is no terminal there are only the lines; of several processes only the first talks.
    """
    console = Console(stderr=True, soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(what, total=None)
    with bar:
        yield (
            lambda done, total: bar.update(task, completed=done, total=total),
            lambda text: console.print(text, markup=False, highlight=False),
        )


def _epoch_line(report: EpochReport, n_epochs: int) -> str:
    terms = "  ".join(f"{name} {value:.4g}" for name, value in report.terms.items())
    held_out = "" if report.held_out is None else f"  held-out {report.held_out:.4g}"
    best = "  best" if report.best else ""
    return f"epoch {report.epoch + 1}/{n_epochs}  {terms}{held_out}  {report.seconds:.0f} s{best}"


def _encoding_record(report: EncodingReport) -> dict[str, Any]:
    return {
        "encoded": report.n_encoded,
        "stored_before": report.n_stored_before,
        "skipped": report.skipped,
        "seconds": round(report.seconds, 3),
        "model_seconds": round(report.model_seconds, 3),
    }


def _added_record(report: AddReport) -> dict[str, Any]:
    counts = {name: getattr(report, name) for name in ("moved", "copied", "removed", "kept")}
    return _encoding_record(report.encoding) | counts


def _added_line(collection: Path, report: AddReport) -> str:
    known = f", {report.moved} moved, {report.copied} copied"
    return _encoding_line(collection, report.encoding) + (
        known if report.moved or report.copied else ""
    )


def _seconds(day: datetime | None) -> float | None:
    """A day as the time at which it begins, in seconds since 1970."""
    return None if day is None else day.replace(tzinfo=UTC).timestamp()


def _encoding_line(output: Path, report: EncodingReport) -> str:
    return (
        f"{output}: {report.n_encoded} encoded in {report.seconds:.1f} s, "
        f"{report.n_stored_before} stored before, {len(report.skipped)} skipped"
    )


def _fit_line(fit: FitReport) -> str:
    def change(name: str) -> str:
        return f"{name} {getattr(fit.before, name):.3f} -> {getattr(fit.after, name):.3f}"

    return (
        f"fitted: loss per bit {fit.losses[0]:.3f} -> {fit.losses[-1]:.3f}, "
        f"{change('balance')}, {change('correlation')}"
    )


def _hit_table(hits: list[Hit], file: CodeFile, offset: int = 0) -> Table:
    """One row per hit; of several objects one line each in the columns of the matches."""
    from regionhash.search.run import distance_text

    columns = ["rank", "distance", "picture", "box", "class", "score"]
    # Codes of pictures and of categories in them have no box that matched.
    table = Table(*columns[: 6 if any(hit.matches for hit in hits) else 3])
    for rank, hit in enumerate(hits, 1 + offset):
        cells = [
            str(rank),
            distance_text(hit),
            hit.image_id,
            "\n".join(",".join(f"{edge:.0f}" for edge in match.box) for match in hit.matches),
            "\n".join(_class_name(match, file) or "" for match in hit.matches),
            "\n".join(f"{match.score:.2f}" for match in hit.matches),
        ]
        table.add_row(*cells[: len(table.columns)])
    return table


def _print_groups(groups: Sequence[CategoryHits], file: CodeFile, offset: int) -> None:
    if not groups:
        typer.echo("no category is probable enough in the query")
    for group in groups:
        name = file.classes[group.category]
        typer.echo(f"{name}, probability {group.prob:.2f}, {len(group.hits)} pictures")
        _print_table(_hit_table(list(group.hits), file, offset))


def _class_name(match: Match, file: CodeFile) -> str | None:
    """None where the model knows no classes."""
    return file.classes[match.label] if match.label >= 0 else None


def _answer_record(answer: Answer, file: CodeFile, offset: int = 0) -> dict[str, Any]:
    return {
        "mode": answer.mode,
        "steps": answer.steps,
        "queries": [{"picture": own.name, "boxes": own.boxes} for own in answer.queries],
        "groups": [
            {
                "category": file.classes[group.category],
                "probability": group.prob,
                "hits": [
                    {"rank": rank, "picture": hit.image_id, "distance": hit.distance}
                    for rank, hit in enumerate(group.hits, 1 + offset)
                ],
            }
            for group in answer.groups
        ],
        "without": [{"picture": own.name, "boxes": own.boxes} for own in answer.without],
        "hits": [
            {
                "rank": rank,
                "picture": hit.image_id,
                "distance": hit.distance,
                "matches": [
                    {
                        "box": match.box,
                        "distance": match.distance,
                        "class": _class_name(match, file),
                        "score": match.score,
                    }
                    for match in hit.matches
                ],
            }
            for rank, hit in enumerate(answer.hits, 1 + offset)
        ],
    }


def _print_json(record: object) -> None:
    typer.echo(json.dumps(record, indent=2))


def _print_table(table: Table) -> None:
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(table, markup=False)


def _print_lines(title: str, lines: dict[str, str]) -> None:
    width = max(map(len, (title, *lines)))
    typer.echo(f"{title:{width}}  description")
    for name, line in lines.items():
        typer.echo(f"{name:{width}}  {line}")
