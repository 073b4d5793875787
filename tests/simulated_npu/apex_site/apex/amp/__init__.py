"""amp.initialize, amp.scale_loss and amp.master_params by the documented contract of the Ascend apex; strict.

It raises where the real one raises. Where the real one only warns, or goes wrong silently, it raises too, and after an
overflow it fills the master gradients with nan, which the real one leaves uninitialised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, Callable

import torch
import torch.distributed as dist
import torch_npu
from torch import Tensor, nn

from apex.amp._amp_state import _amp_state


def initialize(
    models,
    optimizers=None,
    enabled=True,
    opt_level="O1",
    cast_model_type=None,
    patch_torch_functions=None,
    keep_batchnorm_fp32=None,
    master_weights=None,
    loss_scale=None,
    cast_model_outputs=None,
    num_losses=1,
    verbosity=1,
    dynamic_init_scale=2.0**16,
    scale_growth_factor=2.0,
    scale_backoff_factor=0.5,
    scale_window=2000,
    min_loss_scale=None,
    max_loss_scale=2.0**24,
    combine_grad=None,
    combine_ddp=None,
    ddp_replica_count=4,
    user_cast_preferred=None,
    check_combined_tensors=None,
):
    """Casts the model and patches the optimizer, both in place, and returns them."""
    if opt_level != "O2" or combine_grad is not True or loss_scale != "dynamic":
        raise NotImplementedError("the stand-in knows opt_level O2 with combine_grad and a dynamic loss scale only")
    if isinstance(models, nn.parallel.DistributedDataParallel):
        raise RuntimeError("Parallel wrappers should only be applied to the model(s) AFTER amp.initialize")
    for name, tensor in [*models.named_parameters(), *models.named_buffers()]:
        if tensor.is_floating_point() and tensor.type() != "torch.npu.FloatTensor":
            raise RuntimeError(f"Found {name} with type {tensor.type()}, expected torch.npu.FloatTensor.")
    if hasattr(optimizers, "_amp_stash"):
        raise RuntimeError("A given optimizer should only be passed through amp.initialize once.")
    _amp_state.verbosity = verbosity
    _halve(models)
    _patch_forward(models)
    optimizers.load_state_dict(optimizers.state_dict())  # what momentum there is becomes float16
    for module in models.modules():
        module._register_state_dict_hook(_float_state)
    _amp_state.loss_scalers = [LossScaler(dynamic_init_scale, min_loss_scale, max_loss_scale, scale_window)]
    Stash(optimizers)
    return models, optimizers


def _halve(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.half()
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.half())


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A namedtuple raises here (its constructor takes no iterable), a dataclass passes uncast, as with the real one."""
    if isinstance(value, Tensor):
        if value.device.type != "npu":
            raise RuntimeError("An input tensor was not npu.")  # the real one warns
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {key: _cast(each, dtype) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(each, dtype) for each in value)
    return value


def _patch_forward(model: nn.Module) -> None:
    forward = model.forward

    def cast_forward(*args, **kwargs):
        return _cast(forward(*_cast(args, torch.float16), **_cast(kwargs, torch.float16)), torch.float32)

    model.forward = cast_forward


def _float_state(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    for name, tensor in state.items():
        if tensor.dtype == torch.float16:
            state[name] = tensor.float()


class LossScaler:
    """apex's own policy: halved at every overflow, doubled after `window` good steps."""

    def __init__(self, init_scale: float, min_scale: float, max_scale: float, window: int) -> None:
        self._loss_scale = min(max_scale, init_scale)
        self._min_scale, self._max_scale, self._window, self._unskipped = min_scale, max_scale, window, 0
        self._has_overflow = False
        self._is_distributed = dist.is_initialized()  # read once, as in the real one

    def check(self, gradients: list[Tensor]) -> None:
        """Looks at the register, over all ranks, or at the gradients, which all-reduce has made the same."""
        if torch_npu.npu.utils.is_support_inf_nan():
            finite = torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all()
            self._has_overflow = not finite.item()
            return
        count = torch.tensor([float(torch_npu.npu.utils.get_npu_overflow_flag())]).to("npu")
        if self._is_distributed:
            dist.all_reduce(count)
        self._has_overflow = count.item() != 0

    def update_scale(self) -> bool:
        """The next scale; returns whether to skip the step."""
        if self._has_overflow:
            self._loss_scale = max(self._min_scale or 0.0, self._loss_scale * 0.5)
            self._unskipped = 0
        else:
            self._unskipped += 1
            if self._unskipped == self._window:
                self._loss_scale = min(self._max_scale, self._loss_scale * 2)
                self._unskipped = 0
        return self._has_overflow


class Stash:
    """What O2 hangs on an optimizer: masters, made at the first zero_grad or scale_loss, and flat gradients."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.model_parameters: list[nn.Parameter] = []
        self.masters: list[Tensor] = []
        self.addresses: list[int] = []  # of the gradients that are parts of the flat buffer
        self.is_cleared = self.must_skip = False
        self.original_step: Callable[[], Any] = optimizer.step
        optimizer._amp_stash = self
        optimizer.zero_grad = MethodType(lambda self: self._amp_stash.zero_grad(), optimizer)
        optimizer.step = MethodType(lambda self: self._amp_stash.step(), optimizer)

    def make_masters(self) -> None:
        if self.masters:
            return
        for group in self.optimizer.param_groups:
            for number, parameter in enumerate(group["params"]):
                master = parameter
                if parameter.dtype == torch.float16:
                    master = parameter.detach().clone().float().requires_grad_()
                    if parameter in self.optimizer.state:
                        self.optimizer.state[master] = self.optimizer.state.pop(parameter)
                group["params"][number] = master
                self.model_parameters.append(parameter)
                self.masters.append(master)
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    def zero_grad(self) -> None:
        self.make_masters()
        self.is_cleared = True
        for parameter in [*self.model_parameters, *self.masters]:
            if parameter.grad is not None:
                parameter.grad.zero_()

    def unscale(self, scaler: LossScaler) -> None:
        """Model gradients -> master gradients; these lie in one buffer, so nobody may put others in their place."""
        scaler.check([parameter.grad for parameter in self.model_parameters])
        if not self.addresses:
            flat = torch.zeros(sum(master.numel() for master in self.masters), device="npu")
            for part, master in zip(flat.split([master.numel() for master in self.masters]), self.masters):
                gradient = part.view_as(master)
                master.grad = gradient if master.grad is None else gradient.copy_(master.grad)
                self.addresses.append(gradient.data_ptr())
        for parameter, master in zip(self.model_parameters, self.masters):
            if scaler._has_overflow:
                master.grad.fill_(float("nan"))
            else:
                if parameter is not master:
                    master.grad.copy_(parameter.grad)
                master.grad.mul_(1 / scaler._loss_scale)

    def step(self) -> None:
        if [master.grad.data_ptr() for master in self.masters] != self.addresses:
            raise RuntimeError("a master gradient was replaced: with combine_grad it may only be changed in place")
        if not self.must_skip:
            self.original_step()
        elif _amp_state.verbosity > 0:
            print(f"Gradient overflow.  Skipping step, reducing loss scale to {_amp_state.loss_scalers[0]._loss_scale}")
        with torch.no_grad():
            for parameter, master in zip(self.model_parameters, self.masters):
                if parameter is not master:
                    parameter.copy_(master)
                    master.grad.zero_()


@contextmanager
def scale_loss(loss, optimizers, loss_id=0, model=None, delay_unscale=False, delay_overflow_check=False) -> Iterator:
    """Yields the scaled loss; on leaving, unscales into the master gradients and decides whether to skip."""
    stash, scaler = optimizers._amp_stash, _amp_state.loss_scalers[loss_id]
    stash.make_masters()
    if not stash.is_cleared:
        raise RuntimeError("scale_loss without zero_grad since the last one")  # the real one accumulates
    if not torch_npu.npu.utils.is_support_inf_nan():
        torch_npu.npu.utils.clear_npu_overflow_flag()
    yield loss.float() * scaler._loss_scale
    stash.is_cleared = False
    stash.unscale(scaler)
    stash.must_skip = scaler.update_scale()


def master_params(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The parameters that the optimizer changes."""
    for group in optimizer.param_groups:
        yield from group["params"]
