"""Where Milvus is, and what is wanted of it: `http://127.0.0.1:19530?timeout=10&index=BIN_FLAT`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from regionhash.engines.addresses import read_server

EXACT, LISTS = "BIN_FLAT", "BIN_IVF_FLAT"
INDEXES = (EXACT, LISTS)
PARTITIONS = ("folder", "picture")

_PORTS = {"http": 19530, "https": 19530}
_NUMBERS = ("timeout", "nlist", "nprobe")
_MOST_LISTS = 65_536  # of Milvus
_ENCODED = "in a token, & is written %26, # %23 and % %25"


@dataclass(frozen=True)
class Address:
    """An address; its options stand after a question mark, as in that of a web page.

    Attributes:
        uri: of the server.
        timeout: of a request, in seconds.
        index: BIN_FLAT compares all codes; BIN_IVF_FLAT divides them into lists and compares those
            of some.
        nlist: how many lists there are.
        nprobe: how many of them a search reads.
        partition: what Milvus divides the rows by: the "folder" of the file, the number of the
            "picture", or None.
        token: "USER:PASSWORD" or a key; percent-encoded in the text.
    """

    uri: str
    timeout: int = 30
    index: str = EXACT
    nlist: int = 1024
    nprobe: int = 32
    partition: str | None = None
    token: str = field(default="", repr=False)

    @classmethod
    def read(cls, address: str) -> Address:
        """The address of a text. Raises ValueError, in a line that repeats nothing of it."""
        server = read_server(address, _PORTS)
        if server is None or server.parts.path not in ("", "/"):
            raise ValueError("engine milvus needs an address like milvus:http://127.0.0.1:19530")
        if ":" in server.host:
            raise ValueError("engine milvus: pymilvus takes no address of IPv6; give a name of it")
        parts = server.parts
        if parts.username is not None or parts.password is not None:
            raise ValueError("engine milvus takes a password as an option: ?token=USER:PASSWORD")
        if parts.fragment:
            raise ValueError(f"engine milvus: an option has a '#'; {_ENCODED}")
        options: dict[str, Any] = {}
        # No value has spaces, so a plus is one.
        for name, value in parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True):
            if name == "uri" or name not in cls.__dataclass_fields__:
                known = ", ".join(n for n in cls.__dataclass_fields__ if n != "uri")
                raise ValueError(f"engine milvus: option must be one of {known}; {_ENCODED}")
            options[name] = _number(name, value) if name in _NUMBERS else value
        return cls(server.shown, **options)

    def __post_init__(self) -> None:
        _one_of("index", self.index, INDEXES)
        if self.partition is not None:
            _one_of("partition", self.partition, PARTITIONS)
        if not 1 <= self.nprobe <= self.nlist <= _MOST_LISTS:
            raise ValueError(
                f"engine milvus: nprobe and nlist must be 1 <= nprobe <= nlist <= {_MOST_LISTS}, "
                f"got {self.nprobe} and {self.nlist}"
            )

    @property
    def place(self) -> str:
        """The address for messages; an index that is not exact is named."""
        return f"milvus:{self.uri}" + ("" if self.index == EXACT else f" ({self.index})")

    @property
    def made(self) -> dict[str, str | int | None]:
        """What cannot be changed once it is made."""
        lists = {} if self.index == EXACT else {"nlist": self.nlist}
        return {"index": self.index, **lists, "partition": self.partition}

    @property
    def index_params(self) -> dict[str, int]:
        """What Milvus needs to make the index."""
        return {} if self.index == EXACT else {"nlist": self.nlist}

    @property
    def search_params(self) -> dict[str, int]:
        """What Milvus needs to search it."""
        return {} if self.index == EXACT else {"nprobe": self.nprobe}


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
        raise ValueError(f"engine milvus: {name} must be a whole number above 0")
    return int(value)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"engine milvus: {name} must be one of {', '.join(known)}")
