"""Search by codes, exactly or in steps."""

from regionhash.search.exact import (
    nearest_bags,
    search_categories,
    search_images,
    search_objects,
    search_regions,
    united_hamming,
)

__all__ = [
    "nearest_bags",
    "search_categories",
    "search_images",
    "search_objects",
    "search_regions",
    "united_hamming",
]
