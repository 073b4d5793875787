"""Trains like train.py on the simulated device and writes down what no user sees: `watch.py FACTS.json FLAGS...`.

WATCH_OVERFLOW="5 6": the 5th and 6th calls of train_step get gradients that overflow float16, on rank WATCH_RANK only
where that is set. WATCH_SCALE="65536": the loss scale of a new training begins there, which spares some thirty steps
that overflow. WATCH_KILL="30": the process kills itself before its 30th call of train_step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import torch

from aocr_torch.config import parse_arguments
from aocr_torch.training.loop import train
from aocr_torch.training.state import Training

OVERFLOW = {int(number) for number in os.environ.get("WATCH_OVERFLOW", "").split()}
KILL = int(os.environ.get("WATCH_KILL", "0"))
RANK = os.environ.get("RANK", "0")
HITS_THIS_RANK = os.environ.get("WATCH_RANK", RANK) == RANK


def dtypes(training: Training) -> dict[str, list[str]]:
    """The number formats of BatchNorm, the other weights, what the optimizer changes and what it keeps."""
    norms = [module for module in training.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    of_norms = [*(p for norm in norms for p in norm.parameters()), *(b for norm in norms for b in norm.buffers())]
    inside = {id(tensor) for tensor in of_norms}
    groups = training.optimizer.param_groups
    parts = {
        "batch_norm": of_norms,
        "weights": [p for p in training.model.parameters() if id(p) not in inside],
        "masters": [p for group in groups for p in group["params"]],
        "optimizer": [value for state in training.optimizer.state.values() for value in state.values()],
    }
    return {name: sorted({str(t.dtype) for t in tensors if t.is_floating_point()}) for name, tensors in parts.items()}


def copies() -> dict[str, int]:
    """Tensors that went to the host and single values that were read, since the log was switched on."""
    return {name: count for name, count in torch.npu.op_log().items() if name in ("copy:d2h", "scalar")}


class Watch:
    """Takes the place of Training.train_step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.dtypes: dict[str, list[str]] = {}
        self.train_step = Training.train_step

    def __call__(self, training: Training, *arguments: Any, **options: Any) -> dict:
        if self.steps:
            self.steps[-1]["copies_after"] = copies()  # by the loop, between two steps
        elif "WATCH_SCALE" in os.environ and not training.step:
            training.precision.loss_scale.scale = float(os.environ["WATCH_SCALE"])
        if len(self.steps) + 1 == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.npu.log_ops(False)
        before = {name: value.clone() for name, value in training.precision.model_state(training.model).items()}
        if len(self.steps) + 1 in OVERFLOW and HITS_THIS_RANK:
            backward = training.precision.backward
            training.precision.backward = lambda loss: backward(loss * 2.0**40)
        torch.npu.log_ops(True)
        losses = self.train_step(training, *arguments, **options)
        step = {"copies": copies(), "step": training.step, "loss": losses["total_loss"].item()}
        torch.npu.log_ops(False)
        vars(training.precision).pop("backward", None)
        after = training.precision.model_state(training.model)
        step["is_unchanged"] = all(torch.equal(after[name], before[name]) for name in before if ".bn." not in name)
        step["scale"] = training.precision.loss_scale and training.precision.loss_scale.state_dict()
        self.steps.append(step)
        self.dtypes = dtypes(training)
        torch.npu.log_ops(True)
        return losses


def main() -> int:
    """Trains, then writes the facts, one file a rank."""
    facts, *arguments = sys.argv[1:]
    config, _ = parse_arguments(arguments, description="watched")
    watch = Watch()
    Training.train_step = lambda *arguments, **options: watch(*arguments, **options)
    status = train(config)
    with open(f"{facts}.{RANK}", "w") as file:
        json.dump({"steps": watch.steps, "dtypes": watch.dtypes}, file)
    return status


if __name__ == "__main__":
    sys.exit(main())
