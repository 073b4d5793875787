"""Devices: the only file that names cpu, cuda and npu, nccl, hccl and gloo."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import platform
import random
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import torch

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
ONNX_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "npu": "CANNExecutionProvider"}


class DeviceError(ValueError):
    """A device that is not there; the message says what is missing and what to do."""


def resolve(name: str) -> torch.device:
    """The device a user means, made current.

    Args:
        name: cpu; cuda or npu with or without an index (without one it is LOCAL_RANK, as torchrun sets it);
            auto: the first of npu, cuda, cpu that is there.

    Raises:
        DeviceError: unknown name, missing software, or no device with that index.
    """
    if name == "auto":
        name = next((kind for kind in ("npu", "cuda") if _is_available(kind)), "cpu")
    kind, index = _parse(name)
    if kind == "cpu":
        tune_host_allocator()
        return torch.device("cpu")
    if index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise DeviceError(f"--device {name} would put every process on one device: use --device {kind} with torchrun")
    if kind == "npu":
        _import_torch_npu()
    module = getattr(torch, kind)
    if not module.is_available():
        raise DeviceError(f"found no {kind} device: check the driver and the torch build, or use --device cpu")
    number = int(os.environ.get("LOCAL_RANK", "0")) if index is None else index
    if number >= module.device_count():
        raise DeviceError(f"found {module.device_count()} {kind} device(s), no {kind}:{number}: use a smaller index")
    device = torch.device(kind, number)
    module.set_device(device)
    if kind == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # as with HF32 below: by default convolutions would take it
        torch.backends.cudnn.benchmark = True  # a training has a handful of shapes, each worth a trial
    if kind == "npu":
        # Precompiled kernels: without this the first 910 compiles every new shape while it trains.
        module.set_compile_mode(jit_compile=False)
        # Private formats change the numbers and force conversions around every view.
        module.config.allow_internal_format = False
        # float32 means float32; mixed precision is asked for with --amp.
        module.conv.allow_hf32 = False
        module.matmul.allow_hf32 = False
    return device


def _is_available(kind: str) -> bool:
    if kind == "npu" and not hasattr(torch, "npu"):
        if importlib.util.find_spec("torch_npu") is None:
            return False
        _import_torch_npu()  # before torch 2.5 it does not come with torch by itself
    return getattr(torch, kind).is_available()


def _import_torch_npu() -> Any:
    try:
        return importlib.import_module("torch_npu")
    except ModuleNotFoundError as error:
        if error.name != "torch_npu":
            raise DeviceError(f"torch_npu cannot be imported: {error}; install what it names") from error
        raise DeviceError(
            "--device npu needs torch_npu, which is not installed: install the one made for this torch (docs/ascend.md)"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        raise DeviceError(
            f"torch_npu is installed but does not load ({str(error).splitlines()[0]}): "
            "source CANN's set_env.sh, and check that torch_npu is the one made for this torch"
        ) from error


def npu_fault() -> str:
    """Why torch_npu, which is installed, cannot be used; empty if it can."""
    try:
        _import_torch_npu()
    except DeviceError as error:
        return str(error)
    return ""


def describe() -> dict[str, str]:
    """What there is of each kind of device, and the version of CANN, for people; never raises."""
    facts = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for kind in ("cuda", "npu"):
        try:
            module = getattr(torch, kind, None)
            there = module is not None and module.is_available()
            names = Counter(module.get_device_name(i) for i in range(module.device_count())) if there else {}
            facts[kind] = ", ".join(f"{count} x {name}" for name, count in names.items()) or "none"
        except Exception as error:  # a driver at odds with its library may raise anything
            facts[kind] = f"cannot be asked: {' '.join(str(error).split())}"
    facts["cann"] = _cann_version()
    return facts


def _cann_version() -> str:
    home = os.environ.get("ASCEND_TOOLKIT_HOME") or os.environ.get("ASCEND_HOME_PATH")
    if not home:
        return "none, or its set_env.sh is not sourced"
    with contextlib.suppress(OSError):
        for path in sorted(Path(home).glob("*-linux/ascend_toolkit_install.info")):
            match = re.search(r"^version=(.+)$", path.read_text(errors="replace"), flags=re.MULTILINE)
            if match:
                return match.group(1).strip()
    return "of unknown version"


def onnx_providers(name: str, available: Sequence[str]) -> list[Any]:
    """The execution providers to ask onnxruntime for, best first.

    Args:
        name: as for `resolve`; auto is the best of the available ones. available: those of the installed onnxruntime.

    Raises:
        DeviceError: unknown name, or an onnxruntime without that provider.
    """
    if name == "auto":
        name = next((kind for kind in ("npu", "cuda") if ONNX_PROVIDERS[kind] in available), "cpu")
    kind, index = _parse(name)
    host = ONNX_PROVIDERS["cpu"]
    if kind == "cpu":
        return [host]
    if ONNX_PROVIDERS[kind] not in available:
        raise DeviceError(f"found an onnxruntime without {ONNX_PROVIDERS[kind]}: install its {kind} build, or use cpu")
    return [(ONNX_PROVIDERS[kind], {"device_id": index or 0}), host]


def _parse(name: str) -> tuple[str, Optional[int]]:
    kind, _, index = name.partition(":")
    if kind not in BACKENDS or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise DeviceError(f"found device {name!r}: expected cpu, cuda, cuda:0, npu, npu:0 or auto")
    return kind, int(index) if index else None


def process_group_backend(device: torch.device) -> str:
    """The collective library for a device: gloo, nccl or hccl."""
    return BACKENDS[device.type]


def uses_pinned_memory(device: torch.device) -> bool:
    """Whether batches should be copied from page-locked memory: wherever they cross to an accelerator."""
    return device.type != "cpu"


def is_host(device: torch.device) -> bool:
    """Whether reading a value of this device costs no synchronisation."""
    return device.type == "cpu"


def is_recording() -> bool:
    """Whether operations are written down for an export or a compiler, which must see plain ones, rather than run."""
    is_compiling = getattr(torch.compiler, "is_compiling", None) or torch._utils.is_compiling  # the first from 2.2 on
    return torch.jit.is_tracing() or is_compiling()


def prefers_channels_last(device: torch.device) -> bool:
    """Whether convolutions and pools are fastest with the channels innermost."""
    return device.type in ("cpu", "cuda")


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has been tried on this kind of device."""
    return device.type in ("cpu", "cuda")


def can_record(device: torch.device) -> bool:
    """Whether work can be recorded once and launched as a whole: a CUDA graph."""
    return device.type == "cuda"


def record(device: torch.device, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Records what `work` launches, which must not wait for the device and always works on the same memory.

    Returns:
        what launches it again, and what `work` returned: tensors that each launch fills anew. `work` has run three
        times by then, so that everything is loaded and tuned; the recording itself computes nothing.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as the one that pins batches, go on using the device meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = work()
    return graph.replay, result


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all it was given, for timing."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


def profiler(device: torch.device, folder: str, steps: int) -> AbstractContextManager:
    """Writes a trace of `steps` steps, after one that passes and one that warms up, into `folder` for TensorBoard.

    Its method step() is called after each step.
    """
    module = importlib.import_module("torch_npu.profiler") if device.type == "npu" else torch.profiler
    activities = [module.ProfilerActivity.CPU]
    if device.type != "cpu":
        activities.append(getattr(module.ProfilerActivity, device.type.upper()))
    return module.profile(
        activities=activities,
        schedule=module.schedule(wait=1, warmup=1, active=steps, repeat=1),
        on_trace_ready=module.tensorboard_trace_handler(folder),
        record_shapes=True,
        profile_memory=True,
    )


def hardware_name(device: torch.device) -> str:
    """The hardware by name."""
    if device.type != "cpu":
        return getattr(torch, device.type).get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which PyTorch lowers the operations that bear it to `dtype`."""
    return torch.autocast(device.type, dtype=dtype)


def can_autocast(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch can lower to `dtype` on the device; before 2.3 it could not lower to float16 on the host."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with autocast(device, dtype):
                return True
    except RuntimeError:
        return False


def amp_dtype(device: torch.device) -> torch.dtype:
    """What mixed precision lowers to: float16, but on the host, whose float16 is slow or missing, bfloat16."""
    return torch.bfloat16 if device.type == "cpu" else torch.float16


def has_apex(device: torch.device) -> bool:
    """Whether there is an apex for this kind of device that we use: the Ascend one."""
    return device.type == "npu"


def saturates(device: torch.device) -> bool:
    """Whether float16 overflows show in a register only: the first 910 turns infinity into 65504 and nan into 0."""
    return device.type == "npu" and not torch.npu.utils.is_support_inf_nan()


def clear_overflow() -> None:
    """Clears the register of a device that saturates."""
    torch.npu.utils.clear_npu_overflow_flag()


def has_overflowed() -> bool:
    """Whether anything overflowed since `clear_overflow`, on a device that saturates; waits for the device."""
    return bool(torch.npu.utils.get_npu_overflow_flag())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the host or on a device."""
    message = str(error)
    return isinstance(error, MemoryError) or "out of memory" in message or "can't allocate memory" in message


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's random numbers, uint8 tensors, on the host and on `device`."""
    state = {"host": torch.get_rng_state()}
    if device.type != "cpu":
        state["device"] = getattr(torch, device.type).get_rng_state(device)
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restores what `rng_state` returned."""
    torch.set_rng_state(state["host"])
    if device.type != "cpu" and "device" in state:
        getattr(torch, device.type).set_rng_state(state["device"], device)


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak so far: allocated by tensors on a device, resident in this process on the host."""
    if device.type != "cpu":
        return getattr(torch, device.type).max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tune_host_allocator() -> None:
    """Keeps freed memory in the process, on glibc.

    By default every large temporary is mapped, zeroed page by page and unmapped again, which costs a training step on
    the CPU more than half of its time. Elsewhere this does nothing.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, -1)
