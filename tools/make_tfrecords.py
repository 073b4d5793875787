"""Makes a data set in FSNS format from pictures and their labels: shards, charset file, config.yaml for train.py.

python tools/make_tfrecords.py labels.tsv DATA               # lines of path, tab, text; also .csv and .jsonl
python tools/make_tfrecords.py photos/ DATA                  # photo.jpg beside photo.txt
python tools/make_tfrecords.py labels.csv DATA --num_views 1 --image_width 300 --image_height 100
python tools/make_tfrecords.py labels.tsv DATA --charset charset_size=134.txt --validation 0.05 --test 0

A picture of the image's size is taken as it is. Any other is fitted into one view (--views says that it shows several
side by side) and the missing views are filled with noise, as in FSNS. What cannot be used is listed on standard error
and left out. The exit status is 0 if all was used, 1 if something was left out, 2 if nothing was written.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Optional

import tyro
from tqdm import tqdm

from aocr_torch.command_line import interruptible, parse_options, run_main
from aocr_torch.data.build import BuildParameters, build
from aocr_torch.data.charset import Charset
from aocr_torch.data.listing import read_listing


@dataclass(frozen=True)
class Options:
    """Makes a data set in FSNS format from pictures and their labels."""

    source: Path
    """A list of path and text (.tsv, .csv, .jsonl), or a folder of pictures with a .txt beside each."""
    out: Path
    """Folder to make."""
    parameters: Annotated[BuildParameters, tyro.conf.arg(name="")] = field(default_factory=BuildParameters)
    """How it is made."""
    charset: Optional[Path] = None
    """Charset file to encode the labels with; by default one is built from their characters."""
    processes: int = os.cpu_count() or 1
    """Processes that read pictures; the data does not depend on it."""
    force: bool = False
    """Replace another data set of this tool in that folder."""


def main(arguments: list[str]) -> int:
    """Makes what the arguments ask for; the exit status tells whether something was left out."""
    options = parse_options(arguments, Options)
    charset = None if options.charset is None else Charset.from_file(options.charset)
    try:
        listing = read_listing(options.source)
        bar = tqdm(total=len(listing.entries), unit="picture", disable=None, leave=False)
        with bar, interruptible(bar.update) as report:
            summary = build(
                listing,
                options.out,
                options.parameters,
                charset,
                options.processes,
                force=options.force,
                report=report,
            )
    except KeyboardInterrupt:
        print(f"interrupted: {options.out} was not written", file=sys.stderr)
        return 130
    for line in [*summary.problems, *summary.unknown_lines()]:
        print(line, file=sys.stderr)
    counts = ", ".join(f"{count} {split}" for split, count in summary.counts.items())
    print(f"{counts} records written into {options.out} (charset of {summary.charset.size})")
    print(f"{len(summary.problems)} left out")
    if not summary.counts["train"]:
        print("nothing is left to train on: give more pictures, or smaller shares to --validation and --test")
    return 1 if summary.problems else 0


if __name__ == "__main__":
    run_main(main)
