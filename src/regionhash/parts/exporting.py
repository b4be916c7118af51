"""Networks as ONNX graphs, through torch's exporter."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from regionhash.files.text import one_line
from regionhash.sessions import OPSET

Free = dict[int, Any]
"""The dimensions of an input that are free, as `torch.export.Dim` or multiples of one."""


def to_graph(
    network: nn.Module,
    inputs: Mapping[str, tuple[Tensor, Free]],
    outputs: Sequence[str],
    *,
    metadata: Mapping[str, str] = {},
    one_try: bool = False,
    error: type[ValueError] = ValueError,
) -> bytes:
    """A network as the bytes of an ONNX file of one piece.

    Args:
        network: in evaluation mode, with as many outputs as `outputs` has names.
        inputs: by name, in the order of `forward`: an example, and its free dimensions.
        outputs: names.
        metadata: of the file.
        one_try: traces the network in one way only; torch's other ways take minutes to fail.
        error: the class to raise if the exporter fails; the message is one line.
    """
    examples = tuple(example for example, _ in inputs.values())
    free = tuple(dimensions for _, dimensions in inputs.values())
    with _quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
        try:
            traced: nn.Module | torch.export.ExportedProgram = network
            if one_try:
                traced = torch.export.export(
                    network,
                    examples,
                    dynamic_shapes=free,
                    prefer_deferred_runtime_asserts_over_guards=True,
                )
            program = torch.onnx.export(
                traced,
                examples,
                dynamo=True,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=free,
                opset_version=OPSET,
                verbose=False,
            )
            program = cast("torch.onnx.ONNXProgram", program)
            program.model.metadata_props.update(metadata)
            for node in program.model.graph:  # where in torch's code each one comes from
                node.metadata_props.clear()
                node.doc_string = None
            path = Path(scratch) / "graph.onnx"
            program.save(str(path), external_data=False)
            return path.read_bytes()
        except Exception as failure:  # whatever torch's tracer runs into
            cause: BaseException = failure
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = one_line(str(cause).strip().partition("\n")[0])
            raise error(f"torch cannot export it ({reason})") from failure


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
