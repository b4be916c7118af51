"""Files supplied by users: read, or refused in one line that names the file and the reason."""

from __future__ import annotations

import errno
import os
import re
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_LONGEST = 1000  # characters of a message: a value in a file may have any length

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60

_UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""All control characters but line feed and tab; marks of direction, and what is no character."""

NOT_REGULAR = "not a regular file"


def open_regular(path: str | Path) -> BinaryIO:
    """The regular file at `path`, or that its links lead to, opened to read bytes.

    It never waits for a pipe, a device or a socket, which may never respond.

    Raises:
        OSError: the file is missing, not regular, or not readable.
        ValueError: the path contains a NUL.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, what: str, *, most: int | None = None) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        what: the file's role, for messages: "the settings".
        most: largest size in bytes; None for no limit.

    Raises:
        ValueError: the file cannot be read or is too large.
    """
    with refusing(f"{path}: cannot read {what}"), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise ValueError(f"its {size:,} bytes are more than the limit of {most:,}")
        return file.read()


def read_text(path: Path, what: str, *, most: int | None = None) -> str:
    """The content of a file in UTF-8, without a byte order mark; see `read_bytes`."""
    content = read_bytes(path, what, most=most)
    with refusing(f"{path}: cannot read {what}"):
        return content.decode("utf-8-sig")


@contextmanager
def refusing(
    start: str, error: type[ValueError] = ValueError, *also: type[Exception]
) -> Iterator[None]:
    """Turns a failure inside the block into one line: `start`, a colon and the reason.

    Args:
        start: the file and what failed: "a.json: broken JSON".
        error: the class to raise.
        also: what a parser raises besides OSError, ValueError, MemoryError and RecursionError.
    """
    caught: tuple[type[Exception], ...] = (OSError, ValueError, MemoryError, *also)
    try:
        yield
    except RecursionError:
        raise error(f"{one_line(start)}: nested too deeply") from None
    except caught as failure:
        raise error(f"{one_line(start)}: {reason_of(failure)}") from failure


def reason_of(error: BaseException) -> str:
    """The reason that an exception gives, in one line, without a file name."""
    if isinstance(error, MemoryError):
        return "too large for memory"
    if isinstance(error, OSError) and error.errno == errno.ENXIO:  # a socket
        return NOT_REGULAR
    strerror = getattr(error, "strerror", None)
    return one_line(strerror or str(error) or type(error).__name__)


def is_text(value: str) -> bool:
    """Whether it is valid Unicode without NUL, as the name of a file or class must be."""
    return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def one_line(text: str) -> str:
    """A message without line breaks and control characters, cut if it is very long."""
    text = " ".join(text[: 2 * _LONGEST].split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def printable(text: str) -> str:
    r"""Text for a terminal: what might move its cursor or turn its writing around, as `\x1b`."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def shown(value: object) -> str:
    """A value as Python writes it, for a message: cut if it is long or deep."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"<{type(value).__name__} too long to be written>"
