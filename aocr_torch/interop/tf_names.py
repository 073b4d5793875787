"""TensorFlow's variables as a state_dict of ours, and back; nothing on either side is left over without being named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from aocr_torch.files import CheckpointError
from aocr_torch.interop.tf_layers import TO_TF, TO_TORCH, Row, decoder_rows, decoder_sizes, tower_rows
from aocr_torch.interop.tf_plan import Match, Report, plan_conversion
from aocr_torch.model.endpoints import ENDPOINTS


def model_state_from_tf(
    source,
    final_endpoint: Optional[str] = None,
    parts: Optional[Sequence[str]] = None,
    use_moving_average: bool = False,
) -> tuple[dict[str, np.ndarray], Report]:
    """A TensorFlow checkpoint as a state_dict of float32 arrays (`tower.*` and `decoder.*`); torch is not needed.

    Args:
        source: a CheckpointReader, or a mapping of TensorFlow names to arrays.
        final_endpoint, parts, use_moving_average: see `plan_conversion`.

    Returns:
        the state_dict, and the report with `step` and `momentum` (by parameter name) filled in.

    Raises:
        CheckpointError: something needed is missing or has another shape; both shapes are named.
    """
    if isinstance(source, Mapping):
        variables = {name: (str(value.dtype), value.shape) for name, value in source.items()}
        read = source.__getitem__
    else:
        variables, read = source.variables, source.tensor
    report = plan_conversion(variables, final_endpoint, parts, use_moving_average)
    if report.error:
        raise CheckpointError(report.error)

    def convert(match: Match) -> np.ndarray:
        value = np.asarray(read(match.theirs), np.float32)
        return np.array(TO_TORCH[match.layout](value), order="C")  # a copy: nobody else owns it

    state = {}
    for match in report.matched:
        state[match.ours] = convert(match)
        if match.ours.endswith("running_var"):  # the last of its layer: complete the BatchNorm
            layer = match.ours[: -len("running_var")]
            state.setdefault(f"{layer}weight", np.ones_like(state[match.ours]))
            state[f"{layer}num_batches_tracked"] = np.array(0, np.int64)
    report.momentum = {match.ours: convert(match) for match in report.momentum_matched}
    if report.step_name:
        report.step = int(read(report.step_name))
    return state, report


def tf_variables_from_state(
    state: Mapping[str, Any],
    momentum: Optional[Mapping[str, Any]] = None,
    step: Optional[int] = None,
    scope: str = "AttentionOcr_v1/",
) -> dict[str, np.ndarray]:
    """A state_dict under the reference's names and layouts, in today's generation of names (kernel, bias).

    Args:
        state: tensors on the host, or arrays, of a whole model, or `tower.*` alone, which gets the names of the public
            Inception-v3.
        momentum: parameter name -> momentum buffer, written as Momentum slots.
        step: written as global_step (int64).
        scope: in front of a whole model's names.

    Raises:
        CheckpointError: a tensor that the reference does not have (GRU cell, BatchNorm with a scale), or one that is
            missing or has another shape.
    """
    is_whole = any(name.startswith("decoder.") for name in state)
    rows = _rows_of(state, is_whole)
    shapes = {row.ours: row.shape for row in rows}
    wrong = [
        name for name in sorted({*state, *shapes}) if shapes.get(name) != tuple(getattr(state.get(name), "shape", ()))
    ]
    wrong = [name for name in wrong if not name.endswith("num_batches_tracked")]
    if wrong:
        found = tuple(state[wrong[0]].shape) if wrong[0] in state else "nothing"
        raise CheckpointError(
            f"{wrong[0]}: found {found}, expected {shapes.get(wrong[0], 'no such tensor')} in a model of the reference"
            f" ({len(wrong)} tensors differ); only its LSTM decoders can be exported"
        )
    prefix = {"InceptionV3": f"{scope}conv_tower_fn/INCE/", "sequence_logit_fn": scope} if is_whole else {}
    variables = {}
    for row in rows:
        name = prefix.get(row.theirs.split("/")[0], "") + row.theirs
        if row.ours.endswith("bn.weight"):
            if not bool((state[row.ours] == 1).all()):
                raise CheckpointError(f"{row.ours} is not 1: the reference's BatchNorm has no gamma to hold it")
            continue
        sources = {name: state[row.ours], f"{name}/Momentum": (momentum or {}).get(row.ours)}
        for target, value in sources.items():
            if value is not None:
                variables[target] = np.ascontiguousarray(TO_TF[row.layout](np.asarray(value, np.float32)))
    if step is not None:
        variables["global_step"] = np.array(step, np.int64)
    return variables


def _rows_of(state: Mapping[str, Any], is_whole: bool) -> list[Row]:
    """The lines of the table for a state_dict of this kind."""
    blocks = {name.split(".")[1] for name in state if name.startswith("tower.")}
    endpoint = next((name for name in reversed(ENDPOINTS) if name in blocks), None)
    if endpoint is None:
        raise CheckpointError("it has no tower.* tensors: not a model of aocr_torch")
    rows = tower_rows(endpoint)
    if is_whole:
        decoder = "attention" if "decoder.attention_v" in state else "NetSlice"
        lines = decoder_rows(decoder, None)
        sizes = decoder_sizes(
            decoder, {row.theirs: row.in_tf(state[row.ours].shape) for row in lines if row.ours in state}
        )
        if sizes is None:
            raise CheckpointError("it has no decoder.classifier.weight or no cell of the reference's decoders")
        rows += decoder_rows(decoder, sizes)
    return rows


def tower_state_from_torchvision(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """torchvision's own Inception3 state_dict as `tower.*` up to Mixed_7c, and notes on what was done.

    Its BatchNorm has a gamma. ReLU(gamma x + beta) cannot be had from a gamma of 1 by scaling the convolution, because
    BatchNorm divides any scale out again; so gamma is loaded into our frozen weight, where it stays what it is.
    """
    for row in tower_rows(ENDPOINTS[-1]):
        source = row.ours[len("tower.") :]
        found = tuple(getattr(state.get(source), "shape", ("nothing",)))
        if found != row.shape:
            raise CheckpointError(
                f"{source}: found shape {found}, expected {row.shape}: not torchvision's inception_v3"
            )
    heads = [name for name in state if name.startswith(("AuxLogits.", "fc."))]
    tower = {f"tower.{name}": value for name, value in state.items() if name not in heads}
    notes = []
    gammas = [value for name, value in tower.items() if name.endswith("bn.weight")]
    scaled = sum(bool((gamma != 1).any()) for gamma in gammas)
    if scaled:
        notes.append(
            f"the BatchNorm of {scaled} of {len(gammas)} layers has a gamma; it is kept as a frozen scale, so these "
            "weights train and evaluate here but cannot be exported to the reference, whose BatchNorm has none"
        )
    if heads:
        notes.append(f"{len(heads)} tensors of the classifiers of ImageNet (AuxLogits, fc) are not used")
    return tower, notes
