"""Reading pictures with a trained model: `Predictor("model.pth")(["photo.jpg"])[0].text`.

The one way in for inference. Configuration and charset come from the checkpoint, and what the network is given and how
its answer is read is the code of training and evaluation.

B batch, V views, T steps, T' characters read, H W feature map, h w view in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Optional, Union

import numpy as np
import torch
from PIL import Image

from aocr_torch import device as devices
from aocr_torch.data.augment import split_views
from aocr_torch.data.charset import Charset
from aocr_torch.data.pictures import Picture, PictureError, lay_out, read_picture, shown
from aocr_torch.model.ocr import interpret
from aocr_torch.training import checkpoint as checkpoints


@dataclass(frozen=True)
class Reading:
    """What a model read in one picture."""

    text: str
    """The characters, nulls dropped."""
    confidence: float
    """0 .. 1, the reference's normalised confidence: the geometric mean of the probabilities, end included."""
    log_probability: float
    """Sum of the log-probabilities of the characters and of the end after them."""
    character_confidences: tuple[float, ...]
    """Probability of each character of `text`, (T')."""
    views: np.ndarray
    """What the network was given: uint8 (V, h, w, 3)."""
    attention: Optional[np.ndarray]
    """Where the network looked for each character of `text`, float32 (T', V, H, W), each summing to 1; None for a model
    without attention."""


class Predictor:
    """A trained model, ready to read.

    Args:
        checkpoint: a file of train.py, a folder of its checkpoints, or a converted whole model.
        device: cpu, cuda:0, npu:0, ... or auto.
        charset: a charset file; only a converted checkpoint, which holds none, needs it.
        batch_size: pictures that are read, and held in memory, at a time.

    Raises:
        CheckpointError, CharsetError, DeviceError: one line each.
    """

    def __init__(
        self,
        checkpoint: Union[str, os.PathLike],
        device: str = "cpu",
        *,
        charset: Union[str, os.PathLike, None] = None,
        batch_size: int = 16,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least 1")
        state = checkpoints.load(Path(checkpoint))
        config = checkpoints.config_of(state)
        self.data = config.data
        own = checkpoints.charset_of(state)
        if own is None and charset is None:
            raise checkpoints.CheckpointError(f"{checkpoint}: holds no charset, as it was converted: give its charset")
        self.charset = Charset.from_file(Path(charset)) if charset is not None else own
        model = checkpoints.build_model(state, config, self.charset, Path(checkpoint))
        self.device = devices.resolve(device)
        self.model = model.to(self.device)
        self.batch_size = batch_size

    def __call__(self, images: Iterable[Picture], *, views: Optional[int] = None) -> list[Reading]:
        """Reads pictures of any size and mode; the answer for one does not depend on the others.

        Args:
            images: paths, bytes of files, Pillow images or arrays (see `read_picture`).
            views: how many views each picture shows side by side (see `lay_out`).

        Raises:
            PictureError: naming the first picture that cannot be read. `stream` goes on after it.
        """
        readings = []
        for reading in self.stream(images, views=views):
            if isinstance(reading, PictureError):
                raise reading
            readings.append(reading)
        return readings

    def stream(
        self, images: Iterable[Picture], *, views: Optional[int] = None
    ) -> Iterator[Union[Reading, PictureError]]:
        """As a call, but one by one for any number of pictures, and with the error in place of a bad one's reading."""
        if isinstance(images, (str, bytes, os.PathLike, np.ndarray, Image.Image)):
            raise TypeError(f"found one {type(images).__name__}, expected a list of pictures: put it into [ ]")
        numbered = enumerate(images)
        while chunk := list(islice(numbered, self.batch_size)):
            laid_out = [self._lay_out(number, picture, views) for number, picture in chunk]
            readings = iter(self._read([image for image in laid_out if isinstance(image, np.ndarray)]))
            for image in laid_out:
                yield next(readings) if isinstance(image, np.ndarray) else image

    def _lay_out(self, number: int, picture: Picture, views: Optional[int]) -> Union[np.ndarray, PictureError]:
        data = self.data
        size = {"height": data.image_height, "width": data.image_width, "num_views": data.num_views}
        try:
            return lay_out(read_picture(picture), **size, views=views)[0]
        except PictureError as error:
            is_path = isinstance(picture, (str, os.PathLike))
            return PictureError(error.reason, shown(picture) if is_path else f"picture {number}")

    @torch.no_grad()
    def _read(self, images: list[np.ndarray]) -> list[Reading]:
        if not images:
            return []
        count = len(images)
        if not devices.is_host(self.device):
            # One shape for all batches: an accelerator compiles, and may choose its kernels, for every other one.
            images = images + images[-1:] * (self.batch_size - count)
        pixels = torch.from_numpy(np.stack(images)).to(self.device)
        views = split_views(pixels, self.data.num_views, self.data.crop)  # (B, V, 3, h, w)
        outputs = self.model(views)
        prediction = interpret(outputs["logits"], self.charset.null_id)
        attention = outputs.get("attention")  # (B, T, L)
        if attention is not None:
            attention = attention.float().unflatten(2, self.model.map_shape).cpu().numpy()  # (B, T, V, H, W)
        seen = (views * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()  # (B, V, h, w, 3)
        ids, scores = prediction.ids.cpu().numpy(), prediction.scores.cpu().numpy()  # (B, T) each
        sums, means = prediction.confidences.tolist(), prediction.normalized_confidences.tolist()
        readings = []
        for i in range(count):
            is_character = ids[i] != self.charset.null_id  # (T,)
            readings.append(
                Reading(
                    text=self.charset.decode(ids[i].tolist()),
                    confidence=means[i],
                    log_probability=sums[i],
                    character_confidences=tuple(scores[i][is_character].tolist()),
                    views=seen[i].copy(),
                    attention=None if attention is None else attention[i][is_character],
                )
            )
        return readings
