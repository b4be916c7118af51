"""The command that trains a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from regionhash.cli.options import Json
from regionhash.cli.output import ConsoleReporter, is_first_process, print_json, say

if TYPE_CHECKING:
    from regionhash.reporter import EpochReport

DEFAULT_BITS = 64


def train(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model listed by `regionhash models`.")
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Labelled pictures, in a form listed by `regionhash datasets`."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the run, where the model is saved.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with the tables [model] and [training]."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any argument of the model or of training; may be repeated.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(help=f"Bits of a picture's code, a multiple of 8.  [default: {DEFAULT_BITS}]"),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="A backbone listed by `regionhash models`.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights of the backbone: default (ImageNet, downloaded once), none, or a file "
            "with a torchvision state dict."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per training step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    short: Annotated[
        int | None, typer.Option(help="Short side of the network's input, in pixels.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT|coco",
            help="Start from the weights of another model, as far as they fit, or from "
            "torchvision's COCO detector.",
        ),
    ] = None,
    precision: Annotated[
        Literal["32-true", "bf16-mixed"] | None,
        typer.Option(
            help="Precision of the forward pass. Codes may be of either one, see `encode`.  "
            "[default: 32-true]"
        ),
    ] = None,
    cached_views: Annotated[
        int | None,
        typer.Option(help="Train only the image hash, on this many views of each picture."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model on labelled pictures.

    The best epoch on held-out pictures is kept. If a run is killed, the same command resumes it
    from the last completed epoch. Flags override --set, which overrides --config, which overrides
    the model's defaults.

    \b
    Example:
      regionhash train region-dh voc:VOCdevkit/VOC2007:trainval -o runs/voc --bits 48
    """
    from regionhash.data import open_dataset
    from regionhash.models.checkpoints import load_checkpoint, read_checkpoint
    from regionhash.training import train as train_model
    from regionhash.training.settings import training_settings

    flags = {
        "n_bits": bits,
        "backbone": backbone,
        "weights": weights,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": lr,
        "short": short,
        "seed": seed,
        "precision": precision,
        "cached_views": cached_views,
        "init": "coco" if init == "coco" else None,
    }
    arguments, settings = training_settings(
        model, file=config, assignments=assignments or (), flags=flags
    )
    image_set = open_dataset(data)
    start = load_checkpoint(Path(init))[0] if init not in (None, "coco") else None
    reporter = _TrainingReporter()
    train_model(
        model,
        {"n_bits": DEFAULT_BITS} | arguments,
        image_set,
        output,
        settings,
        start=start,
        reporter=reporter,
    )
    if not is_first_process():
        return
    checkpoint = read_checkpoint(output)
    if as_json:
        print_json(
            {
                "checkpoint": str(output),
                "model": checkpoint.name,
                "model_hash": checkpoint.model_hash,
                "epochs": [report.row() for report in reporter.epochs],
                "noticed": image_set.notices.counts,
            }
        )
    else:
        say(f"{output}: {checkpoint.name}, model {checkpoint.model_hash}")
        if noticed := image_set.notices.summary():
            say(f"noticed: {noticed}")
        say(f"next: regionhash encode {output} YOUR_PICTURES -o codes.h5")


class _TrainingReporter(ConsoleReporter):
    """Also keeps the epochs of this run, for JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[EpochReport] = []

    def epoch(self, report: EpochReport, n_epochs: int) -> None:
        """Keeps and prints the epoch."""
        self.epochs.append(report)
        super().epoch(report, n_epochs)
