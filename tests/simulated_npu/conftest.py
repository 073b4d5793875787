"""The simulated npu, built once a session (a minute, cached), and programs run on it in processes of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class SimulatedNpu:
    """Runs Python programs with the device."""

    def __init__(self, *, apex: bool = True, saturates: bool = False, devices: int = 1) -> None:
        folders = [HERE / "site", ROOT, ROOT / "tests" / "support"]
        if apex:
            # AOCR_APEX names a folder with the real one, which then takes the stand-in's place.
            folders.insert(0, Path(os.environ.get("AOCR_APEX", HERE / "apex_site")))
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "FAKENPU_SATURATE": str(int(saturates)),
            "FAKENPU_DEVICE_COUNT": str(devices),
        }
        self.devices = devices

    def run(self, program: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """`python PROGRAM ARGUMENTS`, under torchrun where there are several devices; the output is captured."""
        command = [sys.executable]
        if self.devices > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.devices}"]
        return subprocess.run(
            [*command, str(program), *map(str, arguments)],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="session")
def simulated_npu() -> type[SimulatedNpu]:
    """The class SimulatedNpu, once the device is built and works."""
    if not (shutil.which("g++") or shutil.which("c++") or os.environ.get("CXX")):
        pytest.skip("the simulated npu is built with g++, which is not here")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip(f"the simulated npu is written for torch 2.13 and 2.14, found {torch.__version__}")
    npu = SimulatedNpu(apex=False)
    code = "import torch; print(torch.ones(2, device='npu:0').sum().item())"
    result = subprocess.run([sys.executable, "-c", code], env=npu.environment, capture_output=True, text=True)
    assert result.stdout == "2.0\n", result.stderr
    return SimulatedNpu
