"""Number formats of a training: float32, autocast, or the Ascend apex's O2; and the loss scale of float16.

Both classes have the same few methods, so that one training step reads the same in every precision:

    precision.begin_step()
    with precision.scaled_gradients(optimizer):    # clears what is left of the last step
        with precision.autocast(): loss = ...
        precision.backward(loss)                   # as often as there are batches
    # here the gradients of master_of(parameter) are float32 and unscaled
    has_updated = precision.step(optimizer, norms)
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from aocr_torch import device as devices
from aocr_torch.config import ConfigError, Run
from aocr_torch.training import ranks


class LossScale:
    """The loss scale of TensorFlow's ExponentialUpdateLossScaleManager, with the reference's numbers.

    Doubled after 1000 good steps in a row, halved after 2 bad ones (in a row or not), between 1 and 2^127. Every change
    clears both counters, a bad step clears the good one. A counter also starts again where the bound keeps the scale.
    """

    START, FLOOR, CEILING = 2.0**32, 1.0, 3.4e38 / 2
    GOOD_STEPS, BAD_STEPS = 1000, 2

    def __init__(self) -> None:
        self.scale = self.START
        self.good_steps = 0
        self.bad_steps = 0
        self.skipped = 0  # since the training began
        self.skipped_at_floor = 0  # in a row, at the lowest scale: halving cannot help any more

    def update(self, is_bad: bool) -> None:
        """Takes in a step; a bad one had a gradient that overflowed, and changed no weight."""
        self.skipped += is_bad
        self.skipped_at_floor = self.skipped_at_floor + 1 if is_bad and self.scale == self.FLOOR else 0
        self.good_steps = 0 if is_bad else self.good_steps + 1
        self.bad_steps += is_bad
        if self.good_steps == self.GOOD_STEPS:
            self._change_to(self.scale * 2 if self.scale < self.CEILING else self.scale)
        elif self.bad_steps == self.BAD_STEPS:
            self._change_to(max(self.scale / 2, self.FLOOR))

    def _change_to(self, scale: float) -> None:
        self.scale, self.good_steps, self.bad_steps = scale, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The scale and its counters, plain numbers."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state_dict."""
        vars(self).update({name: state[name] for name in vars(self)})


class Autocast:
    """PyTorch's own mixed precision; with dtype None plain float32.

    Args:
        dtype: of the operations that autocast lowers. float16 gets a loss scale.
    """

    def __init__(self, device: torch.device, dtype: Optional[torch.dtype], description: str) -> None:
        self.device, self.dtype, self.description = device, dtype, description
        self.loss_scale = LossScale() if dtype == torch.float16 else None
        self._scale = torch.full((), LossScale.START, device=device)  # there, so that a recorded step can read it
        self._has_overflowed = False

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: weights and optimizer stay float32."""

    def begin_step(self) -> None:
        """Puts the loss scale where the step reads it, also a recorded one."""
        if self.loss_scale is not None:
            self._scale.fill_(self.loss_scale.scale)

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass."""
        return nullcontext() if self.dtype is None else devices.autocast(self.device, self.dtype)

    @contextmanager
    def scaled_gradients(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """The context of all forward and backward passes of a step; gradients are scaled inside, unscaled after."""
        if self.loss_scale is None:
            yield
            return
        saturates = devices.saturates(self.device)
        if saturates:
            devices.clear_overflow()
        yield
        if saturates:  # nothing shows in the gradients of such a chip, and each rank has its own register
            self._has_overflowed = ranks.is_set_on_any_device(devices.has_overflowed(), self.device)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(gradients, self._scale.reciprocal())

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss, scaled where there is a scale."""
        (loss if self.loss_scale is None else loss * self._scale).backward()

    def master_of(self, parameter: Tensor) -> Tensor:
        """The float32 weight behind a parameter of the model: the parameter itself."""
        return parameter

    def step(self, optimizer: torch.optim.Optimizer, norms: Tensor) -> bool:
        """Updates the weights, unless a gradient overflowed.

        Args:
            norms: of the unscaled gradients, (P,) on the device, the same on every rank.

        Returns:
            whether the weights changed. With a loss scale this waits for the device.
        """
        if self.loss_scale is not None:
            is_bad = self._has_overflowed or not bool(torch.isfinite(norms).all())
            self.loss_scale.update(is_bad)
            if is_bad:
                return False
        optimizer.step()
        return True

    def model_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state_dict in float32."""
        return model.state_dict()


class ApexO2:
    """The Ascend apex at opt_level O2: float16 weights, activations and gradients, float32 BatchNorm and masters.

    apex casts, checks for overflow and skips; the loss scale's policy is ours (apex halves at every bad step and stops
    at 2^24). What it saves is not used: the masters and the optimizer's state are saved as those of a float32 training,
    so nothing is lost, and a checkpoint can go on in any precision.
    """

    def __init__(self, device: torch.device, description: str) -> None:
        self.device, self.description = device, description
        self.loss_scale = LossScale()
        self._masters: dict[Tensor, Tensor] = {}
        self._has_updated = False

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Casts the model; its weights and the optimizer's state must be loaded, the model not yet wrapped in DDP."""
        from apex import amp
        from apex.amp._amp_state import _amp_state

        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        weights = [parameter.detach().clone() for parameter in parameters]
        state = copy.deepcopy(optimizer.state_dict())
        amp.initialize(
            model,
            optimizer,
            opt_level="O2",
            loss_scale="dynamic",
            # Without this, on chips with inf and nan, apex unscales float16 gradients before it copies them.
            combine_grad=True,
            dynamic_init_scale=self.loss_scale.scale,
            max_loss_scale=2.0**127,
            min_loss_scale=LossScale.FLOOR,
            verbosity=0,
        )
        optimizer.zero_grad()  # makes the masters: from the float16 weights, with a momentum that was float16 too
        masters = list(amp.master_params(optimizer))
        with torch.no_grad():
            for master, weight in zip(masters, weights):
                master.copy_(weight)
        optimizer.load_state_dict(state)
        self._masters = dict(zip(parameters, masters))
        self._scaler = _amp_state.loss_scalers[0]
        self._scaler.update_scale = self._update_scale  # apex has no parameter for another policy

    def begin_step(self) -> None:
        """Nothing: apex has its own scale."""

    def _update_scale(self) -> bool:
        """Called by apex on leaving scale_loss; returns whether it must skip the update."""
        is_bad = bool(self._scaler._has_overflow)
        self.loss_scale.update(is_bad)
        self._scaler._loss_scale = self.loss_scale.scale
        self._has_updated = not is_bad
        return is_bad

    def autocast(self) -> AbstractContextManager:
        """Nothing: the model's forward casts by itself."""
        return nullcontext()

    @contextmanager
    def scaled_gradients(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """As `Autocast.scaled_gradients`: one scale_loss around all passes.

        So an overflow in any of them counts: apex clears the overflow register whenever it enters scale_loss.
        """
        from apex import amp

        self._scaler._loss_scale = self.loss_scale.scale
        with amp.scale_loss(torch.ones((), device=self.device), optimizer) as scale:
            self._scale = scale
            yield

    def backward(self, loss: Tensor) -> None:
        """Adds the scaled gradients of a loss."""
        (loss * self._scale).backward()

    def master_of(self, parameter: Tensor) -> Tensor:
        """The float32 weight behind a parameter of the model."""
        return self._masters.get(parameter, parameter)

    def step(self, optimizer: torch.optim.Optimizer, norms: Tensor) -> bool:
        """As `Autocast.step`; apex decided on leaving `scaled_gradients`, and after an overflow norms mean nothing."""
        optimizer.step()
        return self._has_updated

    def model_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state_dict in float32, with the masters in the place of the float16 weights."""
        state = model.state_dict()
        for name, parameter in model.named_parameters():
            state[name] = self.master_of(parameter).detach()
        return state


Precision = Union[Autocast, ApexO2]


def choose(run: Run, device: torch.device) -> Precision:
    """The precision that --amp, --amp_backend and --amp_dtype ask for on this device; its description says why.

    Raises:
        ConfigError: apex is asked for and cannot be had.
    """
    if not run.amp:
        return Autocast(device, None, "float32")
    if run.amp_backend == "apex":
        reason = "float16 only" if run.amp_dtype == "bfloat16" else why_no_apex(device)
        if reason:
            raise ConfigError(f"amp_backend apex cannot be used: {reason}; leave it away or say native")
        return ApexO2(device, "apex amp O2 in float16, as asked for")
    reason = "as asked for" if run.amp_backend == "native" else why_no_apex(device)
    if not reason and run.amp_dtype != "bfloat16":
        return ApexO2(device, "apex amp O2 in float16, because the Ascend apex is installed")
    return _autocast(run, device, reason or "because apex has no bfloat16")


def choose_for_evaluation(run: Run, device: torch.device) -> Autocast:
    """The precision of an evaluation: float32, or autocast where --amp asks for it.

    Raises:
        ConfigError: apex is asked for, which casts a model together with its optimizer.
    """
    if not run.amp:
        return Autocast(device, None, "float32")
    if run.amp_backend == "apex":
        raise ConfigError(
            "amp_backend apex is for training only: leave it away, an evaluation with --amp uses autocast"
        )
    return _autocast(run, device, "as asked for")


def _autocast(run: Run, device: torch.device, reason: str) -> Autocast:
    dtype = devices.amp_dtype(device) if run.amp_dtype == "auto" else getattr(torch, run.amp_dtype)
    if not devices.can_autocast(device, dtype):
        raise ConfigError(f"amp_dtype {str(dtype)[6:]} cannot be used on {device} with torch {torch.__version__}")
    return Autocast(device, dtype, f"autocast in {str(dtype)[6:]}, {reason}")


def why_no_apex(device: torch.device) -> str:
    """Why the Ascend apex cannot serve here; empty if it can."""
    if not devices.has_apex(device):
        return "because apex serves npu devices only"
    if importlib.util.find_spec("apex") is None:
        return "because the Ascend apex is not installed"
    try:
        amp = importlib.import_module("apex.amp")
    except ModuleNotFoundError as error:
        return f"because the package apex that is installed has no amp ({error}): PyPI's apex is an unrelated one"
    except Exception as error:  # a broken installation of somebody else's package may raise anything
        return f"because the package apex that is installed does not load ({type(error).__name__}: {error})"
    known = inspect.signature(amp.initialize).parameters if hasattr(amp, "initialize") else {}
    missing = [name for name in ("combine_grad", "dynamic_init_scale", "max_loss_scale") if name not in known]
    if missing:
        return f"because the apex that is installed is no current Ascend build (amp.initialize has no {missing[0]})"
    return ""
