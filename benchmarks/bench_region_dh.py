"""What Region-DH's hash layers cost beside the bare torchvision detector.

Both have the same backbone, input size and proposals. Times alternate between the two, after a
warm-up; the ratio is that of the medians.

Run: python benchmarks/bench_region_dh.py [--backbone NAME] [--short N] [--threads N] [--json]
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads

from regionhash.models.checkpoints import build_model
from regionhash.parts.backbones import stack_images

N_CLASSES = 20


class Maps(nn.Module):
    """The backbone as torchvision's detector takes it: without the last stage's map."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return self.backbone(images)[0]


class Stack(nn.Module):
    """In place of torchvision's resizing: both detectors take the same input."""

    def forward(self, images, targets=None):
        batch, sizes = stack_images(images)
        return ImageList(batch, sizes), targets

    def postprocess(self, result, image_shapes, original_sizes):
        return result


def bare_detector(model):
    """Torchvision's Faster R-CNN from the parts of a Region-DH, its heads those of torchvision."""
    hidden = model.head.fc7.out_features
    heads = RoIHeads(
        model.pooling.align,
        TwoMLPHead(model.pooling.n_spatial, hidden),
        FastRCNNPredictor(hidden, N_CLASSES + 1),
        0.5, 0.5, 512, 0.25, None, 0.05, 0.5, model.max_regions,  # its defaults
    )  # fmt: skip

    class Proposals(nn.Module):
        def forward(self, images, features, targets=None):
            boxes, _, losses = model.rpn(images, features, targets)
            return boxes, losses

    return GeneralizedRCNN(Maps(model.backbone), Proposals(), heads, Stack())


def alternate(first, second, repeats):
    """Median seconds of two functions called in turn."""
    times = ([], [])
    for n in range(repeats + 1):
        for function, own in zip((first, second), times, strict=True):
            began = time.perf_counter()
            function()
            if n:  # the first round warms up
                own.append(time.perf_counter() - began)
    return [statistics.median(own) for own in times]


def measure(backbone, short, printed, repeats):
    torch.manual_seed(0)
    arguments = {"n_bits": 48, "n_classes": N_CLASSES, "backbone": backbone, "weights": "none"}
    arguments |= {"trained_stages": 0, "semantic": not printed, "context": not printed}
    model = build_model("region-dh", arguments)
    bare = bare_detector(model)
    images = [torch.randint(0, 256, (3, short, short * 4 // 3), dtype=torch.uint8)] * 4
    target = {
        "boxes": torch.tensor([[10.0, 20.0, 150.0, 220.0], [100.0, 60.0, 300.0, 250.0]]),
        "labels": torch.tensor([3, 5]),
        "image_labels": torch.eye(N_CLASSES)[[3, 5]].sum(0),
    }
    shifted = target | {"labels": target["labels"] + 1}

    def step(losses):
        sum(losses.values()).backward()

    model.eval(), bare.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        forward = alternate(lambda: bare(images), lambda: model.encode(images), repeats)
    model.train(), bare.train()
    with torch.autocast("cpu", torch.bfloat16):
        training = alternate(
            lambda: step(bare(images, [shifted] * 4)),
            lambda: step(model.losses(images, [target] * 4)),
            repeats,
        )
    return {
        "form": "as printed" if printed else "by default",
        "bare_forward_ms": forward[0] / 4 * 1000,
        "forward_ratio": forward[1] / forward[0],
        "bare_step_ms": training[0] / 4 * 1000,
        "step_ratio": training[1] / training[0],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilenet_v2_fpn")
    parser.add_argument("--short", type=int, default=384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        measure(options.backbone, options.short, printed, options.repeats)
        for printed in (True, False)
    ]
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{options.backbone}, short side {options.short}, {options.threads} threads, per picture")
    for row in rows:
        print(
            f"Region-DH {row['form']}: forward {row['forward_ratio']:.3f} x the bare "
            f"detector's {row['bare_forward_ms']:.0f} ms, training step {row['step_ratio']:.3f} x "
            f"its {row['bare_step_ms']:.0f} ms"
        )


if __name__ == "__main__":
    main()
