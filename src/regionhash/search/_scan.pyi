from typing import Any

from numpy.typing import NDArray

INSTRUCTIONS: list[str]

def nearest(
    instructions: str,
    codes: NDArray[Any],
    n_bytes: int,
    offsets: NDArray[Any] | None,
    mask: NDArray[Any] | None,
    searches: tuple[tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any]], ...],
    /,
) -> None: ...
