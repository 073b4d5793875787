"""Arrays as tensors."""

import torch


def tensors(arrays):
    """{name: array} -> {name: tensor} of the same memory."""
    return {name: torch.from_numpy(value) for name, value in arrays.items()}
