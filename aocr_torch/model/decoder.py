"""The four character decoders: attention or NetSlice, each with or without autoregression, on an LSTM or GRU cell.

B batch, L feature positions, C channels, T steps, K classes, U units.

The cells are one Linear (two for the GRU) and element-wise operations instead of nn.LSTMCell: they take TensorFlow's
kernel, forget bias and clipping as they are, and on Ascend they need no operator that compiles anew.
"""

from __future__ import annotations

from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aocr_torch import device as devices
from aocr_torch.model.attention import Attention
from aocr_torch.model.fused import compiled, lstm_state

CERTAIN = 100.0  # a logit over 0 whose probability is 1 in every format


class LSTMCell(nn.Module):
    """TensorFlow's LSTM cell: gates in the order i, j, f, o, forget bias added at run time, cell state clipped.

    c = clip(sigmoid(f + 1) c + sigmoid(i) tanh(j)); h = sigmoid(o) tanh(c). The state is (c, h), in the order in which
    the reference concatenates it for the attention query.
    """

    forget_bias = 1.0
    state_parts = 2
    is_fused = False

    def __init__(self, input_size: int, num_units: int, state_clip_value: float):
        super().__init__()
        self.linear = nn.Linear(input_size + num_units, 4 * num_units)
        self.state_clip_value = state_clip_value
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """x (B, input_size), state ((B, U), (B, U)) -> the new state."""
        c, h = state
        gates = self.linear(torch.cat([x, h], 1))  # (B, 4 * U)
        return (compiled(lstm_state) if self.is_fused else lstm_state)(
            gates, c, self.forget_bias, self.state_clip_value
        )


class GRUCell(nn.Module):
    """Gated recurrent unit (Cho et al. 2014, with the reset gate behind the hidden product as in cuDNN).

    r, z = sigmoid; n = tanh(x W_n + b_n + r (h U_n + u_n)); h = (1 - z) n + z h. An addition of this project.
    """

    state_parts = 1

    def __init__(self, input_size: int, num_units: int, state_clip_value: float = 0.0):
        super().__init__()
        self.linear = nn.Linear(input_size, 3 * num_units)
        self.hidden = nn.Linear(num_units, 3 * num_units)
        for layer in (self.linear, self.hidden):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """x (B, input_size), state ((B, U),) -> the new state."""
        (h,) = state
        reset_x, update_x, new_x = self.linear(x).chunk(3, 1)  # (B, U) each
        reset_h, update_h, new_h = self.hidden(h).chunk(3, 1)
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return (new + update * (h - new),)


CELLS = {"lstm": LSTMCell, "gru": GRUCell}


def _glorot_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _classifier(num_units: int, num_classes: int) -> nn.Linear:
    layer = nn.Linear(num_units, num_classes)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _previous_character(logits: Tensor, labels: Optional[Tensor], step: int) -> Tensor:
    """The ids (B,) that step `step` + 1 is told: the ground truth in training, else the choice just made."""
    return logits.argmax(1) if labels is None else labels[:, step]


class AttentionDecoder(nn.Module):
    """Additive attention over all positions of all views (Wojna et al. 2017; TensorFlow's legacy attention decoder).

    Args:
        channels: C. num_classes: K. num_steps: T. num_units: U.
        use_autoregression: whether a step is told the previous character.
        cell: "lstm" or "gru". state_clip_value: bound of the LSTM's cell state, 0 for none.
        is_fast: the same numbers up to rounding in less time and memory; see model/attention.py.

    `ending`, the id of the null character, lets an untaught reading stop at the first step at which every sign of the
    batch reads null. The steps left out have the logits of a certain null and attention 0. On an accelerator every step
    then waits for the device.
    """

    is_fused = False
    ending: Optional[int] = None

    def __init__(
        self,
        channels: int,
        num_classes: int,
        num_steps: int,
        num_units: int = 256,
        use_autoregression: bool = True,
        cell: str = "lstm",
        state_clip_value: float = 10.0,
        is_fast: bool = False,
    ):
        super().__init__()
        self.is_fast = is_fast
        self.num_steps, self.num_units, self.num_classes = num_steps, num_units, num_classes
        self.use_autoregression = use_autoregression
        self.input_projection = _glorot_linear(num_classes + channels, num_classes)
        self.cell = CELLS[cell](num_classes, num_units, state_clip_value)
        self.attention_key = _glorot_linear(channels, channels, bias=False)
        self.attention_query = _glorot_linear(self.cell.state_parts * num_units, channels)
        self.attention_v = nn.Parameter(torch.empty(channels))
        self.output_projection = _glorot_linear(num_units + channels, num_units)
        self.classifier = _classifier(num_units, num_classes)
        nn.init.uniform_(self.attention_v, -((3 / channels) ** 0.5), (3 / channels) ** 0.5)  # Glorot in one dimension

    def forward(self, features: Tensor, labels: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
        """Reads T characters.

        Args:
            features: float (B, L, C).
            labels: int64 (B, T), the characters to feed back (teacher forcing); None feeds back the decoder's own.

        Returns:
            logits float (B, T, K) and attention weights float32 or wider (B, T, L), each row summing to 1.
        """
        batch, _, channels = features.shape
        keys = self.attention_key(features)  # (B, L, C), the same at every step
        attend = self._attention(features, keys)
        # A one-hot vector times a matrix is a row of it, so the character part of the projection is an embedding.
        character_weight, context_weight = self.input_projection.weight.split([self.num_classes, channels], dim=1)
        characters = character_weight.t()  # (K, K)
        is_taught = labels is not None or not self.use_autoregression  # no step waits for the choice of the last
        context = features.new_zeros(batch, channels)  # (B, C)
        state = tuple(features.new_zeros(batch, self.num_units) for _ in range(self.cell.state_parts))
        previous: Optional[Tensor] = None
        all_outputs, all_attention = [], []
        for step in range(self.num_steps):
            x = F.linear(context, context_weight, self.input_projection.bias)  # (B, K)
            if previous is not None:
                x = x + F.embedding(previous, characters)
            state = self.cell(x, state)
            attention, context = attend(self.attention_query(torch.cat(state, 1)))  # (B, L), (B, C)
            output = torch.cat([state[-1], context], 1)  # (B, U + C)
            if not is_taught:
                output = self._classify(output)  # (B, K)
            if self.use_autoregression:
                previous = _previous_character(output, labels, step)
            all_outputs.append(output)
            all_attention.append(attention)
            if self.ending is not None and not is_taught and bool((previous == self.ending).all()):
                left_out = self.num_steps - len(all_outputs)
                certain = torch.zeros_like(output)
                certain[:, self.ending] = CERTAIN
                all_outputs += [certain] * left_out
                all_attention += [torch.zeros_like(attention)] * left_out
                break
        outputs = torch.stack(all_outputs, 1)
        return self._classify(outputs) if is_taught else outputs, torch.stack(all_attention, 1)  # (B, T, K), (B, T, L)

    def _classify(self, output: Tensor) -> Tensor:
        """Cell output and read-out, (..., U + C) -> logits (..., K)."""
        return self.classifier(self.output_projection(output))

    def _attention(self, features: Tensor, keys: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """What turns a query (B, C) into attention (B, L) and read-out (B, C)."""
        if self.is_fast and not devices.is_recording():
            return Attention(features, keys, self.attention_v, self.is_fused)

        def attend(query: Tensor) -> tuple[Tensor, Tensor]:
            energy = torch.tanh(keys + query[:, None]) @ self.attention_v  # (B, L)
            attention = torch.softmax(energy, 1, dtype=torch.promote_types(energy.dtype, torch.float32))
            return attention, torch.bmm(attention[:, None].to(features.dtype), features)[:, 0]

        return attend


class NetSliceDecoder(nn.Module):
    """No attention: step t reads the positions t .. t + L // T - 1 straight into the cell.

    The stride is one position, as in the reference, so only the first T + L // T - 1 positions are ever read.

    Args: as `AttentionDecoder`; num_positions: L.
    """

    def __init__(
        self,
        channels: int,
        num_positions: int,
        num_classes: int,
        num_steps: int,
        num_units: int = 256,
        use_autoregression: bool = False,
        cell: str = "lstm",
        state_clip_value: float = 10.0,
    ):
        super().__init__()
        if num_positions < num_steps:
            raise ValueError(
                f"found {num_positions} feature positions for {num_steps} steps, expected at least one a step; "
                "use attention, larger images or an earlier final_endpoint"
            )
        self.num_steps, self.num_units, self.num_classes = num_steps, num_units, num_classes
        self.use_autoregression = use_autoregression
        self.slice_length = num_positions // num_steps
        input_size = self.slice_length * channels + (num_classes if use_autoregression else 0)
        self.cell = CELLS[cell](input_size, num_units, state_clip_value)
        self.classifier = _classifier(num_units, num_classes)

    def forward(self, features: Tensor, labels: Optional[Tensor] = None) -> tuple[Tensor, None]:
        """As `AttentionDecoder.forward`; there are no attention weights to return."""
        batch = features.shape[0]
        state = tuple(features.new_zeros(batch, self.num_units) for _ in range(self.cell.state_parts))
        previous = features.new_zeros(batch, self.num_classes)  # (B, K)
        all_logits = []
        for step in range(self.num_steps):
            x = features[:, step : step + self.slice_length].flatten(1)  # (B, slice_length * C)
            if self.use_autoregression:
                x = torch.cat([x, previous], 1)
            state = self.cell(x, state)
            logits = self.classifier(state[-1])  # (B, K)
            if self.use_autoregression:
                ids = _previous_character(logits, labels, step)
                previous = F.one_hot(ids, self.num_classes).to(features.dtype)
            all_logits.append(logits)
        return torch.stack(all_logits, 1), None  # (B, T, K)
