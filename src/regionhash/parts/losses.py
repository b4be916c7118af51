"""Losses as pure functions. Names and equation numbers are the papers'."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Reduction = Literal["sum", "mean"]
MultiLabelForm = Literal["softmax", "bce"]
MULTI_LABEL_FORMS: tuple[str, ...] = get_args(MultiLabelForm)
BagPooling = Literal["max", "mean", "log-sum-exp"]

_SHARPNESS = 5.0  # of the log-sum-exp: Pinheiro and Collobert, CVPR 2015


def push_from_half(activations: Tensor) -> Tensor:
    """E1 of each code: -(1/K) sum_k (a_k - 0.5)^2, lowest at 0 and 1 (Region-DH, eq. 8).

    The equation is printed for the binary q, whose gradient is zero; here it acts on the
    activations, as in SSDH, with the squared norm.

    Args:
        activations: (..., K) in [0, 1].

    Returns:
        (...), in [-0.25, 0].
    """
    return -((activations - 0.5) ** 2).mean(-1)


def balance_bits(activations: Tensor) -> Tensor:
    """E2 of each code: (mean_k a_k - 0.5)^2, lowest if half of the bits are set (Region-DH, eq. 9).

    Args:
        activations: (..., K) in [0, 1].

    Returns:
        (...), in [0, 0.25].
    """
    return (activations.mean(-1) - 0.5) ** 2


def reduce_per_image(values: Tensor, n_images: int, reduction: Reduction) -> Tensor:
    """Reduces the per-region values (M,) of a batch to one number.

    `sum` sums over the regions of a picture, as printed in eqs. 8 and 9, and averages over the
    pictures; `mean` averages over all regions. A batch without regions gives 0.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be sum or mean, got {reduction!r}")
    return values.sum() / max(n_images if reduction == "sum" else values.numel(), 1)


def multi_label_loss(logits: Tensor, image_labels: Tensor, form: MultiLabelForm) -> Tensor:
    """L_cls3: classification of pictures with several labels, averaged over the batch.

        softmax   cross-entropy against the uniform distribution over the labels (IAH, eq. 3);
                  pictures without a label do not count
        bce       binary cross-entropy of one sigmoid per class, summed over the classes

    Args:
        logits: (B, C).
        image_labels: (B, C), 0 or 1.
        form: one of the two above.
    """
    if form == "bce":
        per_class = F.binary_cross_entropy_with_logits(logits, image_labels, reduction="none")
        return per_class.sum(1).mean()
    if form == "softmax":
        n_labels = image_labels.sum(1, keepdim=True)
        wanted = image_labels / n_labels.clamp(min=1)
        per_image = -(wanted * logits.log_softmax(1)).sum(1)
        return per_image.sum() / (n_labels > 0).sum().clamp(min=1)
    raise ValueError(f"form must be one of {', '.join(MULTI_LABEL_FORMS)}, got {form!r}")


def multi_label_probs(logits: Tensor, form: MultiLabelForm) -> Tensor:
    """Class probabilities (B, C) of the logits of `multi_label_loss`."""
    return logits.sigmoid() if form == "bce" else logits.softmax(1)


def region_class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """L_cls2: cross-entropy of regions; background counts at most three times foreground.

    Fast R-CNN samples a quarter of foreground; here surplus background is weighted down instead,
    so that no region is left out and nothing is random.

    Args:
        logits: (M, C + 1), background first.
        labels: (M,), 0 background, 1 to C, or -1 for regions that do not count.
    """
    each = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
    foreground, background = labels > 0, labels == 0
    n_background = background.sum().clamp(min=1)
    weight = (3 * foreground.sum().clamp(min=1) / n_background).clamp(max=1)
    weights = foreground + weight * background
    return (weights * each).sum() / weights.sum().clamp(min=1)


def box_loss(deltas: Tensor, wanted: Tensor, foreground: Tensor) -> Tensor:
    """L_reg2: smooth L1 of foreground regions, (M, 4) each, averaged as in Fast R-CNN.

    The average is over all regions that count, of which a quarter is foreground.
    """
    each = F.smooth_l1_loss(deltas, wanted, beta=1 / 9, reduction="none").sum(1)
    return (each * foreground).sum() / (4 * foreground.sum().clamp(min=1))


def bag_log_probs(logits: Tensor, present: Tensor, pooling: BagPooling) -> tuple[Tensor, Tensor]:
    """Logarithms of P and 1 - P of the classes of B bags, (B, C) each (DMIH, eqs. 1 and 2).

    With p = sigmoid(logit) of each of the M instances,

        max           P = max p
        mean          P = mean p
        log-sum-exp   P = sigmoid(log(mean exp(r logit)) / r), r = 5: between the two

    The paper also names log(1 + sum exp p), which is no probability: it is above 1 for two
    instances or more. Log-sum-exp is the smooth maximum of the literature instead (Pinheiro and
    Collobert, "From Image-Level to Pixel-Level Labeling with Convolutional Networks", CVPR 2015).

    Args:
        logits: (B, M, C).
        present: (B, M) bool; at least one instance in each bag.
        pooling: one of the three above.
    """
    absent = ~present[..., None]
    n_present = present.sum(1)[:, None]
    if pooling == "mean":
        log_p = F.logsigmoid(logits).masked_fill(absent, -torch.inf).logsumexp(1)
        log_not_p = F.logsigmoid(-logits).masked_fill(absent, -torch.inf).logsumexp(1)
        return log_p - n_present.log(), log_not_p - n_present.log()
    if pooling == "log-sum-exp":
        scaled = (_SHARPNESS * logits).masked_fill(absent, -torch.inf).logsumexp(1)
        pooled = (scaled - n_present.log()) / _SHARPNESS
    elif pooling == "max":
        pooled = logits.masked_fill(absent, -torch.inf).amax(1)
    else:
        known = ", ".join(get_args(BagPooling))
        raise ValueError(f"pooling must be one of {known}, got {pooling!r}")
    return F.logsigmoid(pooled), F.logsigmoid(-pooled)


def mil_loss(log_p: Tensor, log_not_p: Tensor, image_labels: Tensor) -> Tensor:
    """J_MIL (DMIH, eq. 3): cross-entropy summed over the classes, averaged over the images.

    Args:
        log_p: (B, C), log P.
        log_not_p: (B, C), log(1 - P).
        image_labels: (B, C), 0 or 1; an image without a label is a negative bag of every class.
    """
    return -(image_labels * log_p + (1 - image_labels) * log_not_p).sum(1).mean()


def pair_hash_loss(
    activations: Tensor, images: Tensor, classes: Tensor, n_images: int, margin: float
) -> Tensor:
    """J_pair-hash (DMIH, eqs. 4 and 5), averaged over all pairs of different images of a batch.

    The sum over all pairs of an object of one image and an object of the other, with Euclidean
    distance d, of

        d                   if they have the same class
        max(0, margin - d)  otherwise

    Eq. 4 is printed with a minus sign, which would push equal objects apart; the text asks for "as
    near as possible".

    Args:
        activations: (P, K), of the most probable proposal for each label of each image.
        images: (P,) int64, the image.
        classes: (P,) int64, the label.
        n_images: B; a batch of one has no pair and gives 0.
        margin: beta.
    """
    distances = torch.linalg.vector_norm(activations[:, None] - activations, dim=2)  # (P, P)
    same = classes[:, None] == classes
    terms = torch.where(same, distances, F.relu(margin - distances))
    n_pairs = max(n_images * (n_images - 1) // 2, 1)
    return (terms * (images[:, None] < images)).sum() / n_pairs


def triplet_loss(
    activations: Tensor, similarity: Tensor, *, margin: float = 1.0, weighted: bool = True
) -> Tensor:
    """Weighted triplet loss of a batch (IAH, eq. 9; DSRH), a mean over all of its triplets.

        (2^s(i,j) - 2^s(i,k)) max(0, margin - ||a_i - a_k||^2 + ||a_i - a_j||^2)

    over three different pictures i, j, k of the batch with s(i,j) > s(i,k) (Sec. V-B). Unweighted
    it is eq. 7 with graded similarity. A batch without such a triplet gives 0. Each pair (i, j) is
    compared with all k at once, so time and memory grow as B^3.

    Args:
        activations: (B, K), real.
        similarity: (B, B), s: how many labels two pictures share.
        margin: the wanted difference of squared distances.
        weighted: whether the first factor is applied.
    """
    n_images = len(activations)
    apart = ~torch.eye(n_images, dtype=torch.bool, device=activations.device)
    anchor, positive = apart.nonzero(as_tuple=True)  # (P,) each
    distances = _squared_distances(activations)  # (B, B)
    near, far = similarity[anchor, positive][:, None], similarity[anchor]  # (P, 1), (P, B)
    valid = (near > far) & apart[anchor]
    hinge = F.relu(margin - distances[anchor] + distances[anchor, positive][:, None])
    if weighted:
        hinge = hinge * (near.exp2() - far.exp2())
    return (hinge * valid).sum() / valid.sum().clamp(min=1)


def category_triplet_loss(
    activations: Tensor, image_labels: Tensor, *, margin: float = 1.0
) -> Tensor:
    """The triplet losses of all categories (IAH, eq. 7), a mean over those that have triplets.

    For category c, the mean over all i, j, k of the batch, i and j different pictures with the
    category and k one without it, of

        max(0, margin - ||f_i^c - f_k^c||^2 + ||f_i^c - f_j^c||^2)

    A category that fewer than two pictures of the batch have, or that all have, does not count;
    without any triplet the loss is 0.

    Args:
        activations: (B, C, K), f: a slice for each category.
        image_labels: (B, C), 0 or 1.
        margin: the wanted difference of squared distances.
    """
    has = image_labels.T > 0  # (C, B)
    apart = ~torch.eye(len(image_labels), dtype=torch.bool, device=has.device)
    category, anchor, positive = (has[:, :, None] & has[:, None] & apart).nonzero(as_tuple=True)
    distances = _squared_distances(activations.transpose(0, 1))  # (C, B, B)
    hinge = F.relu(
        margin - distances[category, anchor] + distances[category, anchor, positive][:, None]
    )  # (P, B)
    pair_sums = (hinge * ~has[category]).sum(1)  # (P,)
    sums = pair_sums.new_zeros(len(has)).index_add(0, category, pair_sums)  # (C,)
    n_with = has.sum(1)
    n_triplets = n_with * (n_with - 1) * (len(image_labels) - n_with)
    return (sums / n_triplets.clamp(min=1)).sum() / (n_triplets > 0).sum().clamp(min=1)


def _squared_distances(x: Tensor) -> Tensor:
    """Squared Euclidean distances (..., B, B) of the rows of (..., B, K), with exact gradients."""
    return (x[..., :, None, :] - x[..., None, :, :]).square().sum(-1)


def nan_term(losses: dict[str, Tensor]) -> str | None:
    """The name of the first loss that is not finite, or None."""
    return next((name for name, loss in losses.items() if not torch.isfinite(loss).all()), None)
