"""Region-based deep hashing: find the pictures that contain an object, with a few bytes per region."""

__version__ = "0.1.0"
