"""Batches for training and evaluation: each record exactly once on any number of ranks and workers.

B batch, V views, h w view, H W image (W holds all views side by side).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Callable, Optional, Union

import numpy as np
import torch
from torch.utils.data import DataLoader

from aocr_torch.data.augment import Augmentation
from aocr_torch.data.fsns import FSNSDataset
from aocr_torch.data.records import RecordError
from aocr_torch.data.shared_batches import SharedBatches, as_it_is


def _batch_of(
    dataset: FSNSDataset, allow_empty: bool, keys: Sequence[Any], image: Optional[torch.Tensor] = None
) -> dict[str, Any]:
    """The data set's batch; raises RecordError where no record is good, unless `allow_empty`."""
    batch = dataset.batch(keys, image)
    if not len(batch["index"]) and not allow_empty:
        first = batch["skipped"][0]
        raise RecordError(f"{first} (and no other of the {len(keys)} records of this batch is good: raise batch_size)")
    return batch


class _AugmentedBatches:
    """Batches with 'views', augmented, in the place of 'image', which is decoded into memory that is used again."""

    def __init__(
        self, batch_of: Callable[..., dict[str, Any]], augmentation: Augmentation, shape: tuple[int, ...]
    ) -> None:
        self.batch_of, self.augmentation, self.shape = batch_of, augmentation, shape
        self.pictures: Optional[torch.Tensor] = None

    def __call__(self, keys: Sequence[Any], out: Optional[torch.Tensor] = None) -> dict[str, Any]:
        if self.pictures is None:
            self.pictures = torch.empty(self.shape, dtype=torch.uint8)
        batch = self.batch_of(keys, self.pictures)
        batch["views"] = self.augmentation(batch.pop("image"), batch["position"], out)
        return batch


class TrainBatchSampler:
    """Endless batches of (position, index) for one rank.

    The stream of records is one permutation of the data set after another, each a function of (seed, epoch) alone.
    From place `start` on, each step takes the next B * world_size places, and rank r the r-th B of them: every batch is
    full, every record occurs once an epoch whatever the number of ranks, and to go on after any number of samples no
    state is needed, also with another batch size or number of ranks. The position is the place in the stream, so a seed
    for all that is random about a sample.

    With `echo` an epoch has every record so many times (data echoing, Choi et al. 2019): every echo-th place goes
    through the permutation, and those between follow ECHO_DISTANCE records behind each other, or as far as there are
    records. So of each batch only a part is new, and the rest is at hand where decoded pictures are kept.
    """

    ECHO_DISTANCE = 4096

    def __init__(
        self,
        num_records: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        shuffle: bool = True,
        echo: int = 1,
    ) -> None:
        _check_sampling(num_records, batch_size, rank, world_size)
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected 0 or more")
        self.num_records = num_records
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start
        self.shuffle = shuffle
        self.echo = echo
        self.distance = min(self.ECHO_DISTANCE, num_records // echo)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Starts where all ranks together have consumed `start` samples."""
        position = self.start + self.rank * self.batch_size
        epoch, order = -1, np.empty(0, np.int64)
        while True:
            batch = []
            for place in range(position, position + self.batch_size):
                number, copy = divmod(place, self.echo)
                if number // self.num_records != epoch:
                    epoch = number // self.num_records
                    order = self._order(epoch)
                batch.append((place, int(order[(number - copy * self.distance) % self.num_records])))
            yield batch
            position += self.world_size * self.batch_size

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_records)
        # Sorted random numbers, because numpy promises the same ones in all versions only for bit generators,
        # not for Generator.permutation.
        random = np.random.PCG64(np.random.SeedSequence((self.seed, epoch)))
        return np.argsort(random.random_raw(self.num_records), kind="stable")


class EvalBatchSampler:
    """Batches of indices for one rank: its own contiguous part of the first `limit` records, each once, in order.

    The parts of all ranks in a row are the whole; they differ by one record at most, and the last batch may be smaller.
    """

    def __init__(
        self, num_records: int, batch_size: int, *, rank: int = 0, world_size: int = 1, limit: Optional[int] = None
    ) -> None:
        _check_sampling(num_records, batch_size, rank, world_size)
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}, expected at least 1 record, or None for all")
        total = num_records if limit is None else min(limit, num_records)
        self.indices = range(total * rank // world_size, total * (rank + 1) // world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield list(self.indices[start : start + self.batch_size])


def make_loader(
    dataset: FSNSDataset,
    batch_sampler: Union[TrainBatchSampler, EvalBatchSampler],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
    augmentation: Optional[Augmentation] = None,
) -> DataLoader:
    """A DataLoader of the data set's batches, with workers that live as long as it does (each with one torch thread).

    What a worker has filled comes over in shared memory (shared_batches.py).
    A batch with no good record ends a training; in an evaluation, where it may be the last and small one, it is empty.

    Args:
        augmentation: for workers to carry out; their batches hold 'views', float32 (B, V, 3, h, w), for 'image'.

    Raises:
        SharedMemoryError: too little of it. When iterated, RecordError: as one line also from a worker.
    """
    batch_of: Callable[..., dict[str, Any]] = partial(_batch_of, dataset, isinstance(batch_sampler, EvalBatchSampler))
    # Of each worker's: what it is filling and has ready, one that the main process uses, and where the next batch is
    # the same worker's again, that one.
    places = prefetch_factor + (2 if num_workers == 1 else 1)
    shape = (batch_sampler.batch_size, dataset.image_height, dataset.image_width, 3)
    if num_workers > 0 and augmentation is not None:
        batch_of = _AugmentedBatches(batch_of, augmentation, shape)
        shape = (batch_sampler.batch_size, *augmentation.shape)
        batches = SharedBatches(batch_of, num_workers, places, shape, name="views", dtype=torch.float32)
    else:
        batches = SharedBatches(batch_of, num_workers, places, shape)
    return DataLoader(
        batches,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=as_it_is,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        worker_init_fn=_obey_parent,
        generator=torch.Generator(),  # so that a loader leaves torch's random numbers as they are
    )


def _obey_parent(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM go to all processes of a job; the main process decides when workers stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _check_sampling(num_records: int, batch_size: int, rank: int, world_size: int) -> None:
    if num_records < 1:
        raise ValueError("there are no records: the shards are empty")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}, expected 0 to {world_size - 1}")
