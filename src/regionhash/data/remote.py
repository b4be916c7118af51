"""Pictures behind URLs, such as objects of S3: found, and read when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from regionhash.data.image_set import Image, ImageSet
from regionhash.data.images import (
    SUFFIXES,
    FileVersion,
    ImageError,
    ReadVersion,
    read_bytes_with_note,
    version_of,
)
from regionhash.data.notices import Notices
from regionhash.data.walking import MEDIA, NOT_THE_USERS
from regionhash.files.text import reason_of, refusing
from regionhash.files.urls import file_system
from regionhash.structures import Target

_VERSION = "?versionId="
"""Begins the version of an object in a URL of S3, so no URL names a key that contains it."""


class RemoteImages(Sequence[Image]):
    """The pictures behind some URLs, each read when asked for.

    Attributes:
        paths: their URLs.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self.read(index).image

    def version(self, index: int) -> FileVersion:
        """The current version of a file. Raises ImageError if it cannot be read."""
        return self._content(index)[1]

    def read(self, index: int) -> ReadVersion:
        """A picture with its version.

        Raises:
            ImageError: it cannot be fetched; see also `regionhash.data.images.read_image`.
        """
        content, version = self._content(index)
        image, note = read_bytes_with_note(content, self.paths[index])
        return ReadVersion(image, version, note)

    def _content(self, index: int) -> tuple[bytes, FileVersion]:
        url = self.paths[index]
        system, path = file_system(url)
        try:
            content = system.cat_file(path)
            return content, version_of(content, _written(system, path))
        except Exception as error:  # what libraries of storage raise is not always an OSError
            raise ImageError(f"{url}: {reason_of(error)}") from error


def open_urls(urls: Sequence[str]) -> ImageSet:
    """The pictures behind some URLs, without labels.

    Args:
        urls: each of a file with any name, or of a folder: the files below it that end in one of
            `SUFFIXES`, without hidden ones and those of `NOT_THE_USERS`. Ids are relative to a
            single folder, otherwise they are the URLs.

    Raises:
        ValueError: nothing is there, or no picture, or it cannot be listed.
        ModuleNotFoundError: s3fs is missing.
    """
    notices = Notices()
    found: dict[str, str] = {}
    for url in urls:
        system, root = file_system(url)
        with refusing(f"{url}: cannot be listed", ValueError, Exception):
            is_file = system.isfile(root)
            paths = [] if is_file else sorted(system.find(root))
        names = [path.removeprefix(root.rstrip("/") + "/") for path in paths]
        pictures = [name for name in names if _is_picture(name, notices)]
        if not is_file and not pictures:
            raise ValueError(f"{url}: no picture found")
        if is_file:
            found.setdefault(url, url)
        for name in pictures:
            whole = f"{url.rstrip('/')}/{name}"
            found.setdefault(name if len(urls) == 1 else whole, whole)
    targets = (Target.empty(),) * len(found)
    images = RemoteImages(list(found.values()))
    return ImageSet(" ".join(urls), (), tuple(found), images, targets, notices)


def _written(system: Any, path: str) -> float | None:
    """When a file was written, in seconds since 1970; None if that is unknown, as behind HTTP."""
    try:
        written: float = system.modified(path).timestamp()
    except NotImplementedError:
        return None
    return written


def _is_picture(path: str, notices: Notices) -> bool:
    """Whether a path below a folder is that of a picture that is taken."""
    if _VERSION in path:
        notices.count(f"files with {_VERSION} in their names, not read")
        return False
    *folders, name = PurePosixPath(path).parts
    if any(part.startswith(".") for part in (*folders, name)):
        return False
    if any(folder.lower() in NOT_THE_USERS for folder in folders):
        return False
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in MEDIA - SUFFIXES:
        notices.count(f"{suffix} files, not read")
    return suffix in SUFFIXES
