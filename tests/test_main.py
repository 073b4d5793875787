"""`python -m aocr_torch` on sound and on broken installations, which stand in front of the real one on sys.path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aocr_torch.__main__ import main, misfits

ROOT = Path(__file__).parent.parent
FITTING = {"torch": "2.6.0+cpu", "torchvision": "0.21.0", "numpy": "2.1.0", "pillow": "11.0.0", "tfrecord": "1.14.6"}
NPU = """
import torch

class npu:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 8)
    get_device_name = staticmethod(lambda index: "Ascend910B3")

torch.npu = npu
"""


def install(folder: Path, name: str, code: str, version: str = "", autoload: bool = False) -> None:
    """A package that runs `code` when it is imported."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    if version:
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if autoload:
            (info / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")


def run(folder: Path, **environment: str) -> tuple[int, dict[str, str], list[str]]:
    """Exit status, facts by name, and what does not fit."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-m", "aocr_torch"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )
    assert "Traceback" not in result.stderr
    lines = result.stdout.splitlines()
    problems = [line[len("does not fit: ") :] for line in lines if line.startswith("does not fit: ")]
    facts = dict(line.split(None, 1) for line in lines if "does not fit" not in line and "fits together" not in line)
    assert (lines[-1] == "everything fits together") == (not problems)
    return result.returncode, facts, problems


def test_this_installation(monkeypatch, capsys):
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    assert main() == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert f"\ntorch        {torch.__version__}" in said
    assert "\ncpu " in said
    assert said.endswith("\neverything fits together\n")


def test_an_ascend_server(tmp_path):
    install(tmp_path, "torch_npu", NPU, torch.__version__.partition("+")[0] + ".post4")
    install(tmp_path, "apex", "", "0.1+ascend")
    (tmp_path / "apex" / "amp.py").touch()
    (tmp_path / "cann" / "aarch64-linux").mkdir(parents=True)
    information = "package_name=Ascend-cann-toolkit\nversion=8.3.RC1\narch=aarch64\n"
    (tmp_path / "cann" / "aarch64-linux" / "ascend_toolkit_install.info").write_text(information)
    status, facts, problems = run(tmp_path, ASCEND_TOOLKIT_HOME=str(tmp_path / "cann"))
    assert (status, problems) == (0, [])
    assert facts["npu"] == "8 x Ascend910B3"
    assert facts["cann"] == "8.3.RC1"
    assert facts["apex"] == "0.1+ascend"


def test_everything_at_odds(tmp_path):
    no_cann = "raise ImportError('libhccl.so: cannot open shared object file\\nmore')"
    install(tmp_path, "torch_npu", no_cann, "2.84.0.post1", autoload=True)
    install(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')", "0.99.0")
    install(tmp_path, "apex", "import pyramid_of_the_unrelated_apex", "0.9.10.dev0")
    status, facts, problems = run(tmp_path, ASCEND_TOOLKIT_HOME="", ASCEND_HOME_PATH="")
    assert status == 1
    assert facts["cann"] == "none, or its set_env.sh is not sourced"
    assert facts["npu"] == "none"
    expected = [
        "torchvision 0.99.0 is made for torch 2.84, found torch ",
        "torch_npu 2.84.0.post1 is made for torch 2.84.0, found torch ",
        "torchvision cannot be imported: operator torchvision::nms does not exist; it is a build for another torch",
        "apex has no amp that works (No module named 'pyramid_of_the_unrelated_apex'): PyPI's apex is an unrelated",
        "torch_npu is installed but does not load (libhccl.so: cannot open shared object file): source CANN's",
    ]
    assert [problem[: len(start)] for problem, start in zip(problems, expected)] == expected
    assert len(problems) == len(expected)


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_what_cannot_be_imported_at_all(name, tmp_path):
    install(tmp_path, name, "raise OSError('libc10.so: cannot open\\nmore')", "2.9.0")
    status, facts, problems = run(tmp_path)
    assert status == 1
    assert facts[name] == "2.9.0"
    assert any("cannot be imported: libc10.so: cannot open" in problem for problem in problems)


def test_another_package_that_does_not_work(tmp_path):
    install(tmp_path, "rapidfuzz", "raise ImportError('undefined symbol')")
    assert run(tmp_path)[2] == ["rapidfuzz cannot be imported: undefined symbol"]


def test_no_driver_that_answers(tmp_path):
    broken = NPU.replace("lambda: 8", "lambda: 1 // 0")
    install(tmp_path, "torch_npu", broken, torch.__version__.partition("+")[0])
    status, facts, _ = run(tmp_path)
    assert status == 0
    assert facts["npu"].startswith("cannot be asked: integer")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"torch_npu": "2.6.0.post5"}, []),
        ({"torch": "2.14.1", "torchvision": "0.29.1+cpu"}, []),
        ({"torch": "2.10.0a0+git123", "torchvision": "0.25.0a0"}, []),
        ({"torch": "of unknown version"}, []),
        ({"torch": "3.0.0", "torchvision": "0.40.0"}, []),
        ({"torchvision": "0.22.1"}, ["torchvision 0.22.1 is made for torch 2.7, found torch 2.6.0+cpu: install"]),
        ({"torch_npu": "2.7.1.post8"}, ["torch_npu 2.7.1.post8 is made for torch 2.7.1, found torch 2.6.0+cpu"]),
        ({"torch": "2.1.0", "torchvision": "0.16.0"}, ["numpy 2.1.0 does not work with torch before 2.3, found"]),
        ({"torch": "2.1.0", "torchvision": "0.16.0", "numpy": "1.26.4"}, []),
        (
            {"torch": "2.0.1", "torchvision": "0.15.2", "numpy": "1.26.4"},
            ["torch is 2.0.1: expected 2.1", "torchvision"],
        ),
        ({"torch": None, "torch_npu": "2.6.0"}, ["torch is not installed: install 2.1 or newer"]),
    ],
)
def test_versions(changes, expected):
    found = misfits({**FITTING, "torch_npu": None, **changes})
    assert [problem[: len(start)] for problem, start in zip(found, expected)] == expected
    assert len(found) == len(expected)
