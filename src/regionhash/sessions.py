"""Sessions of ONNX Runtime: how every graph of this package is opened by default."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from regionhash.files.text import one_line

Result = TypeVar("Result")

OPSET = 20
"""Version of ONNX's operators that graphs are made with; ONNX Runtime runs it since 1.17."""


def open_session(content: bytes | Path, place: str, error: type[ValueError] = ValueError) -> Any:
    """The session of a graph, on the CPU.

    Args:
        content: the graph, or its file.
        place: the graph, for messages.
        error: the class to raise if ONNX Runtime cannot read the graph; the message is one line.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Threads that wait by spinning slow everything else down on shared cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.intra_op_num_threads = n_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised as well
    given = content if isinstance(content, bytes) else os.fspath(content)
    try:
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as failure:  # whatever its reader runs into
        reason = one_line(str(failure).partition("\n")[0])
        raise error(f"{place}: not a readable graph ({reason})") from failure


def at_once(work: Callable[..., Result], *arguments: Iterable[Any]) -> list[Result]:
    """`work` of each, in their order, as many at a time as a session has threads.

    A session runs the parts of one picture in parallel, but small networks leave threads idle: two
    pictures at a time on two cores take three quarters of the time.
    """
    calls = list(zip(*arguments, strict=True))
    if len(calls) < 2 or n_threads() < 2:
        return [work(*call) for call in calls]
    with ThreadPoolExecutor(min(len(calls), n_threads()), thread_name_prefix="graph") as pool:
        return list(pool.map(lambda call: work(*call), calls))


def n_threads() -> int:
    """Threads of a session: $OMP_NUM_THREADS, as torch reads it, or the cores of this process."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
