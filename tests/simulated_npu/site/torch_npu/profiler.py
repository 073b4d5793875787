"""torch_npu.profiler: the names and keywords that aocr_torch uses, over the profiler of the host."""

from enum import Enum

import torch
from torch.profiler import schedule, tensorboard_trace_handler

__all__ = ["ProfilerActivity", "profile", "schedule", "tensorboard_trace_handler"]


class ProfilerActivity(Enum):
    CPU = 0
    NPU = 1


def profile(*, activities, schedule, on_trace_ready, record_shapes=False, profile_memory=False):
    if ProfilerActivity.NPU not in activities:
        raise RuntimeError("the trace would hold nothing of the device")  # the real one writes it all the same
    return torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        schedule=schedule,
        on_trace_ready=on_trace_ready,
        record_shapes=record_shapes,
        profile_memory=profile_memory,
    )
