"""Draws one synthetic street sign: an enamel plate in one to V views side by side, as an FSNS record shows it.

All sizes on a plate are in units of its letters' size (1 em). A function here draws its random numbers from the
generator that it is given and from nothing else, so one generator state gives one picture.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from aocr_torch.data.synthetic_effects import SignEffects, SynthesisError
from aocr_torch.data.synthetic_names import PARTICLES

# Dark and light colour, contrast of fine over coarse structure (0 .. 1), number of straight lines at most.
_SCENES = (
    ((196, 178, 150), (222, 206, 180), 0.3, 3),  # plaster
    ((150, 155, 158), (186, 190, 190), 0.4, 5),  # concrete, shutters
    ((120, 82, 62), (176, 128, 98), 0.7, 4),  # brick
    ((20, 30, 16), (112, 138, 72), 0.9, 0),  # hedge
    ((16, 20, 14), (74, 92, 52), 0.8, 1),  # wood in shade
    ((82, 70, 40), (178, 152, 96), 0.7, 0),  # meadow
    ((92, 108, 128), (206, 216, 228), 0.2, 1),  # sky and street
)
_FONT_WEIGHTS = ("Semibold", "Bold", "Black")
_CAP_HEIGHT = 0.66
_NORMAL_QUANTILES = np.array([NormalDist().inv_cdf((byte + 0.5) / 256) for byte in range(256)])


def draw_sign(
    rng: np.random.Generator, label: str, num_views: int, height: int, view_width: int, effects: SignEffects
) -> tuple[np.ndarray, int]:
    """Draws `label` as (uint8 picture (height, num_views * view_width, 3), number of real views >= 1).

    The real views stand left of the noise that fills the missing ones.
    """
    num_real = num_views
    if num_views > 1 and rng.random() < effects.missing_views:
        num_real = int(rng.integers(1, num_views))
    plate, aspect = _draw_plate(rng, label, height, view_width, effects)
    scene = _draw_scene(rng, height, view_width)
    pole = None
    if rng.random() < 0.4:
        pole = (int(rng.integers(90, 220)),) * 3, _between(rng, 0.04, 0.1)
    picture = np.empty((height, num_views * view_width, 3), np.uint8)
    # A sign whose views were all at their worst could not be read by anybody: one view is spared the half.
    best_view = int(rng.integers(num_real))
    spared = effects.scaled(0.5)
    for view in range(num_real):
        chosen = spared if view == best_view else effects
        band = round(view_width * chosen.noise_band * rng.random()) if rng.random() < 0.25 else 0
        left, right = view * view_width, (view + 1) * view_width - band
        picture[:, left:right] = _draw_view(rng, plate, aspect, scene, pole, height, view_width - band, chosen)
        picture[:, right : right + band] = _uniform_noise(rng, height, band)
    picture[:, num_real * view_width :] = _uniform_noise(rng, height, (num_views - num_real) * view_width)
    return picture, num_real


def _draw_plate(
    rng: np.random.Generator, label: str, height: int, width: int, effects: SignEffects
) -> tuple[Image.Image, float]:
    """The plate from the front as RGBA, at about the resolution that a view of (height, width) pixels can show, and
    its width over its height in the world (letters are condensed when the plate is projected)."""
    lines = _break_lines(rng, _cased(rng, label, effects), effects.max_lines)
    weight = _FONT_WEIGHTS[int(rng.integers(len(_FONT_WEIGHTS)))]
    sizes = [_between(rng, 0.75, 1.0) if _is_minor(line) else 1.0 for line in lines]
    pitch = _between(rng, 0.95, 1.1)
    margin_x, margin_y = _between(rng, 0.4, 0.7), _between(rng, 0.45, 0.6)
    reference = _font(weight, 100)
    em_width = max(reference.getlength(line) * size / 100 for line, size in zip(lines, sizes)) + 2 * margin_x
    em_height = _CAP_HEIGHT + pitch * (len(lines) - 1) + 2 * margin_y
    narrowing = 1 - effects.condensed * rng.random()
    aspect = em_width * narrowing / em_height
    # 1.2 times the pixels of the closest view: enough for smooth edges after the resize.
    em = max(8.0, 1.2 * min(height / em_height, width / (em_width * narrowing)))
    plate = _draw_enamel(rng, round(em_width * em), round(em_height * em), em)
    draw = ImageDraw.Draw(plate)
    ink = tuple(int(value) for value in rng.integers(225, 256, 3))
    baseline = margin_y + _CAP_HEIGHT
    for line, size in zip(lines, sizes):
        draw.text((plate.width / 2, baseline * em), line, fill=ink, font=_font(weight, round(em * size)), anchor="ms")
        baseline += pitch
    return plate, aspect


def _cased(rng: np.random.Generator, label: str, effects: SignEffects) -> str:
    chance = rng.random()
    if chance < effects.upper_case:
        return label.upper()
    if chance < effects.upper_case + effects.mixed_case:
        return " ".join(map(_capitals_but_for_particles, label.split(" ")))
    return label


def _capitals_but_for_particles(word: str) -> str:
    if word in PARTICLES:
        return word
    start = 2 if word[1:2] == "'" else 0  # d'ORLÉANS
    return word[:start] + word[start:].upper()


def _break_lines(rng: np.random.Generator, text: str, max_lines: int) -> list[str]:
    """The text in lines whose longest is as short as it can be; the more lines, the longer the text."""
    words = text.split(" ")
    wanted = math.ceil(len(text) / _between(rng, 7, 16))
    num_lines = max(1, min(wanted, max_lines, len(words)))
    best: list[str] = []
    for breaks in itertools.combinations(range(1, len(words)), num_lines - 1):
        edges = (0, *breaks, len(words))
        lines = [" ".join(words[start:end]) for start, end in zip(edges, edges[1:])]
        if not best or max(map(len, lines)) < max(map(len, best)):
            best = lines
    return best


def _is_minor(line: str) -> bool:
    """Whether a line holds particles alone, which signs often show in smaller letters."""
    return all(word.lower() in PARTICLES for word in line.split(" "))


def _draw_enamel(rng: np.random.Generator, width: int, height: int, em: float) -> Image.Image:
    """An empty plate: blue, with a white border whose corners are round, square or cut in."""
    red = int(rng.integers(4, 36))
    blue = (red, red + int(rng.integers(2, 48)), int(rng.integers(56, 170)))
    white = (int(rng.integers(215, 256)),) * 3
    rim, line = round(em * _between(rng, 0.0, 0.14)), max(1, round(em * _between(rng, 0.05, 0.1)))
    corner = round(em * _between(rng, 0.1, 0.3))
    plate = Image.new("RGBA", (width, height), (*blue, 0))
    draw = ImageDraw.Draw(plate)
    border = (rim, rim, width - 1 - rim, height - 1 - rim)
    style = rng.random()
    if style < 0.4:
        draw.rounded_rectangle((0, 0, width - 1, height - 1), corner + rim, fill=blue)
        draw.rounded_rectangle(border, corner, outline=white, width=line)
        return plate
    draw.rectangle((0, 0, width - 1, height - 1), fill=blue)
    draw.rectangle(border, outline=white, width=line)
    if style < 0.8:
        for x, y in itertools.product(border[0::2], border[1::2]):
            draw.ellipse((x - corner, y - corner, x + corner, y + corner), fill=blue, outline=white, width=line)
        if rim:
            draw.rectangle((0, 0, width - 1, height - 1), outline=blue, width=rim)
    return plate


def _draw_scene(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """What is behind the sign, a third larger than a view, as RGB: mottled between two colours, with straight lines."""
    dark, light, contrast, max_lines = _SCENES[int(rng.integers(len(_SCENES)))]
    size = round(width * 1.33), round(height * 1.33)
    mottle = _smooth_noise(rng, 4, size)
    for cells, share in ((14, 0.5 * contrast), (48, 0.35 * contrast)):
        mottle = Image.blend(mottle, _smooth_noise(rng, cells, size), share)
    lowest, highest = mottle.getextrema()
    ramp = np.interp(np.arange(256), (lowest, highest), (0, 1))
    table = np.array(dark)[:, None] * (1 - ramp) + np.array(light)[:, None] * ramp  # (3, 256)
    scene = Image.merge("RGB", (mottle, mottle, mottle)).point(table.astype(int).ravel().tolist())
    draw = ImageDraw.Draw(scene)
    for _ in range(int(rng.integers(max_lines + 1))):
        factor = _between(rng, 0.5, 1.15)
        shade = tuple(round(value * factor) for value in light)
        thickness = max(1, round(size[1] * _between(rng, 0.01, 0.06)))
        at = rng.random()
        if rng.random() < 0.5:
            draw.line((0, at * size[1], size[0], at * size[1]), fill=shade, width=thickness)
        else:
            draw.line((at * size[0], 0, at * size[0], size[1]), fill=shade, width=thickness)
    return scene


def _draw_view(
    rng: np.random.Generator,
    plate: Image.Image,
    aspect: float,
    scene: Image.Image,
    pole: tuple[tuple[int, int, int], float] | None,
    height: int,
    width: int,
    effects: SignEffects,
) -> np.ndarray:
    """One photograph of the plate: uint8 (height, width, 3)."""
    x, y = int(rng.integers(scene.width - width + 1)), int(rng.integers(scene.height - height + 1))
    view = scene.crop((x, y, x + width, y + height))
    corners = _place_corners(rng, aspect, height, width, effects)
    if pole is not None:
        colour, share = pole
        (centre, top), half = corners.mean(axis=0), share * width / 2
        ImageDraw.Draw(view).rectangle((centre - half, top, centre + half, height), fill=colour)
    projected, corner = _project(plate, corners)
    view.paste(projected, corner, mask=projected)
    view = _defocus(rng, view, effects)
    return _photograph(rng, np.asarray(view), effects)


def _place_corners(
    rng: np.random.Generator, aspect: float, height: int, width: int, effects: SignEffects
) -> np.ndarray:
    """The plate's corners in the view as (4, 2) x and y in pixels, clockwise from the upper left: the plate is turned
    in space, seen from two and a half of its widths away, and scaled and moved so that it lies within the view."""
    yaw, pitch, roll = (
        math.radians(_between(rng, -amount, amount)) for amount in (effects.yaw, effects.pitch, effects.rotation)
    )
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
    """The plate seen with its corners at `corners` (4, 2): RGBA of the box around them, and the box's upper left."""
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


def _defocus(rng: np.random.Generator, view: Image.Image, effects: SignEffects) -> Image.Image:
    """The view sampled more coarsely, every second time out of focus too, and enlarged to its size again."""
    resolution = 1 - effects.low_resolution * rng.random()
    radius = effects.blur * _between(rng, -1, 1) * view.height * resolution / 100
    coarse = view
    if resolution < 0.95:
        size = max(1, round(view.width * resolution)), max(1, round(view.height * resolution))
        coarse = view.resize(size, Image.Resampling.BILINEAR)
    if radius > 0.1:
        coarse = coarse.filter(ImageFilter.GaussianBlur(radius))
    return coarse if coarse.size == view.size else coarse.resize(view.size, Image.Resampling.BILINEAR)


def _photograph(rng: np.random.Generator, view: np.ndarray, effects: SignEffects) -> np.ndarray:
    """Light, tint and sensor noise on a view: uint8 (height, width, 3) to the same.

    In whole numbers, with 128 for a gain of 1: several times as fast as in float32. The highest light and tint that
    SignEffects takes stay within 16 bits.
    """
    height, width, _ = view.shape
    gain = _between(rng, 1 - effects.light, 1 + effects.light) * (1 + effects.tint * (rng.random(3) - 0.5))
    slope_x, slope_y = effects.light * (rng.random(2) - 0.5)
    across = 128 * gain * (1 + slope_x * np.linspace(-1, 1, width))[:, None]  # (width, 3)
    down = 128 * (1 + slope_y * np.linspace(-1, 1, height))[:, None]  # (height, 1)
    gains = np.minimum((down.astype(np.uint16) * across.reshape(-1).astype(np.uint16)) >> 7, 255)
    lit = (view.reshape(height, width * 3) * gains) >> 7
    # One random byte a value, looked up in the quantiles of a normal distribution.
    quantiles = np.round(_NORMAL_QUANTILES * (effects.noise * rng.random())).astype(np.int8).tobytes()
    noise = np.frombuffer(rng.bytes(lit.size).translate(quantiles), np.int8).reshape(lit.shape)
    return np.clip(lit.view(np.int16) + noise, 0, 255).astype(np.uint8).reshape(view.shape)


def _uniform_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3), every value as likely as any other."""
    return np.frombuffer(rng.bytes(height * width * 3), np.uint8).reshape(height, width, 3)


def _smooth_noise(rng: np.random.Generator, cells: int, size: tuple[int, int]) -> Image.Image:
    """A grey picture of `size` (width, height) with `cells` random spots from top to bottom."""
    columns = max(1, round(cells * size[0] / size[1]))
    spots = np.frombuffer(rng.bytes(cells * columns), np.uint8).reshape(cells, columns)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    # rng.uniform costs ten times as much, and a sign takes about a hundred numbers.
    return low + (high - low) * float(rng.random())


@lru_cache(maxsize=256)
def _font(weight: str, size: int) -> ImageFont.FreeTypeFont:
    """Source Sans Pro (SIL Open Font License): it has every accent of French, which Pillow's own font lacks."""
    try:
        import font_source_sans_pro
    except ImportError as error:
        raise SynthesisError(
            f"the signs' letters need the package font-source-sans-pro ({error}): pip install font-source-sans-pro"
        ) from error
    return ImageFont.truetype(font_source_sans_pro.font_files_ttf[f"SourceSansPro{weight}"], size)
