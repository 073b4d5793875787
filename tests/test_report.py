"""Attention drawn over the views."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from aocr_torch.data.check import Sample
from aocr_torch.model.endpoints import map_place, map_shape
from aocr_torch.model.inception import InceptionTower
from aocr_torch.predict import Reading
from aocr_torch.report import (
    CAPTION_WIDTH,
    MAX_LISTED,
    attention_sprite,
    contact_sheet,
    draw_attention,
    heat_of,
    save_attention,
)

MAP_PLACES = {150: (8, 9), 48: (2, 3)}


def reading(text: str = "ab", attention=True, size: int = 150) -> Reading:
    weights = np.zeros((len(text), 4, 16, 16), np.float32)
    for number in range(len(text)):
        weights[number, number, 3, 12] = 1  # character `number` is looked for in view `number`, at the upper right
    views = np.full((4, size, size, 3), 100, np.uint8)
    return Reading(text, 0.5, -1.0, (0.5,) * len(text), views, weights if attention else None, MAP_PLACES[size])


def test_the_place_looked_at_is_lit_in_its_view_alone():
    frames = draw_attention(reading())
    assert len(frames) == 2
    for number, frame in enumerate(frames):
        pixels = np.asarray(frame).astype(int)[1:-1, CAPTION_WIDTH:]
        redness = pixels[:, :, 0] - pixels[:, :, 2]
        y, x = np.unravel_index(redness.argmax(), redness.shape)
        assert x // 150 == number
        # The map's 16 positions lie 8 pixels apart and begin 11 pixels from the edge.
        assert abs(x % 150 - (11 + 8 * 12.5)) <= 5
        assert abs(y - (11 + 8 * 3.5)) <= 5
        other = np.delete(pixels.reshape(-1, 4, 150, 3)[:, :, 5:-5], number, 1)
        assert (other == 60).all()


@pytest.mark.parametrize(
    ("endpoint", "least"), [("Conv2d_1a_3x3", 3), ("Mixed_5d", 27), ("Mixed_6e", 43), ("Mixed_7c", 75)]
)
def test_heat_has_room_in_views_of_every_size(endpoint, least):
    stride, margin = map_place(endpoint)
    for size in range(least, 300):
        _, rows, _ = map_shape(endpoint, size, size)
        lit = np.flatnonzero(heat_of(np.ones((rows, rows)), size, size, stride, margin).any(1))
        assert (lit[0], len(lit)) == (margin, rows * stride)


@pytest.mark.parametrize("endpoint", ["Conv2d_1a_3x3", "MaxPool_3a_3x3", "Conv2d_4a_3x3", "Mixed_5b"])
def test_heat_lies_where_the_network_looks(endpoint):
    torch.manual_seed(0)
    views = torch.rand(1, 3, 150, 150, requires_grad=True)
    maps = InceptionTower(endpoint, 1, True).eval()(views)
    position = maps.shape[2] // 2
    maps[0, :, position].sum().backward()
    seen = views.grad[0].abs().sum((0, 2)).nonzero()[:, 0]
    stride, margin = map_place(endpoint)
    assert (seen[0] + seen[-1]).item() / 2 == pytest.approx(margin + stride * (position + 0.5) - 0.5, abs=1)


def test_strip_and_animation(tmp_path):
    save_attention(reading("abc"), tmp_path / "new" / "strip.png")
    save_attention(reading("abc"), tmp_path / "strip.gif")
    with Image.open(tmp_path / "new" / "strip.png") as strip:
        assert strip.size == (CAPTION_WIDTH + 600, 3 * 151)
    with Image.open(tmp_path / "strip.gif") as animation:
        assert animation.n_frames == 3


def test_small_views_are_enlarged_and_an_empty_text_has_a_picture():
    (frame,) = draw_attention(reading("", size=48))
    assert frame.size == (CAPTION_WIDTH + 4 * 96, 97)


def test_sprite_has_all_characters_then_each_over_its_view():
    with Image.open(io.BytesIO(attention_sprite(reading("abc")))) as sprite:
        alpha = np.asarray(sprite.convert("RGBA"))[:, :, 3].reshape(4, 50, 4, 50)  # (row, y, view, x)
    seen = alpha.max((1, 3)) > 100
    assert seen.tolist() == [[True, True, True, False], *np.eye(4, dtype=bool)[:3].tolist()]
    y, x = np.unravel_index(alpha[2, :, 1].argmax(), (50, 50))
    assert abs(x - (11 + 8 * 12.5) / 3) <= 2
    assert abs(y - (11 + 8 * 3.5) / 3) <= 2
    assert attention_sprite(reading("")).startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", [draw_attention, attention_sprite])
def test_no_attention(draw):
    with pytest.raises(ValueError, match="no attention to draw"):
        draw(reading(attention=False))


def test_contact_sheet_escapes_what_it_shows():
    out = io.BytesIO()
    Image.new("RGBA", (4, 4)).save(out, "PNG")
    sample = Sample("s-0:1", "<b>&", out.getvalue())
    html = contact_sheet("<data>", ["a < b"], ["<script>"] * (MAX_LISTED + 2), [sample])
    assert "<title>&lt;data&gt;</title>" in html
    assert "&lt;b&gt;&amp;" in html
    assert "<script>" not in html
    assert "<li>and 2 more</li>" in html
