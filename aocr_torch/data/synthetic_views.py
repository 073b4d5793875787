"""One photograph of a synthetic sign: from where it is taken, and what light, lens, sensor and file do to it."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from aocr_torch.data import synthetic_scenes as scenes
from aocr_torch.data.synthetic_effects import SignEffects
from aocr_torch.data.synthetic_noise import Colour, between

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
    scene: Image.Image
    """RGB, larger than a view."""
    post: tuple[Colour, float] | None
    """Colour of the post that the plate is mounted on, and its width as a share of the view's."""
    is_night: bool


@dataclass(frozen=True)
class Conditions:
    """What is decided about a view before it is drawn."""

    has_shadow: bool
    has_leaves: bool
    has_pole: bool
    has_glare: bool
    is_moving: bool
    is_jpeg: bool
    is_useless: bool


def decide_conditions(rng: np.random.Generator, effects: SignEffects) -> Conditions:
    """The conditions under which a view is taken."""
    shares = (effects.shadow, effects.leaves, effects.poles, effects.glare, effects.motion, effects.jpeg)
    return Conditions(
        *(chance < share for chance, share in zip(rng.random(7).tolist(), (*shares, effects.useless_views)))
    )


def draw_view(rng: np.random.Generator, site: Site, height: int, width: int, effects: SignEffects) -> np.ndarray:
    """One photograph of the plate: uint8 (height, width, 3)."""
    conditions = decide_conditions(rng, effects)
    corners = _place_corners(rng, site.aspect, height, width, effects)
    resolution, radius = _sharpness(rng, effects)
    view = scenes.crop_scene(rng, site.scene, height, width)
    plate, place = _project(site.plate, corners)
    outline = plate.getchannel("X")
    if site.post is not None:
        colour, share = site.post
        (centre, middle), half = corners.mean(axis=0), share * width / 2
        top = middle if rng.random() < 0.6 else corners[:, 1].min() - height * between(rng, 0.02, 0.12)
        ImageDraw.Draw(view).rectangle((centre - half, top, centre + half, height), fill=colour)
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
    if conditions.is_useless:
        if rng.random() < 0.5:
            scenes.draw_obstacle(rng, view)
        else:
            resolution, radius = between(rng, 0.05, 0.12), 0.6
    return _photograph(rng, view, resolution, radius, conditions, effects)


def _dimmed(picture: Image.Image, factor: float) -> Image.Image:
    return picture.point([min(255, round(value * factor)) for value in range(256)] * 3)


def _place_corners(
    rng: np.random.Generator, aspect: float, height: int, width: int, effects: SignEffects
) -> np.ndarray:
    """The plate's corners in the view as (4, 2) x and y in pixels, clockwise from the upper left: the plate is turned
    in space, seen from two and a half of its widths away, and scaled and moved so that it lies within the view."""
    # Most photographs are taken nearly from the front: a product of two random numbers is rarely large.
    yaw = math.radians(effects.yaw * between(rng, -1, 1) * between(rng, 0.2, 1))
    pitch, roll = (math.radians(between(rng, -amount, amount)) for amount in (effects.pitch, effects.rotation))
    x = np.array([-aspect, aspect, aspect, -aspect])
    y = np.array([-1.0, -1.0, 1.0, 1.0])
    x, y = x * math.cos(roll) - y * math.sin(roll), x * math.sin(roll) + y * math.cos(roll)
    x, depth = x * math.cos(yaw), x * math.sin(yaw)
    y, depth = y * math.cos(pitch), depth + y * math.sin(pitch)
    points = np.stack([x, y], axis=1) / (1 + depth / (5 * max(aspect, 1)))[:, None]
    points -= (points.min(axis=0) + points.max(axis=0)) / 2
    room = (1 - effects.margin) * np.array([width, height])
    extent = np.ptp(points, axis=0)
    scale = (room / extent).min() * (1 - effects.distance * rng.random())
    free = np.array([width, height]) - extent * scale
    centre = np.array([width, height]) / 2 + effects.shift * free * (rng.random(2) - 0.5)
    return points * scale + centre


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
    targets = ((0, 0), (width, 0), (width, height), (0, height))
    equations, values = [], []
    for (x, y), (u, v) in zip(corners.tolist(), targets):
        equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(equations), np.array(values)).tolist()


def _sharpness(rng: np.random.Generator, effects: SignEffects) -> tuple[float, float]:
    """Resolution as a share of the view's, and the focus blur in hundredths of its height, of every second view."""
    return 1 - effects.low_resolution * rng.random(), max(0.0, effects.blur * between(rng, -1, 1))


def _photograph(
    rng: np.random.Generator,
    view: Image.Image,
    resolution: float,
    radius: float,
    conditions: Conditions,
    effects: SignEffects,
) -> np.ndarray:
    """What the camera makes of the view, uint8 (height, width, 3): it is sampled coarsely, out of focus, moving, with
    the light and the noise of its sensor, saved as a JPEG, and enlarged to its size again."""
    coarse = view
    if resolution < 0.95:
        size = max(2, round(view.width * resolution)), max(2, round(view.height * resolution))
        coarse = view.resize(size, Image.Resampling.BILINEAR)
    deviation = radius * coarse.height / 100
    if deviation > 0.1:
        coarse = coarse.filter(ImageFilter.GaussianBlur(deviation))
    pixels = np.asarray(coarse)
    if conditions.is_moving:
        pixels = _moved(rng, pixels)
    pixels = _expose(rng, pixels, effects)
    if conditions.is_jpeg:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(25, 93)))
        coarse = Image.open(file)
    else:
        coarse = Image.fromarray(pixels)
    if coarse.size != view.size:
        coarse = coarse.resize(view.size, Image.Resampling.BILINEAR)
    return np.asarray(coarse)


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
    across = 128 * gain * (1 + slope_x * np.linspace(-1, 1, width))[:, None]  # (width, 3)
    down = 128 * (1 + slope_y * np.linspace(-1, 1, height))[:, None]  # (height, 1)
    gains = np.minimum((down.astype(np.uint16) * across.reshape(-1).astype(np.uint16)) >> 7, 255)
    lit = (view.reshape(height, width * 3) * gains) >> 7
    # One random byte a value, looked up in the quantiles of a normal distribution.
    quantiles = np.round(_NORMAL_QUANTILES * (effects.noise * rng.random())).astype(np.int8).tobytes()
    noise = np.frombuffer(rng.bytes(lit.size).translate(quantiles), np.int8).reshape(lit.shape)
    veil = np.int16(round(haze * between(rng, 60, 170)))
    return np.clip(lit.view(np.int16) + veil + noise, 0, 255).astype(np.uint8).reshape(view.shape)
