"""tools/benchmark_growth.py on a model small enough that it takes seconds."""

import json

import pytest
from tiny import flags, load_tool

from aocr_torch.config import parse_arguments


def test_sizes_grow_one_at_a_time_up_to_the_configured_ones():
    config, _ = parse_arguments(flags(crop_width=80, crop_height=40, batch_size=6), description="")
    variants = load_tool("benchmark_growth").variants(config)
    assert {name: list(sizes) for name, sizes in variants.items()} == {
        "batch": [2, 3, 5, 6],
        "views": [1, 2],
        "steps": [1, 2, 3, 4],
    }
    for sizes in variants.values():
        assert config.replace(**sizes[max(sizes)]) == config
    assert config.replace(**variants["views"][1]).data.view_size == config.data.view_size


def test_one_size(capsys):
    assert load_tool("benchmark_growth").main(flags(repetitions=1, single=True)) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["seconds"] > 0
    assert figures["megabytes"] > 1


@pytest.mark.slow
def test_every_size_in_table_and_file(tmp_path, capsys):
    file = tmp_path / "growth.json"
    arguments = flags(repetitions=1, batch_size=1, max_sequence_length=2)
    assert load_tool("benchmark_growth").main([*arguments, f"--output={file}"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(row[0], int(row[1]), len(row)) for row in rows] == [
        ("batch", 1, 4), ("views", 1, 4), ("views", 2, 6), ("steps", 1, 4), ("steps", 2, 6),
    ]  # fmt: skip
    assert {name: [row["size"] for row in sizes] for name, sizes in json.loads(file.read_text())["growth"].items()} == {
        "batch": [1], "views": [1, 2], "steps": [1, 2],
    }  # fmt: skip
