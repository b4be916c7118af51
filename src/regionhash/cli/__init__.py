"""The command `regionhash`."""

from regionhash.cli.commands import app, main

__all__ = ["app", "main"]
