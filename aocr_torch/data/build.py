"""A data set in FSNS format from one's own pictures: labels checked, pictures laid out into views, shards written.

What cannot be used is left out and listed, one line each; the rest is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Literal, Optional

import yaml
from PIL import Image

from aocr_torch.config import ConfigError, Data
from aocr_torch.data.charset import Charset, CharsetError
from aocr_torch.data.fsns import encode_example
from aocr_torch.data.listing import Entry, Listing
from aocr_torch.data.pictures import PictureError, lay_out, read_picture, shown
from aocr_torch.data.processes import run_in_processes
from aocr_torch.data.records import write_shard
from aocr_torch.files import replacing_folder, why_not_replaced

PARAMETERS_FILE, CONFIG_FILE = "make_tfrecords.json", "config.yaml"
SPLITS = ("train", "validation", "test")
SHOWN_PLACES = 5


class BuildError(ValueError):
    """A data set that cannot be made as asked; the message is one line for the user."""


@dataclass(frozen=True)
class BuildParameters:
    """How a data set is made from pictures."""

    image_height: int = 150
    """Height of the images, pixels."""
    image_width: int = 600
    """Width of the images, all views together, pixels."""
    num_views: int = 4
    """Views side by side in an image."""
    max_sequence_length: int = 37
    """Characters in the longest label."""
    views: Optional[int] = None
    """Views that each picture shows side by side; by default one, or all if it has the image's size."""
    validation: float = 0.1
    """Share of the pictures that go into validation/."""
    test: float = 0.1
    """Share of the pictures that go into test/."""
    split_by: Literal["ratio", "hash"] = "ratio"
    """ratio: exact shares. hash: each picture by its path alone, so it keeps its split when others are added."""
    seed: int = 0
    """Another seed deals the pictures out in another way."""
    records_per_shard: int = 250
    """Records in one file; a file is written by one process."""

    def check(self) -> None:
        """Raises BuildError, naming the field, where a value cannot be."""
        layout = ("image_height", "image_width", "num_views", "max_sequence_length")
        try:
            Data(**{name: getattr(self, name) for name in layout})
        except ConfigError as error:
            raise BuildError(str(error)) from None
        if self.image_height < 1 or self.image_width < 1 or self.records_per_shard < 1:
            raise BuildError("image_height, image_width and records_per_shard must be at least 1")
        if self.views is not None and not 1 <= self.views <= self.num_views:
            raise BuildError(f"views is {self.views}: expected 1 to num_views, {self.num_views}")
        if not (self.validation >= 0 and self.test >= 0 and self.validation + self.test < 1):
            raise BuildError(
                f"validation {self.validation} and test {self.test}: expected shares of 0 or more, under 1 together"
            )


@dataclass(frozen=True)
class BuildSummary:
    """What a call of `build` wrote."""

    counts: dict[str, int]
    """Number of records by split."""
    charset: Charset
    """Built from the labels, or the one that was given."""
    problems: list[str]
    """One line for each picture or label that was left out."""
    unknown: dict[str, list[str]]
    """Characters that the given charset lacks, and where their labels were found."""

    def unknown_lines(self) -> list[str]:
        """One line for each unknown character: which, how often, where."""
        lines = []
        for character, places in sorted(self.unknown.items()):
            more = f" and {len(places) - SHOWN_PLACES} more" if len(places) > SHOWN_PLACES else ""
            name = unicodedata.name(character, "without a name")
            where = ", ".join(places[:SHOWN_PLACES]) + more
            lines.append(f"not in the charset: {character!r} (U+{ord(character):04X} {name}) at {where}")
        return lines


def build(
    listing: Listing,
    out_dir: Path,
    parameters: BuildParameters,
    charset: Optional[Charset] = None,
    processes: Optional[int] = None,
    *,
    force: bool = False,
    report: Optional[Callable[[int], object]] = None,
) -> BuildSummary:
    """Writes train/, validation/ and test/ shards, the charset file and a config.yaml for train.py into `out_dir`.

    Everything is written into a hidden folder beside `out_dir` that is renamed at the end, so an interrupted call
    leaves no data set that looks complete. The bytes do not depend on the number of processes.

    Args:
        charset: to encode the labels with; None builds one from their characters.
        processes: None takes one per core, 1 works in this process.
        force: replace a data set (never anything else) in `out_dir` that this function wrote.
        report: is called with the number of pictures that have just been finished.

    Raises:
        BuildError: a parameter cannot be, `out_dir` holds something else, or no picture can be used.
        ProcessKilledError, OSError: see `run_in_processes` and `replacing_folder`.
    """
    parameters.check()
    if processes is not None and processes < 1:
        raise BuildError(f"processes is {processes}: expected at least 1")
    out_dir = out_dir.resolve()
    _check_place(out_dir, force)
    problems = list(listing.problems)
    entries = [entry for entry in listing.entries if not _is_too_long(entry, parameters.max_sequence_length, problems)]
    if charset is None:
        charset = Charset.from_characters(sorted({character for entry in entries for character in entry.text}))
    known, unknown = _split_by_charset(entries, charset, problems)
    _require_some(known, problems)
    with replacing_folder(out_dir) as written:
        counts = _write_splits(written, known, parameters, charset, processes or os.cpu_count() or 1, problems, report)
        _require_some(any(counts.values()), problems)
        charset.save(written / f"charset_size={charset.size}.txt")
        description = {**asdict(parameters), "counts": counts}
        (written / PARAMETERS_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        (written / CONFIG_FILE).write_text(_training_config(out_dir, parameters), encoding="utf-8")
    return BuildSummary(counts, charset, problems, unknown)


def deal_out(entries: list[Entry], parameters: BuildParameters) -> dict[str, list[Entry]]:
    """The entries of each split, in their order; which one is a function of (seed, key), and for ratio of the rest."""
    places = {entry.key: _place(parameters.seed, entry.key) for entry in entries}
    shares = {"validation": parameters.validation, "test": parameters.test}
    if parameters.split_by == "ratio":
        # Of three or more pictures each split gets one at least, if it was asked for; training always was.
        least = 1 if len(entries) > 2 else 0
        counts = {name: max(round(len(entries) * share), least if share else 0) for name, share in shares.items()}
        while entries and sum(counts.values()) > len(entries) - 1:
            counts[max(counts, key=lambda name: counts[name])] -= 1
        ranks = {key: rank for rank, key in enumerate(sorted(places, key=lambda key: (places[key], key)))}
        places = {key: float(rank) for key, rank in ranks.items()}
        shares = {name: float(count) for name, count in counts.items()}
    splits: dict[str, list[Entry]] = {name: [] for name in SPLITS}
    for entry in entries:
        place = places[entry.key]
        in_test = place < shares["validation"] + shares["test"]
        splits["validation" if place < shares["validation"] else "test" if in_test else "train"].append(entry)
    return splits


def encode_picture(entry: Entry, parameters: BuildParameters, charset: Charset) -> bytes:
    """The entry as a serialized tf.Example.

    Raises:
        PictureError: its picture cannot be used.
    """
    height, width, num_views = parameters.image_height, parameters.image_width, parameters.num_views
    size = {"height": height, "width": width, "num_views": num_views}
    image, real_views = lay_out(read_picture(entry.path), **size, views=parameters.views)
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    real_width = real_views * width // num_views
    options = {"length": parameters.max_sequence_length, "width": width, "height": height, "orig_width": real_width}
    return encode_example(png.getvalue(), entry.text, charset, **options)


def _place(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on both alone."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode("utf-8", errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _is_too_long(entry: Entry, most: int, problems: list[str]) -> bool:
    if len(entry.text) <= most:
        return False
    found = f"the label of {shown(entry.key)} has {len(entry.text)} characters"
    problems.append(f"{entry.origin}: {found}, expected at most {most} (max_sequence_length)")
    return True


def _split_by_charset(
    entries: list[Entry], charset: Charset, problems: list[str]
) -> tuple[list[Entry], dict[str, list[str]]]:
    """The entries that the charset can encode, and where the characters occur that it cannot."""
    known, unknown = [], {}
    for entry in entries:
        try:
            charset.encode(entry.text, len(entry.text))
            known.append(entry)
        except CharsetError as error:
            problems.append(f"{entry.origin}: {error}")
            for character in sorted(set(entry.text) - {character for _, character in charset.lines}):
                unknown.setdefault(character, []).append(entry.origin)
    return known, unknown


def _require_some(there_is_some: object, problems: list[str]) -> None:
    if not there_is_some:
        left_out = f"{len(problems)} left out, the first: {problems[0]}" if problems else "there is none"
        raise BuildError(f"no picture can be used: {left_out}")


def _check_place(out_dir: Path, force: bool) -> None:
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return
    if not (out_dir / PARAMETERS_FILE).is_file():
        raise BuildError(f"{out_dir} exists and was not written by make_tfrecords: name another folder")
    if not force:
        raise BuildError(f"{out_dir} holds a data set already: name another folder, or give --force to replace it")
    if reason := why_not_replaced(out_dir, (*SPLITS, PARAMETERS_FILE, CONFIG_FILE, "charset_size=*.txt")):
        raise BuildError(reason)


def _write_splits(
    folder: Path,
    entries: list[Entry],
    parameters: BuildParameters,
    charset: Charset,
    processes: int,
    problems: list[str],
    report: Optional[Callable[[int], object]],
) -> dict[str, int]:
    """Writes all shards and returns the number of records by split; adds to `problems` in the order of the entries."""
    splits = deal_out(entries, parameters)
    size = parameters.records_per_shard
    tasks = [
        (folder / name / f"{number:05d}", splits[name][start : start + size])
        for name in SPLITS
        for number, start in enumerate(range(0, len(splits[name]), size))
    ]
    for path, _ in tasks:
        path.parent.mkdir(parents=True, exist_ok=True)
    counts, bad = {}, {}
    arguments = [(path, part, parameters, charset) for path, part in tasks]
    for number, (count, found) in run_in_processes(_write_one_shard, arguments, processes):
        path, part = tasks[number]
        counts[path] = count
        bad.update(found)
        if report:
            report(len(part))
    problems += [bad[entry.key] for entry in entries if entry.key in bad]
    for name in SPLITS:
        _name_shards([path for path, _ in tasks if path.parent.name == name and counts[path]])
    for path in [path for path, count in counts.items() if not count]:
        path.unlink()
        with contextlib.suppress(OSError):  # a split of which no picture can be used has no folder either
            path.parent.rmdir()
    return {name: sum(count for path, count in counts.items() if path.parent.name == name) for name in SPLITS}


def _name_shards(paths: list[Path]) -> None:
    """Gives the shards of a split that have records their final names, train-00000-of-00003 and so on."""
    for number, path in enumerate(paths):
        path.rename(path.with_name(f"{path.parent.name}-{number:05d}-of-{len(paths):05d}"))


def _write_one_shard(
    path: Path, entries: Iterable[Entry], parameters: BuildParameters, charset: Charset
) -> tuple[int, dict[str, str]]:
    bad: dict[str, str] = {}

    def records() -> Iterator[bytes]:
        for entry in entries:
            try:
                record = encode_picture(entry, parameters, charset)
            except PictureError as error:
                bad[entry.key] = f"{entry.origin}: {shown(entry.key)}: {error}"
            else:
                yield record

    return write_shard(path, records()), bad


def _training_config(out_dir: Path, parameters: BuildParameters) -> str:
    """What train.py must know of the data set: `train.py --config DATA/config.yaml`."""
    names = ("image_height", "image_width", "num_views", "max_sequence_length")
    values = {"dataset_dir": str(out_dir), **{name: getattr(parameters, name) for name in names}}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
