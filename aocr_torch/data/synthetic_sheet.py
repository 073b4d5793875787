"""A picture of many synthetic signs with their labels, to look at before training on them."""

from __future__ import annotations

from PIL import Image, ImageDraw

from aocr_torch.data.synthetic import draw_example
from aocr_torch.data.synthetic_fonts import SOURCE_SANS, font
from aocr_torch.data.synthetic_parameters import SyntheticParameters

_CELL_WIDTH, _TEXT_HEIGHT, _GAP, _COLUMNS = 288, 17, 6, 4


def draw_contact_sheet(parameters: SyntheticParameters, count: int = 100) -> Image.Image:
    """The first `count` training signs, four in a row, each 288 pixels wide with its label below, as RGB."""
    cell_height = round(_CELL_WIDTH * parameters.height / (parameters.num_views * parameters.view_width))
    row_height = cell_height + _TEXT_HEIGHT
    size = _COLUMNS * (_CELL_WIDTH + _GAP) - _GAP, -(-count // _COLUMNS) * row_height
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index in range(count):
        picture, label, _ = draw_example(parameters, "train", index)
        x, y = index % _COLUMNS * (_CELL_WIDTH + _GAP), index // _COLUMNS * row_height
        sheet.paste(Image.fromarray(picture).resize((_CELL_WIDTH, cell_height), Image.Resampling.BOX), (x, y))
        draw.text((x + 2, y + cell_height), label, fill="black", font=font(SOURCE_SANS[0], 12))
    return sheet
