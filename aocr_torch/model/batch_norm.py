"""The BatchNorm of the reference: no learned scale, statistics view by view.

B batch, V views, N = B*V images, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from aocr_torch import device as devices
from aocr_torch.model.max_pool import MaxPool
from aocr_torch.model.normalized_relu import NormalizedReLU, NormalizedReLUMaxPool, unbiased_variance

EPSILON = 0.001
PIECE_ELEMENTS = 1 << 17  # half a megabyte in float32: what is read once stays in a core's cache


class ViewBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose training statistics belong to one view each, as the reference runs its tower view by view.

    The scale is a frozen 1 rather than `affine=False`, because mixed precision by Ascend's apex keeps only affine
    BatchNorm in float32. The moving variance takes the unbiased batch variance, as TensorFlow's fused kernel does.

    Args:
        channels: C.
        num_views: V; the input holds the V views of each example one after the other.
        per_view: statistics and moving averages view by view (V updates a step, the reference); otherwise over all
            views at once, one update that weighs as much as V.
        decay: of the moving averages, per view.
        cumulative_start: the averages start as a plain mean and grow into `decay`: short trainings need it.
    """

    is_fused = False
    noted: Optional[list[tuple[Tensor, Tensor]]] = None  # mean and variance of each view, while they wait

    def __init__(self, channels: int, num_views: int, per_view: bool, decay: float, cumulative_start: bool):
        super().__init__(channels, eps=EPSILON, momentum=1 - decay)
        self.weight.requires_grad_(False)
        self.groups = num_views if per_view else 1
        self.views_per_update = 1 if per_view else num_views
        self.decay = decay
        self.cumulative_start = cumulative_start

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x, float (N, C, H, W), and in training updates the moving averages."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        images, channels, height, width = x.shape
        if images % self.groups:
            raise ValueError(f"found a batch of {images} images, expected whole examples of {self.groups} views")
        grouped = x.reshape(images // self.groups, self.groups * channels, height, width)  # (B, V*C, H, W), no copy
        mean, variance = self.running_mean.new_zeros(2, self.groups * channels)  # (V*C,) each
        weight, bias = self.weight.repeat(self.groups), self.bias.repeat(self.groups)
        # With momentum 1 the kernel leaves the batch's own mean and unbiased variance in the two buffers.
        out = F.batch_norm(grouped, mean, variance, weight, bias, True, 1.0, self.eps)
        self._update_averages(mean.view(self.groups, channels), variance.view(self.groups, channels))
        return out.reshape(images, channels, height, width)

    def with_relu(self, x: Tensor, pool: Optional[MaxPool] = None) -> Tensor:
        """relu(self(x)), fast in training: (N, C, H, W) -> the same shape, or what the max-pool makes of it.

        Fused, it expects the images view by view: all of the first, then all of the second.
        """
        if self.training and self.is_fused:
            takes_pool = pool is not None and devices.is_host(x.device) and bool((self.weight > 0).all())
            function = NormalizedReLUMaxPool if takes_pool else NormalizedReLU
            out, means, variances = function.apply(x, self.weight, self.bias, self.eps, self.groups)
            self._update_averages(means, variances)
            return out if pool is None or takes_pool else pool(out)
        if self.training and self.groups == 1 and devices.is_host(x.device):
            out, mean, variance = _NormalizedReLU.apply(x, self.weight, self.bias, self.eps)
            self._update_averages(mean[None], variance[None])
        else:
            out = F.relu(self(x))  # not in place: that output is a view, whose gradient autograd would copy
        return out if pool is None else pool(out)

    def _update_averages(self, means: Tensor, variances: Tensor) -> None:
        """means, variances: (V, C)."""
        views = list(zip(means, variances))
        if self.noted is None:
            _move_averages([self], [views])
        else:
            self.noted += views


@contextmanager
def averages_move_together(norms: Sequence[ViewBatchNorm2d]) -> Iterator[None]:
    """Within it the layers, alike but for their channels, only note what they saw; then all averages move at once.

    To the same bits, and with a twentieth of the operations that an accelerator must be sent.
    """
    for norm in norms:
        norm.noted = []
    try:
        yield
        _move_averages(norms, [norm.noted for norm in norms])
    finally:
        for norm in norms:
            norm.noted = None


@torch.no_grad()
def _move_averages(norms: Sequence[ViewBatchNorm2d], noted: Sequence[list[tuple[Tensor, Tensor]]]) -> None:
    """Moves the averages of the layers by the mean and variance, (C,) each, that each of them noted of each view."""
    views_per_update = norms[0].views_per_update
    least = 1 - norms[0].decay ** views_per_update
    counts = [norm.num_batches_tracked for norm in norms]
    for view in zip(*noted):
        torch._foreach_add_(counts, views_per_update)
        if norms[0].cumulative_start:
            for norm, (mean, variance) in zip(norms, view):
                fraction = (views_per_update / norm.num_batches_tracked.to(mean.dtype)).clamp(min=least)
                norm.running_mean.lerp_(mean, fraction)
                norm.running_var.lerp_(variance, fraction)
        else:
            means, variances = zip(*view)
            averages = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
            torch._foreach_lerp_(averages, [*means, *variances], least)


class _NormalizedReLU(torch.autograd.Function):
    """relu((x - mean) / sqrt(variance + epsilon) * weight + bias) of one group on the host, with its statistics.

    The kernel of torch that takes the statistics of maps with channels innermost adds up all pixels one by one, which
    at 165,000 pixels a channel leaves the variance wrong by 1e-4 (measured with torch 2.14).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = (each.to(weight.dtype) for each in channel_statistics(x))  # (C,) each
        out = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon).relu_()
        ctx.save_for_backward(x, out, weight, mean, (variance + epsilon).rsqrt())
        ctx.epsilon = epsilon
        unbiased = unbiased_variance(variance, x.numel() // x.shape[1])
        ctx.mark_non_differentiable(mean, unbiased)
        return out, mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, *_: Any) -> tuple[Any, ...]:
        x, out, weight, mean, inverse_std = ctx.saved_tensors
        d_normalized = torch.ops.aten.threshold_backward(d_out, out, 0)
        d_x, _, d_bias = torch.ops.aten.native_batch_norm_backward(
            d_normalized, x, weight, None, None, mean, inverse_std, True, ctx.epsilon, [True, False, True]
        )
        return d_x, None, d_bias, None


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of x, float (N, C, H, W): (C,) each, float32 or wider.

    Piece by piece in one pass, joined by the law of total variance (Chan et al. 1979).
    """
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])  # (N*H*W, C); no copy where channels are innermost
    dtype = torch.promote_types(x.dtype, torch.float32)
    shares, means, variances = [], [], []
    for piece in rows.split(max(1, PIECE_ELEMENTS // x.shape[1])):
        mean = piece.sum(0, dtype=dtype) / len(piece)
        difference = piece - mean
        means.append(mean)
        variances.append(difference.mul_(difference).sum(0) / len(piece))
        shares.append(len(piece) / len(rows))
    share = torch.tensor(shares, dtype=dtype, device=x.device)[:, None]
    all_means = torch.stack(means)  # (pieces, C)
    mean = (all_means * share).sum(0)
    return mean, ((torch.stack(variances) + (all_means - mean).square()) * share).sum(0)
