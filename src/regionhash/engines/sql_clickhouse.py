"""Codes in a table of ClickHouse: on a server, or in this process by chDB.

One row for each picture and each region, see `regionhash.engines.sql_rows`, in the order of part,
picture and number. A row that is inserted again, because an answer of the server was lost, replaces
the first; searches need not know, since the least distance stays the same.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from regionhash.engines.addresses import read_server
from regionhash.engines.backend import EngineError, Held, Nearest, Owner, Part, Stored
from regionhash.engines.sql_rows import n_words, rows_of, stored_of
from regionhash.engines.sql_statements import (
    CLICKHOUSE,
    Rows,
    among,
    conditions_of,
    everything,
    file_of_clickhouse,
    nearest,
)
from regionhash.files.strict_json import parse_object
from regionhash.files.text import is_text, reason_of
from regionhash.store import CodeSet
from regionhash.store.parquet import Facts
from regionhash.structures import Ints

if TYPE_CHECKING:
    import pyarrow as pa

PORTS = {"clickhouse": 8123, "clickhouses": 8443}
"""Usual port of each scheme; the second is encrypted."""

PASSWORD = "CLICKHOUSE_PASSWORD"
"""Environment variable of a password that the address does not have; ClickHouse's own tools read
it too."""

_STAMP = "stamp"
"""Key of the mark in a table's comment, beside the record."""

_CONNECT_SECONDS, _ANSWER_SECONDS = 10, 120
"""Until there is a connection, and between two parts of an answer: a long one may take any time."""
_QUERY_BYTES = 1 << 30
"""Length of a statement that lists numbers of pictures; ClickHouse takes 256 KiB unless told."""

_COLUMNS = (
    "picture Int64",
    "part LowCardinality(String)",
    "number Int32",
    "class LowCardinality(Nullable(String))",
    "score Nullable(Float32)",
    "taken Nullable(Float64)",
    "shows Array(LowCardinality(String))",
)


class Connection(Protocol):
    """What runs statements. Threads may share an object; what goes wrong is an EngineError.

    Attributes:
        place: where it is, without a password.
    """

    place: str

    def run(self, statement: str) -> None:
        """Runs a statement that gives nothing."""

    def batches(self, statement: str) -> Iterator[pa.RecordBatch]:
        """What a statement gives."""

    def insert(self, table: str, rows: pa.Table) -> None:
        """Adds rows to a table."""

    def close(self) -> None:
        """Closes the connection."""


class ClickHouse:
    """A table of ClickHouse, a backend of `regionhash.engines.backend`.

    Args:
        connection: to the database.
        owner: the collection.
    """

    def __init__(self, connection: Connection, owner: Owner) -> None:
        self.connection, self._owner = connection, owner
        self._table = f"regionhash_{owner.uuid}"
        self.place = f"{connection.place}/{self._table}"

    def create(self) -> None:
        """Makes the table, see `Backend`."""
        words = [f"word_{n} UInt64" for n in range(n_words(self._owner))]
        columns = ",\n  ".join([*_COLUMNS, *words])
        record = CLICKHOUSE.text(json.dumps(self._owner.record))
        self.connection.run(
            f"CREATE TABLE IF NOT EXISTS {self._table} (\n  {columns}\n)\n"
            f"ENGINE = ReplacingMergeTree ORDER BY (part, picture, number)\nCOMMENT {record}"
        )
        self._exists()

    def held(self) -> Held:
        """Counts rows, see `Backend`."""
        if not self._exists():
            return Held(0, 0)
        pictures, regions = self._columns(
            f"SELECT countIf(part = 'picture'), countIf(part = 'region')\nFROM {self._table} FINAL"
        )
        return Held(int(pictures[0]), int(regions[0]))

    def stamps(self) -> frozenset[str]:
        """What the comment says besides, see `Backend`."""
        return frozenset(filter(None, [self._mark()]))

    def stamp(self, stamp: str) -> None:
        """Changes the comment, see `Backend`."""
        comment = CLICKHOUSE.text(json.dumps(self._owner.record | {_STAMP: stamp}))
        self.connection.run(f"ALTER TABLE {self._table} MODIFY COMMENT {comment}")

    def insert(self, codes: CodeSet, facts: Sequence[Facts]) -> None:
        """Sends rows, see `Backend`."""
        self.connection.insert(self._table, rows_of(codes, facts, self._owner))

    def remove(self, numbers: Ints) -> None:
        """Deletes rows, see `Backend`."""
        if len(numbers):
            self.connection.run(f"DELETE FROM {self._table}\nWHERE {among(self.rows(), numbers)}")

    def stored(self, part: Part, *, codes: bool) -> Iterator[Stored]:
        """All that is there, see `Backend`."""
        if self._exists():
            rows = Rows(CLICKHOUSE, f"{self._table} FINAL")
            statement = everything(rows, part, n_words(self._owner) if codes else 0)
            yield from stored_of(self.connection.batches(statement), part, self._owner)

    def nearest(self, search: Nearest) -> tuple[Ints, Ints]:
        """One statement, see `Backend`."""
        statement = nearest(
            self.rows(),
            search.part,
            search.queries,
            conditions_of(self.rows(), search.condition),
            top=search.top,
            max_distance=search.max_distance,
        )
        numbers, distances = self._columns(statement) or (np.zeros(0), np.zeros(0))
        return numbers.astype(np.int64), distances.astype(np.int64)

    def drop(self) -> None:
        """Drops the table, see `Backend`."""
        self.connection.run(f"DROP TABLE IF EXISTS {self._table} SYNC")

    def close(self) -> None:
        """Closes the connection."""
        self.connection.close()

    def rows(self) -> Rows:
        """What statements read."""
        return Rows(CLICKHOUSE, self._table)

    def _exists(self) -> bool:
        """Whether there is a table. Raises EngineError if it has another record."""
        return self._mark() is not None

    def _mark(self) -> str | None:
        """The mark of the table, empty if it has none yet; None if there is no table.

        Raises:
            EngineError: it has another record.
        """
        name = CLICKHOUSE.text(self._table)
        found = self._columns(
            "SELECT comment FROM system.tables\n"
            f"WHERE database = currentDatabase() AND name = {name}"
        )
        for comment in found[0] if found else ():
            try:
                record = parse_object(str(comment).encode())
            except ValueError:
                record = None
            mark = "" if record is None else record.pop(_STAMP, "")
            self._owner.check(self.place, record)
            return str(mark)
        return None

    def _columns(self, statement: str) -> list[NDArray[Any]]:
        """The columns that a statement gives; none if it gives no rows."""
        batches = [batch for batch in self.connection.batches(statement) if len(batch)]
        return [
            np.concatenate([np.asarray(column) for column in columns])
            for columns in zip(*batches, strict=True)
        ]


class Server:
    """A database of a ClickHouse server.

    Args:
        address: `clickhouse://user:password@host:port/database`, of which only the host must be
            given.

    Raises:
        ValueError: it is no such address.
        ModuleNotFoundError: clickhouse-connect or pyarrow is not installed.
    """

    def __init__(self, address: str) -> None:
        import clickhouse_connect  # noqa: F401 (says what is missing)
        import pyarrow  # noqa: F401

        # What it warns of is said by EngineError.
        logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())

        server = read_server(address, PORTS)
        if server is None or server.parts.query or server.parts.fragment:
            raise ValueError(
                "engine sql needs an address clickhouse://user:password@host:port/database, of "
                "which only the host must be given; other characters than letters and digits are "
                "encoded: / as %2F, @ as %40"
            )
        parts, database = server.parts, server.parts.path[1:] or "default"
        self.place = f"{server.shown}/{database}"
        self._lock = threading.Lock()
        self._client: Any = None
        self._login: dict[str, Any] = {
            "host": server.host,
            "port": server.port,
            "database": unquote(database),
            "interface": "https" if parts.scheme == "clickhouses" else "http",
            "username": unquote(parts.username or "default"),
            "password": unquote(parts.password or os.environ.get(PASSWORD, "")),
        }

    def run(self, statement: str) -> None:
        """Runs a statement, see `Connection`."""
        with self._connected() as client:
            client.command(statement)

    def batches(self, statement: str) -> Iterator[pa.RecordBatch]:
        """What a statement gives, as it comes, see `Connection`."""
        with self._connected() as client, client.query_arrow_stream(statement) as batches:
            yield from batches

    def insert(self, table: str, rows: pa.Table) -> None:
        """Sends rows, see `Connection`."""
        with self._connected() as client:
            client.insert_arrow(table, rows)

    def close(self) -> None:
        """Closes the connection, see `Connection`."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """The client, connected once."""
        import clickhouse_connect
        import pyarrow as pa
        from clickhouse_connect.driver.exceptions import ClickHouseError
        from urllib3.exceptions import HTTPError

        try:
            with self._lock:
                if self._client is None:
                    self._client = clickhouse_connect.get_client(
                        **self._login,
                        connect_timeout=_CONNECT_SECONDS,
                        send_receive_timeout=_ANSWER_SECONDS,
                        autogenerate_session_id=False,  # threads ask at the same time
                        settings={"max_query_size": _QUERY_BYTES},
                    )
            yield self._client
        except (OSError, ClickHouseError, HTTPError, pa.ArrowException) as error:
            raise EngineError(f"{self.place}: {reason_of(error)}") from error


class InProcess:
    """A folder of tables that chDB, ClickHouse as a library, reads in this process.

    One process at a time can open the folder, and only one folder.

    Args:
        folder: of the tables.

    Raises:
        ValueError: chDB cannot open a folder with such a path.
        ModuleNotFoundError: chDB or pyarrow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        import chdb  # noqa: F401 (says what is missing)
        import pyarrow.parquet  # noqa: F401

        self.place = f"chdb:{folder}"
        if "?" in self.place or not is_text(self.place):
            # It would take what follows for options, and open another folder.
            raise ValueError(f"{folder}: chDB opens no folder whose path has a ? or is not UTF-8")
        self._folder = folder
        self._session: Any = None

    def run(self, statement: str) -> None:
        """Runs a statement, see `Connection`."""
        self._answer(statement)

    def batches(self, statement: str) -> Iterator[pa.RecordBatch]:
        """What a statement gives, see `Connection`."""
        import pyarrow as pa

        if answer := self._answer(statement):
            yield from pa.ipc.open_stream(answer)

    def insert(self, table: str, rows: pa.Table) -> None:
        """Adds rows by way of a file, see `Connection`."""
        import pyarrow.parquet as pq

        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            pq.write_table(rows, file)
            file.flush()
            columns = ", ".join(rows.column_names)
            source = file_of_clickhouse(file.name)
            self.run(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {source}")

    def close(self) -> None:
        """Closes the folder, see `Connection`."""
        with _CHDB:
            if self._session is not None:
                self._session.close()
            self._session = None

    def _answer(self, statement: str) -> bytes:
        from chdb.session import Session

        with _CHDB:
            try:
                if self._session is None:
                    self._session = Session(str(self._folder))
                    self._session.query(f"SET max_query_size = {_QUERY_BYTES}")
                answer: bytes = self._session.query(statement, "ArrowStream").bytes()
            except (OSError, RuntimeError) as error:
                raise EngineError(f"{self.place}: {reason_of(error)}") from error
            return answer


_CHDB = threading.Lock()
"""chDB is one for all threads of a process."""
