"""A cache that keeps what was used last, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class LruBytes(Generic[Value]):
    """Keeps the values used last, as long as they take at most `n_bytes` together."""

    def __init__(self, n_bytes: int) -> None:
        self._room = n_bytes
        self._held: OrderedDict[Any, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: Any, value: Value, n_bytes: int) -> None:
        """Keeps a value, in place of the oldest ones; the newest is kept whatever its size."""
        with self._lock:
            self._held[key] = value, n_bytes
            self._held.move_to_end(key)
            while len(self._held) > 1 and sum(size for _, size in self._held.values()) > self._room:
                self._held.popitem(last=False)

    def get(self, key: Any) -> Value | None:
        """The value, which becomes the newest; None if it is no longer kept."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]
