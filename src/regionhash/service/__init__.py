"""A collection over HTTP: an interface for programs, and a page for people."""

from regionhash.service.app import create_app, run_server
from regionhash.service.limits import Limits

__all__ = ["Limits", "create_app", "run_server"]
