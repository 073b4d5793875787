"""What a training step takes from the loader."""

import pytest
import torch
from tiny import CHARSET, flags

from aocr_torch.config import parse_arguments
from aocr_torch.data.loader import TrainBatchSampler, make_loader
from aocr_torch.training.evaluate import open_dataset
from aocr_torch.training.state import Training

CPU = torch.device("cpu")


def training(**changes) -> Training:
    return Training(parse_arguments(flags(**changes), description="test")[0], CHARSET, CPU, 11)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"augment_in_workers": False}, False),
        ({"augment_in_workers": True}, True),
        ({"use_augment_input": False, "augment_in_workers": True}, False),
    ],
)
def test_who_augments(changes, expected):
    assert (training(**changes).workers_augmentation() is not None) == expected


def test_gradients_are_kept_from_before_the_update(tiny_dataset, monkeypatch):
    """apex has emptied its own behind it."""
    ours = training(dataset_dir=tiny_dataset)
    dataset = open_dataset(ours.config, "train")
    batch = next(iter(make_loader(dataset, TrainBatchSampler(len(dataset), 4, seed=0), num_workers=0)))
    step = ours.precision.step

    def emptying(optimizer, norms):
        has_updated = step(optimizer, norms)
        for weight in ours.model.parameters():
            weight.grad = None
        return has_updated

    monkeypatch.setattr(ours.precision, "step", emptying)
    ours.train_step([batch], keeps_gradients=True)
    names = [name for name, weight in ours.model.named_parameters() if weight.requires_grad]
    assert list(ours.kept_gradients) == names
    assert all(gradient.abs().sum() > 0 for gradient in ours.kept_gradients.values())


def test_another_echo_keeps_the_epoch(tiny_dataset, tmp_path):
    state = {**training().state_dict(), "position": 22}
    later = training(echo=3, decoded_cache_dir=tmp_path)
    assert "flag echo: 1 -> 3" in later.load_state_dict(state, "x")
    assert later.position == 66


@pytest.mark.parametrize("crop", [{}, {"crop_width": 72, "crop_height": 40}])
def test_a_step_is_the_same_to_the_bit_wherever_it_is_augmented(tiny_dataset, crop):
    losses = []
    for where in ({"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "augment_in_workers": False}):
        ours = training(dataset_dir=tiny_dataset, **crop, **where)
        dataset = open_dataset(ours.config, "train")
        sampler = TrainBatchSampler(len(dataset), 4, seed=0)
        options = {"num_workers": where["num_workers"], "augmentation": ours.workers_augmentation()}
        loader = iter(make_loader(dataset, sampler, **options))
        losses.append([ours.train_step([next(loader)])["total_loss"].item() for _ in range(3)])
    assert losses[0] == losses[1] == losses[2]
