"""Engines that search the codes of a collection in its place: Milvus, DuckDB and ClickHouse."""

from __future__ import annotations

from collections.abc import Callable

from regionhash.engines.backend import (
    Backend,
    Condition,
    EngineError,
    Held,
    MayMiss,
    Nearest,
    Owner,
    Part,
    Stored,
)
from regionhash.engines.sql import open_sql

LOCAL = "local"


def _open_milvus(address: str, owner: Owner) -> Backend:
    from regionhash.engines.milvus import MilvusEngine

    return MilvusEngine(address, owner)


ENGINES: dict[str, Callable[[str, Owner], Backend] | None] = {
    LOCAL: None,  # the collection itself
    "milvus": _open_milvus,
    "sql": open_sql,
}
"""What opens an engine, given its address and the collection; an address follows the name and a
colon, as in `sql:clickhouse://127.0.0.1:8123/photos`."""


def open_backend(spec: str, owner: Owner) -> Backend | None:
    """Opens an engine for a collection; None for the collection itself.

    Args:
        spec: its name, and after a colon its address if it needs one.
        owner: the collection.

    Raises:
        ValueError: an unknown engine, or an address that it cannot have.
        ModuleNotFoundError: the engine needs an extra that is not installed.
    """
    name, _, address = spec.partition(":")
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}")
    opener = ENGINES[name]
    if opener is None and address:
        raise ValueError(f"engine {name} has no address")
    return None if opener is None else opener(address, owner)


__all__ = [
    "ENGINES",
    "LOCAL",
    "Backend",
    "Condition",
    "EngineError",
    "Held",
    "MayMiss",
    "Nearest",
    "Owner",
    "Part",
    "Stored",
    "open_backend",
]
