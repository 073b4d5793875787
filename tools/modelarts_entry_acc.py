"""ModelArts: trains, evaluates on the test split, and copies the results back.

`python tools/modelarts_entry_acc.py --data_url obs://BUCKET/fsns --train_url obs://BUCKET/out [--ckpt_path CKPT] FLAGS`

Addresses that begin with obs:// are copied with moxing, others are folders. FLAGS go to train.py. The exit status is
that of the first step that failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODE_FLAGS = {
    "acc": ["--eval_after_training", "--eval_split=test"],
    "perf": ["--max_number_of_steps=200", "--log_interval_steps=10"],
}


def copy(source: str, target: str) -> None:
    """Copies a folder or file between OBS and the local disk."""
    import moxing

    is_file = source.endswith((".pth", ".ckpt", ".index"))
    (moxing.file.copy if is_file else moxing.file.copy_parallel)(source, target)


def local(address: str, folder: Path) -> str:
    """The address, fetched into `folder` first where it lies in OBS."""
    if not address.startswith("obs://"):
        return address
    target = folder / address.rstrip("/").rsplit("/", 1)[-1]
    print(f"copying {address} to {target} ...", flush=True)
    copy(address, str(target))
    return str(target)


def main(arguments: list[str], mode: str = "acc") -> int:
    """Trains as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_url", required=True, help="the data set: obs://... or a folder")
    parser.add_argument("--train_url", required=True, help="where results go: obs://... or a folder")
    parser.add_argument("--ckpt_path", default="", help="a converted Inception-v3 or whole-model .pth to start from")
    known, flags = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results" if known.train_url.startswith("obs://") else Path(known.train_url)
        results.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "train.py"), "--device=auto", "--amp", *MODE_FLAGS[mode]]
        command += [f"--dataset_dir={local(known.data_url, Path(folder))}", f"--train_log_dir={results}"]
        if known.ckpt_path:
            is_tower = "inception" in Path(known.ckpt_path).name
            name = "checkpoint_inception" if is_tower else "checkpoint"
            command.append(f"--{name}={local(known.ckpt_path, Path(folder))}")
        status = subprocess.call([*command, *flags])
        if status:
            print(f"error: training ended with status {status}; its log is {results}/train.log", file=sys.stderr)
        if known.train_url.startswith("obs://"):  # what there is, a failed training's log too
            copy(str(results), known.train_url)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
