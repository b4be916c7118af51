"""Training: one plain loop for all models that learn from labels."""

from regionhash.training.loop import (
    Cache,
    EpochReport,
    TrainingConfig,
    TrainingError,
    cache_features,
    copy_weights,
    train,
)

__all__ = [
    "Cache",
    "EpochReport",
    "TrainingConfig",
    "TrainingError",
    "cache_features",
    "copy_weights",
    "train",
]
