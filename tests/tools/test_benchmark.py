"""tools/benchmark.py on a model small enough that it takes seconds."""

import json

import pytest
from tiny import flags, load_tool


@pytest.mark.slow
def test_both_paths_beside_each_other(tiny_dataset, capsys):
    assert load_tool("benchmark").main(flags(dataset_dir=tiny_dataset, repetitions=1, compare=True)) == 0
    heading, step = (
        line.split() for line in capsys.readouterr().out.splitlines()[1:] if "plain" in line or "training step" in line
    )
    assert heading[-2:] == ["plain", "gain"]
    assert step[-1].endswith("x")


def test_every_figure_in_table_and_file(tiny_dataset, tmp_path, capsys):
    file = tmp_path / "result.json"
    arguments = flags(dataset_dir=tiny_dataset, repetitions=1)
    assert load_tool("benchmark").main([*arguments, f"--output={file}"]) == 0
    table = capsys.readouterr().out
    result = json.loads(file.read_text())
    for name in ("training step", "- backward", "evaluation", "- decoder alone", "peak memory of the process"):
        assert result["figures"][name]["median"] > 0
        assert f"\n{name} " in table
    assert 0 < result["figures"]["training images"]["share"] < 1
    assert result["configuration"]["use_fast_path"] is True
    assert result["environment"]["device"]
    assert result["environment"]["torch"]


def test_the_data_pipeline_alone(tiny_dataset, capsys):
    assert load_tool("benchmark").main(flags(dataset_dir=tiny_dataset, repetitions=1, data_only=True)) == 0
    table = capsys.readouterr().out
    assert "\nloader, 2 workers, each, augmenting " in table
    assert "training step" not in table


def test_a_baseline_that_is_none(tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no figures"):
        load_tool("benchmark").main([f"--baseline={tmp_path / 'other.json'}"])
