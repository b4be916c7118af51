"""The detector of a collection: its graph, and what is known of it.

detector.json    settings, layout, size and sha256 of the graph
detector.onnx    the graph, in one file
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regionhash.detectors.layout import DetectorLayout
from regionhash.detectors.onnx_detector import OnnxDetector
from regionhash.detectors.settings import DetectorSettings
from regionhash.encoders.stored import sha256_of
from regionhash.files import strict_json
from regionhash.files.atomic import replacing, write_text
from regionhash.files.text import refusing, shown

RECORD_FILE = "detector.json"
GRAPH_FILE = "detector.onnx"
DETECTOR_FILES = (GRAPH_FILE, RECORD_FILE)
FORMAT = 1


def is_detector(folder: Path) -> bool:
    """Whether a folder has a detector, or part of one."""
    return any((folder / name).exists() for name in DETECTOR_FILES)


def write_detector(folder: Path, detector: OnnxDetector) -> None:
    """Writes a detector into a folder, replacing an older one.

    Raises:
        OSError: the disk refuses.
    """
    graph = detector.graph
    content = graph.read_bytes() if isinstance(graph, Path) else graph
    with replacing(folder / GRAPH_FILE) as new:
        new.write_bytes(content)
    record = {
        "format": FORMAT,
        "graph": {"bytes": len(content), "sha256": sha256_of(content)},
        "settings": detector.settings.to_record(),
        "layout": detector.layout.to_record(),
    }
    write_text(folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")


def read_detector(folder: Path) -> OnnxDetector:
    """The detector in a folder, all of whose bytes are checked.

    Raises:
        ValueError: a file is missing, damaged or of another version, or the graph is not the one
            that detector.json describes. The message is one line and names the file.
    """
    path, graph = folder / RECORD_FILE, folder / GRAPH_FILE
    with refusing(str(path)):
        record = strict_json.read_object(path)
        if record.get("format") != FORMAT:
            raise ValueError(
                f"detector format {shown(record.get('format'))}, this version of regionhash reads "
                f"{FORMAT}"
            )
        facts: dict[str, Any] = strict_json.field(record, "graph", dict)
        n_bytes = strict_json.whole_number(facts, "bytes", 1, 1 << 31)
        sha256 = strict_json.field(facts, "sha256", str)
        settings = DetectorSettings.from_record(strict_json.field(record, "settings", dict))
        layout = DetectorLayout.from_record(strict_json.field(record, "layout", dict))
    with refusing(str(graph)):
        found = graph.stat().st_size
        if found != n_bytes:
            raise ValueError(f"{found:,} bytes, but {RECORD_FILE} says {n_bytes:,}")
        if sha256_of(graph) != sha256:
            raise ValueError(f"not the file that {RECORD_FILE} describes: another sha256")
    return OnnxDetector.of_parts(graph, settings, layout, str(graph))


def check_detector(folder: Path) -> str | None:
    """What is wrong with the detector in a folder, in a line; None if nothing is."""
    try:
        read_detector(folder)
    except ValueError as error:
        return str(error)
    return None
