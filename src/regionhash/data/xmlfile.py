"""Untrusted XML annotations."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from regionhash.files.text import read_bytes, refusing

_MOST_BYTES = 4 << 20
"""A thousand times what VOC needs for 20 objects; reading such a file takes 0.1 GB."""

_DEEPEST = 64  # VOC has 4 levels


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an annotation.

    Entities are refused: a few lines of them can expand to gigabytes.

    Raises:
        ValueError: the file cannot be read, is larger or nested more deeply than an annotation can
            be, declares an entity, or is not XML. The message names the file.
    """
    content = read_bytes(path, "the annotation", most=_MOST_BYTES)
    builder = ElementTree.TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(name: str, *_: object) -> NoReturn:
        raise ValueError(f"an annotation must not declare entities, got {name!r}")

    parser = expat.ParserCreate(namespace_separator="}")  # as ElementTree does
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    with refusing(f"{path}: broken XML", ValueError, expat.ExpatError, LookupError):
        parser.Parse(content, True)  # LookupError: an unknown encoding
        return builder.close()
