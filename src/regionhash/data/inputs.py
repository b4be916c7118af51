"""The pictures that a command takes, and those of a code file, found again to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from regionhash.data import LAYOUTS, open_dataset, parse_spec, write_spec
from regionhash.data.image_set import Image, ImageSet
from regionhash.data.images import FileImages, ImageError, find_images, read_image
from regionhash.data.notices import Notices
from regionhash.files.names import absolute, path_of, shown_name
from regionhash.files.text import read_text
from regionhash.structures import Target

Source = dict[str, str]
"""Where pictures are, as recorded in a code file: {"folder": ..., "suffix": ...} means that picture
`id` is the file `folder / (id + suffix)`; {"data": ...} names a data set without files."""


def open_inputs(inputs: Sequence[str]) -> tuple[ImageSet, Source]:
    """The pictures named by `inputs`, and where they are.

    Args:
        inputs: as for `find_images`, or one data set in a form of `LAYOUTS`. Of several inputs, a
            `*.txt` file that lists no file, such as one of YOLO's labels, is left out.

    Raises:
        ValueError: an input is missing, or holds no picture.
    """
    data_sets = [given for given in inputs if _names_data_set(given)]
    if not data_sets:
        notices = Notices()
        ids, paths = zip(*find_images(_without_notes(inputs, notices), notices), strict=True)
        # All pictures without labels share one target: a million cost no more than their names.
        targets = (Target.empty(),) * len(ids)
        image_set = ImageSet(" ".join(inputs), (), ids, FileImages(paths), targets, notices)
    elif len(inputs) == 1:
        image_set = open_dataset(inputs[0])
    else:
        raise ValueError(f"{data_sets[0]}: a data set must be the only input")
    return image_set, _source(image_set, inputs[0])


def _without_notes(inputs: Sequence[str], notices: Notices) -> Sequence[str]:
    """The inputs without text files that came along with pictures, as `photos/*` gives them."""
    notes = [given for given in inputs if _is_note(given)]
    if len(notes) == len(inputs):
        return inputs
    for given in notes:
        notices.add(
            "text files that list no picture, left out",
            f"{given}: no line names a file; left out; to take it as a list, write @{given}",
        )
    left_out = set(notes)
    return [given for given in inputs if given not in left_out]


def _is_note(given: str) -> bool:
    """Whether an input is a text file without a line that names a file."""
    path = Path(given)
    if given.startswith("@") or path.suffix.lower() != ".txt" or not path.is_file():
        return False
    try:
        lines = read_text(path, "the list").splitlines()
        return not any((path.parent / line).is_file() for line in map(str.strip, lines) if line)
    except (OSError, ValueError):  # a name that is too long, or no text
        return True


def absolute_inputs(inputs: Sequence[str]) -> list[str]:
    """Inputs for `open_inputs` that do not depend on the working directory."""
    return [_absolute(given) for given in inputs]


def _absolute(given: str) -> str:
    if given.startswith("@"):
        return f"@{absolute(given[1:])}"
    if not _names_data_set(given):
        return str(absolute(given))
    name, parts = parse_spec(given)
    layout = LAYOUTS[name]
    kept, _ = layout.split(parts)
    for place in layout.paths:
        if place < len(kept) and kept[place] not in layout.words and Path(kept[place]).exists():
            parts[place] = str(absolute(kept[place]))
    return write_spec(name, parts)


def class_indices(image_set: ImageSet, classes: Sequence[str]) -> list[int]:
    """The index of each class of a set among the `classes` of a model.

    Raises:
        ValueError: the model does not know a class.
    """
    unknown = [name for name in image_set.classes if name not in classes]
    if unknown:
        raise ValueError(
            f"{image_set.name}: the model does not know the classes {', '.join(unknown)}; "
            f"it knows {', '.join(classes)}"
        )
    return [classes.index(name) for name in image_set.classes]


def file_of_id(image_id: str, source: Source, folder: Path | None = None) -> Path:
    """Where the file of a picture is, in the folder of its source or in another one."""
    return (folder or Path(source["folder"])) / path_of(image_id + source["suffix"])


class Pictures:
    """The pictures of a code file, found again by their ids.

    Args:
        sources: from the code file's `meta`.
        folder: where to look instead of the folders that were recorded.
    """

    def __init__(self, sources: Sequence[Source], folder: Path | None = None) -> None:
        self.sources = sources
        self.folder = folder

    def __getitem__(self, image_id: str) -> Image:
        """The picture. Raises ImageError if it is not found or cannot be read."""
        for source in self.sources:
            if "data" in source:
                scenes = _opened(source["data"])
                if image_id in scenes.ids:
                    image: Image = scenes.images[scenes.ids.index(image_id)]
                    return image
            else:
                path = file_of_id(image_id, source, self.folder)
                if path.is_file():
                    return read_image(path)
        raise ImageError(f"{image_id}: the picture is no longer where it was")


_opened = cache(open_dataset)


def _names_data_set(given: str) -> bool:
    return given.partition(":")[0] in LAYOUTS and ":" in given and not Path(given).exists()


def _source(image_set: ImageSet, given: str) -> Source:
    if not isinstance(image_set.images, FileImages):
        return {"data": given}
    # In every layout the paths differ only in the id, so one of them describes all.
    for image_id, path in zip(image_set.ids, image_set.images.paths, strict=True):
        folder, found, suffix = shown_name(path.absolute()).rpartition(image_id)
        if found and folder:
            ending = "/" if folder.endswith("/") and folder != "/" else ""
            return {"folder": path_of(folder).as_posix() + ending, "suffix": suffix}
    return {"folder": Path.cwd().as_posix(), "suffix": ""}  # ids are absolute paths
