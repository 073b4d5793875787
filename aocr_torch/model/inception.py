"""Inception-v3 up to a chosen endpoint, shared by the views, with the BatchNorm of the reference.

B batch, V views, N = B*V images, C channels, H W map.

The layers and their names are torchvision's Inception3 (so its published weights load); three things differ, all
as in the TensorFlow reference: average pools do not count their padding, BatchNorm has no learned scale, and in
training the statistics may be taken view by view.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aocr_torch import device as devices
from aocr_torch.model.batch_norm import ViewBatchNorm2d, averages_move_together
from aocr_torch.model.endpoints import up_to
from aocr_torch.model.fused import average_pool, compiled
from aocr_torch.model.max_pool import MaxPool

IMAGES_PER_THREAD = 16  # evaluated at a time on the host; bfloat16: 120 ms for 64 images on one core, 155 ms at once


class ConvBatchNorm(nn.Module):
    """Convolution without bias, BatchNorm, ReLU. `norm` makes the BatchNorm from a channel count.

    With `is_fast`, in evaluation the BatchNorm is folded into the convolution's weight and a bias.
    """

    is_fast = False

    def __init__(self, norm, in_channels: int, out_channels: int, kernel, stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = norm(out_channels)

    def forward(self, x: Tensor, pool: Optional[MaxPool] = None) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W'), or what the max-pool that follows makes of it."""
        if self.is_fast and self.training and not devices.is_recording():
            return self.bn.with_relu(self.conv(x), pool)
        out = self._normalized(x)
        return out if pool is None else pool(out)

    def _normalized(self, x: Tensor) -> Tensor:
        # A compiled evaluation folds here too: left to itself, torch 2.1's compiler folds once and for all.
        is_compiled = self.bn.is_fused and not self.training
        if not self.is_fast or (devices.is_recording() and not is_compiled):
            return F.relu(self.bn(self.conv(x)), inplace=not self.training)  # see `with_relu`
        dtype = self.conv.weight.dtype
        scale = (self.bn.running_var + self.bn.eps).rsqrt() * self.bn.weight  # (C_out,)
        weight = self.conv.weight * scale[:, None, None, None]
        bias = self.bn.bias - self.bn.running_mean * scale
        folded = F.conv2d(x, weight.to(dtype), bias.to(dtype), self.conv.stride, self.conv.padding)
        return F.relu(folded, inplace=True)


class AveragePool(nn.Module):
    """The pool of the Mixed blocks, see `average_pool`."""

    is_fused = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return (compiled(average_pool) if self.is_fused and self.training else average_pool)(x)


class MixedA(nn.Module):
    """Mixed_5b, 5c, 5d."""

    def __init__(self, norm, in_channels: int, pool_channels: int):
        super().__init__()
        self.branch1x1 = ConvBatchNorm(norm, in_channels, 64, 1)
        self.branch5x5_1 = ConvBatchNorm(norm, in_channels, 48, 1)
        self.branch5x5_2 = ConvBatchNorm(norm, 48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvBatchNorm(norm, in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvBatchNorm(norm, 64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvBatchNorm(norm, 96, 96, 3, padding=1)
        self.average_pool = AveragePool()
        self.branch_pool = ConvBatchNorm(norm, in_channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 224 + pool_channels, H, W)."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(self.average_pool(x))], 1)


class MixedB(nn.Module):
    """Mixed_6a: halves the map."""

    def __init__(self, norm, in_channels: int):
        super().__init__()
        self.branch3x3 = ConvBatchNorm(norm, in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvBatchNorm(norm, in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvBatchNorm(norm, 64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvBatchNorm(norm, 96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 480 + C, (H - 1) // 2, (W - 1) // 2)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class MixedC(nn.Module):
    """Mixed_6b .. 6e, with 7x7 convolutions as pairs of 1x7 and 7x1."""

    def __init__(self, norm, channels_7x7: int):
        super().__init__()
        c = channels_7x7
        row = {"kernel": (1, 7), "padding": (0, 3)}
        column = {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = ConvBatchNorm(norm, 768, 192, 1)
        self.branch7x7_1 = ConvBatchNorm(norm, 768, c, 1)
        self.branch7x7_2 = ConvBatchNorm(norm, c, c, **row)
        self.branch7x7_3 = ConvBatchNorm(norm, c, 192, **column)
        self.branch7x7dbl_1 = ConvBatchNorm(norm, 768, c, 1)
        self.branch7x7dbl_2 = ConvBatchNorm(norm, c, c, **column)
        self.branch7x7dbl_3 = ConvBatchNorm(norm, c, c, **row)
        self.branch7x7dbl_4 = ConvBatchNorm(norm, c, c, **column)
        self.branch7x7dbl_5 = ConvBatchNorm(norm, c, 192, **row)
        self.average_pool = AveragePool()
        self.branch_pool = ConvBatchNorm(norm, 768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 768, H, W) -> (N, 768, H, W)."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(self.average_pool(x))], 1)


class MixedD(nn.Module):
    """Mixed_7a: halves the map."""

    def __init__(self, norm):
        super().__init__()
        self.branch3x3_1 = ConvBatchNorm(norm, 768, 192, 1)
        self.branch3x3_2 = ConvBatchNorm(norm, 192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvBatchNorm(norm, 768, 192, 1)
        self.branch7x7x3_2 = ConvBatchNorm(norm, 192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvBatchNorm(norm, 192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvBatchNorm(norm, 192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 768, H, W) -> (N, 1280, (H - 1) // 2, (W - 1) // 2)."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class MixedE(nn.Module):
    """Mixed_7b, 7c."""

    def __init__(self, norm, in_channels: int):
        super().__init__()
        row = {"kernel": (1, 3), "padding": (0, 1)}
        column = {"kernel": (3, 1), "padding": (1, 0)}
        self.branch1x1 = ConvBatchNorm(norm, in_channels, 320, 1)
        self.branch3x3_1 = ConvBatchNorm(norm, in_channels, 384, 1)
        self.branch3x3_2a = ConvBatchNorm(norm, 384, 384, **row)
        self.branch3x3_2b = ConvBatchNorm(norm, 384, 384, **column)
        self.branch3x3dbl_1 = ConvBatchNorm(norm, in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvBatchNorm(norm, 448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvBatchNorm(norm, 384, 384, **row)
        self.branch3x3dbl_3b = ConvBatchNorm(norm, 384, 384, **column)
        self.average_pool = AveragePool()
        self.branch_pool = ConvBatchNorm(norm, in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2048, H, W)."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        branches += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([*branches, self.branch_pool(self.average_pool(x))], 1)


class InceptionTower(nn.Module):
    """Inception-v3 from the image to `final_endpoint`.

    Source: TF-slim's inception_v3_base; layer by layer the same as torchvision's.

    Args:
        final_endpoint: one of `endpoints.ENDPOINTS`; what lies behind it is not built.
        num_views, per_view, decay, cumulative_start: see `ViewBatchNorm2d`.
        is_fast: the same numbers up to rounding in less time and memory: BatchNorm folded into the convolutions in
            evaluation, channels innermost where the device likes that.
    """

    is_fused = False

    def __init__(
        self,
        final_endpoint: str,
        num_views: int,
        per_view: bool,
        decay: float = 0.9997,
        cumulative_start: bool = False,
        is_fast: bool = False,
    ):
        super().__init__()
        self.num_views, self.per_view, self.is_fast = num_views, per_view, is_fast

        def norm(channels: int) -> ViewBatchNorm2d:
            return ViewBatchNorm2d(channels, num_views, per_view, decay, cumulative_start)

        builders = {
            "Conv2d_1a_3x3": lambda: ConvBatchNorm(norm, 3, 32, 3, stride=2),
            "Conv2d_2a_3x3": lambda: ConvBatchNorm(norm, 32, 32, 3),
            "Conv2d_2b_3x3": lambda: ConvBatchNorm(norm, 32, 64, 3, padding=1),
            "MaxPool_3a_3x3": lambda: MaxPool(is_fast),
            "Conv2d_3b_1x1": lambda: ConvBatchNorm(norm, 64, 80, 1),
            "Conv2d_4a_3x3": lambda: ConvBatchNorm(norm, 80, 192, 3),
            "MaxPool_5a_3x3": lambda: MaxPool(is_fast),
            "Mixed_5b": lambda: MixedA(norm, 192, 32),
            "Mixed_5c": lambda: MixedA(norm, 256, 64),
            "Mixed_5d": lambda: MixedA(norm, 288, 64),
            "Mixed_6a": lambda: MixedB(norm, 288),
            "Mixed_6b": lambda: MixedC(norm, 128),
            "Mixed_6c": lambda: MixedC(norm, 160),
            "Mixed_6d": lambda: MixedC(norm, 160),
            "Mixed_6e": lambda: MixedC(norm, 192),
            "Mixed_7a": lambda: MixedD(norm),
            "Mixed_7b": lambda: MixedE(norm, 1280),
            "Mixed_7c": lambda: MixedE(norm, 2048),
        }
        for name in up_to(final_endpoint):
            self.add_module(name, builders[name]())
        self.apply(_initialise)
        for module in self.modules():
            if isinstance(module, ConvBatchNorm):
                module.is_fast = is_fast
        self._norms = [module for module in self.modules() if isinstance(module, ViewBatchNorm2d)]

    def forward(self, x: Tensor) -> Tensor:
        """Float images (N, 3, h, w), already scaled -> feature maps (N, C, H, W) of the final endpoint."""
        if not self.training:
            return self._maps(x)
        with averages_move_together(self._norms):
            return self._maps(x)

    def _maps(self, x: Tensor) -> Tensor:
        if self.is_fused and self.is_fast and self.training:
            self._expect_views(self.num_views)
            maps = self._layers(_regrouped(x, (-1, self.num_views)))  # all images of the first view, then of the next
            return _regrouped(maps, (self.num_views, -1))
        one_by_one = self._runs_view_by_view(x)
        self._expect_views(1 if one_by_one else self.num_views)
        if one_by_one:
            if len(x) % self.num_views:
                raise ValueError(f"found {len(x)} images, expected whole examples of {self.num_views} views")
            views = [x[view :: self.num_views] for view in range(self.num_views)]
            maps = [self._layers(view.contiguous(memory_format=torch.channels_last)) for view in views]
            maps = torch.stack([each.permute(0, 2, 3, 1) for each in maps], 1)  # (B, V, H, W, C)
            return maps.flatten(0, 1).permute(0, 3, 1, 2)
        is_folded = self.is_fast and not self.training and not devices.is_recording()
        if is_folded and devices.prefers_channels_last(x.device):
            x = x.contiguous(memory_format=torch.channels_last)
        if is_folded and devices.is_host(x.device):  # in pieces, for the caches
            pieces = x.split(IMAGES_PER_THREAD * torch.get_num_threads())
            is_whole = self.is_fused and not torch.is_grad_enabled()
            layers = compiled(InceptionTower._layers) if is_whole else InceptionTower._layers
            return torch.cat([layers(self, piece) for piece in pieces])
        return self._layers(x)

    def _runs_view_by_view(self, x: Tensor) -> bool:
        """Whether training takes one view after the other.

        With the channels innermost, which is faster, the statistics of all views cannot be taken in one call unless
        the maps are copied. Where each kernel has to be launched, one for all views is better.
        """
        is_fast = self.is_fast and self.training and not devices.is_recording()
        return is_fast and self.per_view and devices.is_host(x.device)

    def _expect_views(self, number: int) -> None:
        for norm in self._norms:
            norm.groups = number if self.per_view else 1

    def _layers(self, x: Tensor) -> Tensor:
        layers = list(self.children())
        for layer, following in zip(layers, [*layers[1:], None]):
            if isinstance(following, MaxPool):
                x = layer(x, following)
            elif not isinstance(layer, MaxPool):
                x = layer(x)
        return x

    def endpoints(self, x: Tensor) -> dict[str, Tensor]:
        """In evaluation: as `forward`, but returns the maps of every endpoint by name."""
        if self.training and self.is_fused:
            raise ValueError("found a fused tower in training, expected evaluation: call eval() first")
        self._expect_views(self.num_views)
        maps = {}
        for name, layer in self.named_children():
            maps[name] = x = layer(x)
        return maps


def _regrouped(maps: Tensor, groups: tuple[int, int]) -> Tensor:
    """Maps (G*I, C, H, W) of G groups -> (I*G, C, H, W), the first of each group first; channels innermost."""
    pixels = maps.permute(0, 2, 3, 1).unflatten(0, groups).transpose(0, 1).flatten(0, 1)  # (I*G, H, W, C)
    return pixels.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _initialise(module: nn.Module) -> None:
    """Variance scaling with factor 2 and fan-in; slim widens the truncated normal by 1.3 to make up for the tails."""
    if isinstance(module, nn.Conv2d):
        fan_in = module.weight[0].numel()
        std = (1.3 * 2 / fan_in) ** 0.5
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
