"""Synthetic data sets of street signs in FSNS format: the records, and the files on disk.

Record i of a split is a function of (seed, split, i) and the other parameters alone, so a data set has the same bytes
however many processes draw it, and needs no disk at all (synthetic_records.py). The parameters are in
synthetic_parameters.py, the names in synthetic_names.py, what a sign shows in synthetic_text.py, the pictures in
synthetic_signs.py, and how they look and what makes them hard to read in synthetic_effects.py.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Optional, Union

import numpy as np

from aocr_torch.data.charset import Charset
from aocr_torch.data.fsns import encode_example
from aocr_torch.data.processes import run_in_processes
from aocr_torch.data.records import write_shard
from aocr_torch.data.synthetic_effects import SynthesisError
from aocr_torch.data.synthetic_names import Split, draw_label
from aocr_torch.data.synthetic_parameters import DRAWING_VERSION, PRESETS, SyntheticParameters
from aocr_torch.data.synthetic_signs import draw_sign
from aocr_torch.files import replacing_folder, why_not_replaced

__all__ = ["PRESETS", "SyntheticParameters", "draw_example", "draw_record", "synthesize"]

PARAMETERS_FILE = "synthetic.json"
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Summary:
    """What a call of `synthesize` left on disk."""

    out_dir: Path
    """The data set."""
    counts: dict[Split, int]
    """Number of records by split."""
    charset_size: int
    """Number of classes, the null included."""
    was_written: bool
    """False if the data set was already there."""


def synthesize(
    out_dir: Union[str, Path],
    parameters: SyntheticParameters,
    processes: Optional[int] = None,
    *,
    force: bool = False,
    report: Optional[Callable[[int], object]] = None,
) -> Summary:
    """Draws a data set into `out_dir`, unless the same one is already there.

    Everything is written into a hidden folder beside `out_dir` that is renamed at the end, so an interrupted call
    leaves no data set that looks complete.

    Args:
        processes: that draw; None takes one per core, 1 draws in this process.
        force: replace another synthetic data set (never anything else) in `out_dir`.
        report: is called with the number of records that have just been finished.

    Raises:
        SynthesisError: a parameter is out of range, or `out_dir` holds something else.
        ProcessKilledError, OSError: see `run_in_processes` and `replacing_folder`.
    """
    parameters.check()
    if processes is not None and processes < 1:
        raise SynthesisError(f"processes is {processes}: expected at least 1")
    out_dir = Path(out_dir).resolve()
    summary = Summary(out_dir, parameters.counts(), parameters.charset().size, was_written=True)
    if _is_already_there(out_dir, parameters, force):
        return Summary(out_dir, summary.counts, summary.charset_size, was_written=False)
    with replacing_folder(out_dir) as drawn:
        tasks = [(parameters, *task) for task in _shard_tasks(drawn, parameters)]
        for _, count in run_in_processes(_write_one_shard, tasks, processes or os.cpu_count() or 1):
            if report:
                report(count)
        parameters.charset().save(drawn / f"charset_size={summary.charset_size}.txt")
        (drawn / PARAMETERS_FILE).write_text(json.dumps(_description(parameters), indent=2) + "\n", encoding="utf-8")
    return summary


def draw_example(parameters: SyntheticParameters, split: Split, index: int) -> tuple[np.ndarray, str, int]:
    """Example `index` of `split`, a function of the arguments alone (but not of the counts of the parameters).

    Returns:
        (uint8 picture (height, num_views * view_width, 3), label, number of real views).
    """
    words = (parameters.seed, _SPLITS.index(split), index)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
    label = draw_label(rng, parameters.names, parameters.max_length, split)
    effects = parameters.effects.scaled(parameters.difficulty)
    picture, num_real = draw_sign(rng, label, parameters.num_views, parameters.height, parameters.view_width, effects)
    return picture, label, num_real


def draw_record(
    parameters: SyntheticParameters, charset: Charset, split: Split, index: int, *, packing: int = 1
) -> bytes:
    """`draw_example` as a serialized tf.Example; for `packing` see `encode_png`."""
    picture, label, num_real = draw_example(parameters, split, index)
    return encode_example(
        encode_png(picture, packing),
        label,
        charset,
        length=parameters.max_length,
        width=picture.shape[1],
        height=parameters.height,
        orig_width=num_real * parameters.view_width,
    )


def encode_png(picture: np.ndarray, packing: int = 1) -> bytes:
    """A uint8 (height, width, 3) picture as PNG, in under half of Pillow's time.

    Pillow tries all five filters on every row; here each row is its difference to the one above, packed without
    looking for repetitions, which noisy pictures hardly have: the files are 5 % larger.
    `packing` 0 does not pack at all, for a picture that is decoded at once.
    """
    height, width, _ = picture.shape
    rows = picture.reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = 2  # the filter "up"
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    packer = zlib.compressobj(level=packing, strategy=zlib.Z_HUFFMAN_ONLY)
    data = packer.compress(filtered.tobytes()) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # eight bits, RGB
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _shard_tasks(folder: Path, parameters: SyntheticParameters) -> Iterator[tuple[Path, Split, range]]:
    """(file, split, indices of its records) of every shard."""
    size = parameters.records_per_shard
    for split, count in parameters.counts().items():
        num_shards = -(-count // size)
        for shard in range(num_shards):
            name = f"{split}-{shard:05d}-of-{num_shards:05d}"
            yield folder / split / name, split, range(shard * size, min((shard + 1) * size, count))


def _write_one_shard(parameters: SyntheticParameters, path: Path, split: Split, indices: range) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    charset = parameters.charset()
    return write_shard(path, (draw_record(parameters, charset, split, index) for index in indices))


def _description(parameters: SyntheticParameters) -> dict[str, object]:
    """What PARAMETERS_FILE holds."""
    return {"drawing_version": DRAWING_VERSION, **asdict(parameters)}


def _is_already_there(out_dir: Path, parameters: SyntheticParameters, force: bool) -> bool:
    """Whether `out_dir` is this very data set; raises SynthesisError where it is something that must not go."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    try:
        found = dict(json.loads((out_dir / PARAMETERS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise SynthesisError(f"{out_dir} exists and holds no synthetic data set: name another folder") from None
    expected = _description(parameters)
    if found == expected:
        return True
    if force:
        if reason := why_not_replaced(out_dir, (*_SPLITS, PARAMETERS_FILE, "charset_size=*.txt")):
            raise SynthesisError(reason)
        return False
    changed = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    raise SynthesisError(
        f"{out_dir} holds another synthetic data set (it differs in {', '.join(changed)}): "
        "name another folder, or give --force to replace it"
    )
