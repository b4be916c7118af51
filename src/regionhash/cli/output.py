"""Output of commands: progress, tables, JSON, and lines about pictures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from regionhash.collection.adding import AddReport
    from regionhash.models.encoding import EncodingReport

_PIPE_WIDTH = 160  # columns of a table written to a file or a pipe


@contextmanager
def progress(what: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """Progress on stderr: gives a callback for a bar (done, total) and one for lines above it.

    If stderr is not a terminal, only lines are printed; of several processes only the first prints.
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


def print_json(record: object) -> None:
    """Prints a record as JSON."""
    typer.echo(json.dumps(record, indent=2))


def print_table(table: Table) -> None:
    """Prints a table, as wide as the terminal."""
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(table, markup=False)


def print_lines(title: str, lines: dict[str, str]) -> None:
    """Prints names, each with a line of description."""
    width = max(map(len, (title, *lines)))
    typer.echo(f"{title:{width}}  description")
    for name, line in lines.items():
        typer.echo(f"{name:{width}}  {line}")


def encoding_record(report: EncodingReport) -> dict[str, Any]:
    """The result of encoding, for JSON."""
    return {
        "encoded": report.n_encoded,
        "stored_before": report.n_stored_before,
        "skipped": report.skipped,
        "seconds": round(report.seconds, 3),
        "model_seconds": round(report.model_seconds, 3),
    }


def encoding_line(output: Path, report: EncodingReport) -> str:
    """The result of encoding, as a line."""
    return (
        f"{output}: {report.n_encoded} encoded in {report.seconds:.1f} s, "
        f"{report.n_stored_before} stored before, {len(report.skipped)} skipped"
    )


def added_record(report: AddReport) -> dict[str, Any]:
    """The result of adding pictures, for JSON."""
    counts = {name: getattr(report, name) for name in ("moved", "copied", "removed", "kept")}
    return encoding_record(report.encoding) | counts


def added_line(collection: Path, report: AddReport) -> str:
    """The result of adding pictures, as a line."""
    known = f", {report.moved} moved, {report.copied} copied"
    return encoding_line(collection, report.encoding) + (
        known if report.moved or report.copied else ""
    )
