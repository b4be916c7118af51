"""Writes docs/cli.md: every command with its arguments and options, from their definitions.

Run: python scripts/write_cli_docs.py
"""

import inspect
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from regionhash.cli import COMMANDS

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"

INTRODUCTION = """\
# The command line

Written by `python scripts/write_cli_docs.py` from the definitions of the commands;
`regionhash COMMAND --help` says the same.

Every command exits with 0 if it did what it should, and with 2 and one line on stderr if the input
is bad or the disk refuses. With `--strict`, it exits with 1 if pictures were skipped; `check` does
if the collection is damaged. Ctrl-C exits with 130. Progress goes to stderr, so stdout holds only
the answer: with `--json`, one JSON document.
"""

VALUES = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH", datetime: "YYYY-MM-DD"}
"""How a value is written where an option does not name it."""


def cli_page() -> str:
    """The text of docs/cli.md."""
    names = [f"- [`{name}`](#regionhash-{name}): {summary_of(COMMANDS[name])}" for name in COMMANDS]
    sections = [section(name, command) for name, command in COMMANDS.items()]
    return "\n".join([INTRODUCTION, *names, "", *sections]).rstrip() + "\n"


def summary_of(command) -> str:
    return inspect.getdoc(command).partition("\n")[0]


def section(name: str, command) -> str:
    arguments = [row for info, row in rows_of(command) if isinstance(info, ArgumentInfo)]
    options = [row for info, row in rows_of(command) if isinstance(info, OptionInfo)]
    lines = [f"## regionhash {name}", "", *description(inspect.getdoc(command)), ""]
    for title, rows in (("argument", arguments), ("option", options)):
        if rows:
            lines += [f"| {title} | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def description(text: str) -> Iterator[str]:
    r"""Lines of a help text; the paragraphs that follow a \b are code."""
    prose, _, code = text.partition("\b\n")
    yield from prose.strip().splitlines()
    if code:
        title, *examples = code.rstrip().splitlines()
        yield from ["", title, "", "```", *(line.strip() for line in examples), "```"]


def rows_of(command) -> Iterator[tuple[Any, str]]:
    """Each parameter that is not hidden, and its row of a table."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if hints[name] is typer.Context:
            continue
        kind, info = get_args(hints[name])
        if info.hidden:
            continue
        written = info.metavar or name.upper()
        if isinstance(info, OptionInfo):
            written = " ".join(
                [", ".join(flags_of(name, info, kind)), value_of(info, kind)]
            ).strip()
        bar = written.replace("|", "\\|")
        yield info, f"| `{bar}` | {escaped(info.help + note(parameter, info))} |"


def flags_of(name: str, info: OptionInfo, kind: Any) -> list[str]:
    # In an annotation, typer takes the first flag for a default.
    given = [flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str)]
    if given:
        return given
    flag = name.replace("_", "-")
    return [f"--{flag}", f"--no-{flag}"] if kind is bool else [f"--{flag}"]


def value_of(info: OptionInfo, kind: Any) -> str:
    if get_origin(kind) is not Literal:
        kinds = [part for part in get_args(kind) or (kind,) if part is not NoneType]
        kind = kinds[0]
        if get_origin(kind) is list:
            (kind,) = get_args(kind)
    if info.metavar or kind is bool:
        return info.metavar or ""
    return "|".join(get_args(kind)) if get_origin(kind) is Literal else VALUES[kind]


def note(parameter: inspect.Parameter, info: Any) -> str:
    default = parameter.default
    parts = []
    if info.envvar:
        parts.append(f"environment: {info.envvar}")
    if default is inspect.Parameter.empty and isinstance(info, OptionInfo):
        parts.append("required")
    elif default is True:
        parts.append("default: yes")
    elif default not in (None, False, inspect.Parameter.empty):
        parts.append(f"default: {default}")
    return f"  [{'; '.join(parts)}]" if parts else ""


def escaped(text: str) -> str:
    """A cell of a table: a bar would end it, and <X> would be taken for HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(cli_page(), encoding="utf-8")
