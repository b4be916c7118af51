"""Search by codes, exactly or in steps."""

from regionhash.search.exact import (
    default_max_distance,
    nearest_bags,
    nearest_codes,
    search_categories,
    search_images,
    search_objects,
    search_regions,
    united_hamming,
)

__all__ = [
    "default_max_distance",
    "nearest_bags",
    "nearest_codes",
    "search_categories",
    "search_images",
    "search_objects",
    "search_regions",
    "united_hamming",
]
