"""The training loss: smoothed cross-entropy summed over the steps, plus L2 on the variables that have it.

B batch, T steps, K classes. Formulas: the reference's sequence_loss_fn.
"""

from __future__ import annotations

import math
from typing import Callable

import torch.nn.functional as F
from torch import Tensor, nn

TOWER_WEIGHT_DECAY = 0.00004  # slim's argument scope; the flag weight_decay is the decoder's alone


def sequence_loss(
    logits: Tensor,
    labels: Tensor,
    null_id: int,
    label_smoothing: float = 0.1,
    ignore_nulls: bool = True,
    average_across_timesteps: bool = False,
) -> Tensor:
    """Cross-entropy against smoothed labels, summed over the steps and averaged over the batch.

    Args:
        logits: float (B, T, K). labels: int64 (B, T). null_id: the id of the null character.
        label_smoothing: s in (1 - s) * one_hot + s / K.
        ignore_nulls: the reference's flag, whose name is inverted: True counts every position, False only those whose
            label is not null.
        average_across_timesteps: divides each example's sum by its counted positions.

    Returns:
        scalar float32, in nats.
    """
    cross_entropy = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view(labels.shape)  # (B, T)
    if ignore_nulls:
        counted = cross_entropy.new_full((labels.shape[0],), labels.shape[1])
    else:
        is_counted = (labels != null_id).to(cross_entropy.dtype)
        cross_entropy = cross_entropy * is_counted
        counted = is_counted.sum(1)
    per_example = cross_entropy.sum(1)  # (B,)
    if average_across_timesteps:
        per_example = per_example / (counted + 1e-12)
    return per_example.mean()


def regularization_loss(
    model: nn.Module, weight_decay: float = 0.00004, master_of: Callable[[Tensor], Tensor] = lambda weight: weight
) -> Tensor:
    """L2 terms, decay * sum(w^2) / 2: tower convolutions (fixed decay) and the classifier's weight and bias.

    Args:
        model: an `AttentionOCR`. weight_decay: of the classifier (the reference's softmax_w and softmax_b).
        master_of: gives the float32 weight behind a parameter, which gets the gradient.

    Returns:
        scalar float32.
    """
    convolutions = [master_of(m.weight) for m in model.tower.modules() if isinstance(m, nn.Conv2d)]
    tower = sum(w.float().square().sum() for w in convolutions)
    classifier = sum(master_of(w).float().square().sum() for w in model.decoder.classifier.parameters())
    return TOWER_WEIGHT_DECAY / 2 * tower + weight_decay / 2 * classifier


def loss_floor(num_classes: int, num_steps: float, label_smoothing: float, average_across_timesteps: bool) -> float:
    """The value, in nats, under which `sequence_loss` cannot go: the entropy of the smoothed labels.

    A model that is always right reaches it only by predicting the smoothed distribution itself. With the reference's
    134 classes, 37 steps and smoothing 0.1 it is 29.93, where its users took the loss for stuck.

    Args:
        num_classes: K. num_steps: counted steps of an example (the mean of them where nulls are not counted).
        label_smoothing: s. average_across_timesteps: as in `sequence_loss`.
    """
    if label_smoothing == 0:
        return 0.0
    other = label_smoothing / num_classes
    right = 1 - label_smoothing + other
    entropy = -(right * math.log(right) + (num_classes - 1) * other * math.log(other))
    return entropy if average_across_timesteps else entropy * num_steps
