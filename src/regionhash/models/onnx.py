"""Running the graphs that `regionhash convert` writes, with NumPy around them: no torch.

`regionhash.models.graphs` makes them and says what each of their outputs is.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from regionhash.data.frames import Frame, Pixels, to_pixels
from regionhash.data.image_set import Image
from regionhash.files.text import shown
from regionhash.models.checkpoints import (
    BOXES_GRAPH,
    ENCODE_GRAPH,
    GRAPH_FILES,
    Checkpoint,
    CheckpointError,
)
from regionhash.parts.choosing import RegionChoice, overlaps, thinned
from regionhash.parts.windows import windows_of_scales
from regionhash.precision import Precision
from regionhash.sessions import at_once, open_session
from regionhash.structures import (
    CategoryCodes,
    Codes,
    Detections,
    EncodedImage,
    Floats,
    Ints,
    Regions,
)

METADATA = "regionhash"
"""Key of a graph's metadata with the facts about its model, as JSON."""

GRAPH_FORMAT = 1

Outputs = dict[str, NDArray[Any]]


class GraphSession(Protocol):
    """A graph that can be run, by several threads at a time.

    Attributes:
        inputs, outputs: their names.
        metadata: texts in the file, by key.
    """

    inputs: list[str]
    outputs: list[str]
    metadata: Mapping[str, str]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Outputs:
        """Its outputs by name."""


class OnnxSession:
    """A graph that ONNX Runtime runs in float32; see `GraphSession`."""

    def __init__(self, content: bytes | Path, place: str) -> None:
        self._session = open_session(content, place, CheckpointError)
        self.inputs = [given.name for given in self._session.get_inputs()]
        self.outputs = [output.name for output in self._session.get_outputs()]
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Outputs:
        """Its outputs by name."""
        return dict(zip(self.outputs, self._session.run(self.outputs, inputs), strict=True))


class Graphs:
    """The graphs of one model. A session of each is opened when it is first needed, and kept.

    Args:
        contents: bytes or path of each file of graphs, by name.
        where: for messages.
        open_graph: opens a graph, which messages call by its second argument; raises
            CheckpointError if it cannot be run.
    """

    def __init__(
        self,
        contents: Mapping[str, bytes | Path],
        where: str = "the graph",
        open_graph: Callable[[bytes | Path, str], GraphSession] = OnnxSession,
    ) -> None:
        self._contents = dict(contents)
        self._where = where
        self._open = open_graph
        self._sessions: dict[str, GraphSession] = {}
        self._lock = threading.Lock()

    @classmethod
    def in_folder(
        cls,
        folder: Path,
        open_graph: Callable[[bytes | Path, str], GraphSession] = OnnxSession,
    ) -> Graphs:
        """Those in the folder of a checkpoint, as far as they are there."""
        found = {name: folder / name for name in GRAPH_FILES if (folder / name).is_file()}
        return cls(found, str(folder), open_graph)

    def __bool__(self) -> bool:
        return bool(self._contents)

    @property
    def names(self) -> list[str]:
        """Names of the files."""
        return list(self._contents)

    def place(self, name: str) -> str:
        """A graph, for messages."""
        content = self._contents.get(name)
        return str(content) if isinstance(content, Path) else f"{self._where}: {name}"

    def session(self, name: str) -> GraphSession:
        """The session of a graph.

        Raises:
            CheckpointError: the file is missing or is no graph that can be run.
        """
        with self._lock:
            if name not in self._sessions:
                if name not in self._contents:
                    raise CheckpointError(
                        f"{self._where}: has no {name}; run `regionhash convert` again"
                    )
                self._sessions[name] = self._open(self._contents[name], self.place(name))
            return self._sessions[name]

    def facts(self, name: str) -> dict[str, Any]:
        """What a graph says of its model.

        Raises:
            CheckpointError: see `session`; or it is a graph of another program.
        """
        text = self.session(name).metadata.get(METADATA)
        try:
            facts = json.loads(text or "")
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            raise CheckpointError(
                f"{self.place(name)}: not a graph that `regionhash convert` wrote"
            )
        return facts


class OnnxRuntime:
    """A model as its graphs; see `regionhash.models.runtime.Runtime`.

    Each picture is run by itself, several at once: their codes do not depend on each other. Threads
    may share it.

    Args:
        graphs: of the model.
        checkpoint: of the model.
        precision: in which the sessions of the graphs compute.

    Raises:
        CheckpointError: a graph is missing, damaged, or of another model.
    """

    threads_read = True

    def __init__(
        self, graphs: Graphs, checkpoint: Checkpoint, precision: Precision = "32-true"
    ) -> None:
        self._graphs, self._checkpoint, self.precision = graphs, checkpoint, precision
        self._decoder = _DECODERS[checkpoint.name](checkpoint.arguments)
        first = self._checked(self._decoder.first)
        self.n_bits: int = first["n_bits"]
        self.n_region_bits: int = first["n_region_bits"]
        self.shared_code_space: bool = first["shared_code_space"]
        self.takes_boxes = self._decoder.takes_boxes
        self._decoder.stride = first["stride"]
        self._known = {self._decoder.first}

    def prepare(self, image: Image, short: int) -> tuple[Pixels, Frame]:
        """The network's input of a picture, and the frame of its boxes."""
        return to_pixels(image, short)

    def encode(
        self, images: Sequence[Pixels], given: Sequence[Detections] | None = None
    ) -> list[EncodedImage]:
        """Codes of pictures (3, h, w) uint8; boxes in their pixels."""
        groups = given if given is not None and self.takes_boxes else [None] * len(images)
        return at_once(partial(self._decoder.encode, self._run), images, groups)

    def encode_boxes(self, images: Sequence[Pixels], boxes: Sequence[Floats]) -> list[Regions]:
        """Codes of given boxes of pictures: (R, 4) float32 each, xyxy in their pixels."""
        return at_once(partial(self._decoder.encode_boxes, self._run), images, boxes)

    def _run(self, name: str, image: Pixels, boxes: Floats | None = None) -> Outputs:
        """The outputs of a graph by name."""
        if name not in self._known:
            self._checked(name)
            self._known.add(name)
        session = self._graphs.session(name)
        inputs: dict[str, NDArray[Any]] = {"picture": np.ascontiguousarray(image[None])}
        if boxes is not None:
            inputs["boxes"] = np.ascontiguousarray(boxes, np.float32)
        return session.run(inputs)

    def _checked(self, name: str) -> dict[str, Any]:
        """The facts of a graph of this model. Raises CheckpointError for any other graph."""
        facts = self._graphs.facts(name)
        place = self._graphs.place(name)
        if facts.get("format") != GRAPH_FORMAT:
            raise CheckpointError(
                f"{place}: graph format {shown(facts.get('format'))}, this version of regionhash "
                f"reads {GRAPH_FORMAT}; run `regionhash convert` again"
            )
        wanted = self._checkpoint.model_hash
        if facts.get("model_hash") != wanted:
            raise CheckpointError(
                f"{place}: made from model {shown(facts.get('model_hash'))}, but model.json "
                f"describes {wanted}; run `regionhash convert` again, or remove the file"
            )
        numbers = [facts.get(key) for key in ("n_bits", "n_region_bits", "stride")]
        if not all(type(n) is int and 0 <= n <= 65_536 for n in numbers) or not numbers[2]:
            raise CheckpointError(f"{place}: its metadata is damaged")
        session = self._graphs.session(name)
        missing = self._decoder.outputs[name] - set(session.outputs)
        if missing or not set(session.inputs) <= {"picture", "boxes"} or facts.get("graph") != name:
            lacks = f": it lacks {', '.join(sorted(missing))}" if missing else ""
            raise CheckpointError(f"{place}: not the graph of a {self._checkpoint.name}{lacks}")
        return facts


# -- from outputs to records ----------------------------------------------------------------------

_Run = Callable[..., Outputs]


def _size(image: Pixels) -> tuple[int, int]:
    return (image.shape[1], image.shape[2])


def _whole(image: Pixels) -> Floats:
    """A box (1, 4) around a picture."""
    return np.array([[0, 0, image.shape[2], image.shape[1]]], np.float32)


def _regions(
    boxes: Floats, codes: Codes, scores: Floats | None = None, labels: Ints | None = None
) -> Regions:
    """Regions as a record; without scores they are 1, without labels -1."""
    n = len(boxes)
    return Regions(
        boxes,
        np.ones(n, np.float32) if scores is None else scores,
        np.full(n, -1, np.int64) if labels is None else labels,
        codes,
    )


class _Decoder:
    """From outputs of a model's graphs to records.

    Attributes:
        first: the graph that pictures need.
        outputs: what each graph must give.
        takes_boxes: whether regions are boxes that are given with a picture.
        stride: input pixels per cell of the backbone's last stage.
    """

    first = ENCODE_GRAPH
    outputs: ClassVar[dict[str, set[str]]]
    takes_boxes = False

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = arguments
        self.stride = 32

    def encode(self, run: _Run, image: Pixels, given: Detections | None = None) -> EncodedImage:
        """The codes of a picture."""
        raise NotImplementedError

    def encode_boxes(self, run: _Run, image: Pixels, boxes: Floats) -> Regions:
        """The codes of boxes."""
        if not len(boxes):
            n_bytes = self.n_code_bytes()
            return _regions(np.zeros((0, 4), np.float32), np.zeros((0, n_bytes), np.uint8))
        return self.describe(run, image, boxes)

    def n_code_bytes(self) -> int:
        """Bytes of a region's code."""
        return int(self.arguments["n_bits"]) // 8

    def describe(self, run: _Run, image: Pixels, boxes: Floats) -> Regions:
        """The codes of boxes, at least one."""
        raise NotImplementedError


class _RegionDH(_Decoder):
    outputs: ClassVar = {
        ENCODE_GRAPH: {"image_code", "class_probs", "boxes", "scores", "labels", "codes"},
        BOXES_GRAPH: {"scores", "labels", "codes"},
    }

    def n_code_bytes(self) -> int:
        return int(self.arguments.get("n_region_bits") or self.arguments["n_bits"]) // 8

    def encode(self, run: _Run, image: Pixels, given: Detections | None = None) -> EncodedImage:
        x = run(ENCODE_GRAPH, image)
        regions = Regions(x["boxes"], x["scores"], x["labels"], x["codes"])
        return EncodedImage(_size(image), x["image_code"], x["class_probs"], regions)

    def describe(self, run: _Run, image: Pixels, boxes: Floats) -> Regions:
        x = run(BOXES_GRAPH, image, boxes)
        return Regions(boxes, x["scores"], x["labels"], x["codes"])


class _DRH(_Decoder):
    outputs: ClassVar = {BOXES_GRAPH: {"codes"}, ENCODE_GRAPH: {"boxes", "scores", "codes"}}

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        names = [field.name for field in fields(RegionChoice)]
        self.choice = RegionChoice(**{name: arguments[name] for name in names if name in arguments})
        self.takes_boxes = self.choice.takes_boxes
        self.first = ENCODE_GRAPH if self.choice.proposals == "rpn" else BOXES_GRAPH

    def encode(self, run: _Run, image: Pixels, given: Detections | None = None) -> EncodedImage:
        size = _size(image)
        if self.choice.proposals == "rpn":
            x = run(ENCODE_GRAPH, image)
            kept = thinned(x["boxes"], self.choice.max_iou)
            regions = _regions(x["boxes"][kept], x["codes"][kept], x["scores"][kept])
        else:
            # The graph cuts boxes to cells; those of windows are whole cells.
            cells = (size[0] // self.stride, size[1] // self.stride)
            if given is None:
                chosen, _ = self.choice.of_map(*cells, size)
            else:
                chosen = self.choice.of_boxes(given, size, cells)
            codes = run(BOXES_GRAPH, image, chosen.boxes)["codes"]
            regions = _regions(chosen.boxes, codes, chosen.scores, chosen.labels)
        return EncodedImage(size, regions.codes[0], regions=regions)

    def describe(self, run: _Run, image: Pixels, boxes: Floats) -> Regions:
        return _regions(boxes, run(BOXES_GRAPH, image, boxes)["codes"])


class _WholePicture(_Decoder):
    """Of the models whose one region is the whole picture."""

    outputs: ClassVar = {ENCODE_GRAPH: {"codes"}, BOXES_GRAPH: {"codes"}}

    def encode(self, run: _Run, image: Pixels, given: Detections | None = None) -> EncodedImage:
        x = run(ENCODE_GRAPH, image)
        probs = x["probs"][0] if "probs" in x else None
        regions = self._described(_whole(image), x)
        return EncodedImage(_size(image), x["codes"][0], probs, regions)

    def describe(self, run: _Run, image: Pixels, boxes: Floats) -> Regions:
        return self._described(boxes, run(BOXES_GRAPH, image, boxes))

    def _described(self, boxes: Floats, x: Outputs) -> Regions:
        if "probs" not in x:
            return _regions(boxes, x["codes"])
        return _regions(boxes, x["codes"], x["probs"].max(1), x["probs"].argmax(1))


class _CategoryBaseline(_Decoder):
    outputs: ClassVar = {ENCODE_GRAPH: {"category_codes"}}

    def encode(self, run: _Run, image: Pixels, given: Detections | None = None) -> EncodedImage:
        codes = run(ENCODE_GRAPH, image)["category_codes"]
        certain = np.ones(len(codes), np.float32)
        categories = CategoryCodes(np.arange(len(codes), dtype=np.int64), certain, codes)
        return EncodedImage(_size(image), categories=categories)

    def encode_boxes(self, run: _Run, image: Pixels, boxes: Floats) -> Regions:
        raise ValueError("category-baseline has codes for the categories of whole pictures alone")


class _IAH(_Decoder):
    outputs: ClassVar = {
        ENCODE_GRAPH: {
            "image_code",
            "class_probs",
            "category_codes",
            "boxes",
            "region_probs",
            "region_codes",
        },
        BOXES_GRAPH: {"region_probs", "region_codes"},
    }

    def n_code_bytes(self) -> int:
        return -(-int(self.arguments["n_category_bits"]) // 8)

    def encode(self, run: _Run, image: Pixels, given: Detections | None = None) -> EncodedImage:
        x = run(ENCODE_GRAPH, image)
        probs = x["class_probs"]
        categories = np.flatnonzero(probs >= np.float32(self.arguments["threshold"]))
        rows, labels = self._keep(x["region_probs"], categories)
        regions = self._chosen(x["boxes"], x, rows, labels)
        found = CategoryCodes(categories, probs[categories], x["category_codes"][categories])
        return EncodedImage(_size(image), x["image_code"], probs, regions, found)

    def describe(self, run: _Run, image: Pixels, boxes: Floats) -> Regions:
        x = run(BOXES_GRAPH, image, boxes)
        return self._chosen(boxes, x, np.arange(len(boxes)), x["region_probs"].argmax(1))

    def _keep(self, probs: Floats, categories: Ints) -> tuple[Ints, Ints]:
        """Rows and categories of the regions to keep, best first; see `IAH.encode`."""
        n_kept = min(self.arguments["max_regions"], len(probs))
        if not len(categories):
            categories, n_kept = np.array([probs.max(0).argmax()]), 1
        rows = np.argsort(-probs[:, categories], axis=0, kind="stable")[:n_kept]  # (n, C)
        labels = np.broadcast_to(categories, rows.shape)
        order = np.argsort(-probs[rows, labels], axis=None, kind="stable")
        return rows.ravel()[order], labels.ravel()[order]

    def _chosen(self, boxes: Floats, x: Outputs, rows: Ints, labels: Ints) -> Regions:
        codes = x["region_codes"][rows, labels]
        return Regions(boxes[rows], x["region_probs"][rows, labels], labels.astype(np.int64), codes)


class _DMIH(_Decoder):
    outputs: ClassVar = {ENCODE_GRAPH: {"class_probs", "region_probs", "codes", "map_size"}}

    def encode(self, run: _Run, image: Pixels, given: Detections | None = None) -> EncodedImage:
        x = run(ENCODE_GRAPH, image)
        boxes = self._boxes(image, x)
        rows = self._select(x["region_probs"], boxes)
        regions = self._chosen(boxes[rows], x, rows)
        return EncodedImage(_size(image), class_probs=x["class_probs"], regions=regions)

    def describe(self, run: _Run, image: Pixels, boxes: Floats) -> Regions:
        x = run(ENCODE_GRAPH, image)
        windows = self._boxes(image, x)
        centres = (windows[:, :2] + windows[:, 2:]) / 2  # (M, 2)
        inside = (centres >= boxes[:, None, :2]) & (centres <= boxes[:, None, 2:])
        held = np.all(inside, axis=2)  # (R, M)
        best = np.where(held, x["region_probs"].max(1), np.float32(-1)).argmax(1)
        rows = np.where(np.any(held, axis=1), best, overlaps(boxes, windows).argmax(1))
        return self._chosen(boxes, x, rows)

    def _select(self, probs: Floats, boxes: Floats) -> Ints:
        """The hash bag, most probable first; see `DMIH.select`."""
        scores, labels = probs.max(1), probs.argmax(1)
        order = np.argsort(-scores, kind="stable")
        above = int((scores > np.float32(self.arguments["theta"])).sum())
        rows = order[: max(1, above)]
        if (merge := self.arguments["merge"]) is None:
            return rows
        kept: list[int] = []
        for row in rows.tolist():
            same = [other for other in kept if labels[other] == labels[row]]
            if not same or overlaps(boxes[[row]], boxes[same]).max() <= merge:
                kept.append(row)
        return np.array(kept, np.int64)

    def _boxes(self, image: Pixels, x: Outputs) -> Floats:
        """The windows' boxes in input pixels."""
        (height, width), (h, w) = _size(image), x["map_size"].tolist()
        pixels = np.array([width / w, height / h] * 2, np.float32)
        return windows_of_scales(h, w, self.arguments["n_scales"]) * pixels

    def _chosen(self, boxes: Floats, x: Outputs, rows: Ints) -> Regions:
        probs = x["region_probs"][rows]
        return _regions(boxes, x["codes"][rows], probs.max(1), probs.argmax(1))


_DECODERS: dict[str, type[_Decoder]] = {
    "region-dh": _RegionDH,
    "ssdh": _WholePicture,
    "dlbhc": _WholePicture,
    "control": _WholePicture,
    "iah": _IAH,
    "one-stage": _WholePicture,
    "dsrh": _WholePicture,
    "category-baseline": _CategoryBaseline,
    "drh": _DRH,
    "dmih": _DMIH,
}
