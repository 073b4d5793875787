"""The one table between TensorFlow's variables and our state_dict: names, layouts and shapes of every line.

Kernels are HWIO (or in x out) there and OIHW (or out x in) here; BatchNorm has no gamma there and a frozen 1 here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional

import numpy as np

from aocr_torch.interop.tf_tower import TOWER_LAYERS
from aocr_torch.model.endpoints import ENDPOINTS, up_to

_VARIABLES_OF_A_LAYER = [
    ("weights", "conv.weight", "convolution"),
    ("BatchNorm/beta", "bn.bias", "vector"),
    ("BatchNorm/gamma", "bn.weight", "vector"),
    ("BatchNorm/moving_mean", "bn.running_mean", "vector"),
    ("BatchNorm/moving_variance", "bn.running_var", "vector"),
]


def _linear(theirs: str, ours: str, outputs: int, inputs: int) -> list[tuple]:
    kernel, bias = (f"{theirs}kernel", f"{theirs}bias") if theirs.endswith("/") else (f"{theirs}_w", f"{theirs}_b")
    return [(kernel, f"{ours}.weight", "dense", (outputs, inputs)), (bias, f"{ours}.bias", "vector", (outputs,))]


def _attention(classes: int, units: int, channels: int) -> list[tuple]:
    scope = "LSTM/attention_decoder/"
    return [
        *_linear(scope, "input_projection", classes, classes + channels),
        *_linear(f"{scope}lstm_cell/", "cell.linear", 4 * units, classes + units),
        (f"{scope}AttnW_0", "attention_key.weight", "pointwise convolution", (channels, channels)),
        (f"{scope}AttnV_0", "attention_v", "vector", (channels,)),
        *_linear(f"{scope}Attention_0/", "attention_query", channels, 2 * units),
        *_linear(f"{scope}AttnOutputProjection/", "output_projection", units, units + channels),
        *_linear("softmax", "classifier", classes, units),
    ]


def _net_slice(classes: int, units: int, inputs: int) -> list[tuple]:
    cell = _linear("LSTM/rnn_decoder/lstm_cell/", "cell.linear", 4 * units, inputs + units)
    return [*cell, *_linear("softmax", "classifier", classes, units)]


TO_TORCH = {
    "convolution": lambda value: value.transpose(3, 2, 0, 1),
    "dense": lambda value: value.T,
    "pointwise convolution": lambda value: value[0, 0].T,
    "vector": lambda value: value,
}
TO_TF = {
    "convolution": lambda value: value.transpose(2, 3, 1, 0),
    "dense": lambda value: value.T,
    "pointwise convolution": lambda value: value.T[None, None],
    "vector": lambda value: value,
}


class Row(NamedTuple):
    """One line of the table: `theirs` from InceptionV3/ or sequence_logit_fn/ on, `ours` in the state_dict."""

    theirs: str
    ours: str
    layout: str
    shape: Optional[tuple[int, ...]]
    """Of ours; None where it is not known."""

    def in_tf(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that a tensor of ours has in TensorFlow's layout."""
        return TO_TF[self.layout](np.broadcast_to(np.float32(0), shape)).shape


def tower_rows(final_endpoint: str) -> list[Row]:
    """The lines of the table for the tower up to an endpoint, TensorFlow's names without scope."""
    endpoints = up_to(final_endpoint)
    return [
        Row(
            f"InceptionV3/{theirs}/{variable}",
            f"tower.{ours}.{name}",
            layout,
            tuple(shape) if layout == "convolution" else (shape[0],),
        )
        for theirs, ours, *shape in TOWER_LAYERS
        if ours.split(".")[0] in endpoints
        for variable, name, layout in _VARIABLES_OF_A_LAYER
    ]


def decoder_rows(decoder: str, sizes: Optional[tuple[int, int, int]]) -> list[Row]:
    """The lines of the table for a decoder, "attention" or "NetSlice". sizes: as `decoder_sizes` tells them."""
    lines = (_attention if decoder == "attention" else _net_slice)(*(sizes or (0, 0, 0)))
    return [
        Row(f"sequence_logit_fn/SQLR/{theirs}", f"decoder.{ours}", layout, shape if sizes else None)
        for theirs, ours, layout, shape in lines
    ]


WHOLE_TOWER = {row.theirs: row for row in tower_rows(ENDPOINTS[-1])}


def decoder_sizes(decoder: str, shapes: Mapping[str, tuple[int, ...]]) -> Optional[tuple[int, int, int]]:
    """(K, U, inputs) of a decoder, None where the shapes (by TensorFlow's name in the table) do not tell.

    inputs: C for attention, the width of the cell's input for NetSlice.
    """
    width_name = "attention_decoder/AttnV_0" if decoder == "attention" else "rnn_decoder/lstm_cell/kernel"
    softmax = shapes.get("sequence_logit_fn/SQLR/softmax_w", ())
    width = shapes.get(f"sequence_logit_fn/SQLR/LSTM/{width_name}", ())
    if len(softmax) != 2 or not width:
        return None
    units, classes = softmax
    inputs = width[0] if decoder == "attention" else width[0] - units
    return (classes, units, inputs) if all(0 < size < 1 << 20 for size in (classes, units, inputs)) else None


# Names of TensorFlow that are not in the table.
_PLACE = re.compile(r"(?:.*/)?(InceptionV3/.+|sequence_logit_fn/SQLR/.+)$")
_OTHER_SLOT = re.compile(r"(.+)/(?:Adadelta|Adagrad|Adam|Ftrl|Momentum|RMSProp)(?:_\d+)?$")
_OLD_GENERATION = {"weights": "kernel", "biases": "bias"}  # before TensorFlow 1.2, in the decoder alone


def place(name: str) -> tuple[str, str]:
    """(name in the table, role) of a TensorFlow variable; role is 'value', 'Momentum', 'average', 'slot' or 'other'."""
    role, base = "value", name
    for suffix, meaning in (("/Momentum", "Momentum"), ("/ExponentialMovingAverage", "average")):
        if name.endswith(suffix):
            role, base = meaning, name[: -len(suffix)]
    if role == "value" and _OTHER_SLOT.match(name):
        return _OTHER_SLOT.match(name).group(1), "slot"
    match = _PLACE.match(base)
    if match is None:
        return base, "other"
    base = match.group(1)
    if base.startswith("sequence_logit_fn/"):
        scope, _, last = base.rpartition("/")
        base = f"{scope}/{_OLD_GENERATION.get(last, last)}"
    return base, role
