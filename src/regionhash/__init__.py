"""Region-based deep hashing: find pictures by the objects in them, with a few bytes per region."""

__version__ = "0.1.0"
