"""One, two and three real processes: every record exactly once, one writer, one answer."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import flags, spoil, write

from aocr_torch.training import checkpoint

ROOT = Path(__file__).parent.parent.parent
SUPPORT = ROOT / "tests" / "support"


def torchrun(num_ranks: int, program: Path, *arguments: str, restarts: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    command.append(f"--max-restarts={restarts}")
    path = os.pathsep.join([str(ROOT), str(SUPPORT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(program), *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_every_record_exactly_once(tiny_dataset, tmp_path, num_ranks):
    result = torchrun(num_ranks, SUPPORT / "count_records.py", str(tiny_dataset), str(tmp_path))
    assert result.returncode == 0, result.stderr
    by_rank = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(num_ranks)]
    for num_workers in ("0", "2"):
        trained = sorted(pair for seen in by_rank for pair in map(tuple, seen[num_workers]["trained"]))
        places = [place for place, _ in trained]
        assert places == list(range(len(trained)))
        for epoch in (0, 1):
            assert sorted(index for _, index in trained[11 * epoch : 11 * epoch + 11]) == list(range(11))
        assert [index for _, index in trained[:11]] != [index for _, index in trained[11:22]]
        evaluated = sorted(index for seen in by_rank for index in seen[num_workers]["evaluated"])
        assert evaluated == list(range(7))
        for seen in by_rank:
            assert seen[num_workers]["counts"] == [7, 7, 0]
            assert seen[num_workers]["results"] == by_rank[0]["0"]["results"]


def test_training_on_two_ranks_has_one_writer_and_resumes(tiny_dataset, tmp_path):
    intervals = {"save_interval_steps": 2, "histogram_interval_steps": 2}
    arguments = flags(
        dataset_dir=tiny_dataset, max_number_of_steps=4, eval_after_training=True, batch_size=2, **intervals
    )
    whole = torchrun(2, ROOT / "train.py", *arguments, f"--train_log_dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("global step 4:") == 1
    assert whole.stdout.count("5 of 5 records, 0 skipped") == 1
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "checkpoint-00000002.pth").write_bytes((tmp_path / "whole" / "checkpoint-00000002.pth").read_bytes())
    resumed = torchrun(2, ROOT / "train.py", *arguments, f"--train_log_dir={parts}")
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs = checkpoint.load(parts)["model"], checkpoint.load(tmp_path / "whole")["model"]
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(each for path in lists for child in path.read_text().split() for each in descendants(int(child)))]


def test_sigterm_to_every_process_of_a_job_saves_once(tiny_dataset, tmp_path):
    """As a scheduler sends it: to torchrun, which passes it on, to the ranks, and to the processes that read."""
    arguments = flags(
        dataset_dir=tiny_dataset, max_number_of_steps=100_000, train_log_dir=tmp_path, batch_size=2, num_workers=2
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, str(ROOT / "train.py"), *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    while "global step 2:" not in process.stdout.readline():
        assert process.poll() is None
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert "stopped by SIGTERM at step " in output
    step = int(output.split("stopped by SIGTERM at step ")[1].split(";")[0])
    assert checkpoint.load(tmp_path)["step"] == step
    assert step % 10 == 0


def test_ranks_that_stand_at_different_steps_say_so(tiny_dataset, tmp_path):
    """As on several machines without a shared folder: each rank gets a train_log_dir of its own."""
    program = tmp_path / "own_folder.py"
    program.write_text(
        "import os, sys\nfrom train import main\nfrom aocr_torch.command_line import run_main\n"
        "rank = os.environ['RANK']\n"
        "run_main(lambda arguments: main([*arguments, f'--train_log_dir={sys.argv[1]}/{rank}'][1:]))\n"
    )
    arguments = flags(dataset_dir=tiny_dataset, max_number_of_steps=2, save_interval_steps=1, batch_size=2)
    first = torchrun(1, ROOT / "train.py", *arguments, f"--train_log_dir={tmp_path}/0")
    assert first.returncode == 0, first.stderr
    result = torchrun(2, program, str(tmp_path), *arguments)
    assert result.returncode != 0
    assert "error: the ranks stand at steps 2, 0: train_log_dir must be one folder for all of them" in result.stderr


def gradients(num_ranks: int, dataset: Path, folder: Path, global_batch: int, statistics: str) -> dict:
    out = folder / f"{statistics}-{num_ranks}.pth"
    result = torchrun(num_ranks, SUPPORT / "gradients_of_ranks.py", dataset, out, global_batch, statistics)
    assert result.returncode == 0, result.stderr
    return torch.load(out, weights_only=True)


def difference(ours: dict, theirs: dict) -> float:
    """The largest relative difference, norm by norm."""
    assert ours.keys() == theirs.keys()
    return max(((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=1e-12)).item() for n in theirs)


@pytest.mark.parametrize(("statistics", "global_batch"), [("frozen", 32), ("synchronised", 8)])
def test_two_ranks_have_the_gradients_of_one_with_twice_the_batch(tmp_path, statistics, global_batch):
    dataset = write(tmp_path / "data", train=32, validation=1, test=1)
    one = gradients(1, dataset, tmp_path, global_batch, statistics)
    two = gradients(2, dataset, tmp_path, global_batch, statistics)
    assert difference(two["gradients"], one["gradients"]) < 1e-6
    norms = {name: value for name, value in one["buffers"].items() if "running" in name}
    assert difference({name: two["buffers"][name] for name in norms}, norms) < 1e-6
    if statistics == "synchronised":
        apart = gradients(2, dataset, tmp_path, global_batch, "apart")
        assert difference(apart["gradients"], one["gradients"]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise", "kill"])
def test_a_rank_that_dies_ends_the_job_or_is_restarted_to_the_same_numbers(tiny_dataset, tmp_path, how):
    arguments = flags(
        dataset_dir=tiny_dataset, max_number_of_steps=5, save_interval_steps=2, batch_size=2, device="cpu"
    )
    log_dir = f"--train_log_dir={tmp_path}/log"
    result = torchrun(2, SUPPORT / "dying_rank.py", tmp_path / "ended", how, *arguments, log_dir)
    assert result.returncode != 0
    if how == "raise":
        assert "RuntimeError: rank 1 has had enough" in result.stderr
        assert "train_step_or_die" in result.stderr  # the traceback
    else:
        assert "Signal 9 (SIGKILL)" in result.stderr
    assert checkpoint.load(tmp_path / "log")["step"] == 2
    shutil.rmtree(tmp_path / "log")
    again = torchrun(2, SUPPORT / "dying_rank.py", tmp_path / "again", how, *arguments, log_dir, restarts=1)
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stdout
    whole = torchrun(2, ROOT / "train.py", *arguments, f"--train_log_dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    ours, theirs = checkpoint.load(tmp_path / "log"), checkpoint.load(tmp_path / "whole")
    assert (ours["step"], ours["position"]) == (5, 20)
    assert all(torch.equal(value, theirs["model"][name]) for name, value in ours["model"].items())


def test_skipped_records_of_every_rank_are_listed(tiny_dataset, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data)
    spoil(data / "test" / "test-00001-of-00002")
    arguments = flags(dataset_dir=tiny_dataset, max_number_of_steps=1, train_log_dir=tmp_path / "log", batch_size=2)
    assert torchrun(1, ROOT / "train.py", *arguments).returncode == 0
    flags_of_eval = ["--ckpt", str(tmp_path / "log"), f"--dataset_dir={data}", "--skip_bad_records", "--device=cpu"]
    result = torchrun(2, ROOT / "eval.py", *flags_of_eval)
    assert result.returncode == 0, result.stderr
    assert "skipped: test-00001-of-00002:" in result.stdout
    assert "7 of 8 records, 1 skipped" in result.stdout
