"""train.py's own flags, --overfit and --dry_run, and what it says when memory runs out."""

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import flags, stopped, write

from aocr_torch.config import Config, ConfigError
from aocr_torch.training.shortage import explain_shortage

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("train_script", ROOT / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.main


def arguments(**changes) -> list[str]:
    """A command line that leaves --overfit its own BatchNorm and logging."""
    given = ("batch_norm_decay", "batch_norm_cumulative_start", "log_interval_steps")
    return [each for each in flags(**changes) if not each.startswith(tuple(f"--{name}=" for name in given))]


def test_overfit_learns_the_first_records_by_heart(main, tmp_path, monkeypatch, capsys):
    data = write(tmp_path / "data", train=9, validation=1, test=1)
    monkeypatch.chdir(tmp_path)
    assert main(arguments(dataset_dir=data, overfit=6, learning_rate=0.01)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "6 of 6 records, 0 skipped",
        "eval/CharacterAccuracy[1.000000]",
        "eval/SequenceAccuracy[1.000000]",
    ]
    (folder,) = (tmp_path / "runs" / "overfit").iterdir()
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    accuracies = [values["eval/StrictSequenceAccuracy"] for values in steps if "eval/StrictSequenceAccuracy" in values]
    assert accuracies[-1] == 1.0
    assert all(accuracy < 1 for accuracy in accuracies[:-1])
    assert (folder / f"checkpoint-{steps[-1]['step']:08d}.pth").is_file()


def test_overfit_says_when_it_failed(main, tmp_path, tiny_dataset, capsys):
    changes = {"dataset_dir": tiny_dataset, "train_log_dir": tmp_path / "log", "eval_interval_steps": 2}
    assert main(arguments(overfit=4, max_number_of_steps=2, **changes)) == 1
    assert "stop_at_accuracy 1.0 was not reached: the best was" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(ConfigError, match="overfit is -1: expected the number of records"):
        main(arguments(overfit=-1))
    with pytest.raises(ConfigError, match="stop_at_accuracy needs evaluations: give --eval_interval_steps too"):
        main(arguments(stop_at_accuracy=0.5))


def test_dry_run_tells_and_writes_nothing(main, tmp_path, tiny_dataset, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        main(arguments(dataset_dir=tiny_dataset, dry_run=True, eval_after_training=True, max_number_of_steps=22)) == 0
    )
    out = capsys.readouterr().out
    assert "optim: optimizer=momentum" in out
    assert f"data: 11 records of train in {tiny_dataset}" in out
    assert "data: 5 records of validation to evaluate on" in out
    assert "7 classes; 22 steps of 4 examples a device: 8.0 epochs" in out
    assert "parameters: 0." in out
    assert "memory on cpu: about " in out
    assert not list(tmp_path.iterdir())


def test_dry_run_refuses_what_a_training_would(main, tmp_path, tiny_dataset):
    for changes, message in (
        ({"dataset_dir": tiny_dataset, "checkpoint": tmp_path / "none.pth"}, "none.pth: no such file"),
        (
            {"dataset_dir": tmp_path / "new", "synthesize": "demo", "split_name": "train/*"},
            "demo has train, validation",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            main(arguments(dry_run=True, **changes))


def test_dry_run_of_signs_that_are_not_drawn_yet(main, tmp_path, capsys):
    where = tmp_path / "signs"
    assert main([f"--config={ROOT}/configs/demo.yaml", f"--dataset_dir={where}", "--dry_run", "--device=cpu"]) == 0
    out = capsys.readouterr().out
    assert f"data: 8000 train, 200 validation, 200 test records, will be drawn into {where}" in out
    assert "34 classes; 600 steps of 32 examples a device: 2.4 epochs" in out
    assert not where.exists()


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (5 << 30, 5 << 30))


def test_out_of_memory_names_the_next_setting(tmp_path, tiny_dataset):
    command = flags(dataset_dir=tiny_dataset, train_log_dir=tmp_path, batch_size=4_000, use_augment_input=False)
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *command],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit_memory,
    )
    assert result.returncode == 2, result.stderr[-2000:]
    assert result.stderr == (
        "error: out of memory on cpu with --batch_size 4000: try --batch_size 2000 --accumulate_steps 2 "
        "(as many examples an update), then --amp; train.py --dry_run estimates what is needed\n"
    )


def test_an_error_in_a_loader_process_is_no_shortage():
    error = RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nits own")
    shortage = explain_shortage(Config(), torch.device("cpu"), is_training=True)
    with pytest.raises(RuntimeError, match="its own"), shortage:
        raise error


def test_a_killed_loader_process_is_explained(tmp_path, tiny_dataset):
    command = flags(dataset_dir=tiny_dataset, train_log_dir=tmp_path, num_workers=1, max_number_of_steps=100_000)
    program = [sys.executable, str(ROOT / "train.py"), *command, "--log_interval_steps=1000000"]
    training = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{training.pid}/task/{training.pid}/children")
    if not children.exists():
        training.kill()
        pytest.skip("this kernel does not list the children of a process")
    while training.poll() is None and not children.read_text().split():
        time.sleep(0.05)
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    errors = training.communicate(timeout=120)[1]
    assert training.returncode == 2, errors
    assert errors.startswith("error: a process that reads the data was killed, so memory is short (DataLoader worker")
    assert "use fewer than --num_workers 1" in errors
    assert len(errors.splitlines()) == 1


def test_sigterm_while_the_signs_are_drawn_leaves_nothing(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / "configs" / "demo.yaml"), "--device=cpu"]
    command += [f"--dataset_dir={tmp_path}/data/signs", f"--train_log_dir={tmp_path}/log"]
    status, errors = stopped(command, tmp_path, "data/.signs.partial-*/written/train")
    assert status == 2
    assert errors.splitlines()[-1] == f"error: interrupted: {tmp_path}/data/signs was not written"
    assert list((tmp_path / "data").iterdir()) == []


def test_a_charset_that_contradicts_the_texts_is_said(main, tmp_path, capsys):
    data = write(tmp_path / "data")
    options = {"dataset_dir": data, "max_number_of_steps": 1}
    assert main(flags(**options, train_log_dir=tmp_path / "right")) == 0
    assert "warning" not in capsys.readouterr().out
    (charset,) = data.glob("charset_size=*.txt")
    lines = charset.read_text(encoding="utf-8").splitlines()
    turned = [f"{number}\t{line.split(chr(9))[1]}" for number, line in enumerate([*lines[1:-1], lines[0], lines[-1]])]
    charset.write_text("\n".join(turned) + "\n", encoding="utf-8")
    assert main(flags(**options, train_log_dir=tmp_path / "wrong")) == 0
    assert "warning: 11 of the first 11 records have another text in image/text than" in capsys.readouterr().out


def test_overfitting_many_records_keeps_the_batch_size():
    from train import Train, overfitting

    config = Config().replace(batch_size=4)
    assert overfitting(config, Train(overfit=100)).data.batch_size == 4
    assert overfitting(config, Train(overfit=3)).data.batch_size == 3
