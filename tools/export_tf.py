"""Writes a checkpoint of ours as a TensorFlow V2 bundle with the reference's names, for its Saver to restore.

python tools/export_tf.py runs/train/checkpoint-00400000.pth        # -> runs/train/model.ckpt-400000.index, .data-*
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from aocr_torch.command_line import parse_options, run_main
from aocr_torch.files import CheckpointError
from aocr_torch.interop.tf_checkpoint import write_checkpoint
from aocr_torch.interop.tf_names import tf_variables_from_state
from aocr_torch.training import checkpoint


@dataclass(frozen=True)
class Options:
    """Writes a checkpoint of ours as a TensorFlow V2 bundle with the reference's names."""

    checkpoint: Path
    """Checkpoint of train.py or convert_inception.py, or a train_log_dir (its newest checkpoint)."""
    output: Optional[Path] = None
    """Prefix of the bundle; default: model.ckpt-STEP beside the checkpoint."""
    ema: bool = False
    """Export the exponential moving average of the weights instead of the weights."""
    force: bool = False
    """Replace an existing bundle."""


def momentum_by_name(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Parameter name -> momentum buffer; empty where the checkpoint was not trained with momentum.

    The optimizer numbers the trained parameters in the order of the state_dict.
    """
    if "momentum" in state:
        return state["momentum"]
    if state.get("config", {}).get("optimizer") != "momentum":
        return {}
    untrained = ("bn.weight", "running_mean", "running_var", "num_batches_tracked")
    names = [name for name in state["model"] if not name.endswith(untrained)]
    buffers = {number: slots.get("momentum_buffer") for number, slots in state["optimizer"]["state"].items()}
    return {names[number]: buffer for number, buffer in buffers.items() if buffer is not None}


def weights(state: Mapping[str, Any], use_average: bool, source: Path) -> dict[str, Tensor]:
    """The state_dict to export."""
    if not use_average:
        return state["model"]
    if state.get("ema") is None:
        raise CheckpointError(f"{source}: has no moving average of the weights; export it without --ema")
    return checkpoint.averaged(state)["model"]


def main(arguments: list[str]) -> int:
    """Exports what the arguments name; returns the exit status."""
    options = parse_options(arguments, Options)
    source = options.checkpoint
    state = checkpoint.load(source)
    if not isinstance(state.get("model"), dict):
        raise CheckpointError(f"{source}: not a checkpoint of train.py or convert_inception.py: it has no 'model'")
    folder = source if source.is_dir() else source.parent
    name = source.with_suffix(".ckpt").name if state.get("step") is None else f"model.ckpt-{state['step']}"
    prefix = options.output or folder / name
    there = [path for path in (prefix, prefix.with_name(prefix.name + ".index")) if path.exists()]
    if there and not options.force:  # a V1 file of this name would be hidden by the bundle
        raise CheckpointError(f"{there[0]}: exists already; name another --output or replace it with --force")
    momentum = momentum_by_name(state)
    try:
        variables = tf_variables_from_state(weights(state, options.ema, source), momentum, state.get("step"))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    for path in write_checkpoint(prefix, variables):
        print(f"wrote {path}")
    slots = f"{len(momentum)} Momentum slots" if momentum else "no Momentum slots (the checkpoint has none)"
    print(f"{len(variables)} variables, {slots}, global_step {state.get('step', 'not set')}")
    return 0


if __name__ == "__main__":
    run_main(main)
