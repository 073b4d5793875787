"""The formulas that torch.compile turns into single kernels: BatchNorm with ReLU, pools, attention, the LSTM's gates.

B batch, V views, M = B*H*W pixels of one view, L positions, C channels, T steps, U units.

On an accelerator these are bound by memory: run operation by operation, each reads and writes everything again. The
functions here are plain tensor code, so what they compute can be read and tested without a compiler; `compiled` is what
the model calls when `--compile` asks for it.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST_SHAPES = 64  # a kernel for each shape; torch's default of 8 would give up at the ninth layer


class CompileError(ValueError):
    """torch.compile cannot work here, in one line."""


@functools.lru_cache(None)
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as torch.compile fuses it, for each combination of shapes anew.

    Raises, when called:
        CompileError: there is no compiler, or it fails.
    """
    import torch._dynamo

    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MOST_SHAPES)
    fused = torch.compile(function, dynamic=False)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return fused(*arguments)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise CompileError(
                f"torch.compile fails ({reason}): it needs Triton on cuda and a C++ compiler on the CPU; leave "
                "--compile away"
            ) from error

    return call


def normalize_relu(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """x (V, M, C) -> relu of x normalised view by view, in its dtype; mean and biased variance, (V, C) each."""
    wide = x.to(weight.dtype)
    variance, mean = torch.var_mean(wide, 1, correction=0)
    normalized = (wide - mean[:, None]) * torch.rsqrt(variance + epsilon)[:, None]
    return torch.relu(normalized * weight + bias).to(x.dtype), mean, variance


def normalize_relu_backward(
    d_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x, (V, M, C), and of bias, (C,)."""
    inverse_std = torch.rsqrt(variance + epsilon)[:, None]  # (V, 1, C)
    normalized = (x.to(weight.dtype) - mean[:, None]) * inverse_std
    gradient = torch.where(normalized * weight + bias > 0, d_out.to(weight.dtype), 0)
    along_mean = gradient.mean(1, keepdim=True)  # (V, 1, C)
    along_normalized = (gradient * normalized).mean(1, keepdim=True)
    d_x = (gradient - along_mean - normalized * along_normalized) * (inverse_std * weight)
    return d_x.to(x.dtype), along_mean.sum((0, 1)) * x.shape[1]


class NormalizedReLU(torch.autograd.Function):
    """relu(batch_norm(x)) of V views that stand one after the other, channels innermost; keeps x alone.

    x (V*B, C, H, W) -> the same shape, mean and unbiased variance (V, C) each.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, num_views: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        rows = _rows(x, num_views)
        out, mean, variance = compiled(normalize_relu)(rows, weight, bias, epsilon)
        ctx.save_for_backward(x, weight, bias, mean, variance)
        ctx.epsilon, ctx.num_views = epsilon, num_views
        pixels = rows.shape[1]
        unbiased = variance * (pixels / max(pixels - 1, 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return _maps(out, x), mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, *_: Any) -> tuple[Optional[Tensor], ...]:
        x, *others = ctx.saved_tensors
        rows = _rows(x, ctx.num_views)
        # The gradient of a concatenation is a slice; copied, it needs no kernels of its own.
        d_out = d_out.contiguous(memory_format=torch.channels_last)
        d_rows, d_bias = compiled(normalize_relu_backward)(_rows(d_out, ctx.num_views), rows, *others, ctx.epsilon)
        return _maps(d_rows, x), None, d_bias, None, None


def average_pool(x: Tensor) -> Tensor:
    """(N, C, H, W) -> the same shape: 3x3, stride 1, SAME.

    TensorFlow leaves the padding out of the mean; PyTorch's default would count it.
    """
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _rows(maps: Tensor, num_views: int) -> Tensor:
    """(V*B, C, H, W) -> (V, B*H*W, C); no copy where the channels are innermost."""
    return maps.permute(0, 2, 3, 1).reshape(num_views, -1, maps.shape[1])


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    images, channels, height, width = like.shape
    return rows.view(images, height, width, channels).permute(0, 3, 1, 2)


def _tanh(x: Tensor) -> Tensor:
    """tanh to 1e-7 by one exponential: the library's own, with its polynomial for small x, is what limits a kernel."""
    return 1 - 2 / (1 + torch.exp(2 * x))


def attend(keys: Tensor, features: Tensor, query: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One step of attention: keys, features (B, L, C), query (B, C), v (C,) -> attention (B, L), read-out (B, C).

    energy = v . tanh(keys + query), attention = softmax(energy); computed in v's dtype, float32 or wider.
    """
    energy = (_tanh(keys.to(v.dtype) + query.to(v.dtype)[:, None]) * v).sum(2)  # (B, L)
    attention = torch.softmax(energy, 1)
    return attention, (attention[:, :, None] * features.to(v.dtype)).sum(1)


def attend_backward(
    keys: Tensor,
    features: Tensor,
    query: Tensor,
    v: Tensor,
    attention: Tensor,
    d_attention: Tensor,
    d_context: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of the energy, (B, L), and of the query, (B, C)."""
    d_attention = d_attention + (d_context.to(v.dtype)[:, None] * features.to(v.dtype)).sum(2)
    d_energy = attention * (d_attention - (attention * d_attention).sum(1, keepdim=True))
    tanh = _tanh(keys.to(v.dtype) + query.to(v.dtype)[:, None])
    return d_energy, ((1 - tanh * tanh) * d_energy[:, :, None]).sum(1) * v


def gather_backward(keys: Tensor, queries: Tensor, v: Tensor, d_energies: Tensor) -> tuple[Tensor, Tensor]:
    """What all steps together give to the gradients of keys, (B, L, C), and v, (C,).

    queries (B, T, C), d_energies (B, T, L). Uncompiled it would need B*T*L*C numbers.
    """
    tanh = _tanh(keys.to(v.dtype)[:, None] + queries.to(v.dtype)[:, :, None])  # (B, T, L, C)
    weight = d_energies[..., None]
    d_keys = ((1 - tanh * tanh) * weight).sum(1) * v
    return d_keys.to(keys.dtype), (tanh * weight).sum((0, 2)).sum(0)


class FusedMemory:
    """A memory for `attention.Attention`, in a few kernels a step; keys and features stay in the dtype they come in."""

    def __init__(self, features: Tensor, keys: Tensor, v: Tensor) -> None:
        wide = torch.promote_types(keys.dtype, torch.float32)
        self.features, self.keys, self.v = features.detach(), keys.detach(), v.detach().to(wide)
        self.steps: list[tuple[Tensor, ...]] = []  # query, d_energy, attention, d_context

    def attend(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """query (B, C) -> attention (B, L), read-out (B, C)."""
        return compiled(attend)(self.keys, self.features, query, self.v)

    def attend_backward(
        self, query: Tensor, attention: Tensor, d_attention: Tensor, d_context: Tensor, gathers: bool
    ) -> Tensor:
        """The gradient of a step's query, (B, C); if it `gathers`, the step is kept for `gather`."""
        d_energy, d_query = compiled(attend_backward)(
            self.keys, self.features, query, self.v, attention, d_attention, d_context
        )
        if gathers:
            self.steps.append((query, d_energy, attention, d_context))
        return d_query

    def gather(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of features, keys and v from all steps, which are forgotten."""
        queries, d_energies, attention, d_contexts = (torch.stack(values, 1) for values in zip(*self.steps))
        self.steps = []
        dtype = self.features.dtype
        d_features = torch.bmm(attention.to(dtype).transpose(1, 2), d_contexts.to(dtype))  # (B, L, T) @ (B, T, C)
        return (d_features, *compiled(gather_backward)(self.keys, queries, self.v, d_energies))


def lstm_state(gates: Tensor, c: Tensor, forget_bias: float, clip: float) -> tuple[Tensor, Tensor]:
    """gates (B, 4 * U) in the order i, j, f, o and the cell state c (B, U) -> the new (c, h), (B, U) each."""
    i, j, f, o = gates.chunk(4, 1)
    c = torch.sigmoid(f + forget_bias) * c + torch.sigmoid(i) * torch.tanh(j)
    if clip > 0:
        c = c.clamp(-clip, clip)
    return c, torch.sigmoid(o) * torch.tanh(c)
