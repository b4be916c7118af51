"""Data sets: one reader per layout, and the form in which commands name them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from regionhash.data.coco import read_coco
from regionhash.data.csv_table import read_csv
from regionhash.data.digits import digit_scenes
from regionhash.data.folder import read_folder
from regionhash.data.ilsvrc import read_ilsvrc
from regionhash.data.image_set import ImageSet
from regionhash.data.mirflickr import read_mirflickr
from regionhash.data.sival import read_sival
from regionhash.data.voc import FROM_DATA, parse_classes, read_voc
from regionhash.data.yolo import read_yolo


@dataclass(frozen=True)
class Layout:
    """A layout of labelled or unlabelled pictures on disk.

    Attributes:
        form: what follows the layout's name and a colon; a part in brackets is optional.
        summary: a one-line description.
        read: takes the parts of the form as strings, and `relative` if the form has it; raises
            ValueError for missing or broken data.
        numbers: which parts are whole numbers.
        paths: which parts may be files or folders; folder: which optional one is a folder.
        words: parts that are no files, even if there is one of that name.
    """

    form: str
    summary: str
    read: Callable[..., ImageSet]
    numbers: tuple[int, ...] = ()
    paths: tuple[int, ...] = (0,)
    folder: int | None = None
    words: tuple[str, ...] = ()

    def split(self, parts: Sequence[str]) -> tuple[Sequence[str], dict[str, bool]]:
        """The parts of a name without the word `relative`, and the options of `read`.

        A folder that is named so is a folder, if the form takes one there.
        """
        if not self.form.endswith(f"[:{RELATIVE}]") or len(parts) < 2 or parts[-1] != RELATIVE:
            return parts, {}
        if len(parts) - 1 == self.folder and Path(RELATIVE).is_dir():
            return parts, {}
        return parts[:-1], {RELATIVE: True}

    def fits(self, parts: Sequence[str]) -> bool:
        """Whether the parts of a name, without the word `relative`, have this form."""
        form = self.form.removesuffix(f"[:{RELATIVE}]")
        least, most = (text.count(":") + 1 for text in (form.partition("[")[0], form))
        return (
            least <= len(parts) <= most
            and all(parts)
            and all(parts[index].isdecimal() for index in self.numbers if index < len(parts))
        )


RELATIVE = "relative"
"""The last part of a name, if boxes are fractions of the picture."""


def _voc(root: str, split: str, classes: str | None = None, *, relative: bool = False) -> ImageSet:
    names = None if classes is None else parse_classes(classes)
    return read_voc(root, split, classes=names, relative=relative)


def _digits(split: str, n: str, seed: str = "0") -> ImageSet:
    return digit_scenes(split, int(n), seed=int(seed))


LAYOUTS = {
    "voc": Layout(
        "ROOT:SPLIT[:CLASSES][:relative]",
        "PASCAL VOC layout; ROOT holds JPEGImages, Annotations and ImageSets; CLASSES is data (the "
        "names that occur), a file or a,b,c",
        _voc,
        paths=(0, 2),
        words=(FROM_DATA,),
    ),
    "coco": Layout(
        "IMAGES_DIR:ANNOTATIONS.json[:relative]",
        "COCO layout; the JSON file holds the instances",
        read_coco,
        paths=(0, 1),
    ),
    "csv": Layout(
        "FILE[:IMAGES_DIR][:relative]",
        "a table image,label[,x0,y0,x1,y1] with one row per object; relative: boxes are fractions",
        read_csv,
        paths=(0, 1),
        folder=1,
    ),
    "yolo": Layout(
        "DATA.yaml:SPLIT",
        "Ultralytics YOLO layout; the YAML file names the folders of train, val and test",
        read_yolo,
    ),
    "mirflickr": Layout(
        "ROOT",
        "MIRFLICKR-25K; ROOT holds im1.jpg, ... and the folder of annotations",
        read_mirflickr,
    ),
    "folder": Layout("DIR", "all pictures below a folder, without labels", read_folder),
    "labelled-folder": Layout(
        "DIR",
        "pictures in subfolders, whose names are the labels",
        partial(read_folder, labelled=True),
    ),
    "sival": Layout("DIR", "SIVAL layout: a folder for each of the 25 categories", read_sival),
    "ilsvrc": Layout(
        "ROOT:SPLIT",
        "ILSVRC 2013 detection layout; ROOT holds ILSVRC2013_DET_bbox_<SPLIT>",
        read_ilsvrc,
    ),
    "digits": Layout(
        "SPLIT:N[:SEED]",
        "N built-in scenes of handwritten digits, train or test; no files",
        _digits,
        numbers=(1, 2),
        paths=(),
    ),
}
"""The layouts that `open_dataset` reads, by the name before the first colon."""


def forms() -> dict[str, str]:
    """Each form in which a data set is named, with a one-line description."""
    return {f"{name}:{layout.form}": layout.summary for name, layout in LAYOUTS.items()}


def parse_spec(spec: str) -> tuple[str, list[str]]:
    r"""The layout and the parts of a data set's name, which colons separate.

    A colon in a part is written `\:`, and so is a backslash before a colon; other backslashes are
    themselves.
    """
    name, _, rest = spec.partition(":")
    parts = [""]
    for backslashes, end in re.findall(r"(\\*)([^\\]|$)", rest):
        if end != ":":
            parts[-1] += backslashes + end
            continue
        parts[-1] += backslashes[: len(backslashes) // 2]
        if len(backslashes) % 2:
            parts[-1] += ":"
        else:
            parts.append("")
    return name, parts


def write_spec(name: str, parts: Sequence[str]) -> str:
    """The inverse of `parse_spec`."""
    escaped = [re.sub(r"(\\*):", r"\1\1\\:", part) for part in parts]
    escaped[:-1] = [re.sub(r"(\\+)$", r"\1\1", part) for part in escaped[:-1]]
    return ":".join([name, *escaped])


def open_dataset(spec: str) -> ImageSet:
    """The image set named by `spec` in one of the forms of `LAYOUTS`.

    Raises:
        ValueError: `spec` has no such form, or the data is missing or broken.
    """
    name, parts = parse_spec(spec)
    layout = LAYOUTS.get(name)
    if layout is not None:
        given, options = layout.split(parts)
        if layout.fits(given):
            return layout.read(*given, **options)
    known = "\n".join(f"  {form}  {summary}" for form, summary in forms().items())
    raise ValueError(
        f"{spec!r} names no data set; the forms are\n{known}\nA colon in a file name is written \\:"
    )
