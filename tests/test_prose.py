"""The words that CONTRIBUTING.md rules out stay out of code, help and documentation."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

RULED_OUT = re.compile(r"\banew\b|\bgoes on\b|is of use only|lets go of|\bbut for\b|\btells\b")


def texts():
    yield from ROOT.glob("src/regionhash/**/*.py")
    yield from ROOT.glob("docs/*.md")
    yield from (ROOT / "README.md", ROOT / "CHANGELOG.md")


def test_nothing_is_said_in_words_that_are_ruled_out():
    found = [
        f"{path.relative_to(ROOT)}:{row}: {line.strip()}"
        for path in texts()
        for row, line in enumerate(path.read_text().splitlines(), 1)
        if RULED_OUT.search(line)
    ]
    assert not found
