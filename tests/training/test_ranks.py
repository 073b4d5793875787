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
from tiny import flags, spoil

from aocr_torch.training import checkpoint

ROOT = Path(__file__).parent.parent.parent


def torchrun(num_ranks: int, program: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(program), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_every_record_exactly_once(tiny_dataset, tmp_path, num_ranks):
    result = torchrun(num_ranks, ROOT / "tests" / "support" / "count_records.py", str(tiny_dataset), str(tmp_path))
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
            assert seen[num_workers]["counts"] == {"records": 7, "evaluated": 7, "skipped": 0}
            assert seen[num_workers]["results"] == by_rank[0]["0"]["results"]


def test_training_on_two_ranks_has_one_writer_and_resumes(tiny_dataset, tmp_path):
    arguments = flags(
        dataset_dir=tiny_dataset, max_number_of_steps=4, save_interval_steps=2, eval_after_training=True, batch_size=2
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


def test_sigterm_to_every_rank_saves_once(tiny_dataset, tmp_path):
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
    process.send_signal(signal.SIGTERM)  # torchrun passes it on to its processes
    output = process.communicate(timeout=120)[0]
    assert "stopped by SIGTERM at step " in output
    step = int(output.split("stopped by SIGTERM at step ")[1].split(";")[0])
    assert checkpoint.load(tmp_path)["step"] == step
    assert step % 10 == 0


def test_ranks_that_stand_at_different_steps_say_so(tiny_dataset, tmp_path):
    """As on several machines without a shared folder: each rank gets a train_log_dir of its own."""
    program = tmp_path / "own_folder.py"
    program.write_text(
        "import os, sys\nfrom train import main\nfrom aocr_torch.config import run_main\n"
        "rank = os.environ['RANK']\n"
        "run_main(lambda arguments: main([*arguments, f'--train_log_dir={sys.argv[1]}/{rank}'][1:]))\n"
    )
    arguments = flags(dataset_dir=tiny_dataset, max_number_of_steps=2, save_interval_steps=1, batch_size=2)
    first = torchrun(1, ROOT / "train.py", *arguments, f"--train_log_dir={tmp_path}/0")
    assert first.returncode == 0, first.stderr
    result = torchrun(2, program, str(tmp_path), *arguments)
    assert result.returncode != 0
    assert "error: the ranks stand at steps 2, 0: train_log_dir must be one folder for all of them" in result.stderr


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
