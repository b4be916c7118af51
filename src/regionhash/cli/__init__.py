"""The command `regionhash`: each command parses, calls the package, and prints.

Modules that load torch are imported only where they are used, so that help appears at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from regionhash.cli.collection import (
    add,
    check,
    engine,
    export,
    import_codes,
    index,
    refresh,
    remove,
)
from regionhash.cli.convert import convert
from regionhash.cli.demo import demo
from regionhash.cli.encode import encode
from regionhash.cli.evaluate import evaluate
from regionhash.cli.fetch import fetch
from regionhash.cli.info import datasets, info, models
from regionhash.cli.reproduce import reproduce
from regionhash.cli.search import search
from regionhash.cli.serve import serve
from regionhash.cli.train import train
from regionhash.extras import missing

BAD_INPUT = 2
INTERRUPTED = 130  # as in shells: 128 + SIGINT

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "convert": convert,
    "fetch": fetch,
    "encode": encode,
    "index": index,
    "add": add,
    "remove": remove,
    "refresh": refresh,
    "check": check,
    "engine": engine,
    "export": export,
    "import": import_codes,
    "serve": serve,
    "search": search,
    "evaluate": evaluate,
    "info": info,
    "models": models,
    "datasets": datasets,
    "reproduce": reproduce,
    "demo": demo,
}
"""The commands, in the order of the help."""

_RESUMED = ("train", "encode", "index", "add", "refresh", "import", "engine", "reproduce")


class _Commands(TyperGroup):
    """The group of commands; errors that a user can fix end in one line, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader has closed the pipe
        except (ValueError, OSError, ModuleNotFoundError) as error:
            line = missing(error) if isinstance(error, ModuleNotFoundError) else _line_of(error)
            if line is None:
                raise
            typer.echo(f"error: {line}", err=True)
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            if ctx.invoked_subcommand in _RESUMED:
                typer.echo("run the same command again to resume", err=True)
            raise typer.Exit(INTERRUPTED) from error


def _line_of(error: ValueError | OSError) -> str:
    """An error as one line; those of the system have the file first, like all others."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


# Plain help, without frames and colours: the same on a screen, in a pipe and in docs/.
app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
for _name, _command in COMMANDS.items():
    app.command(name=_name)(_command)


@app.callback()
def _about() -> None:
    """Find the pictures that contain an object, with a few bytes per region.

    With labelled pictures: `train` a model on them, `encode` a folder with it, and `search` the
    codes by a picture, a box, or several objects. Without labels: `index` a folder, then `search`
    it, or `serve` a page to search it with. An index is a collection: `add`, `remove` and `refresh`
    its pictures.
    """


def main() -> None:
    """The command line."""
    app(prog_name="regionhash")
