"""What gives the boxes of a collection's pictures: files that it was given, and a detector.

`boxes.json` in the collection's folder lists the absolute paths of the files, the newest first. The
files stay where they are and are read again for new and changed pictures. The detector is in the
folder; it finds the boxes of pictures that no file has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from regionhash.files import strict_json
from regionhash.files.atomic import locked_folder, write_text
from regionhash.files.names import absolute
from regionhash.files.text import refusing, shown

if TYPE_CHECKING:
    from regionhash.data.detections import Boxes, Detector
    from regionhash.data.notices import Notices
    from regionhash.detectors import OnnxDetector
    from regionhash.models.checkpoints import Checkpoint
    from regionhash.models.runtime import Runtime

BOXES_FILE = "boxes.json"

_MISSING = "files of boxes that cannot be read, their pictures have none"


def boxes_of(
    folder: Path,
    model: Runtime,
    given: str | Path | Boxes | Detector | None,
    notices: Notices,
    detector: Detector | None = None,
) -> Boxes | Detector | None:
    """What gives the boxes of new pictures; None if the model takes none.

    Args:
        folder: the collection's.
        model: the collection's.
        given: a further file, which is recorded and comes first; or what gives all boxes.
        notices: is told of recorded files that cannot be read.
        detector: the collection's.

    Raises:
        ValueError: the model takes no boxes but some are given; the given file cannot be used; or
            `boxes.json` is damaged.
    """
    from regionhash.data.detections import Boxes, read_detections

    if not model.takes_boxes:
        if given is None:
            return None
        raise ValueError(
            f"{folder}: its model takes no boxes; `regionhash index --proposals boxes:FILE` makes "
            "one that does"
        )
    if given is not None and not isinstance(given, str | Path):
        return given
    recorded, files = recorded_files(folder), []
    if given is not None:
        files.append(read_detections(given))
        new = absolute(given)
        recorded = [path for path in recorded if path != new]
        _record(folder, [new, *recorded])
    for path in recorded:
        try:
            files.append(read_detections(path))
        except ValueError as error:
            notices.add(_MISSING, f"{error}; pictures that only it has boxes of have none")
    return Boxes(files, told=given is not None, detector=detector)


def detector_in(folder: Path, checkpoint: Checkpoint) -> OnnxDetector | None:
    """The detector in the folder of a collection; None if it was made without one.

    Args:
        folder: the collection's.
        checkpoint: of its model, which records the sha256 of the detector that it was made with.

    Raises:
        ValueError: it is missing, damaged, or another one. The message is one line and names the
            file.
    """
    from regionhash.detectors import DETECTOR_FILES, is_detector, read_detector

    recorded = recorded_detector(checkpoint)
    if recorded is None and not is_detector(folder):
        return None
    detector = read_detector(folder)
    if detector.sha256 != recorded:
        raise ValueError(
            f"{folder / DETECTOR_FILES[0]}: not the detector that the collection was made with: "
            "another sha256"
        )
    return detector


def recorded_detector(checkpoint: Checkpoint) -> str | None:
    """The sha256 of the detector that a model was made with; None without one."""
    record = checkpoint.provenance.get("detector")
    return str(record.get("sha256")) if isinstance(record, dict) else None


def recorded_files(folder: Path) -> list[Path]:
    """The files that a collection was given, the newest first.

    Raises:
        ValueError: `boxes.json` is damaged.
    """
    path = folder / BOXES_FILE
    with refusing(f"{path}: cannot read the list of files of boxes"):
        try:
            record = strict_json.read_object(path)
        except FileNotFoundError:
            return []
        files = strict_json.field(record, "files", list)
        for file in files:
            if type(file) is not str or not file.startswith("/") or "\0" in file:
                raise ValueError(f"files must be absolute paths, got {shown(file)}")
        return [*map(Path, files)]


def _record(folder: Path, files: list[Path]) -> None:
    with locked_folder(folder):
        text = json.dumps({"files": [*map(str, files)]}, indent=2)
        write_text(folder / BOXES_FILE, text + "\n")
