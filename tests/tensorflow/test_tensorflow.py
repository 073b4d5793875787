"""TensorFlow's files through our reader, and ours through TensorFlow's; README.md says how to run this."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from aocr_torch.config import Model
from aocr_torch.files import CheckpointError
from aocr_torch.interop.tf_checkpoint import open_checkpoint
from aocr_torch.model.inception import InceptionTower

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow]
HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def tensorflow():
    """Runs a command of in_tensorflow.py in TensorFlow's environment."""
    python = os.environ.get("AOCR_TENSORFLOW_PYTHON")
    if not python:
        pytest.skip("AOCR_TENSORFLOW_PYTHON is not set: point it at the python of an environment with TensorFlow")

    def run(*arguments):
        command = [python, HERE / "in_tensorflow.py", *arguments]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def inception(tensorflow, tmp_path_factory):
    """Folder with slim's full-size Inception-v3 in four files, and its features."""
    folder = tmp_path_factory.mktemp("inception")
    print(tensorflow("inception", folder))
    return folder


class Measured(NamedTuple):
    """What a command said and took: seconds by the clock, seconds of processor, peak memory in MB."""

    output: str
    seconds: float
    processor_seconds: float
    megabytes: float

    def __str__(self):
        return f"{self.seconds:.1f} s ({self.processor_seconds:.1f} s of processor), {self.megabytes:.0f} MB"


def measured(*command):
    """Runs a command from the repository's root."""
    code = (
        "import resource, subprocess, sys, time; start = time.monotonic(); "
        "status = subprocess.run(sys.argv[1:]).returncode; "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print('MEASURED', time.monotonic() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024); "
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = re.search(r"MEASURED (\S+) (\S+) (\S+)", done.stdout).groups()
    return Measured(done.stdout, *map(float, figures))


def run_script(name, *arguments):
    return measured(sys.executable, name, *arguments)


def assert_same_arrays(values, expected):
    assert sorted(values) == sorted(expected)
    for name, value in values.items():
        assert value.dtype == expected[name].dtype
        assert value.shape == expected[name].shape
        assert value.tobytes() == expected[name].tobytes()


def read_all(path):
    with open_checkpoint(path) as reader:
        return {name: reader.tensor(name) for name in reader.variables}


@pytest.mark.parametrize(
    "name",
    ["v1.ckpt", "v2", "v2_sharded", "v1_sharded", "types_v1", "types_v2", "ckpt_v1/inception_v3.ckpt", "ckpt_v2"],
)
def test_every_tensor_is_what_tensorflow_reads(tensorflow, inception, name, tmp_path, request):
    path = inception / name
    if name.startswith("types"):
        path = tmp_path / name
        tensorflow("types", tmp_path)
    elif name.startswith("ckpt"):
        path = request.getfixturevalue("reference") / "golden" / name
        path = path / "model.ckpt-123" if path.is_dir() else path
    values = read_all(path)
    if name == "types_v2":
        bfloat16 = values.pop("bfloat16")
        assert bfloat16.tobytes() == np.load(tmp_path / "bfloat16.npz")["bfloat16"].tobytes()
    if name.startswith("types"):  # TensorFlow's bfloat16 is no dtype of numpy's files
        expected = np.load(tmp_path / "types.npz")
    else:
        # TensorFlow's reader does not put the slices of V1 together; the values are those of the other files.
        tensorflow("dump", inception / "v1.ckpt" if name == "v1_sharded" else path, tmp_path / "dump.npz")
        expected = np.load(tmp_path / "dump.npz")
    assert_same_arrays(values, {key: expected[key] for key in expected.files})


def features(pth, final_endpoint, images):
    """Mixed_5d and the final endpoint, NHWC, from a converted file."""
    tower = InceptionTower(final_endpoint, num_views=1, per_view=True).eval()
    state = torch.load(pth, weights_only=True)["model"]
    tower.load_state_dict({name[len("tower.") :]: value for name, value in state.items()})
    with torch.no_grad():
        maps = tower.endpoints(torch.from_numpy(images).permute(0, 3, 1, 2))
    return {name: maps[name].permute(0, 2, 3, 1).numpy() for name in ("Mixed_5d", final_endpoint)}


def assert_same_features(found, expected, what):
    for name, value in found.items():
        error = np.linalg.norm(value - expected[name]) / np.linalg.norm(expected[name])
        print(f"{what}: {name} {value.shape} relative L2 difference {error:.1e}")
        assert error < 1e-5


@pytest.mark.parametrize("name", ["v1.ckpt", "v2", "v2_sharded", "v1_sharded"])
def test_converted_inception_gives_the_same_features(inception, name, tmp_path):
    images = np.random.default_rng(1).uniform(-1, 1, (2, 299, 299, 3)).astype(np.float32)  # as in_tensorflow.py
    for final_endpoint in ("Mixed_7c", "Mixed_5d"):
        out = tmp_path / f"{final_endpoint}.pth"
        done = run_script("convert_inception.py", inception / name, "--final_endpoint", final_endpoint, "--output", out)
        print(f"{name} to {final_endpoint}: {done}")
        assert "MISSING" not in done.output
        assert done.processor_seconds < 5
        assert done.megabytes < 500
        found = features(out, final_endpoint, images)
        assert_same_features(found, np.load(inception / "features.npz"), name)


def test_exported_tower_in_slim(tensorflow, inception, tmp_path):
    run_script("convert_inception.py", inception / "v2", "--final_endpoint", "Mixed_7c", "--output", tmp_path / "i.pth")
    run_script("tools/export_tf.py", tmp_path / "i.pth")
    tensorflow("features", tmp_path / "i.ckpt", tmp_path / "features.npz")
    found, expected = np.load(tmp_path / "features.npz"), np.load(inception / "features.npz")
    for name in expected.files:
        assert found[name].tobytes() == expected[name].tobytes()


def test_a_whole_model_comes_and_goes(tensorflow, reference, tmp_path):
    """The reference's training checkpoint, converted, exported, and read by both of TensorFlow's ways."""
    original = reference / "golden" / "ckpt_v2" / "model.ckpt-123"
    run_script("convert_inception.py", original, "--output", tmp_path / "whole.pth")
    state = torch.load(tmp_path / "whole.pth", weights_only=True)
    assert Model(**state["config"]) == Model()
    run_script("tools/export_tf.py", tmp_path / "whole.pth")
    expected = read_all(original)
    for way in ("dump", "restore"):
        tensorflow(way, tmp_path / "model.ckpt-123", tmp_path / f"{way}.npz")
        found = np.load(tmp_path / f"{way}.npz")
        assert_same_arrays({name: found[name] for name in found.files}, expected)


def test_files_that_are_something_else(tensorflow, tmp_path):
    tensorflow("others", tmp_path)
    for path, message in [
        (tmp_path / "object_based", "TF2 object-based checkpoint"),
        (tmp_path / "saved_model", "SavedModel"),
        (tmp_path / "saved_model" / "variables" / "variables", "TF2 object-based checkpoint"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)
