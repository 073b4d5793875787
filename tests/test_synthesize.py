"""tools/synthesize.py as a user runs it."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import stopped

from aocr_torch.command_line import ConfigError

TOOL = Path(__file__).parent.parent / "tools" / "synthesize.py"
SMALL = ["--preset", "demo", "--num_train", "4", "--num_validation", "2", "--num-test", "2", "--processes", "1"]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("synthesize_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where annotations are looked up
    spec.loader.exec_module(module)
    return module


def test_draws_and_says_what_it_did(tool, tmp_path, capsys):
    out = str(tmp_path / "signs")
    assert tool.main([out, *SMALL]) == 0
    assert capsys.readouterr().out == f"4 train, 2 validation, 2 test signs drawn into {out} (charset of 34)\n"
    assert (tmp_path / "signs" / "charset_size=34.txt").is_file()
    assert tool.main([out, *SMALL]) == 0
    assert "already in" in capsys.readouterr().out


def test_a_preset_gives_the_defaults_and_flags_win(tool):
    options = tool.parse(["signs", "--preset", "demo", "--effects.yaw", "30", "--force", "--max_length=12"])
    assert options.parameters.view_width == 96
    assert options.parameters.effects.yaw == 30
    assert options.parameters.effects.max_lines == 1
    assert options.parameters.max_length == 12
    assert options.force
    assert tool.parse(["signs"]).parameters == tool.SyntheticParameters()


def test_an_error_is_one_line_and_a_status(tmp_path):
    result = subprocess.run(
        [sys.executable, str(TOOL), str(tmp_path / "signs"), "--height", "3"], capture_output=True, text=True
    )
    assert result.returncode != 0
    assert result.stderr == "error: height is 3: expected at least 16\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["signs", "--preset", "nice"], "preset is 'nice': expected one of 'fsns', 'demo'"),
        (["signs", "--hight", "20"], "unknown flag --hight; did you mean 'height'?"),
        (["signs", "--effects.yow", "20"], "unknown flag --effects.yow; did you mean 'effects.yaw'?"),
        ([], "no out: expected OUT"),
    ],
)
def test_unknown_arguments_are_named(tool, arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        tool.parse(arguments)


def test_sigterm_leaves_nothing(tmp_path):
    command = [sys.executable, str(TOOL), str(tmp_path / "signs"), "--num_train", "100000", "--processes", "1"]
    status, errors = stopped(command, tmp_path, ".signs.partial-*/written/train/*")
    assert status == 130
    assert "was not written" in errors
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_twice_ends_it_at_once_and_leaves_nothing(tmp_path):
    command = [sys.executable, str(TOOL), str(tmp_path / "signs"), "--num_train", "100000", "--processes", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".signs.partial-*/written/train/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) in (130, -signal.SIGINT)  # the second may come when Python is about to leave
    assert process.stderr.read() == f"interrupted: {tmp_path / 'signs'} was not written\n"
    assert list(tmp_path.iterdir()) == []


def test_a_contact_sheet_that_cannot_be_written_is_said_before_the_work(tool, tmp_path):
    for name in ("sheet.xyz", "."):
        with pytest.raises((ValueError, OSError), match=r"ends as pictures do|Is a directory"):
            tool.main([str(tmp_path / "signs"), *SMALL, "--contact_sheet", str(tmp_path / name)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg"])
def test_the_contact_sheet_shows_a_hundred_signs(tool, tmp_path, capsys, name):
    sheet = tmp_path / "new" / name
    assert tool.main([str(tmp_path / "signs"), *SMALL, "--contact_sheet", str(sheet)]) == 0
    assert f"100 signs shown in {sheet}\n" in capsys.readouterr().out
    picture = Image.open(sheet)
    assert (picture.width, picture.height) == (4 * (288 + 6) - 6, 25 * (72 + 17))
    cells = [np.asarray(picture.crop((x, y, x + 288, y + 72))) for x in (0, 294, 588, 882) for y in range(0, 2225, 89)]
    assert len({cell.tobytes() for cell in cells}) == 100
    assert min(cell.std() for cell in cells) > 10
