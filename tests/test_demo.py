"""The demonstration, with the checkpoints that come with the package."""

import io
import shlex
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cli_runner import run as run_command
from regionhash.experiments import demo
from regionhash.experiments.demo import METHODS, SHIPPED, run_demo
from regionhash.models.checkpoints import GRAPH_FILES, load_checkpoint
from regionhash.reporter import Reporter
from regionhash.store import CodeFile

GREEN = (26, 152, 80)  # of the frame around a right result
FRAME_PIXELS = 4 * 5 * (250 - 5)
N_DATABASE, N_QUERIES = 60, 10


def run(folder, **options):
    """What the demonstration measures and what it says."""
    said = io.StringIO()
    console = Console(file=said, width=100)

    class Printing(Reporter):
        def note(self, line):
            console.print(line, highlight=False)

    sizes = {"n_database": N_DATABASE, "n_queries": N_QUERIES}
    return run_demo(
        folder, console=console, reporter=Printing(), **sizes | options
    ), said.getvalue()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    results, text = run(folder)
    return folder, results, text


def test_the_package_brings_a_small_checkpoint_of_every_method():
    for name in METHODS:
        model, checkpoint = load_checkpoint(SHIPPED / name)
        assert checkpoint.name == name
        assert checkpoint.classes == tuple("0123456789")
        assert model.n_bits == 48
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    names = {"model.json", "model.safetensors", *GRAPH_FILES}
    assert {path.name for path in files} == names
    assert sum(path.stat().st_size for path in files) < 22_000_000


def test_region_dh_ranks_far_better_than_chance_and_before_the_others(shown):
    _, results, text = shown
    assert list(results) == ["region-dh", "ssdh", "dlbhc", "control"]
    random, best = (line_values(text, title) for title in ("nothing", "the labels"))
    assert random["map"] < 0.75
    assert best["map"] == 1
    error = 1 - results["region-dh"]["map"]
    assert error < 0.5 * (1 - random["map"])
    for name in ("ssdh", "dlbhc", "control"):
        assert error < 0.8 * (1 - results[name]["map"])


def test_the_table_has_a_row_for_each_method_with_its_figures(shown):
    _, results, text = shown
    assert f"{N_QUERIES} queries, {N_DATABASE} scenes, 48 bits" in text
    for name, measures in results.items():
        assert line_values(text, METHODS[name].title) == pytest.approx(measures, abs=5e-4)


@pytest.mark.parametrize(("mode", "n_right"), [("image", 0), ("region", 8), ("objects", 2)])
def test_each_mode_leaves_a_sheet_with_right_results(shown, mode, n_right):
    folder, _, text = shown
    path = folder / f"{mode}.png"
    assert f"{path}: " in text
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        green = (np.asarray(sheet.convert("RGB")) == GREEN).all(axis=2).sum()
    assert green >= n_right * FRAME_PIXELS


def test_the_search_that_it_suggests_can_be_typed(shown):
    folder, _, text = shown
    command = next(line for line in text.splitlines() if f"regionhash search {folder}" in line)
    run_command(*shlex.split(command)[1:])
    assert (folder / "hits.html").exists()


def test_an_earlier_demonstration_is_replaced(tmp_path, shown):
    folder, *_ = shown
    for name in ("region-dh-database.h5", "region-dh-queries.h5"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "ssdh-database.h5").write_bytes(b"something else")
    run(tmp_path, n_database=5, n_queries=3)
    assert len(CodeFile.open(tmp_path / "region-dh-database.h5").table) == 5
    assert len(CodeFile.open(tmp_path / "ssdh-database.h5").table) == 5


@pytest.mark.slow
def test_models_can_be_trained_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TRAINING_SCENES", "digits:train:8:0")
    changes = {"epochs": 1, "workers": 0, "held_out": 0.25}
    quick = {
        name: replace(method, training=replace(method.training, **changes))
        for name, method in METHODS.items()
    }
    monkeypatch.setattr(demo, "METHODS", quick)
    _, text = run(tmp_path, train=True, n_database=4, n_queries=2)
    for name, method in quick.items():
        assert f"training {method.title}\nepoch 1/1  " in text
        _, checkpoint = load_checkpoint(tmp_path / "models" / name)
        codes = CodeFile.open(tmp_path / f"{name}-queries.h5")
        assert codes.model_hash == checkpoint.model_hash
    backbones = (
        load_checkpoint(tmp_path / "models" / name)[0].backbone.stages.state_dict()
        for name in ("region-dh", "control")
    )
    trained, control = backbones
    assert all((trained[key] == control[key]).all() for key in trained)


@pytest.mark.parametrize("numbers", [{"n_database": 0}, {"n_queries": 0}])
def test_a_number_of_scenes_must_be_positive(tmp_path, numbers):
    with pytest.raises(ValueError, match="n must be positive, got 0"):
        run(tmp_path / "demo", **numbers)
    assert not (tmp_path / "demo").exists()


def line_values(text, title):
    """The figures in the row of the table that begins with `title`."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"│ {title}"))
    figures = [float(cell) for cell in line.split("│")[2:4]]
    return dict(zip(("map", "acg"), figures, strict=True))
