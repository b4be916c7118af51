"""Training: one plain loop for all models that learn from labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regionhash.extras import imported_when_asked

if TYPE_CHECKING:
    from regionhash.training.config import TrainingConfig, TrainingError
    from regionhash.training.feature_cache import cache_features
    from regionhash.training.loop import train
    from regionhash.training.reader import Cache
    from regionhash.training.start import copy_weights

__all__ = [
    "Cache",
    "TrainingConfig",
    "TrainingError",
    "cache_features",
    "copy_weights",
    "train",
]

__getattr__ = imported_when_asked(
    __name__,
    {
        "Cache": "reader:Cache",
        "TrainingConfig": "config:TrainingConfig",
        "TrainingError": "config:TrainingError",
        "cache_features": "feature_cache:cache_features",
        "copy_weights": "start:copy_weights",
        "train": "loop:train",
    },
)
