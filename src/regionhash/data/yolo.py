"""The layout of Ultralytics YOLO: a YAML file, folders of pictures, and a text file for each."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import yaml

from regionhash.data.boxes import LabelledBox, PictureLabels, make_targets, plain_name
from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages, find_images
from regionhash.data.listed import ListedPictures
from regionhash.data.notices import Notices
from regionhash.files.names import absolute
from regionhash.files.text import is_text, read_text, refusing, shown
from regionhash.structures import Box

_MOST_BYTES = 256 << 10  # of the YAML file; that of LVIS, with 1203 names, has a tenth
_MOST_LABEL_BYTES = 16 << 20  # a thousand polygons of a thousand corners
_DEEPEST = 16  # files have 3 levels
_ROUNDING = 0.01  # fractions may leave 0 to 1 by this much, as in Ultralytics' own check

_SPLITS = {"val": ("val", "valid", "validation")}


def read_yolo(data_yaml: str | Path, split: str) -> ImageSet:
    """The pictures of one split with their objects; ids are paths relative to the set's folder.

    The split is a folder, a list of folders or a text file with a picture per line. The labels of
    `x/images/y/a.jpg` are in `x/labels/y/a.txt`, or next to the picture if no folder is named
    images: one line per object, with the class index and, in fractions of the picture, the box
    (centre, width, height) or the corners of a polygon, whose box is taken. If the labels have key
    points (`kpt_shape`), these are ignored. A picture without a file, or with an empty one, has no
    objects; the former is noticed. For the boxes see `make_targets`.

    Args:
        data_yaml: the file with `train`, `val` and `test`, `names` or `nc`, and perhaps `path`.
        split: one of its keys.

    Raises:
        ValueError: a file or folder is missing or broken; the message names it, and the line.
    """
    path = Path(data_yaml)
    content = _read_yaml(path)
    notices = Notices()
    names = _names(path, content)
    classes: dict[str, int] = {}
    class_of = []  # the class of each index
    for name in names:
        name = plain_name(name, str(path), notices)
        if name in classes:
            notices.add(
                "categories of the same name, taken as one class",
                f"{path}: {shown(name)} occurs more than once in 'names'; taken as one class",
            )
        class_of.append(classes.setdefault(name, len(classes)))
    root = _root(path, content, notices)
    pictures = ListedPictures(root, notices)
    for entry in _entries(path, content, split):
        for name, source in _pictures(root, entry, f"{path}: {split}", notices):
            pictures.add(name, source)
    targets = make_targets(
        str(path),
        [
            _labels(own, class_of, "kpt_shape" in content, notices)
            for own in pictures.paths.values()
        ],
        notices,
        relative=True,
    )
    files = FileImages(list(pictures.paths.values()))
    name = f"{path.stem}:{split}"
    return ImageSet(name, tuple(classes), tuple(pictures.paths), files, targets, notices)


# -- the YAML file --------------------------------------------------------------------------------


def _read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, every scalar as text, so that the class `no` stays a name.

    Aliases are refused: a few lines of them can expand to gigabytes.
    """
    text = read_text(path, "the data set's YAML", most=_MOST_BYTES)
    with refusing(f"{path}: broken YAML", ValueError, yaml.YAMLError):
        depth = 0
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("aliases (*) are not allowed")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ValueError("nested too deeply")
        content = yaml.load(text, Loader=yaml.BaseLoader)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must have 'names' and 'train', 'val' or 'test'")
    return content


def _names(path: Path, content: dict[str, Any]) -> list[str]:
    """The names of the classes by their indices."""
    names, count = content.get("names"), content.get("nc")
    n_classes = None
    if count not in (None, ""):
        if not isinstance(count, str) or not count.isdecimal() or not 0 < len(count) < 7:
            raise ValueError(f"{path}: nc must be a number of classes, got {shown(count)}")
        n_classes = int(count)
    if isinstance(names, dict):
        for key in names:
            if not isinstance(key, str) or not key.isdecimal() or len(key) > 6:
                raise ValueError(f"{path}: names must have class indices, got {shown(key)}")
        by_index = {int(key): name for key, name in names.items()}
        for index in range(len(names)):
            if index not in by_index:
                raise ValueError(f"{path}: names lacks the class index {index}")
        names = [by_index[index] for index in range(len(by_index))]
    elif names in (None, "") and n_classes is not None:
        if n_classes > _MOST_BYTES // 2:
            raise ValueError(f"{path}: nc must be a number of classes, got {shown(count)}")
        names = [f"class_{index}" for index in range(n_classes)]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: must have 'names', a list of classes, got {shown(names)}")
    texts: list[str] = []
    for name in names:
        if not isinstance(name, str) or not name.strip() or not is_text(name):
            raise ValueError(f"{path}: names must be text, got {shown(name)}")
        texts.append(name)
    if n_classes is not None and n_classes != len(names):
        raise ValueError(f"{path}: nc is {n_classes}, but names has {len(names)} classes")
    return texts


def _root(path: Path, content: dict[str, Any], notices: Notices) -> Path:
    """The folder that the splits are relative to.

    It is `path`, relative to the file; if there is no such folder, as in a set that was moved, the
    file's own.
    """
    given = content.get("path")
    if not isinstance(given, str) or given in ("", "null", "~", "."):
        return path.parent
    if not is_text(given):
        raise ValueError(f"{path}: 'path' is not a name: {shown(given)}")
    root = path.parent / given
    if _exists(root):
        return root
    if _exists(Path(given)):
        return Path(given)
    notices.add(
        "data sets that lie elsewhere than their file states",
        f"{path}: the folder {shown(given)} ('path') is missing; {path.parent} is taken instead",
    )
    return path.parent


def _entries(path: Path, content: dict[str, Any], split: str) -> list[str]:
    """The folders and lists of a split."""
    keys = _SPLITS.get(split, (split,))
    value = next((content[key] for key in keys if content.get(key)), None)
    entries: list[str] = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str) or entry in ("", "null", "~") or not is_text(entry):
            found = ", ".join(key for key in ("train", "val", "test") if content.get(key))
            raise ValueError(
                f"{path}: {shown(split)} must be a folder, a list of folders or a .txt file, got "
                f"{shown(entry)}; the file has {found or 'no split'}"
            )
        entries.append(entry)
    return entries


def _pictures(root: Path, entry: str, source: str, notices: Notices) -> list[tuple[str, str]]:
    """Names of the pictures of an entry, relative to `root` if they are below it, and sources."""
    place = root / entry
    if not _exists(place) and entry.startswith("../"):  # as Roboflow writes it
        place = root / entry[3:]
    with refusing(source):
        if place.is_dir():
            return [(_relative(path, root), source) for _, path in find_images([place], notices)]
        if not _exists(place) and place.suffix != ".txt":
            raise ValueError(f"{place} is missing: it must be a folder or a .txt file")
        lines = read_text(place, "the list").splitlines()
        if not any(map(str.strip, lines)):
            raise ValueError(f"{place} lists no picture")
        return [
            (_listed(line.strip(), place, root, row), f"{place}, line {row}")
            for row, line in enumerate(lines, 1)
            if line.strip()
        ]


def _listed(name: str, place: Path, root: Path, row: int) -> str:
    """The name of a picture in a list, which is relative to the list's folder or to `root`."""
    name = name.replace("\\", "/")
    if "\0" in name or not Path(name).name:
        raise ValueError(f"{place}, line {row}: must name a picture, got {shown(name)}")
    beside = place.parent / name
    return _relative(beside if _exists(beside) or not _exists(root / name) else root / name, root)


def _relative(picture: Path, root: Path) -> str:
    if picture.is_relative_to(root):
        return picture.relative_to(root).as_posix()
    below, above = absolute(picture), absolute(root)
    return (below.relative_to(above) if below.is_relative_to(above) else below).as_posix()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


# -- labels ---------------------------------------------------------------------------------------


def label_file(picture: Path) -> Path:
    """Where the labels of a picture are: images is replaced in its path, as in Ultralytics."""
    parts = absolute(picture).parts
    for index in range(len(parts) - 2, 0, -1):
        if parts[index] == "images":
            picture = Path(*parts[:index], "labels", *parts[index + 1 :])
            break
    return picture.with_suffix(".txt")


def _labels(
    picture: Path, class_of: list[int], has_key_points: bool, notices: Notices
) -> PictureLabels:
    path = label_file(picture)
    if not os.path.lexists(path):
        notices.add(
            "pictures without a file of labels, taken as without objects",
            f"{picture}: {path} is missing; the picture is taken as without objects",
        )
        return PictureLabels(picture, [])
    objects: dict[str, LabelledBox] = {}
    text = read_text(path, "the labels", most=_MOST_LABEL_BYTES)
    for row, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words:
            continue
        source = f"{path}, line {row}"
        key = " ".join(words)
        if key in objects:
            notices.add("objects that occur twice, taken once", f"{source}: as a line before it")
            continue
        objects[key] = _object(source, words, class_of, has_key_points)
    return PictureLabels(picture, list(objects.values()), source=str(path))


def _object(
    source: str, words: list[str], class_of: list[int], has_key_points: bool
) -> LabelledBox:
    try:
        index, *values = map(float, words)
    except ValueError:
        raise ValueError(f"{source}: must be numbers, got {shown(' '.join(words[:9]))}") from None
    if not 0 <= index < len(class_of) or not index.is_integer():
        raise ValueError(
            f"{source}: class index must be 0 to {len(class_of) - 1}, got {shown(words[0])}"
        )
    if has_key_points:
        values = values[:4]
    return LabelledBox(source, class_of[int(index)], box_in_fractions(source, words, values))


def box_in_fractions(source: str, words: list[str], values: list[float]) -> Box:
    """The box of one line: of its centre, width and height, or of the corners of a polygon.

    Args:
        source: the file and the line.
        words: the line, for messages; the first is the class.
        values: fractions of the picture.

    Raises:
        ValueError: the numbers are no box.
    """
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(
            f"{source}: must be a class and a box (4 numbers) or a polygon (6 or more), got "
            f"{len(words)} numbers"
        )
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{source}: box must be finite, got {shown(' '.join(words[1:5]))}")
    outside = [value for value in values if not -_ROUNDING <= value <= 1 + _ROUNDING]
    if outside:
        raise ValueError(
            f"{source}: must be fractions (0 to 1) of the picture, got {shown(outside[0])}"
        )
    if len(values) == 4:
        cx, cy, width, height = values
        return cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2
    xs, ys = values[::2], values[1::2]
    return min(xs), min(ys), max(xs), max(ys)
