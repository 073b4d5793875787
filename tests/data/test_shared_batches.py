"""Batches from workers: their memory is used again, and never while anything still looks at it."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from aocr_torch.data.shared_batches import SharedBatches, SharedMemoryError, as_it_is

SHAPE = (3, 2, 4, 3)  # B H W channels
PLACES = 4  # two on the way, one in use, one just come


def batch_of(keys, image=None):
    """A batch whose pictures hold their keys; one of each three keys is left out."""
    good = [key for key in keys if key % 3]
    image = torch.empty((len(keys), *SHAPE[1:]), dtype=torch.uint8) if image is None else image
    for row, key in zip(image, good):
        row[:] = key
    numbers = torch.tensor(good)
    return {
        "image": image[: len(good)],
        "label": numbers[:, None].repeat(1, 5),
        "index": numbers,
        "position": numbers + 100,
        "skipped": [f"{key}" for key in keys if key not in good],
    }


def batches(num_workers, count=40, **options):
    keys = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(count)]
    dataset = SharedBatches(batch_of, num_workers, PLACES, SHAPE)
    return iter(DataLoader(dataset, batch_sampler=keys, num_workers=num_workers, collate_fn=as_it_is, **options))


def require(batch, number):
    keys = [3 * number + 1, 3 * number + 2]
    assert batch["index"].tolist() == keys
    assert batch["position"].tolist() == [key + 100 for key in keys]
    assert batch["label"].tolist() == [[key] * 5 for key in keys]
    assert batch["skipped"] == [f"{3 * number}"]
    assert batch["image"].shape == (2, *SHAPE[1:])
    assert [row.unique().tolist() for row in batch["image"]] == [[key] for key in keys]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_batches_come_whole_and_in_order(num_workers):
    for number, batch in enumerate(batches(num_workers)):
        require(batch, number)
    assert number == 39


def test_memory_is_used_again():
    addresses = [batch["image"].data_ptr() for batch in batches(1)]
    assert len(set(addresses)) <= PLACES


@pytest.mark.parametrize("look", [lambda image: image, lambda image: image[1:], lambda image: image.detach().numpy()])
def test_memory_is_not_used_again_while_it_is_looked_at(look):
    loader = batches(2)
    kept = [look(batch.pop("image")) for batch in itertools.islice(loader, 2 * PLACES + 4)]
    for batch in loader:
        del batch
    for number, image in enumerate(kept):
        values = torch.as_tensor(image).flatten(1)[:, 0].tolist()
        assert values == [3 * number + 1, 3 * number + 2][-len(values) :]


def test_workers_that_are_spawned_share_it_too():
    for number, batch in enumerate(batches(1, count=4, multiprocessing_context="spawn")):
        require(batch, number)


def test_workers_that_live_on_serve_again():
    keys = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(5)]
    dataset = SharedBatches(batch_of, 1, PLACES, SHAPE)
    loader = DataLoader(dataset, batch_sampler=keys, num_workers=1, collate_fn=as_it_is, persistent_workers=True)
    for _ in range(2):
        for number, batch in enumerate(loader):
            require(batch, number)


def test_too_little_shared_memory_is_one_line():
    message = r"^\d+ MB of shared memory .*: give fewer --num_workers .* \(docker run --shm-size=8g\)$"
    with pytest.raises(SharedMemoryError, match=message):
        SharedBatches(batch_of, 2, PLACES, (1 << 40, 2, 4, 3))
