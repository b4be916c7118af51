"""Writes docs/cli.md: the help of every command, as `regionhash COMMAND --help` prints it.

Run: python scripts/write_cli_docs.py
"""

from pathlib import Path

from typer.main import get_command

from regionhash.cli.commands import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
WIDTH = 88

INTRODUCTION = """\
# The command line

Written by `python scripts/write_cli_docs.py` from the help of each command.

Every command ends with exit code 0 when it did what it should, and with 2 and one line on stderr
when the input is bad or the disk refuses; `encode --strict` ends with 1 when pictures were skipped.
Ctrl-C ends with 130. Progress goes to stderr, so that stdout holds the answer alone: with `--json`,
one JSON document.
"""


def cli_page() -> str:
    """The text of docs/cli.md."""
    group = get_command(app)
    parts = [INTRODUCTION, section("regionhash", group)]
    parts += [section(f"regionhash {name}", own) for name, own in group.commands.items()]
    return "\n".join(parts)


def section(name: str, command) -> str:
    context = command.context_class(command, info_name=name, terminal_width=WIDTH)
    return f"## {name}\n\n```\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(cli_page(), encoding="utf-8")
