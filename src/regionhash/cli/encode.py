"""The command that hashes pictures into a code file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from regionhash.cli.options import (
    BatchSize,
    Device,
    Json,
    Precision,
    Runtime,
    Strict,
    n_workers,
)
from regionhash.cli.output import (
    ConsoleReporter,
    encoding_line,
    encoding_record,
    print_json,
    say,
)

_ADDRESS = re.compile(r"auto|local|ray://\S+|[\w.-]+:\d+")


class EncodeCommand(TyperCommand):
    """`encode`, whose `--ray` may have no address after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Gives `--ray` its address if what follows is none."""
        if "--ray" in args[: args.index("--") if "--" in args else None]:
            after = args.index("--ray") + 1
            if not _ADDRESS.fullmatch(args[after] if after < len(args) else ""):
                args = [*args[:after], "local", *args[after:]]
        return super().parse_args(ctx, args)


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
            "then stored too. With --ray also URLs of folders or files, such as s3://bucket/photos.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The code file to write; with --ray a folder of Parquet files, or its URL.",
        ),
    ],
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Encode with Ray Data, one process per GPU or core: on this machine, or on the "
            "cluster at ADDRESS, such as HOST:6379. See docs/ray.md.",
        ),
    ] = None,
    strict: Strict = False,
    batch_size: BatchSize = 8,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that read pictures; with --ray those that encode.  "
            "[default: half of the CPU cores, at most 8; with --ray one per GPU or core]"
        ),
    ] = None,
    precision: Precision = "auto",
    device: Device = "auto",
    runtime: Runtime = "auto",
    as_json: Json = False,
) -> None:
    """Hash pictures into a code file.

    Pictures already in the file are skipped: run the command again to resume it or to add new
    pictures. Files that cannot be read are reported and skipped.

    \b
    Examples:
      regionhash encode runs/voc photos -o codes.h5
      regionhash encode runs/voc photos --ray -o shards
    """
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "precision": precision,
        "device": device,
        "runtime": runtime,
        "reporter": ConsoleReporter(),
    }
    if ray is None:
        from regionhash.models.encoding import encode

        report = encode(checkpoint, images, output, workers=n_workers(workers), **common)
    else:
        from regionhash.models import ray_encoding

        report = ray_encoding.encode(
            checkpoint, images, output, address=ray, workers=workers, **common
        )
    if as_json:
        print_json({"codes": output, **encoding_record(report)})
    else:
        say(encoding_line(output, report))
        if ray is None:
            say(f"next: regionhash search {output} --query PICTURE")
        else:
            say(f"next: regionhash import NEW.collection {output}")
    if strict and report.skipped:
        raise typer.Exit(1)
