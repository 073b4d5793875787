"""The max-pools of the tower between convolutions; in training on the host they keep no places of their maxima.

N images, C channels, H W map, h = (H - 1) // 2, w = (W - 1) // 2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from aocr_torch import device as devices


class MaxPool(nn.MaxPool2d):
    """3x3, stride 2. With `is_fast`, on the host, the backward pass finds the places of the maxima again.

    To keep them, 8 bytes each, takes as much memory as two maps in float32 or four in bfloat16.
    """

    def __init__(self, is_fast: bool):
        super().__init__(3, stride=2)
        self.is_fast = is_fast

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, h, w)."""
        is_plain = not self.is_fast or not self.training or devices.is_recording() or not devices.is_host(x.device)
        return super().forward(x) if is_plain else _MaxPoolWithoutPlaces.apply(x)


class _MaxPoolWithoutPlaces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.max_pool2d(x, 3, stride=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        d_x = torch.empty_like(x)
        spread_to_maxima(d_out, x, d_x)
        return d_x


def spread_to_maxima(d_out: Tensor, x: Tensor, d_x: Tensor) -> None:
    """Fills d_x (N, C, H, W) with d_out (N, C, h, w) where the maxima of x are, and with 0 elsewhere."""
    places = F.max_pool2d(x, 3, stride=2, return_indices=True)[1]
    backward = torch.ops.aten.max_pool2d_with_indices_backward.grad_input
    backward(d_out, x, [3], [2], [0], [1], False, places, grad_input=d_x)
