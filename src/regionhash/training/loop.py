"""One plain training loop for all models: seeded, logged, and resumed as if never killed."""

from __future__ import annotations

import csv
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from regionhash.data.batches import batches_of_one_shape, shuffled_batches
from regionhash.data.image_set import ImageSet
from regionhash.data.images import ImageError
from regionhash.data.splits import split_off
from regionhash.data.transforms import TrainingSample, TrainingTransform
from regionhash.files.atomic import replacing
from regionhash.models import HashModel, TrainedHashModel, learns_from_labels
from regionhash.models.checkpoints import (
    MAX_SHORT,
    Checkpoint,
    build_model,
    provenance,
    read_checkpoint,
    save_checkpoint,
)
from regionhash.models.encoding import Precision
from regionhash.parts.losses import nan_term
from regionhash.parts.proposals import pad_regions

log = logging.getLogger(__name__)

_SHOWN_SKIPPED = 1000  # pictures that a checkpoint names: of a million, its JSON became unreadable

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "step", "constant"]
Losses = dict[str, Tensor]
Steps = Iterator[tuple[int, Callable[[], Losses]]]  # pictures in a batch, and their losses
Cache = list[tuple[Losses, Tensor]]  # for each view: features (N, ...) by name, labels (N, C)


class TrainingError(ValueError):
    """Training cannot go on; the message says why."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. The defaults of optimizer, rate, momentum and decay are the paper's.

    Attributes:
        epochs: passes over the pictures.
        batch_size: pictures per step (and per device).
        optimizer: sgd with momentum 0.9, or adamw.
        learning_rate: its peak, after the warm-up.
        backbone_rate: factor on the rate of the pretrained stages, where they are trained.
        weight_decay: of all weights.
        schedule: cosine to zero; step, divided by 10 at 2/3 and 8/9; or constant.
        warmup: share of all steps in which the rate rises from zero.
        ramp_start: share of all steps before which the hashing terms and the image's
            classification do not count yet; ramp_end: from where they count in full.
        clip_norm: greatest norm of the gradient.
        short: short side of the network's input in pixels.
        flip: whether pictures may be mirrored.
        held_out: share of the pictures kept for choosing the best epoch; 0 takes the last.
        cached_views: 0 trains the network on fresh views of the pictures in every epoch. A number
            trains the layers of the hash alone, on what the rest of the network gives for so many
            views of every picture (the first unchanged), computed once: minutes, not hours.
        precision: of the forward pass.
        seed: of everything random.
        workers: processes that read pictures.
    """

    epochs: int = 12
    batch_size: int = 8
    optimizer: Optimizer = "sgd"
    learning_rate: float = 1e-3
    backbone_rate: float = 0.1
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    ramp_start: float = 0.0
    ramp_end: float = 0.0
    clip_norm: float = 10.0
    short: int = 384
    flip: bool = True
    held_out: float = 0.1
    cached_views: int = 0
    precision: Precision = "32-true"
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("short", 32), ("cached_views", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.short > MAX_SHORT:
            raise ValueError(f"short must be at most {MAX_SHORT}, got {self.short}")
        for name in ("warmup", "ramp_start", "ramp_end", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.learning_rate <= 0 or self.clip_norm <= 0:
            raise ValueError("learning_rate and clip_norm must be positive")
        for name, kind in (
            ("optimizer", Optimizer),
            ("schedule", Schedule),
            ("precision", Precision),
        ):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    def rate(self, progress: float) -> float:
        """Factor on the learning rate after `progress` in [0, 1] of all steps."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.schedule == "cosine":
            rest = (progress - self.warmup) / (1 - self.warmup)
            return 0.5 * (1 + math.cos(math.pi * rest))
        if self.schedule == "step":
            return 0.1 ** ((progress >= 2 / 3) + (progress >= 8 / 9))
        return 1.0

    def ramp(self, progress: float) -> float:
        """Factor on the ramped terms after `progress` in [0, 1] of all steps."""
        if progress >= self.ramp_end:
            return 1.0
        width = self.ramp_end - self.ramp_start
        return max(progress - self.ramp_start, 0.0) / width if width > 0 else 0.0


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to: mean of each term, and the loss on held-out pictures if any."""

    epoch: int
    terms: dict[str, float]
    held_out: float | None
    best: bool
    seconds: float

    def row(self) -> dict[str, float | int | bool | None]:
        """The epoch as one line of the log."""
        own = asdict(self)
        return {"epoch": own.pop("epoch"), **own.pop("terms"), **own}


OnStep = Callable[[int, int], None]
"""Called after each step with the steps done and the steps in all."""


def train(
    model_name: str,
    arguments: dict[str, Any],
    image_set: ImageSet,
    folder: Path,
    config: TrainingConfig,
    *,
    start: HashModel | None = None,
    cache: Cache | None = None,
    on_step: OnStep | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> Checkpoint:
    """Trains a model and leaves its best epoch in `folder` (model.safetensors, model.json).

    A run that was killed goes on from its last whole epoch when called again with the same
    arguments, and ends as if never killed. log.csv and TensorBoard files lie beside the model.

    Args:
        model_name: a key of MODELS.
        arguments: for its builder; `n_classes` is filled in.
        image_set: labelled pictures.
        folder: of the run.
        config: see `TrainingConfig`.
        start: a model whose weights the new one takes over where it has them of the same name and
            shape, like a detector trained before; with `cached_views`, what is not retrained.
        cache: with `cached_views`, features computed before by `cache_features` of a model that
            differs in the image hash alone; of all pictures, so nothing is held out.
        on_step: progress.
        on_epoch: progress.

    Raises:
        TrainingError: no picture can be read or has a label, or a loss that is not finite.
        ValueError: unusable arguments; a `folder` of a run with other arguments.
    """
    if not image_set.classes:
        raise TrainingError(f"{image_set.name}: no classes; training needs labelled pictures")
    # torchrun tells how many processes it started here; alone, all devices of the machine are used.
    devices = os.environ.get("LOCAL_WORLD_SIZE", "auto")
    fabric = Fabric(accelerator="auto", devices=devices, precision=config.precision)
    fabric.launch()
    torch.manual_seed(config.seed)
    built = arguments | {"n_classes": len(image_set.classes)}
    model = build_model(model_name, built)
    if not learns_from_labels(model):
        raise TrainingError(f"{model_name} learns without labels; `regionhash index` fits it")
    image_set = known_to(model, image_set)
    if start is not None:
        copy_weights(model, start)
    elif model.needs_trained_rpn:
        log.warning(
            "%s: its proposals are drawn at random, since its RPN is never trained; start from a "
            'trained region-dh, or take proposals="selective-search"',
            model_name,
        )
    if cache is not None and (config.held_out or len(cache) != config.cached_views):
        raise ValueError("a given cache needs held_out = 0 and as many cached_views as it has")
    return TrainingRun(fabric, model_name, built, model, image_set, folder, config, cache).train(
        on_step or (lambda done, total: None), on_epoch or (lambda report: None)
    )


def known_to(model: TrainedHashModel, image_set: ImageSet) -> ImageSet:
    """What a model may know of labelled pictures: of a weakly supervised one, no box."""
    return image_set.without_boxes() if model.weakly_supervised else image_set


def cache_features(
    model: TrainedHashModel, image_set: ImageSet, config: TrainingConfig, n_views: int
) -> Cache:
    """What the rest of the network says of `n_views` views of all readable pictures.

    The first view is the picture as it is, and gives what `encode` would see. Models that differ in
    the image hash alone can share the result.
    """
    fabric = Fabric(accelerator="auto", devices=1, precision=config.precision)
    ready: Any = fabric.setup_module(cast(nn.Module, model))
    ready.mark_forward_method("frozen_features")
    reader = _Reader(config, len(image_set.classes), fabric.device)
    return reader.views(ready, known_to(model, image_set), n_views)


def copy_weights(model: HashModel, start: HashModel) -> list[str]:
    """Copies the weights of `start` into `model`; returns the names of those left as they were.

    A weight of the same name must have the same shape, but for those of the image hash, whose
    length may differ.

    Raises:
        ValueError: the models share nothing, or differ in more than the image hash; or one of them
            is not trained on labels.
    """
    if not (learns_from_labels(model) and learns_from_labels(start)):
        raise ValueError("a model that learns without labels shares no weights with another")
    _fold_like(model, start)
    own, other = model.state_dict(), start.state_dict()
    differing = [name for name in own if name in other and own[name].shape != other[name].shape]
    head = {id(weight) for weight in model.head_parameters()}
    of_head = {name for name, weight in model.named_parameters() if id(weight) in head}
    # What a module of the hash counts besides its weights, such as running means, is of the hash.
    places = tuple({name.rpartition(".")[0] + "." for name in of_head} - {"."})
    wrong = [name for name in differing if name not in of_head and not name.startswith(places)]
    if wrong:
        raise ValueError(
            f"the two models differ in {wrong[0]}: {tuple(own[wrong[0]].shape)} here, "
            f"{tuple(other[wrong[0]].shape)} there"
        )
    common = {name: value for name, value in other.items() if name in own and name not in differing}
    if not common:
        raise ValueError("the two models have no weights in common")
    # Batch normalisation is folded into stages that are not trained, so half of one would be wrong.
    stages = [name for name in own if name.startswith("backbone.stages.") and name not in common]
    if stages:
        raise ValueError(f"the backbones do not train the same stages: {stages[0]} is here alone")
    model.load_state_dict(own | common)
    return [name for name in own if name not in common]


def _fold_like(model: TrainedHashModel, start: TrainedHashModel) -> None:
    """Folds the stages of `start` that `model` does not train, so that they are of one form."""
    frozen = [not any(p.requires_grad for p in s.parameters()) for s in model.backbone.stages]
    if len(start.backbone.stages) == len(frozen):
        start.backbone.freeze_all_but(len(frozen) - sum(frozen))


class TrainingRun:
    """One training run: what `train` needs in all its steps."""

    def __init__(
        self,
        fabric: Fabric,
        name: str,
        arguments: dict[str, Any],
        model: TrainedHashModel,
        image_set: ImageSet,
        folder: Path,
        config: TrainingConfig,
        cache: Cache | None,
    ) -> None:
        if config.cached_views and fabric.world_size > 1:
            raise ValueError("cached_views runs on one device; start a single process")
        self.fabric = fabric
        self.folder = folder
        self.config = config
        self.checkpoint = Checkpoint(name, arguments, image_set.classes, config.short)
        self.data_hash = image_set.fingerprint()
        self.rest, self.held = image_set, image_set.subset([])
        if config.held_out:
            self.rest, self.held = split_off(image_set, config.held_out, seed=config.seed)
        self.reader = _Reader(config, len(image_set.classes), fabric.device)
        optimizer = _build_optimizer(model, config)
        self.bare = model
        self.model, self.optimizer = fabric.setup(cast(nn.Module, model), optimizer)
        for method in ("losses", "frozen_features"):
            self.model.mark_forward_method(method)
        self.cache = cache
        self.reports: list[EpochReport] = []

    def train(self, on_step: OnStep, on_epoch: Callable[[EpochReport], None]) -> Checkpoint:
        """Trains the epochs that are left; returns the best one's checkpoint."""
        self._resume()
        if self.config.cached_views and self.cache is None:
            self.cache = self.reader.views(self.model, self.rest, self.config.cached_views)
        steps = self._cached_steps if self.config.cached_views else self._fresh_steps
        writer = SummaryWriter(str(self.folder / "tensorboard"))
        for epoch in range(len(self.reports), self.config.epochs):
            began = time.perf_counter()
            # torchvision samples regions, and dropout units, from the global generator.
            torch.manual_seed(self.config.seed * 10_000 + epoch)
            terms = self._train_epoch(epoch, steps(epoch), on_step)
            held_out = self._held_out_loss() if len(self.held) else None
            known = [report.held_out for report in self.reports if report.held_out is not None]
            best = held_out is None or held_out < min(known, default=math.inf)
            report = EpochReport(epoch, terms, held_out, best, time.perf_counter() - began)
            self.reports.append(report)
            if self.fabric.is_global_zero:
                self._save(best)
                for name, value in terms.items():
                    writer.add_scalar(name, value, epoch)
            on_epoch(report)
        writer.close()
        self.fabric.barrier()  # the first process has written the best epoch
        return read_checkpoint(self.folder)

    # -- one epoch --------------------------------------------------------------------------------

    def _train_epoch(self, epoch: int, steps: Steps, on_step: OnStep) -> dict[str, float]:
        self.model.train()
        n_images = len(self.rest) // self.fabric.world_size
        total = self.config.epochs * n_images
        sums: dict[str, float] = {}
        done = n_steps = 0
        for n_read, compute in steps:
            progress = (epoch * n_images + done) / total
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * self.config.rate(progress)
            losses = compute()
            bad = nan_term(losses)
            if bad:
                raise TrainingError(
                    f"the loss {bad} is {losses[bad].item()} in epoch {epoch + 1}, "
                    f"step {n_steps + 1}; try a lower learning rate"
                )
            ramp = self.config.ramp(progress)
            weights = dict.fromkeys(self.bare.ramped_terms, ramp)
            loss = torch.stack([x * weights.get(name, 1.0) for name, x in losses.items()]).sum()
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.config.clip_norm)
            self.optimizer.step()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            n_steps += 1
            done += n_read
            on_step(epoch * n_images + done, total)
        if not n_steps:
            raise TrainingError(f"{self.rest.name}: no picture could be read")
        return {name: value / n_steps for name, value in sums.items()}

    def _fresh_steps(self, epoch: int) -> Steps:
        """Batches of new views of all pictures, in random order."""
        rng = np.random.default_rng([self.config.seed, epoch])
        order = rng.permutation(len(self.rest))
        n_own = len(order) // self.fabric.world_size
        own = order[self.fabric.global_rank :: self.fabric.world_size][:n_own]
        views = self.reader.read(self.rest, own, self.reader.augment, epoch)
        for batch in shuffled_batches(views, _image_of, self.config.batch_size, rng):
            images, targets = self.reader.to_device([sample for _, sample in batch])
            yield len(batch), partial(self.model.losses, images, targets)

    def _cached_steps(self, epoch: int) -> Steps:
        """Batches of cached features, each picture in one of its views."""
        cache = self.cache or []
        rng = np.random.default_rng([self.config.seed, epoch])
        n_images = len(cache[0][1])
        picked = rng.integers(len(cache), size=n_images).tolist()
        for rows in np.array_split(
            rng.permutation(n_images), -(-n_images // self.config.batch_size)
        ):
            features = {
                name: pad_regions([cache[picked[row]][0][name][row] for row in rows])
                for name in cache[0][0]
            }
            yield len(rows), partial(self._head_losses, features, cache[0][1][rows])

    def _head_losses(self, features: Losses, image_labels: Tensor) -> Losses:
        with self.fabric.autocast():
            return self.bare.head_losses(features, image_labels)

    def _held_out_loss(self) -> float:
        """The model's `held_out_term` on held-out pictures, as they are."""
        features, labels = self.reader.features(self.model, self.held, self.reader.plain, 0)
        with torch.no_grad():
            losses = self._head_losses(features, labels)
        term = self.bare.held_out_term
        return sum(x.item() for x in losses.values()) if term is None else losses[term].item()

    # -- files ------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that was killed."""
        return {
            "model": self.checkpoint.name,
            "arguments": {k: str(v) for k, v in self.checkpoint.arguments.items()},
            "data": self.data_hash,
            "training": asdict(self.config) | {"workers": None},
        }

    def _provenance(self) -> dict[str, Any]:
        return provenance() | {
            "data": {"name": self.rest.name, "hash": self.data_hash, "pictures": len(self.rest)},
            "training": asdict(self.config),
            "epochs": [report.row() for report in self.reports],
            "skipped": sorted(self.reader.skipped)[:_SHOWN_SKIPPED],
            "n_skipped": len(self.reader.skipped),
        }

    def _save(self, best: bool) -> None:
        """The state to resume from, the log, and the model if this epoch is the best so far."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self._identity(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "reports": [asdict(report) for report in self.reports],
        }
        if best:
            made = replace(self.checkpoint, provenance=self._provenance())
            save_checkpoint(self.folder, self.bare, made)
        with replacing(self.folder / "state.pt") as path:
            torch.save(state, path)
        with replacing(self.folder / "log.csv") as path, path.open("w", newline="") as file:
            rows = [report.row() for report in self.reports]
            table = csv.DictWriter(file, fieldnames=list(rows[0]))
            table.writeheader()
            table.writerows(rows)

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        try:
            if not path.is_file():
                raise ValueError("not a file")
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
            theirs = dict(state["identity"])
            reports = [EpochReport(**report) for report in state["reports"]]
        except Exception as error:  # torch raises what its reader happens to meet
            raise self._damaged(path, error) from error
        identity = self._identity()
        differing = [key for key in identity if identity[key] != theirs.get(key)]
        if differing:
            raise ValueError(
                f"{self.folder}: holds a run with other {' and '.join(differing)}; "
                f"choose another folder"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(path, error) from error
        self.reports = reports

    @staticmethod
    def _damaged(path: Path, error: Exception) -> ValueError:
        reason = str(error).partition("\n")[0]
        return ValueError(f"{path}: damaged ({reason}); delete it to start anew")


class _Reader:
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
        """Row and view of each picture of `rows`, in order, but for those that cannot be read."""
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

    def to_device(
        self, samples: list[TrainingSample]
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Images and targets as `TrainedHashModel.losses` takes them."""
        targets = []
        for sample in samples:
            image_labels = torch.zeros(self.n_classes, device=self.device)
            image_labels[list(sample.image_labels)] = 1
            boxes, labels = sample.boxes.to(self.device), sample.labels.to(self.device)
            targets.append({"boxes": boxes, "labels": labels, "image_labels": image_labels})
        return [sample.image.to(self.device) for sample in samples], targets

    def views(self, model: TrainedHashModel, image_set: ImageSet, n_views: int) -> Cache:
        """Features of the pictures as they are, and of as many other views as are wanted."""
        transforms = [self.plain] + [self.augment] * (n_views - 1)
        return [self.features(model, image_set, t, view) for view, t in enumerate(transforms)]

    def features(
        self, model: TrainedHashModel, image_set: ImageSet, transform: TrainingTransform, view: int
    ) -> tuple[Losses, Tensor]:
        """Features (N, ...) by name of one view of all readable pictures, and labels (N, C)."""
        model.eval()
        found: dict[int, tuple[Losses, Tensor]] = {}
        views = self.read(image_set, np.arange(len(image_set)), transform, view)
        for batch in batches_of_one_shape(views, _image_of, 8):
            images, targets = self.to_device([sample for _, sample in batch])
            features = model.frozen_features(images, targets)
            for n, (row, _) in enumerate(batch):
                own = {name: value[n] for name, value in features.items()}
                found[row] = own, targets[n]["image_labels"]
        if not found:
            raise TrainingError(f"{image_set.name}: no picture could be read")
        ordered = [found[row] for row in sorted(found)]
        return (
            {name: pad_regions([own[name] for own, _ in ordered]) for name in ordered[0][0]},
            torch.stack([labels for _, labels in ordered]),
        )


class _Views(Dataset[TrainingSample | str]):
    """One view of every picture. What cannot be read comes as the reason, a string.

    The view of a picture depends on seed, epoch and row alone: not on who reads it, nor when.
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


def _image_of(item: tuple[int, TrainingSample]) -> Tensor:
    return item[1].image


def _build_optimizer(model: TrainedHashModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer of all weights that are trained; each group knows its peak rate."""
    if config.cached_views:
        groups = [{"params": model.head_parameters(), "peak": config.learning_rate}]
    else:
        stages = [p for p in model.backbone.stages.parameters() if p.requires_grad]
        inside = {id(p) for p in model.backbone.stages.parameters()}
        others = [p for p in model.parameters() if id(p) not in inside]
        groups = [{"params": others, "peak": config.learning_rate}]
        if stages:
            peak = config.learning_rate * config.backbone_rate
            groups.append({"params": stages, "peak": peak})
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=0.9, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
