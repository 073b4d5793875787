"""`python -m aocr_torch` prints what a bug report needs: versions, devices, and what does not fit together.

However broken the installation, this must print: versions come from the packages' metadata, and any import may fail.
The exit status is 1 if something does not fit, else 0.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from typing import Optional

from aocr_torch import __version__

LEAST = {"torch": (2, 1), "torchvision": (0, 16), "numpy": (1, 24), "pillow": (10, 1), "tfrecord": (1, 14, 5)}
OPTIONAL = ("torch_npu", "apex", "onnx", "onnxruntime")
OTHERS = (
    "torchvision",
    "PIL",
    "crc32c",
    "google.protobuf",
    "tfrecord",
    "yaml",
    "tyro",
    "rapidfuzz",
    "tqdm",
    "tensorboard",
)


def main() -> int:
    """Prints the report and returns the exit status."""
    # With it torch imports torch_npu by itself, and fails as a whole where that does; here each is tried on its own.
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    versions = {name: installed_version(name) for name in (*LEAST, *OPTIONAL)}
    facts = {"aocr_torch": __version__, "python": platform.python_version(), "platform": platform.platform()}
    facts.update({name: version or "not installed" for name, version in versions.items()})
    problems = misfits(versions)
    broken = import_problem("torch") or import_problem("aocr_torch.device")
    if broken:
        problems.append(broken)
    else:
        from aocr_torch import device

        more = (*map(import_problem, OTHERS), apex_problem(), versions["torch_npu"] and device.npu_fault())
        problems += [problem for problem in more if problem]
        # A module says which build it is (+cpu, +cu130), which metadata may leave out.
        facts["torch"] = getattr(sys.modules["torch"], "__version__", facts["torch"])
        facts.update(device.describe())
    width = max(map(len, facts))
    print("\n".join(f"{name:{width}}  {value}" for name, value in facts.items()))
    print("\n".join(f"does not fit: {problem}" for problem in problems) or "everything fits together")
    return 1 if problems else 0


def installed_version(name: str) -> Optional[str]:
    """The version in a package's metadata, "of unknown version" where there is none, None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version" if importlib.util.find_spec(name) else None


def misfits(versions: dict[str, Optional[str]]) -> list[str]:
    """One line for each package that is missing, too old, or not the one for the others."""
    problems = []
    numbers = {name: _numbers(version) for name, version in versions.items()}
    for name, least in LEAST.items():
        needed = ".".join(map(str, least))
        if versions[name] is None:
            problems.append(f"{name} is not installed: install {needed} or newer")
        elif numbers[name] and numbers[name] < least:
            problems.append(f"{name} is {versions[name]}: expected {needed} or newer")
    torch, vision, npu, numpy = (numbers[name] for name in ("torch", "torchvision", "torch_npu", "numpy"))
    found = f"found torch {versions['torch']}"
    # Since torch 2.0 and torchvision 0.15 both count in step.
    if torch[:1] == (2,) and vision[:1] == (0,) and vision[1] != torch[1] + 15:
        made_for = f"torchvision {versions['torchvision']} is made for torch 2.{vision[1] - 15}"
        problems.append(f"{made_for}, {found}: install torchvision 0.{torch[1] + 15}")
    if torch and npu and npu[:3] != torch[:3]:
        made_for = f"torch_npu {versions['torch_npu']} is made for torch {'.'.join(map(str, npu[:3]))}"
        problems.append(f"{made_for}, {found}: install a pair of docs/ascend.md")
    if torch and numpy >= (2,) and torch < (2, 3):
        problems.append(
            f"numpy {versions['numpy']} does not work with torch before 2.3, {found}: pip install 'numpy<2'"
        )
    return problems


def import_problem(name: str) -> Optional[str]:
    """Why a package cannot be imported; None if it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # what a broken installation raises is not foreseeable
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if "torchvision::nms" in reason:
            reason += "; it is a build for another torch, as PyPI's is beside a +cpu torch: install both from one place"
        return f"{name} cannot be imported: {reason}"
    return None


def apex_problem() -> Optional[str]:
    """Why the apex that is installed is none; None if there is none or it may be one."""
    if importlib.util.find_spec("apex") is None:
        return None
    try:
        importlib.import_module("apex.amp")
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return f"apex has no amp that works ({reason}): PyPI's apex is an unrelated package, pip uninstall apex"
    return None


def _numbers(version: Optional[str]) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)+", version or "")
    return tuple(map(int, release.group().split("."))) if release else ()


if __name__ == "__main__":
    if sys.argv[1:]:
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    sys.exit(main())
