"""The command that runs a demonstration on built-in pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from regionhash.cli.output import ConsoleReporter, say


def demo(
    folder: Annotated[Path, typer.Argument(help="Folder for the demonstration's files.")] = Path(
        "demo"
    ),
    train: Annotated[
        bool, typer.Option("--train", help="Train the models instead of using those shipped.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve a page to search the scenes at the end.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0 picks a free one.")
    ] = 8000,
) -> None:
    """Try it on built-in pictures: scenes of handwritten digits.

    Encodes 1,200 scenes, compares Region-DH with whole-image hashing, runs a search in each mode
    with a contact sheet, and shows the commands for your own pictures.

    \b
    Example:
      regionhash demo
    """
    from regionhash.experiments.demo import run_demo

    run_demo(folder, train=train, console=Console(), reporter=ConsoleReporter())
    if serve:
        from regionhash.experiments.demo import make_collection
        from regionhash.service import run_server

        run_server(make_collection(folder), port=port, note=say)
