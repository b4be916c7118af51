"""Serves a collection over HTTP: an interface for programs, and a page for people."""

from regionhash.service.app import create_app
from regionhash.service.limits import Limits
from regionhash.service.server import run_server

__all__ = ["Limits", "create_app", "run_server"]
