"""Search by codes, exactly or in steps."""

from regionhash.search.exact import (
    search_categories,
    search_images,
    search_objects,
    search_regions,
)
from regionhash.search.scan import nearest_bags
from regionhash.search.united import united_hamming

__all__ = [
    "nearest_bags",
    "search_categories",
    "search_images",
    "search_objects",
    "search_regions",
    "united_hamming",
]
