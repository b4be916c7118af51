"""A collection that lives: pictures come and go, and are searched meanwhile."""

from regionhash.collection.collection import CheckReport, Collection, is_collection, open_codes
from regionhash.collection.database import DATABASE_FILE
from regionhash.collection.filters import Filter
from regionhash.collection.results import Query, Result, ResultGroup, Results

__all__ = [
    "DATABASE_FILE",
    "CheckReport",
    "Collection",
    "Filter",
    "Query",
    "Result",
    "ResultGroup",
    "Results",
    "is_collection",
    "open_codes",
]
