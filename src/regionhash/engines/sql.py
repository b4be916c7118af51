"""The SQL engine: codes in Parquet files searched by DuckDB, or in a table of ClickHouse."""

from __future__ import annotations

from pathlib import Path

from regionhash.engines.addresses import read_folder
from regionhash.engines.backend import Owner
from regionhash.engines.sql_clickhouse import PORTS, ClickHouse, InProcess, Server
from regionhash.engines.sql_shards import DuckDB

SqlBackend = DuckDB | ClickHouse
"""What `open_sql` opens."""

_CHDB = "chdb:"


def open_sql(address: str, owner: Owner) -> SqlBackend:
    """Opens the SQL engine.

    Args:
        address: a folder for Parquet files, by default one in the collection;
            `clickhouse://user:password@host:port/database`, or `clickhouses` for an encrypted
            connection; or `chdb:FOLDER`, ClickHouse in this process.
        owner: the collection.

    Raises:
        ValueError: an address without a host or a folder; the message repeats nothing of it.
        ModuleNotFoundError: a package is not installed.
    """
    if address.partition("://")[0] in PORTS:
        return ClickHouse(Server(address), owner)
    if address.startswith(_CHDB):
        path = address.removeprefix(_CHDB)
        if not path:
            raise ValueError("engine sql:chdb needs a folder: sql:chdb:FOLDER")
        return ClickHouse(InProcess(_folder(path)), owner)
    if not address:
        return DuckDB(owner.folder / "sql", owner)
    return DuckDB(_folder(address) / f"regionhash-{owner.uuid}", owner)


def _folder(text: str) -> Path:
    """A folder. Raises ValueError if it looks like an address, which would become its name."""
    folder = read_folder(text)
    if folder is None:
        known = ", ".join(f"{scheme}://" for scheme in PORTS)
        raise ValueError(
            f"engine sql needs a folder, or a server as {known} or chdb:FOLDER; a folder whose "
            "name has a ':' or '@' is written ./NAME"
        )
    return folder
