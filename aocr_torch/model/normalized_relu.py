"""BatchNorm with ReLU, and with the max-pool behind it, in kernels that torch.compile makes; channels innermost.

V views that stand one after the other, N = B*V images, C channels, H W map, M = B*H*W pixels of one view; h w and m of
the map that the pool makes.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from aocr_torch.model.fused import compiled, in_blocks, sum_of_rows
from aocr_torch.model.max_pool import spread_to_maxima

PIECE_ELEMENTS = 1 << 20  # of a map, for each thread, at a time in a backward pass: 4 MB in float32, for the caches


def variance_and_mean(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Biased variance and mean of (V, M, C) along M, (V, C) each in `dtype`; in blocks by the law of total variance."""
    x = x.to(dtype)
    blocks = in_blocks(x)
    if blocks is None:
        return torch.var_mean(x, 1, correction=0)
    means = blocks.mean(2)  # (V, M / 4, C)
    within = (blocks - means[:, :, None]).square().mean(2)
    between, mean = torch.var_mean(means, 1, correction=0)
    return within.mean(1) + between, mean


def _normalized(x: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x (V, M, C) normalised, in the dtype of the statistics, (V, C) each; 1 / standard deviation, (V, 1, C)."""
    inverse_std = torch.rsqrt(variance + epsilon)[:, None]
    return (x.to(mean.dtype) - mean[:, None]) * inverse_std, inverse_std


def normalize_relu(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """x (V, M, C) -> relu of x normalised view by view, in its dtype; mean and biased variance, (V, C) each."""
    variance, mean = variance_and_mean(x, weight.dtype)
    return relu_of_normalized(x, weight, bias, mean, variance, epsilon), mean, variance


def relu_of_normalized(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float
) -> Tensor:
    """x (V, M, C) -> relu of x normalised by these statistics, (V, C) each, in its dtype."""
    normalized, _ = _normalized(x, mean, variance, epsilon)
    return torch.relu(normalized * weight + bias).to(x.dtype)


def relu_backward(
    d_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient before ReLU, (V, M, C); its sum, that of the bias, and its sum by normalised x, (V, C) each."""
    normalized, _ = _normalized(x, mean, variance, epsilon)
    gradient = torch.where(normalized * weight + bias > 0, d_out.to(weight.dtype), 0)
    return gradient.to(x.dtype), sum_of_rows(gradient), sum_of_rows(gradient * normalized)


def normalize_backward(
    gradient: Tensor,
    sums: tuple[Tensor, Tensor],
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
    pixels: int,
) -> Tensor:
    """The gradient of x, some of the M pixels, from that of its normalised values and the sums over all `pixels`."""
    normalized, inverse_std = _normalized(x, mean, variance, epsilon)
    shares = sums[0][:, None] + normalized * sums[1][:, None]
    return ((gradient.to(mean.dtype) - shares / pixels) * (inverse_std * weight)).to(x.dtype)


def normalize_relu_backward(
    d_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x, (V, M, C), and of bias, (C,)."""
    gradient, *sums = relu_backward(d_out, x, weight, bias, mean, variance, epsilon)
    return normalize_backward(gradient, tuple(sums), x, weight, mean, variance, epsilon, x.shape[1]), sums[0].sum(0)


def normalize_backward_(gradient: Tensor, *arguments: Any) -> None:
    """`normalize_backward` in place of the gradient."""
    gradient.copy_(normalize_backward(gradient, *arguments))


class NormalizedReLU(torch.autograd.Function):
    """relu(batch_norm(x)); keeps x alone. x (N, C, H, W) -> the same shape, mean and unbiased variance (V, C) each."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, num_views: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        out, mean, variance = compiled(normalize_relu)(_rows(x, num_views), weight, bias, epsilon)
        return _maps(out, x), *_keep(ctx, (x, weight, bias, mean, variance), epsilon, num_views)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, *_: Any) -> tuple[Optional[Tensor], ...]:
        x, *others = ctx.saved_tensors
        rows = _rows(x, ctx.num_views)
        # The gradient of a concatenation is a slice; copied, it needs no kernels of its own.
        d_out = d_out.contiguous(memory_format=torch.channels_last)
        d_rows, d_bias = compiled(normalize_relu_backward)(_rows(d_out, ctx.num_views), rows, *others, ctx.epsilon)
        return _maps(d_rows, x), None, d_bias, None, None


class NormalizedReLUMaxPool(torch.autograd.Function):
    """max_pool(relu(batch_norm(x))), 3x3 with stride 2, of a positive weight, on the host.

    BatchNorm and ReLU never fall then, so the pool may come first. They take a quarter of the numbers, and the map
    between them, the largest of the network, is never made. The backward pass works through pieces of x that stay in
    the cache.

    x (N, C, H, W) -> (N, C, h, w), mean and unbiased variance (V, C) each.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, num_views: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        variance, mean = compiled(variance_and_mean)(_rows(x, num_views), weight.dtype)
        maxima = F.max_pool2d(x, 3, stride=2)
        out = compiled(relu_of_normalized)(_rows(maxima, num_views), weight, bias, mean, variance, epsilon)
        return _maps(out, maxima), *_keep(ctx, (x, maxima, weight, bias, mean, variance), epsilon, num_views)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, *_: Any) -> tuple[Optional[Tensor], ...]:
        x, maxima, weight, bias, mean, variance = ctx.saved_tensors
        d_rows = _rows(d_out.contiguous(memory_format=torch.channels_last), ctx.num_views)
        statistics = mean, variance, ctx.epsilon
        d_rows, *sums = compiled(relu_backward)(d_rows, _rows(maxima, ctx.num_views), weight, bias, *statistics)
        d_maxima, d_x = _maps(d_rows, maxima), torch.empty_like(x)
        images = len(x) // ctx.num_views  # of one view
        size = max(1, PIECE_ELEMENTS * torch.get_num_threads() // x[0].numel())
        for index in range(ctx.num_views):
            view, end = slice(index, index + 1), (index + 1) * images
            of_view = mean[view], variance[view], ctx.epsilon, images * x[0, 0].numel()
            of_sums = tuple(each[view] for each in sums)
            for start in range(index * images, end, size):
                piece = slice(start, min(start + size, end))
                spread_to_maxima(d_maxima[piece], x[piece], d_x[piece])
                compiled(normalize_backward_)(_rows(d_x[piece], 1), of_sums, _rows(x[piece], 1), weight, *of_view)
        return d_x, None, sums[0].sum(0), None, None


def _keep(ctx: Any, tensors: tuple[Tensor, ...], epsilon: float, num_views: int) -> tuple[Tensor, Tensor]:
    """Keeps x, ..., mean and variance for the backward pass; returns mean and unbiased variance, without gradients."""
    ctx.save_for_backward(*tensors)
    ctx.epsilon, ctx.num_views = epsilon, num_views
    x, *_, mean, variance = tensors
    unbiased = unbiased_variance(variance, x.numel() // x.shape[1] // num_views)
    ctx.mark_non_differentiable(mean, unbiased)
    return mean, unbiased


def unbiased_variance(variance: Tensor, pixels: int) -> Tensor:
    """From the biased one, over so many pixels, as the moving averages take it."""
    return variance * (pixels / max(pixels - 1, 1))


def _rows(maps: Tensor, num_views: int) -> Tensor:
    """(N, C, H, W) -> (V, M, C); no copy where the channels are innermost."""
    return maps.permute(0, 2, 3, 1).reshape(num_views, -1, maps.shape[1])


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    images, channels, height, width = like.shape
    return rows.view(images, height, width, channels).permute(0, 3, 1, 2)
