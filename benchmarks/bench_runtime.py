"""CPU time of a picture with each runtime and precision: torch, ONNX Runtime, OpenVINO.

One picture at a time, one process, the same threads for all. They take turns on every picture, so
that what else the machine does slows them alike; each figure is the mean of the least CPU time of
every picture over the rounds, beside its ratio to torch in float32 in the same run, and how many
bits of the codes differ from those of torch in float32.

    OMP_NUM_THREADS=1 python benchmarks/bench_runtime.py CHECKPOINT PICTURES --count 10
"""

from __future__ import annotations

import argparse
import os
import time
from itertools import islice
from pathlib import Path

import numpy as np

from regionhash.data.inputs import open_inputs
from regionhash.models.runtime import Runtime, load_runtime
from regionhash.precision import bf16_of_cpu
from regionhash.sessions import n_threads

WAYS = (
    ("torch", "32-true"),
    ("torch", "bf16-mixed"),
    ("onnx", "32-true"),
    ("openvino", "32-true"),
    ("openvino", "bf16-mixed"),
)


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
    models: dict[tuple[str, str], Runtime] = {}
    for way in WAYS:
        try:
            model, checkpoint = load_runtime(
                args.checkpoint, runtime=way[0], precision=way[1], device="cpu"
            )
        except ValueError as error:  # not installed, or not on this CPU
            print(error)
        else:
            models[way] = model
    image_set, _ = open_inputs(args.pictures)
    pixels = [
        models[WAYS[0]].prepare(image, checkpoint.short)[0]
        for image in islice(image_set.images, args.count)
    ]
    seconds = {way: np.full((args.rounds, len(pixels)), np.inf) for way in models}
    codes = {
        way: [model.encode([x])[0].image_code for x in pixels] for way, model in models.items()
    }
    for round_ in range(args.rounds):
        for n, image in enumerate(pixels):
            for way, model in models.items():
                began = time.process_time()
                model.encode([image])
                seconds[way][round_, n] = time.process_time() - began
    print(
        f"{checkpoint.name}, {len(pixels)} pictures of {checkpoint.short} pixels, {args.threads} "
        f"threads; bfloat16 of this CPU: {bf16_of_cpu()}"
    )
    base = seconds[WAYS[0]].min(0).mean()
    for way, taken in seconds.items():
        spent = taken.min(0).mean()
        ratio = f"{1000 * spent:7.1f} ms of CPU a picture   {base / spent:5.2f} x torch"
        print(f"{way[0]:9} {way[1]:11}{ratio}   {differing(codes[way], codes[WAYS[0]])}")


def differing(codes: list[np.ndarray | None], wanted: list[np.ndarray | None]) -> str:
    """How many bits of codes of pictures are others."""
    pairs = [(x, y) for x, y in zip(codes, wanted, strict=True) if x is not None and y is not None]
    wrong = sum(int(np.unpackbits(x ^ y).sum()) for x, y in pairs)
    return f"{wrong} of {sum(8 * x.size for x, _ in pairs)} bits differ"


if __name__ == "__main__":
    main()
