"""What must be in the collection after processes that ran at once were killed: the oracle.

Every process notes in a log of its own what it is about to do and what was acknowledged. Each
operation is taken to happen at one moment, for each picture, between its begin and its end; then
the picture is what its file is at that moment (add, refresh), or not there (remove). An operation
that was killed or refused may also not happen at all. So if T is the latest begin of an
acknowledged operation on a picture, every operation that ended after T may have been the last.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from world import BROKEN, GONE

ABSENT = GONE  # of a picture in the collection
CHANGING = frozenset(("add", "refresh", "remove", "import", "http add", "http delete"))
"""Operations that change what the collection holds; all others are only noted."""


@dataclass
class Operation:
    """Something done to the collection. `scope`: a file, a folder, or a text such as "upload:7"."""

    kind: str
    scope: str
    begin: int
    end: float = math.inf
    done: bool = False

    def covers(self, path: str) -> bool:
        if self.kind not in CHANGING:
            return False
        if self.kind == "refresh":
            return path.startswith("/")
        return path == self.scope or path.startswith(self.scope.rstrip("/") + "/")


@dataclass
class Content:
    """What a file was, from when at the earliest until when at the latest."""

    number: int
    begin: float = -math.inf
    end: float = math.inf


class Log:
    """Notes of one process and of those that take its place when it is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def note(self, *record) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")  # one write: whole, or not there


def read_log(path: Path) -> list[list]:
    """The records; the last line may be torn."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def operations_of(records: list[list]) -> list[Operation]:
    """All that were begun.

    What a killed process had begun ends when the next one starts; but a request to the service goes
    on without the one who asked.
    """
    found, current = [], None
    for what, moment, *rest in records:
        if what == "begin":
            current = Operation(rest[0], rest[1], moment)
            found.append(current)
        elif current is not None and (what == "end" or what == "start"):
            outcome = rest[0] if what == "end" else "killed"
            is_request = current.kind in ("http add", "http delete")
            current.done = outcome == "ok"
            if outcome not in ("cut", "killed") or not is_request:
                current.end = moment
            current = None
    return found


def owner(path: str, records: dict[str, list]) -> list[list]:
    """The notes of the process that changes a file."""
    changes = ("file", "is")
    for own in records.values():
        if any(note[0] in changes and note[2] == path for note in own):
            return own
    return []


def contents_of(path: str, base: int, records: list[list]) -> list[Content]:
    """What a file was in the course of a round, from the notes of its owner."""
    known, replaced = [Content(base)], []
    for what, moment, *rest in records:
        if what == "file" and rest[0] == path:
            replaced = [own for own in known if own.end == math.inf]
            known.append(Content(rest[1], moment))
        elif what == "is" and rest[0] == path:  # seen by one who took the place of a killed one
            for own in known:
                own.end = min(own.end, moment)
            known.append(Content(rest[1], moment))
            replaced = []
        elif what == "done":
            for own in replaced:
                own.end = moment
            replaced = []
    return known


def allowed(path: str, before: int, contents: list[Content], operations: list[Operation]) -> set:
    """Numbers of the pictures that may be there, and ABSENT if it may not be there.

    Args:
        path: of the file, or the name of a picture without one; `contents` is then one number.
        before: what was there before all operations.
        contents: of the file in time.
        operations: of all processes, also those that do not concern it.
    """
    latest = -math.inf
    for own in operations:
        if own.done and own.covers(path) and _is_definite(own, contents):
            latest = max(latest, own.begin)
    found = {before} if latest == -math.inf else set()
    for own in operations:
        if own.end >= latest:
            found |= _results(own, path, max(own.begin, latest), contents)
    return found


def _during(begin: float, end: float, contents: list[Content]) -> set[int]:
    return {own.number for own in contents if own.begin <= end and own.end >= begin}


def _is_definite(own: Operation, contents: list[Content]) -> bool:
    """Whether it must have done something: an add passes over what is gone or no picture."""
    if own.kind in ("remove", "http delete"):
        return True
    seen = _during(own.begin, own.end, contents)
    return BROKEN not in seen and (own.kind == "refresh" or GONE not in seen)


def _results(own: Operation, path: str, begin: float, contents: list[Content]) -> set[int]:
    if own.kind in ("remove", "http delete"):
        return {ABSENT} if own.covers(path) else set()
    seen = _during(begin, own.end, contents) - {BROKEN}
    if own.covers(path):
        return seen
    # An add elsewhere takes over the codes of a file that is gone: it has been moved.
    return seen & {GONE} if own.kind == "add" else set()


def story(path: str, contents: list[Content], operations: list[Operation], until=math.inf) -> list:
    """Lines that tell what happened to a picture before a moment."""
    own = [op for op in operations if op.covers(path) and op.begin <= until]
    lines = [(c.begin, f"file is {c.number} until {c.end}") for c in contents if c.begin <= until]
    for op in own:
        word = "done" if op.done else "interrupted"
        lines.append((op.begin, f"{op.kind} {op.scope!r} until {op.end}, {word}"))
    return [f"    {moment}: {line}" for moment, line in sorted(lines)[-12:]]
