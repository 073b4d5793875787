"""For tests of what torch.compile makes."""

import pytest
import torch

from aocr_torch.model.fused import CompileError, compiled

COMPILED = pytest.param(True, marks=pytest.mark.slow)


def require_compiler() -> None:
    """Skips the test, with the reason, where torch.compile cannot work."""
    try:
        compiled(torch.relu)(torch.zeros(1))
    except CompileError as error:
        pytest.skip(str(error))
