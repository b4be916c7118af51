"""An encoder with its origin, and the folder it is stored in.

    encoder.json    where it comes from, preprocessing, layout, size and sha256 of each graph
    encoder.onnx    the graph, in one file
    text.onnx       the graph of words, if there is one, and its
    tokenizer.json

docs/encoders.md has the fields of encoder.json.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regionhash.encoders.encoder import Encoder, OnnxEncoder
from regionhash.encoders.errors import EncoderError
from regionhash.encoders.layout import Layout
from regionhash.encoders.preprocessing import Preprocessing
from regionhash.encoders.text import TOKENIZER_FILE, TextEncoder, TextLayout
from regionhash.files import strict_json
from regionhash.files.atomic import replacing, write_text
from regionhash.files.text import refusing, shown

RECORD_FILE = "encoder.json"
GRAPH_FILE = "encoder.onnx"
TEXT_GRAPH_FILE = "text.onnx"
ENCODER_FILES = (RECORD_FILE, GRAPH_FILE, TEXT_GRAPH_FILE, TOKENIZER_FILE)
FORMAT = 1

_MAX_TEXT = 5000  # characters of a spec, revision or licence


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
        text: encodes words into the space of the vectors of pictures; None if it has no words.
        folder: where the files of its source are, if they are on this machine.
    """

    spec: str
    encoder: Encoder
    identity: dict[str, Any]
    graph: bytes | Path | None = None
    revision: str = ""
    licence: str = ""
    text: TextEncoder | None = None
    folder: Path | None = None

    @classmethod
    def of_graph(
        cls, spec: str, graph: bytes | Path, encoder: OnnxEncoder, **origin: Any
    ) -> Resolved:
        """That of an encoder that is a graph; `origin` are the attributes after it."""
        identity = {
            "sha256": sha256_of(graph),
            "preprocessing": encoder.preprocessing.to_record(),
            "layout": encoder.layout.to_record(),
        }
        return cls(spec, encoder, identity, graph, **origin)

    def with_words(self, text: TextEncoder) -> Resolved:
        """The same with words."""
        identity = {
            "sha256": sha256_of(text.graph),
            "tokenizer": sha256_of(text.tokenizer),
            "layout": text.layout.to_record(),
        }
        return replace(self, identity=self.identity | {"text": identity}, text=text)

    def without_words(self) -> Resolved:
        """The same without its words."""
        identity = {name: value for name, value in self.identity.items() if name != "text"}
        return replace(self, identity=identity, text=None)

    @property
    def n_bytes(self) -> int:
        """Size of the graphs; 0 without any."""
        graphs = [self.graph, None if self.text is None else self.text.graph]
        return sum(_size_of(graph) for graph in graphs if graph is not None)

    def write(self, folder: Path) -> None:
        """Writes the stored form into a folder, which is made; `read_encoder` reads it.

        Raises:
            EncoderError: a file has changed since it was read.
            OSError: the disk refuses.
        """
        folder.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {
            "format": FORMAT,
            "spec": self.spec,
            "revision": self.revision,
            "licence": self.licence,
            "graph": None,
            "text": None,
        }
        if self.graph is not None:
            record["preprocessing"] = self.identity["preprocessing"]
            record["layout"] = self.identity["layout"]
            record["graph"] = _written(folder / GRAPH_FILE, self.graph)
            if record["graph"]["sha256"] != self.identity["sha256"]:
                raise EncoderError(f"{self.spec}: its graph has changed since it was read")
        if self.text is not None:
            record["text"] = {
                "graph": _written(folder / TEXT_GRAPH_FILE, self.text.graph),
                "tokenizer": _written(folder / TOKENIZER_FILE, self.text.tokenizer),
                "layout": self.text.layout.to_record(),
            }
        write_text(folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")
        if self.text is None:  # of an encoder that was there before
            for name in (TEXT_GRAPH_FILE, TOKENIZER_FILE):
                (folder / name).unlink(missing_ok=True)


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
        ours = record.get("graph") is not None
        graph = _Stored.of(folder / GRAPH_FILE, record, "graph") if ours else None
        if graph:
            preprocessing = Preprocessing.from_record(
                strict_json.field(record, "preprocessing", dict)
            )
            layout = Layout.from_record(strict_json.field(record, "layout", dict))
        words = strict_json.field(record, "text", dict) if record.get("text") is not None else None
        if words:
            text_graph = _Stored.of(folder / TEXT_GRAPH_FILE, words, "graph")
            tokenizer = _Stored.of(folder / TOKENIZER_FILE, words, "tokenizer")
            text_layout = TextLayout.from_record(strict_json.field(words, "layout", dict))
    if graph is None:
        from regionhash.encoders.sources import of_package

        return of_package(spec, str(path))
    graph.check_size()
    text = None
    if words:
        text_graph.check_size()
        tokenizer.check_size()
        text = TextEncoder(text_graph.path, tokenizer.path, text_layout, str(folder))
    identity = {
        "sha256": graph.sha256,
        "preprocessing": preprocessing.to_record(),
        "layout": layout.to_record(),
    }
    encoder = OnnxEncoder(graph.path, preprocessing, layout, str(folder))
    found = Resolved(spec, encoder, identity, graph.path, revision, licence, None, folder)
    if text is None:
        return found
    text_identity = {
        "sha256": text_graph.sha256,
        "tokenizer": tokenizer.sha256,
        "layout": text_layout.to_record(),
    }
    return replace(found, identity=identity | {"text": text_identity}, text=text)


def check_encoder(folder: Path) -> Resolved:
    """The encoder stored in a folder, all of whose files were read and compared with encoder.json.

    Raises:
        EncoderError: see `read_encoder`; or a file is not the one that encoder.json describes.
    """
    stored = read_encoder(folder)
    described = {} if stored.graph is None else {GRAPH_FILE: stored.identity["sha256"]}
    if stored.text is not None:
        words = stored.identity["text"]
        described |= {TEXT_GRAPH_FILE: words["sha256"], TOKENIZER_FILE: words["tokenizer"]}
    for name, sha256 in described.items():
        path = folder / name
        with refusing(str(path), EncoderError):
            if sha256_of(path) != sha256:
                raise ValueError(f"not the file that {RECORD_FILE} describes: another sha256")
    return stored


@dataclass(frozen=True)
class _Stored:
    """A file and what encoder.json says of it."""

    path: Path
    n_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, record: dict[str, Any], name: str) -> _Stored:
        facts = strict_json.field(record, name, dict)
        return cls(
            path, strict_json.whole_number(facts, "bytes", 1, 1 << 40), _text(facts, "sha256")
        )

    def check_size(self) -> None:
        with refusing(str(self.path), EncoderError):
            found = self.path.stat().st_size
            if found != self.n_bytes:
                raise ValueError(f"{found:,} bytes, but {RECORD_FILE} says {self.n_bytes:,}")


def _written(path: Path, content: bytes | Path) -> dict[str, Any]:
    """Writes a file; what encoder.json says of it."""
    if isinstance(content, Path):
        content = content.read_bytes()
    with replacing(path) as new:
        new.write_bytes(content)
    return {"bytes": len(content), "sha256": sha256_of(content)}


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
