"""Pictures per second of ONNX Runtime, and of OpenVINO if installed, beside eager torch.

One picture at a time, one process, the same threads for all. The runtimes take turns, so that what
else the machine does slows them alike; each figure is the median of the rounds, and its ratio is to
torch in the same run.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/bench_runtime.py CHECKPOINT PICTURES
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from regionhash.data.frames import Pixels
from regionhash.data.inputs import open_inputs
from regionhash.models.checkpoints import BOXES_GRAPH, ENCODE_GRAPH
from regionhash.models.runtime import load_runtime
from regionhash.sessions import n_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "checkpoint", type=Path, help="a model that `regionhash convert` was run on"
    )
    parser.add_argument("pictures", nargs="+", help="see `regionhash encode`")
    parser.add_argument("--count", type=int, default=40, help="pictures of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=n_threads())
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    import torch

    torch.set_num_threads(args.threads)
    ours, checkpoint = load_runtime(args.checkpoint, runtime="torch", device="cpu")
    graphs, _ = load_runtime(args.checkpoint, runtime="onnx")
    image_set, _ = open_inputs(args.pictures)
    pixels = [ours.prepare(x, checkpoint.short)[0] for x in islice(image_set.images, args.count)]
    runners: dict[str, Callable[[Pixels], Any]] = {
        "torch": lambda image: ours.encode([image]),
        "onnxruntime": lambda image: graphs.encode([image]),
    }
    if find_spec("openvino") and (args.checkpoint / ENCODE_GRAPH).exists():
        runners["openvino (network alone)"] = openvino_runner(
            args.checkpoint / ENCODE_GRAPH, args.threads
        )
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for round_ in range(args.rounds + 1):
        for name, encode in runners.items():
            began = time.perf_counter()
            for image in pixels:
                encode(image)
            if round_:  # the first one warms up
                seconds[name].append(time.perf_counter() - began)
    names = [p for p in (ENCODE_GRAPH, BOXES_GRAPH) if (args.checkpoint / p).exists()]
    print(
        f"{checkpoint.name}, {len(pixels)} pictures of {checkpoint.short} pixels, "
        f"{args.threads} threads, graphs {', '.join(names)}"
    )
    base = median(seconds["torch"])
    for name, rounds in seconds.items():
        spent = median(rounds)
        print(f"{name:26} {len(pixels) / spent:8.1f} pictures/s   {base / spent:5.2f} x torch")


def openvino_runner(path: Path, threads: int) -> Callable[[Pixels], Any]:
    """Runs a graph with OpenVINO."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(path), "CPU", {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    )
    request = compiled.create_infer_request()
    return lambda image: request.infer({"picture": image[None]})


if __name__ == "__main__":
    main()
