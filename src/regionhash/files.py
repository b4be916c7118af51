"""Files that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_SUFFIX = ".new"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new empty file beside `path`, which takes its place when the block ends without an error.

    It is written to by its name. A kill at any moment leaves the file at `path` as it was, or whole
    and new; what is left of the killed writer is removed by the next one. Several writers at once
    do not touch each other's files, and the last one to end wins.

    Raises:
        OSError: the disk refuses; the file at `path` is as it was.
    """
    remove_leftovers(path)
    with _held(path) as held:
        temporary = Path(held.name)
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
            sync_directory(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _held(path: Path) -> BinaryIO:
    """A new file beside `path`, locked: `leftovers` of another process leaves it alone."""
    while True:
        held = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_SUFFIX}").open("xb")
        fcntl.flock(held, fcntl.LOCK_EX)
        if Path(held.name).exists():  # else another process was quicker than the lock
            return held
        held.close()


def leftovers(path: Path) -> list[Path]:
    """What killed writers of `path` have left beside it; files that are being written are not."""
    found = []
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{_SUFFIX}"):
        with suppress(OSError), left.open("rb") as file:  # gone by now, or being written
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            found.append(left)
    return found


def remove_leftovers(path: Path) -> None:
    """Removes them."""
    for left in leftovers(path):
        left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8. Raises OSError as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_directory(path: Path) -> None:
    """Makes a renaming in `path` outlast a power cut."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
