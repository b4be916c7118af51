"""Running graphs with OpenVINO, in float32 or, if the CPU has it, in bfloat16."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from regionhash.files.text import one_line
from regionhash.models.checkpoints import CheckpointError
from regionhash.models.onnx import METADATA, Outputs
from regionhash.precision import Precision
from regionhash.sessions import n_threads

_PRECISIONS: dict[Precision, str] = {"32-true": "f32", "bf16-mixed": "bf16"}
"""What OpenVINO calls them; by itself it takes bfloat16 on CPUs that have it."""

_MOST_STREAMS = 4
"""Pictures at a time: threads beyond them share a picture, and every one more takes memory."""


class OpenVinoSession:
    """A graph that OpenVINO runs on the CPU; see `regionhash.models.onnx.GraphSession`.

    Args:
        content: the graph, or its file.
        place: the graph, for messages.
        precision: of its arithmetic.

    Raises:
        CheckpointError: OpenVINO cannot read or run the graph; the message is one line.
    """

    def __init__(self, content: bytes | Path, place: str, *, precision: Precision) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": n_threads(),
            "NUM_STREAMS": min(n_threads(), _MOST_STREAMS),
        }
        core = _core()
        try:
            graph = core.read_model(content if isinstance(content, bytes) else os.fspath(content))
            self._compiled = core.compile_model(graph, "CPU", options)
        except Exception as failure:  # whatever its reader runs into
            reason = one_line(str(failure).strip().rpartition("\n")[2])
            raise CheckpointError(f"{place}: OpenVINO cannot run it ({reason})") from failure
        self.inputs = [given.get_any_name() for given in graph.inputs]
        self.outputs = [output.get_any_name() for output in graph.outputs]
        key = ["framework", METADATA]
        found = graph.has_rt_info(key)
        text = {METADATA: graph.get_rt_info(key).astype(str)} if found else {}
        self.metadata: Mapping[str, str] = text
        self._idle: list[Any] = []  # requests, each for one thread at a time

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Outputs:
        """Its outputs by name."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        request.infer(dict(inputs))
        outputs = {name: request.get_tensor(name).data.copy() for name in self.outputs}
        self._idle.append(request)
        return outputs


@functools.cache
def _core() -> Any:
    """OpenVINO itself, once, for as long as the process lives.

    Its part for CPUs gives the thread that loads it a stack for signal handlers and frees it once
    the last core and graph are dropped. If another thread drops them, the next signal that has a
    handler, such as Ctrl-C, ends the process with SIGSEGV.
    """
    import openvino

    return openvino.Core()
