"""Devices by name, and what is said where one is not there."""

import pytest
import torch

from aocr_torch import device as devices


def test_cpu_and_auto():
    assert devices.resolve("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert devices.resolve("auto") == torch.device("cpu")
    assert devices.process_group_backend(torch.device("cpu")) == "gloo"
    assert devices.is_host(torch.device("cpu"))
    assert not devices.uses_pinned_memory(torch.device("cpu"))
    devices.synchronize(torch.device("cpu"))


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:x", "npu:", ""])
def test_names_that_mean_nothing(name):
    with pytest.raises(devices.DeviceError):
        devices.resolve(name)


def test_random_state_round_trip():
    device = torch.device("cpu")
    devices.seed_everything(3)
    state = devices.rng_state(device)
    first = torch.rand(3)
    devices.set_rng_state(state, device)
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("name", ["cuda:0", "npu:0"])
def test_an_index_for_several_processes(name, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(devices.DeviceError, match=f"use --device {name[:-2]} with torchrun"):
        devices.resolve(name)
