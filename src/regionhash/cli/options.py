"""Options that several commands share."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Where the model runs; auto uses a GPU if there is one."),
]
Runtime = Annotated[
    Literal["auto", "onnx", "openvino", "torch"],
    typer.Option(
        help="What runs the model; auto is onnx if `regionhash convert` has made graphs of it, "
        "and openvino, if installed, for codes of bf16-mixed."
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        metavar="ENGINE",
        help="What searches the codes: `local` is the collection itself; docs/engines.md has the "
        "others, which `regionhash engine sync` fills.",
    ),
]
Precision = Annotated[
    Literal["auto", "32-true", "bf16-mixed"],
    typer.Option(
        help="Precision of the network, for good: queries and later pictures use the same. auto "
        "is that of the codes that are there, or else the fastest, see docs/onnx.md."
    ),
]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Folder = Annotated[
    Path, typer.Argument(metavar="COLLECTION", help="Folder that `regionhash index` made.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with 1 if any picture could not be read.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="default|none|FILE",
        help="Weights of the backbone, see `train`.  [default: default]",
    ),
]
Short = Annotated[
    int | None, typer.Option(help="Short side of the network's input, in pixels.  [default: 384]")
]
BatchSize = Annotated[int, typer.Option(help="Pictures per batch of the model.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes that read pictures.  [default: half of the CPU cores, at most 8]"),
]

# -- searches -------------------------------------------------------------------------------------

Queries = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PICTURE[@x0,y0,x1,y1]",
        help="Picture to search by, optionally with a box in it; may be repeated.",
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="x0,y0,x1,y1",
        help="An object in the first query picture, in pixels; may be repeated.",
    ),
]
Top = Annotated[int, typer.Option(help="Number of results to show.")]
Offset = Annotated[int, typer.Option(help="Number of results to skip.")]
Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLASS",
        help="Only pictures with this class, known or detected (collections). May be repeated; "
        "then all are required.",
    ),
]
MinScore = Annotated[
    float,
    typer.Option(
        help="Only pictures with a detection of at least this score, of --only if given "
        "(collections)."
    ),
]
Below = Annotated[str | None, typer.Option(help="Only pictures below this folder (collections).")]
After = Annotated[
    datetime | None,
    typer.Option(
        formats=["%Y-%m-%d"], help="Only pictures taken on this day (UTC) or later (collections)."
    ),
]
Before = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], help="Only pictures taken before this day (collections)."),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PICTURE[@x0,y0,x1,y1]",
        help="Leave out pictures that show this object: what the box marks, or the best "
        "detection. May be repeated.",
    ),
]
WithoutDistance = Annotated[
    int | None,
    typer.Option(
        help="Largest distance, in bits, at which a region counts as the object of --without.  "
        "[default: an eighth of the code]"
    ),
]
SharedRegions = Annotated[
    bool,
    typer.Option(
        "--shared-regions",
        help="Mode objects: let several objects match the same region of a picture, as in the "
        "paper of DMIH. By default each object needs a region of its own.",
    ),
]
ModelOfCodes = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the model that made the codes.  [default: next to the codes, or as "
        "recorded in them]"
    ),
]


def n_workers(given: int | None) -> int:
    """Number of processes that read pictures."""
    return min(8, max(1, (os.cpu_count() or 1) // 2)) if given is None else given
