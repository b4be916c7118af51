"""What a network without its hash says of pictures, kept on disk; how a hash is trained on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from regionhash.data.image_set import ImageSet
from regionhash.files.atomic import replacing
from regionhash.models import TrainedHashModel
from regionhash.models.encoding import Precision
from regionhash.training.loop import Cache, TrainingConfig, cache_features

PRECISION: Precision = "bf16-mixed"  # of the presets


def stored_features(
    path: Path,
    build: Callable[[], TrainedHashModel],
    image_set: ImageSet,
    config: TrainingConfig,
    n_views: int,
    note: Callable[[str], None],
) -> Cache:
    """The features of `n_views` views of all pictures, from `path` or, if it is missing, made.

    Args:
        path: a safetensors file; its name must have all that the features depend on.
        build: makes the network, see `cache_features`; called only if the file is missing.
        image_set: pictures.
        config: of the views.
        n_views: how many of every picture.
        note: called with lines of progress.

    Raises:
        ValueError: a picture cannot be read.
    """
    found = _stored(path, n_views, note)
    if found is None:
        note(f"{image_set.name}: computing the features of {n_views} views")
        found = cache_features(build(), image_set, config, n_views)
        if len(found[0][1]) != len(image_set):
            raise ValueError(f"{image_set.name}: some pictures cannot be read, see above")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            save_file(_flat(found), new)
    return found


def _stored(path: Path, n_views: int, note: Callable[[str], None]) -> Cache | None:
    """The features in `path`; None if it is missing or damaged."""
    if not path.exists():
        return None
    try:
        return _nested(load_file(path), n_views)
    except (OSError, SafetensorError, LookupError) as error:
        note(f"{path}: damaged ({str(error).splitlines()[0]}); computed again")
        return None


def head_training(
    *, epochs: int, short: int, views: int, seed: int, ramped: bool = False
) -> TrainingConfig:
    """How the presets train the layers of a hash on such features: all methods alike.

    With `ramped`, the hashing terms come in slowly.
    """
    return TrainingConfig(
        epochs=epochs,
        batch_size=32,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=1e-2,
        warmup=0.1,
        ramp_start=0.2 if ramped else 0.0,
        ramp_end=0.5 if ramped else 0.0,
        short=short,
        held_out=0.0,
        cached_views=views,
        precision=PRECISION,
        seed=seed,
    )


def _flat(cache: Cache) -> dict[str, Tensor]:
    tensors = {}
    for view, (features, labels) in enumerate(cache):
        tensors[f"{view}/labels"] = labels
        tensors |= {f"{view}/{name}": value.contiguous() for name, value in features.items()}
    return tensors


def _nested(tensors: dict[str, Tensor], n_views: int) -> Cache:
    cache: Cache = []
    for view in range(n_views):
        start = f"{view}/"
        features = {
            name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)
        }
        labels = features.pop("labels")
        cache.append((features, labels))
    return cache
