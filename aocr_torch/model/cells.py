"""The decoders' recurrent cells. B batch, U units.

They are one Linear (two for the GRU) and element-wise operations instead of nn.LSTMCell: they take TensorFlow's
kernel, forget bias and clipping as they are, and on Ascend they need no operator that compiles anew.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aocr_torch import device as devices
from aocr_torch.model.fused import compiled, lstm_state
from aocr_torch.model.repeated import StepLinear

State = tuple[Tensor, ...]


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
        self.linear = StepLinear(input_size + num_units, 4 * num_units)
        self.state_clip_value = state_clip_value
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, state: State) -> State:
        """x (B, input_size), state ((B, U), (B, U)) -> the new state."""
        c, h = state
        gates = self.linear(torch.cat([x, h], 1))  # (B, 4 * U)
        is_alone = self.is_fused and not devices.is_recording()
        return (compiled(lstm_state) if is_alone else lstm_state)(gates, c, self.forget_bias, self.state_clip_value)


class GRUCell(nn.Module):
    """Gated recurrent unit (Cho et al. 2014, with the reset gate behind the hidden product as in cuDNN).

    r, z = sigmoid; n = tanh(x W_n + b_n + r (h U_n + u_n)); h = (1 - z) n + z h. An addition of this project.
    """

    state_parts = 1

    def __init__(self, input_size: int, num_units: int, state_clip_value: float = 0.0):
        super().__init__()
        self.linear = StepLinear(input_size, 3 * num_units)
        self.hidden = StepLinear(num_units, 3 * num_units)
        for layer in (self.linear, self.hidden):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, state: State) -> State:
        """x (B, input_size), state ((B, U),) -> the new state."""
        (h,) = state
        reset_x, update_x, new_x = self.linear(x).chunk(3, 1)  # (B, U) each
        reset_h, update_h, new_h = self.hidden(h).chunk(3, 1)
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return (new + update * (h - new),)


CELLS = {"lstm": LSTMCell, "gru": GRUCell}
