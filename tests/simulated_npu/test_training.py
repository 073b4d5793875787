"""`python train.py --device npu:0 --amp` from end to end on the simulated device, in both of its overflow modes."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from tiny import flags

from aocr_torch.training import checkpoint
from aocr_torch.training.precision import LossScale

ROOT = Path(__file__).parent.parent.parent
WATCH = Path(__file__).with_name("watch.py")

pytestmark = pytest.mark.slow


def arguments(**changes) -> list[str]:
    return flags(**{"device": "npu:0", "amp": True, "max_number_of_steps": 4, "log_interval_steps": 2, **changes})


def facts_of(path: Path, rank: int = 0) -> dict:
    return json.loads(Path(f"{path}.{rank}").read_text())


def assert_scaled_by_the_table(steps: list[dict], start: float = LossScale.START) -> None:
    """Exactly the skipped steps changed nothing, and the scale went as the table has it."""
    scale, number = LossScale(), 0
    scale.scale = start
    for step in steps:
        is_skipped = step["step"] == number
        assert step["is_unchanged"] == is_skipped
        scale.update(is_skipped)
        assert step["scale"] == scale.state_dict()
        number = step["step"]


@pytest.mark.parametrize("saturates", [False, True], ids=["inf_nan", "saturating"])
@pytest.mark.parametrize("apex", [True, False], ids=["apex", "native"])
def test_mixed_precision_end_to_end(simulated_npu, tiny_dataset, tmp_path, apex, saturates):
    npu = simulated_npu(apex=apex, saturates=saturates)
    flags = arguments(dataset_dir=tiny_dataset, train_log_dir=tmp_path / "log", eval_after_training=True)
    # From 2**32 the first steps overflow anyhow; 38 and 39 would not.
    result = npu.run(WATCH, tmp_path / "facts", *flags, "--max_number_of_steps=8", WATCH_OVERFLOW="38 39")
    assert result.returncode == 0, result.stderr[-3000:]
    way = "apex amp O2 in float16, because the Ascend apex is installed"
    way = way if apex else "autocast in float16, because the Ascend apex is not installed"
    assert f"npu:0 x 1, {way}, step 0" in result.stdout
    assert "5 of 5 records, 0 skipped" in result.stdout
    facts = facts_of(tmp_path / "facts")
    weights = ["torch.float16"] if apex else ["torch.float32"]
    float32 = ["torch.float32"]
    assert facts["dtypes"] == {"batch_norm": float32, "weights": weights, "masters": float32, "optimizer": float32}
    steps = facts["steps"]
    assert_scaled_by_the_table(steps)
    before, first, second, after = steps[36:40]
    assert before["step"] == first["step"] == second["step"] == after["step"] - 1
    assert second["scale"]["scale"] == before["scale"]["scale"] / 2
    assert after["loss"] < 20
    for step in steps:
        assert step["copies"].get("copy:d2h", 0) == 0
        assert step["copies"].get("scalar", 0) <= (2 if "AOCR_APEX" in npu.environment else 1)  # was there an overflow?
    quiet = [step for step in steps[:-1] if step["step"] % 2]
    assert quiet
    assert all(step["copies_after"] == {} for step in quiet)
    saved = checkpoint.load(tmp_path / "log")
    assert {value.dtype for value in saved["model"].values()} == {torch.float32, torch.int64}
    halved = [
        n for n, value in saved["model"].items() if n.endswith("weight") and torch.equal(value, value.half().float())
    ]
    assert all(".bn." in name for name in halved)  # masters, not their float16 copies; BatchNorm's is 1


def test_float32_reads_nothing_outside_logging_steps(simulated_npu, tiny_dataset, tmp_path):
    npu = simulated_npu()
    flags = arguments(dataset_dir=tiny_dataset, train_log_dir=tmp_path / "log", amp=False, save_interval_steps=100)
    result = npu.run(WATCH, tmp_path / "facts", *flags)
    assert result.returncode == 0, result.stderr[-3000:]
    facts = facts_of(tmp_path / "facts")
    assert set(map(tuple, facts["dtypes"].values())) == {("torch.float32",)}
    assert [step["copies"] for step in facts["steps"]] == [{}] * 4
    assert facts["steps"][0]["copies_after"] == facts["steps"][2]["copies_after"] == {}
    assert facts["steps"][1]["copies_after"]["scalar"] > 0  # the log line


def test_a_trace_and_the_peak_memory(simulated_npu, tiny_dataset, tmp_path):
    flags = arguments(dataset_dir=tiny_dataset, train_log_dir=tmp_path, amp=False, profile=1)
    result = simulated_npu(apex=False).run(ROOT / "train.py", *flags)
    assert result.returncode == 0, result.stderr[-3000:]
    (trace,) = tmp_path.glob("*.pt.trace.json")
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    assert len([name for name in names if name.startswith("ProfilerStep#")]) == 1
    (memory,) = re.findall(r"global step 4: .* memory (\d+\.\d\d) GiB", result.stdout)
    assert float(memory) > 0


def test_float32_is_the_hosts(simulated_npu, tiny_dataset, tmp_path):
    """The device computes with the host's kernels, so nothing but placement may differ."""
    npu = simulated_npu()
    for device in ("cpu", "npu:0"):
        flags = arguments(dataset_dir=tiny_dataset, train_log_dir=tmp_path / device, amp=False, device=device)
        result = npu.run(ROOT / "train.py", *flags)
        assert result.returncode == 0, result.stderr[-3000:]
    ours, theirs = checkpoint.load(tmp_path / "npu:0"), checkpoint.load(tmp_path / "cpu")
    for name, value in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], value, rtol=1e-5, atol=1e-7)


def assert_same_training(ours: dict, theirs: dict) -> None:
    for name, value in theirs["model"].items():
        assert torch.equal(ours["model"][name], value), name
    for number, state in theirs["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(ours["optimizer"]["state"][number][name], value), name
    for name in ("step", "position", "loss_scale"):
        assert ours[name] == theirs[name]


def test_apex_resumes_to_the_bit(simulated_npu, tiny_dataset, tmp_path):
    """With apex's own way of saving, masters and momentum would come back rounded to float16."""
    npu = simulated_npu()
    flags = arguments(dataset_dir=tiny_dataset, save_interval_steps=1, keep_checkpoints=9, ema_decay=0.9)
    result = npu.run(ROOT / "train.py", *flags, f"--train_log_dir={tmp_path}/whole")
    assert result.returncode == 0, result.stderr[-3000:]
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "checkpoint-00000002.pth").write_bytes((tmp_path / "whole" / "checkpoint-00000002.pth").read_bytes())
    result = npu.run(ROOT / "train.py", *flags, f"--train_log_dir={parts}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "resuming from" in result.stdout
    ours, theirs = checkpoint.load(parts), checkpoint.load(tmp_path / "whole")
    assert_same_training(ours, theirs)
    for name, value in theirs["ema"]["averages"].items():
        assert torch.equal(ours["ema"]["averages"][name], value)
    # And the checkpoint serves a float32 training on the host.
    result = npu.run(
        ROOT / "train.py", *flags, f"--train_log_dir={parts}", "--device=cpu", "--noamp", "--max_number_of_steps=5"
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert checkpoint.load(parts)["step"] == 5


def test_fifty_steps_on_real_signs_killed_and_resumed(simulated_npu, reference, tmp_path):
    """The loss falls, a forced overflow is handled by the table, and a kill changes nothing."""
    npu = simulated_npu()
    flags = arguments(
        dataset_dir=reference / "fsns",
        image_height=150,
        image_width=600,
        num_views=4,
        max_sequence_length=37,
        crop_width=160,  # float16 is slow on the host that the device is simulated on
        crop_height=40,
        batch_size=2,
        final_endpoint="Conv2d_3b_1x1",
        optimizer="adam",
        learning_rate=0.005,
        max_number_of_steps=50,
        log_interval_steps=10,
        save_interval_steps=20,
    )
    forced = {"WATCH_SCALE": "256", "WATCH_OVERFLOW": "10 15"}
    whole = npu.run(WATCH, tmp_path / "whole", *flags, f"--train_log_dir={tmp_path}/log", **forced)
    assert whole.returncode == 0, whole.stderr[-3000:]
    steps = facts_of(tmp_path / "whole")["steps"]
    assert_scaled_by_the_table(steps, start=256.0)
    assert [step["step"] for step in steps[8:16]] == [9, 9, 10, 11, 12, 13, 13, 14]
    assert (steps[-1]["scale"]["scale"], steps[-1]["scale"]["skipped"]) == (128.0, 2)
    losses = [step["loss"] for step in steps]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    killed = npu.run(WATCH, tmp_path / "killed", *flags, f"--train_log_dir={tmp_path}/again", WATCH_KILL="31", **forced)
    assert killed.returncode == -signal.SIGKILL
    resumed = npu.run(WATCH, tmp_path / "resumed", *flags, f"--train_log_dir={tmp_path}/again")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert f"resuming from {tmp_path}/again/checkpoint-00000020.pth at step 20" in resumed.stdout
    assert_same_training(checkpoint.load(tmp_path / "again"), checkpoint.load(tmp_path / "log"))
    again = facts_of(tmp_path / "resumed")["steps"]
    assert [step["loss"] for step in again] == losses[-len(again) :]


@pytest.mark.parametrize("saturates", [False, True], ids=["inf_nan", "saturating"])
@pytest.mark.parametrize("apex", [True, False], ids=["apex", "native"])
def test_two_ranks_agree_on_an_overflow_of_one(simulated_npu, tiny_dataset, tmp_path, apex, saturates):
    npu = simulated_npu(apex=apex, saturates=saturates, devices=2)
    flags = arguments(
        dataset_dir=tiny_dataset,
        train_log_dir=tmp_path / "log",
        device="npu",
        batch_size=2,
        accumulate_steps=2,
        sync_batch_norm=True,
        max_number_of_steps=6,
        eval_after_training=True,
    )
    result = npu.run(WATCH, tmp_path / "facts", *flags, WATCH_OVERFLOW="5 6", WATCH_RANK="1", WATCH_SCALE="4096")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "npu:0 x 2" in result.stdout
    assert result.stdout.count("5 of 5 records, 0 skipped") == 1
    first, second = facts_of(tmp_path / "facts", 0)["steps"], facts_of(tmp_path / "facts", 1)["steps"]
    for steps in (first, second):
        assert_scaled_by_the_table(steps, start=4096.0)
    assert [step["scale"] for step in first] == [step["scale"] for step in second]
    assert [step["step"] for step in first[3:7]] == [4, 4, 4, 5]
    assert first[5]["scale"]["scale"] == 2048.0


def test_an_index_that_is_not_there(simulated_npu):
    result = simulated_npu().run(ROOT / "train.py", *arguments(device="npu:3"))
    assert result.returncode == 2
    assert result.stderr == "error: found 1 npu device(s), no npu:3: use a smaller index\n"
