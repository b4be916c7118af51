"""A process that decodes pictures for another process, which may kill it.

It confines whatever a file does to a decoder. It imports Pillow and NumPy but not torch, so it
starts in a fraction of a second.

A request is a line of JSON on standard input. If it has `bytes`, the file's content of that length
follows; otherwise `path` is read. An answer is a line of JSON on standard output, with `error` or
with `bytes`, the length of what follows: a JPEG if the request has a `size`, otherwise the pixels,
of height and width `shape`, with the `kind` of file and a `note`; see `ReadImage`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

from regionhash.data.images import (
    ImageError,
    read_bytes_with_note,
    read_kind,
    read_thumbnail,
    read_with_note,
)

_GRACE = 2  # seconds past a request's limit, after which the process ends by itself


def main(memory: int) -> None:
    """Answers until the input ends.

    Args:
        memory: bytes of address space that the process may take.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal; the parent process ends it
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps what libraries print out of the answers
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        content = None if request["bytes"] is None else sys.stdin.buffer.read(request["bytes"])
        signal.alarm(int(request["seconds"]) + _GRACE)
        head, body = _answer(request, content)
        signal.alarm(0)
        answers.write(json.dumps(head | {"bytes": memoryview(body).nbytes}).encode() + b"\n")
        answers.write(body)
        answers.flush()


def _answer(request: dict[str, Any], content: bytes | None) -> tuple[dict[str, Any], Any]:
    name = request["name"]
    try:
        if request["size"] is not None:
            return {}, read_thumbnail(request["path"], request["size"], name=name)
        if content is None:
            (image, note), kind = read_with_note(request["path"], name=name), ""
        else:
            image, note = read_bytes_with_note(content, name, max_pixels=request["max_pixels"])
            kind = read_kind(content, name)
    except ImageError as error:
        return {"error": str(error)}, b""
    except MemoryError:
        return {"error": f"{name}: it takes more memory than is available"}, b""
    return {"shape": image.shape[:2], "kind": kind, "note": note}, image.data


if __name__ == "__main__":
    main(int(sys.argv[1]))
