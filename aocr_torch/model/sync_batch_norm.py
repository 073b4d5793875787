"""BatchNorm whose training statistics are those of the batches of all ranks together.

torch.nn.SyncBatchNorm knows no views and, in the oldest torch that we support, no host; this one needs nothing but an
all-reduce that gradients pass through.

N images of this rank, V views (groups of statistics), C channels, H W map.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from aocr_torch.model.batch_norm import ViewBatchNorm2d
from aocr_torch.model.max_pool import MaxPool


class SyncViewBatchNorm2d(ViewBatchNorm2d):
    """`ViewBatchNorm2d` over all ranks; their batches may differ in size. It normalises in float32 or wider."""

    def forward(self, x: Tensor) -> Tensor:
        """As `ViewBatchNorm2d.forward`; in training every rank must call it."""
        if not self.training:
            return super().forward(x)
        images, channels, height, width = x.shape
        grouped = x.reshape(-1, self.groups, channels, height * width)  # (B, V, C, H*W)
        grouped = grouped.to(torch.promote_types(x.dtype, torch.float32))
        count = grouped.new_full((1,), grouped.shape[0] * height * width)
        sums = all_reduce(torch.cat([grouped.sum((0, 3)).flatten(), count]))  # (V*C + 1,)
        total = sums[-1].detach()
        mean = sums[:-1].view(self.groups, channels) / total  # (V, C)
        centred = grouped - mean[:, :, None]
        # A second all-reduce rather than the mean of squares in the first: that loses digits where the mean is large.
        variance = all_reduce(centred.square().sum((0, 3))) / total  # (V, C)
        self._update_averages(mean.detach(), variance.detach() * (total / (total - 1)))
        out = centred * (self.weight * torch.rsqrt(variance + self.eps))[:, :, None] + self.bias[:, None]
        return out.to(x.dtype).reshape(images, channels, height, width)

    def with_relu(self, x: Tensor, pool: Optional[MaxPool] = None) -> Tensor:
        """relu(self(x)), whose fast form knows this rank's batch only, or what the max-pool makes of it."""
        out = F.relu(self(x))
        return out if pool is None else pool(out)


def synchronise_batch_norm(model: nn.Module) -> None:
    """Lets every `ViewBatchNorm2d` of the model share its statistics; parameters, buffers and names stay."""
    for module in model.modules():
        if type(module) is ViewBatchNorm2d:
            module.__class__ = SyncViewBatchNorm2d
