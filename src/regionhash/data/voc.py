"""The PASCAL VOC layout (Everingham et al., IJCV 2010): one XML file of objects per picture."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from regionhash.data.boxes import (
    LabelledBox,
    PictureLabels,
    Size,
    make_targets,
    parse_flag,
    parse_size,
    plain_name,
)
from regionhash.data.image_set import ImageSet
from regionhash.data.images import SUFFIXES, FileImages
from regionhash.data.listed import PictureFiles, ids_of_files
from regionhash.data.notices import Notices
from regionhash.data.xmlfile import read_xml
from regionhash.files.text import one_line, read_text, refusing, shown
from regionhash.structures import Box

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


ALL = "all"
"""The split of all pictures, if there is no list of that name."""

FROM_DATA = "data"
"""In place of the classes: the names that occur, in alphabetical order."""

_FOLDERS = (
    ("JPEGImages", "Annotations"),
    ("images", "Annotations"),  # Label Studio
    ("images", "annotations"),
    ("data", "labels"),  # FiftyOne
)
"""Of pictures and of XML files."""

_MARKS = frozenset(("-1", "0", "1"))  # the second column of a list for one class


def read_voc(
    root: str | Path,
    split: str,
    *,
    year: int | None = None,
    classes: Sequence[str] | str | None = None,
    relative: bool = False,
) -> ImageSet:
    """The pictures of one split with their objects, the difficult ones marked.

    VOC counts pixels from 1 and its boxes include the last one: (xmin, ymin, xmax, ymax) becomes
    the box (xmin - 1, ymin - 1, xmax, ymax). For the rest see `make_targets`. Pictures are found by
    the name of their XML file, whatever their suffix; if they have several suffixes, ids have them.

    Args:
        root: the folder with `JPEGImages`, `Annotations` and `ImageSets`; with `year`, the
            `VOCdevkit` folder above it.
        split: the name of a list in `ImageSets/Main`, such as "train". The second column of a list
            for one class ("dog_train") is ignored, so it gives pictures of all classes. If there is
            no such list: a folder in `root` with the pictures and XML files of the split, or "all"
            for all pictures.
        year: selects `VOC<year>` in `root`.
        classes: names in order, for other data in this layout; "data" for the names that occur; the
            20 VOC classes if None.
        relative: whether boxes are fractions of the picture's width and height.

    Raises:
        ValueError: the split or an XML file is missing or broken, or a class is unknown.
    """
    folder = Path(root) if year is None else Path(root) / f"VOC{year}"
    notices = Notices()
    ids, places, listing = _split(folder, split, notices)
    found = [_read_annotation(places, image_id, listing, notices) for image_id in ids]
    if isinstance(classes, str):
        if classes != FROM_DATA:
            raise ValueError(f"classes must be names or {FROM_DATA!r}, got {classes!r}")
        names = tuple(sorted({item.name for own in found for item in own.objects}))
        if not names:
            raise ValueError(f"{places.annotations}: no picture of {split!r} has an object")
    else:
        names = tuple(VOC_CLASSES if classes is None else classes)
    indices = {name: index for index, name in enumerate(names)}
    for own in found:
        for item in own.objects:
            if item.name not in indices:
                raise ValueError(
                    f"{own.path}: unknown class {shown(item.name)}; known are {', '.join(names)}; "
                    f"for the classes that occur, name the set voc:ROOT:SPLIT:{FROM_DATA}"
                )
    files = PictureFiles(notices)
    known = [_picture(places, *item, files) for item in zip(ids, found, strict=True)]
    suffixes = {path.suffix for path in known if path is not None}
    suffix = suffixes.pop() if len(suffixes) == 1 else ".jpg"  # of pictures that are missing
    paths = [
        path or places.pictures / f"{image_id}{suffix}"
        for image_id, path in zip(ids, known, strict=True)
    ]
    targets = make_targets(
        str(places.annotations),
        [
            PictureLabels(
                path,
                [
                    LabelledBox(str(own.path), indices[item.name], item.box, item.difficult)
                    for item in own.objects
                ],
                noted_size=own.size,
                source=str(own.path),
            )
            for path, own in zip(paths, found, strict=True)
        ],
        notices,
        relative=relative,
        ask="name the set voc:ROOT:SPLIT:relative (in Python, relative=True)",
        first=-1,
    )
    ids = ids_of_files(list(ids), paths)
    return ImageSet(f"{folder.name}:{split}", names, ids, FileImages(paths), targets, notices)


def parse_classes(text: str) -> Sequence[str] | str:
    """The argument `classes` of `read_voc` from text: "data", a file with a name per line, or a,b.

    Raises:
        ValueError: the file is missing, or a name is empty or occurs twice.
    """
    if text == FROM_DATA:
        return text
    is_file = Path(text).exists() or "/" in text or text.endswith(".txt")
    names = read_text(Path(text), "the classes").splitlines() if is_file else text.split(",")
    names = [name.strip() for name in names if name.strip() or not is_file]
    if not names or not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{text}: classes must be different names, got {shown(names)}")
    return names


# -- the files of a split -------------------------------------------------------------------------


class _Places(NamedTuple):
    """Where the files of a split are.

    Attributes:
        pictures: their folder; annotations: that of the XML files.
        complete: whether each picture needs an XML file.
    """

    pictures: Path
    annotations: Path
    complete: bool


def _split(folder: Path, split: str, notices: Notices) -> tuple[tuple[str, ...], _Places, Path]:
    """The ids of a split, where its files are, and the file or folder that lists them."""
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    whole, inside = _places(folder), _places(folder / split)
    if whole and listing.exists():
        whole = whole._replace(complete=True)
        return _listed(listing, whole, notices), whole, listing
    if whole and split == ALL:
        places = whole
    elif inside:
        places = inside
    elif split not in (".", "..") and (folder / split).is_dir() and _has_xml(folder / split):
        places = _Places(folder / split, folder / split, complete=False)
    elif split == ALL and _has_xml(folder):
        places = _Places(folder, folder, complete=False)
    else:
        expected = (*(folder / name for name in _FOLDERS[0]), listing)
        missing = (
            listing if whole else next((path for path in expected if not path.exists()), listing)
        )
        raise ValueError(
            f"{missing} is missing: {folder} must be a VOC folder with JPEGImages/<id>.jpg, "
            f"Annotations/<id>.xml and ImageSets/Main/{split}.txt (one id a line), or hold the "
            f"pictures and XML files in {split}; {ALL!r} is the split of all pictures"
        )
    stems = {name for name, _ in _names(places.pictures, SUFFIXES)}
    stems |= {name for name, _ in _names(places.annotations, (".xml",))}
    if not stems:
        raise ValueError(f"{places.pictures} holds no picture")
    return tuple(sorted(stems)), places, places.annotations


def _places(folder: Path) -> _Places | None:
    """The folders of pictures and XML files in `folder`, if it has them."""
    for pictures, xml_files in _FOLDERS:
        if (folder / pictures).is_dir() and (folder / xml_files).is_dir():
            return _Places(folder / pictures, folder / xml_files, complete=False)
    return None


def _has_xml(folder: Path) -> bool:
    return folder.is_dir() and bool(_names(folder, (".xml",)))


def _names(folder: Path, suffixes: Sequence[str] | frozenset[str]) -> list[tuple[str, str]]:
    """Stem and suffix of the files in a folder that have one of the suffixes, in any case."""
    try:
        names = [os.path.splitext(name) for name in os.listdir(folder)]  # noqa: PTH122, PTH208
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror}") from error
    return [
        (stem, suffix)
        for stem, suffix in names
        if suffix.lower() in suffixes and not stem.startswith(".")
    ]


def _listed(path: Path, places: _Places, notices: Notices) -> tuple[str, ...]:
    """The ids of a list. A line may hold an id with blanks, or an id and a mark."""
    known = {stem for stem, _ in _names(places.annotations, (".xml",))}
    rows: dict[str, int] = {}
    for row, line in enumerate(read_text(path, "the list").splitlines(), 1):
        if not line.strip():
            continue
        if "\0" in line:
            raise ValueError(f"{path}, line {row}: an id must not contain NUL, got {shown(line)}")
        image_id = _listed_id(line.strip(), known)
        first = rows.setdefault(image_id, row)
        if first != row:
            notices.add(
                "pictures that are listed twice, taken once",
                f"{path}, line {row}: {shown(image_id)} is already in line {first}; taken once",
            )
    if not rows:
        raise ValueError(f"{path} lists no picture")
    return tuple(rows)


def _listed_id(line: str, known: set[str]) -> str:
    """The id in a line: of the readings that fit the line, the longest with an XML file."""
    words = line.split()
    marked = len(words) > 1 and words[-1] in _MARKS
    readings = [line, line.rsplit(maxsplit=1)[0], words[0]]
    for reading in readings:
        for image_id in (reading, _without_suffix(reading)):
            if image_id in known:
                return image_id
    return _without_suffix(readings[1] if marked else line)


def _without_suffix(name: str) -> str:
    """The id in the name of a picture, which may have folders and a suffix."""
    name = re.sub(r"^(.*/)?JPEGImages/|^(\./+)+", "", name.replace("\\", "/"))
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 (names have no folder to join)
    return stem if suffix.lower() in SUFFIXES else name


def _picture(
    places: _Places, image_id: str, annotation: _Annotation, files: PictureFiles
) -> Path | None:
    """The picture of an annotation: of the same name, or else the one that the file names."""
    source = str(annotation.path)
    found = files.find(places.pictures / image_id, source)
    named = annotation.filename
    if found is None and named:
        found = files.find(places.pictures / _without_suffix(named), source)
    return found


# -- annotations ----------------------------------------------------------------------------------


class _Object(NamedTuple):
    name: str
    box: Box
    difficult: bool


class _Annotation(NamedTuple):
    path: Path
    objects: list[_Object]
    size: Size | None
    filename: str


def _read_annotation(
    places: _Places, image_id: str, listing: Path, notices: Notices
) -> _Annotation:
    path = places.annotations / f"{image_id}.xml"
    if not places.complete and not os.path.lexists(path):
        notices.add(
            "pictures without an annotation, taken as without objects",
            f"{path} is missing; the picture is taken as without objects",
        )
        return _Annotation(path, [], None, "")
    try:
        root = read_xml(path)
    except ValueError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError):
            raise
        trouble = f"{path} is missing" if isinstance(cause, FileNotFoundError) else str(error)
        message = f"{listing}: each picture needs an XML file, but {trouble}"
        raise ValueError(one_line(message)) from error
    filename = (root.findtext("filename") or "").strip()
    with refusing(str(path)):
        if root.tag != "annotation":
            raise ValueError(f"must be <annotation>, got <{root.tag}>")
        if "\0" in filename:
            raise ValueError("<filename> must not contain NUL")
        size = parse_size(root.findtext("size/height"), root.findtext("size/width"))
        objects = [_read_object(path, item, notices) for item in root.iterfind("object")]
    named = _without_suffix(filename).rpartition("/")[2]
    if named and named.casefold() != image_id.rpartition("/")[2].casefold():
        notices.add(
            "annotations that name another picture",
            f"{path}: <filename> is {shown(filename)}; the picture {one_line(image_id)} is taken "
            "if there is one",
        )
    return _Annotation(path, objects, size, filename)


def _read_object(path: Path, item: Element, notices: Notices) -> _Object:
    name = plain_name(_text(item, "name"), str(path), notices)
    # Edges are inclusive and counted from 1, so the last ones are exclusive when counted from 0.
    x0, y0, x1, y1 = (
        float(_text(item, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")
    )
    difficult = parse_flag(item.findtext("difficult"), "<difficult>")
    return _Object(name, (x0, y0, x1, y1), difficult)


def _text(element: Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"<{element.tag}> lacks <{path}>")
    return text
