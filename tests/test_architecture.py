"""Where things are: imports point from later rows to earlier ones, and torch waits to be asked."""

import ast
import pkgutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import regionhash

ROWS = (
    ("files", "structures", "reporter", "codes", "extras", "precision", "sessions"),
    ("data", "store", "parts"),
    ("encoders", "detectors"),
    ("models",),
    ("training",),
    ("search",),
    ("engines",),
    ("collection", "evaluation"),
    ("experiments",),
    ("service",),
    ("cli",),
)
"""A module imports from its own row and the rows above it; CONTRIBUTING.md has the same table."""

SOURCE = Path(regionhash.__file__).parent
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}


def imported(path):
    """The names below `regionhash` that a module imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            head, _, rest = node.module.partition(".")
            if head == "regionhash":
                yield from [rest] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.partition(".")[2]
                for alias in node.names
                if alias.name.startswith("regionhash.")
            )


def test_every_module_has_a_row():
    assert set(ROW_OF) == {name for _, name, _ in pkgutil.iter_modules([SOURCE])} - {"__main__"}


@pytest.mark.parametrize("name", ROW_OF)
def test_imports_point_to_the_same_row_or_to_earlier_ones(name):
    paths = list((SOURCE / name).rglob("*.py")) or [SOURCE / f"{name}.py"]
    wrong = {
        f"{path.relative_to(SOURCE)} imports {module}"
        for path in paths
        for module in imported(path)
        if ROW_OF[module.partition(".")[0]] > ROW_OF[name]
    }
    assert not wrong


def test_the_table_of_rows_is_in_the_guide():
    guide = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text()
    rows = [line for line in guide.splitlines() if line.startswith("| `")]
    named = [tuple(part.strip("` /") for part in row.split("|")[1].split(",")) for row in rows]
    assert named == list(ROWS)


LIGHT = (
    "precision",
    "sessions",
    "encoders",
    "detectors",
    "models.encoding",
    "models.onnx",
    "models.region_hash",
    "models.runtime",
    "parts.hashes",
    "files",
    "structures",
    "codes",
    "store",
    "search",
    "collection",
    "evaluation",
    "service",
)
FITS = "fitting_drh"  # of collection: fits a network of torch


def test_what_needs_no_model_imports_no_torch():
    code = f"""
        import importlib, pkgutil, sys
        for name in {LIGHT!r}:
            module = importlib.import_module("regionhash." + name)
            for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
                if found.name != "{FITS}":
                    importlib.import_module("regionhash." + name + "." + found.name)
            if "torch" in sys.modules:
                sys.exit(name + " imports torch")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
