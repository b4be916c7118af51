"""Collections: pictures are added and removed while they are searched."""

from regionhash.collection.collection import (
    Collection,
    check_folder,
    is_collection,
    model_hash_of,
    open_codes,
)
from regionhash.collection.database import CollectionMissingError, CollectionReplacedError
from regionhash.collection.results import Result, ResultGroup, Results
from regionhash.search.request import Filter, Query, Search

__all__ = [
    "Collection",
    "CollectionMissingError",
    "CollectionReplacedError",
    "Filter",
    "Query",
    "Result",
    "ResultGroup",
    "Results",
    "Search",
    "check_folder",
    "is_collection",
    "model_hash_of",
    "open_codes",
]
