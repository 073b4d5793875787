"""Running a model that tools/export_onnx.py wrote; all it needs is in the file.

B batch, T steps, L feature positions, H W height and width of the whole image.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aocr_torch import device as devices
from aocr_torch.config import from_dict
from aocr_torch.data.charset import Charset
from aocr_torch.training.checkpoint import CheckpointError

FORMAT = "aocr_torch/onnx/1"


class MissingExtraError(ValueError):
    """A package of the extra [onnx] is not installed."""


def import_extra(name: str) -> Any:
    """Imports onnx or onnxruntime; raises MissingExtraError with the command that installs them."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"ONNX needs the package {name}, which cannot be imported ({error}): pip install -e '.[onnx]'"
        ) from error


class OnnxModel:
    """An exported model in onnxruntime.

    Args:
        path: the file. device: as everywhere; auto takes the accelerator that the installed onnxruntime serves.

    Attributes:
        config, charset, map_shape: as of the checkpoint that was exported.
        is_on_host: whether it runs on the CPU.

    Raises:
        MissingExtraError, CheckpointError, DeviceError: one line each.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file: name a model that tools/export_onnx.py wrote")
        onnxruntime = import_extra("onnxruntime")
        providers = devices.onnx_providers(device, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are raised as well
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime raises a type of its own for every kind of damage
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path}: not a readable ONNX file: {reason}; export it again") from None
        metadata = self._session.get_modelmeta().custom_metadata_map
        if metadata.get("format") != FORMAT:
            found = repr(metadata["format"]) if "format" in metadata else "none"
            raise CheckpointError(
                f"{path}: has format {found}, expected {FORMAT!r}: write it with tools/export_onnx.py"
            )
        self.config = from_dict(json.loads(metadata["config"]), source=str(path))
        self.charset = Charset.from_dict(json.loads(metadata["charset"]))
        self.map_shape = tuple(json.loads(metadata["map_shape"]))
        self.is_on_host = self._session.get_providers()[0] == devices.ONNX_PROVIDERS["cpu"]
        self._takes_bytes = self._session.get_inputs()[0].type == "tensor(uint8)"
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Images uint8 (B, H, W, 3) -> the arrays of `Reader`."""
        if not self._takes_bytes:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) * np.float32(1 / 255)  # (B, 3, H, W)
        return dict(zip(self._names, self._session.run(None, {"images": images})))
