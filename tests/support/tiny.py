"""A data set and a configuration small enough that a training takes seconds: two views of 48x48, four characters."""

import importlib.util
import io
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from tfrecord.example_pb2 import Example

from aocr_torch.data.charset import Charset
from aocr_torch.data.fsns import encode_example
from aocr_torch.data.records import Shards, write_shard

LENGTH = 4
CHARSET = Charset.from_characters([" ", "a", "b", "c", "d", "e"])
FLAGS = {
    "device": "cpu",
    "image_height": 48,
    "image_width": 96,
    "num_views": 2,
    "max_sequence_length": LENGTH,
    "batch_size": 4,
    "num_workers": 0,
    "final_endpoint": "Conv2d_3b_1x1",
    "num_lstm_units": 16,
    "batch_norm_decay": 0.9,
    "batch_norm_cumulative_start": True,
    "log_interval_steps": 1,
    "summary_interval_steps": 0,
}


def flags(**changes) -> list[str]:
    """The command line of FLAGS with changes."""
    return [f"--{name}={value}" for name, value in {**FLAGS, **changes}.items()]


def example(text: str, random: np.random.RandomState) -> bytes:
    """A record whose picture shows each character as a stripe of its own height and colour, with some noise."""
    pixels = random.randint(0, 40, (48, 96, 3)).astype(np.uint8)
    for view in (0, 48):
        for place, character in enumerate(text):
            number = CHARSET.encode(character, 1)[0]
            left = view + 12 * place
            pixels[6 * number : 6 * number + 12, left : left + 11, number % 3] += 150
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return encode_example(png.getvalue(), text, CHARSET, length=LENGTH, width=96, height=48, orig_width=96)


def write(folder: Path, train: int = 11, validation: int = 5, test: int = 7, per_shard: int = 4) -> Path:
    """A data set with so many records a split, several shards each."""
    folder.mkdir(parents=True, exist_ok=True)
    CHARSET.save(folder / f"charset_size={CHARSET.size}.txt")
    random = np.random.RandomState(5)
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        (folder / split).mkdir(parents=True)
        texts = ["".join(random.choice(list("abcde"), random.randint(1, LENGTH + 1))) for _ in range(count)]
        records = [example(text, random) for text in texts]
        shards = range(0, count, per_shard)
        for number, start in enumerate(shards):
            name = f"{split}-{number:05d}-of-{len(shards):05d}"
            write_shard(folder / split / name, records[start : start + per_shard])
    return folder


def pictures(folder: Path, texts: list[str]) -> list[Path]:
    """The pictures of `example` as files of the data set's own size, named by their texts."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(6)
    for text in texts:
        features = Example.FromString(example(text, random)).features.feature
        (folder / f"{text}.png").write_bytes(features["image/encoded"].bytes_list.value[0])
    return [folder / f"{text}.png" for text in texts]


def bomb() -> bytes:
    """A PNG of 20,000x20,000 white pixels in 50 kB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff" * 2500) * 20_000, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def load_tool(name: str):
    """tools/NAME.py as a module, to call its main."""
    return load_program(f"tools/{name}.py")


def load_program(file: str):
    """A script, by its path in the repository, as a module."""
    path = Path(__file__).parent.parent.parent / file
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where annotations are looked up
    spec.loader.exec_module(module)
    return module


def spoil(shard: Path) -> None:
    """Appends a record whose picture is broken, in sound framing."""
    shards = Shards([shard])
    records = [shards.read(number) for number in range(len(shards))]
    broken = example("ab", np.random.RandomState(0)).replace(b"IHDR", b"IHDX")
    write_shard(shard, [*records, broken])


def stopped(command: list[str], folder: Path, pattern: str) -> tuple[int, str]:
    """Starts a program, sends it SIGTERM once `folder` holds `pattern`, and returns its exit status and errors."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (came := any(folder.glob(pattern))) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert came, f"{pattern} never came: {errors}"
    return process.returncode, errors
