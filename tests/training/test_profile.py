"""--profile writes a trace of as many steps as asked for."""

import json

import pytest
from tiny import flags

from aocr_torch.config import ConfigError, parse_arguments
from aocr_torch.training.loop import train


def test_a_trace_of_two_steps(tiny_dataset, tmp_path):
    arguments = flags(dataset_dir=tiny_dataset, train_log_dir=tmp_path, profile=2, max_number_of_steps=6)
    assert train(parse_arguments(arguments, description="test")[0]) == 0
    (trace,) = tmp_path.glob("*.pt.trace.json")
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    assert len([name for name in names if name.startswith("ProfilerStep#")]) == 2
    assert any(name.startswith("aten::conv2d") for name in names)


def test_a_negative_number_of_steps():
    with pytest.raises(ConfigError, match="profile is -1"):
        parse_arguments(flags(profile=-1), description="test")


def test_a_training_that_ends_before_the_trace_says_so(tiny_dataset, tmp_path):
    arguments = flags(dataset_dir=tiny_dataset, train_log_dir=tmp_path, profile=1, max_number_of_steps=2)
    with pytest.raises(ConfigError, match="no trace was written: it begins after 2 steps, and this training ended aft"):
        train(parse_arguments(arguments, description="test")[0])
    assert (tmp_path / "checkpoint-00000002.pth").is_file()
