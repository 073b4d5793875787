"""Files for torch.load that torch did not write."""

import zipfile

import numpy as np
import pytest
import torch
from tensors import tensors

from aocr_torch.interop import pth_file


@pytest.fixture
def arrays():
    rng = np.random.default_rng(1)
    return {
        "kernel": rng.standard_normal((8, 3, 5, 7), np.float32),
        "transposed": rng.standard_normal((5, 4), np.float32).T,
        "vector": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "counts": rng.integers(-(2**62), 2**62, 9),
        "scalar": np.array(-5, np.int64),
    }


@pytest.fixture
def state(arrays):
    charset = {"lines": [[0, " "], [1, "é"], [2, "\U0001f600"]]}
    config = {"is_on": True, "is_off": False, "units": 256, "negative": -3, "large": 2**40, "name": "Mixed_5d"}
    return {"format": "aocr_torch/1", "model": arrays, "none": {}, "config": config, "charset": charset, "empty": []}


@pytest.mark.parametrize("mmap", [False, True])
def test_loads_as_what_torch_saves(tmp_path, state, arrays, mmap):
    pth_file.save(tmp_path / "ours" / "x.pth", state)
    with_tensors = {**state, "model": tensors(arrays)}
    torch.save(with_tensors, tmp_path / "theirs.pth")
    ours = torch.load(str(tmp_path / "ours" / "x.pth"), weights_only=True, mmap=mmap)
    theirs = torch.load(str(tmp_path / "theirs.pth"), weights_only=True, mmap=mmap)
    assert {**ours, "model": 0} == {**theirs, "model": 0} == {**state, "model": 0}
    assert list(ours["model"]) == list(arrays)
    for name, tensor in ours["model"].items():
        assert (tensor.dtype, tensor.shape) == (theirs["model"][name].dtype, theirs["model"][name].shape)
        assert tensor.is_contiguous()
        assert tensor.numpy().tobytes() == arrays[name].tobytes()
        assert not tensor.requires_grad


def test_tensors_are_aligned_and_nothing_is_left_beside(tmp_path, state):
    pth_file.save(tmp_path / "x.pth", state)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]
    data = (tmp_path / "x.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            name_and_extra = data[entry.header_offset + 26 : entry.header_offset + 30]
            begin = entry.header_offset + 30 + sum(np.frombuffer(name_and_extra, "<u2").tolist())
            assert begin % 64 == 0, entry.filename


def test_what_a_checkpoint_does_not_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="found complex"):
        pth_file.save(tmp_path / "x.pth", {"model": {}, "step": 1j})
    with pytest.raises(TypeError, match="array of float64"):
        pth_file.save(tmp_path / "x.pth", {"model": {"x": np.zeros(2)}})
    assert list(tmp_path.iterdir()) == []
