"""The colour operations of the training augmentation: brightness, saturation, hue and contrast, as TensorFlow has them.

N views in one batch, h w height and width of a view.
"""

from __future__ import annotations

import torch


def distort_color(
    images: torch.Tensor,
    order: torch.Tensor,
    brightness: torch.Tensor,
    saturation: torch.Tensor,
    hue: torch.Tensor,
    contrast: torch.Tensor,
) -> torch.Tensor:
    """The four colour operations in the order of each view, not clipped: (N, 3, h, w) -> (N, 3, h, w).

    Orders: 0 brightness, saturation, hue, contrast; 1 saturation, brightness, contrast, hue; 2 contrast, hue,
    brightness, saturation; 3 hue, saturation, contrast, brightness. Parameters: (N,).

    Neighbours of one kind commute (brightness with contrast, which keeps the mean; hue with saturation, which keep the
    maximum), so every order is two rounds of (brightness and contrast), then (hue and saturation). The orders differ
    only in the round where an operation has its place.
    """
    comes_first = {"brightness": order == 0, "saturation": order != 2, "hue": order != 1, "contrast": order == 2}
    for is_first_round in (True, False):
        here = {name: first if is_first_round else ~first for name, first in comes_first.items()}
        if _maybe_any(here["brightness"] | here["contrast"]):
            delta = brightness * here["brightness"]
            images = _adjust_affine(images, torch.where(here["contrast"], contrast, 1.0), delta)
        factor = torch.where(here["saturation"], saturation, 1.0)
        if _maybe_any(here["hue"]):
            images = _adjust_hue_and_saturation(images, hue * here["hue"], factor, here["saturation"])
        elif _maybe_any(here["saturation"]):
            images = _adjust_saturation(images, factor, here["saturation"])
    return images


def _maybe_any(condition: torch.Tensor) -> bool:
    """Whether a pass has work to do. Only on the CPU can this be asked without waiting; elsewhere every pass runs."""
    return condition.device.type != "cpu" or bool(condition.any())


def adjust_brightness(images: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """images + delta, not clamped. images (N, 3, h, w), delta (N,)."""
    return images + _per_view(delta)


def adjust_contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """(images - mean) * factor + mean with the mean of each channel of the view. (N, 3, h, w), factor (N,)."""
    return _adjust_affine(images, factor, torch.zeros_like(factor))


def adjust_saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply the saturation of HSV and clamp it to [0, 1]; hue and value stay. (N, 3, h, w), factor (N,) >= 0."""
    return _adjust_saturation(images, factor, torch.ones_like(factor, dtype=torch.bool))


def adjust_hue(images: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Turn the hue of HSV by delta (in turns); maximum and minimum of each pixel stay. (N, 3, h, w), delta (N,)."""
    return _adjust_hue_and_saturation(images, delta, torch.ones_like(delta), torch.zeros_like(delta, dtype=torch.bool))


def _per_view(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def _adjust_affine(images: torch.Tensor, factor: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Contrast and brightness at once: (images - mean) * factor + mean + delta."""
    if not _maybe_any(factor != 1):
        return images + _per_view(delta)
    mean = images.mean((2, 3), keepdim=True)  # (N, 3, 1, 1)
    return (images * _per_view(factor)).add_(mean * _per_view(1 - factor) + _per_view(delta))


def _scale_chroma(
    chroma: torch.Tensor, maximum: torch.Tensor, factor: torch.Tensor, is_saturating: torch.Tensor
) -> torch.Tensor:
    """Chroma (N, h, w) times factor, where is_saturating within the limits of HSV, else as it is (factor is 1).

    Saturation is chroma / maximum, so clamping it to [0, 1] means clamping chroma to [0, maximum].
    """
    if not _maybe_any(is_saturating):
        return chroma
    limit = torch.maximum(maximum, chroma * ~is_saturating[:, None, None])
    return torch.minimum(chroma * factor[:, None, None], limit)


def _adjust_saturation(images: torch.Tensor, factor: torch.Tensor, is_saturating: torch.Tensor) -> torch.Tensor:
    """adjust_saturation of the views where is_saturating; the others keep every value (and have factor 1)."""
    red, green, blue = images.unbind(1)  # (N, h, w)
    maximum, minimum = torch.maximum(red, green).maximum(blue), torch.minimum(red, green).minimum(blue)
    chroma = maximum - minimum
    ratio = _scale_chroma(chroma, maximum, factor, is_saturating) / chroma.clamp(min=torch.finfo(chroma.dtype).tiny)
    return torch.lerp(maximum[:, None], images, ratio[:, None])


def _adjust_hue_and_saturation(
    images: torch.Tensor, turns: torch.Tensor, factor: torch.Tensor, is_saturating: torch.Tensor
) -> torch.Tensor:
    """Hue and saturation at once, without branches. images (N, 3, h, w); turns, factor float and the flag bool, (N,).

    Angles are in sixths of a turn, red at 0, in [-3, 3]. With normalised channels R, G, B (largest 1, smallest 0) the
    size of the angle is (1 - R) + |G - B| + 2 min(G, B) and its sign that of G - B: check it sector by sector. Back
    from angle a: each channel lies below the maximum by chroma * clamp(2 - distance, 0, 1), distance being that of a
    from the colour opposite to the channel: cyan at 3, magenta at -1, yellow at 1. In the code angles are in turns.
    """
    # Two buffers, and otherwise in place: on the CPU a pass that allocates its result takes half as long again.
    red, green, blue = images.unbind(1)  # (N, h, w)
    maximum, minimum = torch.maximum(red, green), torch.minimum(green, blue)
    torch.maximum(maximum, blue, out=maximum)
    difference = green - blue
    angle, buffer = maximum - red, difference.abs()
    angle.add_(buffer).add_(minimum, alpha=2)
    torch.minimum(minimum, red, out=minimum)
    angle.sub_(minimum, alpha=2).copysign_(difference)
    chroma = torch.sub(maximum, minimum, out=difference)
    torch.clamp(chroma, min=torch.finfo(chroma.dtype).tiny, out=buffer)
    angle.div_(buffer).mul_(1 / 6).add_(turns[:, None, None])
    angle.sub_(torch.round(angle, out=buffer))
    chroma = _scale_chroma(chroma, maximum, factor, is_saturating)
    result = images.new_empty(3, *images.shape[:1], *images.shape[2:])  # whole channels, as a compiler wants them
    torch.abs(angle, out=buffer).clamp_(1 / 6, 2 / 6).mul_(chroma)
    torch.add(maximum, chroma, out=result[0]).sub_(buffer, alpha=6)
    base = maximum.sub_(chroma, alpha=2)
    for channel, opposite in ((1, -1 / 6), (2, 1 / 6)):
        torch.sub(angle, opposite, out=buffer).abs_().clamp_(1 / 6, 2 / 6).mul_(chroma)
        torch.add(base, buffer, alpha=6, out=result[channel])
    return result.transpose(0, 1)
