"""Share of the time in which `encode` keeps the model busy, pictures per second, and memory.

Run: python benchmarks/bench_encode.py [--images 200] [--photos DIR] [--checkpoint DIR] [--json]

Without --photos, JPEG files of some 500 x 375 pixels are made; without --checkpoint, the model is a
fresh Region-DH on mobilenet_v2_fpn with a short side of 320 pixels. Peaks are of the run so far.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # or waiting threads take time from readers

import argparse
import json
import resource
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regionhash.data.image_set import ImageSet
from regionhash.data.inputs import open_inputs
from regionhash.models.checkpoints import Checkpoint, build_model, load_checkpoint, save_checkpoint
from regionhash.models.encoding import EncodingReport, encode_set, pick_device

SHAPES = ((375, 500), (500, 375), (333, 500), (500, 500))  # such as those of PASCAL VOC


def make_photos(folder: Path, n: int) -> None:
    """JPEG files with as much detail as photographs: some 60 to 110 KB each."""
    rng = np.random.default_rng(0)
    for number in range(n):
        height, width = SHAPES[rng.integers(len(SHAPES))]
        layers = np.zeros((height, width, 3))
        for cells, contrast in ((4, 60), (16, 30), (64, 15), (height, 6)):
            small = rng.normal(0, contrast, (cells, cells, 3)).clip(-127, 127) + 128
            layer = Image.fromarray(small.astype(np.uint8)).resize((width, height))
            layers += np.asarray(layer, float) - 128
        pixels = (layers + 128).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=92)


def make_checkpoint(folder: Path) -> None:
    arguments = {
        "n_bits": 48,
        "n_classes": 20,
        "backbone": "mobilenet_v2_fpn",
        "weights": "none",
    }
    torch.manual_seed(0)
    model = build_model("region-dh", arguments)
    classes = tuple(f"class {n}" for n in range(20))
    save_checkpoint(folder, model, Checkpoint("region-dh", arguments, classes, short=320))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200, help="JPEG files to make")
    parser.add_argument("--photos", type=Path, help="a folder of pictures to take instead")
    parser.add_argument("--checkpoint", type=Path, help="a model to take instead")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        photos = args.photos or Path(scratch) / "photos"
        folder = args.checkpoint or Path(scratch) / "model"
        if not args.photos:
            photos.mkdir()
            make_photos(photos, args.images)
        if not args.checkpoint:
            make_checkpoint(folder)
        model, checkpoint = load_checkpoint(folder)
        model.to(pick_device(args.device))
        image_set, _ = open_inputs([str(photos)])

        def encode(pictures: ImageSet, workers: int) -> EncodingReport:
            path = Path(scratch) / "codes.h5"
            report = encode_set(
                model,
                checkpoint,
                pictures,
                path,
                checkpoint_path=folder,
                precision=args.precision,
                batch_size=args.batch_size,
                workers=workers,
            )
            path.unlink()
            return report

        encode(image_set.subset(range(min(len(image_set), 2 * args.batch_size))), 0)  # warms up
        rows = []
        for workers in args.workers:
            report = encode(image_set, workers)
            rows.append(
                {
                    "workers": workers,
                    "busy": round(report.model_seconds / report.seconds, 3),
                    "images_per_second": round(report.n_encoded / report.seconds, 2),
                    "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                }
            )
    setting = {
        "images": len(image_set),
        "device": args.device,
        "threads": torch.get_num_threads(),
        "batch_size": args.batch_size,
        "precision": args.precision,
    }
    if args.json:
        print(json.dumps(setting | {"runs": rows}))
        return
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in setting.items()))
    print(f"{'workers':>8} {'busy':>6} {'images/s':>9} {'peak MiB':>9}")
    for workers, busy, speed, peak in (row.values() for row in rows):
        print(f"{workers:8} {busy:6.1%} {speed:9.2f} {peak:9}")


if __name__ == "__main__":
    main()
