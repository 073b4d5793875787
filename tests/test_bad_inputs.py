"""Hundreds of bad inputs to the tools as a user runs them: one line each, every good input used, memory bounded.

Each tool runs twice in a process of its own, on the good inputs alone and on good and bad ones together: what it says
of the good ones must be the same, and its peak memory must not grow by more than MORE_MEMORY.
"""

import gzip
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from tfrecord.example_pb2 import Example

from aocr_torch.command_line import run_main
from aocr_torch.data.records import Shards, write_shard

ROOT = Path(__file__).parent.parent
GOOD = ["abc", "de", "e", "bbbb", "cad"]
MORE_MEMORY = 150e6  # bytes; the pixels of one of the bombs are 400 MB
KINDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp", "GIF": "gif", "PPM": "ppm"}
ODD_NAMES = [
    *("line\nend", "tab\t", "-dash", "--ckpt=x", " blank ", "quote\"'", "%s{}", "[a-z]*?", "caf\u00e9", "cafe\u0301"),
    *("\u0645\u0631\u062d\u0628\u0627", "\u202eright to left", "\U0001f600", "x" * 240, "back\\slash", "\x1b[31mred"),
    os.fsdecode(b"not utf-8 \xff"),
]


@dataclass
class Ended:
    """What a process said, and what it took."""

    status: int
    out: list[str]
    errors: list[str]
    peak: float  # bytes


# Linux counts the memory that a process had before exec, that is pytest's: only a small one may start the tool.
LAUNCHER = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
with open("peak.log", "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""


def run(tool: str, arguments: list, folder: Path) -> Ended:
    """tools/TOOL.py in a process of its own."""
    command = [sys.executable, "-c", LAUNCHER, sys.executable, str(ROOT / "tools" / f"{tool}.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    ended = subprocess.run(command, capture_output=True, env=environment, cwd=folder, timeout=120)
    out, errors = (said.decode("utf-8").split("\n")[:-1] for said in (ended.stdout, ended.stderr))
    assert not any("Traceback" in line for line in errors), "\n".join(errors[-20:])
    peak = int((folder / "peak.log").read_text()) * (1 if sys.platform == "darwin" else 1024)
    return Ended(ended.returncode, out, errors, peak)


def noise(number: int, kind: str = "PNG", size: tuple[int, int] = (40, 60)) -> bytes:
    pixels = np.random.RandomState(number).randint(0, 256, (*size, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def png_header(width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG that promises so many pixels and has none."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def bombs() -> dict[str, bytes]:
    """Files of a few bytes, one of 50 kB, that stand for at least 100 million pixels."""
    sizes = [(20_000, 20_000), (65_535, 65_535), (2**31 - 1, 1), (10_000, 10_000), (4, 2**30)]
    depths = [(1, 0), (8, 2), (16, 6)]
    files = {f"{w}x{h}-{d}.png": png_header(w, h, d, c) for w, h in sizes for d, c in depths if w * h < 2**32}
    gif = noise(0, "GIF")
    bmp = noise(0, "BMP")
    jpeg = noise(0, "JPEG")
    place = jpeg.index(b"\xff\xc0") + 5
    files["real.png"] = tiny.bomb()
    files["page.gif"] = gif[:6] + struct.pack("<HH", 20_000, 20_000) + gif[10:]
    files["header.bmp"] = bmp[:18] + struct.pack("<ii", 20_000, 20_000) + bmp[26:]
    files["header.jpg"] = jpeg[:place] + struct.pack(">HH", 20_000, 20_000) + jpeg[place + 4 :]
    files["header.ppm"] = b"P6 20000 20000 255\n" + bytes(100)
    files["header.pgm"] = b"P5 20000 20000 65535\n" + bytes(100)
    return files


def bad_pictures() -> dict[str, bytes]:
    """File name -> content that is no picture; about two hundred."""
    chance = random.Random(5)
    files = {f"bomb-{name}": content for name, content in bombs().items()}
    for number, (kind, suffix) in enumerate(KINDS.items()):
        content = noise(number, kind)
        for cut in range(6):
            files[f"cut-{cut}.{suffix}"] = content[: chance.randint(1, len(content) // 2)]
        files[f"empty.{suffix}"] = b""
        files[f"rubbish.{suffix}"] = chance.randbytes(500)
        files[f"zeros.{suffix}"] = bytes(500)
        files[f"beginning.{suffix}"] = content[:8] + chance.randbytes(500)
        files[f"small.{suffix}"] = noise(number, kind, (1, 1))
    for height, width in [(1, 2), (3, 3), (2, 400), (400, 1)]:
        files[f"{height}x{width}.png"] = noise(1, "PNG", (height, width))
    texts = ["hello", "path\ttext\n", "<html>", "<svg width='9' height='9'/>", "%PDF-1.7", "PK\x03\x04", "\ufeffabc"]
    for number, text in enumerate(
        [*texts, "%!PS-Adobe-3.0 EPSF-3.0", "#!/bin/sh", "{}", "GIF89a", "BM", "P6", "\x89PNG"]
    ):
        files[f"text-{number}.png"] = text.encode()
        files[f"text-{number}.jpg"] = text.encode("utf-16")
    files.update({f"{name}.png": b"no picture" for name in ODD_NAMES})
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> list[str]:
    """Writes them and returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return list(files)


def good_pictures(folder: Path) -> dict[str, bytes]:
    """The model's own pictures under odd names."""
    contents = [path.read_bytes() for path in tiny.pictures(folder, GOOD)]
    return {f"good {name}.png": contents[number % len(GOOD)] for number, name in enumerate(ODD_NAMES)}


def special_files(folder: Path) -> list[Path]:
    """What stands in a folder and is no file: five."""
    (folder / "folder.png").mkdir()
    (folder / "link to nothing.png").symlink_to("absent")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    return [*map(folder.joinpath, ("folder.png", "absent.png", "absent-*.png")), folder / ("n" * 300 + ".png")]


def test_predict(tiny_checkpoint, tmp_path):
    good = good_pictures(tmp_path / "plain")
    write_files(tmp_path / "good", good)
    bad = bad_pictures()
    mixed = tmp_path / "mixed"
    write_files(mixed, {**bad, **good})
    named = special_files(mixed)
    linked = 3  # the links and the pipe, which are found in the folder
    options = ["--ckpt", tiny_checkpoint, "--device", "cpu", "--json"]
    alone = run("predict", ["good", *options], tmp_path)
    assert (alone.status, alone.errors, len(alone.out)) == (0, [], len(good))

    ended = run("predict", ["mixed", *named, *options], tmp_path)
    count = len(bad) + len(named) + linked
    assert count >= 150
    assert ended.status == 1
    assert ended.errors[-1] == f"{count} of {count + len(good)} pictures could not be read"
    assert len(ended.errors) == count + 1
    assert all(line.startswith("error: ") and line.isprintable() for line in ended.errors[:-1])
    assert len(set(ended.errors)) == len(ended.errors)
    read = {entry.pop("file"): entry for entry in map(json.loads, ended.out)}
    expected = {entry.pop("file"): entry for entry in map(json.loads, alone.out)}
    assert [name.replace("mixed/", "") for name in read] == [name.replace("good/", "") for name in expected]
    for (name, ours), theirs in zip(read.items(), expected.values()):
        assert ours["text"] == theirs["text"], name
        assert ours["confidence"] == pytest.approx(theirs["confidence"], abs=1e-5)
    assert ended.peak < alone.peak + MORE_MEMORY


LAYOUT = ["--image_height=48", "--image_width=96", "--num_views=2", "--max_sequence_length=4", "--processes=1"]
BAD_JSON = [
    *(
        '{"path": "good.png", "text": "ab"',
        "[1, 2]",
        "7",
        "null",
        '"good.png"',
        "{}",
        "hello",
        "[" * 100_000,
        "\ufeff{}",
    ),
    *('{"path": "good.png"}', '{"text": "ab"}', '{"path": 7, "text": "ab"}', '{"path": "good.png", "text": 7}'),
    *('{"path": "", "text": "ab"}', '{"path": "a.png", "text": ""}', '{"path": "a.png", "text": "  "}'),
    *(
        '{"path": "a.png", "text": "abcde"}',
        '{"path": "a.png", "text": "a\\u0000b"}',
        '{"path": "a.png", "text": "a\\nb"}',
    ),
    *('{"path": "a.png", "text": "\\ud800"}', '{"path": "a\\u0000.png", "text": "ab"}', '{"path": ".", "text": "ab"}'),
    *(
        '{"path": "absent.png", "text": "ab"}',
        '{"path": "/absent/a.png", "text": "ab"}',
        '{"path": "a.png", "text": NaN}',
    ),
]
BAD_COLUMNS = [
    b"one",
    b"a.png\tab\tmore",
    b"\tab",
    b"a.png\t",
    b"a.png\t ",
    b"a.png\tabcde",
    b"a.png\ta\x00b",
    b"a.png\t\xff",
]


def made(folder: Path) -> list[str]:
    """The texts of all records of a data set, sorted."""
    shards = Shards(sorted(path for path in folder.glob("*/*") if path.suffix != ".index"))
    features = [Example.FromString(shards.read(index)).features.feature for index in range(len(shards))]
    return sorted(each["image/text"].bytes_list.value[0].decode() for each in features)


def test_make_tfrecords(tmp_path):
    good = good_pictures(tmp_path / "plain")
    bad = bad_pictures()
    write_files(tmp_path / "pictures", {**bad, **good})
    special_files(tmp_path / "pictures")
    names = {name: GOOD[number % len(GOOD)] for number, name in enumerate(good)}
    lines = [json.dumps({"path": name, "text": text}) for name, text in names.items()]
    worse = [json.dumps({"path": name, "text": "ab"}) for name in [*bad, "folder.png", "loop.png", "pipe.png"]]
    worse += [*BAD_JSON, lines[0]]
    for name, content in [("good.jsonl", lines), ("mixed.jsonl", [*worse[:90], *lines, *worse[90:]])]:
        (tmp_path / "pictures" / name).write_bytes(("\ufeff" + "\r\n".join(content)).encode())
    alone = run("make_tfrecords", ["pictures/good.jsonl", "good", *LAYOUT], tmp_path)
    assert (alone.status, alone.errors) == (0, [])
    ended = run("make_tfrecords", ["pictures/mixed.jsonl", "mixed", *LAYOUT], tmp_path)
    assert len(worse) >= 170
    assert ended.status == 1
    assert ended.out[-1] == f"{len(worse)} left out"
    assert len(ended.errors) == len(worse)
    assert all(re.match(r"mixed\.jsonl:\d+: ", line) and line.isprintable() for line in ended.errors)
    assert made(tmp_path / "mixed") == made(tmp_path / "good") == sorted(names.values())
    assert ended.peak < alone.peak + MORE_MEMORY


@pytest.fixture(scope="module")
def make_tfrecords():
    """The tool as a module."""
    return tiny.load_tool("make_tfrecords")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize(("suffix", "between"), [("tsv", b"\t"), ("csv", b","), ("csv", b";")])
def test_lists_of_columns(suffix, between, end, mark, make_tfrecords, tmp_path, capsys):
    tiny.pictures(tmp_path, GOOD)
    lines = [f"{text}.png\t{text}".encode() for text in GOOD]
    bad = [*BAD_COLUMNS, b"absent.png\tab", lines[0]]
    content = end.join(line.replace(b"\t", between) for line in [*lines, *bad, b"", *lines[:1]])
    if suffix == "csv":
        content += end + b'"a.png' + between + b"ab" + end + b'"a.png"b' + between + b"ab"
    (tmp_path / f"list.{suffix}").write_bytes(mark + content)
    assert make_tfrecords.main([str(tmp_path / f"list.{suffix}"), str(tmp_path / "out"), *LAYOUT]) == 1
    said = capsys.readouterr()
    count = len(bad) + 1 + 2 * (suffix == "csv")
    assert said.out.endswith(f"\n{count} left out\n")
    assert len(said.err.splitlines()) == count
    assert all(re.match(rf"list\.{suffix}:\d+: ", line) for line in said.err.splitlines())
    assert made(tmp_path / "out") == sorted(GOOD)


def test_folders_of_labels(make_tfrecords, tmp_path, capsys):
    folder = tmp_path / "photos"
    tiny.pictures(folder, GOOD)
    for number, text in enumerate(GOOD):
        mark, end = (b"\xef\xbb\xbf", b"\r\n") if number % 2 else (b"", b"\n")
        (folder / f"{text}.txt").write_bytes(mark + text.encode() + end)
    labels = [b"", b"  \n", b"\xef\xbb\xbf", b"abcde", b"ab\ncd", b"a\tb", b"\xff\xfe", b"\xff", b"a\x00", None]
    for number, label in enumerate(labels):
        (folder / f"{number}.png").write_bytes(noise(number))
        if label is not None:
            (folder / f"{number}.txt").write_bytes(label)
    (folder / "lonely.txt").write_text("ab")
    (folder / "10.png").touch()
    (folder / "10.txt").mkdir()
    assert make_tfrecords.main([str(folder), str(tmp_path / "out"), *LAYOUT]) == 1
    said = capsys.readouterr()
    assert said.out.endswith(f"\n{len(labels) + 2} left out\n")
    assert len(said.err.splitlines()) == len(labels) + 2
    assert made(tmp_path / "out") == sorted(GOOD)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(
            ("l.tsv", content)
            for content in (b"", b"\n\r\n", b"\xef\xbb\xbf", b"path\ttext", b"\x00" * 99, b"\xff\xfe")
        ),
        *(("l.csv", content) for content in (b"path,text", b"path;text\n;", b"a,b,c\n", b'"')),
        *(("l.jsonl", content) for content in (b"{", b"\n\n", b"\x89PNG\r\n")),
        *(("l.txt", b"hello"), ("l.xlsx", b"PK"), ("l", b"a.png\tab"), ("folder", None), ("absent.tsv", None)),
    ],
)
def test_lists_of_which_nothing_can_be_used(name, content, make_tfrecords, tmp_path, monkeypatch, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(sys, "argv", ["make_tfrecords.py", str(tmp_path / name), str(tmp_path / "out"), *LAYOUT])
    with pytest.raises(SystemExit) as stop:
        run_main(make_tfrecords.main)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def changed(number: int, **features) -> bytes:
    """A record of its own with other features: a list of ints, floats or bytes, or None for none."""
    example = Example.FromString(tiny.example("ab", np.random.RandomState(1000 + number)))
    for name, values in features.items():
        feature = example.features.feature["image/" + ("class" if name == "ids" else name)]
        feature.Clear()
        kinds = {int: feature.int64_list, float: feature.float_list, bytes: feature.bytes_list}
        if values is None:
            del example.features.feature["image/" + ("class" if name == "ids" else name)]
        else:
            kinds[type(values[0])].value.extend(values)
    return example.SerializeToString()


def bad_records() -> list[bytes]:
    """Records in sound framing, each with one fault."""
    null = tiny.CHARSET.null_id
    ids = tiny.CHARSET.encode("ab", 4)
    one_colour = io.BytesIO()
    Image.new("RGB", (96, 48), "red").save(one_colour, "PNG")
    pictures = [content for name, content in bad_pictures().items() if not name.endswith((".webp", ".tif"))]
    faults: list[dict] = [{"encoded": [content]} for content in pictures]
    faults += [{"encoded": values} for values in (None, [7], [0.5], [one_colour.getvalue()], [noise(1)] * 2)]
    faults += [{"ids": values} for values in (None, [0.5], [b"ab"], ids[:3], [*ids, null], [99] * 4, [-1] * 4)]
    faults += [{"ids": [*ids[:3], 2**62]}, {"ids": [null] * 4, "text": [b""], "unpadded_class": None}]
    faults += [{"ids": [ids[0], null, ids[1], null], "unpadded_class": [ids[0], null]}]
    faults += [{"text": [text]} for text in (b"abc", b"", b"\xff\xfe", b"ab\n", "\u00e4b".encode())]
    faults += [{"unpadded_class": values} for values in (ids[:1], [9, 9], [*ids[:2], null])]
    faults += [{name: [value]} for name in ("height", "width", "orig_width") for value in (-1, 7, 2**40) if value != 7]
    faults += [{"height": [7]}, {"width": [7]}]
    changes = [changed(number, **fault) for number, fault in enumerate(faults)]
    return [*changes, b"", b"\x00", b"\xff" * 40, b"hello", noise(2)]


def bad_shards(sound: bytes) -> dict[str, bytes]:
    """Shards that cannot be followed to their end, made of a sound one; later-*: behind its first record."""
    second = 16 + struct.unpack("<Q", sound[:8])[0]
    files = {f"cut-{cut}": sound[:cut] for cut in (1, 7, 8, 11, 12, 40, second - 1)}
    files.update({f"later-{more}": sound[: second + more] for more in (1, 11, 12, 500)})
    files.update({f"length-{i}": sound[:i] + bytes([sound[i] ^ 1]) + sound[i + 1 :] for i in (0, 8, 11)})
    files["huge"] = struct.pack("<Q", 2**60) + sound[8:]
    files["text"] = b"path\ttext\n" * 99
    files["gzip"] = gzip.compress(sound)
    files["zeros"] = bytes(5000)
    files["rubbish"] = random.Random(3).randbytes(5000)
    return files


def test_check_data(tmp_path):
    state = np.random.RandomState(9)
    records = bad_records()
    for name in ("good", "mixed"):
        (tmp_path / name / "test").mkdir(parents=True)
        tiny.CHARSET.save(tmp_path / name / "charset_size=7.txt")
        write_shard(tmp_path / name / "test" / "test-good", [tiny.example(text, state) for text in GOOD])
    folder = tmp_path / "mixed" / "test"
    write_shard(folder / "test-mixed", [*records[:60], *[tiny.example(text, state) for text in GOOD], *records[60:]])
    shards = bad_shards((folder / "test-good").read_bytes())
    write_files(folder, {f"test-{name}": content for name, content in shards.items()})
    (folder / "test-empty").touch()
    options = ["--processes", "1", "--max_lines", "1000"]
    alone = run("check_data", ["good", *options], tmp_path)
    assert (alone.status, alone.errors) == (0, [])
    ended = run("check_data", ["mixed", *options], tmp_path)
    count = len(records) + len(shards)
    assert count >= 150
    problems = [line for line in ended.errors if not line.startswith("note: ")]
    assert len(problems) == count
    assert all(re.match(r"test-[a-z0-9-]+:\d+ \(offset \d+\): .", line) for line in problems)
    assert len({line.split(" ", 1)[0] for line in problems}) == count
    notes = [line for line in ended.errors if line.startswith("note: ")]
    later = sum(name.startswith("later") for name in shards)
    assert "note: test-empty is empty (0 bytes): fine if no records were to be in it" in notes
    assert len(notes) == 1 + later, "what is before a fault is read: the same record as in the sound shard"
    good = 2 * len(GOOD) + later
    assert ended.out[-1] == f"{good} of {good + count} records good, {count} problems, {len(notes)} notes"
    assert ended.status == 1
    assert ended.peak < alone.peak + MORE_MEMORY
