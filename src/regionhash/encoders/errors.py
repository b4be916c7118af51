"""The error of encoders."""

from __future__ import annotations


class EncoderError(ValueError):
    """An encoder that cannot be used: the message is one line, the file or name and the reason."""
