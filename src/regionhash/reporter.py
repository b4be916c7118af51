"""How a long run says what it is doing: one protocol for training, fitting and encoding."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class EpochReport:
    """Result of one epoch: the mean of each term, and the loss on held-out pictures if any."""

    epoch: int
    terms: dict[str, float]
    held_out: float | None
    best: bool
    seconds: float

    def row(self) -> dict[str, float | int | bool | None]:
        """The epoch as one line of the log."""
        values = asdict(self)
        return {"epoch": values.pop("epoch"), **values.pop("terms"), **values}

    def line(self, n_epochs: int) -> str:
        """The epoch as a line for people; `n_epochs` is how many there will be."""
        terms = "  ".join(f"{name} {value:.4g}" for name, value in self.terms.items())
        held_out = "" if self.held_out is None else f"  held-out {self.held_out:.4g}"
        best = "  best" if self.best else ""
        number = f"epoch {self.epoch + 1}/{n_epochs}"
        return f"{number}  {terms}{held_out}  {self.seconds:.0f} s{best}"


class Reporter:
    """Is told what a long run is doing. This one shows nothing; override what should be shown.

    All methods are called in the process and thread that started the run.
    """

    def stage(self, name: str) -> AbstractContextManager[object]:
        """A part of the run, such as "encoding", lasts as long as the context."""
        return nullcontext()

    def progress(self, done: int, total: int) -> None:
        """So many items of the current stage are done."""

    def note(self, line: str) -> None:
        """Something that people should know."""

    def skipped(self, image_id: str, reason: str) -> None:
        """A picture cannot be read; the reason names its file."""
        self.note(f"skipped: {reason}")

    def epoch(self, report: EpochReport, n_epochs: int) -> None:
        """An epoch of training is done."""
        self.note(report.line(n_epochs))


SILENT = Reporter()
"""Shows nothing."""
