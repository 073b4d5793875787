"""From decoded images to the views that the network sees: splitting, central crop and the training augmentation.

B batch, V views, N = B * V views in one batch, h w height and width of a view. Everything is batched and runs on any
device. What is drawn at random depends on (seed, position of the sample in the stream) and on nothing else.

The augmentation is that of the TensorFlow reference (slim's Inception preprocessing): per view a random crop, resized
back by one of four TensorFlow 1 methods, then brightness, saturation, hue and contrast in one of four orders.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Callable, Optional

import numpy as np
import torch
import torch.nn.functional as F

from aocr_torch.data.color import distort_color

BILINEAR, NEAREST, BICUBIC, AREA = range(4)

MAX_BRIGHTNESS_DELTA = 32 / 255
SATURATION_RANGE = CONTRAST_RANGE = (0.5, 1.5)
MAX_HUE_DELTA = 0.2  # turns of the colour circle
AREA_RANGE = (0.8, 1.0)  # of the view
ASPECT_RANGE = (0.8, 1.2)  # width / height
MAX_CROP_ATTEMPTS = 100

_SCALE = float(np.float32(1 / 255))  # TensorFlow multiplies by it; a division by 255 would differ in the last bit
_BICUBIC_A = -0.75
_BICUBIC_TABLE_SIZE = 1024
_PHILOX_STREAM = 0x61756772656E74  # upper half of the key: other users of the same seed draw other numbers
_VIEWS_PER_PIECE = 4  # on the CPU: small enough for the cache, large enough to hide the cost of a call


@dataclass(frozen=True)
class AugmentParameters:
    """What was drawn for each view; leading dimensions (B, V)."""

    box: torch.Tensor
    """(B, V, 4) int64: y, x, height, width of the crop in pixels."""
    method: torch.Tensor
    """(B, V) int64: BILINEAR, NEAREST, BICUBIC or AREA."""
    order: torch.Tensor
    """(B, V) int64 in 0..3: the order of the colour operations, see distort_color."""
    brightness: torch.Tensor
    """(B, V) float32, added."""
    saturation: torch.Tensor
    """(B, V) float32, a factor."""
    hue: torch.Tensor
    """(B, V) float32, turns."""
    contrast: torch.Tensor
    """(B, V) float32, a factor."""

    def to(self, device: torch.device) -> AugmentParameters:
        """The same parameters on `device`; an upload does not wait for the work that is queued there."""
        is_upload = self.box.device.type == "cpu"
        return AugmentParameters(*(getattr(self, f.name).to(device, non_blocking=is_upload) for f in fields(self)))


def split_views(
    images: torch.Tensor, num_views: int, crop: Optional[tuple[int, int]] = None, *, scale: bool = True
) -> torch.Tensor:
    """Cut each image into its views, optionally keep the middle of each view, and scale to [0, 1].

    images: (B, H, W, 3) uint8, the views side by side along the width; or floating, in [0, 1] already.
    crop: (width, height) in pixels of the whole image: every view keeps int(width / num_views) columns.
    scale: False returns the images' own numbers, not copied.
    Returns (B, V, 3, h, w) float32. Raises ValueError if the width does not divide or the crop does not fit.
    """
    batch, height, width, channels = images.shape
    if channels != 3 or width % num_views:
        raise ValueError(
            f"images are {tuple(images.shape)}: expected (batch, height, width, 3) with a width that {num_views} views "
            "share evenly; correct the number of views or the image size"
        )
    view_width = width // num_views
    views = images.view(batch, height, num_views, view_width, 3).permute(0, 2, 4, 1, 3)  # (B, V, 3, H, w)
    if crop is not None:
        crop_width, crop_height = crop[0] // num_views, crop[1]
        if not (0 < crop_width <= view_width and 0 < crop_height <= height):
            raise ValueError(
                f"central crop of width {crop[0]} and height {crop[1]} over {num_views} views does not fit images of "
                f"{width} x {height}: choose a smaller one, at least 1 pixel per view"
            )
        top, left = (height - crop_height) // 2, (view_width - crop_width) // 2
        views = views[..., top : top + crop_height, left : left + crop_width]  # (B, V, 3, h, w)
    if not scale:
        return views
    scaled = views.to(torch.float32, memory_format=torch.contiguous_format)
    return scaled if images.is_floating_point() else scaled.mul_(_SCALE)


def draw_parameters(seed: int, positions: torch.Tensor, num_views: int, height: int, width: int) -> AugmentParameters:
    """Draw the augmentation of the samples at `positions` ((B,) int64, not negative) of the training stream.

    A function of (seed, position) alone: each position reads its own stretch of one counter-based generator, so batch
    size, workers, resuming and the global random state make no difference. height, width: of a view, in pixels.
    """
    shape = (num_views, 8 + 2 * MAX_CROP_ATTEMPTS)
    drawn = np.empty((len(positions), *shape))
    for row, position in zip(drawn, positions.tolist()):
        bits = np.random.Philox(key=_PHILOX_STREAM << 64 | seed % 2**64, counter=position << 64)
        np.random.Generator(bits).random(out=row)
    method, order, brightness, saturation, hue, contrast = np.moveaxis(drawn[..., :6], -1, 0)
    return AugmentParameters(
        box=torch.from_numpy(_draw_boxes(drawn[..., 6:8], drawn[..., 8:], height, width)),
        method=torch.from_numpy((method * 4).astype(np.int64)),
        order=torch.from_numpy((order * 4).astype(np.int64)),
        brightness=_between(brightness, -MAX_BRIGHTNESS_DELTA, MAX_BRIGHTNESS_DELTA),
        saturation=_between(saturation, *SATURATION_RANGE),
        hue=_between(hue, -MAX_HUE_DELTA, MAX_HUE_DELTA),
        contrast=_between(contrast, *CONTRAST_RANGE),
    )


def _between(uniform: np.ndarray, low: float, high: float) -> torch.Tensor:
    return torch.from_numpy((low + uniform * (high - low)).astype(np.float32))


def _draw_boxes(offsets: np.ndarray, attempts: np.ndarray, height: int, width: int) -> np.ndarray:
    """TensorFlow's sample_distorted_bounding_box for one box that is the whole view: (B, V, 4) int64 y, x, h, w.

    offsets: (B, V, 2), attempts: (B, V, 2 * attempts), both uniform in [0, 1). Where no attempt fits (usual for views
    that are far from square) the whole view is kept. Covering 0.8 of the view is the same as having 0.8 of its area.
    """
    box_height = np.full(offsets.shape[:-1], height)
    box_width = np.full(offsets.shape[:-1], width)
    pending = np.ones(box_height.shape, dtype=bool)
    for attempt in range(MAX_CROP_ATTEMPTS):
        aspect, fraction = attempts[..., 2 * attempt], attempts[..., 2 * attempt + 1]
        tried_height, tried_width, fits = _try_crop(aspect, fraction, height, width)
        chosen = pending & fits
        box_height[chosen], box_width[chosen] = tried_height[chosen], tried_width[chosen]
        pending &= ~fits
        if not pending.any():
            break
    # Uniform in [0, room): the last possible offset never occurs, as in TensorFlow.
    y = (offsets[..., 0] * (height - box_height)).astype(np.int64)
    x = (offsets[..., 1] * (width - box_width)).astype(np.int64)
    return np.stack([y, x, box_height, box_width], axis=-1).astype(np.int64)


def _try_crop(aspect: np.ndarray, fraction: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """One attempt: an aspect ratio, then a height between those of the smallest and the largest area."""
    aspect = ASPECT_RANGE[0] + aspect * (ASPECT_RANGE[1] - ASPECT_RANGE[0])
    min_area, max_area = (share * width * height for share in AREA_RANGE)
    largest = np.rint(np.sqrt(max_area / aspect))
    largest = np.where(np.rint(largest * aspect) > width, np.floor((width + 0.5 - 1e-7) / aspect), largest)
    largest = np.minimum(largest, height)
    smallest = np.minimum(np.rint(np.sqrt(min_area / aspect)), largest)
    tried_height = smallest + np.floor(fraction * (largest - smallest + 1))
    # A rounding error must not throw the attempt away: one pixel more, or less, is tried first.
    tried_height += tried_height * np.rint(tried_height * aspect) < min_area
    tried_height -= tried_height * np.rint(tried_height * aspect) > max_area
    tried_width = np.rint(tried_height * aspect)
    area = tried_height * tried_width
    fits = (area >= min_area) & (area <= max_area) & (tried_width <= width) & (tried_height <= height)
    return tried_height.astype(np.int64), tried_width.astype(np.int64), fits


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of one training, for whoever carries it out."""

    seed: int
    num_views: int
    view_size: tuple[int, int]
    """(h, w), pixels, after the central crop."""
    crop: Optional[tuple[int, int]] = None
    """(width, height) of the central crop over all views."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(V, 3, h, w)."""
        return (self.num_views, 3, *self.view_size)

    def draw(self, positions: torch.Tensor) -> AugmentParameters:
        """What is drawn for the samples at these positions, (B,) int64."""
        return draw_parameters(self.seed, positions, self.num_views, *self.view_size)

    def __call__(
        self, images: torch.Tensor, positions: torch.Tensor, out: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """On the CPU: uint8 (B, H, W, 3), (B,) -> float32 (B, V, 3, h, w) in [0, 1], at the beginning of `out`."""
        views = split_views(images, self.num_views, self.crop, scale=False)
        return augment(views, self.draw(positions), out=None if out is None else out[: len(images)])


@torch.no_grad()
def augment(
    views: torch.Tensor,
    parameters: AugmentParameters,
    distort: Optional[Callable[..., torch.Tensor]] = None,
    out: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Crop, resize, distort and clip: (B, V, 3, h, w) float32 in [0, 1] -> the same shape, in [0, 1].

    `parameters` are on the device of `views`. On the CPU the views may also be uint8, not scaled yet, and the work is
    done in small pieces that stay in the cache, sorted by colour order so that few passes are wasted; elsewhere in one
    piece, with shapes that are the same in every call and without waiting for the device. Call it outside autocast:
    half precision would show in the matrix products.
    distort: a compiled distort_color, for elsewhere. out: on the CPU, contiguous memory of the result.
    """
    drawn = [getattr(parameters, field.name).flatten(0, 1) for field in fields(parameters)]
    if views.device.type != "cpu":
        box, method, *colour = drawn
        images = views.flatten(0, 1).contiguous()  # (N, 3, h, w)
        return (distort or distort_color)(crop_and_resize(images, box, method), *colour).clamp_(0, 1).view_as(views)
    box, method, order = drawn[:3]
    rows = _taps(box[:, 0], box[:, 2], method, views.shape[3])
    columns = _taps(box[:, 1], box[:, 3], method, views.shape[4])
    result = torch.empty(views.shape) if out is None else out
    flat = result.view(len(box), *views.shape[2:])
    for piece in order.argsort(stable=True).split(_VIEWS_PER_PIECE):
        taps = [tuple(values[piece] for values in axis) for axis in (rows, columns)]
        resized = _crop_and_resize_by_taps(_take_transposed(views, piece), *taps)  # (n, 3, h, w)
        distorted = distort_color(resized, *(values[piece] for values in drawn[2:]))
        for place, view in zip(piece.tolist(), distorted):
            torch.clamp(view, 0, 1, out=flat[place])
    return result


def _take_transposed(views: torch.Tensor, piece: torch.Tensor) -> torch.Tensor:
    """The views `piece` of (B, V, 3, h, w), uint8 or float32: (n, 3, w, h) float32 in [0, 1]."""
    channels, height, width = views.shape[2:]
    taken = torch.empty((len(piece), channels, width, height))
    for target, place in zip(taken, piece.tolist()):
        target.copy_(views[place // views.shape[1], place % views.shape[1]].transpose(1, 2))
    return taken if views.is_floating_point() else taken.mul_(_SCALE)


def crop_and_resize(images: torch.Tensor, box: torch.Tensor, method: torch.Tensor) -> torch.Tensor:
    """Resize a crop of each view back to the size of the view as TensorFlow 1 does: (N, 3, h, w) -> (N, 3, h, w).

    Source = destination * crop / view, without half-pixel centres; edges clamp inside the crop; the result is not
    clamped. box: (N, 4) int64 y, x, height, width. method: (N,) int64. All four methods are separable: one small
    matrix for the rows and one for the columns of each view, the form that accelerators like.
    """
    height, width = images.shape[2:]
    rows = _matrix(*_taps(box[:, 0], box[:, 2], method, height))  # (N, h, h)
    columns = _matrix(*_taps(box[:, 1], box[:, 3], method, width))  # (N, w, w)
    return rows[:, None] @ (images @ columns[:, None].transpose(2, 3))


def _crop_and_resize_by_taps(
    transposed: torch.Tensor, rows: tuple[torch.Tensor, ...], columns: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """crop_and_resize of views (n, 3, w, h) for the CPU: (n, 3, h, w).

    Of a matrix's row only four entries are not zero, so whole rows are added with weights. 128 views of 150 x 150 on
    one core, November 2026: 20 ms against 140 ms for the matrix products. rows, columns: the taps of the views.
    """
    by_columns = _weigh_rows(transposed, *columns)  # (n, 3, w, h)
    return _weigh_rows(by_columns.transpose(2, 3).contiguous(), *rows)


def _weigh_rows(images: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """result[i, c, y] = sum over taps t of weight[i, y, t] * images[i, c, index[i, y, t]]: (n, 3, h, w)."""
    count, channels, num_rows, row_length = images.shape
    plane = torch.arange(count * channels).view(count, channels)
    flat_index = plane[:, :, None, None] * num_rows + index[:, None]  # (n, 3, h, 4)
    flat_weight = weight[:, None].expand(flat_index.shape)
    bags = F.embedding_bag(
        flat_index.view(-1, index.shape[-1]),
        images.view(-1, row_length),
        mode="sum",
        per_sample_weights=flat_weight.reshape(-1, index.shape[-1]),
    )
    return bags.view(count, channels, -1, row_length)


def _taps(start: torch.Tensor, size: torch.Tensor, method: torch.Tensor, length: int) -> tuple[torch.Tensor, ...]:
    """Which pixels of an axis make each of the `length` output pixels: index (N, length, 4) int64, weight float32.

    start, size: (N,) int64, the crop along this axis; size <= length (it only ever enlarges, so area has two taps).
    """
    scale = (size.to(torch.float32) / length)[:, None]  # (N, 1)
    destination = torch.arange(length, dtype=torch.float32, device=size.device)
    source = destination * scale  # (N, length), rounded to float32 as in TensorFlow: nearest depends on it
    below = source.floor()
    fraction = source - below
    method = method[:, None]
    end = (destination + 1) * scale  # of the stretch [source, end) that area averages over
    upper = fraction * (method == BILINEAR) + (end - (below + 1)).clamp_(min=0) / scale * (method == AREA)
    lower = torch.where(method == AREA, torch.minimum(1 - fraction, end - source) / scale, 1 - upper)
    linear = torch.stack([torch.zeros_like(upper), lower, upper, torch.zeros_like(upper)], dim=-1)
    # TensorFlow looks the cubic's weights up in a table of 1024 fractions.
    near = (fraction * _BICUBIC_TABLE_SIZE).round_() / _BICUBIC_TABLE_SIZE
    distance = torch.stack([1 + near, near, 1 - near, 2 - near], dim=-1)  # (N, length, 4)
    weight = torch.where((method == BICUBIC)[..., None], _cubic(distance), linear)
    offsets = torch.arange(-1, 3, device=size.device)
    index = (below.to(torch.int64)[..., None] + offsets).clamp_(min=0)
    index = torch.minimum(index, (size - 1)[:, None, None]) + start[:, None, None]
    return index, weight


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """Keys' cubic convolution with a = -0.75 at distances in [0, 2]: the last axis is outer, inner, inner, outer."""
    a = _BICUBIC_A
    outer, inner = distance[..., 0::3], distance[..., 1:3]
    outer = ((a * outer - 5 * a) * outer + 8 * a) * outer - 4 * a
    inner = ((a + 2) * inner - (a + 3)) * inner * inner + 1
    return torch.cat([outer[..., :1], inner, outer[..., 1:]], dim=-1)


def _matrix(index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Taps (N, n, 4) as matrices (N, n, n), by comparison: adding by index is not deterministic on every device."""
    columns = torch.arange(index.shape[1], device=index.device)
    return sum(weight[..., t, None] * (index[..., t, None] == columns) for t in range(index.shape[-1]))
