"""ModelArts: trains, evaluates on the test split, and copies the results back.

`python tools/modelarts_entry_acc.py --data_url obs://BUCKET/fsns --train_url obs://BUCKET/out [--ckpt_path CKPT] FLAGS`

Addresses that begin with obs:// are copied with moxing, others are folders. FLAGS go to train.py, and its exit status
is that of this script. A training goes on from the checkpoints that it finds in --train_url; results are copied there
every ten minutes and in the end, also when the job is stopped, and those that train.py no longer keeps go.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS_BETWEEN_COPIES = 600
LAST_ATTEMPTS, SECONDS_BETWEEN_ATTEMPTS = 5, 20
MODE_FLAGS = {
    "acc": ["--eval_after_training", "--eval_split=test"],
    "perf": ["--max_number_of_steps=200", "--log_interval_steps=10"],
}


def copy(source: str, target: str) -> None:
    """Copies a folder or file between OBS and the local disk."""
    import moxing

    is_file = source.endswith((".pth", ".ckpt", ".index"))
    (moxing.file.copy if is_file else moxing.file.copy_parallel)(source, target)


def exists(address: str) -> bool:
    """Whether there is something in OBS."""
    import moxing

    return moxing.file.exists(address)


def local(address: str, folder: Path) -> str:
    """The address, fetched into `folder` first where it lies in OBS."""
    if not address.startswith("obs://"):
        return address
    target = folder / address.rstrip("/").rsplit("/", 1)[-1]
    print(f"copying {address} to {target} ...", flush=True)
    copy(address, str(target))
    return str(target)


def copy_back(results: Path, address: str, is_last: bool) -> None:
    """Brings `address` in OBS to the state of the results. A copy that fails is tried again: the next time, or now."""
    for left in reversed(range(LAST_ATTEMPTS if is_last else 1)):
        try:
            return mirror(results, address)
        except Exception as error:  # moxing's own kinds
            print(f"warning: results were not copied to {address}, trying again: {error}", file=sys.stderr, flush=True)
            if is_last and not left:
                raise
            time.sleep(SECONDS_BETWEEN_ATTEMPTS * is_last)


def mirror(results: Path, address: str) -> None:
    """Copies links to the results, as the training renames and removes its files meanwhile."""
    with tempfile.TemporaryDirectory(dir=results.parent) as folder:
        links = Path(folder) / "results"
        shutil.copytree(results, links, copy_function=link, ignore=shutil.ignore_patterns(".*"))
        copy(str(links), address)
        prune(address, {path.name for path in links.iterdir()})


def link(source: str, target: str) -> None:
    """A link to a file, or a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def prune(address: str, kept: set[str]) -> None:
    """Removes checkpoints from OBS that are not kept any more."""
    import moxing

    try:
        for name in moxing.file.list_directory(address):
            if re.fullmatch(r"checkpoint-\d+\.pth", name) and name not in kept:
                moxing.file.remove(f"{address.rstrip('/')}/{name}")
    except Exception as error:  # the results are there: nothing is lost by more of them
        print(f"warning: old checkpoints stay in {address}: {error}", file=sys.stderr, flush=True)


def main(arguments: list[str], mode: str = "acc") -> int:
    """Trains as the command line says; returns the exit status."""
    about = "Trains 200 steps for their speed." if mode == "perf" else __doc__
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_url", required=True, help="the data set: obs://... or a folder")
    parser.add_argument("--train_url", required=True, help="where results go: obs://... or a folder")
    parser.add_argument("--ckpt_path", default="", help="a converted Inception-v3 or whole-model .pth to start from")
    known, flags = parser.parse_known_args(arguments)
    if mode == "perf":  # in a folder of its own: there is nothing to go on from
        known.train_url = f"{known.train_url.rstrip('/')}/{time.strftime('performance-%Y%m%d-%H%M%S')}"
    with tempfile.TemporaryDirectory() as folder:
        is_remote = known.train_url.startswith("obs://")
        results = Path(folder) / "results" if is_remote else Path(known.train_url)
        results.mkdir(parents=True, exist_ok=True)
        if is_remote and exists(known.train_url):
            copy(known.train_url, str(results))
        command = [sys.executable, str(ROOT / "train.py"), "--device=auto", "--amp", *MODE_FLAGS[mode]]
        command += [f"--dataset_dir={local(known.data_url, Path(folder))}", f"--train_log_dir={results}"]
        if known.ckpt_path:
            is_tower = "inception" in Path(known.ckpt_path).name
            name = "checkpoint_inception" if is_tower else "checkpoint"
            command.append(f"--{name}={local(known.ckpt_path, Path(folder))}")
        # In a session of its own a signal reaches it once, through this one: a second would end it before it saves.
        training = subprocess.Popen([*command, *flags], start_new_session=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: training.send_signal(number))
        status = None
        while status is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = training.wait(SECONDS_BETWEEN_COPIES if is_remote else None)
            if is_remote:  # what there is, a failed training's log too
                copy_back(results, known.train_url, is_last=status is not None)
        if status:
            print(
                f"error: training ended with status {status}; its log is {known.train_url}/train.log", file=sys.stderr
            )
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
