"""A process that decodes pictures for another one, which may kill it.

What a file does to a decoder stays in here. It imports Pillow and NumPy, no torch, so that it
starts in a fraction of a second.

A request is a line of JSON on the standard input, and behind it the content of the file where the
request has `bytes`, its length; else `path` is read. An answer is a line of JSON on the standard
output, with `error` or with `bytes`, the length of what follows: a JPEG where the request has a
`size`, else the pixels, of height and width `shape`.
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
    read_image,
    read_image_bytes,
    read_kind,
    thumbnail,
)

_GRACE = 2  # seconds behind a request's own, after which the process ends where nobody has ended it


def main(memory: int) -> None:
    """Answers until the input ends.

    Args:
        memory: bytes of address space that the process may take.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; who started it ends it
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
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
        if content is None:
            image, kind = read_image(request["path"], name=name), ""
        else:
            image = read_image_bytes(content, name, max_pixels=request["max_pixels"])
            kind = read_kind(content, name)
        if request["size"] is not None:
            return {}, thumbnail(image, request["size"])
    except ImageError as error:
        return {"error": str(error)}, b""
    except MemoryError:
        return {"error": f"{name}: it takes more memory than there is for a picture"}, b""
    return {"shape": image.shape[:2], "kind": kind}, image.data


if __name__ == "__main__":
    main(int(sys.argv[1]))
