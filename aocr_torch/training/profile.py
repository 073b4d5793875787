"""A profiler's trace of a few steps, for TensorBoard, Perfetto or MindStudio Insight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

import torch

from aocr_torch import device as devices
from aocr_torch.config import ConfigError, Run
from aocr_torch.training import ranks

STEPS_BEFORE = 2  # one passes, one warms the profiler up


@contextmanager
def trace_steps(run: Run, device: torch.device) -> Iterator[Callable[[], None]]:
    """Traces the steps of --profile on rank 0; yields what must be called after each step, skipped ones too.

    Raises:
        ConfigError: the training ended before the first of these steps; what it learned is saved.
    """
    if not run.profile or not ranks.is_main():
        yield lambda: None
        return
    steps = 0

    def end_of_step() -> None:
        nonlocal steps
        steps += 1
        profiler.step()

    with devices.profiler(device, run.train_log_dir, run.profile) as profiler:
        yield end_of_step
    if steps <= STEPS_BEFORE:
        raise ConfigError(
            f"no trace was written: it begins after {STEPS_BEFORE} steps, and this training ended after {steps}"
        )
