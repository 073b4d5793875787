"""What happens to a synthetic sign, as numbers: the one place to tune how signs look and how hard they are to read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


class SynthesisError(ValueError):
    """A data set that cannot be drawn or written as asked; the message is one line for the user."""


@dataclass(frozen=True)
class SignEffects:
    """What happens to a sign before it is read. A share is a probability, any other amount the most that is drawn, and
    0 switches an effect off."""

    upper_case: float = 0.55
    """Share of the signs in capitals throughout (the label keeps its title case)."""
    mixed_case: float = 0.22
    """Share of the signs in capitals but for particles ("des COLVERTS") or the type; the rest is as the label."""
    small_capitals: float = 0.07
    """Share of the signs whose letters are all capitals, those that the label has small being smaller."""
    abbreviated: float = 0.08
    """Share of the signs that shorten the type and titles where that is usual ("Av. du Gal Leclerc")."""
    max_lines: int = 4
    """Long names are broken into up to this many lines."""
    condensed: float = 0.45
    """Letters are narrowed by up to this share of their width."""
    spacing: float = 0.12
    """Letters are moved apart by up to this share of their size, on every second sign."""
    left_aligned: float = 0.05
    """Share of the signs whose lines start at the left instead of being centred."""
    other_fonts: float = 0.7
    """Share of the signs that are not set in Source Sans Pro."""
    town: float = 0.14
    """Share of the signs with the town's name above the street's, which is no part of the label."""
    arrondissement: float = 0.06
    """Share of the signs with an arrondissement or district above the name, which is no part of the label."""
    coat_of_arms: float = 0.16
    """Share of the signs with a coat of arms."""
    subtitle: float = 0.1
    """Share of the signs with dates, a profession or the maker in small letters, which are no part of the label."""
    bilingual: float = 0.04
    """Share of the signs that also show a name in another language, which is no part of the label."""
    green_borders: float = 0.08
    """Share of the signs that are blue with a broad green border, as in Paris."""
    white_plates: float = 0.12
    """Share of the signs that are white or cream with dark letters."""
    green_plates: float = 0.04
    """Share of the signs that are green with white letters."""
    stone_plates: float = 0.03
    """Share of the signs that are of stone with engraved letters."""
    wood_plates: float = 0.03
    """Share of the signs that are of wood."""
    regional_plates: float = 0.06
    """Share of the signs in the colours of a region: brown, ochre, lava, faience, red and white."""
    fixings: float = 0.4
    """Share of the signs with screws."""
    posts: float = 0.4
    """Share of the signs that stand on a post."""
    brackets: float = 0.35
    """Share of the posts on which the bracket that holds the plate is seen."""
    chips: float = 0.15
    """Share of the signs whose enamel has come off at the corners and screws."""
    wear: float = 0.3
    """Share of the signs that are faded, scratched and dirty."""
    rust: float = 0.12
    """Share of the signs with rust at the rim and below the screws."""
    night: float = 0.04
    """Share of the signs photographed in the dark."""
    scenery: float = 0.75
    """Share of the signs before walls, bricks, foliage, sky, fences; others hang before mottled colours."""
    shadow: float = 0.2
    """Share of the views with a shadow across them."""
    leaves: float = 0.08
    """Share of the views with leaves in front of the sign."""
    poles: float = 0.05
    """Share of the views with a pole, a wire or a branch in front of the sign."""
    glare: float = 0.08
    """Share of the views in which the sun or a flash is reflected by the plate."""
    reflections: float = 0.3
    """Share of the views in which sky, trees or houses are mirrored by the plate, softly."""
    motion: float = 0.12
    """Share of the views blurred by motion."""
    jpeg: float = 0.7
    """Share of the views that were JPEG files, of any quality down to 25."""
    sharpened: float = 0.25
    """Share of the views that the camera has sharpened, with halos around the letters."""
    cut: float = 0.05
    """Share of the views in which up to an eighth of the sign is cut off at the left or right."""
    useless_views: float = 0.05
    """Share of the views in which nothing can be read, in signs that have another view."""
    margin: float = 0.1
    """Share of the view's width and height that stays free around the sign where it comes closest."""
    distance: float = 0.3
    """A view's sign is smaller than the view allows by up to this share."""
    shift: float = 0.6
    """A view's sign leaves the middle by up to this share of the free room."""
    yaw: float = 50.0
    """Degrees by which the plate is turned left or right, which foreshortens the text."""
    pitch: float = 20.0
    """Degrees by which the plate is turned up or down."""
    rotation: float = 5.0
    """Degrees by which the plate hangs askew."""
    blur: float = 1.2
    """Standard deviation of the focus blur of every second view, in hundredths of its height."""
    low_resolution: float = 0.65
    """A view is sampled at a resolution lower by up to this share and enlarged again."""
    light: float = 0.35
    """A view is brighter or darker by up to this share, and unevenly so by up to half of it."""
    tint: float = 0.12
    """A view's red, green and blue gains differ by up to this share."""
    desaturation: float = 0.6
    """The colours of every second view are greyer by up to this share."""
    haze: float = 0.3
    """A view's contrast is lower by up to this share."""
    noise: float = 6.0
    """Standard deviation of the sensor noise, in grey levels of 255."""
    noise_band: float = 0.12
    """Up to this share of a view's width, at its right, is uniform noise (in every fourth view)."""
    missing_views: float = 0.25
    """Share of the signs that have fewer views than asked for; FSNS fills the missing ones with uniform noise."""

    @classmethod
    def off(cls) -> SignEffects:
        """None of them: blue plates with the label on one line, seen from the front."""
        return cls(**{field.name: 1 if field.name == "max_lines" else 0.0 for field in fields(cls)})

    def scaled(self, difficulty: float) -> SignEffects:
        """The same effects with all that makes reading harder multiplied by `difficulty` (0 .. 1)."""
        if difficulty == 1:
            return self
        return replace(self, **{name: getattr(self, name) * difficulty for name in _SCALED_BY_DIFFICULTY})

    def spared(self, difficulty: float = 0.5) -> SignEffects:
        """The same effects for a sign's best view: less hard, and nothing that hides all of it."""
        return replace(self.scaled(difficulty), useless_views=0, cut=0)

    def check(self) -> None:
        """Raises SynthesisError, naming the field, where a value lies outside what can be drawn."""
        for field in fields(self):
            value, highest = getattr(self, field.name), _HIGHEST.get(field.name, 1)
            lowest = 1 if field.name == "max_lines" else 0
            if not lowest <= value <= highest:
                raise SynthesisError(f"effects.{field.name} is {value}: expected {lowest} .. {highest}")
        for names in _EXCLUSIVE:
            total = sum(getattr(self, name) for name in names)
            if total > 1 + 1e-9:
                raise SynthesisError(f"effects.{' + effects.'.join(names)} is {total:g}: expected at most 1")


PLATE_EFFECTS = ("green_borders", "white_plates", "green_plates", "stone_plates", "wood_plates", "regional_plates")
"""Kinds of plates other than blue ones."""

_EXCLUSIVE = (("upper_case", "mixed_case", "small_capitals"), ("town", "arrondissement"), PLATE_EFFECTS)
_SCALED_BY_DIFFICULTY = (
    *(
        "chips",
        "reflections",
        "sharpened",
        "cut",
        "desaturation",
        "wear",
        "rust",
        "night",
        "shadow",
        "leaves",
        "poles",
        "glare",
        "motion",
        "jpeg",
        "useless_views",
    ),
    *("distance", "shift", "yaw", "pitch", "rotation", "blur", "low_resolution", "light", "tint", "haze"),
    *("noise", "noise_band", "missing_views"),
)
_HIGHEST = {
    **{"margin": 0.4, "max_lines": 4, "distance": 0.9, "condensed": 0.9, "low_resolution": 0.9},
    **{"yaw": 70, "pitch": 60, "rotation": 45, "blur": 5, "noise": 40, "noise_band": 0.5, "light": 0.6, "tint": 0.5},
}
