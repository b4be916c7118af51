"""The command that repeats a paper's experiment."""
# ruff: noqa: D301 (\b keeps the lines of a paragraph apart in the help)

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_PAPERS = ("region-dh", "iah", "drh", "dmih")  # whose presets some options are for


def reproduce(
    context: typer.Context,
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET",
            help="region-dh/voc2007, region-dh/voc2012, iah/voc2007, iah/voc2012, "
            "iah/voc2012-split, iah/mirflickr25k, drh/oxford5k, drh/oxford105k, drh/paris6k, "
            "drh/paris106k, drh/instances, dmih/sival, dmih/voc2007, dmih/voc2007-multi, "
            "dmih/voc2012-multi or dmih/ilsvrc2013det.",
        ),
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
    backbone: Annotated[str, typer.Option(help="See `regionhash models`.")] = "mobilenet_v2_fpn",
    weights: Annotated[
        str, typer.Option(metavar="default|none|FILE", help="Of the backbone, see `train`.")
    ] = "default",
    short: Annotated[int, typer.Option(help="Short side of the network's input, in pixels.")] = 384,
    seeds: Annotated[int, typer.Option(help="region-dh: how often each hash is trained.")] = 2,
    detector_epochs: Annotated[
        int, typer.Option(help="region-dh: passes of the detector's training.")
    ] = 6,
    trained_stages: Annotated[
        int, typer.Option(help="region-dh: stages of the backbone that the detector trains.")
    ] = 1,
    head_epochs: Annotated[
        int,
        typer.Option(
            help="region-dh, iah: passes of each hash's training. Region-DH takes half of it; in "
            "iah, Region-DH and the layers that IAH has for each length take a third."
        ),
    ] = 16,
    processes: Annotated[
        int,
        typer.Option(help="region-dh: processes that train the detector; one per core on a CPU."),
    ] = 1,
    ablations: Annotated[
        bool, typer.Option(help="region-dh: also run the variants of Region-DH.")
    ] = True,
    distractors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help="drh: more pictures for the database, in a form that `regionhash datasets` lists; "
            "may be repeated.",
        ),
    ] = None,
    rpn: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="drh, iah: folder of a Region-DH model. Its proposals are IAH's, in place of "
            "selective search, and its backbone that of IAH and its peers; Table 2 of DRH has its "
            "proposals, too.",
        ),
    ] = None,
    unseen: Annotated[
        bool, typer.Option(help="iah: also search for classes that training left out.")
    ] = True,
    detector: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="dmih: folder of a Region-DH model whose codes of regions are a further row.",
        ),
    ] = None,
    sift: Annotated[
        bool, typer.Option(help="dmih: also run PmH on SIFT words, which needs OpenCV.")
    ] = True,
) -> None:
    """Repeat a paper's experiment and write a report.

    Trains every method at every length, ranks the database for the queries, and writes report.md,
    results.csv and plots. What was done before in the same folder is not done again: the runs of
    region-dh and iah, the features of drh. Options that begin with the names of papers are for
    their presets alone.

    \b
    Examples:
      regionhash reproduce region-dh/voc2012 --data VOCdevkit -o runs/voc2012 --processes 2
      regionhash reproduce iah/voc2012-split --rpn runs/voc2012/runs/detector -o runs/iah
      regionhash reproduce drh/instances --data flat --distractors folder:photos -o runs/flat
    """
    from regionhash.experiments.presets import (
        INSTANCE_PRESETS,
        MULTI_LABEL_PRESETS,
        OBJECT_PRESETS,
    )

    def say(line: str) -> None:
        typer.echo(line, err=True)

    _refuse_options_of_others(context, preset)
    if preset in OBJECT_PRESETS:
        from regionhash.experiments.dmih import ObjectOptions, reproduce_objects

        wanted = ObjectOptions(backbone, weights, short, detector=detector, sift=sift)
        typer.echo(f"wrote {reproduce_objects(preset, data, out, wanted, say)}")
        return
    if preset in INSTANCE_PRESETS:
        from regionhash.experiments.drh import InstanceOptions, reproduce_instances

        asked = InstanceOptions(backbone, weights, short, tuple(distractors or ()), rpn)
        report = reproduce_instances(preset, data, out, asked, say)
        typer.echo(f"wrote {report}")
        return
    if preset in MULTI_LABEL_PRESETS:
        from regionhash.experiments.iah import MultiLabelOptions, reproduce_multi_label

        chosen = MultiLabelOptions(backbone, weights, short, rpn, epochs=head_epochs, unseen=unseen)
        report = reproduce_multi_label(preset, data, out, chosen, say)
        typer.echo(f"wrote {report}")
        return
    from regionhash.experiments.region_dh import Options
    from regionhash.experiments.region_dh import reproduce as run

    options = Options(
        backbone=backbone,
        weights=weights,
        short=short,
        seeds=tuple(range(seeds)),
        detector_epochs=detector_epochs,
        trained_stages=trained_stages,
        head_epochs=head_epochs,
        processes=processes,
        ablations=ablations,
    )
    report = run(preset, data, out, options, say)
    typer.echo(f"wrote {report}")


def _refuse_options_of_others(context: typer.Context, preset: str) -> None:
    """Raises ValueError if an option was given whose help says that it is of other papers."""
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "")
        of = set((getattr(option, "help", None) or "").partition(":")[0].split(", "))
        of_others = of <= set(_PAPERS) and preset.partition("/")[0] not in of
        if of_others and given is not None and given.name == "COMMANDLINE":
            raise ValueError(f"{option.opts[0]} is of no use for {preset}")
