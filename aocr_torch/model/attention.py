"""Additive attention that keeps nothing of size (B, L, C) per step for the backward pass.

B batch, L positions, C channels, T steps.

Written with plain operations, every step saves tanh(keys + query) for its gradient: 38 MB a step, 1.4 GB a batch of 32
signs. Here the backward pass computes it again, on the CPU in pieces that fit the cores' caches, which is faster than
fetching it from memory. There a thread takes whole examples, and MKL's products of a matrix and a vector, which share
them out otherwise, are avoided: the operation behind one took ten times as long at times, it seems for what had to
cross from one core to another. The gradient of the keys is added up in one buffer, and that of the features is one
matrix product over all steps. The numbers are those of `AttentionDecoder` without it, up to rounding; all is float32 or
wider.

With r = 1 / (1 + exp(2 keys) exp(2 query)), tanh(keys + query) = 1 - 2 r and its derivative is 4 (r - r^2). The host
takes the exponential of the keys once for all steps, which leaves a step a product and a division: a seventh of the
time of tanh. The 1 adds the same to all energies of a sign, which no softmax sees, so it is left out.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aocr_torch import device as devices
from aocr_torch.model.fused import FusedMemory, grown, is_within
from aocr_torch.model.repeated import Gather, forget_other_passes

PIECE_ELEMENTS = 1024 * 288  # on the host, for each thread: one example of the reference's size, 1.2 MB


class Attention:
    """Attention over one batch, for all steps of one reading. It can be differentiated once.

    Args:
        features: float (B, L, C), what is read out.
        keys: float (B, L, C), the features as the query meets them.
        v: float (C,), the weight of each channel in the energy v . tanh(keys + query).
        is_fused: compute with kernels that torch.compile makes (model/fused.py).
    """

    def __init__(self, features: Tensor, keys: Tensor, v: Tensor, is_fused: bool = False) -> None:
        self._memory = (FusedMemory if is_fused else _Memory)(features, keys, v)
        self._token = Gather.apply(self._memory, features, keys, v)

    def __call__(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """query float (B, C) -> attention float32 or wider (B, L), each row summing to 1, and read-out (B, C)."""
        return _Attend.apply(query, self._token, self._memory)


class _Attend(torch.autograd.Function):
    """One step: energy = v . tanh(keys + query), attention = softmax(energy), context = attention . features."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, token: Tensor, memory: Any) -> tuple[Tensor, Tensor]:
        attention, context = memory.attend(query)
        ctx.memory = memory
        ctx.set_materialize_grads(False)  # a training has no use for the attention itself: nothing to add then
        ctx.save_for_backward(query, attention)
        return attention, context.to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_attention: Optional[Tensor], d_context: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
        query, attention = ctx.saved_tensors
        if d_context is None:
            d_context = torch.zeros_like(query)
        forget_other_passes(ctx.memory)
        gathers = ctx.needs_input_grad[1]
        d_query = ctx.memory.attend_backward(query, attention.detach(), d_attention, d_context, gathers)
        return d_query.to(query.dtype), None, None


class _Memory:
    """What every step attends to, and the gradients that gather during the backward pass: eager, in pieces on the host.

    It has what `Attention` asks of a memory: `attend`, `attend_backward`, and what `repeated.Gather` asks of one.
    """

    def __init__(self, features: Tensor, keys: Tensor, v: Tensor) -> None:
        batch, length, channels = keys.shape
        self.dtype = torch.promote_types(keys.dtype, torch.float32)
        self.features, wide_keys, self.v = (tensor.detach().to(self.dtype) for tensor in (features, keys, v))
        self.one, self.weight, self.slope = self.v.new_ones(()), -2 * self.v, 4 * self.v
        if devices.is_host(keys.device):
            self.keys, self.grown_keys = wide_keys, grown(wide_keys)
            piece = max(1, PIECE_ELEMENTS // (length * channels)) * torch.get_num_threads()
        else:  # one operation less a step
            self.keys, self.grown_keys, piece = -2 * wide_keys, None, batch
        self.pieces = [slice(start, start + piece) for start in range(0, batch, piece)]
        self.buffer = self.keys.new_empty(min(piece, batch), length, channels)
        self.without_autocast = partial(torch.autocast, keys.device.type, enabled=False)
        self.backward_pass = -1
        self.forget()

    def attend(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """query (B, C) -> attention (B, L), read-out (B, C)."""
        with self.without_autocast():
            met = self._met(query)
            energy = self.keys.new_empty(self.keys.shape[:2])  # (B, L)
            for piece in self.pieces:
                torch.sum(self._inverse(piece, met, self.weight), 2, out=energy[piece])
            attention = torch.softmax(energy, 1)
            return attention, torch.bmm(attention[:, None], self.features)[:, 0]

    def attend_backward(
        self, query: Tensor, attention: Tensor, d_attention: Optional[Tensor], d_context: Tensor, gathers: bool
    ) -> Tensor:
        """The gradient of a step's query, (B, C); if it `gathers`, those of features, keys and v grow."""
        with self.without_autocast():
            met, d_context = self._met(query), d_context.to(self.dtype)
            by_context = torch.bmm(d_context[:, None], self.features.transpose(1, 2))[:, 0]
            d_attention = by_context if d_attention is None else d_attention + by_context
            d_energy = torch.ops.aten._softmax_backward_data(d_attention, attention, 1, self.dtype)
            if gathers:
                self.steps.append((attention, d_context))
                if self.d_keys is None:
                    self.d_keys = torch.zeros_like(self.keys)
            d_query = torch.empty_like(d_context)
            for piece in self.pieces:
                inverse, weight = self._inverse(piece, met, self.one), d_energy[piece, :, None]
                if gathers:
                    self.d_v[piece, None].baddbmm_(weight.transpose(1, 2), inverse)
                slope = inverse.addcmul_(inverse, inverse, value=-1)
                torch.bmm(weight.transpose(1, 2), slope, out=d_query[piece, None])
                if gathers:
                    self.d_keys[piece].addcmul_(slope, weight)
            return d_query * self.slope

    def gather(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of features, keys and v from all steps, which are forgotten."""
        attention, d_context = (torch.stack(values, 1) for values in zip(*self.steps))
        with self.without_autocast():
            d_features = torch.bmm(attention.transpose(1, 2), d_context)  # (B, L, T) @ (B, T, C)
        gradients = d_features, self.d_keys.mul_(self.slope), -2 * self.d_v.sum(0)
        self.forget()
        return gradients

    def forget(self) -> None:
        """Drops the gradients of all steps."""
        self.d_keys: Optional[Tensor] = None
        self.d_v = self.v.new_zeros(len(self.keys), len(self.v))  # from each example
        self.steps: list[tuple[Tensor, Tensor]] = []  # attention (B, L), d_context (B, C)

    def _inverse(self, piece: slice, query: tuple[Tensor, bool], weight: Tensor) -> Tensor:
        """weight / (1 + exp(2 (keys + query))) of some examples, (b, L, C), in a buffer that the next call overwrites.

        weight: `self.one`, or (C,).
        """
        met, is_grown = query[0][piece, None], query[1]
        out = self.buffer[: len(met)]
        if is_grown:
            return torch.div(weight, torch.addcmul(self.one, self.grown_keys[piece], met, out=out), out=out)
        if self.grown_keys is None:
            torch.add(self.keys, met, alpha=-2, out=out).sigmoid_()
        else:
            torch.add(self.keys[piece], met, out=out).mul_(-2).sigmoid_()
        return out if weight is self.one else out.mul_(weight)

    def _met(self, query: Tensor) -> tuple[Tensor, bool]:
        """The query (B, C) as it meets the keys, and whether that is as exp(2 query)."""
        wide = query.to(self.dtype)
        return ((2 * wide).exp_(), True) if is_within(wide) else (wide, False)
