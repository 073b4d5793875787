"""Running out of memory, explained: what to change, in one line, in place of an allocator's traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from aocr_torch import device as devices
from aocr_torch.config import Config


class ShortageError(ValueError):
    """Memory that did not suffice; says which setting needs less."""


@contextmanager
def explain_shortage(config: Config, device: torch.device, *, is_training: bool) -> Iterator[None]:
    """Turns an out-of-memory error of the device, the host or the loader's processes into a ShortageError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if devices.is_out_of_memory(error):
            raise ShortageError(_advice(config, device, is_training)) from error
        if "DataLoader worker (pid" in str(error):  # its end, not an error that it raised
            raise ShortageError(
                f"a process that reads the data was killed, so memory is short ({str(error).splitlines()[0]}): use "
                f"fewer than --num_workers {config.data.num_workers}, or in a container more shared memory (docker run "
                "--shm-size=8g)"
            ) from error
        raise


def _advice(config: Config, device: torch.device, is_training: bool) -> str:
    batch_size, accumulate = config.data.batch_size, config.optim.accumulate_steps
    found = f"out of memory on {device} with --batch_size {batch_size}"
    ways = []
    if batch_size > 1:
        half = (batch_size + 1) // 2
        same = f" --accumulate_steps {2 * accumulate} (as many examples an update)" if is_training else ""
        ways.append(f"--batch_size {half}{same}")
    if is_training and not config.run.amp:
        ways.append("--amp")
    if batch_size == 1:
        ways.append("a smaller crop (--crop_width, --crop_height)")
    return f"{found}: try {', then '.join(ways)}" + ("; train.py --dry_run estimates what is needed" * is_training)
