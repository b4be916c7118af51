"""File names: absolute, shown as valid UTF-8 and read back, and whether the file exists."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

_ESCAPE = re.compile(r"\\x[89a-f][0-9a-f]")


def absolute(path: str | Path) -> Path:
    """The absolute path. Links are kept, except before a "..", which starts at their target."""
    whole = Path(path).absolute()
    return whole.parent.resolve() / whole.name if ".." in whole.parent.parts else whole


def condition_of(path: Any) -> Literal["there", "gone", "unreadable"]:
    """Whether a file exists. It is gone only if the disk says so: ENOENT.

    A file that cannot be checked, because permission is missing or the disk does not respond, may
    be found later.
    """
    try:
        os.stat(path)  # noqa: PTH116 (bytes)
    except FileNotFoundError:
        return "gone"
    except (OSError, TypeError, ValueError):
        return "unreadable"
    return "there"


def shows_nothing(folder: str | bytes) -> bool:
    """Whether a folder is empty, missing or unreadable, as the place of a disk that is away."""
    try:
        with os.scandir(folder) as entries:
            return not any(entries)
    except OSError:
        return True


def shown_name(path: str | bytes | os.PathLike[str]) -> str:
    r"""A path as valid UTF-8, different for different paths; most are shown as they are.

    In a part that is not valid UTF-8, or that contains such an escape literally, invalid bytes
    are written as `\xff` and backslashes are doubled.
    """
    parts = os.fsencode(path).split(b"/")
    return "/".join(map(_shown_part, parts))


def as_shown(name: str) -> str:
    """A name or an id supplied by a user, in the form of `shown_name`."""
    return name if name.isascii() or _is_utf8(name) else shown_name(name)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def path_of(shown: str) -> Path:
    """The inverse of `shown_name`."""
    return Path("/".join(map(_real_part, shown.split("/"))))


def _real_part(shown: str) -> str:
    if not _ESCAPE.search(shown):
        return shown
    pieces = re.split(rb"(\\\\|\\x[89a-f][0-9a-f])", shown.encode())
    pieces[1::2] = [  # every second piece is an escape: a doubled backslash, or a byte
        b"\\" if escape == b"\\\\" else bytes([int(escape[2:], 16)]) for escape in pieces[1::2]
    ]
    return os.fsdecode(b"".join(pieces))


def _shown_part(part: bytes) -> str:
    shown = part.decode("utf-8", "backslashreplace")
    if _ESCAPE.search(shown):
        return part.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return shown
