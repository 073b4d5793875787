"""TensorFlow 1's optimizers and gradient clipping, learning rate schedules, and an average of the weights.

Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Callable

import torch
from torch import Tensor, nn

from aocr_torch.config import Optim


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], name: str, learning_rate: float, momentum: float
) -> torch.optim.Optimizer:
    """An optimizer with the formulas and defaults of TensorFlow 1 over the parameters that require a gradient.

    named_parameters: as model.named_parameters() gives them, already on their device.
    name: momentum, adam, adadelta, adagrad or rmsprop. momentum: of momentum and rmsprop only.
    torch's own classes serve where they compute the same, Adam and RMSProp below where they do not.
    """
    parameters = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    if name == "momentum":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, foreach=True)
    if name == "adam":
        return Adam(parameters, learning_rate)
    if name == "adadelta":
        return torch.optim.Adadelta(parameters, lr=learning_rate, rho=0.95, eps=1e-8, foreach=True)
    if name == "adagrad":
        return torch.optim.Adagrad(parameters, lr=learning_rate, initial_accumulator_value=0.1, eps=0.0, foreach=True)
    if name == "rmsprop":
        return RMSProp(parameters, learning_rate, momentum)
    raise ValueError(f"optimizer {name!r}: expected momentum, adam, adadelta, adagrad or rmsprop")


class Adam(torch.optim.Optimizer):
    """TensorFlow 1's Adam with beta1 0.9, beta2 0.999 and epsilon 1e-8 ("epsilon hat" of the paper).

        m = 0.9 m + 0.1 g;  v = 0.999 v + 0.001 g^2
        w -= lr * sqrt(1 - 0.999^t) / (1 - 0.9^t) * m / (sqrt(v) + 1e-8)

    torch.optim.Adam adds epsilon to sqrt(v / (1 - 0.999^t)): 30 times less in the first step, where a gradient of 1e-4
    then moves its weight 0.3 % further.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "num_updates": 0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters, gradients = _with_gradients(group["params"])
            if not parameters:
                continue
            means = _slots(self, "mean", parameters, 0.0)
            squares = _slots(self, "mean_square", parameters, 0.0)
            torch._foreach_lerp_(means, gradients, 1 - self.BETA1)
            torch._foreach_mul_(squares, self.BETA2)
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - self.BETA2)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, self.EPSILON)
            group["num_updates"] += 1  # one count for all variables, as TensorFlow's powers of beta
            correction1, correction2 = (1 - beta ** group["num_updates"] for beta in (self.BETA1, self.BETA2))
            rate = group["lr"] * math.sqrt(correction2) / correction1
            torch._foreach_addcdiv_(parameters, means, roots, value=-rate)


class RMSProp(torch.optim.Optimizer):
    """TensorFlow 1's RMSProp with decay 0.9 and epsilon 1e-10.

        mean_square = 0.9 mean_square + 0.1 g^2, starting at ones
        momentum = momentum_factor * momentum + lr * g / sqrt(mean_square + 1e-10)
        w -= momentum

    torch.optim.RMSprop starts at zeros, which makes its first steps three times as long, adds epsilon outside the
    root, and applies a changed learning rate to the whole momentum at once.
    """

    DECAY, EPSILON = 0.9, 1e-10

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            parameters, gradients = _with_gradients(group["params"])
            if not parameters:
                continue
            squares = _slots(self, "mean_square", parameters, 1.0)
            momenta = _slots(self, "momentum", parameters, 0.0)
            torch._foreach_mul_(squares, self.DECAY)
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - self.DECAY)
            roots = torch._foreach_add(squares, self.EPSILON)
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_addcdiv_(momenta, gradients, roots, value=group["lr"])
            torch._foreach_sub_(parameters, momenta)


def _with_gradients(parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[Tensor]]:
    """The parameters that have a gradient, and the gradients."""
    moving = [parameter for parameter in parameters if parameter.grad is not None]
    return moving, [parameter.grad for parameter in moving]


def _slots(optimizer: torch.optim.Optimizer, name: str, parameters: list[nn.Parameter], start: float) -> list[Tensor]:
    """The optimizer's state `name` of each parameter, made on first use."""
    for parameter in parameters:
        if name not in optimizer.state[parameter]:
            optimizer.state[parameter][name] = torch.full_like(parameter, start)
    return [optimizer.state[parameter][name] for parameter in parameters]


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, mode: str = "per_variable") -> Tensor:
    """Scale the gradients in place so that L2 norms are at most max_norm; 0 leaves them as they are.

    mode: "per_variable" bounds each gradient on its own, as the reference does (tf.clip_by_norm); "global" scales all
    by one factor so that the norm of them together is bounded (tf.clip_by_global_norm).
    Returns the norms before clipping, one for each parameter that has a gradient: (P,) on the device.
    """
    if mode not in ("per_variable", "global"):
        raise ValueError(f"clip mode {mode!r}: expected per_variable or global")
    _, gradients = _with_gradients(parameters)
    norms = torch.stack(torch._foreach_norm(gradients))  # (P,)
    if max_norm and mode == "per_variable":
        torch._foreach_mul_(gradients, list((max_norm / norms.clamp(min=max_norm)).unbind()))
    elif max_norm:
        torch._foreach_mul_(gradients, max_norm / norms.norm().clamp(min=max_norm))
    return norms


def learning_rate_at(step: int, optim: Optim, max_number_of_steps: int) -> float:
    """The learning rate of the update after `step` updates: a function of the step alone, so nothing is saved.

    Over the first warmup_steps it grows linearly from learning_rate / warmup_steps. schedule "constant" stays there,
    "cosine" falls from the end of the warm-up along half a cosine to 0 at max_number_of_steps, "step" is multiplied by
    decay_factor every decay_interval_steps.
    """
    rate = optim.learning_rate * min(1.0, (step + 1) / max(optim.warmup_steps, 1))
    if optim.schedule == "constant":
        return rate
    if optim.schedule == "step":
        return rate * optim.decay_factor ** (step // optim.decay_interval_steps)
    if optim.schedule == "cosine":
        falling_steps = max(max_number_of_steps - optim.warmup_steps, 1)
        progress = min(max((step - optim.warmup_steps) / falling_steps, 0.0), 1.0)
        return rate * 0.5 * (1 + math.cos(math.pi * progress))
    raise ValueError(f"schedule {optim.schedule!r}: expected constant, cosine or step")


class ExponentialMovingAverage:
    """Average of a model's trained weights: average = d * average + (1 - d) * weight after each update.

    After n earlier updates d = min(decay, (1 + n) / (10 + n)), as TensorFlow's average with num_updates: the first
    weights are soon forgotten. Buffers (BatchNorm's averages) are averages already and stay the model's own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._averages = {name: weight.detach().clone() for name, weight in _trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, master_of: Callable[[Tensor], Tensor] = lambda weight: weight) -> None:
        """Take in the weights of `model` after an update. master_of: gives the float32 weight behind a parameter."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = _trained(model)
        torch._foreach_lerp_(
            list(self._averages.values()), [master_of(weights[name]) for name in self._averages], 1 - decay
        )
        self.num_updates += 1

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the averages in the place of the trained weights of `model`."""
        for name, weight in _trained(model).items():
            weight.copy_(self._averages[name])

    def state_dict(self) -> dict[str, Any]:
        """num_updates, and the averages by parameter name (not copied)."""
        return {"num_updates": self.num_updates, "averages": dict(self._averages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state_dict. Raises ValueError if it is of another model."""
        found = {name: tuple(average.shape) for name, average in state["averages"].items()}
        expected = {name: tuple(average.shape) for name, average in self._averages.items()}
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                raise ValueError(
                    f"averaged weight {name}: found shape {found.get(name, 'none')}, expected "
                    f"{expected.get(name, 'none')}: the state is of another model"
                )
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])
        self.num_updates = state["num_updates"]


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
