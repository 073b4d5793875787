"""Random numbers and mottled pictures that the parts of a synthetic sign are drawn with."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
_Option = TypeVar("_Option")


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high): `rng.uniform` costs ten times as much, and a sign takes hundreds of numbers."""
    return low + (high - low) * float(rng.random())


def pick(rng: np.random.Generator, options: tuple[_Option, ...]) -> _Option:
    """One of the options, each as likely as any other."""
    return options[int(rng.integers(len(options)))]


def shade(rng: np.random.Generator, colour: Colour, spread: int) -> Colour:
    """A colour near another: up to `spread` lighter or darker, and its channels a third as much on their own."""
    common = int(rng.integers(-spread, spread + 1))
    own = rng.integers(-spread // 3, spread // 3 + 1, 3).tolist()
    red, green, blue = (max(0, min(255, value + common + change)) for value, change in zip(colour, own))
    return red, green, blue


def scaled_colour(colour: Colour, factor: float) -> Colour:
    """The colour, darker (factor < 1) or lighter."""
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return red, green, blue


def uniform_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3), every value as likely as any other."""
    return np.frombuffer(rng.bytes(height * width * 3), np.uint8).reshape(height, width, 3)


def smooth_noise(rng: np.random.Generator, cells: int, size: tuple[int, int]) -> Image.Image:
    """A grey picture of `size` (width, height) with `cells` random spots from top to bottom."""
    columns = max(1, round(cells * size[0] / size[1]))
    spots = np.frombuffer(rng.bytes(cells * columns), np.uint8).reshape(cells, columns)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


def blotches(rng: np.random.Generator, cells: int, size: tuple[int, int], share: float, strength: float) -> Image.Image:
    """A grey mask of `size`: about `share` of it is covered with soft blotches of up to `strength` (0 .. 1)."""
    ramp = np.clip((np.arange(256) - 255 * (1 - share)) / 100, 0, 1) * 255 * strength
    return smooth_noise(rng, cells, size).point(ramp.astype(int).tolist())


def coloured(grey: Image.Image, dark: Colour, light: Colour) -> Image.Image:
    """A grey picture between two colours, its darkest value being `dark` and its lightest `light`."""
    lowest, highest = grey.getextrema()
    ramp = np.interp(np.arange(256), (lowest, max(highest, lowest + 1)), (0, 1))
    table = np.array(dark)[:, None] * (1 - ramp) + np.array(light)[:, None] * ramp  # (3, 256)
    return Image.merge("RGB", (grey, grey, grey)).point(table.astype(int).ravel().tolist())
