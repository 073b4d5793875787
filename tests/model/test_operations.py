"""How many operations a training step sends to an accelerator: where launching them is the limit, that is its time."""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aocr_torch.config import Config
from aocr_torch.model.loss import sequence_loss
from aocr_torch.model.ocr import AttentionOCR

B, T, K = 8, 37, 134
WITHOUT_KERNEL = (
    *("view", "_unsafe_view", "t", "transpose", "permute", "slice", "select", "expand", "as_strided", "unsqueeze"),
    *("squeeze", "detach", "alias", "split", "split_with_sizes", "unbind", "empty", "empty_like", "new_empty"),
)


class Counter(TorchDispatchMode):
    """Counts the operations that launch something."""

    count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.count += operation.__name__.split(".")[0] not in WITHOUT_KERNEL
        return operation(*arguments, **(options or {}))


def operations(use_fast_path: bool) -> int:
    """Of the reference's network, forwards and backwards, on a device that is not the host and computes nothing."""
    config = Config().replace(use_fast_path=use_fast_path)
    network = AttentionOCR(config.data, config.model, K).to("meta").train()
    views = torch.rand(B, config.data.num_views, 3, *config.data.view_size, device="meta")
    labels = torch.zeros(B, T, dtype=torch.int64, device="meta")
    with Counter() as counter:
        sequence_loss(network(views, labels)["logits"], labels, K - 1).backward()
    return counter.count


def test_the_fast_path_sends_fewer(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())  # knows no such device
    plain, fast = operations(use_fast_path=False), operations(use_fast_path=True)
    print(f"plain {plain}, fast {fast}")
    assert fast < 0.9 * plain
