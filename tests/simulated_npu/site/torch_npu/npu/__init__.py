"""torch.npu: the part of torch_npu.npu that PyTorch, Ascend apex and aocr_torch use, on the simulated device."""

import contextlib

import torch

from torch_npu import _C
from torch_npu.npu import utils
from torch_npu.npu.utils import clear_npu_overflow_flag, get_npu_overflow_flag

__all__ = ["clear_npu_overflow_flag", "get_npu_overflow_flag", "utils"]

# Of this stand-in alone: how often each operator ran, copies between host and device and reads of one value included.
log_ops, op_log = _C.log_ops, _C.op_log


def _index(device=None):
    if device is None:
        return _C.current_device()
    if isinstance(device, int):
        return device
    device = torch.device(device)
    if device.type != "npu":
        raise ValueError(f"Expected a npu device, but got: {device}")
    return _C.current_device() if device.index is None else device.index


def is_available():
    return _C.device_count() > 0


device_count, current_device, is_initialized = _C.device_count, _C.current_device, _C.is_initialized
init = _lazy_init = _C.init
_is_in_bad_fork = _C.in_bad_fork


def set_device(device):
    index = _index(device)
    if index >= 0:
        _C.set_device(index)


def synchronize(device=None):
    index = _index(device)
    if not 0 <= index < device_count():
        raise RuntimeError(f"Invalid NPU device index {index}")
    init()


class device(contextlib.AbstractContextManager):
    def __init__(self, device):
        self.index = -1 if device is None else _index(device)

    def __enter__(self):
        self.previous = current_device()
        if self.index >= 0:
            set_device(self.index)
        return self

    def __exit__(self, *error):
        set_device(self.previous)
        return False


def _exchange_device(index):
    previous = current_device()
    if index >= 0:
        set_device(index)
    return previous


_maybe_exchange_device = _exchange_device


# Streams and events: everything is synchronous here.
class Stream(torch.Stream):
    def __new__(cls, device=None, priority=0, **options):
        return super().__new__(cls, device=torch.device("npu", _index(device)), priority=priority, **options)


class Event:
    def __init__(self, enable_timing=False, blocking=False, interprocess=False):
        self._event = torch.Event(device="npu", enable_timing=enable_timing)

    def record(self, stream=None):
        self._event.record(stream or current_stream())

    def wait(self, stream=None):
        pass

    def query(self):
        return True

    def synchronize(self):
        self._event.synchronize()


def current_stream(device=None):
    return torch.accelerator.current_stream(_index(device))


default_stream = current_stream


@contextlib.contextmanager
def stream(stream):
    yield stream


def set_stream(stream):
    pass


# Random numbers.
def _generator(device=None):
    return _C.default_generator(_index(device))


def manual_seed(seed):
    _generator().manual_seed(int(seed))


def manual_seed_all(seed):
    for index in range(device_count()):
        _generator(index).manual_seed(int(seed))


def get_rng_state(device="npu"):
    return _generator(device).get_state()


def set_rng_state(state, device="npu"):
    _generator(device).set_state(state.cpu())


# Memory and description.
def memory_allocated(device=None):
    return _C.memory(_index(device))[0]


def max_memory_allocated(device=None):
    return _C.memory(_index(device))[1]


def empty_cache():
    pass


def get_device_name(device=None):
    return "simulated NPU"


def get_amp_supported_dtype():
    return [torch.float16, torch.bfloat16]


# Switches that a training may turn; they have no effect here.
def set_compile_mode(jit_compile=False):
    if not isinstance(jit_compile, bool):
        raise TypeError("jit_compile must be a bool")


class _Config:
    allow_internal_format = True


class _Precision:
    allow_hf32 = True


config, conv, matmul = _Config(), _Precision(), _Precision()


def _tensor_type(name, dtype):
    class Meta(type):
        def __instancecheck__(cls, value):
            return isinstance(value, torch.Tensor) and value.device.type == "npu" and value.dtype == dtype

    def new(cls, *arguments):
        if arguments and not isinstance(arguments[0], int):
            return torch.tensor(*arguments, dtype=dtype, device="npu")
        return torch.empty(*arguments, dtype=dtype, device="npu")

    return Meta(name, (), {"__new__": new, "dtype": dtype, "__module__": "torch.npu"})


FloatTensor, HalfTensor = _tensor_type("FloatTensor", torch.float32), _tensor_type("HalfTensor", torch.float16)
BFloat16Tensor, DoubleTensor = (
    _tensor_type("BFloat16Tensor", torch.bfloat16),
    _tensor_type("DoubleTensor", torch.float64),
)
IntTensor, LongTensor = _tensor_type("IntTensor", torch.int32), _tensor_type("LongTensor", torch.int64)
ByteTensor, BoolTensor = _tensor_type("ByteTensor", torch.uint8), _tensor_type("BoolTensor", torch.bool)
