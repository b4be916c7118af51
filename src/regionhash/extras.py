"""What the plain installation leaves out: training, and what only tables and plots need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

_EXTRA_OF = {
    **dict.fromkeys(
        (
            "lightning",
            "lightning_fabric",
            "matplotlib",
            "onnx",
            "onnxscript",
            "scipy",
            "sklearn",
            "tensorboard",
            "torch",
            "torchvision",
        ),
        "train",
    ),
    "cv2": "selective-search",
    "pyarrow": "parquet",
    "ray": "scale",
    "s3fs": "scale",
    "openvino": "openvino",
    "duckdb": "sql",
    "clickhouse_connect": "clickhouse",
    "chdb": "chdb",
    "pymilvus": "milvus",
    "pillow_heif": "heic",
}


def missing(error: ModuleNotFoundError) -> str | None:
    """How to get the package that could not be imported; None if no extra brings it."""
    package = (error.name or "").partition(".")[0]
    extra = _EXTRA_OF.get(package)
    return extra and f'this needs {package}: pip install "regionhash[{extra}]"'


def imported_when_asked(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose modules wait to be asked for (PEP 562).

    torch takes seconds to import, and need not be there.

    Args:
        package: its `__name__`.
        places: "module:attribute" of each name, the module below the package.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = places[name].partition(":")
        try:
            return getattr(import_module(f"{package}.{module}"), attribute)
        except ModuleNotFoundError as error:
            if line := missing(error):
                raise ModuleNotFoundError(f"{package}.{name}: {line}", name=error.name) from error
            raise

    return get
