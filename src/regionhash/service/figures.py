"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Figures:
    """What Prometheus is told.

    Args:
        n_pictures: tells how many pictures the collection has.
    """

    def __init__(self, n_pictures: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = Counter(
            "regionhash_requests", "Requests answered", ["method", "route", "status"], **own
        )
        self.seconds = Histogram(
            "regionhash_request_seconds",
            "Time of an answer",
            ["route"],
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            **own,
        )
        self.batches = Histogram(
            "regionhash_batch_size", "Pictures encoded at a time", buckets=(1, 2, 4, 8), **own
        )
        pictures = Gauge("regionhash_pictures", "Pictures in the collection", **own)
        pictures.set_function(n_pictures)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one request."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
