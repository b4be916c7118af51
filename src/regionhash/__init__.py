"""Region-based deep hashing: find pictures by the objects in them, with a few bytes per region."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regionhash.extras import imported_when_asked

if TYPE_CHECKING:
    from regionhash.collection import Collection, open_codes
    from regionhash.models.checkpoints import load_checkpoint as load_model
    from regionhash.models.encoding import encode
    from regionhash.reporter import Reporter
    from regionhash.search.request import Filter, Query, Search
    from regionhash.search.run import find
    from regionhash.training import train

__version__ = "0.1.0"

__all__ = [
    "Collection",
    "Filter",
    "Query",
    "Reporter",
    "Search",
    "encode",
    "find",
    "load_model",
    "open_codes",
    "train",
]

_PLACES = {
    "Collection": "collection:Collection",
    "Filter": "search.request:Filter",
    "Query": "search.request:Query",
    "Reporter": "reporter:Reporter",
    "Search": "search.request:Search",
    "encode": "models.encoding:encode",
    "find": "search.run:find",
    "load_model": "models.checkpoints:load_checkpoint",
    "open_codes": "collection:open_codes",
    "train": "training:train",
}


__getattr__ = imported_when_asked(__name__, _PLACES)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
