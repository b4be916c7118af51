"""Names of files: absolute, shown as valid UTF-8 and read back, and whether they are there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

_ESCAPE = re.compile(r"\\x[89a-f][0-9a-f]")


def absolute(path: str | Path) -> Path:
    """The path from the root. Links are kept, but for those before a "..", which they lead from."""
    whole = Path(path).absolute()
    return whole.parent.resolve() / whole.name if ".." in whole.parent.parts else whole


def condition_of(path: Any) -> Literal["there", "gone", "unreadable"]:
    """Whether a file is there. It is gone only if the disk says so: ENOENT.

    What cannot be looked at, for want of permission or since a disk does not answer, may be there
    another time.
    """
    try:
        os.stat(path)  # noqa: PTH116 (bytes)
    except FileNotFoundError:
        return "gone"
    except (OSError, TypeError, ValueError):
        return "unreadable"
    return "there"


def shown_name(path: str | bytes | os.PathLike[str]) -> str:
    r"""A path as valid UTF-8, different for different paths; most are shown as they are.

    A part that is not valid UTF-8 has its bytes as `\xff` and its backslashes doubled; so has a
    part in which such an escape stands literally.
    """
    parts = os.fsencode(path).split(b"/")
    return "/".join(map(_shown_part, parts))


def as_shown(name: str) -> str:
    """What somebody gives as a name or an id, in the form of `shown_name`."""
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
    # Every second piece is an escape: a doubled backslash, or a byte.
    pieces[1::2] = [b"\\" if own == b"\\\\" else bytes([int(own[2:], 16)]) for own in pieces[1::2]]
    return os.fsdecode(b"".join(pieces))


def _shown_part(part: bytes) -> str:
    shown = part.decode("utf-8", "backslashreplace")
    if _ESCAPE.search(shown):
        return part.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return shown
