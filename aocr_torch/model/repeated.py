"""Gradients of what every step uses, taken once for all steps; by autograd alone, each step would take and add its own.

B batch, I and O features of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Gather(torch.autograd.Function):
    """`Gather.apply(memory, *tensors)` -> a token, (). Every step takes it in and returns no gradient for it.

    So its backward runs after theirs, and returns what `memory.gather()` makes of `memory.steps`: the gradients of the
    tensors. The memory must know no graph: with the token in it, a cycle would keep everything alive.

    A step's backward first calls `forget_other_passes`, which needs `memory.forget()` and `memory.backward_pass`, -1.
    """

    @staticmethod
    def forward(ctx: Any, memory: Any, *tensors: Tensor) -> Tensor:
        ctx.memory, ctx.dtypes = memory, [tensor.dtype for tensor in tensors]
        return tensors[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_token: Tensor) -> tuple[Optional[Tensor], ...]:
        if not ctx.memory.steps:
            return (None, *(None for _ in ctx.dtypes))
        return (None, *(gradient.to(dtype) for gradient, dtype in zip(ctx.memory.gather(), ctx.dtypes)))


def forget_other_passes(memory: Any) -> None:
    """Forgets the steps of a backward pass that never came to `Gather`: it asked for other gradients, or failed."""
    this_pass = torch._C._current_graph_task_id()
    if memory.backward_pass != this_pass:
        memory.forget()
        memory.backward_pass = this_pass


class RepeatedLinear:
    """x weight^T + bias, for all steps of one reading. It can be differentiated once.

    Args:
        weight: float (O, I). bias: float (O,).
        dtype: to compute in; what autocast would lower to.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self._memory = _LinearMemory(weight.detach().to(dtype), bias.detach().to(dtype))
        self._token = Gather.apply(self._memory, weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """float (B, I) -> (B, O) in `dtype`."""
        return _RepeatedLinear.apply(x, self._token, self._memory)


class _LinearMemory:
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias, self.backward_pass = weight, bias, -1
        self.forget()

    def forget(self) -> None:
        self.steps: list[tuple[Tensor, Tensor]] = []  # x (B, I), d_out (B, O)

    def gather(self) -> tuple[Tensor, Tensor]:
        x, d_out = (torch.cat(values) for values in zip(*self.steps))
        self.forget()
        return d_out.t() @ x, d_out.sum(0)


class _RepeatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, memory: _LinearMemory) -> Tensor:
        x = x.to(memory.weight.dtype)
        ctx.memory = memory
        ctx.save_for_backward(x, memory.weight)  # autograd notices when the weight changes in between
        return F.linear(x, memory.weight, memory.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Optional[Tensor], None, None]:
        x, weight = ctx.saved_tensors
        forget_other_passes(ctx.memory)
        if ctx.needs_input_grad[1]:
            ctx.memory.steps.append((x.detach(), d_out))
        return d_out @ weight if ctx.needs_input_grad[0] else None, None, None


class StepLinear(nn.Linear):
    """A Linear that a step uses once; see `gradients_taken_once`."""

    repeated: Optional[RepeatedLinear] = None

    def forward(self, x: Tensor) -> Tensor:
        """float (B, I) -> (B, O)."""
        return super().forward(x) if self.repeated is None else self.repeated(x)


@contextmanager
def gradients_taken_once(layers: Sequence[StepLinear], dtype: torch.dtype) -> Iterator[None]:
    """Within it the layers are `RepeatedLinear`s."""
    try:
        for layer in layers:
            layer.repeated = RepeatedLinear(layer.weight, layer.bias, dtype)
        yield
    finally:
        for layer in layers:
            layer.repeated = None
