"""What one request may cost."""

from __future__ import annotations

from dataclasses import dataclass

from regionhash.data.images import MAX_PIXELS

LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))
"""The names under which only this machine can reach a service."""

_DAY = 86_400


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        upload_bytes: largest uploaded file.
        pixels: largest picture; a larger one is refused before it is decoded.
        seconds: time to answer.
        header_seconds: time in which the headers of a request must arrive.
        body_seconds: time in which its body must arrive.
        connections: open connections at a time.
    """

    upload_bytes: int = 20_000_000
    pixels: int = 50_000_000
    seconds: float = 30.0
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    connections: int = 256

    def __post_init__(self) -> None:
        counts = self.upload_bytes, self.pixels, self.connections
        times = self.seconds, self.header_seconds, self.body_seconds
        if min(counts) < 1 or not all(0 < seconds <= _DAY for seconds in times):
            raise ValueError(f"limits must be positive, and times at most a day, got {self}")
        if self.pixels > MAX_PIXELS:
            raise ValueError(f"pixels must be at most {MAX_PIXELS:,}, got {self.pixels:,}")
