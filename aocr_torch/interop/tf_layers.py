"""The one table between TensorFlow's variables and our state_dict: names, layouts and shapes of every line.

Kernels are HWIO (or in x out) there and OIHW (or out x in) here; BatchNorm has no gamma there and a frozen 1 here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional

import numpy as np
import torch

from aocr_torch.model.decoder import AttentionDecoder, NetSliceDecoder
from aocr_torch.model.inception import ENDPOINTS, InceptionTower

# Layer of TensorFlow's block -> layer of torchvision's. The names do not always tell the kernel's size.
_MIXED_A = {
    "Branch_0/Conv2d_0a_1x1": "branch1x1",
    "Branch_1/Conv2d_0a_1x1": "branch5x5_1",
    "Branch_1/Conv2d_0b_5x5": "branch5x5_2",
    "Branch_2/Conv2d_0a_1x1": "branch3x3dbl_1",
    "Branch_2/Conv2d_0b_3x3": "branch3x3dbl_2",
    "Branch_2/Conv2d_0c_3x3": "branch3x3dbl_3",
    "Branch_3/Conv2d_0b_1x1": "branch_pool",
}
_MISNOMERS_5C = {
    "Branch_1/Conv2d_0a_1x1": "Branch_1/Conv2d_0b_1x1",
    "Branch_1/Conv2d_0b_5x5": "Branch_1/Conv_1_0c_5x5",
}
_MIXED_B = {
    "Branch_0/Conv2d_1a_1x1": "branch3x3",
    "Branch_1/Conv2d_0a_1x1": "branch3x3dbl_1",
    "Branch_1/Conv2d_0b_3x3": "branch3x3dbl_2",
    "Branch_1/Conv2d_1a_1x1": "branch3x3dbl_3",
}
_MIXED_C = {
    "Branch_0/Conv2d_0a_1x1": "branch1x1",
    "Branch_1/Conv2d_0a_1x1": "branch7x7_1",
    "Branch_1/Conv2d_0b_1x7": "branch7x7_2",
    "Branch_1/Conv2d_0c_7x1": "branch7x7_3",
    "Branch_2/Conv2d_0a_1x1": "branch7x7dbl_1",
    "Branch_2/Conv2d_0b_7x1": "branch7x7dbl_2",
    "Branch_2/Conv2d_0c_1x7": "branch7x7dbl_3",
    "Branch_2/Conv2d_0d_7x1": "branch7x7dbl_4",
    "Branch_2/Conv2d_0e_1x7": "branch7x7dbl_5",
    "Branch_3/Conv2d_0b_1x1": "branch_pool",
}
_MIXED_D = {
    "Branch_0/Conv2d_0a_1x1": "branch3x3_1",
    "Branch_0/Conv2d_1a_3x3": "branch3x3_2",
    "Branch_1/Conv2d_0a_1x1": "branch7x7x3_1",
    "Branch_1/Conv2d_0b_1x7": "branch7x7x3_2",
    "Branch_1/Conv2d_0c_7x1": "branch7x7x3_3",
    "Branch_1/Conv2d_1a_3x3": "branch7x7x3_4",
}
_MIXED_E = {
    "Branch_0/Conv2d_0a_1x1": "branch1x1",
    "Branch_1/Conv2d_0a_1x1": "branch3x3_1",
    "Branch_1/Conv2d_0b_1x3": "branch3x3_2a",
    "Branch_1/Conv2d_0b_3x1": "branch3x3_2b",
    "Branch_2/Conv2d_0a_1x1": "branch3x3dbl_1",
    "Branch_2/Conv2d_0b_3x3": "branch3x3dbl_2",
    "Branch_2/Conv2d_0c_1x3": "branch3x3dbl_3a",
    "Branch_2/Conv2d_0d_3x1": "branch3x3dbl_3b",
    "Branch_3/Conv2d_0b_1x1": "branch_pool",
}
_BLOCKS = {
    "Mixed_5b": _MIXED_A,
    "Mixed_5c": {_MISNOMERS_5C.get(theirs, theirs): ours for theirs, ours in _MIXED_A.items()},
    "Mixed_5d": _MIXED_A,
    "Mixed_6a": _MIXED_B,
    **{f"Mixed_6{letter}": _MIXED_C for letter in "bcde"},
    "Mixed_7a": _MIXED_D,
    "Mixed_7b": _MIXED_E,
    "Mixed_7c": {theirs.replace("1/Conv2d_0b_3x1", "1/Conv2d_0c_3x1"): ours for theirs, ours in _MIXED_E.items()},
}
_VARIABLES_OF_A_LAYER = [
    ("weights", "conv.weight", "convolution"),
    ("BatchNorm/beta", "bn.bias", "vector"),
    ("BatchNorm/gamma", "bn.weight", "vector"),
    ("BatchNorm/moving_mean", "bn.running_mean", "vector"),
    ("BatchNorm/moving_variance", "bn.running_var", "vector"),
]
_CLASSIFIER = [("softmax_w", "classifier.weight", "dense"), ("softmax_b", "classifier.bias", "vector")]


def _linear(theirs: str, ours: str) -> list[tuple[str, str, str]]:
    return [(f"{theirs}kernel", f"{ours}.weight", "dense"), (f"{theirs}bias", f"{ours}.bias", "vector")]


_DECODERS = {
    "attention": [
        *_linear("LSTM/attention_decoder/", "input_projection"),
        *_linear("LSTM/attention_decoder/lstm_cell/", "cell.linear"),
        ("LSTM/attention_decoder/AttnW_0", "attention_key.weight", "pointwise convolution"),
        ("LSTM/attention_decoder/AttnV_0", "attention_v", "vector"),
        *_linear("LSTM/attention_decoder/Attention_0/", "attention_query"),
        *_linear("LSTM/attention_decoder/AttnOutputProjection/", "output_projection"),
        *_CLASSIFIER,
    ],
    "NetSlice": [*_linear("LSTM/rnn_decoder/lstm_cell/", "cell.linear"), *_CLASSIFIER],
}

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

    def shape_in_tf(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that a tensor of ours has in TensorFlow's layout."""
        return TO_TF[self.layout](np.broadcast_to(np.float32(0), shape)).shape


def tower_rows(final_endpoint: str) -> list[Row]:
    """The lines of the table for the tower up to an endpoint, TensorFlow's names without scope."""
    rows = []
    for endpoint in ENDPOINTS[: ENDPOINTS.index(final_endpoint) + 1]:
        if endpoint.startswith("Conv2d"):
            layers = [(endpoint, endpoint)]
        else:
            layers = [(f"{endpoint}/{a}", f"{endpoint}.{b}") for a, b in _BLOCKS.get(endpoint, {}).items()]
        for theirs, ours in layers:
            rows += [
                Row(f"InceptionV3/{theirs}/{variable}", f"tower.{ours}.{name}", layout)
                for variable, name, layout in _VARIABLES_OF_A_LAYER
            ]
    return rows


def decoder_rows(decoder: str) -> list[Row]:
    """The lines of the table for a decoder: "attention" or "NetSlice"."""
    return [
        Row(f"sequence_logit_fn/SQLR/{theirs}", f"decoder.{ours}", layout)
        for theirs, ours, layout in _DECODERS[decoder]
    ]


WHOLE_TOWER = {row.theirs: row for row in tower_rows(ENDPOINTS[-1])}


def tower_shapes(final_endpoint: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of our tower, by state_dict name; nothing is allocated."""
    with torch.device("meta"):
        tower = InceptionTower(final_endpoint, num_views=1, per_view=True)
    return {f"tower.{name}": tuple(value.shape) for name, value in tower.state_dict().items()}


def decoder_sizes(decoder: str, shapes: Mapping[str, tuple[int, ...]]) -> Optional[tuple[int, int, int]]:
    """(K, U, inputs) of a decoder, None where the shapes (by name in the table) do not tell; inputs as below."""
    width_name = "attention_decoder/AttnV_0" if decoder == "attention" else "rnn_decoder/lstm_cell/kernel"
    softmax = shapes.get("sequence_logit_fn/SQLR/softmax_w", ())
    width = shapes.get(f"sequence_logit_fn/SQLR/LSTM/{width_name}", ())
    if len(softmax) != 2 or not width:
        return None
    units, classes = softmax
    inputs = width[0] if decoder == "attention" else width[0] - units
    return (classes, units, inputs) if all(0 < size < 1 << 20 for size in (classes, units, inputs)) else None


def decoder_shapes(decoder: str, classes: int, units: int, inputs: int) -> dict[str, tuple[int, ...]]:
    """inputs: C for attention, the width of the cell's input for NetSlice."""
    with torch.device("meta"):
        if decoder == "attention":
            module = AttentionDecoder(inputs, classes, num_steps=1, num_units=units)
        else:
            module = NetSliceDecoder(inputs, num_positions=1, num_classes=classes, num_steps=1, num_units=units)
    return {f"decoder.{name}": tuple(value.shape) for name, value in module.state_dict().items()}


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
