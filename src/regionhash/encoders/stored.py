"""An encoder with its origin, and the folder it is stored in.

    encoder.json    where it comes from, preprocessing, layout, size and sha256 of each graph
    encoder.onnx    the graph, in one file

docs/encoders.md has the fields of encoder.json.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regionhash.encoders.encoder import Encoder, OnnxEncoder
from regionhash.encoders.errors import EncoderError
from regionhash.encoders.layout import Layout
from regionhash.encoders.preprocessing import Preprocessing
from regionhash.files import strict_json
from regionhash.files.atomic import replacing, write_text
from regionhash.files.text import refusing, shown

RECORD_FILE = "encoder.json"
GRAPH_FILE = "encoder.onnx"
FORMAT = 1

_MAX_TEXT = 500  # characters of a spec, revision or licence


@dataclass(frozen=True)
class Resolved:
    """An encoder and its origin.

    Attributes:
        spec: names it, with its revision: "hf:onnx-community/dinov2-small@1f2e...".
        encoder: ready to run.
        identity: what its features depend on, as JSON: the same identity gives the same features.
        graph: the graph, or its file; None if another package runs the encoder.
        revision: of its source, "" if that has none.
        licence: its identifier, "" if unknown.
    """

    spec: str
    encoder: Encoder
    identity: dict[str, Any]
    graph: bytes | Path | None = None
    revision: str = ""
    licence: str = ""

    @classmethod
    def of_graph(
        cls, spec: str, graph: bytes | Path, encoder: OnnxEncoder, **origin: str
    ) -> Resolved:
        """That of an encoder that is a graph; `origin` are revision and licence."""
        identity = {
            "sha256": sha256_of(graph),
            "preprocessing": encoder.preprocessing.to_record(),
            "layout": encoder.layout.to_record(),
        }
        return cls(spec, encoder, identity, graph, **origin)

    @property
    def n_bytes(self) -> int:
        """Size of the graph; 0 without one."""
        return 0 if self.graph is None else _size_of(self.graph)

    def write(self, folder: Path) -> None:
        """Writes the stored form into a folder, which is made; `read_encoder` reads it.

        Raises:
            OSError: the disk refuses.
        """
        folder.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {
            "format": FORMAT,
            "spec": self.spec,
            "revision": self.revision,
            "licence": self.licence,
            "graph": None,
        }
        if self.graph is not None:
            content = self.graph if isinstance(self.graph, bytes) else self.graph.read_bytes()
            with replacing(folder / GRAPH_FILE) as new:
                new.write_bytes(content)
            facts = dict(self.identity)
            record["graph"] = {"bytes": len(content), "sha256": facts.pop("sha256")}
            record |= facts
        write_text(folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")


def read_encoder(folder: Path) -> Resolved:
    """The encoder stored in a folder.

    The size of the graph is checked here, its content by `check_encoder`.

    Raises:
        EncoderError: a file is missing, damaged, of another size or of another version; or the
            package that runs the encoder is not installed.
    """
    path = folder / RECORD_FILE
    with refusing(str(path), EncoderError):
        record = strict_json.read_object(path)
        if record.get("format") != FORMAT:
            raise ValueError(
                f"encoder format {shown(record.get('format'))}, this version of regionhash reads "
                f"{FORMAT}"
            )
        spec, revision, licence = (_text(record, name) for name in ("spec", "revision", "licence"))
        if record.get("graph") is None:
            stored = None
        else:
            facts = strict_json.field(record, "graph", dict)
            n_bytes = strict_json.whole_number(facts, "bytes", 1, 1 << 40)
            sha256 = _text(facts, "sha256")
            preprocessing = Preprocessing.from_record(
                strict_json.field(record, "preprocessing", dict)
            )
            layout = Layout.from_record(strict_json.field(record, "layout", dict))
            stored = OnnxEncoder(folder / GRAPH_FILE, preprocessing, layout, str(folder))
    if stored is None:
        from regionhash.encoders.sources import of_package

        return of_package(spec, str(path))
    graph = folder / GRAPH_FILE
    with refusing(str(graph), EncoderError):
        found = graph.stat().st_size
        if found != n_bytes:
            raise ValueError(f"{found:,} bytes, but {RECORD_FILE} says {n_bytes:,}")
    identity = {
        "sha256": sha256,
        "preprocessing": preprocessing.to_record(),
        "layout": layout.to_record(),
    }
    return Resolved(spec, stored, identity, graph, revision, licence)


def check_encoder(folder: Path) -> None:
    """Reads all of a stored encoder.

    Raises:
        EncoderError: see `read_encoder`; or the graph is not the one that encoder.json describes.
    """
    stored = read_encoder(folder)
    if stored.graph is not None:
        with refusing(str(folder / GRAPH_FILE), EncoderError):
            if sha256_of(stored.graph) != stored.identity["sha256"]:
                raise ValueError(f"not the graph that {RECORD_FILE} describes: another sha256")


def sha256_of(graph: bytes | Path) -> str:
    """The sha256 of a graph or its file, in hexadecimal."""
    if isinstance(graph, bytes):
        return hashlib.sha256(graph).hexdigest()
    with graph.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_of(graph: bytes | Path) -> int:
    return len(graph) if isinstance(graph, bytes) else graph.stat().st_size


def _text(record: dict[str, Any], name: str) -> str:
    text: str = strict_json.field(record, name, str)
    if len(text) > _MAX_TEXT:
        raise ValueError(f"{name} must have at most {_MAX_TEXT} characters")
    return text
