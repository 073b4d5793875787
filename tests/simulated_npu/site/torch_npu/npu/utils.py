"""How overflows show: as inf and nan (A2, the default) or in a register (the first 910; FAKENPU_SATURATE=1)."""

import warnings

from torch_npu import _C


def is_support_inf_nan():
    return not _C.saturates()


def get_npu_overflow_flag():
    if is_support_inf_nan():
        raise RuntimeError("Unsupported api when soc_version >= Ascend910B1, please use npu_check_overflow")
    return _C.overflow()


def clear_npu_overflow_flag():
    if is_support_inf_nan():
        warnings.warn("When soc_version >= Ascend910B1, clear_npu_overflow_flag is useless.", stacklevel=2)
        return
    _C.clear_overflow()
