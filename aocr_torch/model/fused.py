"""The formulas that torch.compile turns into single kernels: average pools, attention, the LSTM's gates.

B batch, L positions, C channels, T steps, U units. Those of BatchNorm with ReLU: model/normalized_relu.py.

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

from aocr_torch import device as devices

ROWS_AT_A_TIME = 4
MOST_KEY, MOST_QUERY = 40.0, 30.0
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


def in_blocks(x: Tensor) -> Optional[Tensor]:
    """(B, L, C) -> (B, L / 4, 4, C) on the host, if that divides.

    Its compiler keeps the sums of 4 rows in registers; along a whole column it would wait for memory.
    """
    is_divisible = devices.is_host(x.device) and x.shape[1] % ROWS_AT_A_TIME == 0
    return x.unflatten(1, (-1, ROWS_AT_A_TIME)) if is_divisible else None


def sum_of_rows(x: Tensor) -> Tensor:
    """(B, L, C) -> (B, C)."""
    blocks = in_blocks(x)
    return (x if blocks is None else blocks.sum(2)).sum(1)


def average_pool(x: Tensor) -> Tensor:
    """(N, C, H, W) -> the same shape: 3x3, stride 1, SAME.

    TensorFlow leaves the padding out of the mean; PyTorch's default would count it.
    """
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def grown(keys: Tensor) -> Tensor:
    """exp(2 keys) in their dtype, or in float32 where that does not reach as far. Keys beyond 40 are taken as 40.

    With a query within 30 their sum is then still beyond 10, where tanh is 1 to 4e-9; with others see `is_within`.
    In bfloat16 the rounding moves a key by up to 0.001, as bfloat16 itself does with one of 0.5 to 1.
    """
    wide = keys if keys.dtype == torch.float64 else keys.float()
    values = wide.clamp(-MOST_KEY, MOST_KEY).mul_(2).exp_()
    return values.bfloat16() if keys.dtype == torch.bfloat16 else values


def is_within(query: Tensor) -> bool:
    """Whether a query may meet `grown` keys. On an accelerator none may: it would have to wait to know."""
    # Written so that NaN is no reason to go on.
    return devices.is_host(query.device) and bool(query.abs().amax() <= MOST_QUERY)


def _inverse(keys: Tensor, query: Tensor, are_grown: bool) -> Tensor:
    """r = 1 / (1 + exp(2 (keys + query))), so that tanh(keys + query) = 1 - 2 r to 1e-7.

    The library's own tanh, with its polynomial for small x, is what would limit a kernel. With `grown` keys no
    exponential of (B, L, C) is left.
    """
    return 1 / (1 + (keys * torch.exp(2 * query) if are_grown else torch.exp(2 * (keys + query))))


def attention_of(keys: Tensor, query: Tensor, v: Tensor, are_grown: bool) -> Tensor:
    """softmax(v . tanh(keys + query)): keys (B, L, C), query (B, C), v (C,) -> (B, L) in v's dtype, float32 or wider.

    are_grown: keys are `grown` ones, and the query `is_within`.
    """
    tanh = 1 - 2 * _inverse(keys.to(v.dtype), query.to(v.dtype)[:, None], are_grown)
    return torch.softmax((tanh * v).sum(2), 1)


def read_out(attention: Tensor, features: Tensor) -> Tensor:
    """attention (B, L), features (B, L, C) -> their weighted sum (B, C) in attention's dtype."""
    return sum_of_rows(attention[:, :, None] * features.to(attention.dtype))


def energy_backward(features: Tensor, attention: Tensor, d_attention: Optional[Tensor], d_context: Tensor) -> Tensor:
    """The gradient of a step's energies before softmax, (B, L)."""
    by_context = (d_context.to(attention.dtype)[:, None] * features.to(attention.dtype)).sum(2)
    d_attention = by_context if d_attention is None else d_attention + by_context
    return attention * (d_attention - (attention * d_attention).sum(1, keepdim=True))


def query_backward(keys: Tensor, query: Tensor, v: Tensor, d_energy: Tensor, are_grown: bool) -> tuple[Tensor, Tensor]:
    """Gradients of a step's query, and of v from each example: (B, C) each.

    With tanh = 1 - 2 r and d_energy, which sums to 0, as weight, both follow from the sums of r and of r^2.
    """
    inverse = _inverse(keys.to(v.dtype), query.to(v.dtype)[:, None], are_grown)
    weighted = inverse * d_energy[:, :, None]
    once, twice = sum_of_rows(weighted), sum_of_rows(inverse * weighted)
    return 4 * (once - twice) * v, -2 * once


def keys_backward(keys: Tensor, queries: Tensor, v: Tensor, d_energies: Tensor, are_grown: bool) -> Tensor:
    """What all steps together give to the gradient of keys, (B, L, C).

    queries (B, T, C), d_energies (B, T, L). Uncompiled it would need B*T*L*C numbers.
    """
    inverse = _inverse(keys.to(v.dtype)[:, None], queries.to(v.dtype)[:, :, None], are_grown)  # (B, T, L, C)
    return (((inverse - inverse * inverse) * d_energies[..., None]).sum(1) * 4 * v).to(keys.dtype)


class FusedMemory:
    """A memory for `attention.Attention`, in a few kernels a step; keys and features stay in the dtype they come in.

    The host takes the exponential of the keys once for all steps.
    """

    def __init__(self, features: Tensor, keys: Tensor, v: Tensor) -> None:
        wide = torch.promote_types(keys.dtype, torch.float32)
        self.features, self.keys, self.v = features.detach(), keys.detach(), v.detach().to(wide)
        self.grown_keys = compiled(grown)(self.keys) if devices.is_host(keys.device) else None
        self.backward_pass = -1
        self.forget()

    def forget(self) -> None:
        """Drops the gradients of all steps."""
        self.steps: list[tuple[Tensor, ...]] = []  # query, d_energy, d_v, attention, d_context

    def attend(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """query (B, C) -> attention (B, L), read-out (B, C)."""
        keys, are_grown = self._keys_for(query)
        attention = compiled(attention_of)(keys, query, self.v, are_grown)
        return attention, compiled(read_out)(attention, self.features)

    def attend_backward(
        self, query: Tensor, attention: Tensor, d_attention: Optional[Tensor], d_context: Tensor, gathers: bool
    ) -> Tensor:
        """The gradient of a step's query, (B, C); if it `gathers`, the step is kept for `gather`."""
        keys, are_grown = self._keys_for(query)
        d_energy = compiled(energy_backward)(self.features, attention, d_attention, d_context)
        d_query, d_v = compiled(query_backward)(keys, query, self.v, d_energy, are_grown)
        if gathers:
            self.steps.append((query.detach(), d_energy, d_v, attention, d_context))
        return d_query

    def gather(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of features, keys and v from all steps, which are forgotten."""
        queries, d_energies, d_v, attention, d_contexts = (torch.stack(values, 1) for values in zip(*self.steps))
        self.forget()
        dtype = self.features.dtype
        d_features = torch.bmm(attention.to(dtype).transpose(1, 2), d_contexts.to(dtype))  # (B, L, T) @ (B, T, C)
        keys, are_grown = self._keys_for(queries)
        return d_features, compiled(keys_backward)(keys, queries, self.v, d_energies, are_grown), d_v.sum((0, 1))

    def _keys_for(self, query: Tensor) -> tuple[Tensor, bool]:
        """The keys as they meet a query in a kernel, and whether they are grown."""
        return (self.grown_keys, True) if is_within(query) else (self.keys, False)


def lstm_state(gates: Tensor, c: Tensor, forget_bias: float, clip: float) -> tuple[Tensor, Tensor]:
    """gates (B, 4 * U) in the order i, j, f, o and the cell state c (B, U) -> the new (c, h), (B, U) each."""
    i, j, f, o = gates.chunk(4, 1)
    c = torch.sigmoid(f + forget_bias) * c + torch.sigmoid(i) * torch.tanh(j)
    if clip > 0:
        c = c.clamp(-clip, clip)
    return c, torch.sigmoid(o) * torch.tanh(c)
