"""The command that makes graphs of a model, which run without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regionhash.cli.options import Json
from regionhash.cli.output import print_json, say


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="Folder of a trained model, or a collection."),
    ],
    as_json: Json = False,
) -> None:
    """Make ONNX graphs of a model, which need no torch.

    They are written beside the model: encode.onnx from a picture to codes, probabilities and
    regions, and encode_boxes.onnx from a picture and boxes to the codes of these boxes. Before that
    they are compared with the model. From then on, `encode`, `index --model`, `add`, `refresh`,
    `search` and `serve` run the graphs on the CPU, unless given --runtime torch or --device cuda.
    Codes of precision bf16-mixed need OpenVINO or torch.

    \b
    Example:
      regionhash convert runs/voc
    """
    from regionhash.models.graphs import convert as convert_model

    written = convert_model(checkpoint)
    if as_json:
        print_json({"graphs": {str(path): n_bytes for path, n_bytes in written.items()}})
        return
    for path, n_bytes in written.items():
        say(f"{path}: {n_bytes / 1e6:.1f} MB")
