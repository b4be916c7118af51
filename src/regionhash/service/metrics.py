"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """What Prometheus collects.

    Args:
        n_pictures: returns the number of pictures in the collection.
    """

    def __init__(self, n_pictures: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        into: Any = {"registry": self.registry}
        self.requests = Counter(
            "regionhash_requests", "Requests answered", ["method", "route", "status"], **into
        )
        self.seconds = Histogram(
            "regionhash_request_seconds",
            "Time to answer a request",
            ["route"],
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            **into,
        )
        self.batches = Histogram(
            "regionhash_batch_size", "Pictures encoded at a time", buckets=(1, 2, 4, 8), **into
        )
        pictures = Gauge("regionhash_pictures", "Pictures in the collection", **into)
        pictures.set_function(n_pictures)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one request."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
