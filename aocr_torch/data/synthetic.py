"""Synthetic data sets of street signs in FSNS format: parameters, records, and the files on disk.

Record i of a split is a function of (seed, split, i) and the other parameters alone, so a data set has the same bytes
however many processes draw it. The names are in synthetic_names.py, the pictures in
synthetic_signs.py, and what makes them hard to read in synthetic_effects.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Callable, Optional, Union

import numpy as np

from aocr_torch.data.charset import Charset
from aocr_torch.data.fsns import encode_example
from aocr_torch.data.records import write_shard
from aocr_torch.data.synthetic_effects import SignEffects, SynthesisError
from aocr_torch.data.synthetic_names import SHORTEST_MAX_LENGTH, NameStyle, Split, draw_label, name_characters
from aocr_torch.data.synthetic_signs import draw_sign

DRAWING_VERSION = 1
"""Raised with every change that draws other signs from the same parameters."""

PARAMETERS_FILE = "synthetic.json"
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class SyntheticParameters:
    """A synthetic data set, entirely."""

    num_train: int = 2000
    """Signs in train/."""
    num_validation: int = 200
    """Signs in validation/; their names occur in no other split."""
    num_test: int = 200
    """Signs in test/; their names occur in no other split."""
    num_views: int = 4
    """Views of each sign, side by side."""
    height: int = 150
    """Height of the picture in pixels."""
    view_width: int = 150
    """Width of one view in pixels: the picture is num_views times as wide."""
    max_length: int = 37
    """Characters in the longest name, and length of the padded label."""
    names: NameStyle = "french"
    """french: the grammar of French street names. short: "Rue" and the like with one invented name of few letters."""
    difficulty: float = 1.0
    """0 .. 1: the share of the effects that is drawn; 0 is a clean plate from the front."""
    seed: int = 0
    """Another seed draws other signs; the names of a split stay held out from the others under every seed."""
    records_per_shard: int = 250
    """Records in one file; a file is drawn by one process."""
    effects: SignEffects = field(default_factory=SignEffects)
    """What happens to the signs at difficulty 1."""

    def counts(self) -> dict[Split, int]:
        """Number of records by split."""
        return {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}

    def charset(self) -> Charset:
        """All characters that the names can have; id 0 is the space and the last id the null."""
        return Charset.from_characters(name_characters(self.names))

    def check(self) -> None:
        """Raises SynthesisError, naming the field, where a value cannot be drawn."""
        lowest = {
            **{"num_train": 0, "num_validation": 0, "num_test": 0, "num_views": 1, "seed": 0, "records_per_shard": 1},
            **{"height": 16, "view_width": 16, "max_length": SHORTEST_MAX_LENGTH},
        }
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise SynthesisError(f"{name} is {getattr(self, name)}: expected at least {least}")
        if not any(self.counts().values()):
            raise SynthesisError("num_train, num_validation and num_test are all 0: nothing to draw")
        if not 0 <= self.difficulty <= 1:
            raise SynthesisError(f"difficulty is {self.difficulty}: expected 0 .. 1")
        if self.names not in ("french", "short"):
            raise SynthesisError(f"names is {self.names!r}: expected 'french' or 'short'")
        self.effects.check()


PRESETS: dict[str, SyntheticParameters] = {
    "fsns": SyntheticParameters(),
    "demo": SyntheticParameters(
        num_train=8000,
        num_views=2,
        height=48,
        view_width=96,
        max_length=10,
        names="short",
        effects=SignEffects(
            upper_case=1.0,
            mixed_case=0.0,
            max_lines=1,
            condensed=0.3,
            margin=0.05,
            distance=0.1,
            shift=0.5,
            yaw=15,
            pitch=8,
            rotation=2,
            blur=0.5,
            low_resolution=0.1,
            light=0.25,
            tint=0.08,
            noise=4,
            noise_band=0,
            missing_views=0.1,
        ),
    ),
}
"""fsns: like FSNS in size and difficulty. demo: short names on clean plates, learned on two CPU cores in minutes."""


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
    """
    parameters.check()
    if processes is not None and processes < 1:
        raise SynthesisError(f"processes is {processes}: expected at least 1")
    out_dir = Path(out_dir).resolve()
    summary = Summary(out_dir, parameters.counts(), parameters.charset().size, was_written=True)
    if _is_already_there(out_dir, parameters, force):
        return Summary(out_dir, summary.counts, summary.charset_size, was_written=False)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.partial-", dir=out_dir.parent))
    drawn = workplace / "drawn"
    try:
        _write_shards(drawn, parameters, processes or os.cpu_count() or 1, report)
        parameters.charset().save(drawn / f"charset_size={summary.charset_size}.txt")
        (drawn / PARAMETERS_FILE).write_text(json.dumps(_description(parameters), indent=2) + "\n", encoding="utf-8")
        if out_dir.exists():
            out_dir.rename(workplace / "replaced")
        drawn.rename(out_dir)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return summary


def draw_record(parameters: SyntheticParameters, charset: Charset, split: Split, index: int) -> bytes:
    """Record `index` of `split` as a serialized tf.Example: a function of its arguments alone."""
    words = (parameters.seed, _SPLITS.index(split), index)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
    label = draw_label(rng, parameters.names, parameters.max_length, split)
    effects = parameters.effects.scaled(parameters.difficulty)
    picture, num_real = draw_sign(rng, label, parameters.num_views, parameters.height, parameters.view_width, effects)
    return encode_example(
        encode_png(picture),
        label,
        charset,
        length=parameters.max_length,
        width=picture.shape[1],
        height=parameters.height,
        orig_width=num_real * parameters.view_width,
    )


def encode_png(picture: np.ndarray) -> bytes:
    """A uint8 (height, width, 3) picture as PNG, in under half of Pillow's time.

    Pillow tries all five filters on every row; here each row is its difference to the one above, packed without
    looking for repetitions, which noisy pictures hardly have: the files are 5 % larger.
    """
    height, width, _ = picture.shape
    rows = picture.reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = 2  # the filter "up"
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    packer = zlib.compressobj(level=1, strategy=zlib.Z_HUFFMAN_ONLY)
    data = packer.compress(filtered.tobytes()) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # eight bits, RGB
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _write_shards(
    folder: Path, parameters: SyntheticParameters, processes: int, report: Optional[Callable[[int], object]]
) -> None:
    tasks = list(_shard_tasks(folder, parameters))
    if processes == 1:
        for task in tasks:
            count = _write_one_shard(parameters, *task)
            if report:
                report(count)
        return
    # Spawned and not forked: the caller may hold threads and a device, which a fork would copy half-dead.
    executor = ProcessPoolExecutor(
        min(processes, len(tasks)), mp_context=get_context("spawn"), initializer=_ignore_interrupt
    )
    try:
        for shard in as_completed([executor.submit(_write_one_shard, parameters, *task) for task in tasks]):
            if report:
                report(shard.result())
    finally:
        executor.shutdown(cancel_futures=True)


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


def _ignore_interrupt() -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
        return False
    changed = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    raise SynthesisError(
        f"{out_dir} holds another synthetic data set (it differs in {', '.join(changed)}): "
        "name another folder, or give --force to replace it"
    )
