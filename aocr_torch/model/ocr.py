"""Attention-OCR: tower, pooled views, decoder; and what its logits say.

B batch, V views, h w view size in pixels, C channels, H W feature map, L = V*H*W positions, T steps, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aocr_torch import device as devices
from aocr_torch.config import Data, Model
from aocr_torch.model.decoder import AttentionDecoder, NetSliceDecoder
from aocr_torch.model.endpoints import map_shape
from aocr_torch.model.fused import CompileError
from aocr_torch.model.inception import InceptionTower


class AttentionOCR(nn.Module):
    """The network of Wojna et al. 2017 (arXiv 1704.03549) as its TensorFlow implementation computes it.

    Args:
        data: image layout (views, size, steps). model: architecture. num_classes: K, the charset's size.

    Raises:
        ValueError: unknown endpoint, or images too small for it.
    """

    def __init__(self, data: Data, model: Model, num_classes: int):
        super().__init__()
        self.encode_coordinates = model.encode_coordinates
        self.tower = InceptionTower(
            model.final_endpoint,
            data.num_views,
            model.batch_norm_per_view,
            model.batch_norm_decay,
            model.batch_norm_cumulative_start,
            model.use_fast_path,
        )
        channels, height, width = map_shape(model.final_endpoint, *data.view_size)
        if model.encode_coordinates:
            channels += height + width
        self.map_shape = (data.num_views, height, width)  # how attention over L positions unfolds onto the views
        options = {
            "num_classes": num_classes,
            "num_steps": data.max_sequence_length,
            "num_units": model.num_lstm_units,
            "use_autoregression": model.use_autoregression,
            "cell": model.cell,
            "state_clip_value": model.lstm_state_clip_value,
        }
        if model.use_attention:
            self.decoder: nn.Module = AttentionDecoder(channels, **options, is_fast=model.use_fast_path)
        else:
            self.decoder = NetSliceDecoder(channels, data.num_views * height * width, **options)

    def fuse(self) -> None:
        """Lets torch.compile fuse what is bound by memory (see model/fused.py).

        Raises:
            CompileError: torch.compile was never tried on this kind of device.
        """
        device = next(self.parameters()).device
        if not devices.can_compile(device):
            raise CompileError(f"compile is not supported on {device.type}: leave --compile away")
        for module in self.modules():
            if hasattr(module, "is_fused"):
                module.is_fused = True

    def forward(self, views: Tensor, labels: Optional[Tensor] = None) -> dict[str, Tensor]:
        """Reads the signs.

        Args:
            views: float (B, V, 3, h, w) in [0, 1].
            labels: int64 (B, T) to teach with; None lets the decoder feed back its own choice.

        Returns:
            a dict (mixed precision can cast it): logits float (B, T, K), and with an attention decoder
            attention float32 or wider (B, T, L).
        """
        logits, attention = self.decoder(self.features(views), labels)
        return {"logits": logits} if attention is None else {"logits": logits, "attention": attention}

    def features(self, views: Tensor) -> Tensor:
        """Views (B, V, 3, h, w) -> what the decoder reads, (B, L, C), position = (view * H + y) * W + x."""
        batch, num_views = views.shape[:2]
        maps = self.tower((views.flatten(0, 1) - 0.5) * 2.5)  # (B*V, C, H, W)
        if self.encode_coordinates:
            maps = append_coordinates(maps)
        channels = maps.shape[1]
        return maps.unflatten(0, (batch, num_views)).permute(0, 1, 3, 4, 2).reshape(batch, -1, channels)  # (B, L, C)


def append_coordinates(maps: Tensor) -> Tensor:
    """Appends the one-hot row, then the one-hot column: (N, C, H, W) -> (N, C + H + W, H, W)."""
    images, _, height, width = maps.shape
    rows = torch.eye(height, dtype=maps.dtype, device=maps.device)[:, :, None].expand(height, height, width)
    columns = torch.eye(width, dtype=maps.dtype, device=maps.device)[:, None].expand(width, height, width)
    coordinates = torch.cat([rows, columns]).expand(images, -1, -1, -1)  # (N, H + W, H, W)
    return torch.cat([maps, coordinates], 1)


@dataclass(frozen=True)
class Prediction:
    """What logits (B, T, K) say; all as the reference defines it."""

    log_probabilities: Tensor
    """float32 (B, T, K)."""
    ids: Tensor
    """int64 (B, T), the most probable class."""
    scores: Tensor
    """float32 (B, T), the probability of that class."""
    lengths: Tensor
    """int64 (B,), how many ids are not null, wherever they stand."""
    confidences: Tensor
    """float32 (B,), sum of the chosen log-probabilities up to and including position `length`."""
    normalized_confidences: Tensor
    """float32 (B,), exp(confidence / (length + 1)): the geometric mean."""


def interpret(logits: Tensor, null_id: int) -> Prediction:
    """Logits (B, T, K) -> `Prediction`. null_id: the id of the null character."""
    log_probabilities = F.log_softmax(logits, dim=2, dtype=torch.float32)
    best, ids = log_probabilities.max(2)  # (B, T)
    lengths = (ids != null_id).sum(1)  # (B,)
    # A zero behind the last step serves texts that fill all T steps.
    sums = F.pad(best, (0, 1)).cumsum(1)  # (B, T + 1)
    confidences = sums.gather(1, lengths[:, None])[:, 0]
    return Prediction(log_probabilities, ids, best.exp(), lengths, confidences, (confidences / (lengths + 1)).exp())
