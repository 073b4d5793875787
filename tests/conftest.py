"""Fixtures shared by the whole suite."""

import os
import signal
from pathlib import Path

import pytest
import tiny
import torch

from aocr_torch import device as devices
from aocr_torch.config import parse_arguments


@pytest.fixture(autouse=True)
def signal_handlers():
    """Puts back what a program that ran inside the test has set."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with the numbers measured from the TensorFlow reference, named by AOCR_REFERENCE."""
    folder = os.environ.get("AOCR_REFERENCE")
    if not folder:
        pytest.skip("AOCR_REFERENCE is not set: point it at the folder with golden/ and fsns/ to compare with them")
    path = Path(folder).resolve()
    if not (path / "golden").is_dir():
        pytest.fail(f"AOCR_REFERENCE={folder} has no golden/ folder: correct the variable or unset it")
    return path


@pytest.fixture(scope="session")
def host_float16() -> None:
    """Skips where this torch computes nothing in float16 on the host."""
    if not devices.can_autocast(torch.device("cpu"), torch.float16):
        pytest.skip(f"torch {torch.__version__} has no float16 on the host")


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """The data set of tests/support/tiny.py: 11 train, 5 validation and 7 test records. Read only."""
    return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_dataset, tmp_path_factory) -> Path:
    """A model that has begun to learn the data set of tests/tiny.py, as train.py leaves it. Read only."""
    from aocr_torch.training.loop import train

    folder = tmp_path_factory.mktemp("trained")
    recipe = {"use_augment_input": False, "optimizer": "adam", "learning_rate": 0.005, "max_number_of_steps": 45}
    arguments = tiny.flags(dataset_dir=tiny_dataset, train_log_dir=folder, log_interval_steps=30, **recipe)
    assert train(parse_arguments(arguments, description="test")[0]) == 0
    return folder / "checkpoint-00000045.pth"
