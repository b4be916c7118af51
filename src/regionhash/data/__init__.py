"""Data sets: one reader per layout, and the form in which commands name them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from regionhash.data.coco import read_coco
from regionhash.data.csv_table import read_csv
from regionhash.data.digits import digit_scenes
from regionhash.data.folder import read_folder
from regionhash.data.ilsvrc import read_ilsvrc
from regionhash.data.image_set import ImageSet
from regionhash.data.mirflickr import read_mirflickr
from regionhash.data.sival import read_sival
from regionhash.data.voc import read_voc


@dataclass(frozen=True)
class Layout:
    """A layout of labelled or unlabelled pictures on disk.

    Attributes:
        form: what follows the layout's name and a colon; a part in brackets is optional.
        summary: a one-line description.
        read: takes the parts of the form as strings; raises ValueError for missing or broken data.
        numbers: which parts are whole numbers.
    """

    form: str
    summary: str
    read: Callable[..., ImageSet]
    numbers: tuple[int, ...] = ()

    def fits(self, parts: Sequence[str]) -> bool:
        """Whether the parts of a name have this form."""
        least, most = (form.count(":") + 1 for form in (self.form.partition("[")[0], self.form))
        return (
            least <= len(parts) <= most
            and all(parts)
            and all(parts[index].isdecimal() for index in self.numbers if index < len(parts))
        )


def _digits(split: str, n: str, seed: str = "0") -> ImageSet:
    return digit_scenes(split, int(n), seed=int(seed))


LAYOUTS = {
    "voc": Layout(
        "ROOT:SPLIT",
        "PASCAL VOC layout; ROOT holds JPEGImages, Annotations and ImageSets",
        read_voc,
    ),
    "coco": Layout(
        "IMAGES_DIR:ANNOTATIONS.json",
        "COCO layout; the JSON file holds the instances",
        read_coco,
    ),
    "csv": Layout(
        "FILE[:IMAGES_DIR]",
        "a table image,label[,x0,y0,x1,y1] with one row per object",
        read_csv,
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
    ),
}
"""The layouts that `open_dataset` reads, by the name before the first colon."""


def forms() -> dict[str, str]:
    """Each form in which a data set is named, with a one-line description."""
    return {f"{name}:{layout.form}": layout.summary for name, layout in LAYOUTS.items()}


def open_dataset(spec: str) -> ImageSet:
    """The image set named by `spec` in one of the forms of `LAYOUTS`.

    Raises:
        ValueError: `spec` has no such form, or the data is missing or broken.
    """
    name, _, rest = spec.partition(":")
    layout, parts = LAYOUTS.get(name), rest.split(":")
    if layout is not None and layout.fits(parts):
        return layout.read(*parts)
    known = "\n".join(f"  {form}  {summary}" for form, summary in forms().items())
    raise ValueError(f"{spec!r} names no data set; the forms are\n{known}")
