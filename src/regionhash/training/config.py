"""How a model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from regionhash.models.checkpoints import MAX_SHORT
from regionhash.models.runtime import Precision

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "step", "constant"]


class TrainingError(ValueError):
    """Training cannot continue; the message says why."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. The defaults of optimizer, rate, momentum and decay are the paper's.

    Attributes:
        epochs: passes over the pictures.
        batch_size: pictures per step (and per device).
        optimizer: sgd with momentum 0.9, or adamw.
        learning_rate: its peak, after the warm-up.
        backbone_rate: factor on the rate of the pretrained stages that are trained.
        weight_decay: on all weights.
        schedule: cosine to zero; step, divided by 10 at 2/3 and 8/9; or constant.
        warmup: share of all steps in which the rate rises from zero.
        ramp_start: share of all steps before the hashing terms and the image's classification
            start to count; ramp_end: the share after which they count in full.
        clip_norm: greatest norm of the gradient.
        short: short side of the network's input in pixels.
        flip: whether pictures may be mirrored.
        held_out: share of the pictures kept for choosing the best epoch; 0 takes the last.
        cached_views: 0 trains the network on fresh views of the pictures in every epoch. N > 0
            trains the layers of the hash alone, on what the rest of the network gives for N views
            of every picture (the first unchanged), computed once: minutes, not hours.
        precision: of the forward pass.
        seed: random seed.
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
