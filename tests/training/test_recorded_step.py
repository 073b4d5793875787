"""A recorded step beside the plain one, with a recorder that runs the work anew into the recorded memory."""

import pytest
import torch
from tiny import CHARSET, flags

from aocr_torch import device as devices
from aocr_torch.config import parse_arguments
from aocr_torch.data.loader import TrainBatchSampler, make_loader
from aocr_torch.training.evaluate import open_dataset
from aocr_torch.training.state import Training

CPU = torch.device("cpu")


class Recorder:
    """What devices.record does, for tests: counts launches and keeps to the memory of the recording."""

    def __init__(self) -> None:
        self.launches = 0
        self.parameters: list[torch.nn.Parameter] = []

    def __call__(self, device, work):
        for _ in range(3):
            work()
        result = work()
        gradients = [parameter.grad for parameter in self.parameters]

        def launch() -> None:
            self.launches += 1
            for ours, values in zip(result, work()):
                ours.copy_(values)
            for ours, parameter in zip(gradients, self.parameters):
                ours.copy_(parameter.grad)
                parameter.grad = None  # a device runs no Python when it launches

        return launch, result


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(devices, "can_record", lambda device: True)
    monkeypatch.setattr(devices, "record", recorder)
    return recorder


def batches(dataset_dir, count: int, batch_size: int = 4):
    config, _ = parse_arguments(flags(dataset_dir=dataset_dir), description="test")
    dataset = open_dataset(config, "train")
    loader = iter(make_loader(dataset, TrainBatchSampler(len(dataset), batch_size, seed=0)))
    return [next(loader) for _ in range(count)]


def trained(recorder, groups, **changes) -> tuple[Training, list[dict]]:
    training = Training(parse_arguments(flags(**changes), description="test")[0], CHARSET, CPU, 11)
    recorder.parameters = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    training.distribute()
    losses = [{name: value.clone() for name, value in training.train_step(group).items()} for group in groups]
    return training, losses


@pytest.mark.parametrize("changes", [{}, {"accumulate_steps": 2, "use_augment_input": False}, {"amp": True}])
def test_same_to_the_bit_as_the_plain_step(tiny_dataset, recorder, changes):
    size = changes.get("accumulate_steps", 1)
    data = batches(tiny_dataset, 4 * size)
    groups = [data[start : start + size] for start in range(0, len(data), size)]
    recorded, losses = trained(recorder, groups, **changes)
    assert recorder.launches == 4
    plain, expected = trained(recorder, groups, record_step=False, **changes)
    assert recorder.launches == 4
    assert losses == expected
    for name, values in plain.model.state_dict().items():
        assert torch.equal(recorded.model.state_dict()[name], values), name


def test_the_loss_scale_of_each_step_is_used(tiny_dataset, recorder):
    groups = [[batch] for batch in batches(tiny_dataset, 3)]
    options = {"amp": True, "amp_dtype": "float16"}
    if not devices.can_autocast(CPU, torch.float16):
        pytest.skip(f"torch {torch.__version__} has no float16 on the host")
    recorded, losses = trained(recorder, groups, **options)
    plain, expected = trained(recorder, groups, record_step=False, **options)
    assert losses == expected
    assert vars(recorded.precision.loss_scale) == vars(plain.precision.loss_scale)
    assert recorded.precision.loss_scale.skipped > 0


def test_a_batch_of_another_size_is_not_launched(tiny_dataset, recorder):
    """As where bad records were left out of it."""
    (small,), (whole,) = batches(tiny_dataset, 1, batch_size=3), batches(tiny_dataset, 1)
    training, _ = trained(recorder, [[small], [whole], [small], [whole]])
    assert recorder.launches == 2
    assert training.step == 4


def test_nothing_is_recorded_where_the_device_cannot(tiny_dataset, monkeypatch):
    monkeypatch.setattr(devices, "record", None)
    training, _ = trained(Recorder(), [[batch] for batch in batches(tiny_dataset, 1)])
    assert training.step == 1
