"""Reads pictures with a trained model: one line each with the confidence, the text and the file.

python tools/predict.py photo.jpg                                                    # with the model that comes along
python tools/predict.py --ckpt runs/train/best.pth photo.jpg more/ "scans/*.tif"
python tools/predict.py --ckpt runs/train --views 4 sign.png --attention looked/     # four views side by side
curl ... | python tools/predict.py --ckpt runs/train --json -

A folder stands for all pictures under it, a pattern for what it matches, and - for one picture on standard input.
A picture of the model's own size is taken as it is; of any other, --views says how many views it shows side by side.
The exit status is 0 if all were read, 1 if some were not (each has a line on standard error), 2 for a wrong command.
"""

from __future__ import annotations

import dataclasses
import glob
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

from aocr_torch.command_line import parse_options, run_main
from aocr_torch.data.pictures import Picture, PictureError, find_pictures, shown
from aocr_torch.files import shipped_weights

LONGEST_STEM = 200  # bytes; a file's name may have 255


@dataclass(frozen=True)
class Options:
    """Reads pictures with a trained model: one line each with the confidence, the text and the file."""

    images: tuple[str, ...]
    """Files, folders, patterns in quotes, or - for a picture on standard input."""
    ckpt: Optional[Path] = None
    """Checkpoint of train.py, its folder, a converted whole model, or an .onnx file of tools/export_onnx.py; by default
    the model that comes along, weights/synthetic.pth."""
    device: str = "auto"
    """cpu, cuda:0, npu:0, ... or auto."""
    views: Optional[int] = None
    """Views that each picture shows side by side; by default one, or all if it has the model's own size."""
    json: bool = False
    """Print a JSON object a line, with the probability of every character."""
    attention: Optional[Path] = None
    """Folder for pictures of where the model looked for each character."""
    attention_format: Literal["png", "gif"] = "png"
    """A strip with the characters downwards, or an animation."""
    charset_filename: Optional[Path] = None
    """Charset file; only a converted checkpoint, which holds none, needs it."""
    batch_size: int = 16
    """Pictures that are read at a time."""


def named_pictures(arguments: tuple[str, ...]) -> Iterator[tuple[str, Picture]]:
    """(name, picture) of all that the arguments stand for; what stands for nothing comes as it is, and fails later."""
    for argument in arguments:
        if argument == "-":
            yield "-", sys.stdin.buffer.read()
            continue
        matches = [argument]
        if not os.path.exists(argument) and glob.has_magic(argument):
            matches = sorted(glob.glob(argument, recursive=True)) or matches
        found = dict.fromkeys(file for match in matches for file in _files(match))  # `**` matches folders and files
        yield from ((file, file) for file in list(found) or [argument])


def _files(path: str) -> list[str]:
    """The pictures of a folder, or the file itself."""
    return [str(file) for file in find_pictures(path)] if os.path.isdir(path) else [path]


def attention_file(folder: Path, name: str, suffix: str, taken: set[Path]) -> Path:
    """Where the attention of the picture `name` goes: named like it, numbered if that is taken."""
    stem = "stdin" if name == "-" else os.fsdecode(os.fsencode(Path(name).name)[:LONGEST_STEM])
    path, number = folder / f"{stem}.{suffix}", 2
    while path.absolute() in taken:
        path, number = folder / f"{stem}-{number}.{suffix}", number + 1
    taken.add(path.absolute())
    return path


def main(arguments: list[str]) -> int:
    """Reads the pictures that the arguments name; the exit status tells whether all could be read."""
    options = parse_options(arguments, Options)
    ckpt = options.ckpt or shipped_weights()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character gets its escape, not an error
        sys.stdout.reconfigure(errors="backslashreplace")
    from aocr_torch.predict import Predictor
    from aocr_torch.report import save_attention

    predictor = Predictor(ckpt, options.device, charset=options.charset_filename, batch_size=options.batch_size)
    if options.views is not None and not 1 <= options.views <= predictor.data.num_views:
        raise ValueError(f"--views is {options.views}: expected 1 to {predictor.data.num_views}, the model's views")
    if options.ckpt is None:
        print(f"reading with {shown(ckpt)}, the model that comes along; --ckpt FILE takes another", file=sys.stderr)
    pictures = list(named_pictures(options.images))
    failures, taken = 0, {Path(name).absolute() for name, _ in pictures}  # no attention goes over a picture
    readings = predictor.stream((picture for _, picture in pictures), views=options.views)
    for (name, _), reading in zip(pictures, readings):
        if isinstance(reading, PictureError):
            failures += 1
            print(f"error: {shown(name)}: {reading.reason}", file=sys.stderr)
            continue
        found = {"file": name, **summary(reading)}
        if options.attention is not None:
            drawn = attention_file(options.attention, name, options.attention_format, taken)
            save_attention(reading, drawn)
            found["attention"] = str(drawn)
        line = json.dumps(found) if options.json else f"{reading.confidence:.4f}\t{reading.text}\t{shown(name)}"
        print(line, flush=True)
    if failures:
        print(f"{failures} of {len(pictures)} pictures could not be read", file=sys.stderr)
    return 1 if failures else 0


def summary(reading: object) -> dict[str, object]:
    """What --json prints of a reading: all but its arrays."""
    fields = {field.name: getattr(reading, field.name) for field in dataclasses.fields(reading)}
    return {name: value for name, value in fields.items() if name not in ("views", "attention", "map_place")}


if __name__ == "__main__":
    run_main(main)
