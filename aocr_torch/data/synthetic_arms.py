"""Coats of arms and towns' signs on the plates of synthetic signs."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from aocr_torch.data.synthetic_noise import between, pick, shade

_WHITE, _BLACK = (240, 240, 238), (24, 24, 28)
_ARMS = ((176, 36, 40), (214, 170, 60), (30, 62, 130), (236, 236, 232), (30, 96, 60), (40, 40, 44))


def draw_arms(rng: np.random.Generator, draw: ImageDraw.ImageDraw, em: float, is_small: bool) -> None:
    """A coat of arms, or a town's sign, in the upper left corner."""
    width = em * (between(rng, 0.35, 0.5) if is_small else between(rng, 0.6, 0.85))
    height = width * between(rng, 1.0, 1.3)
    left, top = em * between(rng, 0.2, 0.35), em * between(rng, 0.15, 0.3)
    right, bottom, middle = left + width, top + height, left + width / 2
    field, charge = shade(rng, pick(rng, _ARMS), 16), shade(rng, pick(rng, _ARMS), 16)
    shape, pattern = rng.random(), int(rng.integers(5))
    shield = ((left, top), (right, top), (right, top + 0.6 * height), (middle, bottom), (left, top + 0.6 * height))
    if shape < 0.65:
        draw.polygon(shield, fill=field, outline=pick(rng, (_WHITE, _BLACK, field)))
    elif shape < 0.85:
        draw.rectangle((left, top, right, bottom), fill=field)
    else:
        draw.ellipse((left, top, right, bottom), fill=field)
    inner_bottom = top + 0.58 * height
    if pattern == 0:  # stripes
        for number in range(1, 4, 2):
            x = left + width * number / 5
            draw.rectangle((x, top + 1, x + width / 6, inner_bottom), fill=charge)
    elif pattern == 1:
        draw.rectangle((left + 1, top + 0.25 * height, right - 1, top + 0.42 * height), fill=charge)
    elif pattern == 2:  # a tower
        for number in range(3):
            x = left + width * (0.2 + 0.22 * number)
            draw.rectangle((x, top + 0.2 * height, x + width * 0.13, inner_bottom), fill=charge)
        draw.rectangle((left + 0.2 * width, top + 0.4 * height, left + 0.77 * width, inner_bottom), fill=charge)
    elif pattern == 3:
        radius = 0.22 * width
        draw.ellipse(
            (middle - radius, top + 0.25 * height, middle + radius, top + 0.25 * height + 2 * radius), fill=charge
        )
    else:
        draw.rectangle((left + 1, top + 1, middle, inner_bottom), fill=charge)
