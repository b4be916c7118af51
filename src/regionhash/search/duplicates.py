"""Near-duplicates: shown once, by the one that ranks best."""

from __future__ import annotations

from collections.abc import Sequence

from regionhash.codes import hamming_distances
from regionhash.structures import CodeTable, Hit


def fold_duplicates(hits: Sequence[Hit], table: CodeTable, bits: int) -> list[Hit]:
    """Folds near-duplicates among ranked hits into the best of them, as its `duplicates`.

    A picture joins the first hit that it nearly equals: their image codes, and each region of
    either and the nearest region of the other, differ in at most `bits` bits.
    """
    groups: list[list[Hit]] = []
    for hit in hits:
        for group in groups:
            if _nearly_same(hit.index, group[0].index, table, bits):
                group.append(hit)
                break
        else:
            groups.append([hit])
    return [best._replace(duplicates=tuple(others)) for best, *others in groups]


def _nearly_same(n: int, m: int, table: CodeTable, bits: int) -> bool:
    if table.image_codes is not None:
        (distances,) = hamming_distances(table.image_codes[n][None], table.image_codes[m][None])
        if distances[0] > bits:
            return False
    if table.offsets is None:
        return True
    of_n, of_m = table.regions(n).codes, table.regions(m).codes
    if not (len(of_n) and len(of_m)):
        return len(of_n) == len(of_m)
    distances = hamming_distances(of_n, of_m)  # (R, S)
    return bool(max(distances.min(axis=0).max(), distances.min(axis=1).max()) <= bits)
