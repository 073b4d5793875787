"""The processes of one training: who am I, and sums over all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from aocr_torch import device as devices

T = TypeVar("T")


def rank() -> int:
    """This process's number, 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and logs."""
    return rank() == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started (WORLD_SIZE in the environment); alone, does nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group(devices.process_group_backend(device), **_store())
    try:
        yield
        dist.barrier()
    finally:
        # gloo's threads drop the last tensors, for which they need Python's lock. In torch 2.1 the group is destroyed
        # with that lock held while it waits for its threads: without this pause every fourth training hung here.
        time.sleep(0.2)
        dist.destroy_process_group()


def _store() -> dict[str, Any]:
    """Where the processes find each other, for init_process_group; empty leaves it to the environment.

    torchrun since torch 2.5 keeps one store over all its restarts, in which the addresses of dead processes are found
    again; so each attempt gets names of its own. Over several machines the attempts are not counted alike.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    store, rank, world_size = next(dist.rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return {"store": dist.PrefixStore(f"attempt {attempt}", store), "rank": rank, "world_size": world_size}


def gather(values: list[T]) -> list[T]:
    """The lists of all processes in a row, the same on each; for a handful of plain values."""
    if world_size() == 1:
        return values
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def sum_over_ranks(values: Tensor) -> Tensor:
    """The element-wise sum over all processes of a host tensor of any dtype; exact for counts.

    Gathered as objects: a rank sums a handful of numbers, and not every collective library has float64.
    """
    return torch.stack(gather([values])).sum(0)


def is_set_anywhere(flag: bool) -> bool:
    """Whether the flag is set on any process; every process gets the same answer."""
    return any(gather([flag]))


def is_set_on_any_device(flag: bool, device: torch.device) -> bool:
    """As `is_set_anywhere`, fast enough for every step: one number over the devices' own network."""
    if world_size() == 1:
        return flag
    value = torch.full((), float(flag), device=device)
    dist.all_reduce(value)
    return bool(value)


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if world_size() > 1:
        dist.barrier()
