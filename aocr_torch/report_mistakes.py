"""The mistakes of a model to look at: read again, drawn with the attention to each character, as cards of a page.

V views, h w view in pixels, T' characters read.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape

import torch
from PIL import Image

from aocr_torch import device as devices
from aocr_torch.config import Config
from aocr_torch.data.fsns import FSNSDataset
from aocr_torch.model.ocr import AttentionOCR
from aocr_torch.predict import Reader, Reading, readings_of
from aocr_torch.report import attention_sprite, jpeg_address
from aocr_torch.training.outcomes import Outcome, choose_mistakes
from aocr_torch.training.statistics import align


@torch.no_grad()
def read_again(
    model: AttentionOCR, dataset: FSNSDataset, indices: list[int], config: Config, device: torch.device
) -> Iterator[Reading]:
    """Reads a few records of an evaluation once more, now keeping views and attention; a batch of them at a time."""
    reader, size = Reader(model, config, dataset.charset.null_id), config.data.batch_size
    for start in range(0, len(indices), size):
        images = [dataset[index]["image"] for index in indices[start : start + size]]
        count = len(images)
        if not devices.is_host(device):
            images += images[-1:] * (size - count)  # the shape that the evaluation had
        pixels = torch.stack(images)  # (B, H, W, 3)
        answer = {name: values.cpu().numpy() for name, values in reader(pixels.to(device)).items()}
        yield from readings_of(answer, pixels.numpy(), config, model.map_shape, dataset.charset)[:count]


def cards(
    model: AttentionOCR,
    dataset: FSNSDataset,
    outcomes: list[Outcome],
    config: Config,
    device: torch.device,
    count: int,
) -> list[str]:
    """HTML of the `count` mistakes of an evaluation that say most, see `choose_mistakes`."""
    confident, farthest = choose_mistakes(outcomes, count)
    kinds = ["confident"] * len(confident) + ["far off"] * len(farthest)
    chosen = confident + farthest
    rows = {outcome.index: row for row, outcome in enumerate(outcomes)}
    readings = read_again(model, dataset, [outcome.index for outcome in chosen], config, device)
    return [
        card(kind, rows[outcome.index], dataset.name(outcome.index), outcome, reading)
        for kind, outcome, reading in zip(kinds, chosen, readings)
    ]


def card(kind: str, row: int, name: str, outcome: Outcome, reading: Reading) -> str:
    """HTML of a mistake: its views with the attention over them, its label, and the characters read, each a button.

    Args:
        kind: why it is shown. row: its number in the page's list of records. name: of the record.
    """
    count, height, width, _ = reading.views.shape
    heat = ""
    if reading.attention is not None:
        heat = f"--heat:url(data:image/png;base64,{base64.b64encode(attention_sprite(reading)).decode('ascii')});"
    style = f"{heat}--views:{count};--narrow:{2 - count % 2};--rows:{len(reading.text)};--ratio:{width}/{height}"
    pictures = map(jpeg_address, map(Image.fromarray, reading.views))
    views = "".join(
        f'<span><img alt="view {number + 1}" src="{picture}"><i style="--view:{number}"></i></span>'
        for number, picture in enumerate(pictures)
    )
    label = escape(outcome.label) or "<em>empty</em>"
    return (
        f'<article data-row="{row}" style="{style}"><header><span class="tag">{escape(kind)}</span> '
        f"<b>{outcome.confidence:.3f}</b> <small>{escape(name)}</small><output></output></header>"
        f'<div class="views">{views}</div><dl><dt>label</dt><dd><bdi>{label}</bdi></dd>'
        f'<dt>read</dt><dd class="text">{_characters(outcome.label, reading)}</dd></dl></article>'
    )


def _characters(label: str, reading: Reading) -> str:
    """The characters read as buttons, the wrong ones marked, and between them those that were missed."""
    confidences = iter(reading.character_confidences)
    out, number = [], 0
    for expected, found in align(label, reading.text):
        if not found:
            out.append(f'<del title="missed">{escape(expected)}</del>')
            continue
        number += 1
        is_wrong = expected != found
        title = f"{next(confidences):.3f}" + (f", not {expected!r}" if is_wrong and expected else "")
        mark = ' class="wrong"' if is_wrong else ""
        out.append(
            f'<button type="button"{mark} data-number="{number}" title="{escape(title)}">{escape(found)}</button>'
        )
    return "".join(out) or "<em>nothing</em>"
