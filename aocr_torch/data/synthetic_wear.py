"""What the years do to the plates of synthetic signs."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from aocr_torch.data.synthetic_noise import Colour, between, blotches, pick, shade


def wear(rng: np.random.Generator, plate: Image.Image, ground: Colour) -> None:
    """Fades and scratches an RGB plate whose enamel or paint is `ground`, and maybe makes it dirty."""
    width, height = plate.size
    faded = shade(rng, pick(rng, ((176, 176, 170), (210, 206, 196), (120, 116, 106), ground)), 14)
    places = blotches(rng, int(rng.integers(2, 7)), plate.size, between(rng, 0.2, 0.5), between(rng, 0.2, 0.7))
    plate.paste(faded, mask=places)
    if rng.random() < 0.5:
        dirt = blotches(rng, int(rng.integers(10, 40)), plate.size, between(rng, 0.05, 0.3), between(rng, 0.3, 0.9))
        plate.paste(shade(rng, (70, 64, 54), 20), mask=dirt)
    draw = ImageDraw.Draw(plate)
    for _ in range(int(rng.integers(8))):
        x, y = between(rng, 0, width), between(rng, 0, height)
        tone = shade(rng, pick(rng, ((190, 188, 180), (60, 56, 52))), 20)
        draw.line((x, y, x + between(rng, -0.3, 0.3) * width, y + between(rng, -0.4, 0.4) * height), fill=tone)


def chip(rng: np.random.Generator, plate: Image.Image) -> None:
    """Takes enamel off the corners and the edges of an RGB plate: dark or rusty iron, or white ground coat."""
    width, height = plate.size
    draw = ImageDraw.Draw(plate)
    tone = shade(rng, pick(rng, ((40, 34, 32), (96, 58, 36), (196, 192, 184))), 16)
    inset = height * between(rng, 0, 0.09)
    for _ in range(int(rng.integers(2, 9))):
        x, y = pick(rng, (inset, width - inset)), pick(rng, (inset, height - inset))
        if rng.random() < 0.3:
            x = between(rng, 0, width)
        radius = height * between(rng, 0.01, 0.05)
        points = [(x + radius * between(rng, -1, 1), y + radius * between(rng, -1, 1)) for _ in range(6)]
        draw.polygon(points, fill=tone)
        draw.ellipse((x - radius / 2, y - radius / 2, x + radius / 2, y + radius / 2), fill=tone)


def rust(rng: np.random.Generator, plate: Image.Image) -> None:
    """Puts spots of rust on the rim of an RGB plate, with streaks below them."""
    width, height = plate.size
    places = Image.new("L", plate.size, 0)
    draw = ImageDraw.Draw(places)
    for _ in range(int(rng.integers(2, 8))):
        x, y = between(rng, 0, width), between(rng, 0, height)
        if rng.random() < 0.6:
            x = pick(rng, (0.05, 0.95)) * width + between(rng, -0.05, 0.05) * width
        else:
            y = pick(rng, (0.03, 0.97)) * height
        radius = height * between(rng, 0.015, 0.07)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        draw.rectangle((x - radius / 2, y, x + radius / 2, y + height * between(rng, 0, 0.3)), fill=110)
    spots = blotches(rng, 30, plate.size, 0.8, 1.0)
    mask = Image.fromarray(np.minimum(np.asarray(places), np.asarray(spots)))
    plate.paste(shade(rng, (112, 60, 28), 18), mask=mask)
