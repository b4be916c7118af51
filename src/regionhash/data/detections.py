"""Boxes that a detector found, from the files of any tool or from a function."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from regionhash.data.boxes import (
    LabelledBox,
    PictureLabels,
    Size,
    make_targets,
    parse_score,
    parse_size,
    plain_name,
)
from regionhash.data.coco import annotations_of, box_of, classes_of, id_of, records_of
from regionhash.data.csv_table import read_rows
from regionhash.data.image_set import Image, ImageSet
from regionhash.data.images import SUFFIXES, FileImages
from regionhash.data.notices import Notices
from regionhash.data.yolo import box_in_fractions
from regionhash.files.names import absolute
from regionhash.files.strict_json import read_json
from regionhash.files.text import is_text, read_text, refusing, shown
from regionhash.structures import Box, Detections, Floats, Ints

Detector = Callable[[Image], "Detections | Floats | tuple[Any, ...]"]
"""Finds the objects of a picture (H, W, 3) uint8: `Detections`; or boxes (R, 4), xyxy in pixels; or
a tuple of these, scores (R,) and, unless left out, labels (R,). Boxes are clipped to the picture,
and those without area left out."""

_FORMS = (
    "detections are a .json file (COCO's results, or a COCO file with scores), a .csv or .tsv "
    "table, or a folder of YOLO's text files"
)
_NAMES = ("category_name", "class_name", "label", "class", "name")  # of the class, in results
_MOST_LABEL_BYTES = 16 << 20
_CLASSES_FILE = "classes.txt"  # of a folder of text files, as LabelImg writes it

_UNMATCHED = "pictures with boxes that are not among the pictures, left out"
_AMBIGUOUS = "names that fit several pictures, their boxes left out"
_BY_NAME = "boxes of a picture in another folder, found by its name"
_WITHOUT = "pictures without boxes, encoded without them"
_UNKNOWN = "boxes of classes that the model does not know, stored without class"
_UNNAMED = "boxes of classes without a name, stored without class"


class _Found(NamedTuple):
    """One detection: where it stands in the file, its class by number or -1, and its score."""

    place: str
    label: int
    box: Box
    score: float


class DetectionFile:
    """The detections of one file, by the names that it has for pictures.

    Attributes:
        path: the file or folder.
        classes: names of the classes.
        relative: whether boxes are fractions of the picture.
        found: the detections of each picture, possibly none, by name; a number is COCO's id.
        sizes: of pictures, if noted.
        notices: what was put right or left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.classes: tuple[str, ...] = ()
        self.relative = False
        self.found: dict[str | int, list[_Found]] = defaultdict(list)
        self.sizes: dict[str | int, Size] = {}
        self.notices = Notices()

    # Finding the pictures

    def matched(self, image_set: ImageSet, *, told: bool = True) -> dict[int, str | int]:
        """The name in this file of each picture that it has, by row.

        A name fits a picture if it is the end of its path, without its suffix if the name has none.
        The longest one is taken. A number fits a picture that is named so, as in COCO. A name that
        fits no picture by its folders fits the one of the same file name, if it is the only one.

        Args:
            image_set: the pictures, which are files.
            told: whether names that fit no picture are noticed.
        """
        exact: dict[str, list[str]] = defaultdict(list)
        for name in self.found:
            if isinstance(name, str):
                exact[_ending(name).casefold()].append(name)
        assert isinstance(image_set.images, FileImages)
        paths = [PurePosixPath(absolute(path)) for path in image_set.images.paths]
        pictures: dict[str | int, list[int]] = defaultdict(list)
        alone: dict[str, list[int]] = defaultdict(list)
        for row, path in enumerate(paths):
            wanted = (path.name.casefold(), path.stem.casefold())
            names = [name for ending in wanted for name in exact.get(ending, ())]
            fitting = [name for name in names if _fits(name, path)]
            if fitting:
                pictures[max(fitting, key=lambda name: (name.count("/"), len(name)))].append(row)
            elif path.stem.isdecimal() and len(path.stem) < 20 and int(path.stem) in self.found:
                pictures[int(path.stem)].append(row)
            for name in dict.fromkeys(names):
                alone[name].append(row)
        matched: dict[int, str | int] = {}
        for name, rows in pictures.items():
            own = [row for row in rows if str(name) in _names_of(image_set.ids[row])]
            if len(rows) > 1 and len(own) != 1:
                self.notices.add(
                    _AMBIGUOUS,
                    f"{self.path}: {shown(name)} may be any of {image_set.ids[rows[0]]}, "
                    f"{image_set.ids[rows[1]]}; its boxes are left out",
                )
                continue
            matched[own[0] if own else rows[0]] = name
        for name in self.found.keys() - pictures.keys():
            rows = [] if isinstance(name, int) else alone.get(name, [])
            same = [] if isinstance(name, int) else exact[_ending(name).casefold()]
            if len(rows) == len(same) == 1 and rows[0] not in matched:
                matched[rows[0]] = name
                self.notices.add(
                    _BY_NAME, f"{self.path}: {shown(name)} is taken as {image_set.ids[rows[0]]}"
                )
            elif told:
                line = f"{self.path}: no picture fits {shown(name)}; its boxes are left out"
                self.notices.add(_UNMATCHED, line)
        return matched

    def of(
        self, rows: dict[int, str | int], image_set: ImageSet, classes: Sequence[str]
    ) -> dict[int, Detections]:
        """The detections of pictures by row, in pixels of the pictures.

        Args:
            rows: the name here of each picture, by row.
            image_set: the pictures.
            classes: the model's; the labels are their indices.

        Raises:
            ValueError: see `make_targets`.
        """
        assert isinstance(image_set.images, FileImages)
        known = {name: index for index, name in enumerate(classes)}
        label_of = [known.get(name, -1) for name in self.classes]
        targets = make_targets(
            str(self.path),
            [
                PictureLabels(
                    image_set.images.paths[row],
                    # In place of a class, the number of the object: some may be left out.
                    [
                        LabelledBox(f"{self.path}{found.place}", number, found.box)
                        for number, found in enumerate(self.found[name])
                    ],
                    noted_size=self.sizes.get(name),
                    source=f"{self.path}: {shown(name)}",
                )
                for row, name in rows.items()
            ],
            self.notices,
            relative=self.relative,
        )
        detections = {}
        for (row, name), target in zip(rows.items(), targets, strict=True):
            kept = [self.found[name][number] for number in target.labels.tolist()]
            labels = [label_of[found.label] if found.label >= 0 else -1 for found in kept]
            scores = np.array([found.score for found in kept], np.float32)
            detections[row] = Detections(target.boxes, scores, np.array(labels, np.int64))
            for found, label in zip(kept, labels, strict=True):
                if label < 0 <= found.label:
                    line = f"{self.path}{found.place}: {shown(self.classes[found.label])}"
                    self.notices.add(_UNKNOWN, f"{line} is no class of the model")
        return detections


def _ending(name: str) -> str:
    return name.rpartition("/")[2]


def _fits(name: str, path: PurePosixPath) -> bool:
    """Whether a name is the end of a path, which may have a suffix that the name lacks."""
    if name.startswith("/"):
        return name in (str(path), str(path.with_suffix("")))
    parts = tuple(name.split("/"))
    if parts[:-1] != path.parts[len(path.parts) - len(parts) : -1]:
        return False
    if PurePosixPath(name).suffix.lower() in SUFFIXES:
        return parts[-1] == path.name
    return parts[-1].casefold() in (path.name.casefold(), path.stem.casefold())


def _names_of(image_id: str) -> tuple[str, str]:
    return image_id, str(PurePosixPath(image_id).with_suffix(""))


def _plain(name: str) -> str:
    """A name of a picture with slashes and without leading "./"."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return ("/" if name[:1] in "/\\" else "") + "/".join(parts)


# -- several files, or a function -----------------------------------------------------------------


class Boxes:
    """The boxes of the pictures of a collection, from files of detections; none is valid.

    Args:
        files: of which the first that has a picture counts.
        told: how many of the files are new: what they have and no picture fits is noticed.
        detector: finds the boxes of pictures that no file has; None finds none.
    """

    def __init__(
        self, files: Sequence[DetectionFile], *, told: int = 0, detector: Detector | None = None
    ) -> None:
        self.files = files
        self.detector = detector
        self._told = told

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of all files, each once."""
        return tuple(dict.fromkeys(name for file in self.files for name in file.classes))

    @property
    def looked_up_first(self) -> bool:
        """Whether `of` needs to know all pictures; otherwise only the detector is asked."""
        return bool(self.files) or self.detector is None

    def newly_given(self, image_set: ImageSet) -> set[str]:
        """Ids of the pictures that the new files have, if only without boxes; notices nothing."""
        found: set[str] = set()
        for file in self.files[: self._told]:
            silent = copy(file)
            silent.notices = Notices()
            found.update(image_set.ids[row] for row in silent.matched(image_set, told=False))
        return found

    def of(
        self, image_set: ImageSet, rows: Iterable[int], classes: Sequence[str]
    ) -> dict[int, Detections]:
        """The boxes in files of pictures by row, in pixels of the pictures.

        What is noticed is added to the set's notices: also pictures that no file has, unless there
        is a detector.

        Raises:
            ValueError: the pictures are no files, but there are files of boxes; or see
                `make_targets`.
        """
        if not self.looked_up_first:
            return {}
        if not isinstance(image_set.images, FileImages):
            raise ValueError(f"{image_set.name}: files of boxes need pictures that are files")
        left, found = dict.fromkeys(rows), dict[int, Detections]()
        for number, file in enumerate(self.files):
            matched = file.matched(image_set, told=number < self._told)
            own = {row: matched[row] for row in left if row in matched}
            found |= file.of(own, image_set, classes)
            left = {row: None for row in left if row not in own}
            file.notices.move_to(image_set.notices)
        for row in left if self.detector is None else ():
            line = f"{image_set.ids[row]}: no file has boxes of it; it is encoded without them"
            image_set.notices.add(_WITHOUT, line)
        return found


def detect(detector: Detector, image: Image) -> Detections:
    """What a function finds in a picture, checked; see `Detector`.

    Raises:
        ValueError: its boxes, scores or labels are of another form.
    """
    found = detector(image)
    if isinstance(found, Detections):
        found = (found.boxes, found.scores, found.labels)
    parts = found if isinstance(found, tuple) else (found,)
    boxes, scores, labels = (*parts, None, None)[:3]
    boxes = np.array(boxes, np.float32)
    if boxes.size == 0:
        return Detections.none()
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (*, 4), got {boxes.shape}")
    if not np.isfinite(boxes).all():
        raise ValueError("boxes must be finite")
    made = Detections(boxes, _scores(scores, len(boxes)), _labels(labels, len(boxes)))
    height, width = image.shape[:2]
    boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
    kept = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    return Detections(boxes[kept], made.scores[kept], made.labels[kept])


def _scores(scores: Any, n: int) -> Floats:
    found = np.ones(n, np.float32) if scores is None else np.array(scores, np.float32)
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError("scores must be in [0, 1]")
    return found


def _labels(labels: Any, n: int) -> Ints:
    found = np.full(n, -1) if labels is None else np.array(labels)
    if found.dtype.kind not in "iu" or (found < -1).any():
        raise ValueError("labels must be class indices from 0, or -1")
    return found.astype(np.int64)


# -- files ----------------------------------------------------------------------------------------


def read_detections(path: str | Path) -> DetectionFile:
    """The detections in a file or folder of another tool.

    - `.json`: COCO's results, a list of {"image_id" or "file_name", "bbox", "score", "category_id"
      or a name of the class}; or a COCO file whose annotations may have scores.
    - `.csv` or `.tsv`: a table as `read_csv` takes it; boxes may have a column score, and need no
      label.
    - a folder: YOLO's text files, `class cx cy w h [score]` in fractions of the picture; a file
      `classes.txt` gives the names of the classes.

    Raises:
        ValueError: it is of no such form, or a field is wrong; the message names file and field.
    """
    path = Path(path)
    with refusing(f"{path}: cannot read the detections"):
        is_folder, suffix = path.is_dir(), path.suffix.lower()
    if is_folder and suffix not in (".json", ".csv", ".tsv"):
        return _of_folder(path)
    if suffix == ".json":
        content = read_json(path, "the detections")
        return _of_results(path, content) if isinstance(content, list) else _of_coco(path, content)
    if suffix in (".csv", ".tsv"):
        return _of_table(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; {_FORMS}")
    raise ValueError(f"{path}: {_FORMS}")


def _score_of(source: str, record: dict[str, Any]) -> float:
    value = record.get("score", record.get("confidence"))
    try:
        return 1.0 if value is None else parse_score(value)
    except ValueError as error:
        raise ValueError(f"{source}: score {error}") from None


def _name(source: str, field: str, value: str) -> str:
    if not value.strip() or not is_text(value):
        raise ValueError(f"{source}: {field!r} is not a name: {shown(value)}")
    return value


def _of_results(path: Path, content: list[Any]) -> DetectionFile:
    """COCO's results: a list of detections."""
    file = DetectionFile(path)
    classes: dict[str, int] = {}
    for index, record in enumerate(content):
        place = f": [{index}]"
        source = f"{path}{place}"
        if not isinstance(record, dict):
            raise ValueError(f"{source} must be an object, got {shown(record)}")
        name: int | str
        if record.get("file_name") is None:
            if record.get("image_id") is None:
                raise ValueError(f"{source} needs 'image_id' or 'file_name'")
            name = id_of(source, record, "image_id")
            name = name if isinstance(name, int) else _plain(_name(source, "image_id", name))
        elif isinstance(record["file_name"], str):
            name = _plain(_name(source, "file_name", record["file_name"]))
        else:
            raise ValueError(f"{source} needs 'file_name' (str), got {shown(record['file_name'])}")
        label = -1
        given = next((field for field in _NAMES if isinstance(record.get(field), str)), None)
        if given is not None:
            text = plain_name(_name(source, given, record[given]), source, file.notices)
            label = classes.setdefault(text, len(classes))
        elif record.get("category_id") is not None:
            file.notices.add(_UNNAMED, f"{source}: category_id has no name here")
        try:
            box = box_of(record)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        file.found[name].append(_Found(place, label, box, _score_of(source, record)))
    file.classes = tuple(classes)
    return file


def _of_coco(path: Path, content: Any) -> DetectionFile:
    """A COCO file, with or without scores."""
    file = DetectionFile(path)
    images = records_of(path, content, "images", ("file_name",), file.notices)
    name_of: dict[int | str, str] = {}
    for index, image in images.items():
        name = _plain(image["file_name"])
        name_of[image["id"]] = name
        file.found[name]  # has boxes, if only none
        try:
            size = parse_size(image.get("height"), image.get("width"))
        except ValueError as error:
            raise ValueError(f"{path}: images[{index}]: {error}") from None
        if size:
            file.sizes.setdefault(name, size)
    annotations = annotations_of(path, content, file.notices)
    label_of: dict[int | str, int] = {}
    if content.get("categories") is not None:
        categories = records_of(path, content, "categories", ("name",), file.notices)
        used = {item["category_id"] for item in annotations.values()}
        file.classes, label_of = classes_of(path, categories, used, file.notices)
    for index, item in annotations.items():
        place = f": annotations[{index}]"
        source = f"{path}{place}"
        if item["image_id"] not in name_of:
            raise ValueError(f"{source}: no picture has the id {shown(item['image_id'])}")
        if file.classes and item["category_id"] not in label_of:
            raise ValueError(f"{source}: unknown category_id {shown(item['category_id'])}")
        try:
            box = box_of(item)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        label = label_of.get(item["category_id"], -1)
        if label < 0:
            file.notices.add(_UNNAMED, f"{source}: category_id has no name here")
        found = _Found(place, label, box, _score_of(source, item))
        file.found[name_of[item["image_id"]]].append(found)
    return file


def _of_table(path: Path) -> DetectionFile:
    file = DetectionFile(path)
    rows, file.relative = read_rows(path, file.notices, detections=True)
    file.classes = tuple(sorted({row.label for row in rows if row.label and row.box}))
    indices = {name: index for index, name in enumerate(file.classes)}
    for row in rows:
        found = file.found[_plain(row.image)]  # has boxes, if only none
        if row.size:
            file.sizes.setdefault(_plain(row.image), row.size)
        if row.box:
            place = row.source.removeprefix(str(path))
            found.append(_Found(place, indices.get(row.label, -1), row.box, row.score))
    return file


def _of_folder(path: Path) -> DetectionFile:
    """YOLO's text files; a leading folder `labels` is no part of the names."""
    file = DetectionFile(path)
    file.relative = True
    names = path / _CLASSES_FILE
    if os.path.lexists(names):  # a link to nowhere is an error
        lines = read_text(names, "the classes", most=_MOST_LABEL_BYTES).splitlines()
        while lines and not lines[-1].strip():
            lines.pop()
        file.classes = tuple(plain_name(line, str(names), file.notices) for line in lines)
        if "" in file.classes or len(set(file.classes)) < len(lines):
            raise ValueError(f"{names}: must have a name of a class per line, all different")
    with refusing(f"{path}: cannot read the detections"):
        texts = sorted(text for text in path.rglob("*.txt") if text != names)
    if not texts:
        raise ValueError(f"{path}: has no .txt file; {_FORMS}")
    for text in texts:
        relative = text.relative_to(path).with_suffix("")
        parts = relative.parts[1:] if relative.parts[0] == "labels" else relative.parts
        found = file.found["/".join(parts) or relative.name]
        lines = read_text(text, "the detections", most=_MOST_LABEL_BYTES).split("\n")
        for row, line in enumerate(lines, 1):
            if words := line.split():
                place = f"/{text.relative_to(path)}, line {row}"
                found.append(_of_line(place, f"{path}{place}", words, file))
    return file


def _of_line(place: str, source: str, words: list[str], file: DetectionFile) -> _Found:
    try:
        index, *values = map(float, words)
    except ValueError:
        raise ValueError(f"{source}: must be numbers, got {shown(' '.join(words[:9]))}") from None
    most = len(file.classes) or 10**6
    if not 0 <= index < most or not index.is_integer():
        names = f", as {file.path / _CLASSES_FILE} has it" if file.classes else ""
        raise ValueError(
            f"{source}: class index must be 0 to {most - 1}{names}, got {shown(words[0])}"
        )
    score = 1.0
    if len(values) == 5 or (len(values) > 6 and len(values) % 2):
        try:
            score = parse_score(values.pop())
        except ValueError as error:
            raise ValueError(f"{source}: score {error}") from None
    box = box_in_fractions(source, words, values)
    if not file.classes:
        file.notices.add(_UNNAMED, f"{source}: {file.path / _CLASSES_FILE} would give the names")
    return _Found(place, int(index) if file.classes else -1, box, score)
