"""Builds _fakenpu.cpp once for each source, torch and Python, and imports it from a cache folder."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("_fakenpu.cpp")


def _target() -> Path:
    key = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {torch.__file__} {sys.version}".encode())
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = os.environ.get("FAKENPU_CACHE") or os.path.join(home, "fakenpu")
    return Path(root) / key.hexdigest()[:16] / "_fakenpu.so"


def build() -> Path:
    """The path of the library, compiled first where it is not there yet. Raises ImportError."""
    library = _target()
    if library.exists():
        return library
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not compiler:
        raise ImportError("the simulated npu needs a C++ compiler (g++) for its one build")
    root = Path(torch.__file__).parent
    include, libraries = root / "include", root / "lib"
    library.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    command = [compiler, "-std=c++20", "-O1", "-fPIC", "-shared", "-w", "-DTORCH_EXTENSION_NAME=_fakenpu"]
    command += ["-DTORCH_API_INCLUDE_EXTENSION_H", f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]
    command += [f"-I{sysconfig.get_paths()['include']}", str(SOURCE), "-o", temporary]
    command += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        os.unlink(temporary)
        raise ImportError("building the simulated npu failed:\n" + result.stderr[-4000:])
    os.replace(temporary, library)  # two that build at the same time do no harm
    return library


def load():
    """The extension module."""
    spec = importlib.util.spec_from_file_location("_fakenpu", build())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
