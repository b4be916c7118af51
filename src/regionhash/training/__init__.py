"""Training: one plain loop for all models that learn from labels."""

from regionhash.reporter import EpochReport
from regionhash.training.config import TrainingConfig, TrainingError
from regionhash.training.feature_cache import cache_features
from regionhash.training.loop import train
from regionhash.training.reader import Cache
from regionhash.training.start import copy_weights

__all__ = [
    "Cache",
    "EpochReport",
    "TrainingConfig",
    "TrainingError",
    "cache_features",
    "copy_weights",
    "train",
]
