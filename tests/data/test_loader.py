"""Batches and their order, on any number of ranks and workers."""

import itertools
import time

import numpy as np
import pytest
import torch
from samples import HEIGHT, WIDTH, example, pixels

from aocr_torch.data.augment import Augmentation
from aocr_torch.data.loader import EvalBatchSampler, TrainBatchSampler, make_loader
from aocr_torch.data.records import RecordError


def test_a_batch_without_a_good_record(make_dataset):
    dataset = make_dataset([example(0), b"", b""], num_shards=1, skip_bad_records=True)
    with pytest.raises(RecordError, match=r"^train-00000:1 .* no other of the 2 records of this batch is good"):
        next(iter(make_loader(dataset, TrainBatchSampler(3, 2, seed=0, start=1, shuffle=False))))
    with pytest.raises(RecordError, match=r"^train-00000:1 "):
        list(itertools.islice(make_loader(dataset, TrainBatchSampler(3, 1, seed=0, shuffle=False)), 2))
    batches = list(make_loader(dataset, EvalBatchSampler(3, 1)))
    assert [len(batch["index"]) for batch in batches] == [1, 0, 0]
    assert [len(batch["image"]) for batch in batches] == [1, 0, 0]
    assert [len(batch["skipped"]) for batch in batches] == [0, 1, 1]


def test_an_error_in_a_worker_is_one_line_with_its_fields(make_dataset):
    dataset = make_dataset([example(i) for i in range(8)], num_shards=1)
    shard, record, offset = dataset.shards.location(5)
    content = bytearray(shard.read_bytes())
    content[offset + 100] ^= 4
    shard.write_bytes(content)
    error = error_of_loading(dataset, num_workers=2)
    assert "\n" not in str(error)
    assert str(error).startswith(f"train-00000:5 (offset {offset}): crc of the data is wrong: found 0x")
    assert (error.file, error.record, error.offset) == (shard.name, record, offset)


def error_of_loading(dataset, num_workers):
    try:
        list(make_loader(dataset, EvalBatchSampler(len(dataset), 2), num_workers=num_workers))
    except RecordError as error:
        # torch's frame and the traceback hold each other, and an iterator that has to wait for the garbage
        # collector takes 10 s to end its workers, so the circle is cut here.
        return error.with_traceback(None)
    return pytest.fail("no error")


def test_workers_list_what_they_skip(make_dataset):
    payloads = [example(i) for i in range(9)]
    payloads[4] = b"\xff"
    dataset = make_dataset(payloads, skip_bad_records=True)
    batches = list(make_loader(dataset, EvalBatchSampler(9, 2), num_workers=2))
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert [message.split(" ")[0] for batch in batches for message in batch["skipped"]] == ["train-00001:0"]


def positions_and_indices(dataset, sampler, num_workers, num_batches=None):
    loader = make_loader(dataset, sampler, num_workers=num_workers)
    pairs = []
    for batch in itertools.islice(loader, num_batches):
        for i, index in enumerate(batch["index"].tolist()):
            assert np.array_equal(batch["image"][i].numpy(), pixels(index))
            pairs.append((int(batch["position"][i]), index))
    return pairs


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_record_once_an_epoch(make_dataset, world_size, num_workers):
    num_records, batch_size, num_batches = 10, 2, 10  # 10 batches of 2 on any number of ranks are whole epochs
    dataset = make_dataset([example(i) for i in range(num_records)])
    stream = []
    for rank in range(world_size):
        sampler = TrainBatchSampler(num_records, batch_size, seed=3, rank=rank, world_size=world_size)
        stream += positions_and_indices(dataset, sampler, num_workers, num_batches)
    stream.sort()
    assert [position for position, _ in stream] == list(range(20 * world_size))
    epochs = [[index for _, index in stream[start : start + 10]] for start in range(0, len(stream), 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == len(epochs)
    alone = itertools.islice(TrainBatchSampler(num_records, 10, seed=3), len(epochs))
    assert epochs == [[index for _, index in batch] for batch in alone]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_record_is_evaluated_once(make_dataset, world_size, num_workers):
    dataset = make_dataset([example(i) for i in range(11)])
    parts = []
    for rank in range(world_size):
        sampler = EvalBatchSampler(11, 3, rank=rank, world_size=world_size)
        parts.append([index for _, index in positions_and_indices(dataset, sampler, num_workers)])
        assert len(sampler) == len(list(sampler)) == -(-len(parts[-1]) // 3)
    assert list(itertools.chain(*parts)) == list(range(11))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_evaluation_of_fewer_records_than_ranks_and_of_a_limited_number():
    assert [list(EvalBatchSampler(2, 5, rank=rank, world_size=3)) for rank in range(3)] == [[], [[0]], [[1]]]
    assert list(EvalBatchSampler(9, 2, limit=3)) == [[0, 1], [2]]
    assert list(EvalBatchSampler(2, 2, limit=30)) == [[0, 1]]


def test_a_batch_larger_than_the_data_set_goes_through_it_again():
    batch = next(iter(TrainBatchSampler(3, 8, seed=0)))
    assert [position for position, _ in batch] == list(range(8))
    assert sorted(index for _, index in batch[:3]) == sorted(index for _, index in batch[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("step", range(12))
def test_a_start_at_any_step_gives_the_tail_of_the_stream(step):
    for rank, world_size in ((0, 1), (1, 3)):
        options = {"seed": 5, "rank": rank, "world_size": world_size}
        whole = list(itertools.islice(TrainBatchSampler(7, 3, **options), 20))
        late = TrainBatchSampler(7, 3, start=3 * world_size * step, **options)
        assert list(itertools.islice(late, 20 - step)) == whole[step:]


def test_the_order_is_a_function_of_seed_and_epoch():
    first = next(iter(TrainBatchSampler(50, 50, seed=0)))
    assert first == next(iter(TrainBatchSampler(50, 50, seed=0)))
    assert first != next(iter(TrainBatchSampler(50, 50, seed=1)))
    # Written down, because another version of numpy or of this code must not change the order of a resumed training.
    assert [index for _, index in next(iter(TrainBatchSampler(10, 10, seed=7)))] == [6, 3, 4, 9, 0, 2, 8, 7, 5, 1]
    unshuffled = TrainBatchSampler(3, 2, seed=0, shuffle=False)
    assert list(itertools.islice(unshuffled, 2)) == [[(0, 0), (1, 1)], [(2, 2), (3, 0)]]


@pytest.mark.parametrize("num_records", [12, 4096, 8192, 20_000])
def test_an_echo_repeats_nothing_within_a_batch(num_records):
    batches = iter(TrainBatchSampler(num_records, 3 * (min(num_records, 96) // 3), seed=1, echo=3))
    assert all(len({index for _, index in batch}) == len(batch) for batch in (next(batches) for _ in range(3)))


@pytest.mark.parametrize("num_records", [10, 100])
def test_an_echo_uses_every_record_so_often_an_epoch(monkeypatch, num_records):
    monkeypatch.setattr(TrainBatchSampler, "ECHO_DISTANCE", 7)
    batches = iter(TrainBatchSampler(num_records, 5, seed=1, echo=3))
    stream = [key for _ in range(num_records * 6 // 5) for key in next(batches)]
    assert [position for position, _ in stream] == list(range(num_records * 6))
    for epoch in (stream[: num_records * 3], stream[num_records * 3 :]):
        assert sorted(index for _, index in epoch) == sorted([*range(num_records)] * 3)
    if num_records == 100:  # place 90 is the first use of the 30th record: then 7 records later, and 14
        places = [position for position, index in stream[: num_records * 3] if index == stream[90][1]]
        assert places == [90, 90 + 7 * 3 + 1, 90 + 14 * 3 + 2]
    later = iter(TrainBatchSampler(num_records, 5, seed=1, echo=3, start=20))
    assert next(later) == stream[20:25]


def test_a_late_start_in_the_full_data_set_is_quick():
    started = time.perf_counter()
    batch = next(iter(TrainBatchSampler(1_044_868, 32, seed=0, start=32 * 500_000)))
    assert time.perf_counter() - started < 1
    assert batch[0][0] == 16_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_records": 0}, "there are no records"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"rank": 2, "world_size": 2}, "rank is 2, expected 0 to 1"),
    ],
)
def test_samplings_that_make_no_sense(options, message):
    options = {"num_records": 3, "batch_size": 2, "rank": 0, "world_size": 1, **options}
    with pytest.raises(ValueError, match=message):
        TrainBatchSampler(**options, seed=0)
    with pytest.raises(ValueError, match=message):
        EvalBatchSampler(**options)


def test_a_seed_and_a_limit_that_make_no_sense():
    with pytest.raises(ValueError, match="seed is -1, expected 0 or more"):
        TrainBatchSampler(3, 2, seed=-1)
    with pytest.raises(ValueError, match="limit is 0, expected at least 1"):
        EvalBatchSampler(3, 2, limit=0)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_augment_to_the_same_bits(make_dataset, num_workers):
    """As the main process does, also where a bad record is left out."""
    payloads = [example(i) for i in range(9)]
    payloads[4] = b"\xff"
    dataset = make_dataset(payloads, skip_bad_records=True)
    augmentation = Augmentation(5, num_views=2, view_size=(HEIGHT, WIDTH // 2))

    def batches(**options):
        return itertools.islice(make_loader(dataset, TrainBatchSampler(9, 3, seed=0, start=6), **options), 12)

    for ours, plain in zip(batches(num_workers=num_workers, augmentation=augmentation), batches()):
        assert "image" not in ours
        assert ours["views"].shape == (len(ours["index"]), 2, 3, HEIGHT, WIDTH // 2)
        assert torch.equal(ours["views"], augmentation(plain["image"], plain["position"]))
        for name in ("index", "position", "label"):
            assert torch.equal(ours[name], plain[name])
        assert ours["skipped"] == plain["skipped"]
