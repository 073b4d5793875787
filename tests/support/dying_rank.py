"""Run by torchrun: train.py, whose rank 1 dies once, before its step 4: `dying_rank.py MARK raise|kill FLAGS...`.

MARK is a file that says that it has died already; so a restart goes through.
"""

import os
import signal
import sys
from pathlib import Path

from aocr_torch.command_line import run_main
from aocr_torch.training.state import Training
from train import main

MARK, HOW = Path(sys.argv.pop(1)), sys.argv.pop(1)
train_step = Training.train_step


def train_step_or_die(training: Training, *arguments, **options) -> dict:
    if training.step == 3 and os.environ["RANK"] == "1" and not MARK.exists():
        MARK.touch()
        if HOW == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("rank 1 has had enough")
    return train_step(training, *arguments, **options)


if __name__ == "__main__":
    Training.train_step = train_step_or_die
    run_main(main)
