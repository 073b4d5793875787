"""What a user is told whose device is not there: one line that says what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import flags

ROOT = Path(__file__).parent.parent


def train_py(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """train.py with the packages in `folder` installed."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *flags(), *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def install(folder: Path, code: str, autoload: bool = False) -> Path:
    """A torch_npu that runs `code` when it is imported; the newer ones are imported by torch itself."""
    (folder / "torch_npu").mkdir()
    (folder / "torch_npu" / "__init__.py").write_text(code)
    if autoload:
        info = folder / "torch_npu-2.9.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.9.0\n")
        (info / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    return folder


NO_CANN = "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')"


@pytest.mark.parametrize(
    ("code", "device", "message"),
    [
        (None, "npu:0", "--device npu needs torch_npu, which is not installed"),
        (
            NO_CANN,
            "npu",
            "does not load (libhccl.so: cannot open shared object file: No such file or directory): source",
        ),
        ("import decorator_that_is_missing", "npu:0", "torch_npu cannot be imported: No module named 'decorator_that"),
        (
            "raise RuntimeError('made for torch 2.1\\nmore')",
            "npu",
            "check that torch_npu is the one made for this torch",
        ),
        (None, "npu:x", "found device 'npu:x': expected cpu, cuda, cuda:0, npu, npu:0 or auto"),
        (None, "tpu", "found device 'tpu': expected cpu"),
    ],
    ids=["missing", "no_cann", "incomplete", "other_torch", "index", "name"],
)
def test_npu_that_is_not_there(tmp_path, code, device, message):
    if code is not None:
        install(tmp_path, code)
    result = train_py(tmp_path, f"--device={device}")
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 5), reason="torch before 2.5 imports no backend by itself"
)
def test_torch_that_cannot_be_imported_for_want_of_cann(tmp_path):
    """torch_npu since 2.5.1 is loaded by `import torch`, which fails as a whole without CANN."""
    install(tmp_path, NO_CANN, autoload=True)
    result = train_py(tmp_path, "--device=cpu")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "source CANN's set_env.sh, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0" in result.stderr
    without = train_py(tmp_path, "--device=cpu", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert "no data set" in without.stderr
    asked_for = train_py(tmp_path, "--device=npu:0", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert "does not load (libhccl.so" in asked_for.stderr
