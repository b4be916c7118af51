"""What `pip install regionhash` brings, and what says that it needs more."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cli_runner import run
from plain import run_plain
from regionhash import extras
from regionhash.data import digits, open_dataset
from regionhash.experiments.demo import SHIPPED
from regionhash.models.checkpoints import GRAPH_FILES
from regionhash.models.encoding import encode_boxes, encode_picture
from regionhash.models.runtime import load_runtime

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MOST_BYTES = 600 << 20
"""Of a fresh environment with regionhash in it."""


def build_wheel(folder, **variables):
    # From a copy: building leaves files beside the sources.
    source = folder / "source"
    subprocess.run(["git", "clone", "-q", ROOT, source], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    command += [source, "-w", folder]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | variables)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this source tree."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def compiled_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.endswith(".abi3.so")]


@pytest.mark.slow
def test_a_wheel_is_made_with_and_without_a_compiler(wheel, tmp_path):
    assert "-cp311-abi3-" in wheel.name  # for every version of Python from 3.11 on
    if shutil.which("gcc"):
        assert compiled_in(wheel) == ["regionhash/search/_scan.abi3.so"]
    assert not compiled_in(build_wheel(tmp_path, CC="false"))


@pytest.mark.slow
def test_the_wheel_works_alone(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """
        sys.path.insert(0, site)
        import regionhash
        from regionhash.cli import app
        from regionhash.experiments.demo import SHIPPED
        assert regionhash.__file__.startswith(site) and str(SHIPPED).startswith(site)
        def run(*words):
            app([str(word) for word in words], standalone_mode=False)
        model = SHIPPED / "region-dh"
        run("encode", model, "digits:test:6", "-o", "codes.h5", "--workers", 0)
        run("search", "codes.h5", "--query", picture, "--box", "5,5,90,90", "--json")
        run("search", "codes.h5", "--query", picture, "--sheet", "sheet.html")
        run("index", picture, "-o", "one", "--model", model)
        run("check", "one")
        from regionhash.service import create_app
        create_app("one")
    """
    picture = tmp_path / "query.png"
    from PIL import Image

    Image.fromarray(open_dataset("digits:test:1").images[0]).save(picture)
    printed = run_plain(
        code, options=("-I",), cwd=tmp_path, site=tmp_path / "site", picture=picture
    )
    assert '"hits"' in printed and "1 pictures, 0 problems" in printed
    assert (tmp_path / "sheet.html").stat().st_size


@pytest.mark.slow
def test_a_fresh_environment_is_small_and_runs_the_demonstration(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = sum(x.stat().st_size for x in (tmp_path / "env").rglob("*") if not x.is_symlink())
    assert size < MOST_BYTES
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [tmp_path / "env/bin/regionhash", "demo", tmp_path / "demo"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=tmp_path, env=plain
    )
    assert done.returncode == 0, done.stderr
    assert "Region-DH" in done.stdout and (tmp_path / "demo/objects.png").exists()
    found = subprocess.run([python, "-c", "import torch"], check=False, capture_output=True)
    assert found.returncode != 0


# -- what says that it needs more -----------------------------------------------------------------


def test_a_command_that_needs_an_extra_says_so_in_one_line(tmp_path):
    commands = [
        ["train", "ssdh", "digits:train:3", "-o", "x"],
        ["convert", str(SHIPPED / "ssdh")],
        ["reproduce", "drh/instances"],
        ["encode", str(SHIPPED / "ssdh"), "digits:test:1", "-o", "x", "--runtime", "torch"],
        ["demo", "x", "--train"],
        ["models"],
    ]
    code = f"""
        from regionhash.cli import app
        sys.stderr = sys.stdout
        for words in {commands!r}:
            print("code", app(words, standalone_mode=False))
    """
    *printed, rest = run_plain(code, cwd=tmp_path).split("code 2\n")
    assert len(printed) == len(commands) and rest == ""
    for words, text in zip(commands, printed, strict=True):
        assert "Traceback" not in text, words
        line = text.splitlines()[-1]
        assert line.startswith("error: "), words
        assert line.endswith('pip install "regionhash[train]"'), words
    assert not (tmp_path / "x/model.json").exists()


def test_a_name_of_the_package_says_what_it_needs():
    code = """
        import regionhash
        try:
            regionhash.train
        except ModuleNotFoundError as error:
            print(error)
    """
    assert run_plain(code) == (
        'regionhash.train: this needs torch: pip install "regionhash[train]"\n'
    )


def test_what_no_extra_brings_is_no_missing_extra():
    assert extras.missing(ModuleNotFoundError("x", name="numpy")) is None
    assert extras.missing(ModuleNotFoundError("x")) is None


def test_the_extras_are_those_of_the_project():
    optional = PROJECT["optional-dependencies"]
    assert set(extras._EXTRA_OF.values()) <= set(optional)
    wanted = " ".join(PROJECT["dependencies"])
    assert not [name for name in ("torch", "scipy", "scikit", "matplotlib") if name in wanted]


# -- what is shipped ------------------------------------------------------------------------------


def test_the_digits_are_those_of_the_set():
    known = load_digits()
    with np.load(digits._FILE) as data:
        np.testing.assert_array_equal(data["images"], known.images)
        np.testing.assert_array_equal(data["labels"], known.target)


@pytest.mark.parametrize("name", ["region-dh", "ssdh", "dlbhc", "control"])
def test_the_shipped_graphs_are_those_of_the_shipped_models(name):
    scenes = open_dataset("digits:test:8:5").images
    (ours, checkpoint), (graph, _) = (
        load_runtime(SHIPPED / name, runtime=which) for which in ("torch", "onnx")
    )
    different = total = 0
    for scene in scenes:
        pair = [encode_picture(x, checkpoint, scene) for x in (ours, graph)]
        boxes = np.array([[10, 20, 60, 90]], np.float32)
        of_box = [encode_boxes(x, checkpoint, scene, boxes).codes for x in (ours, graph)]
        for one, other in ([x.image_code for x in pair], of_box):
            different += int(np.unpackbits(one ^ other).sum())
            total += 8 * one.size
    assert total == 8 * 2 * 48 and different <= 1
    assert all((SHIPPED / name / file).is_file() for file in GRAPH_FILES)


def test_info_of_a_shipped_model_is_the_same_with_and_without_torch():
    folder = SHIPPED / "ssdh"
    code = """
        from regionhash.cli import app
        app(["info", folder, "--json"], standalone_mode=False)
    """
    assert json.loads(run_plain(code, folder=folder)) == json.loads(
        run("info", folder, "--json").stdout
    )
