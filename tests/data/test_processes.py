"""Tasks in several processes: results, errors and ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aocr_torch.data.processes import ProcessKilledError, run_in_processes


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_with_their_numbers(processes):
    tasks = [(2, 3), (5, 1), (4, 2)]
    assert sorted(run_in_processes(pow, tasks, processes)) == [(0, 8), (1, 5), (2, 16)]
    assert list(run_in_processes(pow, [], processes)) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_is_that_of_the_task(processes):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(run_in_processes(os.listdir, [(".",), ("nowhere",)], processes))


def test_a_process_that_is_killed_is_one_line():
    with pytest.raises(ProcessKilledError, match=r"^a process was killed at its work, .*: give fewer processes$"):
        list(run_in_processes(signal.raise_signal, [(signal.SIGKILL,), (signal.SIGKILL,)], 2))


def test_no_process_outlives_this_one():
    code = (
        "import os, time\n"
        "from aocr_torch.data.processes import run_in_processes\n"
        "if __name__ == '__main__':\n"
        "    for _, pid in run_in_processes(os.getpid, [(), ()], 2):\n"
        "        print(pid, flush=True)\n"
        "        time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while _is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(worker)
    process.stdout.close()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().split()[2] != "Z"  # dead, and init has not looked yet
