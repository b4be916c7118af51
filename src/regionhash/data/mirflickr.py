"""The layout of MIRFLICKR-25K (Huiskes and Lew, MIR 2008): one list of pictures per label."""

from __future__ import annotations

from pathlib import Path

from regionhash.data.image_set import ImageSet
from regionhash.data.images import FileImages
from regionhash.files.text import read_text, shown
from regionhash.structures import Target

_DIGITS = 18  # of a picture's number; Python reads at most 4300

ANNOTATIONS = ("annotations", "mirflickr25k_annotations_v080")


def read_mirflickr(root: str | Path) -> ImageSet:
    """The pictures im1.jpg, im2.jpg, ... of a folder with their labels, without boxes.

    The annotations are files `<label>.txt` with one picture number per line, in a folder with one
    of the names `ANNOTATIONS`, in `root` or next to it. A label's strict list, `<label>_r1.txt`, is
    a separate label: 24 wide and 14 strict lists make the papers' 38 classes. Pictures without a
    label are part of the set; numbers of missing pictures are ignored.

    Raises:
        ValueError: there is no picture or no annotation, or a list cannot be read or has a line
            that is not a number.
    """
    root = Path(root)
    numbers = sorted(
        int(path.stem[2:]) for path in root.glob("im*.jpg") if path.stem[2:].isdecimal()
    )
    folders = [base / name for base in (root, root.parent) for name in ANNOTATIONS]
    folder = next(filter(Path.is_dir, folders), None)
    if not numbers or folder is None:
        raise ValueError(
            f"{root} must hold im1.jpg, im2.jpg, ... and, in it or next to it, a folder "
            f"{' or '.join(ANNOTATIONS)} with a file <label>.txt for every label"
        )
    lists = sorted(
        path
        for path in folder.glob("*.txt")
        if path.stem.lower() != "readme" and not path.name.startswith(".")  # "._x" of macOS
    )
    if not lists:
        raise ValueError(f"{folder} holds no file <label>.txt")
    labels: dict[int, list[int]] = {number: [] for number in numbers}
    for label, path in enumerate(lists):
        for number in _numbers(path):
            if number in labels:
                labels[number].append(label)
    ids = [f"im{number}" for number in numbers]
    return ImageSet(
        name=root.name,
        classes=tuple(path.stem for path in lists),
        ids=tuple(ids),
        images=FileImages([root / f"{image_id}.jpg" for image_id in ids]),
        targets=tuple(Target.empty(labels[number]) for number in numbers),
    )


def _numbers(path: Path) -> list[int]:
    numbers = set()
    for row, line in enumerate(read_text(path, "the list").split("\n"), 1):
        number = line.strip()
        if not number:
            continue
        if not number.isdecimal() or len(number) > _DIGITS:
            raise ValueError(
                f"{path}, line {row}: must be the number of a picture, got {shown(line)}"
            )
        numbers.add(int(number))
    return sorted(numbers)
