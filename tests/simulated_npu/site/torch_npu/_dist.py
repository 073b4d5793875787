"""The process-group backend 'hccl' of the simulated device: gloo on CPU tensors that share the memory."""

import torch
import torch.distributed as dist

from torch_npu import _C

FORWARDED = (
    "allreduce",
    "broadcast",
    "allgather",
    "_allgather_base",
    "allgather_into_tensor_coalesced",
    "allreduce_coalesced",
    "reduce",
    "gather",
    "scatter",
)


def _on_host(value):
    if isinstance(value, torch.Tensor):
        if value.device.type != "npu":
            raise RuntimeError(f"HCCL only supports npu tensors, got one on {value.device}")
        return _C.cpu_alias(value)
    return [_on_host(each) for each in value] if isinstance(value, (list, tuple)) else value


class ProcessGroup(dist.ProcessGroup):
    """hccl, which takes npu tensors only."""

    def __init__(self, store, rank, size, timeout):
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self):
        return "hccl"

    @property
    def _device_types(self):  # where objects are gathered
        return [torch.device("npu")]

    @property
    def supports_splitting(self):
        return False

    def barrier(self, opts=None):
        return self._gloo.barrier() if opts is None else self._gloo.barrier(opts)


def _forward(name, target):
    def call(self, *arguments, **options):
        return getattr(self._gloo, target)(*[_on_host(argument) for argument in arguments], **options)

    setattr(ProcessGroup, name, call)


for _name in FORWARDED:
    _forward(_name, _name)
_forward("all_gather_single", "_allgather_base")  # the newer name

if dist.is_available() and "hccl" not in dist.Backend.backend_list:
    dist.Backend.register_backend("hccl", ProcessGroup, devices=["npu"])
