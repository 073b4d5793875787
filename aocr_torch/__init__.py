"""Attention-OCR in PyTorch for Ascend NPUs, CUDA GPUs and CPUs, equal number by number to the TensorFlow reference."""

import os as _os

__version__ = "0.1.0"

# How long a thread of GNU's OpenMP waits for work before it sleeps; it reads this when torch is loaded. By default it
# is longer than a time slice: on a host that others use too, a training step took 4 to 50 times as long, not twice.
if "OMP_WAIT_POLICY" not in _os.environ:
    _os.environ.setdefault("GOMP_SPINCOUNT", "30000")
