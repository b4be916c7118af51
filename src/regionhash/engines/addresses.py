"""Addresses of servers and folders, of which a mistyped one may have a password anywhere.

So no message repeats what was typed, and what is shown later, the host and the path of a server or
a folder, is refused if it may be more than that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

_HOST = re.compile(r"[\w.-]+|[0-9a-f:.]+")  # the second is IPv6
_PATH = re.compile(r"(/[\w.~%-]*)?")
_NO_FOLDER = re.compile(r"(?![./]).*[:@]|//|.*:.*@", re.DOTALL)


class ServerAddress(NamedTuple):
    """The address of a server, taken apart.

    Attributes:
        host: a name, or an address of IPv4 or IPv6, without brackets.
        port: the given one, or the usual one of its scheme.
        parts: all of it, with a path of at most one step; it may have more than was asked for.
    """

    host: str
    port: int
    parts: SplitResult

    @property
    def shown(self) -> str:
        """Scheme, host and port, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.parts.scheme}://{host}:{self.port}"


def read_server(address: str, ports: Mapping[str, int]) -> ServerAddress | None:
    """The server of an address; None if it is no such address.

    Args:
        address: a URL, in which other characters than those of names are encoded.
        ports: the usual port of each scheme that it may have.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    if parts.scheme not in ports or port == 0:
        return None
    if not (_HOST.fullmatch(host) and _PATH.fullmatch(parts.path)):
        return None
    return ServerAddress(host, port or ports[parts.scheme], parts)


def read_folder(text: str) -> Path | None:
    """The absolute path of a folder; None if it may be a mistyped address of a server.

    That is a text with a colon before an "@", one that starts with "//", and one with either
    character unless it starts with "/" or ".": "./a:b" is a folder.
    """
    return None if _NO_FOLDER.match(text) else Path(text).absolute()
