"""Runs the command line in this process."""

from typer.testing import CliRunner

from regionhash.cli import app


def run(*args, code=0):
    """The result of a command, which must end with `code`."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def error_of(*args):
    """What a command with bad input says on stderr; it must print nothing else."""
    result = run(*args, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    return result.stderr.removeprefix("error: ").removesuffix("\n")
