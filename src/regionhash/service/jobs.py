"""Threads for what takes long. Each is a place: a call that is given up keeps it until it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

_ENDING = "the service is ending"

Value = TypeVar("Value")


class BusyError(Exception):
    """Nothing was begun: all places were taken for the whole time, or the service is ending."""


class Jobs:
    """Runs calls in some threads, in the order in which they come.

    The threads do not keep the process alive, and live as long as it: a database connection that
    one has opened is used again.

    Args:
        places: how many threads.
        name: of the threads.
    """

    def __init__(self, places: int, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._unanswered: set[Future[Any]] = set()
        self._running, self._stopped = 0, False
        self._lock = threading.RLock()  # an answer calls `_answered`, in the thread that gives it
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} {n}", daemon=True)
            for n in range(places)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> int:
        """How many calls are running, those among them that nobody waits for any more."""
        return self._running

    async def run(self, call: Callable[[], Value], until: float) -> Value:
        """What `call` returns.

        Args:
            call: for a thread.
            until: when the answer is due, as `time.monotonic` counts.

        Raises:
            BusyError: no place became free until then.
            TimeoutError: the call has been begun, and goes on.
        """
        future: Future[Value] = Future()
        with self._lock:
            if self._stopped:
                raise BusyError(_ENDING)
            self._unanswered.add(future)
        future.add_done_callback(self._answered)
        waiting = asyncio.wrap_future(future)
        self._calls.put((future, call))
        try:
            await asyncio.wait([waiting], timeout=max(0.0, until - time.monotonic()))
            if waiting.done():
                return waiting.result()
            if future.cancel():
                raise BusyError("the service is busy; try again later")
            raise TimeoutError
        finally:
            waiting.cancel()

    def stop(self) -> None:
        """Answers all who wait with BusyError and lets the threads end after their calls."""
        with self._lock:
            self._stopped = True
            for future in list(self._unanswered):
                with suppress(InvalidStateError):
                    future.set_exception(BusyError(_ENDING))
        for _ in self._threads:
            self._calls.put(None)

    def _answered(self, future: Future[Any]) -> None:
        with self._lock:
            self._unanswered.discard(future)

    def _work(self) -> None:
        while (taken := self._calls.get()) is not None:
            future, call = taken
            with self._lock:
                if future.done() or not future.set_running_or_notify_cancel():
                    continue  # given up, or answered by `stop`
                self._running += 1
            try:
                answer, error = call(), None
            except BaseException as raised:  # whoever asked is told; the thread goes on
                answer, error = None, raised
            with self._lock:
                self._running -= 1
            with suppress(InvalidStateError):
                if error is None:
                    future.set_result(answer)
                else:
                    future.set_exception(error)
            del future, call, answer, error, taken  # what they hold is not kept for the next call
