"""How a batch comes from a loader's worker to the main process: its pictures in shared memory that is used again.

torch's own way allocates shared memory for every tensor, has the kernel zero and map it page by page, and opens a
connection between the two processes to hand it over. In a virtual machine that took as long as decoding the pictures.
Here each worker has a few places, shared from the start, and the message holds the number of one and the small rest.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from typing import Any, Callable, Optional, Union

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info


class SharedMemoryError(ValueError):
    """Too little of it; says how much is needed."""


class SharedBatches(Dataset):
    """The batches of a data set; a worker fills their pictures into places that it shares with the main process.

    A place is free again when the main process holds no tensor on its memory any more. Where none is free, torch sends
    the pictures its own way.
    """

    def __init__(
        self,
        batch_of: Callable[..., dict[str, Any]],
        num_workers: int,
        places: int,
        shape: tuple[int, ...],
        name: str = "image",
        dtype: torch.dtype = torch.uint8,
    ) -> None:
        """
        Args:
            batch_of: makes the batch of `keys`, with its pictures at the beginning of a second argument if that is
                given.
            places: of each worker. shape: of a place, B pictures. name, dtype: of the pictures in a batch.

        Raises:
            SharedMemoryError: the places need more than there is.
        """
        self.batch_of, self.name = batch_of, name
        self.number = next(_numbers)
        shape = (num_workers, places, *shape)
        num_bytes = math.prod(shape) * dtype.itemsize
        try:
            storage = torch.UntypedStorage._new_shared(num_bytes)
        except RuntimeError as error:
            raise SharedMemoryError(
                f"{num_bytes / 1e6:.0f} MB of shared memory (/dev/shm) for the pictures of {num_workers} processes are "
                f"not there ({str(error).splitlines()[0]}): give fewer --num_workers or a smaller --batch_size, or in "
                "a container more shared memory (docker run --shm-size=8g)"
            ) from error
        self.pictures = torch.empty(0, dtype=dtype).set_(storage, 0, shape)
        self.is_taken = torch.zeros((num_workers, places), dtype=torch.bool).share_memory_()
        _of_this_process[self.number] = self

    def __getitems__(self, keys: Sequence[Any]) -> Union[dict[str, Any], _Parcel]:
        worker = get_worker_info()
        if worker is None:
            return self.batch_of(keys)
        free = (~self.is_taken[worker.id]).nonzero().flatten().tolist()
        if not free:
            return _Parcel(self.batch_of(keys), self.name, None)
        batch = self.batch_of(keys, self.pictures[worker.id, free[0]])
        self.is_taken[worker.id, free[0]] = True
        return _Parcel(batch, self.name, (self.number, worker.id, free[0]))

    def open(self, worker: int, place: int, count: int) -> torch.Tensor:
        """The first `count` pictures of a place, which becomes free when nothing refers to their memory any more."""
        array = self.pictures[worker, place, :count].numpy()
        release = weakref.finalize(array, self.is_taken[worker].numpy().__setitem__, place, False)
        release.atexit = False
        return torch.from_numpy(array)  # it and all its views hold the array


def as_it_is(batch: Any) -> Any:
    """The function that collates batches of SharedBatches: there is nothing left to do."""
    return batch


_numbers = itertools.count()
_of_this_process: weakref.WeakValueDictionary[int, SharedBatches] = weakref.WeakValueDictionary()


class _Parcel:
    """A batch on its way; what is unpacked from the message is the batch itself."""

    def __init__(self, batch: dict[str, Any], name: str, place: Optional[tuple[int, int, int]]) -> None:
        self.batch, self.name, self.place = batch, name, place

    def __reduce__(self) -> tuple[Any, ...]:
        pictures, skipped = self.batch[self.name], self.batch["skipped"]
        arrays = {name: self.batch[name].numpy() for name in ("label", "index", "position")}
        where = pictures if self.place is None else (*self.place, len(pictures))
        return _unpack, (self.name, where, arrays, skipped)


def _unpack(name: str, pictures: Any, arrays: dict[str, np.ndarray], skipped: list[str]) -> dict[str, Any]:
    if isinstance(pictures, tuple):
        number, *place = pictures
        pictures = _of_this_process[number].open(*place)
    return {name: pictures, **{key: torch.from_numpy(array) for key, array in arrays.items()}, "skipped": skipped}
