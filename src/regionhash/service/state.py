"""What all requests share: the opened collection, threads for work, health."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from regionhash.collection import (
    Collection,
    CollectionMissingError,
    CollectionReplacedError,
    Results,
    Search,
)
from regionhash.engines import LOCAL
from regionhash.search.together import run_together
from regionhash.service.decoding import Decoders
from regionhash.service.jobs import Jobs, call_each
from regionhash.service.limits import Limits
from regionhash.service.metrics import Metrics
from regionhash.service.opened import Opened
from regionhash.store import StoreError

if TYPE_CHECKING:
    from regionhash.models.runtime import RuntimeName

SYNC_SECONDS = 0.2
"""How often changes by other processes are looked for; the service sees its own at once."""

COMPACT_SECONDS = 10.0
"""How often the arrays are compacted if many pictures were removed."""

LATE_SECONDS = 10.0
"""Without news of the collection for this long, the service reports that it is failing."""

_PAUSE_SECONDS = 1.0  # after a failure
_SECONDS_TO_END = 1.0  # for each thread

_log = logging.getLogger("regionhash.service")

MOST_SEARCHES = 16
"""Light searches that run together at a time. More would gain little in the pass, and the answers
to these are written while the next ones are searched."""

Calls: TypeAlias = Jobs[Callable[[], Any], Any]

Value = TypeVar("Value")


class NotOpenedError(StoreError):
    """Another collection has replaced the one that is served, and cannot be opened."""


class ServiceState:
    """What all requests share.

    Args:
        folder: where the collection is.
        limits: what one request may cost.
        token: what a client must know to change the collection; None makes it read-only.
        token_to_read: whether searching requires the token, too.
        device: where the model runs.
        runtime: what runs it, see `regionhash.models.runtime.load_runtime`.
        engine: what searches the codes, see `regionhash.engines.open_backend`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limits: Limits,
        token: str | None,
        token_to_read: bool,
        device: str = "auto",
        runtime: RuntimeName = "auto",
        engine: str = LOCAL,
    ) -> None:
        self.limits, self.token, self.token_to_read = limits, token, token_to_read
        self._folder, self._device, self._runtime = folder, device, runtime
        self._engine = engine
        cores = os.cpu_count() or 1
        places = max(2, min(4, cores))
        self.metrics = Metrics(lambda: len(self.collection))
        self._decoders = Decoders(places, limits.pixels)
        try:
            self._opened = self._open()
        except BaseException:
            self._decoders.close()
            raise
        self._passes = Jobs(max(1, cores // 2), "pass", _search_all, MOST_SEARCHES)
        self._scanning: Calls = Jobs(cores, "search", call_each)
        self._reading: Calls = Jobs(max(4, cores), "reader", call_each)
        self._decoding: Calls = Jobs(places, "decoder", call_each)
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._synced = time.monotonic()
        self._ended = threading.Event()
        self._keepers = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("follower", self._follow), ("compactor", self._compact))
        ]
        for thread in self._keepers:
            thread.start()

    @property
    def opened(self) -> Opened:
        """The collection that is served now; it may be closed at any time, unless it is held."""
        return self._opened

    @property
    def collection(self) -> Collection:
        """The collection that is served now."""
        return self._opened.collection

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Opened]:
        """The collection that is served now, held open until the end."""
        with self._lock:
            opened = self._opened.hold()
        try:
            yield opened
        finally:
            if opened.release():  # in a thread of its own: the readers may all be busy
                await asyncio.to_thread(opened.close)

    def knows(self, given: str | None) -> bool:
        """Whether this is the token."""
        if self.token is None or given is None:
            return False
        return hmac.compare_digest(given.encode(errors="replace"), self.token.encode())

    # Ending

    def stop(self) -> None:
        """Answers all requests that wait, and starts no more work."""
        self._ended.set()
        for jobs in self._all_jobs:
            jobs.stop()
        self._decoders.close()

    def close(self) -> None:
        """Closes the collection."""
        self.stop()
        for thread in self._keepers:
            thread.join(_SECONDS_TO_END)
        self._opened.retire()

    @property
    def running(self) -> int:
        """Number of calls that are running in threads."""
        return sum(jobs.running for jobs in self._all_jobs)

    @property
    def _all_jobs(self) -> tuple[Jobs[Any, Any], ...]:
        return self._passes, self._scanning, self._reading, self._decoding

    # Work

    def due(self) -> float:
        """When the answer to a request that comes now is due, as `time.monotonic` counts."""
        return time.monotonic() + self.limits.seconds

    async def search(self, opened: Opened, search: Search, until: float) -> Results:
        """Runs a search. Errors as `Jobs.run`.

        Light ones that wait at the same time share a pass, which one thread for two cores does:
        more threads would share less, and wait for Python's lock. Other searches, and all that an
        engine makes, run as many at a time as there are cores, so that light ones do not wait for
        them.
        """
        table = opened.collection.snapshot.table
        is_here = self._engine == LOCAL
        if is_here and search.is_light(whole_pictures=table.image_codes is not None):
            return await self._passes.run((opened, search), until)
        call = _held(opened, lambda: opened.collection.results(search, paths=False))
        found: Results = await self._scanning.run(call, until)
        return found

    async def read(self, opened: Opened, call: Callable[[], Value], until: float) -> Value:
        """Runs a call that reads or writes the collection. Errors as `Jobs.run`."""
        value: Value = await self._reading.run(_held(opened, call), until)
        return value

    async def decode(self, opened: Opened, call: Callable[[], Value], until: float) -> Value:
        """Runs a call that decodes: as many at a time as decoders. Errors as `Jobs.run`."""
        value: Value = await self._decoding.run(_held(opened, call), until)
        return value

    # Following

    def failure(self) -> str | None:
        """Why the service fails, in plain words; None if it works."""
        if not self._opened.model.is_alive:
            return "pictures can no longer be encoded"
        if self._failure is not None:
            return self._failure
        late = time.monotonic() - self._synced
        if late > LATE_SECONDS:
            return f"changes to the collection have not been seen for {late:.0f} seconds"
        return None

    def _open(self) -> Opened:
        return Opened(
            self._folder,
            device=self._device,
            runtime=self._runtime,
            engine=self._engine,
            decoders=self._decoders,
            on_batch=self.metrics.batches.observe,
        )

    def _follow(self) -> None:
        pause = SYNC_SECONDS
        while not self._ended.wait(pause):
            try:
                self._follow_once()
            except BaseException as error:  # reported by `failure`; the thread continues
                self._set_failure(_reason(error), error)
                pause = _PAUSE_SECONDS
            else:
                self._synced, pause = time.monotonic(), SYNC_SECONDS
                self._set_failure(None)

    def _compact(self) -> None:
        while not self._ended.wait(COMPACT_SECONDS):
            with self._lock:
                opened = self._opened.hold()
            try:
                opened.collection.compact()
            except Exception:  # the thread continues; what lasts is reported by the follower
                _log.warning("%s: cannot be compacted", self._folder, exc_info=True)
            finally:
                if opened.release():
                    opened.close()

    def _follow_once(self) -> None:
        try:
            self._opened.sync()
        except CollectionReplacedError:
            newer = self._open_newer()
            with self._lock:
                before, self._opened = self._opened, newer
            before.retire()
            _log.warning("%s: replaced by another collection, which is served now", self._folder)

    def _open_newer(self) -> Opened:
        try:
            return self._open()
        except Exception as error:  # any, as long as database or model are incomplete
            raise NotOpenedError(str(error)) from error

    def _set_failure(self, failure: str | None, error: BaseException | None = None) -> None:
        """Keeps the reason of a failure; a new one is logged with details, paths included."""
        if failure != self._failure:
            _log.warning("%s: %s", self._folder, error or "works again")
        self._failure = failure


def _search_all(asked: list[tuple[Opened, Search]]) -> list[Results | Exception]:
    """Runs searches together, holding their collections open."""
    with ExitStack() as held:
        for opened, _ in asked:
            held.enter_context(opened)
        return run_together(
            [opened.collection.begin(search, paths=False) for opened, search in asked]
        )


def _held(opened: Opened, call: Callable[[], Value]) -> Callable[[], Value]:
    """The call, holding the collection open as long as it runs."""

    def held() -> Value:
        with opened:
            return call()

    return held


def _reason(error: BaseException) -> str:
    if isinstance(error, CollectionMissingError):
        return "the collection has been moved or deleted"
    if isinstance(error, NotOpenedError):
        return "another collection has replaced it and cannot be opened"
    return "changes to the collection cannot be read"
