"""Graphs whose weights are in files beside them, made one file: the wire format of ONNX, as needed.

ONNX stores a graph in the format of Protocol Buffers, which allows 2 GB; tensors may be parts of
other files ("external data"). Such a tensor takes its bytes back in. Nothing else is changed, so
the same graph becomes the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from regionhash.encoders.errors import EncoderError
from regionhash.files.text import open_regular, read_bytes, refusing, shown

MAX_BYTES = (1 << 31) - 1
"""Largest graph in one file."""

# Numbers of fields in onnx.proto.
_GRAPH, _INITIALIZER = 7, 5  # of ModelProto, of GraphProto
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # kinds of fields

_Field = tuple[int, bytes, memoryview]  # number, all of its bytes but the content, content


def read_graph(path: Path) -> bytes:
    """The graph in a file, with the weights that are in files beside it.

    Raises:
        EncoderError: a file is missing, outside the folder or too short, or all together are
            larger than 2 GB.
    """
    try:
        content = read_bytes(path, "the graph", most=MAX_BYTES)
    except ValueError as error:
        raise EncoderError(str(error)) from error
    loader = _Loader(path)
    try:
        whole = _replaced(
            content, _GRAPH, lambda graph: _replaced(graph, _INITIALIZER, loader.tensor)
        )
    except (IndexError, _NotProtobufError):  # ONNX Runtime says what it is instead
        return content
    return whole if loader.used else content


class _NotProtobufError(Exception):
    """These bytes are no message."""


class _Loader:
    """Puts the content of external files into tensors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._n_bytes = path.stat().st_size
        self.used = False

    def tensor(self, content: memoryview) -> bytes | memoryview:
        """The tensor with its content in it."""
        entries: dict[str, str] = {}
        kept = b""
        for number, head, value in _fields(content):
            if number == _EXTERNAL_DATA:
                pair = {key: bytes(text) for key, _, text in _fields(value)}
                name, place = (bytes(pair.get(x, b"")) for x in (_KEY, _VALUE))
                entries[name.decode(errors="replace")] = place.decode(errors="replace")
            elif number not in (_DATA_LOCATION, _RAW_DATA):
                kept += head + value
        if "location" not in entries:
            return content
        self.used = True
        data = self._read(entries)
        return kept + _written(_RAW_DATA << 3 | _BYTES) + _written(len(data)) + data

    def _read(self, entries: dict[str, str]) -> bytes:
        name = entries["location"]
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise EncoderError(f"{self._path}: its weights are outside its folder: {shown(name)}")
        file = self._path.parent / name
        with refusing(f"{file}: cannot read the weights of {self._path.name}", EncoderError):
            offset = int(entries.get("offset", "0"))
            if not file.resolve().is_relative_to(self._path.parent.resolve()):
                raise ValueError("a link that leads out of its folder")
            with open_regular(file) as weights:
                length = int(entries.get("length", str(file.stat().st_size - offset)))
                self._n_bytes += length
                if self._n_bytes > MAX_BYTES:
                    raise ValueError("graph and weights are larger than 2 GB")
                weights.seek(offset)
                data = weights.read(length)
            if len(data) != length:
                raise ValueError(f"too short, {length:,} bytes from {offset:,} on are missing")
        return data


def _replaced(
    message: bytes | memoryview, number: int, change: Callable[[memoryview], bytes | memoryview]
) -> bytes:
    """A message with other content in each field of a number."""
    parts: list[bytes | memoryview] = []
    for found, head, value in _fields(memoryview(message)):
        if found == number:
            value = memoryview(change(value))
            head = _written(number << 3 | _BYTES) + _written(len(value))
        parts += [head, value]
    return b"".join(parts)


def _fields(message: memoryview) -> Iterator[_Field]:
    """The fields of a message."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            length = _varint(message, at)[1] - at
        elif kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise _NotProtobufError
        if at + length > len(message):
            raise _NotProtobufError
        yield number, bytes(message[start:at]), message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise _NotProtobufError


def _written(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
