"""The four character decoders: attention or NetSlice, each with or without autoregression, on an LSTM or GRU cell.

B batch, L feature positions, C channels, T steps, K classes, U units.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aocr_torch import device as devices
from aocr_torch.model.attention import Attention
from aocr_torch.model.cells import CELLS, State
from aocr_torch.model.fused import attention_of, compiled, grown, is_within, read_out
from aocr_torch.model.repeated import RepeatedLinear, StepLinear, gradients_taken_once

Attend = Callable[[Tensor], tuple[Tensor, Tensor]]

SIGNS_AT_A_TIME = 32  # over the bytes of a number, by compiled steps: keys and features, 19 MB, stay in a shared cache
CERTAIN = 100.0  # a logit over 0 whose probability is 1 in every format


def _glorot_linear(in_features: int, out_features: int, bias: bool = True) -> StepLinear:
    layer = StepLinear(in_features, out_features, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _classifier(num_units: int, num_classes: int) -> nn.Linear:
    layer = nn.Linear(num_units, num_classes)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class AttentionDecoder(nn.Module):
    """Additive attention over all positions of all views (Wojna et al. 2017; TensorFlow's legacy attention decoder).

    Args:
        channels: C. num_classes: K. num_steps: T. num_units: U.
        use_autoregression: whether a step is told the previous character.
        cell: "lstm" or "gru". state_clip_value: bound of the LSTM's cell state, 0 for none.
        is_fast: the same numbers up to rounding in less time and memory; see model/attention.py.

    `ending`, the id of the null character, lets an untaught reading stop at the first step at which every sign of the
    batch reads null, or of the group of it that is read at once. The steps left out have the logits of a certain null
    and attention 0. On an accelerator every step then waits for the device.
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
        self._copies: list[AttentionDecoder] = []  # in a list: no module of this one; see `_lowered`
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
        is_taught = labels is not None or not self.use_autoregression  # no step waits for the choice of the last
        keys = self._keys(features)  # the same at every step
        # A one-hot vector times a matrix is a row of it, so the character part of the projection is an embedding.
        parts = [self.num_classes, features.shape[2]]
        character_weight, context_weight = self.input_projection.weight.split(parts, dim=1)
        characters, bias = character_weight.t(), self.input_projection.bias  # (K, K), (K,)
        is_plain, has_gradients = not self.is_fast or devices.is_recording(), torch.is_grad_enabled()
        if self.is_fused and devices.is_host(features.device) and not (is_plain or is_taught or has_gradients):
            lowered, size = self._lowered(keys.dtype), SIGNS_AT_A_TIME // features.element_size()
            groups = zip(features.split(size), keys.split(size))
            logits, attention = zip(*(self._read_compiled(*group, characters, lowered) for group in groups))
            return torch.cat(logits), torch.cat(attention)
        take = partial(self._step, self._attention(features, keys), None if is_taught else self._classify)
        if is_plain or not has_gradients:
            take = partial(take, partial(F.linear, weight=context_weight, bias=bias))
            return self._take_steps(take, features, characters, labels, is_taught)
        with gradients_taken_once([*self.cell.children(), self.attention_query], keys.dtype):
            take = partial(take, RepeatedLinear(context_weight, bias, keys.dtype))
            return self._take_steps(take, features, characters, labels, is_taught)

    def _take_steps(
        self,
        take: Callable[..., Sequence[Any]],
        features: Tensor,
        characters: Tensor,
        labels: Optional[Tensor],
        is_taught: bool,
    ) -> tuple[Tensor, Tensor]:
        """All steps. take: `_step` from `told` on; characters: (K, K), the input projection of each."""
        batch, _, channels = features.shape
        context = features.new_zeros(batch, channels)  # (B, C)
        state = tuple(features.new_zeros(batch, self.num_units) for _ in range(self.cell.state_parts))
        told = taught = None  # taught: T times (B, K)
        if self.use_autoregression:
            told = characters.new_zeros(batch, self.num_classes)  # (B, K)
            if labels is not None:
                # Their gradient is a sum over all steps, most of them of the null: float16 would lose three digits.
                wide = characters.to(torch.promote_types(characters.dtype, torch.float32))
                taught = F.embedding(labels, wide).to(characters.dtype).unbind(1)
        all_outputs, all_attention = [], []
        for step in range(self.num_steps):
            output, attention, context, state = take(told, context, state)
            all_outputs.append(output)
            all_attention.append(attention)
            if taught is not None:
                told = taught[step]
            elif self.use_autoregression:
                chosen = output.argmax(1)  # (B,)
                if self.ending is not None and bool((chosen == self.ending).all()):
                    left_out = self.num_steps - len(all_outputs)
                    certain = torch.zeros_like(output)
                    certain[:, self.ending] = CERTAIN
                    all_outputs += [certain] * left_out
                    all_attention += [torch.zeros_like(attention)] * left_out
                    break
                told = F.embedding(chosen, characters)
        outputs = torch.stack(all_outputs, 1)
        return self._classify(outputs) if is_taught else outputs, torch.stack(all_attention, 1)  # (B, T, K), (B, T, L)

    def _step(
        self,
        attend: Attend,
        finish: Optional[Callable[[Tensor], Tensor]],
        project: Callable[[Tensor], Tensor],
        told: Optional[Tensor],
        context: Tensor,
        state: State,
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """One step.

        Args:
            attend: turns a query (B, C) into attention (B, L) and read-out (B, C).
            finish: turns cell output and read-out, (B, U + C), into logits (B, K); None leaves that for later.
            project: the input projection of what was read out, (B, C) -> (B, K).
            told: (B, K), that of the character before, if the decoder is told. context: (B, C), the read-out before.

        Returns:
            logits, or cell output and read-out; attention (B, L); read-out (B, C); state.
        """
        x = project(context)  # (B, K)
        state = self.cell(x if told is None else x + told, state)
        attention, context = attend(self.attention_query(torch.cat(state, 1)))  # (B, L), (B, C)
        output = torch.cat([state[-1], context], 1)  # (B, U + C)
        return output if finish is None else finish(output), attention, context, state

    def _read_compiled(
        self, features: Tensor, keys: Tensor, characters: Tensor, lowered: AttentionDecoder, are_grown: bool = True
    ) -> tuple[Tensor, Tensor]:
        """An untaught reading whose steps are compiled as a whole. lowered: this decoder in the dtype of the keys."""
        met_keys = compiled(grown)(keys) if are_grown else keys
        v = self.attention_v.to(torch.promote_types(keys.dtype, torch.float32))
        step = partial(compiled(AttentionDecoder._whole_step), lowered, features, met_keys, v)
        queries = []

        def take(*inputs: Any) -> Sequence[Any]:
            *outputs, query = step(are_grown, *inputs)
            queries.append(query)
            return outputs

        reading = self._take_steps(take, features, characters, labels=None, is_taught=False)
        if are_grown and not is_within(torch.cat(queries)):
            return self._read_compiled(features, keys, characters, lowered, are_grown=False)
        return reading

    def _whole_step(
        self, features: Tensor, keys: Tensor, v: Tensor, are_grown: bool, *inputs: Any
    ) -> tuple[Tensor, Tensor, Tensor, State, Tensor]:
        """`_step` to the logits, and its query (B, C); keys, v and are_grown as `attention_of` takes them."""
        queries = []

        def attend(query: Tensor) -> tuple[Tensor, Tensor]:
            queries.append(query)
            attention = attention_of(keys, query, v, are_grown)
            return attention, read_out(attention, features).to(query.dtype)

        def project(context: Tensor) -> Tensor:
            return F.linear(context, self.input_projection.weight[:, self.num_classes :], self.input_projection.bias)

        return (*self._step(attend, self._classify, project, *inputs), queries[0])

    def _lowered(self, dtype: torch.dtype) -> AttentionDecoder:
        """This decoder in `dtype`: autocast would lower the weights again at every step."""
        if self.attention_v.dtype == dtype:
            return self
        copies = self._copies
        is_inference = torch.is_inference_mode_enabled()
        if not copies or (copies[0].attention_v.dtype, copies[0].attention_v.is_inference()) != (dtype, is_inference):
            copies.clear()
            copies.append(copy.deepcopy(self).to(dtype))
        torch._foreach_copy_(list(copies[0].parameters()), list(self.parameters()))
        return copies[0]

    def _keys(self, features: Tensor) -> Tensor:
        """(B, L, C) -> the keys of attention, (B, L, C).

        On a host whose products are half as fast as its convolutions, as on AMD's, a convolution takes half the time.
        """
        if not self.is_fast or devices.is_recording() or not devices.is_host(features.device):
            return self.attention_key(features)
        maps = features.transpose(1, 2).unsqueeze(2)  # (B, C, 1, L)
        return F.conv2d(maps, self.attention_key.weight[:, :, None, None]).squeeze(2).transpose(1, 2)

    def _classify(self, output: Tensor) -> Tensor:
        """Cell output and read-out, (..., U + C) -> logits (..., K)."""
        return self.classifier(self.output_projection(output))

    def _attention(self, features: Tensor, keys: Tensor) -> Attend:
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
                ids = logits.argmax(1) if labels is None else labels[:, step]
                previous = F.one_hot(ids, self.num_classes).to(features.dtype)
            all_logits.append(logits)
        return torch.stack(all_logits, 1), None  # (B, T, K)
