"""Threads for slow work, one job at a time or all that wait together.

A job that nobody waits for any more keeps its thread until it ends.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

_ENDING = "the service is shutting down"

Wanted = TypeVar("Wanted")
Value = TypeVar("Value")


class BusyError(Exception):
    """Nothing was started: all threads were busy the whole time, or the service shuts down."""


def call_each(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each call returns, or the error that it raises; of `Jobs` that are calls."""
    return [_called(call) for call in calls]


def _called(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:  # it is the answer; the thread continues
        return error


class _Job(Generic[Wanted]):
    """What is wanted, and the answer that its event loop waits for."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Any] = self.loop.create_future()

    def finish(self, answer: Any) -> None:
        """Answers, in the event loop; an error is raised there."""
        if self.answer.done():  # given up, or answered by `stop`
            return
        if isinstance(answer, BaseException):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class Jobs(Generic[Wanted, Value]):
    """Does jobs in a fixed number of threads, first come, first served.

    A thread that becomes free takes all jobs that wait, up to `most`: so jobs are done together
    when there is more to do than threads, and none waits for others to come.

    The threads live until `stop`, and do not keep the process alive. A database connection that a
    thread has opened is reused.

    Args:
        places: number of threads.
        name: their name, before a number.
        answer_all: gives the answer, or the error, to each of the jobs that a thread has taken.
        most: how many jobs a thread takes at a time.
    """

    def __init__(
        self,
        places: int,
        name: str,
        answer_all: Callable[[list[Wanted]], Sequence[Value | BaseException]],
        most: int = 1,
    ) -> None:
        self._answer_all, self._most = answer_all, most
        self._waiting: deque[_Job[Wanted]] = deque()
        self._unanswered: set[_Job[Wanted]] = set()
        self._running, self._stopped = 0, False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name} {n}", daemon=True)
            for n in range(places)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> int:
        """Number of jobs being done, including those that nobody waits for any more."""
        return self._running

    async def run(self, wanted: Wanted, until: float) -> Value:
        """The answer to a job.

        Args:
            wanted: the job.
            until: when the answer is due, as `time.monotonic` counts.

        Raises:
            BusyError: no thread became free until then.
            TimeoutError: the job was begun, and continues.
        """
        job = _Job(wanted)
        with self._changed:
            if self._stopped:
                raise BusyError(_ENDING)
            self._waiting.append(job)
            self._unanswered.add(job)
            self._changed.notify()
        seconds = max(0.0, until - time.monotonic())
        due = job.loop.call_later(seconds, self._give_up, job)
        try:
            value: Value = await job.answer
            return value
        finally:
            due.cancel()
            self._forget(job)

    def stop(self) -> None:
        """Answers all callers with BusyError; the threads end after their current jobs."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            ended = [(job, BusyError(_ENDING)) for job in self._unanswered]
            self._changed.notify_all()
        _deliver(ended)

    def _forget(self, job: _Job[Wanted]) -> bool:
        """Drops a job that is answered or given up; whether it was still waiting."""
        with self._changed:
            self._unanswered.discard(job)
            try:
                self._waiting.remove(job)
            except ValueError:
                return False
            return True

    def _give_up(self, job: _Job[Wanted]) -> None:
        """Answers a job that is late, in the event loop."""
        waited = self._forget(job)
        job.finish(BusyError("the service is busy; try again later") if waited else TimeoutError())

    def _work(self) -> None:
        while jobs := self._next():
            answers = self._answers(jobs)
            with self._changed:
                self._running -= len(jobs)
            _deliver(zip(jobs, answers, strict=True))
            del jobs, answers  # so that they are not held until the next job

    def _next(self) -> list[_Job[Wanted]]:
        """The next jobs of a thread; none at the end."""
        with self._changed:
            while not (self._waiting or self._stopped):
                self._changed.wait()
            n = min(self._most, len(self._waiting))
            self._running += n
            return [self._waiting.popleft() for _ in range(n)]

    def _answers(self, jobs: Sequence[_Job[Wanted]]) -> Sequence[Value | BaseException]:
        try:
            return self._answer_all([job.wanted for job in jobs])
        except BaseException as error:  # it is the answer; the thread continues
            return [error] * len(jobs)


def _deliver(answered: Iterable[tuple[_Job[Any], Any]]) -> None:
    """Answers jobs in their event loops, each of which is woken once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job[Any], Any]]] = defaultdict(list)
    for job, answer in answered:
        by_loop[job.loop].append((job, answer))
    for loop, of_loop in by_loop.items():
        with suppress(RuntimeError):  # it has been closed, and nobody waits
            loop.call_soon_threadsafe(_finish_all, of_loop)


def _finish_all(answered: Iterable[tuple[_Job[Any], Any]]) -> None:
    for job, answer in answered:
        job.finish(answer)
