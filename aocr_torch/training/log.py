"""What a training says: lines for people, JSON lines for programs, TensorBoard, a progress bar on a terminal."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import torch
from torch import Tensor

from aocr_torch.training.evaluate import Evaluation

T = TypeVar("T")


def step_line(step: int, loss: float, seconds: float, details: dict[str, str]) -> str:
    """The reference's log line, more after it: `global step 1200: loss = 31.2041 (0.114 sec/step) floor 29.93, ...`."""
    more = ", ".join(f"{name} {value}" for name, value in details.items())
    return f"global step {step}: loss = {loss:.4f} ({seconds:.3f} sec/step) {more}".rstrip()


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `12 s`."""
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


class Stopwatch:
    """Seconds and steps since the last lap, and the share of the time spent waiting for data."""

    def __init__(self, step: int) -> None:
        self.step, self.waited, self.start = step, 0.0, time.perf_counter()

    def wait(self, get: Callable[[], T]) -> T:
        """Calls `get` and counts its time as waiting."""
        before = time.perf_counter()
        result = get()
        self.waited += time.perf_counter() - before
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside counts for nothing: evaluations, checkpoints, pictures."""
        before = time.perf_counter()
        yield
        self.start += time.perf_counter() - before

    def lap(self, step: int) -> tuple[float, float, int]:
        """(seconds, share of them spent waiting, steps) since the last lap; begins the next."""
        now = time.perf_counter()
        lap = now - self.start, self.waited / (now - self.start), step - self.step
        self.step, self.waited, self.start = step, 0.0, now
        return lap


class Log:
    """Writes to the terminal and, in one folder, NAME.log, metrics.jsonl and TensorBoard; silent on other ranks.

    metrics.jsonl says all that the text log says, one JSON object a line: the numbers of a step as
    {"step": 1200, "total_loss": 31.2, ...}, everything else as {"message": "resuming from ..."}.

    Args:
        folder: where; None for the terminal alone. enabled: whether this process logs. name: of the text file.
        total_steps, first_step: for the progress bar, which a terminal gets.
    """

    def __init__(
        self, folder: Optional[str], enabled: bool, *, name: str = "train", total_steps: int = 0, first_step: int = 0
    ):
        self.enabled = enabled
        self.bar: Any = None
        self.text: Any = None
        if not enabled:
            return
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            Path(folder).mkdir(parents=True, exist_ok=True)
            append = {"mode": "a", "encoding": "utf-8", "buffering": 1}
            self.text = open(Path(folder) / f"{name}.log", **append)  # noqa: SIM115, closed by close()
            self.json = open(Path(folder) / "metrics.jsonl", **append)  # noqa: SIM115
            self.board = SummaryWriter(folder, purge_step=first_step + 1 if first_step else None)
        if total_steps and sys.stdout.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, file=sys.stdout)

    def line(self, text: str) -> None:
        """A message, on the terminal, in the text file and as a JSON line."""
        self._say(text)
        if self.text is not None:
            self.json.write(json.dumps({"message": text}) + "\n")

    def _say(self, text: str) -> None:
        if not self.enabled:
            return
        if self.text is not None:
            self.text.write(text + "\n")
        if self.bar is not None:
            self.bar.write(text)
        elif self.text is None:
            print(text, flush=True)
        else:
            announce(text)

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def scalars(self, step: int, values: dict[str, float], *lines: str) -> None:
        """Numbers of a step, in full precision into metrics.jsonl, as TensorBoard scalars, and as lines for people.

        Counts (int) go into the file alone.
        """
        for text in lines:
            self._say(text)
        if self.text is None:
            return
        plain = {name: None if math.isnan(value) else value for name, value in values.items()}  # JSON has no NaN
        self.json.write(json.dumps({"step": step, **plain}) + "\n")
        for name, value in values.items():
            if isinstance(value, float):
                self.board.add_scalar(name, value, step)

    def histograms(self, step: int, values: dict[str, Tensor]) -> None:
        """How the elements of tensors are distributed, into TensorBoard."""
        if self.text is None:
            return
        for name, value in values.items():
            self.board.add_histogram(name, value.detach().float().cpu(), step)

    def images(self, step: int, views: Tensor, captions: list[str]) -> None:
        """Signs with what was read: views float (B, V, 3, h, w) in [0, 1], one caption each."""
        if self.text is None:
            return
        strips = views.permute(0, 2, 3, 1, 4).flatten(3)  # (B, 3, h, V*w)
        self.board.add_images("predictions", strips.clamp(0, 1), step)
        self.board.add_text("predictions", "\n\n".join(captions), step)

    def evaluation(self, step: int, evaluation: Evaluation, warning: Optional[str]) -> None:
        """What an evaluation measured, its counts and what it left out; the reference's two lines are the last."""
        for message in [*filter(None, [warning]), *(f"skipped: {message}" for message in evaluation.skipped)]:
            self.line(message)
        counts = {"records": evaluation.records, "evaluated": evaluation.evaluated, "skipped": len(evaluation.skipped)}
        numbers = {f"eval/{name}": value for name, value in {**evaluation.results, **counts}.items()}
        self.scalars(step, numbers, *result_lines(evaluation))

    def close(self) -> None:
        """Flushes everything to disk."""
        if self.bar is not None:
            self.bar.close()
        if self.text is not None:
            self.text.close()
            self.json.close()
            self.board.close()


def announce(text: str) -> None:
    """A line for people. A training goes on where nobody reads it: Ctrl-C in `train.py | tee` ends tee first."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def result_lines(evaluation: Evaluation) -> list[str]:
    """The last lines of an evaluation: the strict measures, the counts, then the reference's two lines."""
    results = evaluation.results
    own = [name for name in results if name not in ("CharacterAccuracy", "SequenceAccuracy")]
    lines = [f"eval/{name}[{results[name]:.6f}]" for name in own if isinstance(results[name], float)]
    lines.append(f"{evaluation.evaluated} of {evaluation.records} records, {len(evaluation.skipped)} skipped")
    return lines + [f"eval/{name}[{results[name]:.6f}]" for name in ("CharacterAccuracy", "SequenceAccuracy")]


def average_age_warning(model: torch.nn.Module) -> Optional[str]:
    """Says so where an evaluation comes too early for the decay of BatchNorm's moving averages; else None.

    After n updates they still hold decay^n of what the training began with: 74 % after 250 steps of four views with
    the reference's 0.9997, a common reason for good training losses beside bad evaluations. Averages that start as a
    plain mean hold the early steps of the training instead, which is better and still not what the model is now.
    """
    from aocr_torch.model.batch_norm import ViewBatchNorm2d

    norm = next(m for m in model.modules() if isinstance(m, ViewBatchNorm2d))
    updates = int(norm.num_batches_tracked)
    remains = norm.decay**updates
    if updates == 0 or remains < 0.05:
        return None
    if norm.cumulative_start:
        held, cure = "are still a mean over the whole training", ", or with a smaller --batch_norm_decay"
    else:
        held, cure = (
            f"still hold {remains:.0%} of what the training began with",
            ", or with --batch_norm_cumulative_start",
        )
    return (
        f"warning: BatchNorm's moving averages {held} (decay {norm.decay}, {updates} updates), so this evaluation may "
        f"be far worse than the training; train longer{cure}"
    )
