"""The command that hashes pictures into a code file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regionhash.cli.options import (
    BatchSize,
    Device,
    Json,
    Precision,
    Runtime,
    Strict,
    Workers,
    n_workers,
)
from regionhash.cli.output import (
    ConsoleReporter,
    encoding_line,
    encoding_record,
    print_json,
    say,
)


def encode(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a trained model.")
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Files, folders, patterns such as 'photos/**/*.jpg', or @LIST with one path per "
            "line; or one data set in a form listed by `regionhash datasets`, whose labels are "
            "then stored too.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The code file to write.")],
    strict: Strict = False,
    batch_size: BatchSize = 8,
    workers: Workers = None,
    precision: Precision = "auto",
    device: Device = "auto",
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Hash pictures into a code file.

    Pictures already in the file are skipped: run the command again to resume it or to add new
    pictures. Files that cannot be read are reported and skipped.

    \b
    Example:
      regionhash encode runs/voc photos -o codes.h5
    """
    from regionhash.models import encoding

    report = encoding.encode(
        checkpoint,
        images,
        output,
        batch_size=batch_size,
        workers=n_workers(workers),
        precision=precision,
        device=device,
        runtime=runtime,
        reporter=ConsoleReporter(),
    )
    if as_json:
        print_json({"codes": str(output), **encoding_record(report)})
    else:
        say(encoding_line(output, report))
        say(f"next: regionhash search {output} --query PICTURE")
    if strict and report.skipped:
        raise typer.Exit(1)
