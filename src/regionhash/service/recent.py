"""What was used last is kept, up to so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """What was put in last, up to so many bytes."""

    def __init__(self, n_bytes: int) -> None:
        self._room = n_bytes
        self._held: OrderedDict[Any, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: Any, value: Value, n_bytes: int) -> None:
        """Keeps a value; the oldest make room for it."""
        with self._lock:
            self._held[key] = value, n_bytes
            self._held.move_to_end(key)
            while len(self._held) > 1 and sum(size for _, size in self._held.values()) > self._room:
                self._held.popitem(last=False)

    def get(self, key: Any) -> Value | None:
        """The value, which is then the newest; None where it is no longer kept."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def kept(self) -> list[Any]:
        """The keys of all that is kept."""
        with self._lock:
            return list(self._held)

    def drop(self, is_wrong: Callable[[Any], bool]) -> None:
        """Forgets the values of some keys."""
        with self._lock:
            for key in [own for own in self._held if is_wrong(own)]:
                del self._held[key]
