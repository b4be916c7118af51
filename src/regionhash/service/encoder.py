"""A model that threads share: pictures they ask for at about the same time share a batch."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from regionhash.structures import Detections, EncodedImage, Floats, Regions

if TYPE_CHECKING:
    from regionhash.data.frames import Pixels
    from regionhash.models import HashModel
    from regionhash.models.runtime import Precision, Runtime

MAX_BATCH = 8
WAIT = 0.004
"""Seconds that the first picture of a batch waits for others."""


class EncoderError(RuntimeError):
    """Pictures can no longer be encoded."""


class _Job(NamedTuple):
    image: Pixels
    boxes: Floats | None  # to describe
    given: Detections | None  # that become regions
    result: Future[Any]


class BatchedModel:
    """Stands in for a runtime in `regionhash.models.encoding`; each call waits for its batch.

    A batch has pictures of one shape, so codes are those the model computes one by one, except for
    rounding. One thread runs the model; it passes every error to the caller and continues.

    Args:
        model: from `load_runtime`, or from `load_checkpoint`, on its device.
        precision: of the forward pass.
        on_batch: called with the size of each batch.
    """

    def __init__(
        self,
        model: HashModel | Runtime,
        precision: Precision = "32-true",
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        from regionhash.models.runtime import runtime_of

        self._model = runtime_of(model, precision)
        self._on_batch = on_batch
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._lock = threading.Lock()  # so that nothing follows the end of the queue
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    def __getattr__(self, name: str) -> Any:
        """What else is asked of the runtime: n_bits, prepare, ..."""
        return getattr(self._model, name)

    def encode(
        self, images: Sequence[Pixels], given: Sequence[Detections] | None = None
    ) -> list[EncodedImage]:
        """As `Runtime.encode`."""
        groups = given if given is not None else [None] * len(images)
        return self._wait(
            [
                _Job(image, None, group, Future())
                for image, group in zip(images, groups, strict=True)
            ]
        )

    def encode_boxes(self, images: Sequence[Pixels], boxes: Sequence[Floats]) -> list[Regions]:
        """As `Runtime.encode_boxes`."""
        return self._wait(
            [
                _Job(image, boxes_of_image, None, Future())
                for image, boxes_of_image in zip(images, boxes, strict=True)
            ]
        )

    @property
    def is_alive(self) -> bool:
        """Whether pictures can be encoded."""
        return self._thread.is_alive() and not self._closed

    def close(self, seconds: float | None = None) -> None:
        """Ends the thread after the jobs it has; waits for that, at most some seconds."""
        with self._lock:
            self._closed = True
            self._jobs.put(None)
        self._thread.join(seconds)

    def _wait(self, jobs: list[_Job]) -> list[Any]:
        with self._lock:
            if not self.is_alive:
                raise EncoderError("the encoder has stopped")
            for job in jobs:
                self._jobs.put(job)
        return [job.result.result() for job in jobs]

    def _run(self) -> None:
        try:
            while (first := self._jobs.get()) is not None:
                waiting = self._gathered(first)
                try:
                    self._compute_all(waiting)
                except BaseException as error:  # it is the answer; the thread continues
                    _fail(waiting, error)
        finally:
            with self._lock:
                self._closed = True
                while not self._jobs.empty():
                    if job := self._jobs.get():
                        _fail([job], EncoderError("the encoder has stopped"))

    def _gathered(self, first: _Job) -> list[_Job]:
        """A job and those that follow within `WAIT`."""
        waiting, until = [first], time.monotonic() + WAIT
        while len(waiting) < MAX_BATCH:
            try:
                job = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            waiting.append(job)
        return waiting

    def _compute_all(self, waiting: list[_Job]) -> None:
        from regionhash.data.batches import batches_of_one_shape

        kinds: dict[tuple[bool, bool], list[_Job]] = defaultdict(list)
        for job in waiting:
            kinds[job.boxes is None, job.given is None].append(job)
        for jobs in kinds.values():
            for batch in batches_of_one_shape(jobs, lambda job: job.image, MAX_BATCH):
                try:
                    self._compute(batch)
                except Exception as error:  # the other batches are still computed
                    _fail(batch, error)

    def _compute(self, batch: list[_Job]) -> None:
        self._on_batch(len(batch))
        images = [job.image for job in batch]
        boxes = [job.boxes for job in batch if job.boxes is not None]
        given = [job.given for job in batch if job.given is not None]
        results: list[Regions] | list[EncodedImage]
        if boxes:
            results = self._model.encode_boxes(images, boxes)
        else:
            results = self._model.encode(images, given or None)
        for job, result in zip(batch, results, strict=True):
            job.result.set_result(result)


def _fail(jobs: list[_Job], error: BaseException) -> None:
    for job in jobs:
        if not job.result.done():
            job.result.set_exception(error)
