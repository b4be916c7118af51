"""Threads for slow calls. A call that nobody waits for any more keeps its thread until it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

_ENDING = "the service is shutting down"

Value = TypeVar("Value")


class BusyError(Exception):
    """Nothing was started: all threads were busy the whole time, or the service shuts down."""


class Jobs:
    """Runs calls in a fixed number of threads, first come, first served.

    The threads live as long as the process and do not keep it alive. A database connection that a
    thread has opened is reused.

    Args:
        places: number of threads.
        name: their name, before a number.
    """

    def __init__(self, places: int, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._unanswered: set[Future[Any]] = set()
        self._running, self._stopped = 0, False
        self._lock = threading.RLock()  # an answer calls `_answered` in its thread
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} {n}", daemon=True)
            for n in range(places)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> int:
        """Number of running calls, including those that nobody waits for any more."""
        return self._running

    async def run(self, call: Callable[[], Value], until: float) -> Value:
        """What `call` returns.

        Args:
            call: what to run in a thread.
            until: when the answer is due, as `time.monotonic` counts.

        Raises:
            BusyError: no thread became free until then.
            TimeoutError: the call was started, and continues.
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
        """Answers all waiting callers with BusyError; the threads end after their current calls."""
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
            except BaseException as raised:  # it is the answer; the thread continues
                answer, error = None, raised
            with self._lock:
                self._running -= 1
            with suppress(InvalidStateError):
                if error is None:
                    future.set_result(answer)
                else:
                    future.set_exception(error)
            del future, call, answer, error, taken  # so that they are not held until the next call
