"""Surfaces that synthetic signs hang on and are made of: walls, wood, leaves, grass, fences, sky, all drawn.

A surface is a function of its name and number alone, drawn when it is first asked for and kept: a sign takes a piece of
one, in another size.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from aocr_torch.data.synthetic_noise import Colour, between, coloured, pick, scaled_colour, shade, smooth_noise

SIZE = 400
"""Pixels of a surface, square."""
VARIANTS = 10
"""Surfaces of each kind."""


@cache
def surface(kind: str, variant: int) -> Image.Image:
    """RGB, SIZE x SIZE. `kind` is one of KINDS; `variant` counts from 0 to VARIANTS - 1."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((tuple(KINDS).index(kind), variant))))
    return KINDS[kind](rng)


def piece(rng: np.random.Generator, kind: str, size: tuple[int, int], share: float) -> Image.Image:
    """A piece of a surface as RGB of `size` (width, height): up to `share` (< 1) of the surface, maybe mirrored."""
    whole = surface(kind, int(rng.integers(VARIANTS)))
    width = share * between(rng, 0.6, 1) * min(SIZE, SIZE * size[0] / size[1])
    height = width * size[1] / size[0]
    left, top = between(rng, 0, SIZE - width), between(rng, 0, SIZE - height)
    part = whole.resize(size, Image.Resampling.BOX, (left, top, left + width, top + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def _grain(rng: np.random.Generator, picture: Image.Image, strength: float) -> Image.Image:
    """The picture with fine and coarse spots that make it up to `strength` darker."""
    spots = Image.blend(smooth_noise(rng, 150, picture.size), smooth_noise(rng, 8, picture.size), 0.4)
    low = round(255 * (1 - strength))
    gain = spots.point([low + (255 - low) * value // 255 for value in range(256)])
    return Image.fromarray((np.asarray(picture).astype(np.uint16) * np.asarray(gain)[..., None] >> 8).astype(np.uint8))


def _plaster(rng: np.random.Generator) -> Image.Image:
    colours = ((222, 206, 180), (186, 172, 148), (206, 190, 170), (176, 178, 176), (228, 224, 214), (200, 160, 128))
    wall = Image.new("RGB", (SIZE, SIZE), shade(rng, pick(rng, colours), 14))
    draw = ImageDraw.Draw(wall)
    for _ in range(int(rng.integers(4))):  # cracks
        x, y = between(rng, 0, SIZE), between(rng, 0, SIZE)
        for _ in range(30):
            ahead = x + between(rng, -8, 10), y + between(rng, -2, 12)
            draw.line((x, y, *ahead), fill=(110, 100, 88))
            x, y = ahead
    return _grain(rng, wall, 0.3)


def _blocks(
    rng: np.random.Generator, colours: tuple[Colour, ...], joint: Colour, height: float, length: float, spread: int
) -> Image.Image:
    """Courses of blocks, each moved against the one above."""
    wall = Image.new("RGB", (SIZE, SIZE), joint)
    draw = ImageDraw.Draw(wall)
    gap = max(1.5, height * between(rng, 0.04, 0.12))
    y, base = 0.0, pick(rng, colours)
    while y < SIZE:
        x = -length * float(rng.random())
        while x < SIZE:
            width = length * between(rng, 0.85, 1.15)
            draw.rectangle((x, y, x + width - gap, y + height - gap), fill=shade(rng, base, spread))
            x += width
        y += height
    return _grain(rng, wall, 0.35)


def _bricks(rng: np.random.Generator) -> Image.Image:
    height = between(rng, 11, 20)
    reds = ((150, 84, 62), (172, 106, 80), (128, 74, 60), (190, 140, 108))
    joint = pick(rng, ((188, 178, 164), (140, 130, 120), (210, 204, 196)))
    return _blocks(rng, reds, joint, height, 3 * height, 16)


def _stones(rng: np.random.Generator) -> Image.Image:
    height = between(rng, 34, 80)
    colours = ((204, 192, 168), (170, 164, 152), (214, 206, 190), (150, 140, 126))
    return _blocks(
        rng, colours, pick(rng, ((150, 142, 128), (222, 214, 200))), height, height * between(rng, 1.4, 2.4), 9
    )


def _leaves(rng: np.random.Generator) -> Image.Image:
    """Many leaves, the later the lighter, over darkness; one in three hedges has gaps of sky."""
    picture = coloured(smooth_noise(rng, 12, (SIZE, SIZE)), (12, 18, 10), (52, 66, 34))
    draw = ImageDraw.Draw(picture)
    tone = pick(rng, ((74, 104, 42), (96, 116, 56), (60, 92, 52), (118, 122, 62), (88, 100, 60)))
    length = between(rng, 5, 13)
    for number in range(round(110_000 / length**2)):
        x, y = between(rng, -9, SIZE), between(rng, -9, SIZE)
        angle, size = between(rng, 0, math.pi), length * between(rng, 0.5, 1.3)
        dx, dy = size * math.cos(angle), size * math.sin(angle)
        light = between(rng, 0.3, 0.9) + 0.7 * number * length**2 / 110_000 * float(rng.random())
        points = ((x - dx, y - dy), (x - dy / 3, y + dx / 3), (x + dx, y + dy), (x + dy / 3, y - dx / 3))
        draw.polygon(points, fill=scaled_colour(shade(rng, tone, 12), light))
    if rng.random() < 0.35:
        for _ in range(40):
            x, y, radius = between(rng, 0, SIZE), between(rng, 0, SIZE), between(rng, 1, 6)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shade(rng, (206, 218, 226), 20))
    return picture


def _grass(rng: np.random.Generator) -> Image.Image:
    tone = pick(rng, ((150, 128, 78), (108, 116, 60), (132, 116, 84), (90, 104, 50)))
    noise = Image.blend(smooth_noise(rng, 90, (SIZE, SIZE)), smooth_noise(rng, 10, (SIZE, SIZE)), 0.5)
    picture = coloured(noise, scaled_colour(tone, 0.45), scaled_colour(tone, 1.25))
    draw = ImageDraw.Draw(picture)
    for _ in range(500):
        x, y = between(rng, 0, SIZE), between(rng, 0, SIZE)
        end = x + between(rng, -5, 5), y - between(rng, 4, 22)
        draw.line((x, y, *end), fill=scaled_colour(shade(rng, tone, 20), between(rng, 0.5, 1.3)))
    return picture


def _planks(rng: np.random.Generator) -> Image.Image:
    tone = pick(rng, ((140, 104, 68), (112, 84, 60), (160, 128, 92), (96, 92, 84), (122, 60, 40)))
    noise = smooth_noise(rng, 220, (SIZE, 14)).resize((SIZE, SIZE))  # grain runs along the planks
    noise = Image.blend(noise, smooth_noise(rng, 6, (SIZE, SIZE)), 0.4)
    picture = coloured(noise, scaled_colour(tone, 0.6), scaled_colour(tone, 1.2))
    draw = ImageDraw.Draw(picture)
    width = between(rng, 50, 130)
    for x in np.arange(between(rng, 0, width), SIZE, width):
        draw.line((x, 0, x, SIZE), fill=scaled_colour(tone, 0.3), width=2)
    return picture


def _slats(rng: np.random.Generator) -> Image.Image:
    """Shutters, garage doors and corrugated iron."""
    tone = pick(rng, ((176, 182, 184), (224, 224, 220), (120, 138, 150), (108, 120, 96), (150, 100, 84), (80, 84, 88)))
    height = int(rng.integers(8, 28))
    ramp = np.interp(np.arange(SIZE) % height / height, (0, 0.15, 0.9, 1), (0.55, 1.05, 0.9, 0.6))
    rows = np.clip(ramp[:, None] * np.array(tone), 0, 255).astype(np.uint8)  # (SIZE, 3)
    picture = Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows[:, None], (SIZE, SIZE, 3))))
    return _grain(rng, picture, 0.2)


def _sky(rng: np.random.Generator) -> Image.Image:
    top, bottom = pick(
        rng, (((96, 138, 190), (188, 208, 226)), ((150, 160, 170), (214, 218, 220)), ((196, 204, 212), (236, 238, 238)))
    )
    rows = np.linspace(0, 255, SIZE).astype(np.uint8)
    gradient = coloured(Image.fromarray(np.repeat(rows[:, None], SIZE, axis=1)), top, bottom)
    clouds = smooth_noise(rng, 6, (SIZE, SIZE)).point([max(0, v - 110) for v in range(256)])
    gradient.paste((240, 242, 244), mask=clouds)
    return gradient


def _fence(rng: np.random.Generator) -> Image.Image:
    """Wire mesh, bars or boards before leaves, a wall or grass."""
    picture = pick(rng, (_leaves, _plaster, _grass))(rng)
    draw = ImageDraw.Draw(picture)
    tone = pick(rng, ((40, 60, 44), (24, 26, 28), (168, 170, 172), (226, 226, 224)))
    step, thickness = int(rng.integers(18, 40)), int(rng.integers(1, 4))
    if rng.random() < 0.5:
        for start in range(-SIZE, 2 * SIZE, step):
            draw.line((start, 0, start + SIZE, SIZE), fill=tone, width=thickness)
            draw.line((start, SIZE, start + SIZE, 0), fill=tone, width=thickness)
    else:
        for x in range(0, SIZE, step):
            draw.line((x, 0, x, SIZE), fill=tone, width=2 * thickness)
        for y in (0.06, 0.9):
            draw.line((0, y * SIZE, SIZE, y * SIZE), fill=tone, width=3 * thickness)
    return picture


def _far_street(rng: np.random.Generator) -> Image.Image:
    """Out of focus: fronts with windows, trees, cars."""
    picture = _plaster(rng)
    draw = ImageDraw.Draw(picture)
    for _ in range(14):
        x, y = between(rng, -40, SIZE), between(rng, -40, SIZE)
        box = (x, y, x + between(rng, 20, 110), y + between(rng, 20, 110))
        tone = pick(rng, ((52, 58, 64), (92, 96, 90), (160, 150, 138), (44, 62, 36), (206, 206, 202), (120, 60, 48)))
        draw.rectangle(box, fill=shade(rng, tone, 16))
    return picture.filter(ImageFilter.GaussianBlur(between(rng, 2, 6)))


KINDS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    **{"plaster": _plaster, "bricks": _bricks, "stones": _stones, "leaves": _leaves, "grass": _grass},
    **{"planks": _planks, "slats": _slats, "sky": _sky, "fence": _fence, "far_street": _far_street},
}
