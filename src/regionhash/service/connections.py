"""Connections that send their request slowly, or not at all, make room for others."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from regionhash.service.limits import Limits

_SECONDS_TO_TAKE = 30.0  # to receive an answer, after the time to make it
_SECONDS_TO_CLOSE = 5.0  # to send the rest

_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"connection: close\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n"
)

IDLE, HEADERS, BODY, ANSWER, CLOSED = "idle", "headers", "body", "answer", "closed"


class Connection(H11Protocol):
    """A connection that is closed when a part of a request or an answer takes too long.

    At the limit, a new one replaces the connection that has waited longest for headers, or is
    refused if none waits for them.
    """

    limits: ClassVar[Limits] = Limits()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.phase = HEADERS
        self.since = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        super().connection_made(transport)
        self._enter(HEADERS)
        if self._has_room():
            return
        transport.write(_REFUSAL)
        transport.close()
        self._enter(CLOSED)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        if self._deadline is not None:
            self._deadline.cancel()
        self.phase = CLOSED
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        super().data_received(data)
        self._follow(HEADERS)

    def on_response_complete(self) -> None:
        """Called by uvicorn."""
        super().on_response_complete()
        self._follow(IDLE)

    def _follow(self, between: str) -> None:
        """Notes how far the request is; `between` is the phase if none has begun."""
        if self.transport.is_closing():
            phase = CLOSED
        elif self.conn.their_state is h11.IDLE:
            phase = between
        elif self.conn.their_state is h11.SEND_BODY:
            phase = BODY
        else:
            phase = ANSWER
        if phase != self.phase:
            self._enter(phase)

    def _enter(self, phase: str) -> None:
        seconds = {
            IDLE: self.timeout_keep_alive + _SECONDS_TO_CLOSE,
            HEADERS: self.limits.header_seconds,
            BODY: self.limits.body_seconds,
            ANSWER: self.limits.seconds + _SECONDS_TO_TAKE,
            CLOSED: _SECONDS_TO_CLOSE,
        }[phase]
        self.phase, self.since = phase, self.loop.time()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _has_room(self) -> bool:
        others: list[Any] = [other for other in self.connections if other is not self]
        if sum(other.phase != CLOSED for other in others) < self.limits.connections:
            return True
        waiting = [other for other in others if other.phase in (IDLE, HEADERS)]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda other: other.since)
        oldest.phase = CLOSED
        oldest.transport.abort()
        return True


def connection_type(limits: Limits) -> type[Connection]:
    """The connections of a service with these limits."""
    return type("Connection", (Connection,), {"limits": limits})
