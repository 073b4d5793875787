"""Reads every record of a data set and says what a training would stumble over.

python tools/check_data.py DATA                              # train/, validation/ and test/, as far as they are there
python tools/check_data.py DATA --splits test --contact_sheet sheet.html
python tools/check_data.py DATA --to_images FILES            # back to picture files and lists of their texts

Checked are: framing and CRCs, image and its size, label, its ids and length, text and sizes beside it, pictures of one
colour, the same picture twice. The exit status is 0 if all is good, 1 if there are problems, 2 for a wrong command.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from aocr_torch.command_line import parse_options, run_main
from aocr_torch.data.build import SPLITS
from aocr_torch.data.charset import Charset
from aocr_torch.data.check import Check, Layout, check, find_layout, require_free, to_images
from aocr_torch.data.fsns import find_charset, find_shards
from aocr_torch.files import replacing, require_writable


@dataclass(frozen=True)
class Options:
    """Reads every record of a data set and says what a training would stumble over."""

    dataset_dir: Path
    """Folder with train/, validation/, test/ shards and the charset file."""
    splits: tuple[str, ...] = ()
    """Splits to read: names, files or patterns; by default train, validation and test as far as they are there."""
    charset_filename: Optional[str] = None
    """Charset file, relative to dataset_dir; by default the one named charset_size=*.txt there."""
    image_height: Optional[int] = None
    """Height that images must have, pixels; by default that of the first readable record."""
    image_width: Optional[int] = None
    """Width that images must have, pixels; by default that of the first readable record."""
    max_sequence_length: Optional[int] = None
    """Ids that labels must have; by default those of the first readable record."""
    contact_sheet: Optional[Path] = None
    """HTML page to write, with the summary and some records of each split."""
    contact_sheet_records: int = 60
    """Records of each split on that page, besides those with problems."""
    to_images: Optional[Path] = None
    """Folder to write the pictures to, with a .csv of their texts for each split."""
    max_lines: int = 100
    """Problems, and notes, that are printed; the rest is counted."""
    processes: int = os.cpu_count() or 1
    """Processes that read."""


def main(arguments: list[str]) -> int:
    """Checks what the arguments name; the exit status tells whether all is good."""
    options = parse_options(arguments, Options)
    if options.contact_sheet is not None:
        require_writable(options.contact_sheet)
    if min(options.processes, options.contact_sheet_records, options.max_lines) < 1:
        raise ValueError("processes, contact_sheet_records and max_lines must be at least 1")
    if options.to_images is not None:
        require_free(options.to_images)
    names = options.splits or [name for name in SPLITS if (options.dataset_dir / name).is_dir()] or ["train"]
    charset = Charset.from_file(find_charset(options.dataset_dir, options.charset_filename))
    shards = {name: find_shards(options.dataset_dir, name) for name in names}
    with tqdm(total=sum(map(len, shards.values())), unit="shard", disable=None, leave=False) as bar:
        found = check(
            shards,
            charset,
            expected_layout(options, [path for paths in shards.values() for path in paths], charset),
            processes=options.processes,
            num_samples=options.contact_sheet_records if options.contact_sheet else 0,
            report=bar.update,
        )
    print_limited(found.problems, options.max_lines, "problems")
    print_limited([f"note: {line}" for line in found.notes], options.max_lines, "notes")
    print("\n".join(found.summary()))
    if options.contact_sheet is not None:
        write_contact_sheet(options.contact_sheet, options.dataset_dir, found)
    if options.to_images is not None:
        written, lost = to_images(shards, charset, found.layout, options.to_images)
        print(f"{written} pictures written into {options.to_images}, {lost} records could not be read")
    return 1 if found.problems else 0


def expected_layout(options: Options, shards: list[Path], charset: Charset) -> Layout:
    """The layout that every record must have: as the flags say, and where they say nothing as the first record has."""
    given = options.image_height, options.image_width, options.max_sequence_length
    if None not in given:
        return Layout(*given)
    first = find_layout(shards, charset)
    return Layout(*(flag or value for flag, value in zip(given, (first.height, first.width, first.length))))


def print_limited(lines: list[str], most: int, kind: str) -> None:
    """Prints the first `most` lines to standard error, and how many there are beyond."""
    for line in lines[:most]:
        print(line, file=sys.stderr)
    if len(lines) > most:
        print(f"and {len(lines) - most} more {kind}", file=sys.stderr)


def write_contact_sheet(path: Path, dataset_dir: Path, found: Check) -> None:
    """Writes the HTML page."""
    from aocr_torch.report import contact_sheet

    samples = [sample for findings in found.splits.values() for sample in findings.samples]
    page = contact_sheet(str(dataset_dir), found.summary(), found.problems, samples)
    with replacing(path) as file:
        file.write(page.encode("utf-8", "backslashreplace"))  # a file's name may be no text
    print(f"contact sheet of {len(samples)} records written to {path}")


if __name__ == "__main__":
    run_main(main)
