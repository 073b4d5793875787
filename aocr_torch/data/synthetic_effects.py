"""What happens to a synthetic sign, as numbers: the one place to tune how hard it is to read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


class SynthesisError(ValueError):
    """A data set that cannot be drawn or written as asked; the message is one line for the user."""


@dataclass(frozen=True)
class SignEffects:
    """What happens to a sign before it is read; every amount is the most that is drawn, and 0 switches it off."""

    upper_case: float = 0.6
    """Share of the signs in capitals throughout (the label keeps its title case)."""
    mixed_case: float = 0.2
    """Share of the signs in capitals but for their particles ("des COLVERTS"); the rest is as the label."""
    max_lines: int = 3
    """Long names are broken into up to this many lines."""
    condensed: float = 0.4
    """Letters are narrowed by up to this share of their width."""
    margin: float = 0.08
    """Share of the view's width and height that stays free around the sign where it comes closest."""
    distance: float = 0.4
    """A view's sign is smaller than the view allows by up to this share."""
    shift: float = 0.9
    """A view's sign leaves the middle by up to this share of the free room, so it is never cut."""
    yaw: float = 45.0
    """Degrees by which the plate is turned left or right, which foreshortens the text."""
    pitch: float = 20.0
    """Degrees by which the plate is turned up or down."""
    rotation: float = 5.0
    """Degrees by which the plate hangs askew."""
    blur: float = 1.2
    """Standard deviation of the focus blur of every second view, in hundredths of its height."""
    low_resolution: float = 0.55
    """A view is sampled at a resolution lower by up to this share and enlarged again."""
    light: float = 0.4
    """A view is brighter or darker by up to this share, and unevenly so by up to half of it."""
    tint: float = 0.12
    """A view's red, green and blue gains differ by up to this share."""
    noise: float = 7.0
    """Standard deviation of the sensor noise, in grey levels of 255."""
    noise_band: float = 0.12
    """Up to this share of a view's width, at its right, is uniform noise (in every fourth view)."""
    missing_views: float = 0.3
    """Share of the signs that have fewer views than asked for; FSNS fills the missing ones with uniform noise."""

    def scaled(self, difficulty: float) -> SignEffects:
        """The same effects with all that makes reading harder multiplied by `difficulty` (0 .. 1)."""
        return replace(self, **{name: getattr(self, name) * difficulty for name in _SCALED_BY_DIFFICULTY})

    def check(self) -> None:
        """Raises SynthesisError, naming the field, where a value lies outside what can be drawn."""
        for field in fields(self):
            value, highest = getattr(self, field.name), _HIGHEST.get(field.name, 0.9)
            lowest = 1 if field.name == "max_lines" else 0
            if not lowest <= value <= highest:
                raise SynthesisError(f"effects.{field.name} is {value}: expected {lowest} .. {highest}")
        if self.upper_case + self.mixed_case > 1:
            raise SynthesisError(f"effects.upper_case + effects.mixed_case is {self.upper_case + self.mixed_case} > 1")


_SCALED_BY_DIFFICULTY = (
    *("distance", "shift", "yaw", "pitch", "rotation", "blur", "low_resolution", "light", "tint", "noise"),
    *("noise_band", "missing_views"),
)
_HIGHEST = {
    **{"upper_case": 1, "mixed_case": 1, "missing_views": 1, "shift": 1, "margin": 0.4, "max_lines": 4},
    **{"yaw": 70, "pitch": 60, "rotation": 45, "blur": 5, "noise": 40, "noise_band": 0.5, "light": 0.6, "tint": 0.5},
}
