"""Flags from a dataclass, as the tools have them; tests/test_config.py has the spellings."""

import contextlib
import errno
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Optional

import pytest

from aocr_torch.command_line import ConfigError, interruptible, parse_options, run_main

ROOT = Path(__file__).parent.parent
TOOLS = [
    *("convert_inception.py", "tools/export_tf.py", "tools/synthesize.py", "tools/predict.py"),
    *("tools/check_data.py", "tools/make_tfrecords.py"),
]


@dataclass(frozen=True)
class Lamp:
    yaw: float = 45.0


@dataclass(frozen=True)
class Sign:
    views: int = 4
    lamp: Lamp = field(default_factory=Lamp)


@dataclass(frozen=True)
class Options:
    """Draws."""

    out: Path
    names: tuple[str, ...]
    sign: Sign = field(default_factory=Sign)
    like: Literal["fsns", "demo"] = "fsns"
    charset: Optional[Path] = None
    splits: tuple[str, ...] = ()
    force: bool = False
    lit: Optional[bool] = None


def test_every_kind_of_field():
    arguments = ["a/b", "--force", "x", "--lamp.yaw", "3", "y", "--views=2", "--splits", "p", "q", "--like", "demo"]
    options = parse_options([*arguments, "--charset", "c", "-"], Options)
    expected = Sign(2, Lamp(3.0))
    assert options == Options(Path("a/b"), ("x", "y", "-"), expected, "demo", Path("c"), ("p", "q"), True)
    assert parse_options(["a", "b"], Options) == Options(Path("a"), ("b",))


def test_an_instance_gives_other_defaults():
    options = Options(Path("unused"), (), Sign(7), force=True)
    assert parse_options(["a", "b", "--noforce"], options) == replace(options, out=Path("a"), names=("b",), force=False)


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [("--lit", True), ("--lit=true", True), ("--nolit", False), ("--lit=0", False), ("--lit=None", None)],
)
def test_a_truth_that_may_be_left_open(spelling, expected):
    assert parse_options(["a", "b", spelling], Options).lit is expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "--lit=banana"], "--lit is 'banana': expected True or False"),
        (["a"], "no names: expected OUT NAMES; --help explains"),
        (["a", "b", "--view", "3"], "unknown flag --view; did you mean 'views'?"),
        (["a", "b", "--views", "x"], "command line: --views is 'x': expected int"),
        (["a", "b", "--lamp.yaw", "x"], "command line: --lamp.yaw is 'x': expected float"),
        (["a", "b", "--like", "x"], "command line: like is 'x': expected one of 'fsns', 'demo'"),
        (["a", "b", "--charset"], "--charset has no value: expected --charset VALUE"),
    ],
)
def test_errors_are_one_line(arguments, message):
    with pytest.raises(ConfigError) as error:
        parse_options(arguments, Options)
    assert str(error.value) == message


def test_ctrl_c_is_one_line(capsys):
    def main(arguments):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err == "interrupted\n"


def test_a_broken_pipe_that_is_not_the_output_is_an_error(capsys):
    def main(arguments):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == 2
    assert "Broken pipe" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_that_a_callback_drops_is_raised_at_the_next_report(number):
    counts, before = [], signal.getsignal(number)
    with interruptible(counts.append) as report:
        report(1)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            report(2)
    assert counts == [1]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_has_help_and_names_the_nearest_flag(tool):
    def run(argument):
        return subprocess.run([sys.executable, tool, argument], cwd=ROOT, capture_output=True, text=True)

    shown = run("--help")
    assert shown.returncode == 0
    assert "positional arguments" in shown.stdout
    flag = next(word for word in shown.stdout.split() if word.startswith("--") and word != "--help")
    wrong = run(f"{flag}x")
    assert (wrong.returncode, wrong.stderr) == (2, f"error: unknown flag {flag}x; did you mean {flag[2:]!r}?\n")
