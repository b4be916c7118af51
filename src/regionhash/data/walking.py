"""Walking through folders of pictures: nothing is passed over without a word."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from regionhash.data.notices import Notices
from regionhash.files.text import reason_of

NOT_THE_USERS = frozenset(
    name.lower()
    for name in (
        "@eaDir",
        "@Recently-Snapshot",
        "@Recycle",
        "#recycle",
        "#snapshot",
        "$RECYCLE.BIN",
        "__MACOSX",
        "lost+found",
        "RECYCLED",
        "RECYCLER",
        "System Volume Information",
    )
)
"""Folders of previews, snapshots and deleted files that systems make, in lower case. Most others,
like .thumbnails and .Trash-1000, are hidden."""

_RAW = "3fr arw cr2 cr3 dcr dng erf fff gpr iiq k25 kdc mef mos mrw nef nrw orf pef raf raw rw2"
_OTHER = "bpg eps exr hdr heic heif hif ico j2k jp2 jpf jpm jpx jxl pcx psb psd svg tga xcf"
_FILMS = "3gp avi m2ts m4v mkv mov mp4 mpeg mpg mts webm wmv"
MEDIA = frozenset(f".{name}" for name in f"{_RAW} rwl sr2 srf srw x3f {_OTHER} {_FILMS}".split())
"""Endings of pictures and films; those that are not read are counted."""


Pattern = tuple[str, ...]  # what is left to match, part by part


def files_below(
    folder: Path, pattern: str, suffixes: Container[str], notices: Notices
) -> list[Path]:
    """The files below a folder that match a pattern and end in one of `suffixes`, sorted.

    Hidden files and folders, and `NOT_THE_USERS`, are left out unless the pattern names them. "**"
    stands for any number of folders and does not follow links.

    Args:
        folder: where to start.
        pattern: such as "**/*.jpg".
        suffixes: endings in lower case.
        notices: is told of folders that cannot be read or are left out, and of other `MEDIA`.
    """
    parts = Path(pattern).parts
    patterns = {parts if parts[-1] != "**" else (*parts, "*")}
    found: list[Path] = []
    for path in _files(str(folder), patterns, notices):
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 (a Path costs ten times as much)
        if suffix in suffixes:
            found.append(Path(path))
        elif suffix in MEDIA:
            notices.count(f"{suffix} files, not read")
    return sorted(found, key=Path.as_posix)


def _files(folder: str, patterns: set[Pattern], notices: Notices) -> Iterator[str]:
    """The files below a folder that match one of some patterns.

    It does not call itself, because folders can be deeper than Python's calls.
    """
    levels = [_matches(folder, patterns, notices)]
    while levels:
        for path, deeper in levels[-1]:
            if deeper:
                levels.append(_matches(path, deeper, notices))
                break
            yield path
        else:
            levels.pop()


def _matches(
    folder: str, patterns: set[Pattern], notices: Notices
) -> Iterator[tuple[str, set[Pattern] | None]]:
    """The files in a folder that match, and folders in it with what is left to match there."""
    for pattern in list(patterns):
        while pattern[0] == "**":  # stands for no folder at all, too
            pattern = pattern[1:]
            patterns.add(pattern)
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        notices.add("folders that cannot be read", f"{folder}: cannot be read: {reason_of(error)}")
        return
    anywhere = {pattern for pattern in patterns if pattern[0] == "**"}
    for entry in entries:
        hidden, named = entry.name.startswith("."), patterns - anywhere
        matching = {
            pattern
            for pattern in named
            if fnmatchcase(entry.name, pattern[0]) and (pattern[0].startswith(".") or not hidden)
        }
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself
            continue
        if is_file and any(len(pattern) == 1 for pattern in matching):
            yield entry.path, None
        if not is_folder:
            continue
        deeper = {pattern[1:] for pattern in matching if len(pattern) > 1}
        if not hidden and not entry.is_symlink():
            deeper |= anywhere
        if deeper and entry.name.lower() in NOT_THE_USERS:
            notices.add(
                "folders of previews or deleted files, left out",
                f"{entry.path}: made by the system, not by a photographer; left out",
            )
        elif deeper:
            yield entry.path, deeper
