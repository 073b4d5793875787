"""Reading every record of a data set, to know before a training what a training would stumble over; and back to files.

A problem is what a training or an evaluation would stop at or be misled by; a note is only worth knowing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
from PIL import Image
from tfrecord.example_pb2 import Example

from aocr_torch.data.build import BuildError
from aocr_torch.data.charset import NULL, Charset
from aocr_torch.data.fsns import FSNSDataset, text_of, written_text
from aocr_torch.data.processes import run_in_processes
from aocr_torch.data.records import RecordError, Shards
from aocr_torch.files import replacing_folder, require_replaceable


@dataclass(frozen=True)
class Layout:
    """What every record of a data set must have."""

    height: int
    """Of the image, pixels."""
    width: int
    """Of the image, pixels."""
    length: int
    """Ids of a label, nulls included."""


@dataclass(frozen=True)
class Sample:
    """A record to look at."""

    name: str
    """As messages name it: "train-00000:3"."""
    text: str
    """Its label."""
    image: bytes
    """As the record has it, PNG or JPEG."""


@dataclass
class Findings:
    """What was found in some shards; those of several are added up."""

    records: int = 0
    """Records found, damaged ones included."""
    good: int = 0
    """Records without a problem of their own."""
    problems: list[str] = field(default_factory=list)
    """One line each."""
    notes: list[str] = field(default_factory=list)
    """One line each."""
    lengths: Counter = field(default_factory=Counter)
    """Records by characters of the label."""
    ids: Counter = field(default_factory=Counter)
    """Occurrences of each class in labels, padding left out."""
    real_widths: Counter = field(default_factory=Counter)
    """Records by width of the part that holds real views, pixels."""
    pictures: list[tuple[int, str, str]] = field(default_factory=list)
    """(hash of the pixels, label, name) of each readable record."""
    samples: list[Sample] = field(default_factory=list)
    """For a contact sheet."""

    def add(self, other: Findings) -> None:
        """Adds the findings of another shard."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Check:
    """What a check found."""

    splits: dict[str, Findings]
    """By split."""
    problems: list[str]
    """All, those between records included; one line each."""
    notes: list[str]
    """One line each."""
    layout: Layout
    """What was expected of every record."""
    charset: Charset
    """That of the data set."""

    def summary(self) -> list[str]:
        """Lines for people: each split, the labels, the charset, duplicates; the counts last."""
        lines = []
        for split, found in self.splits.items():
            lengths = sorted(found.lengths.elements()) or [0]
            spread = f"labels of {lengths[0]} to {lengths[-1]} characters, {np.mean(lengths):.1f} on average"
            real = ", ".join(f"{count} x {width}" for width, count in sorted(found.real_widths.items()))
            lines.append(f"{split}: {found.good} of {found.records} records good; {spread}; real pixels: {real or '-'}")
        lines.append(f"images {self.layout.width}x{self.layout.height}, labels padded to {self.layout.length}")
        lines.append(self._charset_use())
        total, good = (sum(getattr(found, name) for found in self.splits.values()) for name in ("records", "good"))
        lines.append(f"{good} of {total} records good, {len(self.problems)} problems, {len(self.notes)} notes")
        return lines

    def _charset_use(self) -> str:
        used: Counter = sum((found.ids for found in self.splits.values()), Counter())
        unused = [c for i, c in enumerate(self.charset.characters) if c != NULL and not used[i]]
        names = f": {''.join(unused)!r} never occur" if unused else ""
        return f"charset of {self.charset.size}: {self.charset.size - 1 - len(unused)} characters occur{names}"


def check(
    splits: dict[str, list[Path]],
    charset: Charset,
    layout: Optional[Layout] = None,
    *,
    processes: int = 1,
    num_samples: int = 0,
    report: Optional[Callable[[int], object]] = None,
) -> Check:
    """Reads every record of the shards.

    Args:
        splits: shards by split. layout: None takes that of the first readable record.
        processes: that read; a shard is read by one. num_samples: records of each split to keep for a contact sheet.
        report: is called with the number of shards that have just been finished.

    Raises:
        BuildError: no record can be read, so nothing tells the layout. OSError: a shard cannot be opened.
        ProcessKilledError: see `run_in_processes`.
    """
    layout = layout or find_layout([path for paths in splits.values() for path in paths], charset)
    findings = {split: Findings() for split in splits}
    tasks = [(split, path, -(-num_samples // len(paths))) for split, paths in splits.items() for path in paths]
    results: list[Any] = [None] * len(tasks)
    arguments = [(path, charset, layout, samples) for _, path, samples in tasks]
    for number, found in run_in_processes(check_shard, arguments, processes):
        results[number] = found
        if report:
            report(1)
    for (split, *_), found in zip(tasks, results):
        findings[split].add(found)
    between, same = _duplicates(findings)
    problems = [line for found in findings.values() for line in found.problems] + between
    notes = [line for found in findings.values() for line in found.notes] + same
    return Check(findings, problems, notes, layout, charset)


def check_shard(path: Path, charset: Charset, layout: Layout, num_samples: int = 0) -> Findings:
    """Reads every record of one shard."""
    dataset = _open(path, charset, layout)
    found = Findings(records=len(dataset) + len(dataset.shards.bad))
    found.problems += map(str, dataset.shards.bad)
    if found.records == 0:
        found.notes.append(f"{path.name} is empty (0 bytes): fine if no records were to be in it")
    wanted = set(np.linspace(0, len(dataset) - 1, num_samples).astype(int).tolist()) if num_samples else set()
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
        except RecordError as error:
            found.problems.append(str(error))
            continue
        features = Example.FromString(dataset.shards.read(index)).features.feature
        label = sample["label"].tolist()
        text = text_of(features, label, charset)
        reasons = list(_contradictions(features, label, sample["image"].numpy(), charset))
        found.problems += [str(dataset.shards.error(index, reason)) for reason in reasons]
        found.good += not reasons
        found.lengths[len(text)] += 1
        found.ids.update(identifier for identifier in label if identifier != charset.null_id)
        found.real_widths[_number(features, "image/orig_width") or layout.width] += 1
        pixels = hashlib.sha256(sample["image"].numpy().tobytes()).digest()
        found.pictures.append((int.from_bytes(pixels[:8], "big"), text, dataset.name(index)))
        if index in wanted or (num_samples and reasons):
            found.samples.append(Sample(dataset.name(index), text, features["image/encoded"].bytes_list.value[0]))
    return found


def find_layout(paths: list[Path], charset: Charset) -> Layout:
    """The layout of the first readable record.

    Raises:
        BuildError: there is none.
    """
    first = "there are no records"
    for path in paths:
        shards = Shards([path], skip_bad_records=True)
        for index in range(len(shards)):
            try:
                features = Example.FromString(shards.read(index)).features.feature
                with Image.open(io.BytesIO(features["image/encoded"].bytes_list.value[0])) as image:
                    width, height = image.size
                layout = Layout(height, width, len(features["image/class"].int64_list.value))
                _open(path, charset, layout)[index]
                return layout
            except Exception as error:  # as many types as there are ways to damage a record; the check names them all
                first = str(error) if first.startswith("there") else first
        first = str(shards.bad[0]) if shards.bad and first.startswith("there") else first
    raise BuildError(f"no record can be read: {first}")


def _open(path: Path, charset: Charset, layout: Layout) -> FSNSDataset:
    size = {"image_height": layout.height, "image_width": layout.width, "max_sequence_length": layout.length}
    return FSNSDataset(Shards([path], skip_bad_records=True), charset, **size)


def _number(features: Any, name: str) -> Optional[int]:
    values = features[name].int64_list.value if name in features else []
    return values[0] if len(values) == 1 else None


def _contradictions(features: Any, label: list[int], image: np.ndarray, charset: Charset) -> Iterable[str]:
    """Reasons why a record that can be read is not good."""
    count = sum(identifier != charset.null_id for identifier in label)
    text, written = charset.decode(label), written_text(features)
    if count == 0:
        yield "the label is empty: leave the record out, or keep it as a picture without text on purpose"
    if charset.null_id in label[:count]:
        yield f"the label {label} has a null before its end: nulls may only pad it"
    if written is not None and text_of(features, label, charset) != written:
        yield f"the label image/class says {text!r}, image/text says {written!r}: write the record again"
    unpadded = list(features["image/unpadded_class"].int64_list.value) if "image/unpadded_class" in features else None
    if unpadded is not None and unpadded != label[:count]:
        yield f"image/unpadded_class has {len(unpadded)} ids that are not the {count} of image/class"
    for name, size in (("image/height", image.shape[0]), ("image/width", image.shape[1])):
        if _number(features, name) not in (None, size):
            yield f"{name} says {_number(features, name)}, the image has {size} pixels"
    if not 0 < (_number(features, "image/orig_width") or 1) <= image.shape[1]:
        yield f"image/orig_width says {_number(features, 'image/orig_width')}, expected 1 to {image.shape[1]}"
    if (image == image[0, 0]).all():
        yield f"the image is of one colour, {tuple(image[0, 0].tolist())}, and cannot show {text!r}"


def _duplicates(findings: dict[str, Findings]) -> tuple[list[str], list[str]]:
    """Problems and notes about records that show the same pixels."""
    first: dict[int, tuple[str, str, str]] = {}
    problems, notes = [], []
    for split, found in findings.items():
        for pixels, text, name in found.pictures:
            if pixels not in first:
                first[pixels] = split, text, name
                continue
            other_split, other_text, other = first[pixels]
            if text != other_text:
                problems.append(f"{other} and {name} show the same picture with the labels {other_text!r} and {text!r}")
            elif split != other_split:
                problems.append(f"{other} and {name} are the same record in {other_split} and {split}: remove one")
            else:
                notes.append(f"{other} and {name} are the same record")
    return problems, notes


def to_images(splits: dict[str, list[Path]], charset: Charset, layout: Layout, out_dir: Path) -> tuple[int, int]:
    """Writes the records back as files: FOLDER/train/NAME.png and FOLDER/train.csv with paths and texts, and so on.

    The files are the records' own bytes, and make_tfrecords takes each .csv.

    Returns:
        records written, and records that cannot be read and were left out.

    Raises:
        BuildError, OSError: `out_dir` exists and is not empty, or see `replacing_folder`.
    """
    require_free(out_dir)
    written = lost = 0
    with replacing_folder(out_dir) as folder:
        for split, paths in splits.items():
            # A split may be named by a pattern or a path, and its shards may lie in several folders.
            name = re.sub(r"[^\w.-]+", "_", split)
            while (folder / name).exists():
                name += "_"
            (folder / name).mkdir()
            with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["path", "text"])
                for path in paths:
                    added, bad = _write_images(_open(path, charset, layout), folder, name, rows)
                    written, lost = written + added, lost + bad
    return written, lost


def require_free(out_dir: Path) -> None:
    """Raises BuildError where `out_dir` exists and is not an empty folder, OSError where it cannot be replaced."""
    require_replaceable(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise BuildError(f"{out_dir} exists and is not an empty folder: name another one")


def _write_images(dataset: FSNSDataset, folder: Path, split: str, rows: Any) -> tuple[int, int]:
    written, lost = 0, len(dataset.shards.bad)
    for index in range(len(dataset)):
        try:
            label = dataset[index]["label"].tolist()
        except RecordError:
            lost += 1
            continue
        features = Example.FromString(dataset.shards.read(index)).features.feature
        encoded = features["image/encoded"].bytes_list.value[0]
        suffix = "png" if encoded.startswith(b"\x89PNG") else "jpg"
        stem = f"{split}/{dataset.name(index).replace(':', '-')}"
        while (folder / f"{stem}.{suffix}").exists():
            stem += "_"
        name = f"{stem}.{suffix}"
        (folder / name).write_bytes(encoded)
        rows.writerow([name, text_of(features, label, dataset.charset)])
        written += 1
    return written, lost
