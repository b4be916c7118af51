"""Files on this machine and files behind URLs, such as objects of S3, in one way (fsspec)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from regionhash.files.atomic import replacing
from regionhash.files.text import reason_of, refusing

Location = Path | str
"""A path on this machine, or a URL."""


def is_url(name: str) -> bool:
    """Whether a name is a URL, such as "s3://bucket/photos"."""
    return "://" in name


def located(name: str | Path) -> Location:
    """What a user has named: a URL stays a text, since a `Path` would shorten its "//"."""
    return name if isinstance(name, str) and is_url(name) else Path(name)


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the URL's path in it.

    All after "://" is the name of a file: "::", with which fsspec names one file system within
    another, may stand in the key of an object.

    Raises:
        ModuleNotFoundError: an extra of this package brings what reads such URLs.
        ValueError: nothing that is installed does, or the file system cannot be reached.
    """
    import fsspec

    scheme, _, rest = url.partition("://")
    if "@" in rest.partition("/")[0]:
        raise ValueError(f"{scheme}://: a user or password must not stand in a URL")
    try:
        with refusing(url, ValueError, TypeError):  # TypeError: it does not say all that is needed
            kind = fsspec.get_filesystem_class(scheme)
            system = fsspec.filesystem(scheme, **kind._get_kwargs_from_urls(url))
    except ImportError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise error.__cause__ from error
        raise
    return system, kind._strip_protocol(url)


def child(folder: Location, name: str) -> Location:
    """A file in a folder."""
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


def files_in(folder: Location, ending: str) -> list[Location]:
    """The files in a folder whose names have this ending, sorted; none of a folder that is missing.

    Hidden files are left out.

    Raises:
        ValueError: the folder cannot be read.
    """
    if isinstance(folder, Path):
        names = [path.name for path in folder.glob(f"*{ending}")]
    else:
        system, path = file_system(folder)
        with refusing(f"{folder}: cannot be read", ValueError, Exception):
            system.invalidate_cache()
            found = system.ls(path, detail=False) if system.exists(path) else []
        names = [name.rpartition("/")[2] for name in found]
    return [
        child(folder, name)
        for name in sorted(names)
        if name.endswith(ending) and not name.startswith(".")
    ]


@contextmanager
def reading(location: Location) -> Iterator[BinaryIO | Path]:
    """What to read a file from, for libraries that take a path or an open file.

    Raises:
        OSError: the file behind a URL cannot be opened; the message does not name it.
    """
    if isinstance(location, Path):
        yield location.absolute()  # of "a:b.parquet", a library might take "a" for a protocol
        return
    system, path = file_system(location)
    try:
        file = system.open(path, "rb")
    except Exception as error:  # what libraries of storage raise is not always an OSError
        raise OSError(reason_of(error)) from error
    with file:
        yield file


@contextmanager
def whole_file(location: Location) -> Iterator[Path]:
    """Where to write a file that takes its place at the end, whole; it replaces another one.

    Raises:
        OSError: the disk refuses; what was there before is unchanged.
        ValueError: what is behind the URL refuses; likewise.
    """
    if isinstance(location, Path):
        with replacing(location) as temporary:
            yield temporary
        return
    system, path = file_system(location)
    with TemporaryDirectory(prefix="regionhash-") as folder:
        temporary = Path(folder) / "whole"
        yield temporary
        with refusing(f"{location}: cannot write", ValueError, Exception):
            system.put_file(str(temporary), path)  # an object store shows no part of an object


def remove_file(location: Location) -> None:
    """Removes a file, which must be there. Raises OSError or ValueError as `whole_file` does."""
    if isinstance(location, Path):
        location.unlink()
        return
    system, path = file_system(location)
    with refusing(f"{location}: cannot remove", ValueError, Exception):
        system.rm_file(path)
