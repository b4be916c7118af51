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
            Pictures that are not in a subfolder are left out with a notice.

    Raises:
        ValueError: the folder is missing or holds no picture, or, with `labelled`, no picture is
            in a subfolder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing: it must be a folder of pictures")
    notices = Notices()
    found = find_images([folder], notices)
    if labelled:
        stray = [path for _, path in found if path.parent == folder]
        found = [(image_id, path) for image_id, path in found if path.parent != folder]
        if not found:
            raise ValueError(f"{stray[0]} has no label: pictures must be in subfolders of {folder}")
        for path in stray:
            notices.add(
                "pictures without a label, left out",
                f"{path} has no label: it is not in a subfolder of {folder}; left out",
            )
    ids, paths = zip(*found, strict=True)
    classes: tuple[str, ...] = ()
    targets = [Target.empty() for _ in ids]
    if labelled:
        labels = [path.relative_to(folder).parts[0] for path in paths]
        classes = tuple(sorted(set(labels)))
        index_of = {name: index for index, name in enumerate(classes)}
        targets = [Target.empty([index_of[label]]) for label in labels]
    name = folder.resolve().name
    return ImageSet(name, classes, ids, FileImages(paths), tuple(targets), notices)
