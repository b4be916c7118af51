"""Files that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK, _NEW = ".lock", ".new"


@contextmanager
def replacing(path: Path, *, exclusive: bool = False) -> Iterator[Path]:
    """A path beside `path` to write a file to; it takes its place when the block ends well.

    A kill at any moment leaves the file at `path` as it was, or whole and new; what is left of the
    killed writer is removed by the next one. Several writers at once do not touch each other's
    files, and the last one to end wins. Files whose names begin with the given one are removed at
    the end.

    Args:
        path: of the file.
        exclusive: raise FileExistsError rather than replace a file.

    Raises:
        OSError: the disk refuses; the file at `path` is as it was.
    """
    remove_leftovers(path)
    with _locked_name(path) as name:
        temporary = Path(name + _NEW)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        if exclusive:
            _put_where_nothing_is(temporary, path)
        else:
            temporary.replace(path)
        sync_directory(path.parent)


def _put_where_nothing_is(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a disk without links, where two writers cannot be told apart
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)


@contextmanager
def _locked_name(path: Path) -> Iterator[str]:
    """The start of names beside `path` that no other process touches; removes them at the end."""
    while True:
        name = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        lock = Path(f"{name}{_LOCK}")
        with lock.open("xb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not lock.exists():
                continue  # another process took it for a leftover before it was locked
            try:
                yield str(name)
            finally:
                for own in path.parent.glob(f"{glob.escape(name.name)}.*"):
                    own.unlink(missing_ok=True)
            return


def leftovers(path: Path) -> list[Path]:
    """What killed writers of `path` have left beside it, without what is being written."""
    return [left for group in _abandoned(path) for left in group]


def remove_leftovers(path: Path) -> list[Path]:
    """Removes what killed writers of `path` have left beside it; returns what it was."""
    removed = []
    for group in _abandoned(path):
        for left in group:
            left.unlink(missing_ok=True)
        removed += group
    return removed


def _abandoned(path: Path) -> Iterator[list[Path]]:
    """The files of each killed writer. Nobody takes their names before the next is asked for."""
    for lock in path.parent.glob(f".{glob.escape(path.name)}.*{_LOCK}"):
        with suppress(OSError), lock.open("rb") as file:  # gone by now, or held
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield list(path.parent.glob(f"{glob.escape(lock.name.removesuffix(_LOCK))}.*"))


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8. Raises OSError as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Inside, no other process or thread is in this block for the same folder."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def sync_directory(path: Path) -> None:
    """Makes a renaming in `path` outlast a power cut."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
