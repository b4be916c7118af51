"""The triplet losses of a batch beside a loop over its triplets, forward and backward.

Run: python benchmarks/bench_triplets.py [--batch N] [--threads N] [--json]
"""

import argparse
import json
import os
import statistics
import time
from itertools import permutations

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from regionhash.parts.losses import category_triplet_loss, triplet_loss

N_CLASSES, N_BITS, N_CATEGORY_BITS = 20, 32, 12


def loop(activations, similarity):
    """Eq. 9 of IAH, triplet after triplet."""
    distances = (activations[:, None] - activations).square().sum(-1)
    shared = similarity.tolist()
    terms = []
    for i, j, k in permutations(range(len(shared)), 3):
        if shared[i][j] > shared[i][k]:
            weight = 2 ** shared[i][j] - 2 ** shared[i][k]
            terms.append(weight * torch.relu(1 - distances[i, k] + distances[i, j]))
    return torch.stack(terms).mean()


def milliseconds(function, repeats):
    times = []
    for n in range(repeats + 1):
        began = time.perf_counter()
        function().backward()
        if n:  # the first round warms up
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    labels = (torch.rand(options.batch, N_CLASSES) < 1.5 / N_CLASSES).float()
    similarity = labels @ labels.T
    a = torch.randn(options.batch, N_BITS, requires_grad=True)
    f = torch.randn(options.batch, N_CLASSES, N_CATEGORY_BITS, requires_grad=True)
    assert torch.isclose(loop(a, similarity), triplet_loss(a, similarity))
    times = {
        "loop": milliseconds(lambda: loop(a, similarity), 3),
        "triplet_loss": milliseconds(lambda: triplet_loss(a, similarity), 51),
        "category_triplet_loss": milliseconds(lambda: category_triplet_loss(f, labels), 51),
    }
    if options.json:
        print(json.dumps(times))
        return
    ratio = times["loop"] / times["triplet_loss"]
    print(f"batch of {options.batch}, {options.threads} threads, forward and backward")
    for name, value in times.items():
        print(f"{name:22} {value:9.2f} ms")
    print(f"triplet_loss is {ratio:.0f} x as fast as the loop over triplets")


if __name__ == "__main__":
    main()
