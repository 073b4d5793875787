"""Pictures and pages for people: where a model looked for each character, and what a data set holds.

T' characters read, V views, H W feature map, h w view in pixels.
"""

from __future__ import annotations

import base64
import io
import os
from html import escape
from pathlib import Path
from typing import Union

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from aocr_torch.data.check import Sample
from aocr_torch.predict import Reading

MIN_FRAME_HEIGHT = 96  # pixels; smaller views are enlarged, so that a caption fits beside them
CAPTION_WIDTH = 120
NO_ATTENTION = "this model has no attention to draw: trained with use_attention=False, or exported without"
SPRITE_VIEW = 50  # pixels of a view's longer side at most
SPRITE_STEPS = 24  # degrees of transparency: few compress well
_HEAT = np.array([255, 70, 0], np.float32)


def draw_attention(reading: Reading) -> list[Image.Image]:
    """One picture for each character: the views side by side, lit and reddened where the network looked, and a caption.

    The brightest place of a character is drawn at full strength whatever its weight.

    Raises:
        ValueError: the model has no attention.
    """
    if reading.attention is None:
        raise ValueError(NO_ATTENTION)
    confidences = reading.character_confidences
    return [
        _frame(reading, weights, f"{number + 1}  {character!r}", f"{confidence:.3f}")
        for number, (character, confidence, weights) in enumerate(zip(reading.text, confidences, reading.attention))
    ] or [_frame(reading, np.zeros(reading.attention.shape[1:]), "nothing", "read")]


def save_attention(reading: Reading, path: Union[str, os.PathLike]) -> None:
    """Writes `draw_attention`: a strip, characters downwards, or for a path in .gif an animation."""
    frames = draw_attention(reading)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=700, loop=0)
        return
    strip = Image.new("RGB", (frames[0].width, sum(frame.height for frame in frames)))
    for number, frame in enumerate(frames):
        strip.paste(frame, (0, number * frame.height))
    strip.save(path)


def heat_of(weights: np.ndarray, height: int, width: int, stride: int, margin: int) -> np.ndarray:
    """Attention on one view's map, float (H, W), spread over the view's pixels: float32 (height, width).

    A position of the map covers as many pixels as the network strides. Its unpadded convolutions leave a margin around
    the map, which is therefore not stretched over all of the view.
    """
    rows, columns = weights.shape
    size = columns * stride, rows * stride
    spread = Image.fromarray(weights.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    heat = np.zeros((height, width), np.float32)
    heat[margin : margin + size[1], margin : margin + size[0]] = np.asarray(spread)
    return heat


def _frame(reading: Reading, weights: np.ndarray, *caption: str) -> Image.Image:
    """weights float (V, H, W)."""
    _, height, width, _ = reading.views.shape
    heat = _strip_of_heat(reading, weights)[..., None]  # (h, V*w, 1)
    pixels = np.concatenate(list(reading.views), 1).astype(np.float32)
    lit = pixels * (0.6 + 0.4 * heat)
    picture = Image.fromarray((lit + (_HEAT - lit) * 0.6 * heat).round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for edge in range(width, picture.width, width):
        draw.line([(edge, 0), (edge, height)], fill="white")
    scale = -(-MIN_FRAME_HEIGHT // height)
    picture = picture.resize((picture.width * scale, height * scale), Image.Resampling.NEAREST)
    page = Image.new("RGB", (picture.width + CAPTION_WIDTH, picture.height + 1), "white")
    page.paste(picture, (CAPTION_WIDTH, 0))
    ImageDraw.Draw(page).multiline_text((8, 8), "\n".join(caption), fill="black", font=_font(24))
    return page


def _strip_of_heat(reading: Reading, weights: np.ndarray) -> np.ndarray:
    """weights float (V, H, W) -> how strongly to draw them over the views side by side, 0 .. 1, (h, V*w)."""
    _, height, width, _ = reading.views.shape
    heat = np.concatenate([heat_of(view, height, width, *reading.map_place) for view in weights], 1)
    return np.sqrt(heat / max(float(heat.max()), 1e-12))


def attention_sprite(reading: Reading) -> bytes:
    """A small transparent PNG to lay over the views: attention to all characters, below it that to each.

    Each row of it is as high and wide as the views side by side, scaled down. ValueError as `draw_attention`.
    """
    if reading.attention is None:
        raise ValueError(NO_ATTENTION)
    views, height, width, _ = reading.views.shape
    scale = -(-max(height, width) // SPRITE_VIEW)
    size = max(views * width // scale, 1), max(height // scale, 1)
    rows = [
        Image.fromarray(_strip_of_heat(reading, weights)).resize(size, Image.Resampling.BOX)
        for weights in reading.attention
    ]
    heats = np.stack([np.asarray(row) for row in rows]) if rows else np.zeros((1, size[1], size[0]))
    strengths = np.concatenate([heats.max(0, keepdims=True), heats])  # (1 + T', h', V*w')
    steps = np.arange(SPRITE_STEPS)
    sprite = Image.fromarray((strengths * steps[-1]).round().astype(np.uint8).reshape(-1, size[0]))
    sprite.putpalette(np.tile(_HEAT.astype(np.uint8), SPRITE_STEPS).tobytes())
    png = io.BytesIO()
    sprite.save(png, "PNG", transparency=bytes((steps * (0.7 * 255 / steps[-1])).astype(np.uint8)), optimize=True)
    return png.getvalue()


def _font(size: int) -> ImageFont.FreeTypeFont:
    import font_source_sans_pro  # has the accents that Pillow's own font lacks

    return ImageFont.truetype(font_source_sans_pro.font_files_ttf["SourceSansPro"], size)


def contact_sheet(title: str, summary: list[str], problems: list[str], samples: list[Sample]) -> str:
    """One self-contained HTML page: the summary, the problems, and samples of the records with their labels."""
    cards = "\n".join(
        f'<figure><img loading="lazy" alt="" src="{_thumbnail(sample.image)}">'
        f"<figcaption><b>{escape(sample.text)}</b><br>{escape(sample.name)}</figcaption></figure>"
        for sample in samples
    )
    listed = [f"<li>{escape(line)}</li>" for line in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        listed.append(f"<li>and {len(problems) - MAX_LISTED} more</li>")
    heading = f"<h2>{len(problems)} problems</h2><ul>{''.join(listed)}</ul>" if problems else ""
    lines = "<br>".join(map(escape, summary))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><p>{lines}</p>{heading}<main>{cards}</main></body></html>\n"
    )


MAX_LISTED = 1000
_STYLE = (
    "body{font:15px sans-serif;margin:1em;background:#fff;color:#222}"
    "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:1em}"
    "figure{margin:0}img{width:100%;display:block}li,p,figcaption{overflow-wrap:anywhere}"
    "figcaption b{white-space:pre-wrap}"
)


def _thumbnail(encoded: bytes) -> str:
    with Image.open(io.BytesIO(encoded)) as image:
        return jpeg_address(image.convert("RGB"))


def jpeg_address(image: Image.Image) -> str:
    """A picture as a data: address."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode('ascii')}"
