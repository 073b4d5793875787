"""Turns a TensorFlow checkpoint into weights that train.py and eval.py take, without TensorFlow.

python convert_inception.py inception_v3.ckpt                 # the public Inception-v3: the tower
python convert_inception.py train_log/model.ckpt-400000       # a trained Attention-OCR: all of it, step and momentum
python convert_inception.py FILE --list                       # what is in it, nothing is written
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Optional

from aocr_torch.command_line import parse_options, run_main
from aocr_torch.config import PICTURE_LAYOUT, Data
from aocr_torch.data.charset import Charset
from aocr_torch.files import CHECKPOINT_FORMAT, CheckpointError
from aocr_torch.interop import pth_file
from aocr_torch.interop.tf_checkpoint import CheckpointReader, open_checkpoint
from aocr_torch.interop.tf_names import model_state_from_tf
from aocr_torch.interop.tf_plan import Report, plan_conversion
from aocr_torch.model.endpoints import map_shape

SAME_WEIGHTS = {"Conv2d_2b_3x3": "MaxPool_3a_3x3", "Conv2d_4a_3x3": "MaxPool_5a_3x3"}


@dataclass(frozen=True)
class Options:
    """Turns a TensorFlow checkpoint into weights that train.py and eval.py take."""

    checkpoint: Path
    """V1 file, V2 prefix or its .index, or a training folder with the state file `checkpoint`."""
    final_endpoint: Optional[str] = None
    """Where the tower ends, Conv2d_1a_3x3 .. Mixed_7c; default: Mixed_5d, or where a whole model's ends."""
    output: Optional[Path] = None
    """File to write; default: beside the checkpoint, with .pth."""
    charset: Optional[Path] = None
    """Charset file that a whole model was trained with, to travel along: train.py can then start on another charset."""
    use_autoregression: Optional[bool] = None
    """Whether a whole model's steps were told the previous character; with attention no shape tells, default True."""
    image_height: int = 150
    """Height of a whole model's images, pixels; neither this nor the next five leave a trace in a checkpoint."""
    image_width: int = 600
    """Width of its images, all views together, pixels."""
    num_views: int = 4
    """Its views."""
    max_sequence_length: int = 37
    """Its decoder's steps."""
    crop_width: Optional[int] = None
    """Width of its central crop, pixels."""
    crop_height: Optional[int] = None
    """Height of its central crop, pixels."""
    list: bool = False
    """List every variable and what would become of it, and write nothing."""
    force: bool = False
    """Replace an existing output."""
    ema: bool = False
    """Take the ExponentialMovingAverage of each variable that has one."""


def listing(reader: CheckpointReader, report: Report) -> Iterator[str]:
    """A line for each variable of the file."""
    fate = {match.theirs: f"-> {match.ours}" for match in report.matched}
    fate.update({match.theirs: f"-> momentum of {match.ours}" for match in report.momentum_matched})
    fate.update({name: f"ignored: {reason}" for name, reason in report.ignored.items()})
    fate.update({name: f"PROBLEM: {problem}" for name, problem in report.problems.items()})
    fate.update({report.step_name: "-> step"} if report.step_name else {})
    for name, (dtype, shape) in reader.variables.items():
        yield f"{name} {dtype} {list(shape)} {fate[name]}"
    for name in report.missing:
        yield f"{name} MISSING"


def summary(report: Report) -> Iterator[str]:
    """The table of what was matched, ignored and missing, a line for each block or reason."""
    yield f"{'matched':>8}  {'momentum':>8}  block"
    matched, momentum = (
        Counter(".".join(match.ours.split(".")[:2]) for match in matches)
        for matches in (report.matched, report.momentum_matched)
    )
    for block, count in matched.items():
        yield f"{count:8}  {momentum[block]:8}  {block}"
    for reason, count in Counter(report.ignored.values()).items():
        example = next(name for name, other in report.ignored.items() if other == reason)
        yield f"{count:8}   ignored  {reason}, such as {example}"
    for name in report.missing:
        yield f"           MISSING  {name}"
    for name, problem in report.problems.items():
        yield f"           PROBLEM  {name} {problem}"


def default_output(path: Path) -> Path:
    """inception_v3.ckpt -> inception_v3.pth; model.ckpt-400000 keeps its step: model.ckpt-400000.pth."""
    return path.with_suffix(".pth") if path.suffix == ".ckpt" else path.with_name(path.name + ".pth")


def sha256(path: Path) -> str:
    """Of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def architecture(report: Report, options: Options) -> dict[str, Any]:
    """Configuration of a whole model, from its shapes and what the options say of it.

    Raises:
        CheckpointError: its decoder reads other inputs than images of this size give.
    """
    layout = {name: getattr(options, name) for name in PICTURE_LAYOUT}
    data = Data(**layout)
    known = {
        "final_endpoint": report.final_endpoint,
        "use_attention": report.decoder == "attention",
        "num_lstm_units": report.num_lstm_units,
        **{name: value for name, value in layout.items() if value != getattr(Data, name)},
    }
    channels, height, width = map_shape(report.final_endpoint, *data.view_size)
    positions_a_step = data.num_views * height * width // data.max_sequence_length
    said = (True, False) if options.use_autoregression is None else (options.use_autoregression,)
    for has_coordinates, is_autoregressive in product((False, True), said):
        features = channels + has_coordinates * (height + width)
        if report.decoder == "attention":
            inputs = features
        else:
            inputs = positions_a_step * features + is_autoregressive * report.num_classes
        if inputs == report.decoder_inputs:
            return {**known, "encode_coordinates": has_coordinates, "use_autoregression": is_autoregressive}
    raise CheckpointError(
        f"the decoder takes {report.decoder_inputs} inputs, which {data.num_views} views of {data.view_size[0]}x"
        f"{data.view_size[1]} (height x width) and {data.max_sequence_length} steps do not give: say the model's with "
        "--image_height, --image_width, --num_views, --max_sequence_length, the crop and --use_autoregression"
    )


def main(arguments: list[str]) -> int:
    """Converts what the arguments name; the exit status is 0, or 1 if --list found that it cannot be converted."""
    options = parse_options(arguments, Options)
    with open_checkpoint(options.checkpoint) as reader:
        report = plan_conversion(reader.variables, options.final_endpoint, use_moving_average=options.ema)
        print(
            f"{reader.path}: {report.kind}, TensorFlow {reader.format} checkpoint of {len(reader.variables)} variables"
        )
        for line in listing(reader, report) if options.list else summary(report):
            print(line)
        if options.list:
            return 1 if report.error else 0
        if report.error:
            raise CheckpointError(f"{reader.path}: {report.error}")
        output = options.output or default_output(reader.path)
        if output.exists() and not options.force:
            raise CheckpointError(f"{output}: exists already; name another --output or replace it with --force")
        converted = convert(reader, options)
        if report.decoder is not None and options.final_endpoint is None and report.final_endpoint in SAME_WEIGHTS:
            other = SAME_WEIGHTS[report.final_endpoint]
            print(f"taken to end at {report.final_endpoint}; if it ended at {other}, say so with --final_endpoint")
    pth_file.save(output, converted)
    print(
        f"wrote {output}: {len(converted['model'])} tensors"
        + (f", step {converted['step']}" if report.step_name else "")
    )
    return 0


def convert(reader: CheckpointReader, options: Options) -> dict[str, Any]:
    """What is written: see aocr_torch/training/checkpoint.py."""
    state, report = model_state_from_tf(reader, options.final_endpoint, use_moving_average=options.ema)
    source = {"file": reader.path.name, "format": reader.format, "sha256": {p.name: sha256(p) for p in reader.files}}
    converted = {"format": CHECKPOINT_FORMAT, "model": state, "source": source}
    if report.decoder is not None:
        converted["config"] = architecture(report, options)
        converted["momentum"] = report.momentum
        if report.step is not None:
            converted["step"] = report.step
        if options.charset is not None:
            charset = Charset.from_file(options.charset)
            if charset.size != report.num_classes:
                raise CheckpointError(
                    f"{options.charset}: has {charset.size} classes, the model {report.num_classes}: not its charset"
                )
            converted["charset"] = charset.to_dict()
    elif options.charset is not None:
        raise CheckpointError(f"{options.charset}: an Inception-v3 has no characters: leave --charset away")
    return converted


if __name__ == "__main__":
    run_main(main)
