"""The commands that describe collections, code files, models and data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from regionhash.cli.options import Json
from regionhash.cli.output import print_json, print_lines, print_table


def info(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A code file, a collection, or the folder of a trained model."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Describe a collection, a code file or a model.

    \b
    Example:
      regionhash info codes.h5
    """
    record: dict[str, Any]
    from regionhash.collection import Collection, is_collection

    is_file = path.is_file() and path.suffix not in (".json", ".safetensors")
    if is_collection(path):
        with Collection.open(path) as collection:
            record = collection.info()
    elif is_file:
        from regionhash.store import CodeSet

        file = CodeSet.open(path)
        codes = file.table.region_codes
        record = {
            "pictures": len(file.table),
            "regions": 0 if codes is None else len(codes),
            "bits": file.n_bits,
            "region_bits": file.n_region_bits,
            "labels": file.labels is not None,
            "classes": list(file.classes),
            "model": file.model,
            "model_hash": file.model_hash,
            **file.meta,
        }
    else:
        from regionhash.models.checkpoints import read_checkpoint

        checkpoint = read_checkpoint(path)
        record = {
            "model": checkpoint.name,
            "model_hash": checkpoint.model_hash,
            "arguments": checkpoint.arguments,
            "short": checkpoint.short,
            "classes": list(checkpoint.classes),
            "provenance": checkpoint.provenance,
        }
    if as_json:
        print_json(record)
        return
    table = Table("what", "value")
    for name, value in record.items():
        table.add_row(name, value if isinstance(value, str) else json.dumps(value))
    print_table(table)


def models(as_json: Json = False) -> None:
    """List the models and the backbones.

    `regionhash train` trains a model on labels; drh needs none and is fitted by `regionhash index`.

    \b
    Example:
      regionhash models
    """
    from regionhash.models import MODELS
    from regionhash.parts.backbones import BACKBONES

    builders = {}
    for name in MODELS:
        try:
            builders[name] = (MODELS[name].__doc__ or "").partition("\n")[0]
        except ValueError as error:  # of another package
            builders[name] = f"cannot be used: {error}"
    backbones = {name: spec.summary for name, spec in BACKBONES.items()}
    if as_json:
        print_json({"models": builders, "backbones": backbones})
        return
    for title, lines in (("model", builders), ("backbone", backbones)):
        print_lines(title, lines)


def datasets(as_json: Json = False) -> None:
    """List the forms of a data set that commands accept.

    \b
    Example:
      regionhash datasets
    """
    from regionhash.data import forms

    if as_json:
        print_json(forms())
    else:
        print_lines("form", forms())
