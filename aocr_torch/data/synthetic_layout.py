"""Where the text of a synthetic sign stands on its plate. All sizes are in units of the name's letters (1 em)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import ImageDraw

from aocr_torch.data.synthetic_effects import SignEffects
from aocr_torch.data.synthetic_fonts import CAP_HEIGHT, SOURCE_SANS, Face, advance, font
from aocr_torch.data.synthetic_noise import Colour, between
from aocr_torch.data.synthetic_text import Letters, Line, SignText

_RIGHT = 0.35
"""em that a row at the right leaves free."""


@dataclass(frozen=True)
class Row:
    """One line of text."""

    line: Line
    face: Face
    above: float
    """em between its capitals and the row above."""
    is_right_aligned: bool = False
    """Whether it ends at the right whatever the others do."""


@dataclass(frozen=True)
class Layout:
    """The rows of a plate from top to bottom, and its size in em."""

    rows: tuple[Row, ...]
    width: float
    height: float
    top: float
    """em above the first row's capitals."""
    left: float
    """em at the left that the text leaves free for a coat of arms."""
    start: float
    """em from the left at which all lines start; negative where they are centred."""
    spacing: float
    """em between letters, beyond what the font has."""
    has_rule: bool
    """Whether there is a line under the first row."""


def lay_out(rng: np.random.Generator, text: SignText, face: Face, effects: SignEffects) -> Layout:
    """Header, name, second name and subtitle below each other, and a plate that is large enough for them."""
    margin_x, margin_y = between(rng, 0.4, 0.7), between(rng, 0.4, 0.65)
    pitch, gap = between(rng, 0.95, 1.2), between(rng, 0.22, 0.4)
    spacing = max(0.0, effects.spacing * between(rng, -1, 1))
    is_left_aligned = rng.random() < effects.left_aligned
    rows = [Row(line, face, pitch - CAP_HEIGHT) for line in text.lines]
    name_width = max(_width(row, spacing) for row in rows)

    def small(shown: str, low: float, high: float, small_face: Face, above: float) -> Row:
        row = Row((Letters(shown, between(rng, low, high)),), small_face, above)
        fitting = min(1.0, max(name_width, 4.0) / _width(row, spacing))
        return Row((Letters(shown, row.line[0].size * fitting),), small_face, above)

    if text.second_name:
        rows.insert(0 if rng.random() < 0.3 else len(rows), small(text.second_name, 0.5, 0.8, face, gap + 0.1))
    if text.subtitle:
        row = small(text.subtitle, 0.2, 0.4, SOURCE_SANS[0], gap)
        rows.append(replace(row, is_right_aligned=bool(rng.random() < 0.35)))
    has_rule = bool(text.header) and rng.random() < 0.5
    if text.header:
        rows[0] = Row(rows[0].line, rows[0].face, (2 if has_rule else 1) * gap)
        rows.insert(0, small(text.header, 0.4, 0.6, face, gap))
    height = 2 * margin_y - rows[0].above + sum(row.above + _height(row) for row in rows)
    left = between(rng, 0.8, 1.1) if text.has_arms and not text.header else 0.0
    widest = max(_width(row, spacing) for row in rows)
    width = max(widest + left + 2 * margin_x, height * between(rng, 0.8, 1.4))
    if text.has_arms and text.header:
        width = max(width, _width(rows[0], spacing) + 2.6)
    start = left + margin_x if is_left_aligned else -1.0
    return Layout(tuple(rows), width, height, margin_y, left, start, spacing, has_rule)


def draw_text(draw: ImageDraw.ImageDraw, layout: Layout, em: float, ink: Colour, *, offset: int = 0) -> None:
    """Draws the rows, and the line under the header. `em` and `offset` (to the right and down) are in pixels."""
    y = layout.top - layout.rows[0].above
    for number, row in enumerate(layout.rows):
        y += row.above + _height(row)
        _draw_row(draw, row, layout, em, (y * em + offset, offset), ink)
        if number == 0 and layout.has_rule:
            rule = (y + layout.rows[1].above / 2) * em
            ends = (0.4 * em, rule, (layout.width - 0.4) * em, rule)
            draw.line(ends, fill=ink, width=max(1, round(em / 16)))


def _draw_row(
    draw: ImageDraw.ImageDraw, row: Row, layout: Layout, em: float, place: tuple[float, float], ink: Colour
) -> None:
    baseline, x = place
    width = _width(row, layout.spacing)
    start = layout.start if layout.start >= 0 else (layout.left + layout.width - width) / 2
    x += em * (layout.width - width - _RIGHT if row.is_right_aligned else start)
    for letters in row.line:
        size = letters.size * em
        sized = font(row.face, max(1, round(size)))
        for part in _parts(letters.text, layout.spacing):
            draw.text((x, baseline), part, fill=ink, font=sized, anchor="ls")
            x += (advance(row.face, part) + layout.spacing) * size


def _parts(text: str, spacing: float) -> Sequence[str]:
    """What is drawn at once: the font's own distances between letters are kept where they are not to be spaced."""
    return text if spacing else (text,)


def _width(row: Row, spacing: float) -> float:
    return sum(
        (advance(row.face, part) + spacing) * letters.size
        for letters in row.line
        for part in _parts(letters.text, spacing)
    )


def _height(row: Row) -> float:
    return CAP_HEIGHT * max(letters.size for letters in row.line)
