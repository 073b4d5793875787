"""What is around a synthetic sign: the scene behind it, and what stands in front of it in one view."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from aocr_torch.data.synthetic_noise import between, blotches, coloured, pick, scaled_colour, shade, smooth_noise
from aocr_torch.data.synthetic_textures import piece

_ROOM = 1.35
"""A scene is so many times as large as a view."""

# Dark and light colour, contrast of fine over coarse structure (0 .. 1), number of straight lines at most.
_MOTTLED = (
    ((196, 178, 150), (222, 206, 180), 0.3, 3),  # plaster
    ((150, 155, 158), (186, 190, 190), 0.4, 5),  # concrete, shutters
    ((120, 82, 62), (176, 128, 98), 0.7, 4),  # brick
    ((20, 30, 16), (112, 138, 72), 0.9, 0),  # hedge
    ((16, 20, 14), (74, 92, 52), 0.8, 1),  # wood in shade
    ((82, 70, 40), (178, 152, 96), 0.7, 0),  # meadow
    ((92, 108, 128), (206, 216, 228), 0.2, 1),  # sky and street
)
_BEHIND = (
    *("plaster",) * 6,
    *("leaves",) * 4,
    *("stones", "far_street") * 2,
    *("bricks", "grass", "sky", "fence", "slats", "planks"),
)


def draw_scene(rng: np.random.Generator, height: int, width: int, has_scenery: bool) -> Image.Image:
    """What is behind the sign, _ROOM times as large as a view of (height, width) pixels, as RGB."""
    size = round(width * _ROOM), round(height * _ROOM)
    if not has_scenery:
        dark, light, contrast, most = pick(rng, _MOTTLED)
        mottle = smooth_noise(rng, 4, size)
        for cells, share in ((14, 0.5 * contrast), (48, 0.35 * contrast)):
            mottle = Image.blend(mottle, smooth_noise(rng, cells, size), share)
        scene = coloured(mottle, dark, light)
    else:
        kind = pick(rng, _BEHIND)
        scene, most, light = piece(rng, kind, size, 0.9), 3, shade(rng, (150, 146, 140), 40)
        if rng.random() < 0.35:
            _add_neighbour(rng, scene)
        if kind in ("leaves", "grass", "sky"):
            most = 1
    draw = ImageDraw.Draw(scene)
    for _ in range(int(rng.integers(most + 1))):  # edges of walls, pipes, wires
        tone, at = scaled_colour(light, between(rng, 0.5, 1.15)), between(rng, 0, 1)
        thickness = max(1, round(size[1] * between(rng, 0.01, 0.06)))
        ends = (
            (0, at * size[1], size[0], at * size[1]) if rng.random() < 0.5 else (at * size[0], 0, at * size[0], size[1])
        )
        draw.line(ends, fill=tone, width=thickness)
    return scene


def _add_neighbour(rng: np.random.Generator, scene: Image.Image) -> None:
    """Another surface at one side of the scene: the next house, a hedge above a wall, the sky."""
    width, height = scene.size
    side, share = int(rng.integers(4)), between(rng, 0.15, 0.5)
    size = (max(1, round(width * share)), height) if side < 2 else (width, max(1, round(height * share)))
    place = ((0, 0), (width - size[0], 0), (0, 0), (0, height - size[1]))[side]
    scene.paste(piece(rng, pick(rng, _BEHIND), size, 0.9), place)


def crop_scene(rng: np.random.Generator, scene: Image.Image, height: int, width: int) -> Image.Image:
    """The part of the scene that one view shows, as RGB of (height, width) pixels."""
    share = between(rng, 1 / _ROOM, 1)
    part = scene.width * share, scene.height * share
    left, top = between(rng, 0, scene.width - part[0]), between(rng, 0, scene.height - part[1])
    box = (left, top, left + part[0], top + part[1])
    return scene.resize((width, height), Image.Resampling.BOX, box)


def draw_leaves(rng: np.random.Generator, view: Image.Image, corners: np.ndarray) -> None:
    """Leaves in front of an edge of the plate, whose corners in the view are (4, 2) x and y in pixels."""
    draw = ImageDraw.Draw(view)
    extent = np.ptp(corners, axis=0)
    start, end = (int(rng.integers(4)),) * 2
    end = (start + 1) % 4
    tone = shade(rng, pick(rng, ((58, 88, 36), (84, 108, 52), (110, 112, 50), (44, 66, 34))), 14)
    reach = 0.26 * extent.min() * between(rng, 0.5, 1.3)
    for _ in range(int(rng.integers(10, 60))):
        along = float(rng.random())
        centre = corners[start] * along + corners[end] * (1 - along) if rng.random() < 0.5 else corners[start]
        x, y = (centre + rng.normal(0, reach, 2)).tolist()
        length, angle = view.height * between(rng, 0.015, 0.05), between(rng, 0, math.pi)
        dx, dy = length * math.cos(angle), length * math.sin(angle)
        points = ((x - dx, y - dy), (x - dy / 2, y + dx / 2), (x + dx, y + dy), (x + dy / 2, y - dx / 2))
        draw.polygon(points, fill=scaled_colour(tone, between(rng, 0.5, 1.5)))


def draw_pole(rng: np.random.Generator, view: Image.Image, corners: np.ndarray) -> None:
    """A pole, a wire or a branch in front of the plate."""
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    x, y = between(rng, left, right), between(rng, top, bottom)
    tone = shade(rng, pick(rng, ((60, 62, 60), (150, 152, 150), (40, 70, 50), (90, 74, 60))), 20)
    slant = view.width * between(rng, -0.15, 0.15)
    thickness = max(1, round(view.width * between(rng, 0.008, 0.06)))
    if rng.random() < 0.7:
        ends = (x - slant, 0, x + slant, view.height)
    else:
        ends, thickness = (0, y - slant, view.width, y + slant), max(1, thickness // 2)
    ImageDraw.Draw(view).line(ends, fill=tone, width=thickness)


def draw_shadow(rng: np.random.Generator, view: Image.Image) -> Image.Image:
    """The view with a shadow: with a straight edge, or of leaves."""
    width, height = view.size
    if rng.random() < 0.5:
        mask = blotches(rng, int(rng.integers(6, 24)), view.size, between(rng, 0.4, 0.9), between(rng, 0.5, 1))
    else:
        mask = Image.new("L", view.size, 0)
        x, other = (between(rng, -0.3, 1.3) * width for _ in range(2))
        far = width * 2 if rng.random() < 0.5 else -width
        ImageDraw.Draw(mask).polygon(((x, 0), (far, 0), (far, height), (other, height)), fill=255)
    strength = between(rng, 0.3, 0.65)
    dark = view.point([round(value * (1 - strength)) for value in range(256)] * 3)
    return Image.composite(dark, view, mask)


def draw_glare(rng: np.random.Generator, view: Image.Image, corners: np.ndarray) -> None:
    """A reflection on the plate: a spot whose middle is white."""
    extent = np.ptp(corners, axis=0)
    middle = corners.min(axis=0) + rng.random(2) * extent
    size = np.maximum(4, extent * np.array([between(rng, 0.4, 1.2), between(rng, 0.4, 1.2)])).astype(int)
    strength = between(rng, 0.5, 1.0)
    ramp = [round(max(0.0, 1 - value / 128) * 255 * strength) for value in range(256)]
    spot = Image.radial_gradient("L").point(ramp).resize((int(size[0]), int(size[1])))
    place = (middle - size / 2).astype(int).tolist()
    view.paste((255, 255, 250), (place[0], place[1]), spot)


def draw_reflection(rng: np.random.Generator, plate: Image.Image) -> None:
    """Sky, houses or trees mirrored by the enamel of a projected RGBX plate, softly."""
    colour = shade(rng, pick(rng, ((196, 208, 224), (214, 214, 208), (160, 110, 84), (26, 32, 24))), 20)
    strength = between(rng, 0.15, 0.5)
    if rng.random() < 0.6:
        mask = blotches(rng, int(rng.integers(2, 6)), plate.size, between(rng, 0.25, 0.6), strength)
    else:  # stronger towards one edge
        fading = Image.linear_gradient("L").point([round(value * strength) for value in range(256)])
        turn = pick(rng, (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270))
        mask = fading.transpose(turn).resize(plate.size)
    plate.paste((*colour, 0), mask=mask)


def draw_obstacle(rng: np.random.Generator, view: Image.Image) -> None:
    """Something that hides nearly all of the view: a van, a wall, a hedge."""
    kind = pick(rng, ("leaves", "slats", "plaster", "far_street", "bricks"))
    width = max(1, round(view.width * between(rng, 0.75, 1)))
    place = (0 if rng.random() < 0.5 else view.width - width, 0)
    view.paste(piece(rng, kind, (width, view.height), 0.6), place)
