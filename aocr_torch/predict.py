"""Reading pictures with a trained model: `Predictor("model.pth")(["photo.jpg"])[0].text`, or `Predictor()` for ours.

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
from torch import Tensor, nn

from aocr_torch import device as devices
from aocr_torch.config import Config
from aocr_torch.data.augment import split_views
from aocr_torch.data.charset import Charset
from aocr_torch.data.pictures import Picture, PictureError, lay_out, read_picture, shown
from aocr_torch.files import shipped_weights
from aocr_torch.model.endpoints import map_place
from aocr_torch.model.ocr import AttentionOCR, interpret
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
    map_place: tuple[int, int]
    """Stride and margin of the map in a view, pixels; see `endpoints.map_place`."""


class Reader(nn.Module):
    """Pictures in, answers out: a model with what stands before and behind it. An exported model is a trace of this.

    Args:
        model: in evaluation mode. config: its own. null_id: the charset's.
    """

    def __init__(self, model: AttentionOCR, config: Config, null_id: int) -> None:
        super().__init__()
        self.model, self.config, self.null_id = model, config, null_id
        self.map_shape = model.map_shape

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Reads images.

        Args:
            images: uint8 (B, H, W, 3), or float32 in [0, 1].

        Returns:
            ids int64 (B, T), scores float32 (B, T), log_probability float32 (B,), confidence float32 (B,), all as
            `Prediction` has them, and of a model with attention, attention float32 (B, T, L).
        """
        outputs = self.model(split_views(images, self.config.data.num_views, self.config.data.crop))
        prediction = interpret(outputs["logits"], self.null_id)
        answer = {
            "ids": prediction.ids,
            "scores": prediction.scores,
            "log_probability": prediction.confidences,
            "confidence": prediction.normalized_confidences,
        }
        if "attention" in outputs:
            answer["attention"] = outputs["attention"].float()
        return answer


class Predictor:
    """A trained model, ready to read.

    Args:
        checkpoint: a file of train.py, a folder of its checkpoints, a converted whole model, or what
            tools/export_onnx.py made of one (.onnx, for which onnxruntime must be installed); by default the model
            that comes with the package.
        device: cpu, cuda:0, npu:0, ... or auto.
        charset: a charset file; only a converted checkpoint, which holds none, needs it.
        batch_size: pictures that are read, and held in memory, at a time.
        stop_early: end a reading when every picture of the batch has ended (see `AttentionDecoder`): the same texts,
            unless the model reads on behind a null. An exported model takes all its steps.

    Raises:
        CheckpointError, CharsetError, DeviceError: one line each.
    """

    def __init__(
        self,
        checkpoint: Union[str, os.PathLike, None] = None,
        device: str = "cpu",
        *,
        charset: Union[str, os.PathLike, None] = None,
        batch_size: int = 16,
        stop_early: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least 1")
        self.batch_size = batch_size
        path = shipped_weights() if checkpoint is None else Path(checkpoint)
        given = None if charset is None else Charset.from_file(Path(charset))
        if path.suffix == ".onnx":
            from aocr_torch.interop.onnx_model import OnnxModel

            self.model = OnnxModel(path, device)
            self.charset = given or self.model.charset
            if self.charset.size != self.model.charset.size:
                sizes = f"{self.charset.size} classes, the model {self.model.charset.size}"
                raise checkpoints.CheckpointError(f"{charset}: has {sizes}: leave it away, {path} holds its own")
            self._answer, self._is_on_host = self.model, self.model.is_on_host
        else:
            self.device = devices.resolve(device)
            self.model, self.charset = _load(path, given)
            self.model.to(self.device)
            if stop_early:
                self.model.model.decoder.ending = self.charset.null_id
            self._answer, self._is_on_host = self._answer_of_torch, devices.is_host(self.device)
        self.data = self.model.config.data

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
    def _answer_of_torch(self, images: np.ndarray) -> dict[str, np.ndarray]:
        answer = self.model(torch.from_numpy(images).to(self.device))
        return {name: values.cpu().numpy() for name, values in answer.items()}

    def _read(self, images: list[np.ndarray]) -> list[Reading]:
        if not images:
            return []
        count = len(images)
        if not self._is_on_host:
            # One shape for all batches: an accelerator compiles, and may choose its kernels, for every other one.
            images = images + images[-1:] * (self.batch_size - count)
        pixels = np.stack(images)  # (B, H, W, 3)
        return readings_of(self._answer(pixels), pixels, self.model.config, self.model.map_shape, self.charset)[:count]


def readings_of(
    answer: dict[str, np.ndarray], pixels: np.ndarray, config: Config, map_shape: tuple[int, int, int], charset: Charset
) -> list[Reading]:
    """The readings that a model's answer stands for.

    Args:
        answer: as `Reader.forward` returns it, of `pixels`, uint8 (B, H, W, 3). map_shape: (V, H, W) of its attention.
    """
    attention = answer.get("attention")  # (B, T, L)
    if attention is not None:
        attention = attention.reshape(*attention.shape[:2], *map_shape)  # (B, T, V, H, W)
    views = split_views(torch.from_numpy(pixels), config.data.num_views, config.data.crop)  # (B, V, 3, h, w)
    seen = (views * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()  # (B, V, h, w, 3)
    place = map_place(config.model.final_endpoint)
    readings = []
    for i, ids in enumerate(answer["ids"]):  # (T,)
        is_character = ids != charset.null_id
        readings.append(
            Reading(
                text=charset.decode(ids.tolist()),
                confidence=float(answer["confidence"][i]),
                log_probability=float(answer["log_probability"][i]),
                character_confidences=tuple(answer["scores"][i][is_character].tolist()),
                views=seen[i].copy(),
                attention=None if attention is None else attention[i][is_character],
                map_place=place,
            )
        )
    return readings


def _load(path: Path, charset: Optional[Charset]) -> tuple[Reader, Charset]:
    """The model of a checkpoint on the host, and its charset, or the one given."""
    state = checkpoints.load(path)
    checkpoints.require_decoder(path, state)
    config = checkpoints.config_of(state)
    charset = charset or checkpoints.charset_of(state)
    if charset is None:
        raise checkpoints.CheckpointError(
            f"{path}: holds no charset, as it was converted: give --charset_filename FILE"
        )
    model = checkpoints.build_model(state, config, charset, path)
    return Reader(model, config, charset.null_id), charset
