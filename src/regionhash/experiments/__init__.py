"""The papers' experiments, from pictures to a report: one file each, with its run and its report.

Naming presets and options does not import torch: what runs an experiment is imported when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from regionhash.experiments import boxes, dmih, drh, iah, region_dh, rescore
from regionhash.reporter import Reporter

Run = Callable[[str, Path, Path, Any, Reporter], Path]


@dataclass(frozen=True)
class Experiment:
    """What a paper did, on several data sets.

    Attributes:
        presets: by name: which pictures are searched, and with which queries.
        Options: how a preset is run; a frozen dataclass.
        run: takes the name of a preset, the folder of its data, the folder for the report and all
            that leads to it, options, and the reporter; returns the
            report's path. What was done before in the same folder with the same options is not done
            again. Raises ValueError if data is missing (the message says what to put where), cannot
            be read, or is on both sides.
    """

    presets: Mapping[str, object]
    Options: type[Any]
    run: Run


def _run(module: str) -> Run:
    """The function `reproduce` of a module, which is imported when it is called."""

    def run(*arguments: Any) -> Path:
        path: Path = import_module(f"{__name__}.{module}").reproduce(*arguments)
        return path

    return run


EXPERIMENTS = {
    "region-dh": Experiment(region_dh.PRESETS, region_dh.RegionDHOptions, _run("region_dh_run")),
    "iah": Experiment(iah.PRESETS, iah.IAHOptions, _run("iah_run")),
    "drh": Experiment(drh.PRESETS, drh.DRHOptions, _run("drh_run")),
    "dmih": Experiment(dmih.PRESETS, dmih.DMIHOptions, _run("dmih_run")),
    "boxes": Experiment(boxes.PRESETS, boxes.BoxesOptions, _run("boxes_run")),
    "rescore": Experiment(rescore.PRESETS, rescore.RescoreOptions, _run("rescore_run")),
}
"""By paper, and "boxes" and "rescore", which are of none."""


def preset_names() -> list[str]:
    """The names of all presets."""
    return [name for experiment in EXPERIMENTS.values() for name in experiment.presets]


def find_experiment(preset: str) -> Experiment:
    """The experiment that has a preset. Raises ValueError with the known names."""
    for experiment in EXPERIMENTS.values():
        if preset in experiment.presets:
            return experiment
    raise ValueError(f"unknown preset {preset!r}; known: {', '.join(preset_names())}")
