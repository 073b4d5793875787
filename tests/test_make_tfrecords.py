"""tools/make_tfrecords.py as a user runs it."""

import os
import sys
from pathlib import Path

import pytest
import tiny
from PIL import Image

from aocr_torch.command_line import run_main

TOOL = Path(__file__).parent.parent / "tools" / "make_tfrecords.py"
SIZE = {"image_height": 16, "image_width": 32, "num_views": 2, "max_sequence_length": 4, "processes": 1}
LAYOUT = [f"--{name}={value}" for name, value in SIZE.items()]


@pytest.fixture(scope="module")
def tool():
    return tiny.load_tool("make_tfrecords")


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of ten labelled pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (20, 20), (number * 20, 5, 5)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a{number}\n")
    return folder


def test_makes_a_data_set_and_says_what_it_did(tool, photos, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert tool.main([str(photos), out, *LAYOUT]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"8 train, 1 validation, 1 test records written into {out} (charset of 12)\n0 left out\n"
    assert captured.err == ""
    assert sorted(path.name for path in Path(out).iterdir()) == [
        *("charset_size=12.txt", "config.yaml", "make_tfrecords.json", "test", "train", "validation")
    ]


def test_lists_what_was_left_out(tool, photos, tmp_path, capsys):
    (photos / "3.txt").write_text("too long")
    (photos / "4.png").write_text("no picture")
    (photos / "5.txt").write_text("äß")
    tiny.CHARSET.save(tmp_path / "charset.txt")
    (photos / "6.txt").write_text("ab")
    status = tool.main([str(photos), str(tmp_path / "out"), *LAYOUT, "--charset", str(tmp_path / "charset.txt")])
    captured = capsys.readouterr()
    assert status == 1
    assert captured.out.endswith("(charset of 7)\n9 left out\n")
    assert "3.txt: the label of 3.png has 8 characters, expected at most 4" in captured.err
    assert "not in the charset: 'ß' (U+00DF LATIN SMALL LETTER SHARP S) at 5.txt\n" in captured.err
    assert len(captured.err.splitlines()) == 9 + 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "out"], "error: absent: no such file or folder"),
        (["photos", "out", "--views", "5"], "error: views is 5"),
        (["photos", "photos"], "was not written by make_tfrecords: name another folder"),
        (["photos", "photos", "--force"], "was not written by make_tfrecords: name another folder"),
        (["photos", "out", "--charset", "absent.txt"], "absent.txt"),
        (["photos", "out", "--charset", "photos/1.txt"], "expected an id, a tab and one character"),
    ],
)
def test_wrong_commands_end_with_a_line_and_status_2(tool, photos, tmp_path, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_tfrecords.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_main(tool.main)
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.slow
def test_sigterm_leaves_nothing(photos, tmp_path):
    lines = [f"{number}.png\ta" for number in range(3000)]
    for number in range(3000):
        os.link(photos / "0.png", photos / f"{number}.png") if number > 9 else None
    (photos / "l.tsv").write_text("\n".join(lines))
    command = [sys.executable, str(TOOL), str(photos / "l.tsv"), str(tmp_path / "out"), "--processes", "1"]
    status, errors = tiny.stopped(command, tmp_path, ".out.partial-*/written/train/*")
    assert status == 130
    assert "was not written" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
