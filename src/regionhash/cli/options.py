"""Options that several commands share."""

from __future__ import annotations

import os
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


def n_workers(given: int | None) -> int:
    """Number of processes that read pictures."""
    return min(8, max(1, (os.cpu_count() or 1) // 2)) if given is None else given
