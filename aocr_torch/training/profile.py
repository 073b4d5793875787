"""A profiler's trace of a few steps, for TensorBoard, Perfetto or MindStudio Insight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

import torch

from aocr_torch import device as devices
from aocr_torch.config import Run
from aocr_torch.training import ranks


@contextmanager
def trace_steps(run: Run, device: torch.device) -> Iterator[Callable[[], None]]:
    """Traces the steps of --profile on rank 0; yields what must be called after each step, skipped ones too."""
    if not run.profile or not ranks.is_main():
        yield lambda: None
        return
    with devices.profiler(device, run.train_log_dir, run.profile) as profiler:
        yield profiler.step
