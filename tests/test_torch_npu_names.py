"""Every name that our code uses of torch_npu is in its wheels, the oldest and the newest that the documents claim."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from torch_npu_names import Use, Wheel, uses_in

ROOT = Path(__file__).parent.parent


def our_uses() -> set[Use]:
    sources = [*(ROOT / "aocr_torch").rglob("*.py"), *(ROOT / "tools").glob("*.py"), *ROOT.glob("*.py")]
    return set().union(*(uses_in(path.read_text(encoding="utf-8")) for path in sources))


def claimed_versions() -> list[str]:
    """The torch_npu column of the tables in README.md and docs/ascend.md, oldest first."""
    versions = set()
    for document in ("README.md", "docs/ascend.md"):
        column = None
        for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.split("|")]
            if "torch_npu" in cells:
                column = cells.index("torch_npu")
            elif len(cells) < 3:
                column = None
            elif column is not None and cells[column][:1].isdigit():
                versions.add(cells[column])
    return sorted(versions, key=lambda version: [int(part) for part in version.replace("post", "").split(".")])


def test_what_is_collected():
    uses = our_uses()
    names = {use.name for use in uses}
    assert {"torch_npu.npu.set_device", "torch_npu.npu.utils.is_support_inf_nan", "torch_npu.profiler.profile"} <= names
    assert Use("torch_npu.npu.set_compile_mode", 0, ("jit_compile",)) in uses
    assert "torch_npu.npu.config.allow_internal_format" in names
    assert len(claimed_versions()) > 1


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("torch.npu.go(1, fast=True)", None),
        ("torch.npu.go(1, quick=True)", "torch_npu.npu.go: has no parameter quick"),
        ("torch.npu.go(1, 2, 3)", "torch_npu.npu.go: takes 2 positional arguments, not 3"),
        ("torch.npu.go()", "torch_npu.npu.go: needs speed"),
        ("torch.npu.hidden()", "torch_npu.npu.hidden: nothing of that name"),
        ("getattr(torch, kind).stop()", "torch_npu.npu.stop: nothing of that name"),
        ("module = torch.npu\n module.switch.light = False", None),
        ("torch.npu.switch.dark = False", "torch_npu.npu.switch.dark: nothing of that name"),
        ("importlib.import_module('torch_npu.npu').Engine.anything(1)", None),
    ],
)
def test_what_is_found_in_a_wheel(tmp_path, code, problem):
    with zipfile.ZipFile(tmp_path / "made.whl", "w") as archive:
        archive.writestr("torch_npu/__init__.py", "")
        archive.writestr("torch_npu/npu/__init__.py", "from .a import *\nfrom torch_npu._C import Engine\nswitch = S()")
        archive.writestr(
            "torch_npu/npu/a.py",
            "__all__ = ['go', 'S']\ndef go(speed, fast=False): ...\ndef hidden(): ...\n"
            "class S:\n def __setattr__(self, name, value):\n  name == 'light'\n",
        )
    wheel = Wheel(tmp_path / "made.whl")
    problems = {wheel.problem(use) for use in uses_in(f"def f():\n {code}\n")}
    assert problems - {None} == ({problem} if problem else set())


@pytest.mark.slow
@pytest.mark.parametrize("version", [claimed_versions()[0], claimed_versions()[-1]], ids=["oldest", "newest"])
def test_every_name_is_in_the_wheel(tmp_path, version):
    """AOCR_TORCH_NPU_WHEELS, a folder: wheels are kept and found there, and one that cannot be had is a failure."""
    kept = os.environ.get("AOCR_TORCH_NPU_WHEELS")
    folder = Path(kept) if kept else tmp_path
    if not list(folder.glob(f"torch_npu-{version}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
        command += ["--python-version=3.11", "--platform=manylinux_2_17_x86_64", "--platform=manylinux_2_28_x86_64"]
        result = subprocess.run([*command, f"torch_npu=={version}"], capture_output=True, text=True)
        if result.returncode and not kept:
            pytest.skip(f"pip cannot download torch_npu {version} here: {result.stderr.strip().splitlines()[-1]}")
        assert result.returncode == 0, result.stderr
    (path,) = folder.glob(f"torch_npu-{version}-*.whl")
    wheel = Wheel(path)
    problems = [wheel.problem(use) for use in sorted(our_uses(), key=lambda use: use.name)]
    assert not list(filter(None, problems))
