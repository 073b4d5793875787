"""Evaluations: what they see, and what they count."""

import os
from pathlib import Path

import pytest
import torch
from tiny import CHARSET, flags, write

from aocr_torch import device as devices
from aocr_torch.config import Config, parse_arguments
from aocr_torch.model.ocr import AttentionOCR
from aocr_torch.training import evaluate as module
from aocr_torch.training.evaluate import evaluate, open_dataset

CPU = torch.device("cpu")


def configure(**changes) -> Config:
    return parse_arguments(flags(**changes), description="test")[0]


def network(config: Config) -> AttentionOCR:
    return AttentionOCR(config.data, config.model, CHARSET.size)


def truncated(folder: Path) -> Path:
    data = write(folder, test=7)
    shard = data / "test" / "test-00001-of-00002"
    os.truncate(shard, shard.stat().st_size - 10)
    return data


def test_an_evaluation_counts_what_a_truncated_shard_lost(tmp_path):
    config = configure(dataset_dir=truncated(tmp_path / "data"), skip_bad_records=True)
    dataset = open_dataset(config, "test")
    evaluation = evaluate(network(config), dataset, config, CPU)
    assert (evaluation.records, evaluation.evaluated, len(evaluation.skipped)) == (7, 6, 1)
    assert evaluation.skipped[0].startswith("test-00001-of-00002:2")


def test_an_evaluation_of_more_batches_than_there_are(tiny_dataset):
    config = configure(dataset_dir=tiny_dataset)
    evaluation = evaluate(network(config), open_dataset(config, "test"), config, CPU, limit=100)
    assert (evaluation.records, evaluation.evaluated) == (7, 7)


@pytest.mark.parametrize("missing", [1, -1])
def test_an_evaluation_that_misses_or_repeats_a_record_is_an_error(tiny_dataset, monkeypatch, missing):
    config = configure(dataset_dir=tiny_dataset)
    dataset = open_dataset(config, "test")
    indices = [0, 1, 2, 3, 4, 5, 6, 6][: 7 - missing]
    sampler = type("Sampler", (), {"batch_size": 4, "__iter__": lambda self: iter([indices[:4], indices[4:]])})
    monkeypatch.setattr(module, "EvalBatchSampler", lambda *_, **__: sampler())
    with pytest.raises(module.CountError, match=rf"evaluated {7 - missing} and skipped 0 of 7 records"):
        evaluate(network(config), dataset, config, CPU)


def test_batches_filled_up_for_a_device_count_once(tiny_dataset, monkeypatch):
    config = configure(dataset_dir=tiny_dataset)
    model = network(config)
    expected = evaluate(model, open_dataset(config, "test"), config, CPU).results
    monkeypatch.setattr(devices, "is_host", lambda device: False)
    assert evaluate(model, open_dataset(config, "test"), config, CPU).results == pytest.approx(expected)


def test_an_evaluation_sees_the_central_crop(tiny_dataset):
    config = configure(dataset_dir=tiny_dataset, crop_width=72, crop_height=40)
    dataset = open_dataset(config, "test")
    model = network(config)
    shapes = set()
    model.register_forward_pre_hook(lambda module, inputs: shapes.add(tuple(inputs[0].shape[1:])))
    evaluate(model, dataset, config, CPU)
    assert shapes == {(config.data.num_views, 3, *config.data.view_size)}
    assert config.data.view_size != (48, 48)
