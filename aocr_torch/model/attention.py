"""Additive attention that keeps nothing of size (B, L, C) per step for the backward pass.

B batch, L positions, C channels, T steps.

Written with plain operations, every step saves tanh(keys + query) for its gradient: 38 MB a step, 1.4 GB a batch of 32
signs. Here the backward pass computes it again, on the CPU in pieces that fit a core's cache, which is faster than
fetching it from memory; the gradient of the keys is added up in one buffer, and that of the features is one matrix
product over all steps. The numbers are those of `AttentionDecoder` without it, up to rounding; all is float32 or wider.

With r = 1 / (1 + exp(2 keys) exp(2 query)), tanh(keys + query) = 1 - 2 r and its derivative is 4 (r - r^2). The host
takes the exponential of the keys once for all steps, which leaves a step a product and a reciprocal: a seventh of the
time of tanh. The 1 adds the same to all energies of a sign, which no softmax sees, so it is left out.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aocr_torch import device as devices

PIECE_ELEMENTS = 1024 * 288  # on the host: one example of the reference's size, 1.2 MB


class Attention:
    """Attention over one batch, for all steps of one reading. It can be differentiated once.

    Args:
        features: float (B, L, C), what is read out.
        keys: float (B, L, C), the features as the query meets them.
        v: float (C,), the weight of each channel in the energy v . tanh(keys + query).
    """

    def __init__(self, features: Tensor, keys: Tensor, v: Tensor) -> None:
        self._memory = _Memory(features, keys, v)
        self._token = _Gather.apply(features, keys, v, self._memory)

    def __call__(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """query float (B, C) -> attention float32 or wider (B, L), each row summing to 1, and read-out (B, C)."""
        return _Attend.apply(query, self._token, self._memory)


class _Memory:
    """What every step attends to, and the gradients that gather during the backward pass."""

    def __init__(self, features: Tensor, keys: Tensor, v: Tensor) -> None:
        batch, length, channels = keys.shape
        self.dtype = torch.promote_types(keys.dtype, torch.float32)
        self.features, self.keys, self.v = (tensor.detach().to(self.dtype) for tensor in (features, keys, v))
        # Beyond it an exponential, or the product of two, may overflow where that of the sum would not.
        self.bound = 0.49 * math.log(torch.finfo(self.dtype).max)
        self.one = self.v.new_ones(())
        self.grown_keys = self._grown(self.keys)
        piece = max(1, PIECE_ELEMENTS // (length * channels)) if devices.is_host(keys.device) else batch
        self.pieces = [slice(start, start + piece) for start in range(0, batch, piece)]
        self.buffer = self.keys.new_empty(min(piece, batch), length, channels)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        self.d_keys: Optional[Tensor] = None
        self.d_v = torch.zeros_like(self.v)
        self.steps: list[tuple[Tensor, Tensor]] = []  # attention (B, L), d_context (B, C)

    def widened(self, query: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        """The query in the dtype of the memory and, where they can be used, exp(2 query): (B, C) each."""
        query = query.to(self.dtype)
        return query, None if self.grown_keys is None else self._grown(query)

    def _grown(self, values: Tensor) -> Optional[Tensor]:
        """exp(2 values), None where it could overflow; on an accelerator too, which would have to wait to know."""
        if not devices.is_host(values.device) or not torch.linalg.vector_norm(values, torch.inf) < self.bound:
            return None
        return (2 * values).exp_()

    def inverse(self, piece: slice, query: tuple[Tensor, Optional[Tensor]]) -> Tensor:
        """1 / (1 + exp(2 (keys + query))) of some examples, (b, L, C), in a buffer that the next call overwrites."""
        wide, grown = query
        out = self.buffer[: len(wide[piece])]
        if grown is None:
            return torch.add(self.keys[piece], wide[piece, None], out=out).mul_(-2).sigmoid_()
        return torch.addcmul(self.one, self.grown_keys[piece], grown[piece, None], out=out).reciprocal_()

    def without_autocast(self) -> AbstractContextManager:
        return torch.autocast(self.keys.device.type, enabled=False)


class _Gather(torch.autograd.Function):
    """Stands before all steps, so that its backward runs after theirs and returns what has gathered."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, keys: Tensor, v: Tensor, memory: _Memory) -> Tensor:
        ctx.memory, ctx.dtypes = memory, (features.dtype, keys.dtype, v.dtype)
        return memory.v.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_token: Tensor) -> tuple[Optional[Tensor], ...]:
        memory = ctx.memory
        if not memory.steps:
            return None, None, None, None
        attention, d_context = (torch.stack(values, 1) for values in zip(*memory.steps))
        with memory.without_autocast():
            d_features = torch.bmm(attention.transpose(1, 2), d_context)  # (B, L, T) @ (B, T, C)
        d_keys = memory.d_keys.mul_(4 * memory.v)
        gradients = [g.to(dtype) for g, dtype in zip((d_features, d_keys, -2 * memory.d_v), ctx.dtypes)]
        memory.forget_gradients()
        return (*gradients, None)


class _Attend(torch.autograd.Function):
    """One step: energy = v . tanh(keys + query), attention = softmax(energy), context = attention . features."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, token: Tensor, memory: _Memory) -> tuple[Tensor, Tensor]:
        with memory.without_autocast():
            wide = memory.widened(query)
            energy, weight = memory.keys.new_empty(memory.keys.shape[:2]), -2 * memory.v  # (B, L), (C,)
            for piece in memory.pieces:
                energy[piece] = memory.inverse(piece, wide) @ weight
            attention = torch.softmax(energy, 1)
            context = torch.bmm(attention[:, None], memory.features)[:, 0]
        ctx.memory = memory
        ctx.save_for_backward(query, attention)
        return attention, context.to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_attention: Tensor, d_context: Tensor) -> tuple[Optional[Tensor], ...]:
        memory, (query, attention) = ctx.memory, ctx.saved_tensors
        attention = attention.detach()
        gathers = ctx.needs_input_grad[1]
        with memory.without_autocast():
            wide, d_context = memory.widened(query), d_context.to(memory.dtype)
            d_attention = d_attention + torch.bmm(d_context[:, None], memory.features.transpose(1, 2))[:, 0]
            d_energy = attention * (d_attention - (attention * d_attention).sum(1, keepdim=True))
            if gathers:
                memory.steps.append((attention, d_context))
                if memory.d_keys is None:
                    memory.d_keys = torch.zeros_like(memory.keys)
            d_query = torch.empty_like(d_context)
            for piece in memory.pieces:
                inverse, weight = memory.inverse(piece, wide), d_energy[piece, :, None]
                if gathers:
                    memory.d_v += torch.mv(inverse.flatten(0, 1).t(), weight.flatten())
                slope = inverse.addcmul_(inverse, inverse, value=-1)
                d_query[piece] = torch.bmm(weight.transpose(1, 2), slope)[:, 0]
                if gathers:
                    memory.d_keys[piece].addcmul_(slope, weight)
            d_query = 4 * d_query * memory.v
        return d_query.to(query.dtype), None, None
