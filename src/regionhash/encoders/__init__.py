"""Image encoders: any of them becomes an ONNX graph with its preprocessing, and needs no torch."""

from regionhash.encoders.encoder import Encoder, OnnxEncoder
from regionhash.encoders.errors import EncoderError
from regionhash.encoders.sources import DEFAULT_ENCODER, resolve
from regionhash.encoders.stored import Resolved, check_encoder, read_encoder

__all__ = [
    "DEFAULT_ENCODER",
    "Encoder",
    "EncoderError",
    "OnnxEncoder",
    "Resolved",
    "check_encoder",
    "read_encoder",
    "resolve",
]
