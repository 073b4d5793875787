"""A stand-in for torch_npu on machines without an Ascend NPU, for tests only; see ../../README.md.

`import torch` alone is enough where this folder is on PYTHONPATH: the dist-info beside this package carries the same
torch.backends entry point as the real wheel.
"""

import atexit
import os
import sys
import time

_autoload_before = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD")
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # as the real one: no circular autoload
import torch  # noqa: E402

from torch_npu import _build  # noqa: E402

__version__ = "0.0.0+simulated"

_C = _build.load()
torch.utils.rename_privateuse1_backend("npu")
from torch_npu import npu  # noqa: E402

torch._register_device_module("npu", npu)
torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
sys.modules.setdefault("torch.npu", npu)


def get_npu_format(tensor):
    """Ascend apex asks; every tensor here is in the plain ND format."""
    return 2


def npu_format_cast(tensor, number):
    """Ascend apex asks; there is one format only."""
    return tensor


get_storage_size = _C.storage_numel

from torch_npu import _dist  # noqa: E402, F401


def _autoload():
    if _autoload_before is None:
        os.environ.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    else:
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = _autoload_before


@atexit.register
def _settle():
    # A thread of autograd may still be dropping its last graph; before Python 3.12 it would abort the process if it
    # asked for the GIL while the interpreter ends.
    if _C.is_initialized():
        time.sleep(0.05)


_autoload()
