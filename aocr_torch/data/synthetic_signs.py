"""Draws one synthetic street sign in one to V views side by side, as an FSNS record shows it.

A function here and in the files that it calls draws its random numbers from the generator that it is given and from
nothing else, so one generator state gives one picture.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from aocr_torch.data.synthetic_effects import SignEffects
from aocr_torch.data.synthetic_noise import between, pick, shade, uniform_noise
from aocr_torch.data.synthetic_plates import decide_look, draw_plate
from aocr_torch.data.synthetic_scenes import draw_scene
from aocr_torch.data.synthetic_text import compose
from aocr_torch.data.synthetic_views import Post, Site, draw_view

_LARGE = 18.0
"""Pixels of letters that need no sparing beyond the half."""


def draw_sign(
    rng: np.random.Generator, label: str, num_views: int, height: int, view_width: int, effects: SignEffects
) -> tuple[np.ndarray, int]:
    """Draws `label` as (uint8 picture (height, num_views * view_width, 3), number of real views >= 1).

    The real views stand left of the noise that fills the missing ones.
    """
    num_real = num_views
    if num_views > 1 and rng.random() < effects.missing_views:
        num_real = int(rng.integers(1, num_views))
    site = _draw_site(rng, label, height, view_width, effects)
    picture = np.empty((height, num_views * view_width, 3), np.uint8)
    # A sign whose views were all at their worst could not be read by anybody: one view is spared the half, and more
    # where letters are small.
    best_view = int(rng.integers(num_real))
    spared = effects.spared(0.5 * min(1.0, site.letter_size / _LARGE))
    for view in range(num_real):
        chosen = spared if view == best_view else effects
        band = round(view_width * chosen.noise_band * rng.random()) if rng.random() < 0.25 else 0
        left, right = view * view_width, (view + 1) * view_width - band
        picture[:, left:right] = draw_view(rng, site, height, view_width - band, chosen)
        picture[:, right : right + band] = uniform_noise(rng, height, band)
    picture[:, num_real * view_width :] = uniform_noise(rng, height, (num_views - num_real) * view_width)
    return picture, num_real


def _draw_site(rng: np.random.Generator, label: str, height: int, view_width: int, effects: SignEffects) -> Site:
    is_night, has_scenery = rng.random() < effects.night, rng.random() < effects.scenery
    look = decide_look(rng, effects)
    plate, aspect, letter_size = draw_plate(rng, compose(rng, label, effects), look, height, view_width, effects)
    scene = draw_scene(rng, height, view_width, has_scenery)
    post = None
    if rng.random() < effects.posts:
        post = _choose_post(rng, plate, effects)
    return Site(plate, aspect, letter_size, scene, post, is_night)


def _choose_post(rng: np.random.Generator, plate: Image.Image, effects: SignEffects) -> Post:
    """White, grey or brown; it is held by a bracket in the plate's colour."""
    colour = shade(
        rng, pick(rng, ((224, 222, 214), (214, 214, 212), (150, 152, 152), (120, 116, 108), (96, 78, 60))), 26
    )
    rise = pick(rng, (-1.0, between(rng, 0.01, 0.12), between(rng, 0.05, 0.3)))
    bracket = None
    if rng.random() < effects.brackets:
        red, green, blue, _ = plate.getpixel((plate.width // 2, plate.height // 12))
        bracket = red, green, blue
    return Post(colour, between(rng, 0.03, 0.13), rise, bracket)
