"""Files that appear whole or not at all: written under another name, then renamed."""

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
    """A temporary path next to `path`; the file written to it replaces `path` on success.

    If the process is killed, `path` holds either the old file or the whole new one, and the next
    writer removes what the killed one left. Concurrent writers do not touch each other's files;
    the last to finish wins. Files whose names start with the temporary one are removed at the end.

    Args:
        path: the file to write.
        exclusive: raise FileExistsError rather than replace a file.

    Raises:
        OSError: the disk refuses; the file at `path` is unchanged.
    """
    check_folder(path)
    remove_leftovers(path)
    with _named(path), _locked_name(path) as name:
        temporary = Path(name + _NEW)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        if exclusive:
            _put_if_absent(temporary, path)
        else:
            temporary.replace(path)
        sync_directory(path.parent)


def check_folder(path: Path) -> None:
    """Raises FileNotFoundError unless the folder of a file to be written is there."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "its folder does not exist", str(path))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors about temporary files name the file that was to be written."""
    try:
        yield
    except OSError as error:
        if Path(str(error.filename or "")).name.startswith(f".{path.name}."):
            error.filename = str(path)
        raise


def _put_if_absent(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # the disk has no hard links, so two writers may race
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)


@contextmanager
def _locked_name(path: Path) -> Iterator[str]:
    """A prefix of names next to `path` that no other process uses; removes them at the end."""
    while True:
        name = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        lock = Path(f"{name}{_LOCK}")
        with lock.open("xb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not lock.exists():
                continue  # before it was locked, another process removed it as a leftover
            try:
                yield str(name)
            finally:
                for file in path.parent.glob(f"{glob.escape(name.name)}.*"):
                    file.unlink(missing_ok=True)
            return


def leftovers(path: Path) -> list[Path]:
    """The files next to `path` left by killed writers, without those being written now."""
    return [left for group in _abandoned(path) for left in group]


def remove_leftovers(path: Path) -> list[Path]:
    """Removes and returns the files next to `path` left by killed writers."""
    removed = []
    for group in _abandoned(path):
        for left in group:
            left.unlink(missing_ok=True)
        removed += group
    return removed


def _abandoned(path: Path) -> Iterator[list[Path]]:
    """The files of each killed writer, locked until the next group is asked for."""
    for lock in path.parent.glob(f".{glob.escape(path.name)}.*{_LOCK}"):
        with suppress(OSError), lock.open("rb") as file:  # gone by now, or held
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield list(path.parent.glob(f"{glob.escape(lock.name.removesuffix(_LOCK))}.*"))


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8. Raises OSError as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Excludes other processes and threads from this block for the same folder."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def sync_directory(path: Path) -> None:
    """Makes renames in `path` survive a power cut."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
