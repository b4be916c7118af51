"""Detectors that are ONNX graphs: they give the boxes of a collection's pictures, without torch."""

from regionhash.detectors.onnx_detector import OnnxDetector
from regionhash.detectors.stored import (
    DETECTOR_FILES,
    check_detector,
    is_detector,
    read_detector,
    write_detector,
)

__all__ = [
    "DETECTOR_FILES",
    "OnnxDetector",
    "check_detector",
    "is_detector",
    "read_detector",
    "write_detector",
]
