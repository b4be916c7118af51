"""Features of a network without its hash, kept on disk; how a hash is trained on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from lightning_fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regionhash.data.image_set import ImageSet
from regionhash.files.atomic import replacing
from regionhash.models import TrainedHashModel
from regionhash.models.runtime import Precision
from regionhash.reporter import Reporter
from regionhash.training.config import TrainingConfig
from regionhash.training.reader import Cache, Reader, known_to

PRECISION: Precision = "bf16-mixed"  # of the presets


def cache_features(
    model: TrainedHashModel, image_set: ImageSet, config: TrainingConfig, n_views: int
) -> Cache:
    """Features of `n_views` views of all readable pictures, from the network without its hash.

    The first view is the picture unchanged, and gives what `encode` would see. Models that differ
    in the image hash alone can share the result.
    """
    fabric = Fabric(accelerator="auto", devices=1, precision=config.precision)
    ready: Any = fabric.setup_module(cast(nn.Module, model))
    ready.mark_forward_method("frozen_features")
    reader = Reader(config, len(image_set.classes), fabric.device)
    return reader.views(ready, known_to(model, image_set), n_views)


def kept_features(
    folder: Path,
    name: str,
    build: Callable[[], TrainedHashModel],
    image_set: ImageSet,
    config: TrainingConfig,
    n_views: int,
    reporter: Reporter,
) -> Cache:
    """The features of `n_views` views of all pictures, made or kept, see `cache_features`.

    Args:
        folder: where they are kept, in a file whose name has all that they depend on.
        name: of that file what is not a matter of pictures, their size or their number of views.
        build: makes the network; called only if the file is unusable.
        image_set: pictures.
        config: how views are made.
        n_views: views of every picture.
        reporter: is told what is computed, and that a file is damaged.

    Raises:
        ValueError: a picture cannot be read.
    """
    path = folder / f"{name}-{config.short}-{n_views}-{image_set.fingerprint()}.safetensors"
    found = _stored(path, n_views, reporter)
    if found is None:
        reporter.note(f"{image_set.name}: computing the features of {n_views} views")
        found = cache_features(build(), image_set, config, n_views)
        if len(found[0][1]) != len(image_set):
            raise ValueError(f"{image_set.name}: some pictures cannot be read, see above")
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            save_file(_flat(found), new)
    return found


def _stored(path: Path, n_views: int, reporter: Reporter) -> Cache | None:
    """The features in `path`; None if it is missing or damaged."""
    if not path.exists():
        return None
    try:
        return _nested(load_file(path), n_views)
    except (OSError, SafetensorError, LookupError) as error:
        reporter.note(f"{path}: damaged ({str(error).splitlines()[0]}); computed again")
        return None


def head_training(
    *, epochs: int, short: int, views: int, seed: int, ramped: bool = False
) -> TrainingConfig:
    """How the presets train the layers of a hash on cached features, the same for all methods.

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
        prefix = f"{view}/"
        features = {
            name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)
        }
        labels = features.pop("labels")
        cache.append((features, labels))
    return cache
