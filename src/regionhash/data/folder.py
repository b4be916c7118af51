"""Pictures in a folder, without labels or with one label per subfolder."""

from __future__ import annotations

from pathlib import Path

from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages, find_images
from regionhash.data.notices import Notices
from regionhash.structures import Target


def read_folder(folder: str | Path, *, labelled: bool = False) -> ImageSet:
    """All pictures below a folder, sorted; ids are their paths relative to it.

    Args:
        folder: the folder; hidden files and links to folders are left out.
        labelled: whether the first subfolder on a picture's path is its label. Classes are then
            the subfolders with pictures, in alphabetical order; otherwise there are none.

    Raises:
        ValueError: the folder is missing or holds no picture, or, with `labelled`, a picture is
            not in a subfolder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing: it must be a folder of pictures")
    notices = Notices()
    ids, paths = zip(*find_images([folder], notices), strict=True)
    classes: tuple[str, ...] = ()
    targets = [Target.empty() for _ in ids]
    if labelled:
        for path in paths:
            if path.parent == folder:
                raise ValueError(f"{path} has no label: pictures must be in subfolders of {folder}")
        labels = [path.relative_to(folder).parts[0] for path in paths]
        classes = tuple(sorted(set(labels)))
        targets = [Target.empty([classes.index(label)]) for label in labels]
    return ImageSet(folder.resolve().name, classes, ids, FileImages(paths), tuple(targets), notices)
