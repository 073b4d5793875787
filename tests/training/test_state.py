"""What a training step takes from the loader."""

import pytest
import torch
from tiny import CHARSET, flags

from aocr_torch.config import parse_arguments
from aocr_torch.data.loader import TrainBatchSampler, make_loader
from aocr_torch.files import CHECKPOINT_FORMAT, CheckpointError
from aocr_torch.model.batch_norm import ViewBatchNorm2d
from aocr_torch.training import checkpoint
from aocr_torch.training.evaluate import open_dataset
from aocr_torch.training.state import NonFiniteError, Training

CPU = torch.device("cpu")


def training(num_records: int = 11, **changes) -> Training:
    return Training(parse_arguments(flags(**changes), description="test")[0], CHARSET, CPU, num_records)


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


def converted(ours: Training, step: int) -> dict:
    """As convert_inception.py writes a whole model: no count of BatchNorm's updates, momentum by name."""
    weights = {n: torch.zeros_like(v) if "num_batches" in n else v for n, v in ours.model.state_dict().items()}
    momentum = {n: torch.ones_like(p) for n, p in ours.model.named_parameters() if p.requires_grad}
    return {"format": CHECKPOINT_FORMAT, "model": weights, "step": step, "momentum": momentum}


def test_records_that_were_skipped_move_the_place_in_the_data(tiny_dataset):
    ours = training(dataset_dir=tiny_dataset)
    batch = open_dataset(ours.config, "train").batch(range(3))
    ours.train_step([{**batch, "skipped": ["train-00000:3 is bad"]}])
    assert ours.position == 4


def test_a_momentum_given_on_a_resume_wins():
    ours = training(momentum=0.5)
    assert "flag momentum: 0.9 -> 0.5" in ours.load_state_dict(training().state_dict(), "x")
    assert ours.optimizer.param_groups[0]["momentum"] == 0.5


def test_a_resume_says_that_the_number_of_records_is_another():
    (line,) = training(12).load_state_dict(training(11).state_dict(), "x")
    assert line == "number of records: 11 -> 12, so their order is another"


@pytest.mark.parametrize(("before", "now"), [(0.9, 0.0), (0.0, 0.9)])
def test_an_average_of_the_weights_is_neither_dropped_nor_begun_on_a_resume(before, now):
    with pytest.raises(CheckpointError, match=f"ema_decay {before}, found momentum and {now}"):
        training(ema_decay=now).load_state_dict(training(ema_decay=before).state_dict(), "x")


def test_a_converted_model_goes_on_at_its_place(tmp_path):
    checkpoint.save(tmp_path / "x.pth", converted(training(), step=3))
    ours = training(checkpoint=tmp_path / "x.pth", restore_optimizer=True, accumulate_steps=2)
    ours.start_from_weights()
    assert (ours.step, ours.position) == (3, 3 * 2 * 4)
    norms = [m for m in ours.model.modules() if isinstance(m, ViewBatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {3 * 2}  # views


def test_a_converted_model_that_lacks_one_momentum_is_refused(tmp_path):
    state = converted(training(), step=3)
    state["momentum"].popitem()
    checkpoint.save(tmp_path / "x.pth", state)
    with pytest.raises(CheckpointError, match="leave --restore_optimizer away"):
        training(checkpoint=tmp_path / "x.pth", restore_optimizer=True).start_from_weights()


def test_a_new_training_from_weights_counts_its_own_updates(tmp_path):
    first = training()
    for module in first.model.modules():
        if isinstance(module, ViewBatchNorm2d):
            module.num_batches_tracked.fill_(70)
    checkpoint.save(tmp_path / "x.pth", first.state_dict())
    ours = training(checkpoint=tmp_path / "x.pth")
    ours.start_from_weights()
    norms = [m for m in ours.model.modules() if isinstance(m, ViewBatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {0}


def test_a_gradient_that_is_not_finite_stops_the_step_though_the_loss_is(tiny_dataset):
    ours = training(dataset_dir=tiny_dataset)
    ours.model.decoder.classifier.bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="loss or gradient of step 1"):
        ours.train_step([open_dataset(ours.config, "train").batch(range(4))])
    assert ours.step == 0


def test_the_learning_rate_is_that_of_the_updates_before(tiny_dataset):
    ours = training(dataset_dir=tiny_dataset, warmup_steps=4, learning_rate=0.4)
    batch = open_dataset(ours.config, "train").batch(range(4))
    rates = []
    for _ in range(3):
        ours.train_step([batch])
        rates.append(ours.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.2, 0.3])
