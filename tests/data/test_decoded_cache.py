"""The cache of decoded pictures: same samples, filled once, safe together, and refused where it does not belong."""

import errno
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from aocr_torch.config import Config
from aocr_torch.data import decoded_cache
from aocr_torch.data.charset import Charset
from aocr_torch.data.decoded_cache import DecodedCache, DecodedCacheError
from aocr_torch.data.fsns import encode_example
from aocr_torch.data.loader import EvalBatchSampler, make_loader
from aocr_torch.data.records import RecordError, write_shard
from aocr_torch.data.synthetic import encode_png
from aocr_torch.data.synthetic_parameters import PRESETS
from aocr_torch.training.dry_run import dry_run
from aocr_torch.training.evaluate import open_dataset

CHARSET = Charset.from_characters(list(" abcdefghij"))
HEIGHT, WIDTH, LENGTH, COUNT = 4, 8, 5, 7
PLACE = 4 + LENGTH * 8 + HEIGHT * WIDTH * 3


def example(number):
    picture = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    size = {"width": WIDTH, "height": HEIGHT, "orig_width": WIDTH}
    return encode_example(encode_png(picture), "abcdefg"[number], CHARSET, length=LENGTH, **size)


@pytest.fixture
def config(tmp_path):
    """Of seven records, the fourth of which is damaged, with a cache."""
    (tmp_path / "train").mkdir()
    write_shard(tmp_path / "train" / "train-0", [b"\xff" if i == 3 else example(i) for i in range(COUNT)])
    CHARSET.save(tmp_path / "charset_size=12.txt")
    size = {"image_height": HEIGHT, "image_width": WIDTH, "max_sequence_length": LENGTH}
    return Config().replace(dataset_dir=str(tmp_path), decoded_cache_dir=str(tmp_path / "cache"), **size)


def samples(config, skipped=(3,)):
    dataset = open_dataset(config, "train")
    return {index: dataset[index] for index in range(len(dataset)) if index not in skipped}


def are_equal(ours, theirs):
    same = [torch.equal(ours[i][name], theirs[i][name]) for i in theirs for name in ("image", "label")]
    return ours.keys() == theirs.keys() and all(same)


def empty(cache):
    """Room for a picture and a label."""
    return np.empty(cache.shape, np.uint8), np.empty(cache.max_sequence_length, np.int64)


def refuse_to_decode(self, index, picture, label):
    pytest.fail(f"record {index} is decoded again")


def test_records_are_decoded_once(config, monkeypatch):
    plain = samples(config.replace(decoded_cache_dir=None))
    assert are_equal(samples(config), plain)
    monkeypatch.setattr("aocr_torch.data.fsns.FSNSDataset._decode", refuse_to_decode)
    assert are_equal(samples(config), plain)
    assert open_dataset(config, "train")[17, 5]["position"] == 17


def test_a_damaged_record_is_damaged_every_time(config):
    dataset = open_dataset(config, "train")
    for _ in range(2):
        with pytest.raises(RecordError, match=r"^train-0:3 .*not a tf.Example"):
            dataset[3]


def test_drawn_signs_are_drawn_once(tmp_path, monkeypatch):
    size = {"image_height": 48, "image_width": 192, "num_views": 2, "max_sequence_length": 10}
    config = Config().replace(synthesize="demo", num_records=3, **size)
    cached = config.replace(decoded_cache_dir=str(tmp_path))
    plain = samples(config, skipped=())
    assert are_equal(samples(cached, skipped=()), plain)
    monkeypatch.setattr("aocr_torch.data.synthetic_records.DrawnDataset._decode", refuse_to_decode)
    assert are_equal(samples(cached, skipped=()), plain)
    monkeypatch.setitem(PRESETS, "demo", replace(PRESETS["demo"], seed=1))
    with pytest.raises(
        DecodedCacheError, match=r"train.decoded was filled .*in: records\): delete it, or name another"
    ):
        open_dataset(cached, "train")


def test_workers_share_the_cache(config):
    config = config.replace(skip_bad_records=True)
    for _ in range(2):
        dataset = open_dataset(config, "train")
        batches = list(make_loader(dataset, EvalBatchSampler(COUNT, 2), num_workers=2))
        assert torch.cat([batch["index"] for batch in batches]).tolist() == [0, 1, 2, 4, 5, 6]
    dataset = pickle.loads(pickle.dumps(dataset))
    image, label = empty(dataset.cache)
    for index in range(COUNT):
        assert dataset.cache.read(index, image, label) == (index != 3)
        if index != 3:
            assert label.tolist() == dataset[index]["label"].tolist()
            assert np.array_equal(image, dataset[index]["image"].numpy())


@pytest.mark.parametrize("place", [0, 10, PLACE - 1])
def test_a_place_that_is_half_written_counts_as_empty(config, place):
    before = samples(config)
    path = open_dataset(config, "train").cache.path
    content = bytearray(path.read_bytes())
    content[4096 + 2 * PLACE + place] ^= 1
    path.write_bytes(content)
    dataset = open_dataset(config, "train")
    assert not dataset.cache.read(2, *empty(dataset.cache))
    assert are_equal(samples(config), before)
    assert dataset.cache.read(2, *empty(dataset.cache))


def test_a_file_takes_what_is_filled(tmp_path):
    size = {"image_height": 150, "image_width": 600, "max_sequence_length": 37, "num_classes": 134}
    cache = DecodedCache(tmp_path, "train", "origin", num_records=2000, **size)
    image, label = np.full((150, 600, 3), 7, np.uint8), np.arange(37)
    cache.write(1999, image, label)
    assert cache.path.stat().st_size == 4096 + 2000 * (270_000 + 300)
    assert cache.path.stat().st_blocks * 512 < 400_000
    assert "0.0 GB of the 0.5 GB that 2000 records take" in cache.summary
    assert cache.read(1999, *(found := empty(cache)))
    assert all(map(np.array_equal, found, (image, label)))
    assert not cache.read(5, *found)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: os.utime(folder / "train" / "train-0", (1, 1)), "records"),
        (lambda folder: write_shard(folder / "train" / "train-1", [example(0)]), "records"),
        (lambda folder: {"max_sequence_length": 6}, "max_sequence_length"),
        (lambda folder: {"image_width": 12}, "image size"),
    ],
)
def test_a_cache_of_other_data_is_refused(config, tmp_path, change, named):
    samples(config)
    changed = change(tmp_path)
    values = changed if isinstance(changed, dict) else {}
    with pytest.raises(DecodedCacheError, match=rf"it differs in: {named}\): delete it, or name"):
        open_dataset(config.replace(**values), "train")


def test_another_file_is_refused(config, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "train.decoded").write_bytes(b"something else")
    with pytest.raises(DecodedCacheError, match="is no cache of decoded pictures: name another folder"):
        open_dataset(config, "train")


def test_too_little_room_is_said_before_the_start(config, monkeypatch):
    room = type("Usage", (), {"free": 3 * PLACE})
    monkeypatch.setattr(decoded_cache.shutil, "disk_usage", lambda folder: room)
    message = r"train.decoded: 7 decoded records take 0.0 GB, 0.0 GB are there and 0.0 GB free .*\(num_records\)$"
    with pytest.raises(DecodedCacheError, match=message):
        open_dataset(config, "train")


def test_a_disk_that_becomes_full_ends_the_filling_only(config, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    plain = samples(config.replace(decoded_cache_dir=None))
    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.warns(UserWarning, match="the disk is full") as warned:
        assert are_equal(samples(config), plain)
    assert sum(warning.category is UserWarning for warning in warned) == 1


def test_a_dry_run_begins_no_cache_and_counts_the_echo(config, tmp_path, capsys):
    small = config.replace(device="cpu", final_endpoint="Conv2d_1a_3x3", num_views=1, batch_size=1)
    assert dry_run(small.replace(echo=3, max_number_of_steps=60)) == 0
    records = len(open_dataset(config.replace(decoded_cache_dir=None), "train"))
    assert f"60 steps of 1 examples a device: {60 / (3 * records):.1f} epochs" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
