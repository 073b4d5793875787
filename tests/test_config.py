"""Flags, YAML files and their errors."""

import subprocess
import sys
from pathlib import Path

import pytest

from aocr_torch.config import Config, ConfigError, from_dict, from_yaml, parse_arguments

ROOT = Path(__file__).parent.parent


def parse(*arguments: str) -> Config:
    return parse_arguments(arguments, description="test")[0]


def test_defaults_are_the_reference_recipe():
    config = Config()
    assert (config.optim.optimizer, config.optim.learning_rate, config.optim.momentum) == ("momentum", 0.004, 0.9)
    assert (config.data.batch_size, config.optim.clip_gradient_norm, config.optim.label_smoothing) == (32, 2.0, 0.1)
    assert (config.model.final_endpoint, config.model.num_lstm_units) == ("Mixed_5d", 256)
    assert config.data.view_size == (150, 150)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--use_attention=False"], False),
        (["--nouse_attention"], False),
        (["--no-use-attention"], False),
        (["--use-attention", "false"], False),
        (["--use_attention"], True),
        (["--use_attention=1"], True),
        (["--nouse_attention=False"], True),
    ],
)
def test_booleans_in_every_spelling(arguments, expected):
    assert parse(*arguments).model.use_attention is expected


def test_flags_of_the_reference_are_all_known():
    command = (
        "--dataset_dir d --train_log_dir t --checkpoint_inception i --max_number_of_steps 5 --log_interval_steps 1 "
        "--batch_size=4 --learning-rate 1e-3 --optimizer adam --momentum .5 --clip_gradient_norm 1 "
        "--use_augment_input=False --crop_width 400 --crop_height 100 --final_endpoint Mixed_6e --use_attention "
        "--nouse_autoregression --num_lstm_units 10 --weight_decay 0 --lstm_state_clip_value 5 --label_smoothing 0 "
        "--ignore_nulls=False --average_across_timesteps --split_name validation"
    )
    config = parse(*command.split())
    assert config.data.view_size == (100, 100)
    assert (config.optim.learning_rate, config.optim.weight_decay, config.model.use_autoregression) == (
        1e-3,
        0.0,
        False,
    )


def test_yaml_first_then_flags(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("batch_size: 7\nlearning_rate: 4e-5\nseed: 3\ncrop_width:\n")
    config = parse("--seed", "4", "--config", str(file))
    assert (config.data.batch_size, config.optim.learning_rate, config.run.seed) == (7, 4e-5, 4)
    assert config.data.crop_width is None


def test_dict_round_trip():
    config = parse("--batch_size", "5", "--checkpoint", "x.pth", "--cell", "gru")
    assert from_dict(config.to_dict()) == config


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_yaml_loads_and_holds_only_differences(path):
    values = from_yaml(path).to_dict()
    import yaml

    defaults = Config().to_dict()
    for name in yaml.safe_load(path.read_text()):
        assert values[name] != defaults[name], f"{name} is the default"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bach_size", "3"], "unknown flag --bach_size; did you mean 'batch_size'?"),
        (["--zzz", "3"], "unknown flag --zzz; --help lists all"),
        (["--batch_size", "x"], "--batch_size is 'x': expected int"),
        (["--batch_size"], "--batch_size has no value"),
        (["--batch_size", "0"], "batch_size is 0: expected at least 1"),
        (["--learning_rate", "fast"], "expected float"),
        (["--use_attention=maybe"], "--use_attention is 'maybe': expected True or False"),
        (["--optimizer", "sgd"], "expected one of 'momentum'"),
        (["stray"], "stray argument 'stray'"),
        (["--num_views", "7"], "image_width 600 with num_views 7"),
        (["--crop_width", "100"], "crop_width and crop_height go together"),
        (["--crop_width", "700", "--crop_height", "100"], "does not fit into the image"),
        (["--checkpoint", "a", "--checkpoint_inception", "b"], "contradict each other"),
        (["--compile", "--sync_batch_norm"], "without sync_batch_norm"),
        (["--compile", "--use_fast_path=False"], "give it with use_fast_path"),
        (["--label_smoothing", "1"], "label_smoothing is 1.0"),
        (["--num_workers", "-1"], "num_workers is -1"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: No such file or directory: expected a YAML file"),
        (["--dataset_dir", "--device", "cpu"], "--dataset_dir has no value"),
        (["--decay_interval_steps", "0"], "decay_interval_steps is 0"),
        (["--eval_interval_steps=-1"], "eval_interval_steps is -1"),
        (["--histogram_interval_steps=-1"], "histogram_interval_steps is -1"),
        (["--momentum", "5"], "momentum is 5.0"),
        (["--seed", "-1"], "seed is -1"),
        (["--learning_rate", "inf"], "learning_rate is inf"),
        (["--clip_gradient_norm", "inf"], "clip_gradient_norm is inf: expected a finite number, 0 for no clipping"),
        (["--weight_decay", "inf"], "weight_decay is inf"),
        (["--lstm_state_clip_value", "-1"], "lstm_state_clip_value is -1.0"),
        (["--amp_dtype", "bfloat16"], "amp_dtype bfloat16 without amp changes nothing: give --amp too"),
        (["--amp_backend", "apex"], "amp_backend apex without amp changes nothing"),
        (["--echo", "2"], "echo 2 without decoded_cache_dir would decode each record as often"),
        (["--restore_optimizer"], "restore_optimizer takes step and momentum from --checkpoint: give that too"),
    ],
)
def test_errors_are_one_line_and_say_what_to_do(arguments, message):
    with pytest.raises(ConfigError) as error:
        parse(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 3", "unknown key 'batchsize'; did you mean 'batch_size'?"),
        ("batch_size: many", "batch_size is 'many': expected int"),
        ("batch_size: true", "batch_size is True: expected int"),
        ("use_attention: 1", "use_attention is 1: expected bool"),
        ("- a", "found list, expected lines of `flag: value`"),
        ("a: [", "not a readable YAML file"),
        ("seed: 1\nlearning_rate: 2\nseed: 3", "seed comes twice"),
        ("seed: ", "seed is None: expected int"),
    ],
)
def test_yaml_errors_name_the_file(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        from_yaml(file)
    assert str(error.value).startswith(str(file))
    assert message in str(error.value)


def test_help_and_errors_of_the_program():
    help_text = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert help_text.returncode == 0
    assert "--use_attention" in help_text.stdout
    wrong = subprocess.run([sys.executable, "train.py", "--bach_size=3"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr == "error: unknown flag --bach_size; did you mean 'batch_size'?\n"
