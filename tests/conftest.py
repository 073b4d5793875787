"""Fixtures shared by the whole suite."""

import os
from pathlib import Path

import pytest
import tiny


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
def tiny_dataset(tmp_path_factory) -> Path:
    """The data set of tests/support/tiny.py: 11 train, 5 validation and 7 test records. Read only."""
    return tiny.write(tmp_path_factory.mktemp("tiny"))
