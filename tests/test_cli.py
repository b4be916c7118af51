"""The command line: what it prints, what it leaves behind, and how it ends."""

import inspect
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from typer.main import get_command

from cli_runner import error_of, run
from conftest import TINY, TINY_BACKBONE, build_tiny, collect, save_tiny, write_picture
from regionhash import cli
from regionhash.data import open_dataset
from regionhash.evaluation import detection_map, evaluate_ranking
from regionhash.models.checkpoints import Checkpoint, save_checkpoint
from regionhash.store import CodeFile

ROOT = Path(__file__).parents[1]
COMMANDS = get_command(cli.app).commands


def encode(folder, inputs, output, *options):
    return run("encode", folder, inputs, "-o", output, "--workers", 0, *options)


@pytest.fixture(scope="session")
def codes(saved, photos, tmp_path_factory):
    """Codes of the six photos."""
    path = tmp_path_factory.mktemp("codes") / "codes.h5"
    encode(saved.folder, photos, path)
    return path


@pytest.fixture(scope="session")
def labelled(saved, tmp_path_factory):
    """Codes of twelve labelled scenes."""
    path = tmp_path_factory.mktemp("labelled") / "labelled.h5"
    encode(saved.folder, "digits:test:12", path)
    return path


# Help and lists


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name):
    text = run(name, "--help").stdout
    assert f"  regionhash {name}" in text
    for parameter in COMMANDS[name].params:
        assert parameter.name == "help" or parameter.help, parameter.name


def test_the_list_of_commands_has_each_description_whole():
    _, _, text = run("--help").stdout.partition("Commands:")
    assert not [line for line in text.splitlines() if line.endswith("...")]
    for command in cli.COMMANDS.values():
        assert inspect.getdoc(command).partition("\n")[0] in text


def test_the_command_page_is_up_to_date():
    spec = spec_from_file_location("write_cli_docs", ROOT / "scripts" / "write_cli_docs.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.cli_page(), "run: python scripts/write_cli_docs.py"
    assert all(f"## regionhash {name}\n" in page for name in COMMANDS)


def test_help_and_errors_of_usage_do_not_wait_for_torch():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from regionhash.cli import app\n"
        "for args in (['--help'], ['search', '--help'], ['search', 'codes.h5'], ['datasets']):\n"
        "    CliRunner().invoke(app, args)\n"
        "assert not {'torch', 'faiss', 'h5py'} & sys.modules.keys(), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_lists_name_every_model_backbone_and_form():
    lines = run("models").stdout.splitlines()
    names = [line.split()[0] for line in lines]
    assert names[:2] == ["model", "region-dh"]
    assert {"ssdh", "dlbhc", "control", "vgg16", "resnet50_fpn", "tiny_fpn"} <= set(names)
    assert all(len(line.split()) > 2 for line in lines if not line.endswith("description"))
    record = json.loads(run("models", "--json").stdout)
    assert [*record["models"], *record["backbones"]] == [
        name for name in names if name not in ("model", "backbone")
    ]
    assert "voc:ROOT:SPLIT" in run("datasets").stdout
    assert "digits:SPLIT:N[:SEED]" in json.loads(run("datasets", "--json").stdout)


def test_the_command_that_is_installed_is_this_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["regionhash"].partition(":")
    assert getattr(import_module(module), name) is cli.main


# Training


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The result of a training command, and its folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = folder.parent / "tiny.toml"
    arguments = {name: TINY[name] for name in ("n_hidden", "fpn_channels", "max_regions")}
    lines = ["[model]", *(f"{name} = {value}" for name, value in arguments.items())]
    lines += ["[training]", "epochs = 9", "flip = false", "workers = 0", "short = 96"]
    config.write_text("\n".join(lines))
    command = ["train", "region-dh", "digits:train:12", "-o", folder, "--config", config]
    command += ["--bits", 16, "--backbone", "tiny_fpn", "--weights", "none", "--short", 64]
    command += ["--set", "n_proposals=8", "--set", "epochs=2", "--batch-size", 4]
    return folder, command, run(*command)


def test_training_ends_with_what_to_type_next(trained):
    folder, _, result = trained
    model_hash = json.loads((folder / "model.json").read_text())["model_hash"]
    assert result.stdout == (
        f"{folder}: region-dh, model {model_hash}\n"
        f"next: regionhash encode {folder} YOUR_PICTURES -o codes.h5\n"
    )
    epochs = result.stderr.splitlines()
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert "cls3 " in epochs[0]
    assert "held-out " in epochs[0]


def test_flags_win_over_assignments_and_these_over_the_file(trained):
    record = json.loads(run("info", trained[0], "--json").stdout)
    assert record["arguments"]["n_hidden"] == 32  # the file
    assert record["arguments"]["n_proposals"] == 8  # --set
    assert record["arguments"]["n_bits"] == 16  # a flag
    assert record["provenance"]["training"]["epochs"] == 2  # --set over the file
    assert record["short"] == 64  # a flag over the file


def test_a_finished_training_is_not_done_again(trained):
    _, command, first = trained
    again = run(*command, "--json")
    record = json.loads(again.stdout)
    assert record["epochs"] == []
    assert record["model_hash"] in first.stdout


def test_a_model_starts_from_another(trained, tmp_path):
    folder, command, _ = trained
    command = [tmp_path if part == folder else part for part in command]
    run(*command, "--init", folder, "--cached-views", 1, "--set", "epochs=1")
    first, second = (load_file(place / "model.safetensors") for place in (folder, tmp_path))
    for name in first:
        trained_anew = name.startswith(("instance.", "h1.", "classify", "context.", "h2."))
        assert np.array_equal(first[name], second[name]) != trained_anew, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vgg", "digits:train:4"], "unknown model 'vgg'; known: region-dh, ssdh,"),
        (["ssdh", "pascal:x"], "'pascal:x' names no data set; the forms are"),
        (["ssdh", "voc:nowhere:train"], "nowhere/JPEGImages is missing"),
        (["ssdh", "digits:train:4", "--set", "bits=8"], "--set bits: unknown; known are n_bits,"),
        (["ssdh", "digits:train:4", "--backbone", "vgg"], "unknown backbone 'vgg'; known: vgg16,"),
        (["ssdh", "digits:train:4", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["ssdh", "digits:train:4", "--init", "no"], "no such file; a checkpoint is a folder"),
        (["ssdh", "digits:train:4", "--init", "coco"], "init: unknown; known are n_bits,"),
    ],
)
def test_bad_input_of_training_is_named(tmp_path, arguments, message):
    assert message in error_of("train", *arguments, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Encoding


def test_encoding_prints_what_it_did_and_what_to_type_next(saved, photos, tmp_path):
    path = tmp_path / "codes.h5"
    result = encode(saved.folder, photos, path)
    summary, following = result.stdout.splitlines()
    assert summary.startswith(f"{path}: 6 encoded in ")
    assert summary.endswith(" s, 0 stored before, 0 skipped")
    assert following == f"next: regionhash search {path} --query PICTURE"
    assert result.stderr == ""
    again = json.loads(encode(saved.folder, photos, path, "--json").stdout)
    assert (again["encoded"], again["stored_before"], again["skipped"]) == (0, 6, {})


def test_a_bad_picture_is_named_and_counted_and_strict_makes_it_an_error(saved, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes((photos / "0.png").read_bytes()[:500])
    command = ["encode", saved.folder, photos / "1.png", bad, "--workers", 0]
    result = run(*command, "-o", tmp_path / "a.h5")
    assert result.stderr.startswith(f"skipped: {bad}: ")
    assert "1 encoded" in result.stdout
    assert "1 skipped" in result.stdout
    result = run(*command, "-o", tmp_path / "b.h5", "--strict", "--json", code=1)
    assert list(json.loads(result.stdout)["skipped"]) == [str(bad)]
    assert len(CodeFile.open(tmp_path / "b.h5").table) == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["nothing-here"], "nothing-here: no such file or folder"),
        (["EMPTY"], "EMPTY: no picture"),
        (["EMPTY/*.jpg"], "no picture"),
        (["@EMPTY/list"], "cannot read the list"),
        (["digits:test:4", "EMPTY"], "digits:test:4: a data set must be the only input"),
        (["voc:EMPTY:train"], "JPEGImages is missing"),
    ],
)
def test_inputs_without_pictures_are_named(saved, tmp_path, monkeypatch, inputs, message):
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    assert message in error_of("encode", saved.folder, *inputs, "-o", "codes.h5")
    assert not Path("codes.h5").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "checkpoint format 99, this version of regionhash reads 1"),
        ({"model": "other"}, "unknown model 'other'"),
        ({"weights_hash": "0" * 64}, "changed since the model was saved"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_named(saved, photos, tmp_path, change, message):
    for file in saved.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "model.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    said = error_of("encode", tmp_path, photos, "-o", tmp_path / "codes.h5")
    assert said.startswith(str(tmp_path))
    assert message in said


def test_another_models_codes_are_refused_and_kept(other_saved, photos, codes, tmp_path):
    path = tmp_path / "codes.h5"
    path.write_bytes(codes.read_bytes())
    said = error_of("encode", other_saved.folder, photos, "-o", path)
    assert said.startswith(f"{path}: model_hash must be ")
    assert path.read_bytes() == codes.read_bytes()


def test_a_damaged_code_file_is_refused_and_kept(saved, photos, tmp_path):
    path = tmp_path / "codes.h5"
    path.write_bytes(b"no HDF5")
    for command in (
        ["encode", saved.folder, photos, "-o", path],
        ["search", path, "--query", photos / "0.png"],
        ["evaluate", path, path],
        ["info", path],
    ):
        assert error_of(*command).startswith(f"{path}: not a readable HDF5 file")
    assert path.read_bytes() == b"no HDF5"


def test_a_full_disk_is_told_and_what_was_written_stays(saved, tmp_path):
    path = tmp_path / "codes.h5"
    command = ["encode", saved.folder, "digits:test:20", "-o", path]
    command += ["--workers", 0, "--batch-size", 1]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # stands for a full disk
    try:
        said = error_of(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said.startswith(f"{path}.part: cannot write: ")
    record = json.loads(run(*command, "--json").stdout)
    assert record["stored_before"] > 0
    assert record["encoded"] + record["stored_before"] == 20


@pytest.mark.slow
def test_an_encoding_that_was_killed_goes_on_to_the_same_file(saved, tmp_path):
    whole, killed = tmp_path / "whole.h5", tmp_path / "killed.h5"
    command = ["encode", saved.folder, "digits:test:80", "--batch-size", 1, "--workers", 1]
    command += ["--precision", "32-true", "-o"]  # another process may prefer another
    # One thread, as in this process: sums in another order round differently.
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "regionhash", *map(str, command), str(killed)]
    journal = killed.with_name("killed.h5.part")
    with subprocess.Popen(arguments, env=environment, start_new_session=True) as process:
        while not (journal.exists() and journal.stat().st_size > 1000):
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not killed.exists()
    record = json.loads(run(*command, killed, "--json").stdout)
    assert 0 < record["stored_before"] < 80
    run(*command, whole)
    assert killed.read_bytes() == whole.read_bytes()


def test_an_interruption_says_that_the_command_goes_on(saved, photos, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("regionhash.models.encoding.encode_images", interrupted)
    result = run("encode", saved.folder, photos, "-o", tmp_path / "codes.h5", code=130)
    assert result.stderr == "interrupted\nrun the same command again to resume\n"


# Searching


def test_a_search_by_picture_prints_a_table(photos, codes):
    result = run("search", codes, "--query", photos / "2.png", "--top", 2)
    lines = result.stdout.splitlines()
    assert lines[1].split("┃")[1:4] == [" rank ", " distance ", " picture "]
    first = [cell.strip() for cell in lines[3].split("│")]
    assert first[1:4] == ["1", "0", "2.png"]
    assert len(lines) == 6
    assert result.stderr == ""


def test_a_search_by_box_answers_with_the_matched_box(saved, photos, codes):
    box = "20,30,90,100"
    command = ["search", codes, "--query", photos / "2.png", "--box", box, "--json"]
    record = json.loads(run(*command).stdout)
    assert record["mode"] == "region"
    assert record["queries"] == [{"picture": "2.png", "boxes": [[20.0, 30.0, 90.0, 100.0]]}]
    distances = [hit["distance"] for hit in record["hits"]]
    assert distances == sorted(distances)
    table = CodeFile.open(codes).table
    for hit in record["hits"]:
        (match,) = hit["matches"]
        regions = table.regions(list(table.ids).index(hit["picture"]))
        (row,) = np.flatnonzero((regions.boxes == match["box"]).all(axis=1))[:1]
        assert match["distance"] == hit["distance"]
        assert match["class"] == "0123456789"[regions.labels[row]]


def test_boxes_of_several_pictures_are_objects_that_are_all_wanted(photos, codes):
    first, second = photos / "2.png", photos / "4.png"
    command = ["search", codes, "--query", f"{first}@20,30,90,100", "--query"]
    record = json.loads(run(*command, f"{second}@5,5,60,60", "--json", "--box", "0,0,9,9").stdout)
    assert record["mode"] == "objects"
    assert [len(query["boxes"]) for query in record["queries"]] == [2, 1]
    for hit in record["hits"]:
        assert hit["distance"] == sum(match["distance"] for match in hit["matches"])
        assert len(hit["matches"]) == 3


def test_a_box_that_is_cut_off_is_noted(photos, codes):
    command = ["search", codes, "--query", photos / "0.png", "--without-distance", 0]
    command += ["--box=-20,10,80,50", "--without", f"{photos / '2.png'}@100,30,200,100", "--json"]
    result = run(*command)
    notes = [
        "0.png: box -20,10,80,50: 20% of it lies outside of the picture, 160 x 100 pixels, and is "
        "ignored",
        "2.png: box 100,30,200,100: 40% of it lies outside of the picture, 160 x 160 pixels, and "
        "is ignored",
    ]
    record = json.loads(result.stdout)
    assert record["notes"] == notes
    assert record["queries"][0]["boxes"] == [[0, 10, 80, 50]]
    assert result.stderr == "".join(f"note: {note}\n" for note in notes)
    result = run("search", codes, "--query", photos / "0.png", "--box=-1,10,80,50", "--json")
    assert (json.loads(result.stdout)["notes"], result.stderr) == ([], "")


def test_scores_and_classes_that_mean_nothing_are_not_shown(drh_collection, photos, tmp_path):
    command = ["search", drh_collection, "--query", photos / "2.png", "--box", "20,30,90,100"]
    for more in ([], ["--steps", "global,local"], ["--box", "5,5,60,60"]):
        shown = run(*command, *more).stdout
        assert "box" in shown and "score" not in shown and "class" not in shown
        assert "1.00" not in shown
        for hit in json.loads(run(*command, *more, "--json").stdout)["hits"]:
            assert all((match["class"], match["score"]) == (None, None) for match in hit["matches"])
    said = error_of(*command, "--min-score", 0.5)
    assert said == (
        "--min-score needs scores of detected classes, which the model of these codes lacks"
    )


def test_scores_and_classes_of_a_model_that_has_them_are_shown(photo_collection, photos):
    command = ["search", photo_collection, "--query", photos / "2.png", "--box", "20,30,90,100"]
    shown = run(*command).stdout
    assert "class" in shown and "score" in shown
    for hit in json.loads(run(*command, "--json").stdout)["hits"]:
        (match,) = hit["matches"]
        assert match["class"] in "0123456789" and 0 < match["score"] < 1
    assert json.loads(run(*command, "--min-score", 0.999, "--json").stdout)["hits"] == []


def test_a_category_without_a_probability_shows_none(certain_collection, photos, tmp_path):
    command = ["search", certain_collection, "--query", photos / "2.png", "--mode", "category"]
    shown = run(*command, "--sheet", tmp_path / "sheet.html").stdout
    assert "cat, 6 pictures" in shown and "probability" not in shown
    assert "probability" not in (tmp_path / "sheet.html").read_text()
    groups = json.loads(run(*command, "--json").stdout)["groups"]
    assert [(own["category"], own["probability"], len(own["hits"])) for own in groups] == [
        ("cat", None, 6),
        ("dog", None, 6),
        ("cow", None, 6),
    ]
    said = error_of(*command, "--min-prob", 0.5)
    assert said == (
        "--min-prob needs probabilities of categories, which the model category-baseline lacks"
    )


def test_two_objects_are_found_where_there_are_two_of_them(cups, photos, tmp_path):
    command = ["search", cups, "--query", photos / "2.png"]
    command += ["--box", "20,30,90,100", "--box", "20,30,90,100"]
    hits = json.loads(run(*command, "--json").stdout)["hits"]
    assert [(hit["picture"], hit["distance"]) for hit in hits] == [
        ("two.png", 1),
        ("nested.png", 16),
        ("one.png", 16),
    ]
    assert [match["box"] for match in hits[0]["matches"]] == [[0, 0, 40, 40], [50, 0, 90, 40]]
    assert hits[2]["matches"][1] == {"box": None, "distance": 16, "class": None, "score": None}
    shared = json.loads(run(*command, "--shared-regions", "--json").stdout)["hits"]
    assert [(hit["picture"], hit["distance"]) for hit in shared] == [
        ("nested.png", 0),
        ("one.png", 0),
        ("two.png", 0),
    ]
    said = run(*command, "--sheet", tmp_path / "sheet.html").stdout
    assert "16 = 0 + 16" in said and "none" in said
    assert (tmp_path / "sheet.html").read_text().count('class="picture"') == 4
    run(*command, "--sheet", tmp_path / "sheet.png")
    wrong = error_of(
        "search", cups, "--query", photos / "2.png", "--mode=image", "--shared-regions"
    )
    assert "--shared-regions needs mode objects, got mode image" in wrong


def test_a_picture_without_a_box_stands_for_its_best_detections(photos, codes):
    table = CodeFile.open(codes).table
    shown = table.regions(2)
    command = ["search", codes, "--query", photos / "2.png", "--json", "--mode"]
    region = json.loads(run(*command, "region").stdout)
    np.testing.assert_allclose(region["queries"][0]["boxes"], shown.boxes[:1], atol=1e-3)
    objects = json.loads(run(*command, "objects").stdout)
    rows = [int(np.flatnonzero(shown.labels == label)[0]) for label in dict.fromkeys(shown.labels)]
    np.testing.assert_allclose(objects["queries"][0]["boxes"], shown.boxes[rows], atol=1e-3)
    assert objects["hits"][0]["distance"] == 0


def test_pictures_with_an_unwanted_object_are_left_out(photos, codes):
    command = ["search", codes, "--query", f"{photos / '2.png'}@20,30,90,100", "--json"]
    every = json.loads(run(*command).stdout)["hits"]
    command += ["--without", photos / "4.png"]
    record = json.loads(run(*command, "--without-distance", 0).stdout)
    assert record["mode"] == "objects"
    ((unwanted,),) = (entry["boxes"] for entry in record["without"])
    table = CodeFile.open(codes).table
    unwanted_regions = table.regions(4)  # the best detection stands for the picture
    np.testing.assert_allclose(unwanted, unwanted_regions.boxes[0], atol=1e-3)
    has = [
        table.ids[n]
        for n in range(len(table))
        if (table.regions(n).codes == unwanted_regions.codes[0]).all(axis=1).any()
    ]
    assert "4.png" in has
    expected = [hit["picture"] for hit in every if hit["picture"] not in has]
    assert [hit["picture"] for hit in record["hits"]] == expected
    said = run(*command[:-3], *command[-2:], "--without-distance", 16).stdout
    assert said == "all pictures were left out\n"


def test_what_must_not_be_there_is_refused_where_whole_pictures_are_compared(photos, codes):
    picture = photos / "0.png"
    said = error_of("search", codes, "--query", picture, "--without", picture, "--mode", "image")
    assert "--without needs mode objects, got mode image" in said


def test_of_several_queries_the_one_that_cannot_be_read_is_named(photos, codes, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    queries = [photos / "0.png", photos / "1.png", tmp_path / "broken.png", photos / "2.png"]
    said = error_of("search", codes, *(part for query in queries for part in ("--query", query)))
    assert "broken.png: not a picture of a known format" in said


def test_top_may_be_more_than_there_is(photos, codes):
    record = json.loads(
        run("search", codes, "--query", photos / "0.png", "--top", 999, "--json").stdout
    )
    assert [hit["rank"] for hit in record["hits"]] == [1, 2, 3, 4, 5, 6]


def test_a_file_whose_name_has_an_at_sign_is_a_query(photos, codes, tmp_path):
    path = tmp_path / "a@1,2.png"
    path.write_bytes((photos / "0.png").read_bytes())
    record = json.loads(run("search", codes, "--query", path, "--json").stdout)
    assert record["queries"] == [{"picture": "a@1,2.png", "boxes": []}]
    record = json.loads(run("search", codes, "--query", f"{path}@1,2,50,60", "--json").stdout)
    assert record["queries"] == [{"picture": "a@1,2.png", "boxes": [[1, 2, 50, 60]]}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--box", "1,2,3"], "box '1,2,3': must be four numbers x0,y0,x1,y1"),
        (["--box", "a,b,c,d"], "box 'a,b,c,d': must be four numbers x0,y0,x1,y1"),
        (["--box", "nan,0,9,9"], "0.png: box nan,0,9,9: needs x0 < x1 and y0 < y1"),
        (["--box", "30,10,20,40"], "0.png: box 30,10,20,40: needs x0 < x1 and y0 < y1"),
        (
            ["--box", "500,500,600,600"],
            "0.png: box 500,500,600,600: lies outside of the picture, 160 x 100 pixels",
        ),
        (
            ["--box", "0,0,1600,1000"],
            "0.png: box 0,0,1600,1000: more than half of it lies outside of the picture, 160 x 100",
        ),
        (
            ["--box", "0.1,0.2,0.5,0.9"],
            "0.png: box 0.1,0.2,0.5,0.9: must be in pixels of the picture, 160 x 100 pixels",
        ),
        (["--box=-inf,0,9,9"], "0.png: box -inf,0,9,9: must be finite"),
        (
            ["--mode", "objects", "--without", "PHOTO@0.1,0.2,0.5,0.9"],
            "0.png: box 0.1,0.2,0.5,0.9: must be in pixels of the picture, 160 x 100 pixels",
        ),
        (["--top", "0"], "--top must be at least 1, got 0"),
        (
            ["--mode", "image", "--box", "1,2,30,40"],
            "--mode image takes one whole picture, got 1 pictures and 1 boxes",
        ),
        (
            ["--mode", "region", "--box", "1,2,30,40", "--box", "1,2,30,50"],
            "--mode region takes one picture with at most one box, got 1 pictures and 2 boxes",
        ),
        (["--label", "7"], "CODES: has no labels, so --label cannot say what is correct"),
        (["--label", "cat"], "label 'cat': not a class of the model, which knows 0, 1,"),
        (["--without-distance", "3"], "--without-distance needs objects to exclude"),
        (
            ["--without", "gone.png"],
            "gone.png: No such file or directory",
        ),
        (["--images-dir", "."], "--label and --images-dir need --sheet"),
        (["--sheet", "x.pdf"], "x.pdf: a sheet must end in .png or .html, got '.pdf'"),
        (["--query", "gone.png"], "gone.png: No such file or directory"),
        (["--query", "gone.png@1,2,3,4"], "gone.png: No such file or directory"),
        (["--model", "gone"], "gone: model not found; pass it with --model"),
    ],
)
def test_bad_input_of_a_search_is_named(photos, codes, options, message):
    options = [option.replace("PHOTO", str(photos / "0.png")) for option in options]
    said = error_of("search", codes, "--query", photos / "0.png", *options)
    assert message.replace("CODES", str(codes)) in said


def test_a_query_that_cannot_be_read_is_named(codes, tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    assert error_of("search", codes, "--query", path) == f"{path}: the file is empty"


def test_another_model_than_that_of_the_codes_is_refused(saved, other_saved, photos, codes):
    command = ["search", codes, "--query", photos / "0.png", "--model", other_saved.folder]
    assert error_of(*command) == (
        f"{codes}: made by the model {saved.checkpoint.model_hash} (region-dh), which cannot be "
        f"searched with {other_saved.checkpoint.model_hash} (region-dh)"
    )


def test_a_query_without_a_detection_is_told(photos, tmp_path):
    strict = save_tiny(tmp_path / "strict", min_score=0.99)
    path = tmp_path / "codes.h5"
    encode(strict.folder, photos, path)
    command = ["search", path, "--query", photos / "0.png"]
    said = error_of(*command, "--mode", "region")
    assert said == "0.png: nothing was detected in it; mark the object with a box"
    assert error_of(*command, "--mode", "objects") == said
    # A box finds nothing either, as no picture has a region; whole pictures are still found.
    assert json.loads(run(*command, "--box", "1,2,30,40", "--json").stdout)["hits"] == []
    assert run(*command, "--box", "1,2,30,40").stdout == "no picture has a region\n"
    assert len(json.loads(run(*command, "--json").stdout)["hits"]) == 6


# Contact sheets


def test_a_sheet_finds_the_pictures_from_any_folder(photos, codes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("search", codes, "--query", photos / "2.png", "--sheet", "found.html")
    page = Path("found.html").read_text()
    assert "6 nearest of 6 pictures, by image" in page
    assert page.count("data:image/jpeg") == 7
    assert "not found" not in page


def test_a_sheet_says_which_pictures_are_gone_and_looks_where_it_is_told(
    saved, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before, after = Path("before"), Path("after")
    before.mkdir()
    for name in ("0.png", "1.png"):
        (before / name).write_bytes((photos / name).read_bytes())
    encode(saved.folder, before, "codes.h5")
    before.rename(after)
    command = ["search", "codes.h5", "--query", photos / "0.png", "--sheet", "found.html"]
    run(*command)
    assert Path("found.html").read_text().count("picture not found</figcaption>") == 2
    run(*command, "--images-dir", after)
    assert "not found" not in Path("found.html").read_text()


def test_frames_are_green_and_red_where_labels_are_known(labelled, tmp_path):
    scenes = open_dataset("digits:test:12")
    query, page = tmp_path / "query.png", tmp_path / "found.html"
    write_picture(query, scenes.images[0])
    digit = scenes.classes[scenes.targets[0].labels[0]]
    command = ["search", labelled, "--query", query, "--sheet", page]
    run(*command, "--label", digit)
    n_right = int(scenes.labels()[:, int(digit)].sum())
    assert 0 < n_right < 12
    assert page.read_text().count(", right") == n_right
    assert page.read_text().count(", wrong") == 12 - n_right
    run(*command)
    assert page.read_text().count(", not judged") == 13


@pytest.fixture(scope="module")
def category_codes(tmp_path_factory):
    """Codes of six scenes by an IAH that finds the digits 3 and 7 everywhere."""
    folder = tmp_path_factory.mktemp("iah")
    arguments = TINY_BACKBONE | {"n_bits": 16, "n_classes": 10}
    arguments |= {"fpn_channels": 16, "n_proposals": 4, "multi_label": "bce", "max_regions": 2}
    model = build_tiny("iah", **arguments)
    with torch.no_grad():
        model.label.weight.mul_(0.01)
        model.label.bias.fill_(-5.0)
        model.label.bias[[3, 7]] = torch.tensor([0.0, 2.0])
    save_checkpoint(folder / "model", model, Checkpoint("iah", arguments, tuple("0123456789"), 64))
    run("encode", folder / "model", "digits:test:6", "-o", folder / "codes.h5")
    return folder / "codes.h5"


def test_a_search_by_category_answers_in_groups(photos, category_codes, tmp_path):
    asked = ["search", category_codes, "--query", photos / "0.png", "--mode", "category"]
    sheet = tmp_path / "found.html"
    lines = run(*asked, "--top", 3, "--sheet", sheet).stdout.splitlines()
    headings = [line for line in lines if "probability" in line]
    assert [line.split(",")[0] for line in headings] == ["7", "3"]  # the more probable one first
    columns = [line.split() for line in lines if "rank" in line]
    assert columns == [["┃", "rank", "┃", "distance", "┃", "picture", "┃"]] * 2
    assert all(line.endswith("3 pictures") for line in headings)
    record = json.loads(run(*asked, "--json").stdout)
    assert record["mode"] == "category" and record["hits"] == []
    seven, three = record["groups"]
    assert (seven["category"], three["category"]) == ("7", "3")
    assert seven["probability"] == pytest.approx(0.88, abs=0.02)
    assert three["probability"] == pytest.approx(0.5, abs=0.02)
    distances = [hit["distance"] for hit in seven["hits"]]
    assert len(distances) == 6 and distances == sorted(distances)
    page = sheet.read_text()
    assert [page.count(f"<h2>{name}, probability 0.") for name in "73"] == [1, 1]
    # Scenes are square, or nearly so: a saliency map beside one makes it twice as wide.
    shapes = [tuple(map(int, x)) for x in re.findall(r'viewBox="0 0 (\d+) (\d+)"', page)][1:]
    assert len(shapes) == 6 and all(width > 1.4 * height for width, height in shapes)


def test_a_threshold_leaves_categories_out_of_query_and_pictures(photos, category_codes):
    asked = ["search", category_codes, "--query", photos / "0.png", "--mode", "category"]
    lines = run(*asked, "--min-prob", 0.7).stdout.splitlines()
    assert [line.split(",")[0] for line in lines if "probability" in line] == ["7"]
    assert run(*asked, "--min-prob", 0.99).stdout == "no category in the query is probable enough\n"
    boxed = error_of(*asked, "--box", "1,2,30,40")
    assert "category" in boxed


def test_a_png_sheet_is_a_picture(photos, codes, tmp_path):
    path = tmp_path / "found.png"
    run("search", codes, "--query", photos / "2.png", "--box", "1,2,60,70", "--sheet", path)
    with Image.open(path) as image:
        assert image.format == "PNG"


# Evaluation


def test_an_evaluation_agrees_with_the_package(labelled):
    file = CodeFile.open(labelled)
    codes, labels = file.table.image_codes, file.labels
    wanted = evaluate_ranking(codes, codes, labels, labels, k=5, ties="stable", denominator="min")
    command = ["evaluate", labelled, labelled, "--k", 5, "--ties", "stable"]
    record = json.loads(run(*command, "--denominator", "min", "--json").stdout)
    assert record.pop("metrics") == wanted
    assert record == {
        "queries": 12,
        "database": 12,
        "k": 5,
        "ties": "stable",
        "denominator": "min",
    }


def test_a_cut_beyond_the_database_is_shown_as_what_it_is(labelled):
    lines = run("evaluate", labelled, labelled).stdout.splitlines()
    assert lines[0] == ("12 queries, 12 pictures, k = 12, ties expected, denominator retrieved")
    assert [line.split()[1] for line in lines[4:-1]][:3] == ["map", "acg", "ndcg"]


def test_detections_and_curves_stand_beside_the_ranking(labelled, tmp_path):
    command = ["evaluate", labelled, labelled, "--detection"]
    result = run(*command, "digits:test:14", "--curves", tmp_path / "curves", "--json")
    detection = json.loads(result.stdout)["detection"]
    table, scenes = CodeFile.open(labelled).table, open_dataset("digits:test:14")
    found = [
        (regions.boxes, regions.scores, regions.labels) for regions in map(table.regions, range(12))
    ]
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    expected = detection_map([*found, nothing, nothing], scenes.targets, 10)["map"]
    assert detection["map"] == expected > 0
    assert detection["missing"] == ["test-0-00012", "test-0-00013"]
    assert detection["noticed"] == {}
    assert sorted(file.name for file in (tmp_path / "curves").iterdir()) == [
        "acg_at_k.png",
        "curves.csv",
        "precision_at_k.png",
        "precision_recall.png",
    ]
    assert "detection mAP@0.5" in run(*command, "digits:test:12").stdout


def test_bad_input_of_an_evaluation_is_named(labelled, codes, other_saved, tmp_path):
    other = tmp_path / "other.h5"
    encode(other_saved.folder, "digits:test:3", other)
    assert "codes of different models" in error_of("evaluate", labelled, other)
    assert error_of("evaluate", labelled, codes) == (
        f"{codes}: has no labels; encode a labelled data set"
    )
    assert error_of("evaluate", labelled, labelled, "--k", 0).startswith("k must be")
    command = ["evaluate", labelled, labelled, "--detection"]
    assert "holds no picture of" in error_of(*command, "digits:train:3")
    assert "gone.h5: no such file" in error_of("evaluate", labelled, tmp_path / "gone.h5")


def test_codes_of_another_version_are_refused(labelled, tmp_path):
    path = tmp_path / "codes.h5"
    path.write_bytes(labelled.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["header"] = json.dumps(json.loads(file.attrs["header"]) | {"version": 7})
    assert error_of("info", path) == f"{path}: version must be 1, got 7"


# Information


def test_a_code_file_and_a_model_tell_what_they_are(saved, labelled):
    record = json.loads(run("info", labelled, "--json").stdout)
    assert (record["pictures"], record["bits"], record["region_bits"]) == (12, 32, 16)
    assert record["labels"] is True
    assert record["model_hash"] == saved.checkpoint.model_hash
    assert record["sources"] == [{"data": "digits:test:12"}]
    table = run("info", saved.folder).stdout
    assert saved.checkpoint.model_hash in table
    assert '"backbone": "tiny_fpn"' in table


@pytest.mark.parametrize(
    "command",
    [
        ("encode", "{model}", "{photos}", "-o", "{gone}/codes.h5"),
        ("export", "{collection}", "-o", "{gone}/codes.h5"),
        ("search", "{collection}", "--query", "{photos}/0.png", "--sheet", "{gone}/hits.html"),
        ("search", "{collection}", "--query", "{photos}/0.png", "--sheet", "{gone}/hits.png"),
    ],
    ids=lambda command: f"{command[0]} {command[-1]}",
)
def test_a_file_in_a_folder_that_is_not_there_is_refused_by_its_name(
    saved, photos, photo_collection, tmp_path, command
):
    places = {"model": saved.folder, "photos": photos, "collection": photo_collection}
    given = [part.format(gone=tmp_path / "gone", **places) for part in command]
    assert re.fullmatch(
        rf"{re.escape(given[-1])}: (cannot write: )?its folder does not exist",
        error_of(*given, *["--workers", "0"] * (command[0] == "encode")),
    )


def test_an_error_of_the_system_begins_with_the_file(saved, photos, tmp_path):
    (tmp_path / "file").write_text("x")
    message = error_of("index", photos, "-o", tmp_path / "file/made", "--model", saved.folder)
    assert message == f"{tmp_path}/file/made: Not a directory"


def test_a_checkpoint_that_is_not_there_is_named(tmp_path, photos):
    message = error_of("encode", tmp_path / "run", photos, "-o", tmp_path / "codes.h5")
    assert message.startswith(
        f"{tmp_path}/run/model.json: cannot read the checkpoint: no such file"
    )


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_that_is_none_is_refused(photo_collection, port):
    result = run("serve", photo_collection, "--port", port, code=2)
    assert "--port" in result.stderr and "Traceback" not in result.stderr


def test_of_several_processes_of_a_training_the_first_prints(tmp_path, monkeypatch):
    settings = ["--backbone", "tiny_fpn", "--weights", "none", "--epochs", 1, "--short", 64]
    monkeypatch.setenv("RANK", "1")
    result = run(
        "train", "ssdh", "digits:train:12", "-o", tmp_path, "--set", "workers=0", *settings
    )
    assert result.output == ""


def test_a_name_with_control_characters_does_not_reach_the_terminal(saved, photos, tmp_path):
    odd = "a\x1b[2J\u202eb\u3000\u00e9.png"
    (tmp_path / "photos").mkdir()
    shutil.copy(photos / "1.png", tmp_path / "photos" / odd)
    folder = collect(tmp_path / "photos", saved.folder, tmp_path / "photos.collection")
    query = ("--query", f"{photos / '1.png'}@10,20,60,90")
    found = run("search", folder, *query).stdout
    assert "a\\x1b[2J\\u202eb\u3000\u00e9.png" in found and odd not in found
    assert json.loads(run("search", folder, *query, "--json").stdout)["hits"][0]["picture"] == odd
    (tmp_path / "photos" / odd).unlink()
    told = run("check", folder).stdout
    assert "\\x1b[2J\\u202eb\u3000\u00e9.png: its file is gone" in told and "\x1b" not in told
