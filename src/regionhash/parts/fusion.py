"""Cross-proposal fusion: from all regions of a picture to one matrix of classes x bits."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

FusionForm = Literal["objectness", "plain", "normalised"]
FUSION_FORMS: tuple[str, ...] = get_args(FusionForm)


def fuse_proposals(
    objectness: Tensor, probs: Tensor, activations: Tensor, form: FusionForm = "objectness"
) -> Tensor:
    """Fuses the regions of each picture (Region-DH, Sec. III-A; IAH, eq. 6).

    Returns F, (B, C, K1):

        objectness   F = (1/R) sum_r o_r P_r (x) A_r
        plain        F = (1/R) sum_r     P_r (x) A_r          (IAH, eq. 6)
        normalised   F = sum_r o_r P_r (x) A_r / sum_r o_r (1 - background_r)

    Background and regions of low objectness weigh little in the first and last form, as the paper
    asks. A picture without regions gives zeros.

    Args:
        objectness: (B, R) in [0, 1], from the RPN; 0 for the padding of pictures with fewer
            regions.
        probs: (B, R, C), class probabilities, background left out.
        activations: (B, R, K1), of the instance hashing layer H1.
        form: one of the three above.
    """
    if form not in FUSION_FORMS:
        raise ValueError(f"fusion must be one of {', '.join(FUSION_FORMS)}, got {form!r}")
    present = objectness > 0
    weights = present.to(probs.dtype) if form == "plain" else objectness
    weighted = weights[:, :, None] * probs  # (B, R, C)
    fused = weighted.transpose(1, 2) @ activations  # (B, C, K1)
    # The normalised form leaves the background's mass out of the sum.
    total = weighted.sum((1, 2)) if form == "normalised" else present.sum(1)
    return fused / torch.clamp(total, min=1e-6)[:, None, None]
