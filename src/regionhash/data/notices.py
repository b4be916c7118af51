"""What a reader of pictures or labels came across that people should know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from regionhash.reporter import Reporter

_EXAMPLES = 3  # of each kind; a set of a million pictures may have a million of them


class Notices:
    """Lines about single files, counted by kind. A few of each kind are kept as examples."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}
        self._told: dict[str, int] = {}

    def add(self, kind: str, line: str) -> None:
        """Adds a line.

        Args:
            kind: what is counted, in words that a number can follow: "boxes without area, left
                out".
            line: names the file, and the line or field if known, and says what was done.
        """
        self.count(kind)
        examples = self._examples[kind]
        if len(examples) < _EXAMPLES:
            examples.append(line)

    def count(self, kind: str, n: int = 1) -> None:
        """Counts something that needs no line; it is told as the kind and its number."""
        self._counts[kind] = self._counts.get(kind, 0) + n
        self._examples.setdefault(kind, [])

    def move_to(self, other: Notices) -> None:
        """Adds all lines to other notices and forgets them here."""
        self._copy_to(other)
        self._counts, self._examples, self._told = {}, {}, {}

    def _copy_to(self, other: Notices) -> None:
        for kind, count in self._counts.items():
            other.count(kind, count)
            examples = other._examples[kind]
            examples += self._examples[kind][: _EXAMPLES - len(examples)]

    @property
    def counts(self) -> dict[str, int]:
        """The number of lines of each kind."""
        return dict(self._counts)

    def summary(self) -> str:
        """All counts in one line; empty if there are none."""
        return summary_of(self._counts)

    def tell(self, reporter: Reporter) -> None:
        """Tells what was not told before: some lines of each kind, and how many more there are."""
        for kind, count in self._counts.items():
            told = self._told.get(kind, 0)
            if told == count:
                continue
            examples = self._examples[kind][told:]
            for line in examples:
                reporter.note(line)
            more = count - told - len(examples)
            if more:
                reporter.note(f"... and {more:,} more: {kind}" if examples else f"{kind}: {more:,}")
            self._told[kind] = count


def merged(several: Iterable[Notices]) -> Notices:
    """The notices of several sets."""
    result = Notices()
    for notices in several:
        notices._copy_to(result)
    return result


def summary_of(counts: Mapping[str, int]) -> str:
    """Counts by kind in one line; empty if there are none."""
    return "; ".join(f"{kind}: {count}" for kind, count in counts.items())
