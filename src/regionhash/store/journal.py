"""The journal of a code file: records that survive a kill at any moment."""

from __future__ import annotations

import fcntl
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from regionhash.store.layout import FORMAT, StoreError, reported

LOCK_SECONDS = 3.0  # how long a writer waits for another one to finish
_MAGIC = b"RHJOURN1"
_RECORD = struct.Struct("<II")  # length and CRC-32 of the payload that follows
_MAX_RECORD = 1 << 28  # bytes; a picture of 10,000 regions and codes of 1,024 bits takes 2 MB
_SYNC_SECONDS = 5.0  # of work that a power cut may take; a kill takes none


class Journal:
    """An append-only file of records, each of which is complete or absent.

    Opening locks it against other writers and cuts it off after its last complete record.

    Raises:
        StoreError: another writer holds it, it is not a journal, or the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0  # of the last whole record
        self._synced = time.monotonic()
        if path.exists() and not path.is_file():
            raise StoreError(f"{path}: not an ordinary file; move it away")
        with reported(path, "cannot write"):
            self._file = path.open("a+b", buffering=0)
        try:
            self._lock()
            self._cut_torn_record()
        except BlockingIOError as error:
            self._file.close()
            raise StoreError(f"{path}: another writer is at work on it") from error
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        """Waits a little: processes that read pictures outlive the run that was killed."""
        patience = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > patience:
                    raise
                time.sleep(0.05)

    def _cut_torn_record(self) -> None:
        with self.path.open("rb") as file:
            if not _MAGIC.startswith(file.read(len(_MAGIC))):
                raise StoreError(f"{self.path}: not a journal of {FORMAT}; move it away")
            while _next_payload(file) is not None:
                self._end = file.tell()
        self._file.truncate(self._end)

    def records(self) -> Iterator[bytes]:
        """The payload of each record."""
        with self.path.open("rb") as file:
            file.seek(len(_MAGIC))
            while file.tell() < self._end:
                payload = _next_payload(file)
                if payload is None:
                    raise StoreError(f"{self.path}: damaged since it was opened")
                yield payload

    def append(self, payload: bytes) -> None:
        """Adds a record; where that fails, the journal is as it was before."""
        if len(payload) > _MAX_RECORD:
            raise StoreError(f"{self.path}: a record of {len(payload)} bytes is too long")
        start = b"" if self._end else _MAGIC
        record = start + _RECORD.pack(len(payload), zlib.crc32(payload)) + payload
        rest = memoryview(record)
        with reported(self.path, "cannot write"):
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except BaseException:
                self._file.truncate(self._end)
                raise
            self._end += len(record)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def clear(self) -> None:
        """Drops all records."""
        self._end = 0
        with reported(self.path, "cannot empty"):
            self._file.truncate(0)

    def close(self) -> None:
        """Lets go of the file, which stays unless it is empty."""
        if self._file.closed:
            return
        with reported(self.path, "cannot write"), self._file:
            if self._end:
                os.fsync(self._file.fileno())
            else:
                self.path.unlink(missing_ok=True)


def _next_payload(file: BinaryIO) -> bytes | None:
    """The payload of the next record; None at the end or where the record is not whole."""
    head = file.read(_RECORD.size)
    if len(head) < _RECORD.size:
        return None
    length, checksum = _RECORD.unpack(head)
    if length > min(_MAX_RECORD, os.fstat(file.fileno()).st_size - file.tell()):
        return None  # before memory is taken for it
    payload = file.read(length)
    # A power cut may leave zeros behind; a length of 0 would pass the checksum.
    whole = length and len(payload) == length and zlib.crc32(payload) == checksum
    return payload if whole else None
