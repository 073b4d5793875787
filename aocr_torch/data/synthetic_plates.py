"""The plates of synthetic signs, seen from the front: enamel, paint, stone, wood, with all that stands on them.

All sizes on a plate are in units of the size of the name's letters (1 em).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from aocr_torch.data.synthetic_arms import draw_arms
from aocr_torch.data.synthetic_effects import PLATE_EFFECTS, SignEffects
from aocr_torch.data.synthetic_fonts import OTHER_SANS, SERIF, SOURCE_SANS, Face
from aocr_torch.data.synthetic_layout import draw_text, lay_out
from aocr_torch.data.synthetic_noise import Colour, between, pick, shade
from aocr_torch.data.synthetic_text import SignText
from aocr_torch.data.synthetic_textures import piece
from aocr_torch.data.synthetic_wear import chip, rust, wear

_WHITE, _BLACK = (240, 240, 238), (24, 24, 28)


@dataclass(frozen=True)
class PlateLook:
    """What is decided about a plate before it is drawn."""

    kind: str
    """One of PLATE_EFFECTS, or "blue_plates"."""
    face: Face
    """Its letters."""
    has_fixings: bool
    """Whether it has screws."""
    is_chipped: bool
    """Whether enamel has come off at its corners and screws."""
    is_worn: bool
    """Whether it is faded, scratched and dirty."""
    is_rusty: bool
    """Whether it has rust."""


@dataclass(frozen=True)
class _Colours:
    ground: Colour
    ink: Colour
    border: Colour
    surface: str = ""
    """Texture of the ground, for stone and wood."""


def decide_look(rng: np.random.Generator, effects: SignEffects) -> PlateLook:
    """The kind of plate, its letters, and what has become of it."""
    which, fixings, chipped, worn, rusty, other_font, serif = rng.random(7).tolist()
    kind = "blue_plates"
    for name in PLATE_EFFECTS:
        which -= getattr(effects, name)
        if which < 0:
            kind = name
            break
    faces = SOURCE_SANS
    if other_font < effects.other_fonts:
        faces = SERIF if serif < (0.75 if kind == "stone_plates" else 0.45) else OTHER_SANS
    shares = (effects.fixings, effects.chips, effects.wear, effects.rust)
    marks = (chance < share for chance, share in zip((fixings, chipped, worn, rusty), shares))
    return PlateLook(kind, pick(rng, faces), *marks)


def draw_plate(
    rng: np.random.Generator, text: SignText, look: PlateLook, height: int, width: int, effects: SignEffects
) -> tuple[Image.Image, float, float]:
    """The plate from the front, at about the resolution that a view of (height, width) pixels can show.

    Returns:
        (RGBX, X being its outline; its width over its height in the world: letters are condensed when it is projected;
        pixels of 1 em in the closest view, the mean of its width and its height).
    """
    layout = lay_out(rng, text, look.face, effects)
    narrowing = 1 - effects.condensed * rng.random()
    aspect = layout.width * narrowing / layout.height
    # The closest view shows nine tenths of these pixels.
    closest = min(height / layout.height, width / (layout.width * narrowing))
    em = max(8.0, closest)
    colours = _colours(rng, look.kind)
    plate, outline = _ground(rng, look.kind, colours, round(layout.width * em), round(layout.height * em), em)
    draw = ImageDraw.Draw(plate)
    if look.kind == "stone_plates":  # engraved: a light edge below the letters
        draw_text(draw, layout, em, shade(rng, (226, 220, 206), 8), offset=1)
    draw_text(draw, layout, em, colours.ink)
    if text.has_arms:
        draw_arms(rng, draw, em, is_small=bool(text.header))
    if look.has_fixings:
        _draw_screws(rng, draw, plate.size, em)
    if look.is_chipped:
        chip(rng, plate)
    if look.is_worn:
        wear(rng, plate, colours.ground)
    if look.is_rusty:
        rust(rng, plate)
    return Image.merge("RGBX", (*plate.split(), outline)), aspect, closest * (1 + narrowing) / 2


def _colours(rng: np.random.Generator, kind: str) -> _Colours:
    white = shade(rng, _WHITE, 14)
    if kind == "white_plates":
        ground = shade(rng, pick(rng, (_WHITE, _WHITE, (232, 224, 200), (214, 214, 210))), 12)
        ink = shade(rng, pick(rng, ((24, 44, 110), _BLACK, _BLACK, (20, 70, 48), (150, 28, 32))), 12)
        return _Colours(ground, ink, pick(rng, (ink, ink, (36, 60, 130), (40, 110, 60))))
    if kind == "green_plates":
        return _Colours(shade(rng, pick(rng, ((20, 76, 50), (30, 100, 64), (14, 54, 40))), 12), white, white)
    if kind == "stone_plates":
        ground = shade(rng, pick(rng, ((206, 198, 178), (186, 182, 172), (222, 216, 202))), 10)
        ink = shade(rng, pick(rng, ((60, 52, 44), (34, 32, 32), (120, 36, 30), (96, 82, 60))), 10)
        return _Colours(ground, ink, ink, "plaster")
    if kind == "wood_plates":
        is_light = rng.random() < 0.5
        ink = white if is_light else shade(rng, (36, 26, 18), 10)
        return _Colours((110, 80, 54) if is_light else (176, 142, 100), ink, ink, "planks")
    if kind == "regional_plates":
        ground, ink, border = pick(
            rng,
            (
                *(((92, 58, 40), (236, 226, 204), (236, 226, 204)), ((206, 160, 74), (40, 32, 28), (96, 60, 36))),
                *(((60, 58, 60), (232, 230, 224), (200, 196, 188)), ((238, 232, 214), (28, 52, 120), (210, 160, 50))),
                *(((240, 238, 232), (150, 24, 32), (150, 24, 32)), ((130, 30, 36), (238, 234, 226), (238, 234, 226))),
                *(((236, 226, 190), (60, 78, 44), (60, 78, 44)), ((150, 190, 210), (24, 40, 84), (240, 240, 236))),
            ),
        )
        return _Colours(shade(rng, ground, 10), shade(rng, ink, 10), shade(rng, border, 10))
    red = int(rng.integers(4, 36))
    blue = (red, red + int(rng.integers(2, 48)), int(rng.integers(50, 150)))
    if rng.random() < 0.25:  # nearly black
        blue = (red, red + int(rng.integers(8)), red + int(rng.integers(6, 34)))
    return _Colours(blue, white, (22, 92, 56) if kind == "green_borders" else shade(rng, _WHITE, 20))


def _ground(
    rng: np.random.Generator, kind: str, colours: _Colours, width: int, height: int, em: float
) -> tuple[Image.Image, Image.Image]:
    """The empty plate as RGB, and its outline as L, with corners cut off as its border is."""
    outline = Image.new("L", (width, height), 255)
    corner = round(em * between(rng, 0.1, 0.36))
    style = rng.random()
    if (style < 0.4 or rng.random() < 0.4) and not colours.surface:
        outline = Image.new("L", (width, height), 0)
        ImageDraw.Draw(outline).rounded_rectangle((0, 0, width - 1, height - 1), corner + em * 0.1, fill=255)
    if colours.surface:
        plate = Image.blend(
            piece(rng, colours.surface, (width, height), 0.8), Image.new("RGB", (width, height), colours.ground), 0.55
        )
    else:
        plate = Image.new("RGB", (width, height), colours.ground)
    draw = ImageDraw.Draw(plate)
    if kind == "green_borders":
        thickness = max(2, round(em * between(rng, 0.2, 0.34)))
        draw.rectangle((0, 0, width - 1, height - 1), outline=shade(rng, colours.border, 14), width=thickness)
        edge = (thickness, thickness, width - 1 - thickness, height - 1 - thickness)
        draw.rectangle(edge, outline=pick(rng, ((12, 40, 30), (200, 206, 200))), width=max(1, round(em * 0.04)))
    elif not colours.surface or rng.random() < 0.3:
        _draw_border(rng, draw, (width, height), colours, em, corner, style)
    if rng.random() < 0.25:  # a frame of metal
        metal = shade(rng, (150, 152, 156), 40)
        draw.rectangle((0, 0, width - 1, height - 1), outline=metal, width=max(1, round(em * 0.07)))
    return plate, outline


def _draw_border(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    colours: _Colours,
    em: float,
    corner: int,
    style: float,
) -> None:
    """A line along the edge whose corners are round, cut in or square; or none."""
    width, height = size
    rim, line = round(em * between(rng, 0.0, 0.2)), max(1, round(em * between(rng, 0.05, 0.1)))
    border = (rim, rim, width - 1 - rim, height - 1 - rim)
    if style < 0.4:
        draw.rounded_rectangle(border, corner, outline=colours.border, width=line)
    elif style < 0.92:
        draw.rectangle(border, outline=colours.border, width=line)
        if style < 0.75:
            for x, y in itertools.product(border[0::2], border[1::2]):
                box = (x - corner, y - corner, x + corner, y + corner)
                draw.ellipse(box, fill=colours.ground, outline=colours.border, width=line)
            if rim:
                draw.rectangle((0, 0, width - 1, height - 1), outline=colours.ground, width=rim)


def _draw_screws(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], em: float) -> None:
    radius, inset = max(1.0, em * 0.05), em * between(rng, 0.14, 0.24)
    tone = shade(rng, (130, 128, 124), 60)
    places = itertools.product((inset, size[0] - inset), (inset, size[1] - inset))
    if rng.random() < 0.4:
        places = itertools.product((size[0] / 2,), (inset / 2 + radius, size[1] - inset / 2 - radius))
    for x, y in places:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tone)
