"""Output of commands: progress, tables, JSON, and lines about pictures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
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

from regionhash.files.text import printable
from regionhash.reporter import Reporter

if TYPE_CHECKING:
    from regionhash.collection.adding import AddReport
    from regionhash.models.encoding import EncodingReport

_PIPE_WIDTH = 160  # columns of a table written to a file or a pipe


def is_first_process() -> bool:
    """Whether this is the process of several that prints; torchrun numbers them."""
    return os.environ.get("RANK", "0") == "0"


class ConsoleReporter(Reporter):
    """Shows a bar on stderr, and lines above it.

    If stderr is not a terminal, only lines are printed; of several processes only the first prints.
    A stage inside a stage keeps the outer one's bar.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, soft_wrap=True, quiet=not is_first_process())
        self._bar: Progress | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Shows a bar with this name."""
        if self._bar is not None:
            yield
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._bar.add_task(name, total=None)
        try:
            with self._bar:
                yield
        finally:
            self._bar = None

    def progress(self, done: int, total: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def note(self, line: str) -> None:
        """Prints the line."""
        self._console.print(printable(line), markup=False, highlight=False)


def say(line: str, *, err: bool = False) -> None:
    """Prints a line, on stderr if it is none of the results."""
    typer.echo(printable(line), err=err)


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
    say(f"{title:{width}}  description")
    for name, line in lines.items():
        say(f"{name:{width}}  {line}")


def encoding_record(report: EncodingReport) -> dict[str, Any]:
    """The result of encoding, for JSON."""
    return {
        "encoded": report.n_encoded,
        "stored_before": report.n_stored_before,
        "skipped": report.skipped,
        "noticed": report.noticed,
        "seconds": round(report.seconds, 3),
        "model_seconds": round(report.model_seconds, 3),
    }


def encoding_line(output: Path | str, report: EncodingReport, *more: str) -> str:
    """The result of encoding, as a line; `more` counts stand before what was noticed."""
    from regionhash.data.notices import summary_of

    counts = (
        f"{report.n_encoded} encoded in {report.seconds:.1f} s",
        f"{report.n_stored_before} stored before",
        f"{len(report.skipped)} skipped",
        *more,
    )
    noticed = summary_of(report.noticed)
    return f"{output}: {', '.join(counts)}" + (f"; noticed: {noticed}" if noticed else "")


def added_record(report: AddReport) -> dict[str, Any]:
    """The result of adding pictures, for JSON."""
    counts = {
        name: getattr(report, name) for name in ("moved", "copied", "removed", "kept", "renewed")
    }
    return encoding_record(report.encoding) | counts


def added_line(collection: Path, report: AddReport, *more: str) -> str:
    """The result of adding pictures, as a line; `more` counts stand before what was noticed."""
    if report.moved or report.copied:
        more = (f"{report.moved} moved", f"{report.copied} copied", *more)
    if report.renewed:
        more = (f"{report.renewed} of the encoded have newer boxes", *more)
    return encoding_line(collection, report.encoding, *more)
