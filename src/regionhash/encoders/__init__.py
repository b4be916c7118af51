"""Image encoders: any of them becomes an ONNX graph with its preprocessing, and needs no torch."""

from regionhash.encoders.encoder import Encoder, OnnxEncoder
from regionhash.encoders.errors import EncoderError
from regionhash.encoders.sources import DEFAULT_ENCODER, resolve
from regionhash.encoders.stored import RECORD_FILE, Resolved, check_encoder, read_encoder
from regionhash.encoders.text import TextEncoder

__all__ = [
    "DEFAULT_ENCODER",
    "RECORD_FILE",
    "Encoder",
    "EncoderError",
    "OnnxEncoder",
    "Resolved",
    "TextEncoder",
    "check_encoder",
    "read_encoder",
    "resolve",
]
