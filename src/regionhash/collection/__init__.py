"""A collection that lives: pictures come and go, and are searched meanwhile."""

from regionhash.collection.collection import CheckReport, Collection, is_collection
from regionhash.collection.database import DATABASE_FILE
from regionhash.collection.filters import Filter
from regionhash.collection.results import Query, Result, Results

__all__ = [
    "DATABASE_FILE",
    "CheckReport",
    "Collection",
    "Filter",
    "Query",
    "Result",
    "Results",
    "is_collection",
]
