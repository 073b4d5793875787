"""Whole trainings, in this process where possible: learning, resuming to the bit, errors, skipping, signals."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import CHARSET, flags, spoil, write

from aocr_torch import device as devices
from aocr_torch.config import Config, ConfigError, parse_arguments
from aocr_torch.data.loader import TrainBatchSampler
from aocr_torch.data.records import RecordError
from aocr_torch.files import CHECKPOINT_FORMAT
from aocr_torch.training import checkpoint, loop
from aocr_torch.training import evaluate as module
from aocr_torch.training.evaluate import open_dataset
from aocr_torch.training.loop import stop_on_signals, train
from aocr_torch.training.state import NonFiniteError, Training

ROOT = Path(__file__).parent.parent.parent


def configure(**changes) -> Config:
    return parse_arguments(flags(**changes), description="test")[0]


def run_program(program: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / program), *arguments], capture_output=True, text=True, timeout=300, **options
    )


def losses(folder: Path) -> dict[int, set]:
    """Every loss ever logged for a step: one value if the training is reproducible."""
    by_step: dict[int, set] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "total_loss" in values:
            by_step.setdefault(values["step"], set()).add((values["total_loss"], values["sequence_loss"]))
    return by_step


def assert_same(first: dict, second: dict) -> None:
    """Two checkpoints, bit for bit, whatever is in them."""

    def flatten(value, name=""):
        if isinstance(value, dict):
            for key, each in value.items():
                yield from flatten(each, f"{name}/{key}")
        else:
            yield name, value

    ours, theirs = dict(flatten(first)), dict(flatten(second))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        same = torch.equal(value, theirs[name]) if torch.is_tensor(value) else value == theirs[name]
        assert same or name == "/config/train_log_dir", name


def test_eight_samples_are_memorised_and_evaluated(tmp_path):
    data = write(tmp_path / "data", train=8, validation=2, test=2)
    config = configure(
        dataset_dir=data,
        train_log_dir=tmp_path / "log",
        batch_size=8,
        max_number_of_steps=150,
        log_interval_steps=50,
        optimizer="adam",
        learning_rate=0.01,
        use_augment_input=False,
        eval_split="train",
        eval_after_training=True,
        summary_interval_steps=75,
    )
    assert train(config) == 0
    log = (tmp_path / "log" / "train.log").read_text()
    assert log.splitlines()[-3:] == [
        "8 of 8 records, 0 skipped",
        "eval/CharacterAccuracy[1.000000]",
        "eval/SequenceAccuracy[1.000000]",
    ]
    assert "eval/StrictSequenceAccuracy[1.000000]" in log
    assert "global step 150: loss = " in log
    assert "floor 1.78" in log  # 4 steps of 7 classes with smoothing 0.1
    assert list((tmp_path / "log").glob("events.out.tfevents.*"))
    result = run_program(
        "eval.py",
        "--ckpt",
        str(tmp_path / "log"),
        "--split_name=train",
        "--device=cpu",
        f"--eval_log_dir={tmp_path}/eval",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-3:] == log.splitlines()[-3:]
    lines = (tmp_path / "eval" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["eval/SequenceAccuracy"] == 1.0


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_resume_in_process_is_bit_exact(tiny_dataset, tmp_path, ema_decay):
    changes = {
        "dataset_dir": tiny_dataset,
        "ema_decay": ema_decay,
        "accumulate_steps": 2,
        "optimizer": "rmsprop",
        "schedule": "cosine",
        "warmup_steps": 2,
        "max_number_of_steps": 6,
    }
    assert train(configure(train_log_dir=tmp_path / "whole", **changes)) == 0
    for last in (1, 4, 6):
        assert train_until(configure(train_log_dir=tmp_path / "parts", **changes), last) == 0
    whole = checkpoint.load(tmp_path / "whole")
    parts = checkpoint.load(tmp_path / "parts")
    assert_same(whole, parts)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_two_batches_accumulated_are_one_of_both(tiny_dataset):
    """With BatchNorm in evaluation mode, as its statistics in training are those of each batch."""
    config = configure(dataset_dir=tiny_dataset, use_augment_input=False)
    dataset = open_dataset(config, "train")
    weights = []
    for sizes in ([8], [4, 4]):
        training = Training(config, dataset.charset, torch.device("cpu"), len(dataset))
        training.model.eval().train = lambda mode=True: None
        indices = iter(range(8))
        training.train_step([dataset.batch([next(indices) for _ in range(size)]) for size in sizes])
        assert training.position == 8
        weights.append(dict(training.model.named_parameters()))
    start = Training(config, dataset.charset, torch.device("cpu"), len(dataset)).model
    for name, parameter in start.named_parameters():
        updates = [each[name] - parameter for each in weights]
        torch.testing.assert_close(*updates, rtol=1e-4, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
        assert not parameter.requires_grad or updates[0].abs().max() > 0, name


def train_until(config: Config, step: int) -> int:
    """Trains, but is sent SIGTERM once `step` is done (unless it is the last): 0 if it then ended as it should."""
    original = Training.train_step

    def stop_there(self, *arguments, **options):
        out = original(self, *arguments, **options)
        if self.step == step < config.run.max_number_of_steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return out

    Training.train_step = stop_there
    try:
        status = train(config)
    finally:
        Training.train_step = original
    return status - 128 - signal.SIGTERM if status else 0


def test_kill_nine_at_random_steps_with_workers_and_augmentation(tiny_dataset, tmp_path):
    arguments = flags(dataset_dir=tiny_dataset, num_workers=2, max_number_of_steps=24, save_interval_steps=3)
    whole = run_program("train.py", *arguments, f"--train_log_dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed"
    moments = random.Random(7)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments, f"--train_log_dir={killed}"], stdout=subprocess.DEVNULL
        )
        done = len(losses(killed)) if (killed / "metrics.jsonl").exists() else 0
        target = min(done + moments.randint(2, 8), 22)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (killed / "metrics.jsonl").exists() and len(losses(killed)) >= target:
                break
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
    result = run_program("train.py", *arguments, f"--train_log_dir={killed}")
    assert result.returncode == 0, result.stderr
    assert "resuming from" in result.stdout
    assert_same(checkpoint.load(tmp_path / "whole"), checkpoint.load(killed))
    assert losses(killed) == losses(tmp_path / "whole")
    assert len(losses(killed)) == 24


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_leave_with_a_message(tiny_dataset, tmp_path, number):
    arguments = flags(dataset_dir=tiny_dataset, max_number_of_steps=100_000, train_log_dir=tmp_path, num_workers=2)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    while "global step 2:" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, number)  # as a terminal or a scheduler does: to the loader's workers too
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    last = rest.splitlines()[-1]
    assert last.startswith(f"stopped by {signal.Signals(number).name} at step ")
    assert checkpoint.load(tmp_path)["step"] == int(last.split("step ")[1].split(";")[0])


def test_ctrl_c_saves_though_nobody_reads_the_lines_any_more(tiny_dataset, tmp_path):
    """`train.py | tee log`: Ctrl-C ends tee too, and most often first."""
    arguments = flags(dataset_dir=tiny_dataset, max_number_of_steps=100_000, train_log_dir=tmp_path)
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "global step 2:" not in process.stdout.readline():
        assert process.poll() is None
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT, process.stderr.read()
    last = (tmp_path / "train.log").read_text().splitlines()[-1]
    assert last == f"stopped by SIGINT at step {checkpoint.load(tmp_path)['step']}; run again to go on"


def test_a_signal_that_comes_again_at_once_is_the_same_request(monkeypatch, capsys):
    ends, now = [], [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "kill", lambda *arguments: ends.append(arguments))
    with stop_on_signals() as stop:
        for seconds in (0, 1, 4):
            now[0] = 100.0 + seconds
            signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        assert not ends
        now[0] = 106.0
        signal.raise_signal(signal.SIGTERM)
        assert ends == [(os.getpid(), signal.SIGTERM)]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert capsys.readouterr().out == "SIGTERM: saving after this step; again after 5 s to end at once\n"


@pytest.mark.parametrize("host", [True, False])
def test_non_finite_stops_before_the_step_and_names_the_records(tiny_dataset, tmp_path, monkeypatch, host):
    """Where reading the flag would stall the device, it is read with the log line; then nothing bad is saved either."""
    from aocr_torch import device as devices

    monkeypatch.setattr(devices, "is_host", lambda device: host)
    original = Training._sequence_loss

    def broken(self, batch):
        loss = original(self, batch)
        return loss * float("nan") if self.step == 2 else loss

    monkeypatch.setattr(Training, "_sequence_loss", broken)
    config = configure(
        dataset_dir=tiny_dataset,
        train_log_dir=tmp_path,
        max_number_of_steps=8,
        log_interval_steps=4,
        save_interval_steps=2,
        batch_size=2,
    )
    with pytest.raises(
        NonFiniteError, match=r"step 3 is not finite .*; records: train-0000\d-of-00003:\d, train-"
    ) as error:
        train(config)
    assert len(str(error.value).split("records: ")[1].split(", ")) == 2
    state = checkpoint.load(tmp_path)
    assert state["step"] == 2
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_bad_records_stop_the_training_or_are_counted(tmp_path):
    data = write(tmp_path / "data")
    spoil(data / "train" / "train-00002-of-00003")
    changes = {"dataset_dir": data, "max_number_of_steps": 6, "num_workers": 1}
    with pytest.raises(RecordError, match=r"train-00002-of-00003:3 \(offset \d+\): the image does not decode"):
        train(configure(train_log_dir=tmp_path / "strict", **changes))
    assert train(configure(train_log_dir=tmp_path / "skip", skip_bad_records=True, **changes)) == 0
    log = (tmp_path / "skip" / "train.log").read_text()
    assert log.count("skipped record") == 1
    assert "skipped record 1: train-00002-of-00003:3 (offset" in log
    result = run_program("eval.py", "--ckpt", str(tmp_path / "skip"), "--split_name", "train", "--skip_bad_records")
    assert result.returncode == 0, result.stderr
    assert "11 of 12 records, 1 skipped" in result.stdout
    assert "skipped: train-00002-of-00003:3" in result.stdout
    strict = run_program("eval.py", "--ckpt", str(tmp_path / "skip"), "--split_name=train")
    assert strict.returncode == 2
    assert strict.stderr.count("\n") == 1
    assert "train-00002-of-00003:3" in strict.stderr


def test_histograms_by_choice_and_json_lines_that_say_what_the_text_log_says(tiny_dataset, tmp_path):
    config = configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, max_number_of_steps=4)
    config = config.replace(histogram_interval_steps=2, eval_after_training=True)
    assert train(config) == 0
    state = checkpoint.load(tmp_path)
    board = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    names = board.Tags()["histograms"]
    assert len(names) == 2 * len(state["optimizer"]["state"])
    for kind in ("weights", "gradients"):
        steps = board.Histograms(f"{kind}/decoder.input_projection.weight")
        assert [event.step for event in steps] == [2, 4]
        assert steps[0].histogram_value.sum != steps[1].histogram_value.sum
    weight = state["model"]["decoder.input_projection.weight"]
    assert steps[1].histogram_value.num == weight.numel()
    weights = board.Histograms("weights/decoder.input_projection.weight")[1].histogram_value
    assert weights.sum == pytest.approx(float(weight.double().sum()), rel=1e-4)

    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    text = (tmp_path / "train.log").read_text().splitlines()
    for event in events:
        assert "message" not in event or event["message"] in text
    unsaid = [line for line in text if not line.startswith(("global step", "eval/", "5 of 5 records"))]
    assert unsaid == [event["message"] for event in events if "message" in event]
    step = next(event for event in events if event.get("step") == 4)
    rate = re.search(r"step 4: .* images/s ([\d.]+), data (\d+)%", "\n".join(text))
    assert float(rate[1]) == round(step["images_per_second"], 1)
    assert int(rate[2]) == round(100 * step["share_waiting_for_data"])
    assert step["seconds_left"] == 0
    assert (events[-1]["eval/evaluated"], events[-1]["eval/records"]) == (5, 5)


def test_best_checkpoint_and_evaluations_on_the_way(tiny_dataset, tmp_path):
    config = configure(
        dataset_dir=tiny_dataset,
        train_log_dir=tmp_path,
        max_number_of_steps=4,
        eval_interval_steps=2,
        save_interval_steps=1,
    )
    assert train(config) == 0
    assert checkpoint.load(tmp_path / "best.pth")["best"] >= 0
    assert (tmp_path / "train.log").read_text().count("5 of 5 records, 0 skipped") == 2
    assert [path.name for path in checkpoint.Checkpoints(tmp_path).all()] == [
        f"checkpoint-0000000{i}.pth" for i in (2, 3, 4)
    ]


def test_a_missing_evaluation_split_is_said_before_the_first_step(tiny_dataset, tmp_path):
    config = configure(
        dataset_dir=tiny_dataset, train_log_dir=tmp_path, eval_interval_steps=1, eval_split="validations"
    )
    with pytest.raises(FileNotFoundError, match="split 'validations' has no shards"):
        train(config)
    assert not list(tmp_path.iterdir())


def test_nothing_left_to_train_is_said_and_the_evaluation_made_up_for(tiny_dataset, tmp_path):
    config = configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, max_number_of_steps=1)
    assert train(config) == 0
    assert train(config.replace(eval_after_training=True)) == 0
    log = (tmp_path / "train.log").read_text()
    assert "nothing to train: step 1 has reached max_number_of_steps 1" in log
    assert "5 of 5 records, 0 skipped" in log
    assert checkpoint.load(tmp_path / "best.pth")["best"] >= 0


def test_a_signal_during_the_last_evaluation_stops_nothing(tiny_dataset, tmp_path, monkeypatch):
    evaluate = loop.evaluate

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", signalled)
    config = configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, max_number_of_steps=1)
    assert train(config.replace(eval_after_training=True)) == 0
    assert "stopped by" not in (tmp_path / "train.log").read_text()


def test_an_empty_evaluation_split_is_said_before_the_first_step(tiny_dataset, tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    config = configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path / "log", eval_interval_steps=1)
    with pytest.raises(ConfigError, match="there are no records to evaluate"):
        train(config.replace(eval_split=str(empty)))


@pytest.mark.parametrize(("split", "count"), [("validation", 5), ("train", 2)])
def test_num_records_does_not_cut_another_split(tiny_dataset, tmp_path, split, count):
    config = configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, max_number_of_steps=1, num_records=2)
    assert train(config.replace(eval_after_training=True, eval_split=split)) == 0
    assert f"{count} of {count} records" in (tmp_path / "train.log").read_text()


def test_the_best_of_another_split_does_not_count(tiny_dataset, tmp_path):
    base = {"dataset_dir": tiny_dataset, "eval_interval_steps": 1, "save_interval_steps": 1}
    assert train(configure(max_number_of_steps=1, train_log_dir=tmp_path / "a", eval_split="train", **base)) == 0
    for name in ("best.pth", "checkpoint-00000001.pth"):
        state = checkpoint.load(tmp_path / "a" / name)
        checkpoint.save(tmp_path / "a" / name, {**state, "best": 2.0})
    other = {"checkpoint": tmp_path / "a" / "best.pth", "restore_optimizer": True, "train_log_dir": tmp_path / "b"}
    for changes in (other, {"train_log_dir": tmp_path / "a"}):
        assert train(configure(max_number_of_steps=2, **base, **changes)) == 0
        best = checkpoint.load(changes["train_log_dir"] / "best.pth")
        assert (best["step"], best["config"]["eval_split"]) == (2, "validation")
        assert best["best"] <= 1
    log = (tmp_path / "a" / "train.log").read_text()
    assert "changed what is evaluated, so the best accuracy of this checkpoint does not count" in log


def test_the_best_of_another_split_does_not_count_after_a_kill(tiny_dataset, tmp_path):
    """Saved under the new split, but not evaluated yet: best.pth is still that of the old one."""
    config = configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, eval_interval_steps=1, eval_split="train")
    assert train(config.replace(max_number_of_steps=1)) == 0
    checkpoint.save(tmp_path / "best.pth", {**checkpoint.load(tmp_path / "best.pth"), "best": 2.0})
    other = config.replace(eval_split="validation", eval_interval_steps=2)
    newest = checkpoint.Checkpoints(tmp_path).newest()
    state = checkpoint.load(newest)
    state["config"]["eval_split"] = "validation"
    checkpoint.save(newest, {**state, "best": -1.0})
    assert train(config.replace(max_number_of_steps=1)) == 0  # back to the old one, where it counts
    assert f"best accuracy so far: 2.000000, that of {tmp_path / 'best.pth'}" in (tmp_path / "train.log").read_text()
    assert train(other.replace(max_number_of_steps=2)) == 0
    best = checkpoint.load(tmp_path / "best.pth")
    assert (best["step"], best["config"]["eval_split"]) == (2, "validation")


def test_a_best_checkpoint_alone_is_gone_on_from(tiny_dataset, tmp_path):
    config = configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, max_number_of_steps=2, eval_interval_steps=1)
    assert train(config) == 0
    best = checkpoint.load(tmp_path / "best.pth")["step"]
    for path in checkpoint.Checkpoints(tmp_path).all():
        path.unlink()
    with pytest.raises(ConfigError, match="already holds checkpoints"):
        train(config.replace(resume=False))
    assert train(config) == 0
    assert f"resuming from {tmp_path / 'best.pth'} at step {best}" in (tmp_path / "train.log").read_text()


def test_fine_tuning_starts_from_the_average_that_was_evaluated(tiny_dataset, tmp_path):
    base = {"dataset_dir": tiny_dataset, "max_number_of_steps": 3}
    assert train(configure(train_log_dir=tmp_path, ema_decay=0.9, **base)) == 0
    first = checkpoint.Checkpoints(tmp_path).newest()
    training = Training(configure(checkpoint=first, **base), CHARSET, torch.device("cpu"), 11)
    assert training.start_from_weights()[1] == f"{first}: starting from the average of its weights"
    state, name = checkpoint.load(first), "decoder.classifier.weight"
    assert torch.equal(training.model.state_dict()[name], state["ema"]["averages"][name])
    assert not torch.equal(state["model"][name], state["ema"]["averages"][name])


def test_the_best_accuracy_outlives_a_kill_between_evaluation_and_save(tiny_dataset, tmp_path):
    base = {"dataset_dir": tiny_dataset, "train_log_dir": tmp_path, "eval_interval_steps": 1, "save_interval_steps": 1}
    assert train(configure(max_number_of_steps=1, **base)) == 0
    state = checkpoint.load(tmp_path / "best.pth")
    checkpoint.save(tmp_path / "best.pth", {**state, "best": 2.0})
    assert train(configure(max_number_of_steps=2, **base)) == 0
    assert checkpoint.load(tmp_path / "best.pth")["step"] == 1
    assert checkpoint.load(tmp_path)["best"] == 2.0


def test_what_a_kill_left_behind_is_removed(tiny_dataset, tmp_path):
    (tmp_path / ".checkpoint-00000007.pth.123").write_bytes(b"half")
    assert train(configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, max_number_of_steps=1)) == 0
    assert not list(tmp_path.glob(".*"))


def test_eval_refuses_a_data_set_with_another_charset(tiny_dataset, tmp_path):
    assert train(configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path / "log", max_number_of_steps=1)) == 0
    other = write(tmp_path / "other")
    (other / "charset_size=7.txt").write_text("0\t \n1\tb\n2\ta\n3\tc\n4\td\n5\te\n6\t<nul>\n")
    result = run_program("eval.py", "--ckpt", str(tmp_path / "log"), "--dataset_dir", str(other))
    assert result.returncode == 2
    assert "the checkpoint's charset is not that of" in result.stderr
    assert "they differ first at id 1" in result.stderr
    assert result.stderr.count("\n") == 1


def test_eval_in_mixed_precision_says_so(tiny_dataset, tiny_checkpoint, capsys):
    import eval as program

    base = ["--ckpt", str(tiny_checkpoint), "--dataset_dir", str(tiny_dataset), "--device=cpu"]
    assert program.main(base) == 0
    assert "cpu, float32\n" in capsys.readouterr().out
    assert program.main([*base, "--amp"]) == 0
    out = capsys.readouterr().out
    assert "cpu, autocast in bfloat16, as asked for\n" in out
    assert "7 of 7 records, 0 skipped" in out
    with pytest.raises(ConfigError, match="amp_backend apex is for training only"):
        program.main([*base, "--amp", "--amp_backend=apex"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_batches=0"], "num_batches is 0: expected at least 1"),
        (["--num_lstm_units=4"], "the model expects"),
        (["--split_name=nowhere"], "split 'nowhere' has no shards"),
        (["--image_width=98"], "expected 98x48"),
    ],
)
def test_errors_of_eval(tiny_dataset, tmp_path, arguments, message):
    assert train(configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, max_number_of_steps=1)) == 0
    result = run_program("eval.py", "--ckpt", str(tmp_path), "--device=cpu", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_start_from_weights_and_resume_with_other_flags(tiny_dataset, tmp_path):
    base = {"dataset_dir": tiny_dataset, "max_number_of_steps": 1}
    assert train(configure(train_log_dir=tmp_path / "a", **base)) == 0
    first = tmp_path / "a" / "checkpoint-00000001.pth"
    assert train(configure(train_log_dir=tmp_path / "b", checkpoint=first, **base)) == 0
    assert "tensors loaded" in (tmp_path / "b" / "train.log").read_text()
    assert train(configure(train_log_dir=tmp_path / "c", checkpoint_inception=first, **base)) == 0
    assert (
        train(configure(train_log_dir=tmp_path / "a", **{**base, "learning_rate": 0.5, "max_number_of_steps": 2})) == 0
    )
    assert "changed flag learning_rate: 0.004 -> 0.5" in (tmp_path / "a" / "train.log").read_text()
    assert checkpoint.load(tmp_path / "a")["optimizer"]["param_groups"][0]["lr"] == 0.5


def test_fine_tuning_on_another_charset_keeps_what_is_shared(tiny_dataset, tmp_path):
    base = {"max_number_of_steps": 1, "use_augment_input": False}
    assert train(configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path / "a", **base)) == 0
    other = write(tmp_path / "other")
    (other / "charset_size=7.txt").write_text("0\t \n1\tf\n2\tb\n3\tc\n4\td\n5\te\n6\t<nul>\n")
    first = tmp_path / "a" / "checkpoint-00000001.pth"
    config = configure(dataset_dir=other, train_log_dir=tmp_path / "b", checkpoint=first, ema_decay=0.9, **base)
    training = Training(config, open_dataset(config, "train").charset, torch.device("cpu"), 11)
    fresh = training.model.decoder.classifier.weight.clone()
    messages = training.start_from_weights()
    assert "kept 6 characters ' bcde'" in messages[0]
    assert "1 start fresh 'f'" in messages[0]
    learnt = checkpoint.load(first)["model"]["decoder.classifier.weight"]
    now = training.model.decoder.classifier.weight
    assert torch.equal(now[2:], learnt[2:])
    assert torch.equal(now[1], fresh[1])
    assert torch.equal(training.ema.state_dict()["averages"]["decoder.classifier.weight"], now)
    assert train(config) == 0
    wrong = configure(dataset_dir=other, train_log_dir=tmp_path / "c", checkpoint=first, num_lstm_units=4, **base)
    with pytest.raises(checkpoint.CheckpointError, match="differ in more than their charsets"):
        train(wrong)


def test_restoring_the_optimizer_goes_on_as_if_never_stopped(tiny_dataset, tmp_path):
    base = {"dataset_dir": tiny_dataset}
    assert train(configure(train_log_dir=tmp_path / "a", max_number_of_steps=4, save_interval_steps=2, **base)) == 0
    half = tmp_path / "a" / "checkpoint-00000002.pth"
    going_on = {
        "train_log_dir": tmp_path / "b",
        "max_number_of_steps": 4,
        "checkpoint": half,
        "restore_optimizer": True,
    }
    assert train(configure(**going_on, **base)) == 0
    ours, theirs = checkpoint.load(tmp_path / "b")["model"], checkpoint.load(tmp_path / "a")["model"]
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())

    state = checkpoint.load(half)
    names = [name for name, parameter in _network(base).named_parameters() if parameter.requires_grad]
    slots = [state["optimizer"]["state"][number]["momentum_buffer"] for number in range(len(names))]
    converted = {"format": CHECKPOINT_FORMAT, "model": state["model"], "step": 2, "momentum": dict(zip(names, slots))}
    checkpoint.save(tmp_path / "converted.pth", converted)
    going_on.update(train_log_dir=tmp_path / "c", checkpoint=tmp_path / "converted.pth")
    assert train(configure(**going_on, **base)) == 0
    ours = checkpoint.load(tmp_path / "c")["model"]
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    going_on.update(train_log_dir=tmp_path / "d")
    with pytest.raises(checkpoint.CheckpointError, match="leave --restore_optimizer away"):
        train(configure(optimizer="adam", **going_on, **base))


def _network(base: dict) -> torch.nn.Module:
    return Training(configure(**base), CHARSET, torch.device("cpu"), 11).model


def test_resume_refuses_what_does_not_fit(tiny_dataset, tmp_path):
    base = {"dataset_dir": tiny_dataset, "max_number_of_steps": 1, "train_log_dir": tmp_path / "a"}
    assert train(configure(**base)) == 0
    with pytest.raises(checkpoint.CheckpointError, match="was trained with optimizer momentum"):
        train(configure(optimizer="adam", **base))
    with pytest.raises(ConfigError, match="already holds checkpoints and resume is off"):
        train(configure(resume=False, **base))
    with pytest.raises(checkpoint.CheckpointError, match="the model expects"):
        train(configure(num_lstm_units=4, **base))
    other = write(tmp_path / "other")
    (other / "charset_size=7.txt").write_text("0\t \n1\ta\n2\tb\n3\tc\n4\td\n5\tf\n6\t<nul>\n")
    with pytest.raises(checkpoint.CheckpointError, match="another charset"):
        train(configure(**{**base, "dataset_dir": other}))
    weights = tmp_path / "w" / "checkpoint-00000001.pth"
    checkpoint.save(weights, {"model": {}, "step": 1})
    with pytest.raises(checkpoint.CheckpointError, match="holds weights only"):
        train(configure(**{**base, "train_log_dir": tmp_path / "w"}))


def test_no_data_set():
    with pytest.raises(ConfigError, match=r"no data set: give --dataset_dir FOLDER, .* configs/demo.yaml"):
        open_dataset(configure(), "train")
    result = run_program("train.py")
    assert (result.returncode, result.stdout) == (2, "")
    first, fsns, own = result.stderr.splitlines()
    assert first.startswith("error: no data set")
    assert "fsns_urls.txt" in fsns
    assert "tools/make_tfrecords.py" in own


def test_eval_without_checkpoint():
    result = run_program("eval.py")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no checkpoint: give --ckpt FILE")


def broken_from(monkeypatch, step):
    monkeypatch.setattr(devices, "is_host", lambda device: False)
    original = Training._sequence_loss

    def broken(self, batch):
        return original(self, batch) * (float("nan") if self.step == step else 1)

    monkeypatch.setattr(Training, "_sequence_loss", broken)


def test_nothing_that_is_not_finite_is_saved_between_two_log_lines(tiny_dataset, tmp_path, monkeypatch):
    broken_from(monkeypatch, 2)
    changes = {"log_interval_steps": 100, "save_interval_steps": 2, "max_number_of_steps": 6, "batch_size": 2}
    with pytest.raises(NonFiniteError, match="step 3 is not finite"):
        train(configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, **changes))
    assert [path.name for path in checkpoint.Checkpoints(tmp_path).all()] == ["checkpoint-00000002.pth"]


def test_nothing_that_is_not_finite_is_saved_on_a_signal(tiny_dataset, tmp_path, monkeypatch):
    broken_from(monkeypatch, 1)
    step = Training.train_step

    def stop_at_three(self, *arguments, **options):
        out = step(self, *arguments, **options)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return out

    monkeypatch.setattr(Training, "train_step", stop_at_three)
    changes = {"log_interval_steps": 100, "max_number_of_steps": 50, "batch_size": 2}
    with pytest.raises(NonFiniteError, match="step 2 is not finite"):
        train(configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, **changes))
    assert checkpoint.Checkpoints(tmp_path).newest() is None


def test_best_is_the_first_of_the_highest_strict_accuracy(tiny_dataset, tmp_path, monkeypatch):
    accuracies = iter([0.25, 0.25, 0.125])

    def answers(*_):
        return {"StrictSequenceAccuracy": next(accuracies), "SequenceAccuracy": 0.5}

    monkeypatch.setattr(loop, "_evaluate", answers)
    changes = {"max_number_of_steps": 3, "eval_interval_steps": 1}
    assert train(configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, **changes)) == 0
    best = checkpoint.load(tmp_path / "best.pth")
    assert (best["best"], best["step"]) == (0.25, 1)


def test_an_evaluation_on_the_way_is_of_the_average_with_todays_batch_norm(tiny_dataset, tmp_path, monkeypatch):
    models = []
    original = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda model, *rest: models.append(model) or original(model, *rest))
    changes = {"max_number_of_steps": 3, "eval_interval_steps": 1, "ema_decay": 0.9, "save_interval_steps": 1}
    assert train(configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, **changes)) == 0
    state = checkpoint.load(tmp_path)
    found = models[-1].state_dict()
    for name, value in state["ema"]["averages"].items():
        assert torch.equal(found[name], value), name
    for name, value in state["model"].items():
        assert "running" not in name or torch.equal(found[name], value), name


def test_numbers_of_a_log_line_are_of_all_steps_since_the_last(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Stopwatch, "lap", lambda self, step: (8.0, 0.5, 4))
    changes = {"max_number_of_steps": 8, "log_interval_steps": 4, "batch_size": 2, "accumulate_steps": 3}
    assert train(configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, **changes)) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = next(line for line in lines if line.get("step") == 4)
    assert values["seconds_per_step"] == 2
    assert values["images_per_second"] == 2 * 3 / 2
    assert values["seconds_left"] == 4 * 2
    assert "(2.000 sec/step)" in (tmp_path / "train.log").read_text()


def test_eval_reads_all_records_of_its_split_whatever_the_training_was_given(tiny_dataset, tmp_path, capsys):
    import eval as program

    config = configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, num_records=3, max_number_of_steps=1)
    assert train(config) == 0
    capsys.readouterr()
    assert program.main(["--ckpt", str(tmp_path), "--device=cpu"]) == 0
    assert "7 of 7 records, 0 skipped" in capsys.readouterr().out


@pytest.mark.parametrize("stop_early", [False, True])
def test_eval_stops_early_only_where_asked(tiny_checkpoint, monkeypatch, stop_early):
    import eval as program

    endings = []
    original = module.evaluate
    monkeypatch.setattr(
        module, "evaluate", lambda model, *a, **k: endings.append(model.decoder.ending) or original(model, *a, **k)
    )
    assert program.main([f"--ckpt={tiny_checkpoint}", "--device=cpu", *["--stop_early"] * stop_early]) == 0
    assert endings == [CHARSET.null_id if stop_early else None]


def watch_indices(monkeypatch) -> list[list[int]]:
    """What becomes the records of each step."""
    indices, original = [], Training.train_step

    def watched(self, group, **options):
        indices.append(group[0]["index"].tolist())
        return original(self, group, **options)

    monkeypatch.setattr(Training, "train_step", watched)
    return indices


def test_an_echo_repeats_records_in_a_training(tiny_dataset, tmp_path, monkeypatch):
    indices = watch_indices(monkeypatch)
    config = configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path / "log", max_number_of_steps=4)
    assert train(config.replace(echo=2, decoded_cache_dir=str(tmp_path / "cache"))) == 0
    expected = islice(TrainBatchSampler(11, 4, seed=0, echo=2), 4)
    assert indices == [[index for _, index in batch] for batch in expected]


def test_the_seed_orders_the_records_of_a_training(tiny_dataset, tmp_path, monkeypatch):
    indices = watch_indices(monkeypatch)
    assert train(configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, seed=5, max_number_of_steps=2)) == 0
    assert indices == [[index for _, index in batch] for batch in islice(TrainBatchSampler(11, 4, seed=5), 2)]
