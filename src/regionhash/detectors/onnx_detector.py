"""A detector that is an ONNX graph, run with ONNX Runtime and NumPy."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Self

import numpy as np

from regionhash.data.frames import Frame, clip_boxes, fit_size, resize
from regionhash.data.image_set import Image
from regionhash.detectors.layout import (
    DEFAULT_SIDE,
    DetectorLayout,
    find_layout,
    read_outputs,
    run_detector,
)
from regionhash.detectors.settings import DetectorSettings
from regionhash.encoders.graph_file import read_graph
from regionhash.encoders.stored import sha256_of
from regionhash.files import strict_json
from regionhash.files.text import refusing
from regionhash.sessions import open_session
from regionhash.structures import Detections


class OnnxDetector:
    """Finds objects with a graph that gives boxes, scores and classes after suppression.

    It is a `regionhash.data.detections.Detector`, so `IndexSettings(boxes=OnnxDetector(file))`
    makes a collection of what it finds. The collection keeps a copy. Threads may share it.

    The input is a picture (1, 3, h, w) or (3, h, w) float32 or uint8, or the same with channels
    last. The picture is resized to the graph's size whatever its aspect; if the graph takes any
    size, to a short side of 640 in about its aspect. docs/drh.md has the outputs that are read, and
    the fields of the file `FILE.json` beside the graph, of which all may be missing.

    Example:
        detector = OnnxDetector("yolo11n.onnx")
        found = detector(image)
        print(found.boxes, [detector.classes[label] for label in found.labels])

    Args:
        path: the graph; weights in files beside it are taken in.
        min_score: least score of a detection, in [0, 1]; None is that of `FILE.json`, or .25.

    Attributes:
        classes: names of the classes, by the labels of detections; numbers from 0 to 99 if the
            graph has no names.
        asked_score: `min_score` as it was given.
        place: the graph, for messages.
        settings: see `DetectorSettings`; layout: see `DetectorLayout`.

    Raises:
        ValueError: the graph or the file beside it cannot be read, it takes anything but a picture,
            it cannot be run, or its outputs are not detections.
    """

    def __init__(self, path: str | Path, *, min_score: float | None = None) -> None:
        path = Path(path)
        self.place = str(path)
        self.asked_score = min_score
        self.graph: bytes | Path = read_graph(path)
        beside = Path(f"{path}.json")
        record = None
        if beside.exists():
            with refusing(str(beside)):
                record = strict_json.read_object(beside)
                DetectorSettings.from_record(record)
        self._lock = threading.Lock()
        self._session: Any = open_session(self.graph, self.place)
        with refusing(self.place):
            metadata = self._session.get_modelmeta().custom_metadata_map
            self.settings = DetectorSettings.of_graph(metadata, record, min_score)
            self.layout = find_layout(self._session, self.settings)
        self._take_names()

    @classmethod
    def of_parts(
        cls, graph: Path, settings: DetectorSettings, layout: DetectorLayout, place: str
    ) -> Self:
        """That of a stored graph, which is opened when it is first run."""
        detector = cls.__new__(cls)
        detector.place, detector.graph, detector.asked_score = place, graph, None
        detector.settings, detector.layout = settings, layout
        detector._lock, detector._session = threading.Lock(), None
        detector._take_names()
        return detector

    def _take_names(self) -> None:
        self.classes = self.settings.classes
        label_of = {name: label for label, name in enumerate(self.classes)}
        names = self.settings.names_or_numbers
        self._labels = {number: label_of[name] for number, name in names.items()}

    @property
    def sha256(self) -> str:
        """That of the graph with its weights, in hexadecimal."""
        return sha256_of(self.graph)

    @property
    def session(self) -> Any:
        """The session of the graph. Raises ValueError if ONNX Runtime cannot open it."""
        with self._lock:
            if self._session is None:
                self._session = open_session(self.graph, self.place)
            return self._session

    def __call__(self, image: Image) -> Detections:
        """The objects in a picture (H, W, 3) uint8: boxes in its pixels, clipped to it.

        Labels are indices into `classes`, or -1 for a number without a name.

        Raises:
            ValueError: the graph fails, or its outputs are of another form than at first.
        """
        size = (image.shape[0], image.shape[1])
        settings, layout = self.settings, self.layout
        short = min(settings.size or (DEFAULT_SIDE,))
        frame = Frame(size, layout.size or fit_size(*size, short, settings.stride))
        session = self.session
        with refusing(self.place):
            outputs = run_detector(session, layout, settings, resize(image, frame.input_size))
            found = read_outputs(outputs, layout, settings, frame.input_size)
        boxes = clip_boxes(frame.to_original(found.boxes), size)
        labels = np.array([self._labels.get(n, -1) for n in found.numbers.tolist()], np.int64)
        kept = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        return Detections(boxes[kept], found.scores[kept], labels[kept])
