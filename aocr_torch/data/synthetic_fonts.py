"""The letters of synthetic signs: free fonts out of packages on PyPI, all with every character of FSNS.

Sizes are counted so that the capitals of all fonts are equally high: CAP_HEIGHT of the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

from aocr_torch.data.synthetic_effects import SynthesisError

CAP_HEIGHT = 0.66


@dataclass(frozen=True)
class Face:
    """One font file."""

    package: str
    """On PyPI; the module's name has underscores for hyphens."""
    file: str
    """In the package's folder files/."""


SOURCE_SANS = tuple(Face("font-source-sans-pro", f"SourceSansPro-{name}.ttf") for name in ("Semibold", "Bold", "Black"))
OTHER_SANS = (
    *(Face("font-roboto", f"Roboto-{name}.ttf") for name in ("Medium", "Bold", "Black")),
    *(Face("font-hanken-grotesk", f"HankenGrotesk-{name}.otf") for name in ("SemiBold", "Bold")),
    *(Face("font-manrope", f"Manrope-{name}.ttf") for name in ("Bold", "ExtraBold")),
    Face("font-fredoka-one", "FredokaOne-Regular.ttf"),
)
SERIF = (
    *(Face("font-source-serif-pro", f"SourceSerifPro-{name}.ttf") for name in ("Semibold", "Bold", "Black")),
    *(Face("font-caladea", f"Caladea-{name}.ttf") for name in ("Regular", "Bold")),
)
FACES = (*SOURCE_SANS, *OTHER_SANS, *SERIF)
"""All fonts. SIL Open Font License: Source Sans Pro, Source Serif Pro, Hanken Grotesk, Manrope, Fredoka One. Apache
License 2.0: Roboto, Caladea."""


@lru_cache(maxsize=512)
def font(face: Face, size: int) -> ImageFont.FreeTypeFont:
    """The face with capitals of CAP_HEIGHT * size pixels.

    Raises:
        SynthesisError: its package is not installed.
    """
    # Basic layout: most letters are drawn one by one, which takes the other one four times as long.
    size = max(1, round(size * _enlargement(face)))
    return ImageFont.truetype(str(_path(face)), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=8192)
def advance(face: Face, text: str) -> float:
    """How far the text reaches to the right, as a multiple of its size."""
    return font(face, 100).getlength(text) / 100


def missing_characters(face: Face, characters: str) -> str:
    """Those of the characters that the font has no glyph for: they look like a character that no font has."""
    large = font(face, 40)
    no_glyph = bytes(large.getmask("\U0010fffd"))
    return "".join(c for c in characters if not c.isspace() and bytes(large.getmask(c)) == no_glyph)


@cache
def _enlargement(face: Face) -> float:
    """What a size is multiplied with to have capitals of the common height."""
    return CAP_HEIGHT * 200 / -ImageFont.truetype(str(_path(face)), 200).getbbox("H", anchor="ls")[1]


@cache
def _path(face: Face) -> Path:
    found = find_spec(face.package.replace("-", "_"))
    path = Path(found.origin).parent / "files" / face.file if found is not None and found.origin else None
    if path is None or not path.is_file():
        raise SynthesisError(
            f"the signs' letters need {face.file} of the package {face.package}: pip install {face.package}"
        )
    return path
