"""One photograph of a synthetic sign: from where it is taken, and what light, lens, sensor and file do to it."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from aocr_torch.data import synthetic_scenes as scenes
from aocr_torch.data.synthetic_effects import SignEffects
from aocr_torch.data.synthetic_noise import Colour, between, scaled_colour

_NORMAL_QUANTILES = np.array([NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(256)])
_DROP_SHADOW = [round(0.45 * value) for value in range(256)]


@dataclass(frozen=True)
class Site:
    """What all views of a sign have in common."""

    plate: Image.Image
    """RGBX, from the front, with its outline as X: Pillow resizes it in half the time of RGBA, and its colours go on
    beyond the outline, so nothing need be multiplied by it."""
    aspect: float
    """The plate's width over its height."""
    letter_size: float
    """Pixels of 1 em in the closest view, the mean of its width and its height."""
    scene: Image.Image
    """RGB, larger than a view."""
    post: Post | None
    """What the plate is mounted on, if not on what is behind it."""
    is_night: bool


@dataclass(frozen=True)
class Post:
    """A post behind a plate."""

    colour: Colour
    width: float
    """As a share of the view's."""
    rise: float
    """How far it is seen above the plate, as a share of the view's height; negative where it ends behind the plate."""
    bracket: Colour | None
    """Colour of what clamps the plate to the post above and below, if that is seen."""


@dataclass(frozen=True)
class Conditions:
    """What is decided about a view before it is drawn."""

    has_shadow: bool
    has_leaves: bool
    has_pole: bool
    has_glare: bool
    is_moving: bool
    is_jpeg: bool
    has_reflection: bool
    is_sharpened: bool
    is_cut: bool
    is_useless: bool


def decide_conditions(rng: np.random.Generator, effects: SignEffects) -> Conditions:
    """The conditions under which a view is taken."""
    shares = (
        *(effects.shadow, effects.leaves, effects.poles, effects.glare, effects.motion, effects.jpeg),
        *(effects.reflections, effects.sharpened, effects.cut, effects.useless_views),
    )
    return Conditions(*(chance < share for chance, share in zip(rng.random(len(shares)).tolist(), shares)))


def draw_view(rng: np.random.Generator, site: Site, height: int, width: int, effects: SignEffects) -> np.ndarray:
    """One photograph of the plate: uint8 (height, width, 3).

    All but the last enlargement is done at the resolution at which the view is sampled.
    """
    size = width, height
    conditions = decide_conditions(rng, effects)
    resolution, radius = _sharpness(rng, effects)
    has_obstacle = conditions.is_useless and rng.random() < 0.5
    if conditions.is_useless and not has_obstacle:
        resolution, radius = between(rng, 0.05, 0.12), 0.6
    if resolution < 0.95:
        width, height = max(2, round(width * resolution)), max(2, round(height * resolution))
    corners = _place_corners(rng, site.aspect, height, width, effects, conditions.is_cut)
    view = scenes.crop_scene(rng, site.scene, height, width)
    plate, place = _project(site.plate, corners)
    outline = plate.getchannel("X")
    if conditions.has_reflection:
        scenes.draw_reflection(rng, plate)
    if site.post is not None:
        _draw_post(rng, view, site.post, corners)
    if site.is_night:
        lit = between(rng, 0.6, 1.1) if rng.random() < 0.6 else 0.5
        view = _dimmed(view, between(rng, 0.1, 0.35))
        plate = _dimmed(plate.convert("RGB"), lit)
    down = round(height * between(rng, 0.005, 0.03))
    drop = outline.point(_DROP_SHADOW)
    view.paste((16, 16, 16), (place[0] + round(down * between(rng, -1, 1)), place[1] + down), drop)
    view.paste(plate, place, mask=outline)
    if conditions.has_shadow:
        view = scenes.draw_shadow(rng, view)
    if conditions.has_glare:
        scenes.draw_glare(rng, view, corners)
    if conditions.has_leaves:
        scenes.draw_leaves(rng, view, corners)
    if conditions.has_pole:
        scenes.draw_pole(rng, view, corners)
    if has_obstacle:
        scenes.draw_obstacle(rng, view)
    return _photograph(rng, view, size, radius, conditions, effects)


def _dimmed(picture: Image.Image, factor: float) -> Image.Image:
    return picture.point([min(255, round(value * factor)) for value in range(256)] * 3)


def _draw_post(rng: np.random.Generator, view: Image.Image, post: Post, corners: np.ndarray) -> None:
    """The post, and the bracket above and below a plate whose corners in the view are (4, 2) x and y in pixels."""
    draw = ImageDraw.Draw(view)
    (upper, top), (lower, bottom) = ((corners[i] + corners[j]).tolist() for i, j in ((0, 1), (2, 3)))
    upper, top, lower, bottom = upper / 2, top / 2, lower / 2, bottom / 2
    half = post.width * view.width / 2
    slant = (lower - upper) / max(1.0, bottom - top)  # the post leans as the plate does
    start = top - post.rise * view.height if post.rise >= 0 else (top + bottom) / 2
    left, right = upper + (start - top) * slant, lower + (view.height - bottom) * slant
    draw.polygon(
        ((left - half, start), (left + half, start), (right + half, view.height), (right - half, view.height)),
        fill=post.colour,
    )
    if rng.random() < 0.6:  # the side away from the light
        side = half if rng.random() < 0.5 else -half
        shaded = scaled_colour(post.colour, between(rng, 0.5, 0.85))
        points = ((left + side / 3, start), (left + side, start), (right + side, view.height))
        draw.polygon((*points, (right + side / 3, view.height)), fill=shaded)
    if post.bracket is not None:
        wide, depth = half * between(rng, 1.5, 2.6), view.height * between(rng, 0.02, 0.05)
        for x, y, away in ((upper, top, -depth), (lower, bottom, depth)):
            points = ((x - wide, y), (x - 0.7 * wide, y + away), (x + 0.7 * wide, y + away), (x + wide, y))
            draw.polygon(points, fill=post.bracket)


def _place_corners(
    rng: np.random.Generator, aspect: float, height: int, width: int, effects: SignEffects, is_cut: bool
) -> np.ndarray:
    """The plate's corners in the view as (4, 2) x and y in pixels, clockwise from the upper left: the plate is turned
    in space, seen from two and a half of its widths away, and scaled and moved so that it lies within the view, but
    for up to an eighth that is cut off at the left or right."""
    # Most photographs are taken nearly from the front: a product of two random numbers is rarely large.
    yaw = math.radians(effects.yaw * between(rng, -1, 1) * between(rng, 0.2, 1))
    pitch, roll = (math.radians(between(rng, -amount, amount)) for amount in (effects.pitch, effects.rotation))
    points = []
    for x, y in ((-aspect, -1.0), (aspect, -1.0), (aspect, 1.0), (-aspect, 1.0)):
        x, y = x * math.cos(roll) - y * math.sin(roll), x * math.sin(roll) + y * math.cos(roll)
        x, depth = x * math.cos(yaw), x * math.sin(yaw)
        y, depth = y * math.cos(pitch), depth + y * math.sin(pitch)
        distance = 1 + depth / (5 * max(aspect, 1))
        points.append((x / distance, y / distance))
    (left, right), (top, bottom) = ((min(values), max(values)) for values in zip(*points))
    room = 1 - effects.margin
    scale = min(room * width / (right - left), room * height / (bottom - top)) * (1 - effects.distance * rng.random())
    half_width, half_height = (right - left) * scale / 2, (bottom - top) * scale / 2
    to_right, to_bottom = rng.random(2).tolist()
    x = width / 2 + effects.shift * (width - 2 * half_width) * (to_right - 0.5)
    y = height / 2 + effects.shift * (height - 2 * half_height) * (to_bottom - 0.5)
    if is_cut:
        inside = half_width * between(rng, 0.75, 0.96)
        x = inside if to_right < 0.5 else width - inside
    x, y = x - scale * (left + right) / 2, y - scale * (top + bottom) / 2
    return np.array([(scale * across + x, scale * down + y) for across, down in points])


def _project(plate: Image.Image, corners: np.ndarray) -> tuple[Image.Image, tuple[int, int]]:
    """The plate seen with its corners at `corners` (4, 2): RGBX of the box around them, and the box's upper left."""
    left, top = np.floor(corners.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(corners.max(axis=0)).astype(int).tolist()
    size = right - left, bottom - top
    # Shrunk to its size in the view first: only resize() averages, the perspective transform just samples.
    shrunk = plate.resize((min(size[0], plate.width), min(size[1], plate.height)), Image.Resampling.BILINEAR)
    coefficients = _homography(corners - (left, top), shrunk.width, shrunk.height)
    projected = shrunk.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    return projected, (left, top)


def _homography(corners: np.ndarray, width: int, height: int) -> list[float]:
    """The eight numbers with which Pillow maps a view's pixel to a plate's, for a plate of (width, height) pixels
    whose corners (4, 2) lie there: x' = (a x + b y + c) / (g x + h y + 1), y' = (d x + e y + f) / (g x + h y + 1)."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners.tolist()
    # From the unit square to the corners first (Heckbert 1989), then the other way by the adjugate matrix.
    dx1, dx2, sum_x = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sum_y = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    area = dx1 * dy2 - dx2 * dy1
    g, h = (sum_x * dy2 - dx2 * sum_y) / area, (dx1 * sum_y - sum_x * dy1) / area
    a, b, d, e = x1 - x0 + g * x1, x3 - x0 + h * x3, y1 - y0 + g * y1, y3 - y0 + h * y3
    one = a * e - b * d
    across = ((e - y0 * h), (x0 * h - b), (b * y0 - x0 * e))
    down = ((y0 * g - d), (a - x0 * g), (x0 * d - a * y0))
    far = ((d * h - e * g), (b * g - a * h))
    return [
        *(width * value / one for value in across),
        *(height * value / one for value in down),
        *(value / one for value in far),
    ]


def _sharpness(rng: np.random.Generator, effects: SignEffects) -> tuple[float, float]:
    """Resolution as a share of the view's, and the focus blur in hundredths of its height, of every second view."""
    return 1 - effects.low_resolution * rng.random(), max(0.0, effects.blur * between(rng, -1, 1))


def _photograph(
    rng: np.random.Generator,
    coarse: Image.Image,
    size: tuple[int, int],
    radius: float,
    conditions: Conditions,
    effects: SignEffects,
) -> np.ndarray:
    """What the camera makes of a coarse view, uint8 (height, width, 3) for a `size` of (width, height): it is out of
    focus, moving, with the light and the noise of its sensor, sharpened, saved as a JPEG, and enlarged."""
    deviation = radius * coarse.height / 100
    if deviation > 0.1:
        coarse = coarse.filter(_box_blur(deviation))
    greyness = max(0.0, effects.desaturation * between(rng, -1, 1))
    if greyness > 0:
        coarse = Image.blend(coarse, coarse.convert("L").convert("RGB"), greyness)
    pixels = np.asarray(coarse)
    if conditions.is_moving:
        pixels = _moved(rng, pixels)
    coarse = Image.fromarray(_expose(rng, pixels, effects))
    if conditions.is_sharpened:
        # Blending beyond the picture itself takes half the time of Pillow's UnsharpMask.
        coarse = Image.blend(coarse.filter(_box_blur(between(rng, 0.8, 1.8))), coarse, between(rng, 1.6, 3))
    if conditions.is_jpeg:
        file = io.BytesIO()
        coarse.save(file, "JPEG", quality=int(rng.integers(25, 93)))
        coarse = Image.open(file, formats=("JPEG",))
    if coarse.size != size:
        smooth = Image.Resampling.BILINEAR if rng.random() < 0.6 else Image.Resampling.BICUBIC
        coarse = coarse.resize(size, smooth)
    return np.asarray(coarse)


def _box_blur(deviation: float) -> ImageFilter.BoxBlur:
    """The mean of a square with that standard deviation in pixels: a third of the work of Pillow's Gaussian blur."""
    return ImageFilter.BoxBlur((math.sqrt(12 * deviation**2 + 1) - 1) / 2)


def _moved(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """The mean of copies moved along a line, mostly sideways, over up to 5 % of the height."""
    length, angle = len(pixels) * between(rng, 0.01, 0.05), rng.normal(0, 0.5)
    count = max(2, round(length) + 1)
    total = np.zeros(pixels.shape, np.uint16)
    for along in np.linspace(-0.5, 0.5, count).tolist():
        down, right = round(along * length * math.sin(angle)), round(along * length * math.cos(angle))
        total += np.roll(pixels, (down, right), axis=(0, 1))
    return (total // count).astype(np.uint8)


def _expose(rng: np.random.Generator, view: np.ndarray, effects: SignEffects) -> np.ndarray:
    """Light, tint, haze and sensor noise on a view: uint8 (height, width, 3) to the same.

    In whole numbers, with 128 for a gain of 1: several times as fast as in float32. The highest light and tint that
    SignEffects takes stay within 16 bits.
    """
    height, width, _ = view.shape
    haze = effects.haze * float(rng.random())
    gain = between(rng, 1 - effects.light, 1 + effects.light) * (1 + effects.tint * (rng.random(3) - 0.5)) * (1 - haze)
    slope_x, slope_y = effects.light * (rng.random(2) - 0.5)
    across = 128 * gain * (1 + slope_x * _ramp(width))[:, None]  # (width, 3)
    down = 128 * (1 + slope_y * _ramp(height))[:, None]  # (height, 1)
    lit = down.astype(np.uint16) * across.reshape(-1).astype(np.uint16)
    lit >>= 7
    np.minimum(lit, 255, out=lit)
    lit *= view.reshape(height, width * 3)
    lit >>= 7
    # One random byte a value, looked up in the quantiles of a normal distribution.
    quantiles = np.round(_NORMAL_QUANTILES * (effects.noise * rng.random())).astype(np.int8).tobytes()
    noise = np.frombuffer(rng.bytes(lit.size).translate(quantiles), np.int8).reshape(lit.shape)
    veil = np.int16(round(haze * between(rng, 60, 170)))
    exposed = lit.view(np.int16)
    exposed += noise
    exposed += veil
    np.clip(exposed, 0, 255, out=exposed)
    return exposed.astype(np.uint8).reshape(view.shape)


@lru_cache(maxsize=512)
def _ramp(length: int) -> np.ndarray:
    """From -1 to 1 in `length` steps."""
    return np.linspace(-1, 1, length)
