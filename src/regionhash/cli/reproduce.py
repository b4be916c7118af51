"""`regionhash reproduce`: the papers' experiments."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from regionhash.cli.options import Short, Weights
from regionhash.cli.output import ConsoleReporter, say
from regionhash.experiments import EXPERIMENTS, find_experiment, preset_names

_OF_ALL = ("preset", "data", "out", "assignments")  # parameters that are no settings
_FLAGS = ("backbone", "weights", "short", "detector")  # settings with a visible flag


def _settings() -> str:
    """What --set takes besides the visible flags, with the defaults, by experiment."""
    return "; ".join(
        f"{paper}: "
        + ", ".join(
            field.name if field.default == () else f"{field.name}={field.default}".lower()
            for field in fields(experiment.Options)
            if field.name not in _FLAGS
        )
        for paper, experiment in EXPERIMENTS.items()
    )


def _same_as(name: str) -> Any:
    """A flag of earlier versions."""
    return typer.Option(hidden=True, help=f"The same as --set {name}=VALUE.")


def reproduce(
    context: typer.Context,
    preset: Annotated[
        str, typer.Argument(metavar="PRESET", help=f"One of {', '.join(preset_names())}.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder that holds the preset's data, such as VOC2012, oxford5k or objects.csv."
        ),
    ] = Path("VOCdevkit"),
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the report and all that leads to it.")
    ] = Path("runs/reproduce"),
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help=f"A setting of the preset's experiment; may be repeated. {_settings()}.",
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="See `regionhash models`.  [default: mobilenet_v2_fpn]")
    ] = None,
    weights: Weights = None,
    short: Short = None,
    detector: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Folder of a Region-DH model. iah: takes its proposals in place of selective "
            "search, and its backbone; drh: adds its proposals to Table 2; dmih: adds its codes "
            "of regions as a row.",
        ),
    ] = None,
    rpn: Annotated[Path | None, _same_as("detector")] = None,
    proposals: Annotated[Path | None, _same_as("detector")] = None,
    seeds: Annotated[int | None, _same_as("seeds")] = None,
    detector_epochs: Annotated[int | None, _same_as("detector_epochs")] = None,
    trained_stages: Annotated[int | None, _same_as("trained_stages")] = None,
    head_epochs: Annotated[int | None, _same_as("head_epochs")] = None,
    processes: Annotated[int | None, _same_as("processes")] = None,
    ablations: Annotated[bool | None, _same_as("ablations")] = None,
    distractors: Annotated[list[str] | None, _same_as("distractors")] = None,
    unseen: Annotated[bool | None, _same_as("unseen")] = None,
    sift: Annotated[bool | None, _same_as("sift")] = None,
) -> None:
    """Run a paper's experiment and compare with its figures.

    Trains every method at every length, ranks the database for the queries, and writes report.md,
    results.csv and plots. Run it again to resume: features and trainings in the same folder are
    not made twice. Flags override --set.

    \b
    Examples:
      regionhash reproduce region-dh/voc2012 --data VOCdevkit -o runs/voc2012 --set processes=2
      regionhash reproduce iah/voc2012-split --detector runs/voc2012/runs/detector -o runs/iah
      regionhash reproduce drh/instances --data flat --set distractors=folder:photos -o runs/flat
    """
    experiment = find_experiment(preset)
    known = {field.name for field in fields(experiment.Options)}
    flags: dict[str, Any] = {}
    for flag, value in context.params.items():
        if flag in _OF_ALL or value in (None, (), []):
            continue
        name = "detector" if flag in ("rpn", "proposals") else flag
        if name not in known:
            raise ValueError(f"--{flag.replace('_', '-')} is of no use for {preset}")
        if name in flags:
            raise ValueError("--detector, --rpn and --proposals are one option: give one of them")
        flags[name] = value

    from regionhash.training.settings import options_from

    options = options_from(experiment.Options, assignments or (), flags)
    page = experiment.run(preset, data, out, options, ConsoleReporter())
    say(f"wrote {page}")
