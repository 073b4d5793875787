"""A training step that is recorded once and then launched as a whole (a CUDA graph).

A step is some three thousand small kernels; launched one by one from Python they take longer to launch than to run.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn

from aocr_torch import device as devices

Batches = list[dict[str, Tensor]]
"""The tensors that a step reads, on the device, for each of its batches."""


class RecordedStep:
    """Gradients of batches of one shape, as `step` computes them, into the same memory every time.

    Args:
        step: leaves gradients in the model's parameters; must not wait for the device, nor depend on anything that
            changes but the batches, weights and buffers.
    """

    def __init__(
        self, model: nn.Module, batches: Batches, step: Callable[[Batches], tuple[Tensor, ...]], device: torch.device
    ) -> None:
        self._batches = [{name: values.clone() for name, values in batch.items()} for batch in batches]
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

        def work() -> tuple[Tensor, ...]:
            for parameter in self._parameters:
                parameter.grad = None
            return step(self._batches)

        self._launch, self._result = devices.record(device, work)
        self._gradients = [parameter.grad for parameter in self._parameters]
        with torch.no_grad():  # the first runs have moved BatchNorm's averages
            for buffer, before in buffers:
                buffer.copy_(before)

    def __call__(self, batches: Batches) -> tuple[Tensor, ...]:
        """What `step` returns, valid until the next call; the parameters have their gradients.

        Args:
            batches: of the recorded shapes.
        """
        for ours, batch in zip(self._batches, batches):
            for name, values in batch.items():
                ours[name].copy_(values, non_blocking=True)
        self._launch()
        for parameter, gradient in zip(self._parameters, self._gradients):
            parameter.grad = gradient
        return self._result
