"""Seconds and peak memory of convert_inception.py on a file of 100 MB: `python tests/interop/benchmark_convert.py`.

The file is drawn: a whole Inception-v3 with its classifier, in the V2 format, converted up to Mixed_7c.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from aocr_torch.interop.tf_checkpoint import write_checkpoint
from aocr_torch.interop.tf_layers import WHOLE_TOWER

ROOT = Path(__file__).resolve().parents[2]
# A process of its own starts the command: what this one used before would count as the command's memory.
MEASURE = """
import resource, subprocess, sys, time
start = time.monotonic()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds, processor = time.monotonic() - start, used.ru_utime + used.ru_stime
print(f"{seconds:.1f} s, {processor:.1f} s of processor, {used.ru_maxrss / 1024:.0f} MB")
sys.exit(status)
"""


def main() -> None:
    rng = np.random.default_rng(0)
    shapes = {name: row.in_tf(row.shape) for name, row in WHOLE_TOWER.items() if "gamma" not in name}
    shapes["InceptionV3/Logits/Conv2d_1c_1x1/weights"] = (1, 1, 2048, 1001)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "inception_v3.ckpt"
        variables = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        size = sum(path.stat().st_size for path in write_checkpoint(checkpoint, variables)) / 1e6
        command = [sys.executable, "convert_inception.py", checkpoint, "--final_endpoint", "Mixed_7c"]
        measure = [sys.executable, "-c", MEASURE, *command]
        done = subprocess.run(measure, check=True, capture_output=True, text=True, cwd=ROOT)
        print(f"convert {size:.0f} MB: {done.stdout.strip()}")


if __name__ == "__main__":
    main()
