"""Fixtures of the data tests."""

import pytest
from samples import CHARSET, HEIGHT, LENGTH, WIDTH

from aocr_torch.data.fsns import FSNSDataset
from aocr_torch.data.records import Shards, write_shard


@pytest.fixture
def make_dataset(tmp_path):
    def make(payloads, *, num_shards=2, **options):
        paths = [tmp_path / f"train-{i:05d}" for i in range(num_shards)]
        for i, path in enumerate(paths):
            write_shard(path, payloads[len(payloads) * i // num_shards : len(payloads) * (i + 1) // num_shards])
        size = {"image_height": HEIGHT, "image_width": WIDTH, "max_sequence_length": LENGTH}
        return FSNSDataset(Shards(paths), CHARSET, **{**size, **options})

    return make
