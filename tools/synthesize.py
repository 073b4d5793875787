"""Draws a data set of synthetic street signs in FSNS format: shards, charset file, and a JSON of its parameters.

python tools/synthesize.py OUT                                 # like FSNS: four views of 150x150, long names
python tools/synthesize.py OUT --preset demo                   # two views of 48x96, short names on clean plates
python tools/synthesize.py OUT --num_train 20000 --effects.yaw 30 --processes 2
python tools/synthesize.py OUT --contact_sheet sheet.png       # and a picture of 100 of them with their labels
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Optional

import tyro
from PIL import Image
from tqdm import tqdm

from aocr_torch.command_line import interruptible, parse_options, run_main
from aocr_torch.data.synthetic import PRESETS, SyntheticParameters, synthesize
from aocr_torch.data.synthetic_sheet import draw_contact_sheet
from aocr_torch.files import require_writable


@dataclass(frozen=True)
class Options:
    """Draws a data set of synthetic street signs in FSNS format."""

    out: Path
    """Folder to make."""
    parameters: Annotated[SyntheticParameters, tyro.conf.arg(name="")] = field(default_factory=SyntheticParameters)
    """All that the data depends on."""
    preset: Literal["fsns", "demo"] = "fsns"
    """Where the defaults of the other options come from."""
    processes: int = os.cpu_count() or 1
    """Processes that draw; the data does not depend on it."""
    force: bool = False
    """Replace another synthetic data set in that folder."""
    contact_sheet: Optional[Path] = None
    """Picture to write as well, of 100 training signs with their labels."""


def parse(arguments: list[str]) -> Options:
    """The command line, read twice: --preset gives the defaults of the other options."""
    options = parse_options(arguments, Options)
    return parse_options(arguments, replace(options, parameters=PRESETS[options.preset]))


def main(arguments: list[str]) -> int:
    """Draws what the arguments ask for; the exit status is 0 also where it was already there."""
    options = parse(arguments)
    sheet = options.contact_sheet
    if sheet is not None:
        require_writable(sheet)
        if sheet.suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"contact_sheet is {sheet}: expected a name that ends as pictures do, .jpg or .png")
    num_signs = sum(options.parameters.counts().values())
    try:
        bar = tqdm(total=num_signs, unit="sign", disable=None, leave=False)
        with bar, interruptible(bar.update) as report:
            summary = synthesize(options.out, options.parameters, options.processes, force=options.force, report=report)
    except KeyboardInterrupt:
        print(f"interrupted: {options.out} was not written", file=sys.stderr)
        return 130
    counts = ", ".join(f"{count} {split}" for split, count in summary.counts.items())
    state = "drawn into" if summary.was_written else "already in"
    print(f"{counts} signs {state} {options.out} (charset of {summary.charset_size})")
    if sheet is not None:
        draw_contact_sheet(options.parameters).save(sheet, quality=40)
        print(f"100 signs shown in {sheet}")
    return 0


if __name__ == "__main__":
    run_main(main)
