"""Small records whose pictures and labels follow from their number."""

import io

import numpy as np
from PIL import Image

from aocr_torch.data.charset import Charset
from aocr_torch.data.fsns import encode_example

CHARSET = Charset.from_characters(list(" abcdefghij"))
HEIGHT, WIDTH, LENGTH = 4, 8, 5


def pixels(number, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, image_format="PNG"):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format=image_format)
    return buffer.getvalue()


def example(number, png=None):
    png = encoded(pixels(number)) if png is None else png
    text = "abcdefghij"[number % 10] * (1 + number % LENGTH)
    return encode_example(png, text, CHARSET, length=LENGTH, width=WIDTH, height=HEIGHT, orig_width=WIDTH)
