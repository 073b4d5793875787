"""Writes a trained model as an ONNX file, checks it against PyTorch, and prints the command that makes an .om of it.

python tools/export_onnx.py --ckpt runs/train/best.pth                     # -> runs/train/best.onnx
python tools/export_onnx.py --ckpt runs/train --output model.onnx --fp16 --input float32
python tools/predict.py --ckpt model.onnx photo.jpg

In: images, uint8 (batch, height, width, 3), the views side by side; with --input float32 they are divided by 255 and
(batch, 3, height, width). Out: ids and scores (batch, steps), log_probability and confidence (batch,), attention
(batch, steps, positions). The file is there only if it reads eight pictures, one by one and together, as PyTorch does:
equal texts, scores within 1e-4, with --fp16 within 0.02. The exit status is 0, or 2 and nothing written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

import numpy as np

from aocr_torch.command_line import parse_options, run_main
from aocr_torch.config import Data
from aocr_torch.data.pictures import PictureError, find_pictures, lay_out, read_picture, shown


@dataclass(frozen=True)
class Options:
    """Writes a trained model as an ONNX file that computes what PyTorch does."""

    ckpt: Optional[Path] = None
    """Checkpoint of train.py, its folder, or a converted whole model."""
    output: Optional[Path] = None
    """The file to write; by default beside the checkpoint, ending in .onnx."""
    input: Literal["uint8", "float32"] = "uint8"
    """uint8: pixels as they are, (batch, height, width, 3). float32: divided by 255, (batch, 3, height, width)."""
    fp16: bool = False
    """float16 weights and activations: half the size, scores within 0.02 of float32's."""
    attention: bool = True
    """Where the model looks as an output, if it has attention."""
    images: tuple[str, ...] = ()
    """Pictures to check with, files or folders; by default eight drawn signs."""
    charset_filename: Optional[Path] = None
    """Charset file; only a converted checkpoint, which holds none, needs it."""
    soc_version: str = "Ascend910B3"
    """Chip in the atc command, as `npu-smi info` names it, with Ascend before it."""
    force: bool = False
    """Replace an existing file."""


def main(arguments: list[str]) -> int:
    """Exports what the arguments name."""
    options = parse_options(arguments, Options)
    if options.ckpt is None:
        raise ValueError("no checkpoint: give --ckpt FILE, as train.py writes it into train_log_dir")
    from aocr_torch.interop import onnx
    from aocr_torch.predict import Predictor

    if options.ckpt.suffix == ".onnx":
        raise ValueError(f"{options.ckpt}: is an ONNX file already, expected a checkpoint")
    name = "model.onnx" if options.ckpt.is_dir() else options.ckpt.with_suffix(".onnx").name
    folder = options.ckpt if options.ckpt.is_dir() else options.ckpt.parent
    path = options.output or folder / name
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: expected a name that ends in .onnx, by which tools/predict.py knows it")
    if path.exists() and not options.force:
        raise ValueError(f"{path}: exists already; name another --output or replace it with --force")
    predictor = Predictor(options.ckpt, charset=options.charset_filename)
    data, charset = predictor.data, predictor.charset
    pictures = read_pictures(options.images, data) if options.images else onnx.draw_pictures(data, charset)
    takes_bytes = options.input == "uint8"
    worst = onnx.export(
        predictor.model,
        charset,
        path,
        pictures,
        takes_bytes=takes_bytes,
        float16=options.fp16,
        with_attention=options.attention,
    )
    print(f"{path} written, {path.stat().st_size / 1e6:.1f} MB: any batch size, charset and configuration inside")
    differences = ", ".join(f"{name} {difference:.1g}" for name, difference in worst.items())
    print(f"as PyTorch on {len(pictures)} pictures, one by one and together: texts equal; at most apart: {differences}")
    print("For Ascend, one batch size or several (not tried on the hardware; --soc_version as npu-smi info says):")
    print("\n".join(onnx.atc_commands(path, data, takes_bytes, options.soc_version)))
    if takes_bytes:
        print("CANN documents float input for ONNX: where atc refuses uint8, export with --input float32")
    return 0


def read_pictures(paths: tuple[str, ...], data: Data) -> np.ndarray:
    """The pictures that the paths name, uint8 (B, H, W, 3); raises PictureError naming the first bad one."""
    size = {"height": data.image_height, "width": data.image_width, "num_views": data.num_views}
    images = []
    for file in [file for path in paths for file in (find_pictures(path) or [path])]:
        try:
            images.append(lay_out(read_picture(file), **size)[0])
        except PictureError as error:
            raise PictureError(error.reason, shown(file)) from None
    return np.stack(images)


if __name__ == "__main__":
    run_main(main)
