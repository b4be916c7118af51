"""The command that gets an encoder ahead of its use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regionhash.cli.options import Json
from regionhash.cli.output import ConsoleReporter, print_json, say


def fetch(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ENCODER",
            help="hf:NAME[@REVISION], timm:NAME, torchvision:NAME, or a file as onnx:FILE.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to write it into; onnx:FOLDER then names the encoder."
        ),
    ] = None,
    words: Annotated[
        bool,
        typer.Option(help="Take its text tower too, if it has one, to search with words."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Fetch an image encoder ahead of its use.

    Encoders of the hub are kept in its cache. With --output, an encoder becomes a folder of its
    own, which needs neither network nor torch: copy it to wherever it is to be used.

    \b
    Examples:
      regionhash fetch hf:onnx-community/dinov2-small
      regionhash fetch timm:convnext_tiny -o convnext
    """
    from regionhash.encoders import RECORD_FILE, resolve
    from regionhash.models.checkpoints import CONFIG_FILE

    if output is not None and output.exists():
        if not output.is_dir():
            raise ValueError(f"{output}: not a folder")
        if (output / CONFIG_FILE).exists():
            raise ValueError(f"{output}: holds a model or a collection; name a new folder")
        if any(output.iterdir()) and not (output / RECORD_FILE).exists():
            raise ValueError(f"{output}: holds other files; name a new folder")
    found = resolve(name, ConsoleReporter(), words=words)
    if output is not None:
        found.write(output)
    folder = output or found.folder
    encoder = found.encoder
    record = {
        "encoder": found.spec,
        "folder": folder and str(folder),
        "bytes": found.n_bytes,
        "licence": found.licence or None,
        "revision": found.revision or None,
        "channels": encoder.n_channels,
        "stride": encoder.stride,
        "vector": encoder.n_vector,
        "words": found.text is not None,
    }
    if as_json:
        print_json(record)
        return
    gives = [f"a map of {encoder.n_channels} channels, one cell every {encoder.stride} pixels"]
    gives = gives if encoder.gives_map else []
    gives += [f"a vector of {encoder.n_vector} numbers"] if encoder.n_vector else []
    say(f"{found.spec}: {' and '.join(gives)}{', also of words' if found.text else ''}")
    if folder is not None:
        say(f"{folder}: {found.n_bytes / 1e6:.1f} MB")
    elif found.graph is not None:
        say("made again at each use; --output FOLDER keeps it")
