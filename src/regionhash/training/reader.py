"""Reading pictures for training, and the features of their views."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regionhash.data.batches import batches_of_one_shape
from regionhash.data.image_set import ImageSet
from regionhash.data.images import ImageError
from regionhash.data.transforms import TrainingSample, TrainingTransform
from regionhash.models import TrainedHashModel
from regionhash.parts.proposals import Targets, pad_regions
from regionhash.training.config import TrainingConfig, TrainingError

log = logging.getLogger(__name__)

Features = dict[str, Tensor]
Cache = list[tuple[Features, Tensor]]  # for each view: features (N, ...) by name, labels (N, C)


def known_to(model: TrainedHashModel, image_set: ImageSet) -> ImageSet:
    """What a model may know of labelled pictures: a weakly supervised one sees no boxes."""
    return image_set.without_boxes() if model.weakly_supervised else image_set


class Reader:
    """Pictures as the network takes them, read in other processes."""

    def __init__(self, config: TrainingConfig, n_classes: int, device: torch.device) -> None:
        self.config = config
        self.n_classes = n_classes
        self.device = device
        self.augment = TrainingTransform(config.short, flip=config.flip)
        self.plain = TrainingTransform(
            config.short, scale=(1, 1), crop=False, flip=False, colour=False
        )
        self.skipped: set[str] = set()

    def read(
        self, image_set: ImageSet, rows: NDArray[np.int64], transform: TrainingTransform, epoch: int
    ) -> Iterator[tuple[int, TrainingSample]]:
        """Row and view of each readable picture of `rows`, in order."""
        loader = DataLoader(
            _Views(image_set, transform, self.config.seed, epoch),
            sampler=rows.tolist(),
            batch_size=None,
            num_workers=self.config.workers,
            prefetch_factor=4 * self.config.batch_size if self.config.workers else None,
        )
        for row, sample in zip(rows.tolist(), loader, strict=True):
            if isinstance(sample, TrainingSample):
                yield row, sample
            elif sample not in self.skipped:
                log.warning("skipped: %s", sample)
                self.skipped.add(sample)

    def to_device(self, samples: list[TrainingSample]) -> tuple[list[Tensor], Targets]:
        """Images and targets as `TrainedHashModel.losses` takes them."""
        targets = []
        for sample in samples:
            image_labels = torch.zeros(self.n_classes, device=self.device)
            image_labels[list(sample.image_labels)] = 1
            boxes, labels = sample.boxes.to(self.device), sample.labels.to(self.device)
            targets.append({"boxes": boxes, "labels": labels, "image_labels": image_labels})
        return [sample.image.to(self.device) for sample in samples], targets

    def views(self, model: TrainedHashModel, image_set: ImageSet, n_views: int) -> Cache:
        """Features of the unchanged pictures, and of `n_views` - 1 random views of them."""
        transforms = [self.plain] + [self.augment] * (n_views - 1)
        return [self.features(model, image_set, t, view) for view, t in enumerate(transforms)]

    def features(
        self, model: TrainedHashModel, image_set: ImageSet, transform: TrainingTransform, view: int
    ) -> tuple[Features, Tensor]:
        """Features (N, ...) by name of one view of all readable pictures, and labels (N, C)."""
        model.eval()
        found: dict[int, tuple[Features, Tensor]] = {}
        views = self.read(image_set, np.arange(len(image_set)), transform, view)
        for batch in batches_of_one_shape(views, image_of, 8):
            images, targets = self.to_device([sample for _, sample in batch])
            features = model.frozen_features(images, targets)
            for n, (row, _) in enumerate(batch):
                features_of_image = {name: value[n] for name, value in features.items()}
                found[row] = features_of_image, targets[n]["image_labels"]
        if not found:
            raise TrainingError(f"{image_set.name}: no picture could be read")
        ordered = [found[row] for row in sorted(found)]
        return (
            {
                name: pad_regions([features[name] for features, _ in ordered])
                for name in ordered[0][0]
            },
            torch.stack([labels for _, labels in ordered]),
        )


class _Views(Dataset[TrainingSample | str]):
    """One view of every picture; a string, the reason, for a picture that cannot be read.

    The view of a picture depends only on seed, epoch and row, not on who reads it or when.
    """

    def __init__(
        self, image_set: ImageSet, transform: TrainingTransform, seed: int, epoch: int
    ) -> None:
        self.image_set = image_set
        self.transform = transform
        self.seed = seed
        self.epoch = epoch

    def __getitem__(self, row: int) -> TrainingSample | str:
        try:
            image = self.image_set.images[row]
        except ImageError as error:
            return str(error)
        rng = np.random.default_rng([self.seed, self.epoch, row])
        return self.transform(image, self.image_set.targets[row], rng)


def image_of(item: tuple[int, TrainingSample]) -> Tensor:
    """The picture (3, h, w) of what `Reader.read` gives."""
    return item[1].image
