"""The pictures that an annotation file names, however it spells them."""

from __future__ import annotations

import os
from pathlib import Path

from regionhash.data.images import SUFFIXES
from regionhash.data.notices import Notices
from regionhash.files.names import absolute
from regionhash.files.text import one_line, shown


class ListedPictures:
    """Pictures of a folder by their names in an annotation file, each file once.

    Backslashes are read as slashes and repeated or leading "./" are left out, unless a file is
    named so. A name may repeat the last folders of `folder`, which its id lacks, or lack the suffix
    of its file, which its id has.

    Attributes:
        paths: the file of each id, in the order in which they were named first.

    Args:
        folder: names are relative to it.
        notices: is told of files that are named in several ways.
    """

    def __init__(self, folder: Path, notices: Notices) -> None:
        self.paths: dict[str, Path] = {}
        self._folder = folder
        self._notices = notices
        self._ids: dict[str, str] = {}  # by name
        self._id_of_file: dict[str, str] = {}
        self._files = PictureFiles(notices)

    def add(self, name: str, source: str) -> str:
        """The id of the picture of this name, which is new or was named before."""
        if name not in self._ids:
            self._ids[name] = self._added(name, source)
        return self._ids[name]

    def _added(self, name: str, source: str) -> str:
        spelled = name
        if "\\" in name and not _is_file(self._folder / name):
            spelled = name.replace("\\", "/")
        relative = Path(spelled)
        path = self._folder / relative
        repeated = self._repeated(relative)
        if repeated and not _is_file(path) and _is_file(self._folder / repeated):
            relative, path = repeated, self._folder / repeated
        image_id = relative.as_posix()
        if relative.suffix.lower() not in SUFFIXES and not _is_file(path):
            found = self._files.find(path, source)
            if found is not None:
                path, image_id = found, relative.with_name(found.name).as_posix()
        file = str(absolute(path))
        if file not in self._id_of_file:
            self._id_of_file[file] = image_id
            self.paths[image_id] = path
            return image_id
        first = self._id_of_file[file]
        self._notices.add(
            "pictures named in several ways, taken once",
            f"{source}: {shown(name)} is the same picture as {shown(first)}",
        )
        return first

    def _repeated(self, relative: Path) -> Path | None:
        """The name without leading folders that are also the last ones of `folder`."""
        parts, above = relative.parts, absolute(self._folder).parts
        for count in range(len(parts) - 1, 0, -1):
            if above[-count:] == parts[:count]:
                return Path(*parts[count:])
        return None


class PictureFiles:
    """Finds pictures by their names without suffix; each folder is listed once."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._folders: dict[Path, dict[str, list[str]]] = {}

    def find(self, path: Path, source: str) -> Path | None:
        """The picture of a path without suffix, in any case; None if there is none.

        If there are several, the one named exactly so is taken, otherwise .jpg, otherwise the
        first in alphabetical order, with a notice.
        """
        names = self._listed(path.parent).get(path.name.casefold(), [])
        names = [name for name in names if Path(name).stem == path.name] or names
        if not names:
            return None
        ordered = sorted(names, key=lambda name: (Path(name).suffix != ".jpg", name))
        if len(names) > 1:
            self._notices.add(
                "names that fit several pictures",
                f"{source}: {one_line(path.name)} may be any of {', '.join(ordered)} in "
                f"{path.parent}; {ordered[0]} was taken",
            )
        return path.with_name(ordered[0])

    def _listed(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._folders:
            names: dict[str, list[str]] = {}
            try:
                found = sorted(os.listdir(folder))  # noqa: PTH208 (a path for each takes long)
            except (OSError, ValueError):
                found = []
            for name in found:
                stem, suffix = os.path.splitext(name)  # noqa: PTH122
                if suffix.lower() in SUFFIXES and not name.startswith("."):
                    names.setdefault(stem.casefold(), []).append(name)
            self._folders[folder] = names
        return self._folders[folder]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def ids_of_files(names: list[str], paths: list[Path]) -> tuple[str, ...]:
    """Ids of pictures that are named without suffix: with it, if it is not the same for all.

    A code file records one suffix for all of its pictures.
    """
    suffixes = {path.suffix for path in paths}
    if len(suffixes) == 1:
        return tuple(names)
    return tuple(name + path.suffix for name, path in zip(names, paths, strict=True))
