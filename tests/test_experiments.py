"""The table of experiments, and the command that runs them. Nothing is trained here."""

import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from cli_runner import error_of, run
from regionhash.experiments import EXPERIMENTS, find_experiment, preset_names
from regionhash.experiments.common import command
from regionhash.experiments.dmih import DMIHOptions
from regionhash.experiments.drh import DRHOptions
from regionhash.experiments.region_dh import RegionDHOptions

FIELDS = [
    (paper, field)
    for paper, experiment in EXPERIMENTS.items()
    for field in fields(experiment.Options)
]
GIVEN = {
    "str": ("tiny_fpn", "tiny_fpn"),
    "int": ("3", 3),
    "float": ("1", 1.0),
    "bool": ("false", False),
    "Path | None": ("detector", Path("detector")),
    "tuple[str, ...]": ('["folder:a", "csv:b"]', ("folder:a", "csv:b")),
}
"""By type of a field, what is written after --set, and its value."""


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the runs of all experiments are called with; none runs."""
    calls = []

    def record(*arguments):
        calls.append(arguments)
        return tmp_path / "report.md"

    for paper, experiment in EXPERIMENTS.items():
        monkeypatch.setitem(EXPERIMENTS, paper, replace(experiment, run=record))
    return calls


def options_of(calls, *arguments):
    """The options that a command makes."""
    calls.clear()
    run("reproduce", *arguments)
    ((_, _, _, options, _),) = calls
    return options


def first_preset(paper):
    return next(iter(EXPERIMENTS[paper].presets))


def test_naming_presets_and_options_does_not_import_torch_or_numpy():
    code = (
        "import sys\n"
        "from regionhash.experiments import EXPERIMENTS\n"
        "for experiment in EXPERIMENTS.values():\n"
        "    experiment.Options()\n"
        "assert not {'torch', 'numpy', 'PIL'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_help_names_every_preset():
    words = run("reproduce", "--help").stdout.replace("\n", " ").split()
    named = {word.strip(".,") for word in words}
    assert set(preset_names()) <= named
    assert len(preset_names()) == len(set(preset_names())) == 20


def test_a_preset_has_the_name_of_its_paper():
    for paper, experiment in EXPERIMENTS.items():
        assert all(name.startswith(f"{paper}/") for name in experiment.presets)
        assert find_experiment(first_preset(paper)) is experiment
        assert is_dataclass(experiment.Options) and experiment.Options.__dataclass_params__.frozen


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown preset 'drh/oxford'; known: region-dh/voc2007, "):
        find_experiment("drh/oxford")
    text = error_of("reproduce", "voc")
    assert all(name in text for name in preset_names())


def test_without_a_flag_all_is_left_to_the_defaults(calls, tmp_path):
    for paper, experiment in EXPERIMENTS.items():
        options = options_of(calls, first_preset(paper), "--data", tmp_path, "-o", tmp_path / "out")
        assert options == experiment.Options()
        assert calls[0][:3] == (first_preset(paper), tmp_path, tmp_path / "out")


@pytest.mark.parametrize(("paper", "field"), FIELDS)
def test_every_field_of_every_experiment_can_be_set(calls, paper, field):
    text, value = GIVEN[field.type]
    options = options_of(calls, first_preset(paper), "--set", f"{field.name}={text}")
    assert options == replace(EXPERIMENTS[paper].Options(), **{field.name: value})
    assert type(getattr(options, field.name)) is type(value)


@pytest.mark.parametrize("paper", EXPERIMENTS)
def test_the_help_names_every_setting(paper):
    text = run("reproduce", "--help").stdout
    for field in fields(EXPERIMENTS[paper].Options):
        assert field.name in text or f"--{field.name}" in text


@pytest.mark.parametrize("paper", EXPERIMENTS)
def test_an_unknown_setting_is_refused_with_the_known_ones(paper):
    known = ", ".join(field.name for field in fields(EXPERIMENTS[paper].Options))
    text = error_of("reproduce", first_preset(paper), "--set", "learning=3")
    assert text == f"--set learning: unknown; known are {known}"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["drh/oxford5k", "--seeds", "3"], "--seeds is of no use for drh/oxford5k"),
        (["drh/oxford5k", "--no-ablations"], "--ablations is of no use for drh/oxford5k"),
        (["drh/oxford5k", "--sift"], "--sift is of no use for drh/oxford5k"),
        (["drh/oxford5k", "--head-epochs", "3"], "--head-epochs is of no use for drh/oxford5k"),
        (["region-dh/voc2012", "--distractors", "folder:x"], "--distractors is of no use for reg"),
        (["region-dh/voc2012", "--rpn", "x"], "--rpn is of no use for region-dh/voc2012"),
        (["region-dh/voc2012", "--detector", "x"], "--detector is of no use for region-dh/"),
        (["dmih/sival", "--no-unseen"], "--unseen is of no use for dmih/sival"),
        (["iah/voc2007", "--processes", "2"], "--processes is of no use for iah/voc2007"),
        (["drh/oxford5k", "--rpn", "x", "--detector", "y"], "--rpn and --proposals are one option"),
        (["region-dh/voc2012", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["dmih/sival", "--set", "sift=1"], "--set sift: must be bool, got 1"),
        (["drh/oxford5k", "--set", "short"], "--set short: must be name=value"),
        (["drh/oxford5k", "--data", "/nowhere"], "/nowhere/oxford5k is missing"),
    ],
)
def test_the_command_refuses_what_does_not_fit(arguments, reason):
    assert reason in error_of("reproduce", *arguments)


def test_flags_of_earlier_versions_work(calls):
    flags = ["--seeds", "3", "--detector-epochs", "1", "--trained-stages", "0", "--no-ablations"]
    flags += ["--head-epochs", "2", "--processes", "4", "--backbone", "tiny_fpn", "--short", "64"]
    assert options_of(calls, "region-dh/voc2012", *flags) == RegionDHOptions(
        "tiny_fpn", "default", 64, 3, 1, 0, 2, processes=4, ablations=False
    )
    options = options_of(calls, "iah/voc2007", "--head-epochs", "8", "--no-unseen", "--rpn", "a")
    assert (options.head_epochs, options.unseen, options.detector) == (8, False, Path("a"))
    options = options_of(calls, "dmih/sival", "--no-sift", "--detector", "a", "--weights", "none")
    assert (options.sift, options.detector, options.weights) == (False, Path("a"), "none")
    for flag in ("--detector", "--rpn", "--proposals"):
        more = ["--distractors", "folder:a", "--distractors", "folder:b"]
        assert options_of(calls, "drh/oxford5k", flag, "runs/a", *more) == DRHOptions(
            distractors=("folder:a", "folder:b"), detector=Path("runs/a")
        )


def test_a_flag_overrides_a_setting(calls):
    options = options_of(calls, "region-dh/voc2012", "--set", "seeds=5", "--seeds", "1")
    assert options == RegionDHOptions(seeds=1)


COMMON = {"backbone": "tiny_fpn", "weights": "my weights.pth", "short": 64}


@pytest.mark.parametrize(
    ("paper", "changes"),
    [(paper, {field.name: GIVEN[field.type][1]}) for paper, field in FIELDS]
    + [(paper, {}) for paper in EXPERIMENTS]
    + [
        ("region-dh", COMMON | {"seeds": 3, "views": 1, "processes": 4, "ablations": False}),
        ("iah", COMMON | {"n_proposals": 8, "seed": 2**40, "unseen": False}),
        ("drh", {"detector": Path("my detector"), "distractors": ("true", 'voc:it\'s "ü":val')}),
        ("dmih", COMMON | {"margin": 1e-7, "channels": 16, "sift": False, "seed": 7}),
    ],
)
def test_the_command_of_a_report_gives_the_same_options(calls, paper, changes):
    chosen = replace(EXPERIMENTS[paper].Options(), **changes)
    text = command(first_preset(paper), Path("all data"), chosen)
    program, subcommand, *arguments = shlex.split(text)
    assert (program, subcommand) == ("regionhash", "reproduce")
    assert options_of(calls, *arguments) == chosen
    assert calls[0][:2] == (first_preset(paper), Path("all data"))


def test_the_command_of_a_report_has_no_folders_and_what_differs_from_the_defaults():
    chosen = DMIHOptions(weights="/a/b/net.pth", detector=Path("runs/x/detector"), sift=False)
    assert command("dmih/sival", Path("/data/all"), chosen) == (
        "regionhash reproduce dmih/sival --data all --weights net.pth --detector detector "
        "--set sift=false"
    )
    chosen = DRHOptions(distractors=("folder:/data/more", "voc:/data/VOC2012:train"))
    assert command("drh/instances", Path(), chosen) == (
        "regionhash reproduce drh/instances --data . "
        """--set 'distractors=["folder:more", "voc:VOC2012:train"]'"""
    )
