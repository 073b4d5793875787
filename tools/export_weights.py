"""Writes what is worth passing on of a checkpoint: float16 weights, charset, and what the network needs.

python tools/export_weights.py runs/synthetic/best.pth weights/synthetic.pth
python tools/export_weights.py runs/mine mine.pth --images photos

The file is a sixth of a checkpoint of Adam's and is taken like one: --ckpt of eval.py, tools/predict.py and
tools/export_onnx.py, --checkpoint of train.py, `Predictor`. It is there only if it reads 100 pictures as the checkpoint
does, one text at most excepted. The exit status is 0, or 2 and nothing written.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from aocr_torch.command_line import parse_options, run_main
from aocr_torch.data.pictures import Picture, find_pictures
from aocr_torch.data.synthetic import PRESETS, draw_example
from aocr_torch.files import CheckpointError, replacing_path
from aocr_torch.interop.onnx import draw_pictures
from aocr_torch.predict import Predictor
from aocr_torch.training import checkpoint

NUM_DRAWN = 100
MOST_OTHER_TEXTS = 0.01
"""Of what cannot be read, two characters may be so equally probable that rounding decides between them."""


@dataclass(frozen=True)
class Options:
    """Writes what is worth passing on of a checkpoint: float16 weights, charset, and what the network needs."""

    checkpoint: Path
    """Checkpoint of train.py, its folder (the newest one), or a converted whole model with a charset."""
    output: Path
    """The file to write."""
    images: tuple[str, ...] = ()
    """Pictures to check with, files or folders; by default 100 drawn signs."""
    force: bool = False
    """Replace an existing file."""


def main(arguments: list[str]) -> int:
    """Writes what the arguments name, after a check."""
    options = parse_options(arguments, Options)
    output = options.output
    if output.exists() and not options.force:
        raise CheckpointError(f"{output}: exists already; name another file or replace it with --force")
    state = checkpoint.load(options.checkpoint)
    with replacing_path(output) as beside:
        checkpoint.save(beside, checkpoint.portable(state, options.checkpoint))
        original, written = Predictor(options.checkpoint), Predictor(beside)
        images = [file for path in options.images for file in (find_pictures(path) or [path])]
        report = compare(original, written, images or drawn_signs(original))
    content = output.read_bytes()
    size = sum(value.numel() for value in original.model.model.state_dict().values())
    print(f"{output} written, {len(content) / 1e6:.2f} MB, sha256 {hashlib.sha256(content).hexdigest()}")
    print(f"step {state.get('step', 0)}, {size:,} numbers, {original.charset.size} classes; {report}")
    return 0


def compare(original: Predictor, written: Predictor, pictures: list[Picture]) -> str:
    """How much `written` reads as `original` does, in words; raises CheckpointError where it is not enough."""
    pairs = list(zip(original(pictures), written(pictures)))
    equal = [(ours, theirs) for ours, theirs in pairs if ours.text == theirs.text]
    count = f"{len(equal)} of {len(pairs)} pictures"
    if len(pairs) - len(equal) > MOST_OTHER_TEXTS * len(pairs):
        ours, theirs = next((ours.text, theirs.text) for ours, theirs in pairs if ours.text != theirs.text)
        raise CheckpointError(
            f"in float16 it reads only {count} as the checkpoint does ({theirs!r} for {ours!r}): nothing was written"
        )
    apart = max((abs(ours.log_probability - theirs.log_probability) for ours, theirs in equal), default=0.0)
    return f"{count} read as by the checkpoint, log probabilities of their texts at most {apart:.2g} apart"


def drawn_signs(predictor: Predictor) -> list[Picture]:
    """Held-out signs with the names of the preset that has the model's charset, if one has, else with any letters."""
    data, charset = predictor.data, predictor.charset
    size = {"height": data.image_height, "view_width": data.image_width // data.num_views, "num_views": data.num_views}
    for preset in PRESETS.values():
        if preset.charset() == charset:
            parameters = replace(preset, **size)
            return [draw_example(parameters, "test", number)[0] for number in range(NUM_DRAWN)]
    return list(draw_pictures(data, charset, NUM_DRAWN))


if __name__ == "__main__":
    run_main(main)
