"""tools/check_data.py as a user runs it."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import tiny

from aocr_torch.command_line import run_main


@pytest.fixture(scope="module")
def tool():
    return tiny.load_tool("check_data")


def damage(folder: Path) -> None:
    """One byte of the first record of the first test shard."""
    shard = sorted((folder / "test").glob("test-*-of-*[0-9]"))[0]
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(content)


def test_a_sound_data_set_with_a_contact_sheet_and_files(tool, tiny_dataset, tmp_path, capsys):
    page, files = tmp_path / "new" / "sheet.html", tmp_path / "files"
    options = ["--contact_sheet", str(page), "--to_images", str(files), "--processes", "1"]
    assert tool.main([str(tiny_dataset), *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[-3] == "23 of 23 records good, 0 problems, 0 notes"
    assert captured.out.endswith(f"23 pictures written into {files}, 0 records could not be read\n")
    html = page.read_text(encoding="utf-8")
    assert html.count("<figure>") == html.count("data:image/jpeg;base64,/9j/") == 23
    assert not re.search(r"(src|href)=\"(?!data:)", html), "nothing is fetched from elsewhere"
    assert (files / "validation.csv").is_file()


def test_problems_are_listed_and_tell_in_the_status(tool, tiny_dataset, tmp_path, capsys):
    shutil.copytree(tiny_dataset, tmp_path / "data")
    damage(tmp_path / "data")
    arguments = [str(tmp_path / "data"), "--splits", "test", "train", "--processes", "1"]
    assert tool.main([*arguments, "--contact_sheet", str(tmp_path / "s.html"), "--contact-sheet-records", "2"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("test-00000-of-00002:0 (offset 0): crc of the data is wrong")
    assert "17 of 18 records good, 1 problems, 0 notes" in captured.out
    assert "<h2>1 problems</h2>" in (tmp_path / "s.html").read_text()
    train = tmp_path / "data" / "train"
    shutil.copy(sorted(train.glob("train-*"))[0], train / "train-x")
    assert tool.main([*arguments, "--max_lines", "1"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in errors] == [
        "test-00000-of-00002:0",
        "note: train-00000-of-00003:0 and train-x:0 are the same record",
        "and 3 more notes",
    ]


def test_the_layout_can_be_demanded(tool, tiny_dataset, capsys):
    only_test = [str(tiny_dataset), "--splits", "test", "--processes", "1"]
    assert tool.main([*only_test, "--image_width", "100"]) == 1
    assert capsys.readouterr().err.count("the image is 96x48, expected 100x48") == 7
    size = ["--image_width=96", "--image_height=48", "--max_sequence_length=5"]
    assert tool.main([*only_test, *size]) == 1
    assert capsys.readouterr().err.count("has 4 ids, expected 5") == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/absent"], "expected one charset_size=*.txt"),
        (["{}", "--splits", "tset"], "did you mean 'test'?"),
        (["{}", "--processes", "0"], "must be at least 1"),
        (["{}", "--charset_filename", "x.txt"], "does not exist"),
        (["{}", "--to_images", "{}"], "is not an empty folder: name another one"),
    ],
)
def test_wrong_commands_end_with_a_line_and_status_2(tool, tiny_dataset, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_data.py", *(a.format(tiny_dataset) for a in arguments)])
    with pytest.raises(SystemExit) as stop:
        run_main(tool.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert message in error
