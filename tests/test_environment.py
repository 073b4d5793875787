"""What importing the package sets for the libraries that come after it."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "30000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_wait_shortly_unless_told_otherwise(given, expected):
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import sys, aocr_torch, os; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], env={**own, **given}, capture_output=True, text=True)
    assert result.stdout.split() == [expected, "False"]
