"""The scripts of ModelZoo's contract and the ModelArts entries, on the CPU: final lines, case log, exit status."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import flags, load_tool

ROOT = Path(__file__).parent.parent.parent
KEYS = ["Network", "RankSize", "BatchSize", "DeviceType", "CaseName", "ActualFPS", "TrainingTime"]
OURS = ("device", "batch_size")  # what the scripts set themselves
MODEL = [flag for flag in flags() if flag.split("=")[0].strip("-") not in OURS]
# FSNS as it is, cropped because bfloat16 is slow on most hosts.
SIGNS = {"image_height": 150, "image_width": 600, "num_views": 4, "max_sequence_length": 37}
SIGNS.update(crop_width=320, crop_height=80)
SCRIPTS = pytest.mark.parametrize(
    ("name", "ranks", "mode"),
    [
        ("train_full_1p.sh", 1, "acc"),
        ("train_performance_1p.sh", 1, "perf"),
        ("train_full_8p.sh", 2, "acc"),
        ("train_performance_8p.sh", 2, "perf"),
    ],
)

pytestmark = pytest.mark.slow


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)),
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def script(
    name: str, output: Path, *arguments: str, more: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess:
    common = ["--device=cpu", f"--python={sys.executable}", f"--output={output}", "--batch_size=4", "--train_steps=3"]
    command = ["bash", ROOT / "tools" / "ascend" / name, *common, *arguments, "--", *MODEL, *more]
    return run(*command, **environment)


@SCRIPTS
def test_final_lines_and_case_log(tiny_dataset, tmp_path, name, ranks, mode):
    result = script(name, tmp_path, f"--data_path={tiny_dataset}", "--device_id=5", RANK_SIZE=str(ranks))
    assert_final_lines_and_case_log(result, tmp_path, ranks, mode)


@SCRIPTS
def test_the_same_on_real_signs(reference, tmp_path, name, ranks, mode):
    more = [f"--{flag}={value}" for flag, value in SIGNS.items()]
    result = script(name, tmp_path, f"--data_path={reference}/fsns", "--device_id=5", more=more, RANK_SIZE=str(ranks))
    assert_final_lines_and_case_log(result, tmp_path, ranks, mode)


def assert_final_lines_and_case_log(result: subprocess.CompletedProcess, tmp_path: Path, ranks: int, mode: str) -> None:
    assert result.returncode == 0, result.stderr
    case = f"AttentionOCR_for_PyTorch_bs{4 * ranks}_{ranks}p_{mode}"
    values = dict(line.split(" = ") for line in (tmp_path / "5" / f"{case}.log").read_text().splitlines())
    accuracy = ["TrainAccuracy"] if mode == "acc" else []
    compile_time = ["CompileTime"] if mode == "perf" and ranks == 1 else []
    assert list(values) == [*KEYS, *accuracy, "ActualLoss", "E2ETrainingTime", *compile_time]
    assert values["CaseName"] == case
    assert (values["RankSize"], values["BatchSize"]) == (str(ranks), str(4 * ranks))
    assert values["DeviceType"] == platform.machine()
    assert all(float(values[key]) > 0 for key in compile_time)
    assert float(values["TrainingTime"]) == pytest.approx(4000 * ranks / float(values["ActualFPS"]), rel=0.01)
    lines = result.stdout.splitlines()
    assert lines[0] == "------------------ Final result ------------------"
    assert lines[1] == f"Final Performance images/sec : {values['ActualFPS']}"
    assert lines[-1] == f"E2E Training Duration sec : {values['E2ETrainingTime']}"
    assert (lines[2].startswith("Final Train Accuracy : ")) == (mode == "acc")
    log = (tmp_path / "5" / "train_5.log").read_text()
    assert f"cpu x {ranks}, autocast in bfloat16" in log
    assert f"global step 3: loss = {values['ActualLoss']}" in log


def test_a_training_that_fails_stops_the_script_and_names_the_log(tmp_path):
    result = script("train_full_1p.sh", tmp_path / "out", f"--data_path={tmp_path}/nothing")
    assert result.returncode == 2
    assert f"[Error] training ended with status 2: see {tmp_path}/out/0/train_0.log" in result.stderr
    assert "Final result" not in result.stdout
    assert not list((tmp_path / "out" / "0").glob("*_acc.log"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], '[Error] para "data_path" must be config'), (["--datapath=x"], "[Error] unknown argument --datapath=x")],
)
def test_wrong_arguments(tmp_path, arguments, message):
    result = script("train_performance_1p.sh", tmp_path, *arguments)
    assert result.returncode == 1
    assert message in result.stderr


def test_environment_for_ascend_leaves_what_is_set():
    command = f"source {ROOT}/tools/ascend/env_npu.sh && echo $TASK_QUEUE_ENABLE $HCCL_CONNECT_TIMEOUT"
    assert run("bash", "-c", command, TASK_QUEUE_ENABLE="1").stdout == "1 1800\n"


@pytest.mark.parametrize("mode", ["acc", "perf"])
def test_modelarts_on_folders(tiny_dataset, tmp_path, mode):
    entry = [sys.executable, ROOT / "tools" / f"modelarts_entry_{mode}.py", f"--data_url={tiny_dataset}"]
    entry += [f"--train_url={tmp_path}/out", *flags(max_number_of_steps=2)]
    result = run(*entry)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "out").glob({"acc": "checkpoint-*2.pth", "perf": "performance-*/checkpoint-*2.pth"}[mode]))
    assert ("7 of 7 records, 0 skipped" in result.stdout) == (mode == "acc")


@pytest.fixture
def obs(tiny_dataset, tmp_path) -> dict[str, str]:
    """The environment in which obs://bucket/data is the tiny data set: moxing itself is only on ModelArts."""
    (tmp_path / "moxing").mkdir()
    (tmp_path / "moxing" / "__init__.py").write_text(
        "import os, shutil\n"
        "class file:\n"
        "    def exists(address):\n"
        "        return os.path.exists(address.replace('obs:/', os.environ['BUCKETS']))\n"
        "    def copy_parallel(source, target):\n"
        "        place = lambda a: a.replace('obs:/', os.environ['BUCKETS'])\n"
        "        shutil.copytree(place(source), place(target), dirs_exist_ok=True)\n"
        "    def list_directory(address):\n"
        "        return os.listdir(address.replace('obs:/', os.environ['BUCKETS']))\n"
        "    def remove(address):\n"
        "        os.remove(address.replace('obs:/', os.environ['BUCKETS']))\n"
    )
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "data").symlink_to(tiny_dataset)
    return {"PYTHONPATH": str(tmp_path), "BUCKETS": str(tmp_path)}


IN_OBS = [sys.executable, ROOT / "tools" / "modelarts_entry_acc.py", "--data_url=obs://bucket/data"]


def test_modelarts_in_obs_copies_back_goes_on_and_passes_the_status_on(obs, tmp_path):
    good = run(*IN_OBS, "--train_url=obs://bucket/out", *flags(max_number_of_steps=1), **obs)
    assert good.returncode == 0, good.stderr
    assert (tmp_path / "bucket" / "out" / "checkpoint-00000001.pth").exists()
    again = run(*IN_OBS, "--train_url=obs://bucket/out", *flags(max_number_of_steps=2), **obs)
    assert again.returncode == 0, again.stderr
    assert "checkpoint-00000001.pth at step 1" in again.stdout
    bad = run(*IN_OBS, "--train_url=obs://bucket/bad", *flags(final_endpoint="Mixed_9z"), **obs)
    assert bad.returncode == 2
    assert "training ended with status 2" in bad.stderr


def test_modelarts_mirrors_and_outlives_a_copy_that_fails(obs, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(obs["PYTHONPATH"])
    monkeypatch.setenv("BUCKETS", obs["BUCKETS"])
    entry = load_tool("modelarts_entry_acc")
    monkeypatch.setattr(entry, "SECONDS_BETWEEN_ATTEMPTS", 0)
    out, results = tmp_path / "bucket" / "out", tmp_path / "results"
    for folder, names in ((out, ["checkpoint-1.pth", "note"]), (results, ["checkpoint-2.pth", ".half", "train.log"])):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    copies, copy = [], entry.copy

    def copy_or_fail(*arguments):
        copies.append(arguments)
        if len(copies) < 3:
            raise RuntimeError("the network")
        copy(*arguments)

    monkeypatch.setattr(entry, "copy", copy_or_fail)
    entry.copy_back(results, "obs://bucket/out", is_last=False)
    assert "results were not copied to obs://bucket/out, trying again: the network" in capsys.readouterr().err
    assert len(copies) == 1
    entry.copy_back(results, "obs://bucket/out", is_last=True)
    assert len(copies) == 3
    assert sorted(os.listdir(out)) == ["checkpoint-2.pth", "note", "train.log"]
    assert sorted(os.listdir(results)) == [".half", "checkpoint-2.pth", "train.log"]
    copies[:] = []
    monkeypatch.setattr(entry, "LAST_ATTEMPTS", 2)
    with pytest.raises(RuntimeError, match="the network"):
        entry.copy_back(results, "obs://bucket/out", is_last=True)


def stop_when_training(command: Sequence[str], log: Path, **environment: str) -> int:
    """Starts a command whose training has no end, sends its group SIGTERM once it trains; returns its exit status."""
    with open(log, "ab") as out:
        options = {"stdout": out, "stderr": out, "env": {**os.environ, **environment}, "start_new_session": True}
        process = subprocess.Popen(list(map(str, command)), **options)
    deadline = time.monotonic() + 120
    while b"global step 2:" not in log.read_bytes() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    return process.wait(60)


ENDLESS = flags(max_number_of_steps=1_000_000, log_interval_steps=1)


def test_modelarts_stopped_saves_and_copies_back(obs, tmp_path):
    command = [*IN_OBS, "--train_url=obs://bucket/out", *ENDLESS]
    status = stop_when_training(command, tmp_path / "log", OMP_NUM_THREADS="1", **obs)
    assert status == 143, (tmp_path / "log").read_text()
    assert list((tmp_path / "bucket" / "out").glob("checkpoint-*.pth"))


def test_a_stopped_script_stops_its_training_and_goes_on_from_there(tiny_dataset, tmp_path):
    folder = tmp_path / "0"
    folder.mkdir()
    common = ["--device=cpu", f"--python={sys.executable}", f"--output={tmp_path}", "--batch_size=4"]
    command = ["bash", ROOT / "tools" / "ascend" / "train_full_1p.sh", *common, f"--data_path={tiny_dataset}"]
    (folder / "train_0.log").touch()
    endless = [*command, "--train_steps=1000000", "--", *MODEL, "--log_interval_steps=1"]
    assert stop_when_training(endless, folder / "train_0.log", OMP_NUM_THREADS="1") == 143
    (saved,) = (folder / "train_log").glob("checkpoint-*.pth")
    steps = int(saved.stem.split("-")[1])
    result = run(*command, f"--train_steps={steps + 2}", "--", *MODEL)
    assert result.returncode == 0, result.stderr
    assert f"resuming from {saved} at step {steps}" in (folder / "train_0.log").read_text()
