"""Codes in Milvus, 2.3.5 or newer, through `pymilvus`; see docs/milvus.md."""

from regionhash.engines.milvus.engine import MilvusEngine

__all__ = ["MilvusEngine"]
