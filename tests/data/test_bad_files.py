"""Hundreds of damaged pictures, lists and shards: each is read or has one line, in bounded memory, and nothing else."""

import io
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from aocr_torch.data.build import BuildError
from aocr_torch.data.check import Layout, check
from aocr_torch.data.listing import ListingError, read_listing
from aocr_torch.data.pictures import PictureError, read_picture
from aocr_torch.data.records import write_shard

KINDS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")


def damaged(content: bytes, random: np.random.RandomState) -> bytes:
    """The content cut short, with bytes changed, a piece repeated, or a piece of it zero."""
    data = bytearray(content)
    place = random.randint(len(data))
    kind = random.randint(4)
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        for _ in range(random.randint(1, 9)):
            data[random.randint(min(len(data), 200))] = random.randint(256)
    elif kind == 2:
        data[place:place] = data[: random.randint(1, 60)]
    else:
        data[place : place + 40] = bytes(len(data[place : place + 40]))
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_pictures(kind):
    random = np.random.RandomState(KINDS.index(kind))
    content = io.BytesIO()
    Image.fromarray(random.randint(0, 256, (24, 40, 3)).astype(np.uint8)).save(content, kind)
    assert read_picture(content.getvalue()).size == (40, 24)
    reasons = []
    for _ in range(60):
        try:
            image = read_picture(damaged(content.getvalue(), random))
            assert image.mode == "RGB"
        except PictureError as error:
            reasons.append(error.reason)
    assert len(reasons) >= 10, "hardly a file was damaged"
    assert all(reason and "\n" not in reason for reason in reasons)


def test_damaged_lists(tmp_path):
    random = np.random.RandomState(0)
    lists = {
        "l.tsv": "".join(f"{n}.png\tRue Él {n}\n" for n in range(8)),
        "l.csv": "path,text\n" + "".join(f'{n}.png,"Rue, {n}"\n' for n in range(8)),
        "l.jsonl": "".join(f'{{"path": "{n}.png", "text": "Rue {n}"}}\n' for n in range(8)),
    }
    for name, text in lists.items():
        for _ in range(60):
            (tmp_path / name).write_bytes(damaged(text.encode("utf-8"), random))
            try:
                listing = read_listing(tmp_path / name)
            except ListingError:
                continue
            assert all(entry.text and entry.text.isprintable() for entry in listing.entries)
            assert all("\n" not in line for line in listing.problems)


def test_damaged_shards(tmp_path):
    random = np.random.RandomState(0)
    write_shard(tmp_path / "good", [tiny.example(text, random) for text in ("abc", "de", "e")])
    content = (tmp_path / "good").read_bytes()
    worse = 0
    for number in range(60):
        path = tmp_path / f"s-{number}"
        path.write_bytes(damaged(content, random))
        try:
            found = check({"s": [path]}, tiny.CHARSET, Layout(48, 96, 4))
        except BuildError:
            continue
        worse += bool(found.problems)
        assert all(line.startswith(f"s-{number}:") and "\n" not in line for line in found.problems)
        assert found.splits["s"].good <= 3
    assert worse > 40


def test_damaged_examples_in_sound_shards(tmp_path):
    random = np.random.RandomState(0)
    payload = tiny.example("abc", random)
    write_shard(tmp_path / "s-0", [payload, *(damaged(payload, random) for _ in range(150))])
    found = check({"s": [tmp_path / "s-0"]}, tiny.CHARSET)
    assert all(line.startswith("s-0:") and "\n" not in line for line in found.problems)
    assert found.splits["s"].records == 151
    assert found.splits["s"].good < 60


BOMBS = """
import sys
from aocr_torch.data.pictures import PictureError, read_picture
for path in sys.argv[1:]:
    try:
        read_picture(path)
        print("read")
    except PictureError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="this system cannot limit a process's memory")
def test_bombs_are_refused_before_they_unfold(tmp_path):
    small = io.BytesIO()
    Image.new("L", (8, 8)).save(small, "GIF")
    # A GIF of one small frame on a huge page.
    bombs = {
        "png": tiny.bomb(),
        "gif": small.getvalue()[:6] + struct.pack("<HH", 20_000, 20_000) + small.getvalue()[10:],
    }
    paths = [tmp_path / f"bomb.{suffix}" for suffix in bombs]
    for path, content in zip(paths, bombs.values()):
        path.write_bytes(content)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))

    root = Path(__file__).parent.parent.parent
    result = subprocess.run(
        [sys.executable, "-c", BOMBS, *paths], capture_output=True, text=True, preexec_fn=limit, cwd=root
    )
    assert result.stdout.splitlines() == ["has more than 89,478,485 pixels: scale it down first"] * 2, result.stderr
