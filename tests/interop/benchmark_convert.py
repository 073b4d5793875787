"""Seconds and peak memory of convert_inception.py on a file of 100 MB: `python tests/interop/benchmark_convert.py`.

The file is drawn: a whole Inception-v3 with its classifier, in the V2 format. `import torch` is measured beside it,
since it takes most of the memory: builds with CUDA need three times as much for it as those without.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from aocr_torch.interop.tf_checkpoint import write_checkpoint
from aocr_torch.interop.tf_names import tf_variables_from_state
from aocr_torch.model.inception import InceptionTower

ROOT = Path(__file__).resolve().parents[2]
MEASURE = """
import resource, subprocess, sys, time
start = time.monotonic()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds, processor = time.monotonic() - start, used.ru_utime + used.ru_stime
print(f"{seconds:.1f} s, {processor:.1f} s of processor, {used.ru_maxrss / 1024:.0f} MB")
sys.exit(status)
"""


def measured(*command: str) -> str:
    """Runs a command and says what it took."""
    whole = [sys.executable, "-c", MEASURE, sys.executable, *command]
    return subprocess.run(whole, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = {f"tower.{name}": value for name, value in InceptionTower("Mixed_7c", 4, True).state_dict().items()}
        variables = tf_variables_from_state(state)
        variables["InceptionV3/Logits/Conv2d_1c_1x1/weights"] = np.zeros((1, 1, 2048, 1001), np.float32)
        files = write_checkpoint(Path(folder) / "inception_v3.ckpt", variables)
        size = sum(path.stat().st_size for path in files) / 1e6
        convert = ["convert_inception.py", f"{folder}/inception_v3.ckpt", "--final_endpoint", "Mixed_7c"]
        print(f"convert {size:.0f} MB: {measured(*convert)}")
        print(f"import torch:   {measured('-c', 'import torch')}")


if __name__ == "__main__":
    main()
