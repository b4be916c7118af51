"""Precision of a network's forward pass, and which one this machine is built for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

Precision = Literal["32-true", "bf16-mixed"]
"""Precision of the forward pass: float32, or bfloat16 where it is safe."""

PrecisionName = Literal["auto", "32-true", "bf16-mixed"]
"""What may be asked for; "auto" is the fastest on this machine, or that of the codes there are."""

PRECISIONS: tuple[str, ...] = get_args(Precision)


def check_precision(precision: str, *, known: tuple[str, ...] = PRECISIONS) -> None:
    """Raises ValueError for an unknown precision."""
    if precision not in known:
        raise ValueError(f"precision must be one of {', '.join(known)}, got {precision!r}")


def precision_of(meta: Mapping[str, Any]) -> Precision:
    """The precision of codes, given what their file says of where they come from."""
    precision: Precision = meta.get("precision", PRECISIONS[0])
    return precision


def check_same_precision(place: Path | str, recorded: str, asked: PrecisionName) -> None:
    """Raises ValueError if codes of a recorded precision are asked for in another one."""
    check_precision(asked, known=get_args(PrecisionName))
    if asked not in ("auto", recorded):
        raise ValueError(
            f"{place}: holds codes of precision {recorded}, got {asked}; all codes of a collection "
            "or code file are of one precision"
        )


@cache
def bf16_of_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Literal["fast", "slow", "none"]:
    """How this CPU multiplies bfloat16: faster than float32, not faster, or not at all.

    It is faster with AMX; the instructions of AVX-512 alone gain nothing (docs/onnx.md). Only Linux
    says what there is.
    """
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return "none"
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    if "amx_bf16" in flags:
        return "fast"
    return "slow" if "avx512_bf16" in flags else "none"
