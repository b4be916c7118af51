"""From pictures to codes: a model over many pictures, or over one query picture."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from regionhash.data.batches import batches_of_one_shape
from regionhash.data.detections import Boxes, Detector, detect
from regionhash.data.frames import Frame, Pixels, clip_boxes
from regionhash.data.image_set import Image, ImageSet
from regionhash.data.images import (
    FileImages,
    FileVersion,
    ImageError,
    read_with_note,
)
from regionhash.data.inputs import Source, class_indices, open_inputs
from regionhash.data.remote import RemoteImages
from regionhash.models.checkpoints import Checkpoint, provenance
from regionhash.models.runtime import Runtime, RuntimeName, load_runtime, runtime_of
from regionhash.models.runtime import pick_device as pick_device
from regionhash.precision import (
    Precision,
    PrecisionName,
    check_precision,
    check_same_precision,
)
from regionhash.reporter import SILENT, Reporter
from regionhash.store import CodeFileWriter, CodeSet
from regionhash.structures import Detections, EncodedImage, Floats, Regions

if TYPE_CHECKING:
    from regionhash.models import HashModel

_WINDOW = 8
"""Batches whose pictures are sorted by shape; a kill loses the work on at most this many."""

_AHEAD_BYTES = 32 << 20
"""Size of decoded pictures waiting in shared memory; containers often have only 64 MiB of it."""


class ImageWriter(Protocol):
    """What takes the codes of pictures: a `CodeFileWriter`, or a collection."""

    def add(self, image_id: str, encoded: EncodedImage, labels: Sequence[int] | None) -> None:
        """Stores one picture."""


class Rows(Protocol):
    """Rows of pictures to encode, which may be found as they are asked for; asked for once."""

    def __iter__(self) -> Iterator[int]: ...

    def __len__(self) -> int:
        """How many there are, as far as is known."""


@dataclass(frozen=True)
class EncodingReport:
    """Result of one run.

    Attributes:
        n_encoded: pictures encoded now.
        n_stored_before: pictures that the code file already had.
        skipped: id and reason of each picture that could not be read.
        seconds: wall time; model_seconds: the part spent in the model.
        noticed: what was put right or left out, counted by kind.
    """

    n_encoded: int
    n_stored_before: int
    skipped: dict[str, str]
    seconds: float
    model_seconds: float
    noticed: dict[str, int] = field(default_factory=dict)


def encode(
    model_folder: str | Path,
    inputs: Sequence[str],
    output: str | Path,
    *,
    batch_size: int = 8,
    workers: int = 1,
    precision: PrecisionName = "auto",
    device: str = "auto",
    runtime: RuntimeName = "auto",
    reporter: Reporter = SILENT,
) -> EncodingReport:
    """Hashes pictures into a code file, except those it already holds.

    Args:
        model_folder: folder of a trained model.
        inputs: see `regionhash.data.inputs.open_inputs`.
        output: the code file.
        batch_size: pictures per batch of the model.
        workers: processes that read pictures.
        precision: of the network, see `load_runtime`; that of a file that is there, which "auto"
            takes, is kept.
        device: see `pick_device`.
        runtime: see `load_runtime`.
        reporter: is told the pictures done and their total, and those that cannot be read.

    Raises:
        ValueError: no model, no picture, or a file of another model or precision.
        StoreError: see `CodeFileWriter`.
    """
    if Path(output).exists():
        recorded = CodeSet.open(output).recorded("precision")
        check_same_precision(output, recorded, precision)
        precision = recorded
    model, checkpoint = load_runtime(
        Path(model_folder), device=device, runtime=runtime, precision=precision
    )
    image_set, source = open_inputs(inputs)
    return encode_set(
        model,
        checkpoint,
        image_set,
        output,
        checkpoint_path=Path(model_folder),
        source=source,
        precision=model.precision,
        batch_size=batch_size,
        workers=workers,
        reporter=reporter,
    )


def encode_set(
    model: HashModel | Runtime,
    checkpoint: Checkpoint,
    image_set: ImageSet,
    path: str | Path,
    *,
    checkpoint_path: Path,
    precision: Precision = "32-true",
    source: Source | None = None,
    **options: Any,
) -> EncodingReport:
    """Encodes into the code file `path` the pictures of a set that it does not hold yet.

    What search needs to know besides stands in the file's `meta`: "checkpoint" (its absolute path),
    "precision", "sources" (where the pictures lie, those of a file that is added to before the new
    one) and "provenance". For `options` see `encode_images`.

    Raises:
        ValueError: the file holds codes of another precision; see also `encode_images`.
        StoreError: see `CodeFileWriter`.
    """
    check_precision(precision)
    sources = [] if source is None else [source]
    if Path(path).exists():
        there = CodeSet.open(path)
        if there.model_hash == checkpoint.model_hash:
            check_same_precision(path, there.recorded("precision"), precision)
        sources = [
            *there.recorded("sources"),
            *(new for new in sources if new not in there.recorded("sources")),
        ]
    with CodeFileWriter(
        path,
        model_hash=checkpoint.model_hash,
        model_name=checkpoint.name,
        classes=checkpoint.classes,
        n_bits=model.n_bits,
        n_region_bits=model.n_region_bits,
        meta={
            "checkpoint": str(checkpoint_path.absolute()),
            "precision": precision,
            "sources": sources,
            "provenance": provenance(),
        },
    ) as writer:
        rows = [row for row, image_id in enumerate(image_set.ids) if image_id not in writer.done]
        report = encode_images(
            model, checkpoint, image_set, writer, rows, precision=precision, **options
        )
        writer.finish()
    return report


def encode_images(
    model: HashModel | Runtime,
    checkpoint: Checkpoint,
    image_set: ImageSet,
    writer: ImageWriter,
    rows: Rows,
    *,
    batch_size: int = 8,
    workers: int = 1,
    precision: Precision = "32-true",
    reporter: Reporter = SILENT,
    on_file: Callable[[str, FileVersion], None] | None = None,
    boxes: Boxes | Detector | None = None,
) -> EncodingReport:
    """Encodes pictures of a set.

    Pictures are read and resized by other processes while the model works, as a stream: memory does
    not grow with their number. Unreadable pictures are skipped. If the set has classes, the labels
    of its pictures (without difficult objects) are stored with their codes.

    Other pictures affect a code only by rounding, and with `batch_size` 1 not at all, so a run that
    was interrupted and resumed gives the same file, byte for byte.

    Args:
        model: from `load_checkpoint`, on the device to run on, or from `load_runtime`.
        checkpoint: from the same.
        image_set: pictures; its classes must be the model's, in any order.
        writer: takes the codes. Finishing a `CodeFileWriter` is left to the caller.
        rows: the pictures, in the order in which they are read. They are asked for as they are
            read; at once if there are files of boxes, which are looked up and checked before.
        batch_size: pictures that the model takes at a time, at most.
        workers: processes that read pictures; 0 reads them in this one.
        precision: see `Precision`.
        reporter: is told after each batch the pictures done and their total, and each picture that
            cannot be read.
        on_file: called before a picture is stored with its id and the version of the file it was
            decoded from; for sets of files.
        boxes: what gives the regions of a model that takes boxes. If a file has none of a picture,
            the whole picture is its region; without `boxes`, windows are. A detector is called in
            this process, and one picture is read at a time.

    Raises:
        ValueError: a class that the model does not know, a size that is not positive, or boxes of
            another form.
        StoreError: writing fails; what was stored before stays.
    """
    model = runtime_of(model, precision)
    if batch_size < 1 or workers < 0:
        raise ValueError(
            f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}"
        )
    began = time.perf_counter()
    label_of = class_indices(image_set, checkpoint.classes)
    find = None
    if model.takes_boxes and boxes is not None:
        if isinstance(boxes, Boxes) and boxes.looked_up_first:
            rows = list(rows)
        find = finder_of(boxes, image_set, rows, checkpoint.classes)
    workers = 0 if detector_of(boxes) else workers
    image_set.notices.tell(reporter)
    if model.takes_boxes and boxes is None:
        reporter.note("the model takes boxes, but none are given; the regions are windows")
    skipped: dict[str, str] = {}
    n_encoded, model_seconds = 0, 0.0

    def readable() -> Iterator[tuple[int, Input]]:
        for row, item in read_inputs(
            image_set,
            rows,
            checkpoint.short,
            workers,
            versions=on_file is not None,
            find=find,
            runtime=model,
        ):
            if isinstance(item, Input):
                if on_file and item.version:
                    on_file(image_set.ids[row], item.version)
                if item.note:
                    line = f"{image_set.ids[row]}: {item.note}"
                    image_set.notices.add("files that are cut off, read as far as they go", line)
                    image_set.notices.tell(reporter)
                yield row, item
                continue
            skipped[image_set.ids[row]] = item
            reporter.skipped(image_set.ids[row], item)

    pictures = readable()
    with reporter.stage("encoding"):
        while True:
            encoded: dict[int, EncodedImage] = {}
            window = islice(pictures, _WINDOW * batch_size)
            for batch in batches_of_one_shape(window, _image_of, batch_size):
                started = time.perf_counter()
                given = [item.boxes for _, item in batch] if find else None
                results = model.encode([item.image for _, item in batch], given)
                model_seconds += time.perf_counter() - started
                for (row, item), result in zip(batch, results, strict=True):
                    encoded[row] = _in_original(result, item.frame)
                reporter.progress(n_encoded + len(encoded) + len(skipped), len(rows))
            if not encoded:
                break
            for row in sorted(encoded):
                labels = None
                if image_set.classes:
                    labels = [label_of[label] for label in image_set.targets[row].all_labels()]
                writer.add(image_set.ids[row], encoded[row], labels)
            n_encoded += len(encoded)
    image_set.notices.tell(reporter)
    return EncodingReport(
        n_encoded,
        len(image_set) - n_encoded - len(skipped),
        skipped,
        time.perf_counter() - began,
        model_seconds,
        image_set.notices.counts,
    )


def encode_picture(
    model: HashModel | Runtime,
    checkpoint: Checkpoint,
    image: Image,
    *,
    precision: Precision = "32-true",
    detector: Detector | None = None,
) -> EncodedImage:
    """The codes of one picture, as `encode_images` gives them with a batch of one.

    Raises:
        ValueError: the detector fails, or finds boxes of another form.
    """
    model = runtime_of(model, precision)
    pixels, frame = model.prepare(image, checkpoint.short)
    given = None
    if model.takes_boxes and detector is not None:
        found = _detected(detector, image, checkpoint.classes)
        given = [replace(found, boxes=frame.to_input(found.boxes))]
    (encoded,) = model.encode([pixels], given)
    return _in_original(encoded, frame)


def encode_boxes(
    model: HashModel | Runtime,
    checkpoint: Checkpoint,
    image: Image,
    boxes: Floats,
    *,
    precision: Precision = "32-true",
) -> Regions:
    """The codes of given boxes of one picture.

    Args:
        model: from `load_checkpoint` or `load_runtime`.
        checkpoint: from the same.
        image: the picture.
        boxes: (R, 4) float32, xyxy in pixels of the picture; clipped to it, however much of them
            is outside. A search checks them first, see `regionhash.search.marks`.
        precision: see `Precision`.

    Raises:
        ValueError: a box without area in the picture.
    """
    model = runtime_of(model, precision)
    pixels, frame = model.prepare(image, checkpoint.short)
    inside = clip_boxes(boxes, frame.size)
    for box, clipped in zip(boxes.tolist(), inside.tolist(), strict=True):
        shown = ",".join(f"{edge:g}" for edge in box)
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"box {shown}: needs x0 < x1 and y0 < y1")
        if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
            height, width = frame.size
            raise ValueError(f"box {shown}: lies outside of the picture, {width} x {height} pixels")
    regions = model.encode_boxes([pixels], [frame.to_input(inside)])
    return replace(regions[0], boxes=inside)


def _in_original(encoded: EncodedImage, frame: Frame) -> EncodedImage:
    """The same with boxes in pixels of the picture instead of the network's input."""
    if encoded.regions is None:
        return replace(encoded, size=frame.size)
    boxes = clip_boxes(frame.to_original(encoded.regions.boxes), frame.size)
    return replace(encoded, size=frame.size, regions=replace(encoded.regions, boxes=boxes))


class Input(NamedTuple):
    """A picture as the network takes it.

    Attributes:
        image: (3, h, w) uint8.
        frame: where its boxes are in the picture.
        version: of its file, if asked for.
        note: what of its file could not be read; see `ReadImage`.
        boxes: those given with it, in pixels of the input.
    """

    image: Pixels
    frame: Frame
    version: FileVersion | None = None
    note: str | None = None
    boxes: Detections = Detections.none()


def _image_of(item: tuple[int, Input]) -> Pixels:
    return item[1].image


Finder = Callable[[int, Image], Detections]
"""The boxes of the picture of a row, in pixels of the picture."""


def finder_of(
    boxes: Boxes | Detector | None, image_set: ImageSet, rows: Rows, classes: Sequence[str]
) -> Finder:
    """What gives the boxes of pictures of a set; what is noticed is added to the set's notices.

    Args:
        boxes: files, for pictures without any with a detector, or a detector.
        image_set: the pictures.
        rows: those that will be asked for.
        classes: of the model.

    Raises:
        ValueError: see `Boxes.of`.
    """
    found = boxes.of(image_set, rows, classes) if isinstance(boxes, Boxes) else {}
    detector = detector_of(boxes)
    if detector is None:
        return lambda row, _: found.get(row, Detections.none())

    def find(row: int, image: Image) -> Detections:
        if row in found:
            return found[row]
        try:
            return _detected(detector, image, classes)
        except ValueError as error:
            raise ValueError(f"{image_set.ids[row]}: {error}") from error

    return find


def detector_of(boxes: Boxes | Detector | None) -> Detector | None:
    """The detector among what gives boxes, if there is one."""
    return boxes.detector if isinstance(boxes, Boxes) else boxes


def _detected(detector: Detector, image: Image, classes: Sequence[str]) -> Detections:
    """What a detector finds in a picture, with labels of the model's classes.

    A detector with names of its own, as an attribute `classes`, is matched by these.

    Raises:
        ValueError: see `detect`; or a label that is no class.
    """
    found = detect(detector, image)
    names = getattr(detector, "classes", None)
    if names is not None:
        known = {name: index for index, name in enumerate(classes)}
        of_label = np.array([*(known.get(name, -1) for name in names), -1])
        return replace(found, labels=of_label[found.labels])
    if len(found) and found.labels.max() >= len(classes):
        raise ValueError(
            f"labels must be below {len(classes)}, the number of classes, got {found.labels.max()}"
        )
    return found


class _Inputs:
    """The network's input of each picture, or the reason why it cannot be read."""

    def __init__(
        self,
        image_set: ImageSet,
        short: int,
        versions: bool,
        prepare: Callable[[Image, int], tuple[Any, Frame]],
        find: Finder | None,
    ) -> None:
        self.images = image_set.images
        self.short = short
        self.versions = versions
        self.prepare = prepare
        self.find = find

    def __getitem__(self, row: int) -> Input | str:
        version = note = None
        try:
            if self.versions and isinstance(self.images, FileImages | RemoteImages):
                image, version, note = self.images.read(row)
            elif isinstance(self.images, FileImages):
                image, note = read_with_note(self.images.paths[row])
            else:
                image = self.images[row]
        except ImageError as error:
            return str(error)
        pixels, frame = self.prepare(image, self.short)
        if self.find is None:
            return Input(pixels, frame, version, note)
        found = self.find(row, image)
        placed = replace(found, boxes=frame.to_input(found.boxes))
        return Input(pixels, frame, version, note, placed)


def read_inputs(
    image_set: ImageSet,
    rows: Iterable[int],
    short: int,
    workers: int,
    *,
    versions: bool = False,
    find: Finder | None = None,
    runtime: Runtime | None = None,
) -> Iterator[tuple[int, Input | str]]:
    """Row and input of each picture of `rows`, in order, or the reason why it cannot be read.

    Rows are asked for as they are read, some ahead of what is yielded. With `versions`, inputs of
    files carry the version that was read. Those of files whose end is missing carry a note, and
    with `find` all carry their boxes. For a `runtime` without torch, threads read instead of
    processes: decoding and resizing hold Python's lock only briefly, and there is no shared memory
    to pass arrays in.
    """
    rows, to_read = tee(rows)
    picture_bytes = 3 * short * (3 * short // 2)
    ahead = max(2, _AHEAD_BYTES // picture_bytes)
    if runtime is not None and runtime.threads_read:
        inputs = _Inputs(image_set, short, versions, runtime.prepare, find)
        yield from zip(rows, _read_by_threads(inputs, to_read, workers, ahead), strict=True)
        return
    from regionhash.data.transforms import to_input

    inputs = _Inputs(image_set, short, versions, to_input, find)
    yield from zip(rows, _read_by_processes(inputs, to_read, workers, ahead), strict=True)


def _read_by_threads(
    inputs: _Inputs, rows: Iterable[int], workers: int, ahead: int
) -> Iterator[Input | str]:
    if not workers:
        yield from map(inputs.__getitem__, rows)
        return
    waiting: deque[Future[Input | str]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reader")
    try:
        for row in rows:
            waiting.append(pool.submit(inputs.__getitem__, row))
            if len(waiting) > max(ahead, workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_by_processes(
    inputs: _Inputs, rows: Iterable[int], workers: int, ahead: int
) -> Iterator[Input | str]:
    from torch.utils.data import DataLoader

    loader: DataLoader[Input | str] = DataLoader(
        inputs,  # type: ignore[arg-type]  # all of a data set that it uses
        sampler=rows,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=max(2, ahead // workers) if workers else None,
    )
    for item in loader:
        # Tensors arrive in shared memory; a copy frees it for the next picture.
        yield item if isinstance(item, str) else item._replace(image=item.image.numpy().copy())
