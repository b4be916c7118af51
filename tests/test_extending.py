"""The page on extending is run as it is written, in processes of its own."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def package(photos, tmp_path_factory):
    """A folder with the files of the page, installed as pip would, and pictures with labels."""
    folder = tmp_path_factory.mktemp("extending")
    for language, name, content in re.findall(
        r"```(toml|python)\n# (\S+)\n(.*?)```", PAGE.read_text(), re.S
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        if language == "python":
            assert len(content.splitlines()) < 40
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / "my_regionhash-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    (info / "entry_points.txt").write_text(
        "\n".join(
            f"[{group}]\n" + "\n".join(f"{name} = {place}" for name, place in entries.items())
            for group, entries in groups
        )
    )
    (folder / "photos").symlink_to(photos)
    rows = [
        f"{n}.png,{label}" for n, label in enumerate(["cat", "dog", "cat", "dog", "cat", "dog"])
    ]
    (folder / "labels.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
    return folder


def in_package(package, *words, code=0):
    """Runs a command, or a script, where the package is installed."""
    environment = os.environ | {
        "PYTHONPATH": f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    }
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        check=False, capture_output=True, text=True, cwd=package, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def commands():
    """The commands of the page, without those that differ in what they take."""
    blocks = re.findall(r"```\n(regionhash .*?)```", PAGE.read_text(), re.S)
    return [line.split()[1:] for block in blocks for line in block.strip().splitlines()]


@pytest.mark.slow
def test_every_command_of_the_page_works(package):
    for words in commands():
        words = [word.replace("mobilenet_v2_fpn", "tiny_fpn") for word in words]
        if words[0] == "train":
            words += ["--set", "weights=none", "--set", "epochs=1", "--short", "64"]
        in_package(package, "-m", "regionhash", *words)
    in_package(package, "index_faces.py")
    for collection in ("photos", "medians", "middles"):
        found = in_package(
            package, "-m", "regionhash", "search", f"{collection}.collection",
            "--query", "photos/2.png", "--json",
        )  # fmt: skip
        first = json.loads(found.stdout)["hits"][0]
        assert first["picture"] == "2.png" and first["distance"] == 0
    found = in_package(
        package, "-m", "regionhash", "search", "photos.h5", "--query", "photos/4.png", "--json"
    )
    assert json.loads(found.stdout)["hits"][0]["distance"] == 0
    listed = json.loads(in_package(package, "-m", "regionhash", "models", "--json").stdout)
    assert listed["models"]["even-hash"] == "SSDH whose bits are also pushed apart from each other."


@pytest.mark.slow
def test_what_is_not_installed_or_broken_is_one_line(package, tmp_path):
    for name, module in (("encoder", "encoders"), ("model", "models")):
        assert (package / "my_regionhash" / f"{name}.py").exists(), module
    gone = subprocess.run(
        [sys.executable, "-m", "regionhash", "search", package / "photos.collection",
         "--query", package / "photos/1.png"],
        check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert gone.returncode == 2 and gone.stderr.count("\n") == 1
    assert "no installed package offers encoders 'colours:'" in gone.stderr
    gone = subprocess.run(
        [sys.executable, "-m", "regionhash", "info", package / "runs/even"],
        check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert gone.returncode == 2 and "unknown model 'even-hash'; known: region-dh" in gone.stderr
    (tmp_path / "my_regionhash").mkdir()
    (tmp_path / "my_regionhash/model.py").write_text("import nothing_of_this_name\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{package}"}
    broken = subprocess.run(
        [sys.executable, "-m", "regionhash", "encode", package / "runs/even", package / "photos",
         "-o", tmp_path / "x.h5"],
        check=False, capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert broken.returncode == 2 and broken.stderr.count("\n") == 1
    assert "my_regionhash.model:EvenHash: No module named 'nothing_of_this_name'" in broken.stderr
