"""Runs the command line in this process."""

from functools import cache

from typer import testing

from regionhash.cli import app

# The commands are put together once: for each run it takes longer than most of them do.
testing._get_command = cache(testing._get_command)


def run(*args, code=0):
    """The result of a command, which must end with `code`."""
    result = testing.CliRunner().invoke(app, [str(arg) for arg in args])
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
