"""Optimizers, clipping and averages against transcriptions of TensorFlow's documented formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from aocr_torch.config import Optim
from aocr_torch.training.optim import ExponentialMovingAverage, build_optimizer, clip_gradients, learning_rate_at

NAMES = ["momentum", "adam", "adadelta", "adagrad", "rmsprop"]
STEPS = 20


def learning_rate(step: int) -> float:
    return 0.01 if step < 12 else 0.004  # where the rate stands in a formula shows only when it changes


def gradients() -> list[np.ndarray]:
    """20 gradients of 3 x 40 weights, the columns from 0 and 1e-4 up to 10."""
    rng = np.random.default_rng(5)
    scale = np.concatenate([[0.0], np.logspace(-4, 1, 39)])
    return [(rng.normal(size=(3, 40)) * scale).astype(np.float32) for _ in range(STEPS)]


def by_tensorflow(name: str, weights: np.ndarray, momentum: float) -> np.ndarray:
    """The documented updates of tf.train.*Optimizer in float64 with their default arguments."""
    w = weights.astype(np.float64)
    first, second = np.zeros_like(w), np.zeros_like(w)
    if name == "rmsprop":
        second += 1
    if name == "adagrad":
        second += 0.1
    for step, gradient in enumerate(gradients()):
        g, lr = gradient.astype(np.float64), learning_rate(step)
        if name == "momentum":
            first = momentum * first + g
            w -= lr * first
        elif name == "adam":
            first = 0.9 * first + 0.1 * g
            second = 0.999 * second + 0.001 * g**2
            corrected = lr * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
            w -= corrected * first / (np.sqrt(second) + 1e-8)
        elif name == "adadelta":
            second = 0.95 * second + 0.05 * g**2
            update = np.sqrt(first + 1e-8) / np.sqrt(second + 1e-8) * g
            first = 0.95 * first + 0.05 * update**2
            w -= lr * update
        elif name == "adagrad":
            second = second + g**2
            w -= lr * g / np.sqrt(second)
        elif name == "rmsprop":
            second = 0.9 * second + 0.1 * g**2
            first = momentum * first + lr * g / np.sqrt(second + 1e-10)
            w -= first
    return w


def run(optimizer: torch.optim.Optimizer, weights: nn.Parameter, first: int, last: int) -> None:
    for step in range(first, last):
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        weights.grad = torch.from_numpy(gradients()[step])
        optimizer.step()


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_weights_after_20_steps_equal_tensorflows_formulas(name, momentum):
    weights = nn.Parameter(torch.zeros(3, 40))  # so that what is compared is the change
    run(build_optimizer([("weights", weights)], name, 0.01, momentum), weights, 0, STEPS)
    expected = by_tensorflow(name, np.zeros((3, 40)), momentum)
    scale = np.abs(expected).max(0)
    assert (scale[1:] > 1e-6).all()  # every weight with a gradient moved
    assert np.abs(weights.detach().numpy() - expected)[:, 0].max() == 0
    assert (np.abs(weights.detach().numpy() - expected)[:, 1:] / scale[1:]).max() < 1e-6  # float32 rounding


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_goes_on_from_its_saved_state(name, tmp_path):
    whole = nn.Parameter(torch.ones(3, 40))
    run(build_optimizer([("weights", whole)], name, 0.01, 0.9), whole, 0, STEPS)
    resumed = nn.Parameter(torch.ones(3, 40))
    optimizer = build_optimizer([("weights", resumed)], name, 0.01, 0.9)
    run(optimizer, resumed, 0, 7)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    optimizer = build_optimizer([("weights", resumed)], name, 0.5, 0.9)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    run(optimizer, resumed, 7, STEPS)
    assert torch.equal(resumed, whole)


@pytest.mark.parametrize("name", NAMES)
def test_only_weights_with_a_gradient_move(name):
    frozen, idle, trained = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = build_optimizer([("frozen", frozen), ("idle", idle), ("trained", trained)], name, 0.1, 0.9)
    assert len(optimizer.param_groups[0]["params"]) == 2
    optimizer.step()  # no gradient at all yet
    frozen.grad, trained.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    assert torch.equal(frozen, torch.ones(2))
    assert torch.equal(idle, torch.ones(2))
    assert (trained < 1).all()


def test_rmsprop_survives_a_thousand_zero_gradients():
    weights = nn.Parameter(torch.ones(2))
    optimizer = build_optimizer([("weights", weights)], "rmsprop", 0.01, 0.9)
    weights.grad = torch.zeros(2)
    for _ in range(1100):  # the mean square underflows to 0
        optimizer.step()
    assert torch.equal(weights, torch.ones(2))
    weights.grad = torch.tensor([1e-5, -1e-4])
    optimizer.step()  # g / sqrt(g^2 / 10 + epsilon): only here does epsilon show
    expected = [1 - 0.01 / math.sqrt(0.1 + 1), 1 + 0.01 / math.sqrt(0.1 + 0.01)]
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="optimizer 'sgd': expected momentum, adam"):
        build_optimizer(model().named_parameters(), "sgd", 0.1, 0.9)


# Clipping


def with_gradients(*values: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(value))) for value in values]
    for parameter, value in zip(parameters, values):
        parameter.grad = torch.tensor(value)
    return [nn.Parameter(torch.zeros(3)), *parameters]  # the first has no gradient


def test_each_gradient_is_clipped_on_its_own():
    parameters = with_gradients([3.0, 4.0], [0.6, 0.8], [0.0], [2.0])
    norms = clip_gradients(parameters, 2.0)
    assert norms.tolist() == pytest.approx([5.0, 1.0, 0.0, 2.0])
    assert parameters[1].grad.tolist() == pytest.approx([1.2, 1.6])
    assert torch.equal(parameters[2].grad, torch.tensor([0.6, 0.8]))  # untouched, to the bit
    assert parameters[3].grad.tolist() == [0.0]
    assert parameters[4].grad.tolist() == [2.0]
    assert parameters[0].grad is None


def test_gradients_are_clipped_together():
    parameters = with_gradients([3.0], [0.0, 4.0])
    assert clip_gradients(parameters, 2.5, "global").tolist() == [3.0, 4.0]
    assert parameters[1].grad.tolist() == pytest.approx([1.5])
    assert parameters[2].grad.tolist() == pytest.approx([0.0, 2.0])
    unclipped = with_gradients([3.0], [4.0])
    clip_gradients(unclipped, 5.5, "global")
    assert [p.grad.tolist() for p in unclipped[1:]] == [[3.0], [4.0]]


@pytest.mark.parametrize("mode", ["per_variable", "global"])
def test_a_norm_of_0_means_no_clipping(mode):
    parameters = with_gradients([30.0, 40.0])
    assert clip_gradients(parameters, 0.0, mode).tolist() == [50.0]
    assert parameters[1].grad.tolist() == [30.0, 40.0]


def test_a_gradient_that_is_not_finite_shows_in_its_norm():
    norms = clip_gradients(with_gradients([float("nan"), 1.0], [float("inf")], [1.0]), 2.0)
    assert torch.isfinite(norms).tolist() == [False, False, True]


def test_an_unknown_clip_mode_is_named():
    with pytest.raises(ValueError, match="clip mode 'local': expected per_variable or global"):
        clip_gradients(with_gradients([1.0]), 2.0, "local")


def test_clipping_gives_the_update_of_the_reference(reference):
    """Change of two variables in the golden step 1: gradient clipped to norm 2, then momentum."""
    scope = "AttentionOcr_v1/sequence_logit_fn/SQLR"
    golden = np.load(reference / "golden" / "train.npz")
    names = [f"{scope}/softmax_w", f"{scope}/LSTM/attention_decoder/kernel", f"{scope}/LSTM/attention_decoder/AttnV_0"]
    parameters = [nn.Parameter(torch.zeros(golden[f"grads_step1/{name}"].shape)) for name in names]
    for parameter, name in zip(parameters, names):
        parameter.grad = torch.from_numpy(golden[f"grads_step1/{name}"])
    expected = [float(golden[f"grad_norms_step1/{name}"]) for name in names]
    assert max(expected) > 2
    assert clip_gradients(parameters, 2.0).tolist() == pytest.approx(expected, rel=1e-6)
    for parameter, norm in zip(parameters, expected):
        assert parameter.grad.norm().item() == pytest.approx(min(norm, 2.0), rel=1e-6)


# Schedules


def test_the_constant_schedule_and_its_warm_up():
    assert {learning_rate_at(step, Optim(), 100) for step in (0, 50, 1000)} == {0.004}
    optim = Optim(warmup_steps=4)
    rates = [learning_rate_at(step, optim, 100) for step in range(6)]
    assert rates == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.004, 0.004])


def test_the_cosine_schedule_falls_to_zero():
    optim = Optim(schedule="cosine", learning_rate=0.1, warmup_steps=10)
    rates = [learning_rate_at(step, optim, 110) for step in range(130)]
    assert rates[:10] == pytest.approx([0.01 * (step + 1) for step in range(10)])
    assert rates[60] == pytest.approx(0.05)
    assert rates[35] == pytest.approx(0.05 * (1 + math.cos(math.pi / 4)))
    assert all(later < earlier for earlier, later in zip(rates[10:], rates[11:111]))
    assert max(rates[110:]) < 1e-12
    assert learning_rate_at(3, Optim(schedule="cosine", warmup_steps=10), 5) > 0  # all of it is warm-up


def test_the_step_schedule_decays_at_its_intervals():
    optim = Optim(schedule="step", learning_rate=1.0, decay_interval_steps=10, decay_factor=0.5)
    rates = [learning_rate_at(step, optim, 100) for step in (0, 9, 10, 19, 20, 35)]
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25, 0.125]


# Average of the weights


def moved(network: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for tensor in [*network.parameters(), network[1].running_mean]:
            tensor.fill_(value)
    return network


def test_the_average_starts_warm_and_ends_at_its_decay():
    network = moved(model(), 0.0)
    average, expected = ExponentialMovingAverage(network, 0.5), 0.0
    for n, value in enumerate([1.0, 3.0, -2.0, 5.0, 8.0, 8.0, 0.0, 4.0, 4.0, 1.0, 6.0, 2.0]):
        average.update(moved(network, value))
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    target = moved(model(), 7.0)
    average.copy_to(target)
    for parameter in target.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), rtol=1e-6, atol=0)
    assert torch.equal(target[1].running_mean, torch.full((2,), 7.0))  # buffers are the model's own
    assert torch.equal(network[0].weight, torch.full((2, 3), 2.0))  # and training goes on from the weights


def test_frozen_weights_are_not_averaged():
    network = model()
    network[1].weight.requires_grad_(False)
    average = ExponentialMovingAverage(network, 0.9)
    assert sorted(average.state_dict()["averages"]) == ["0.bias", "0.weight", "1.bias"]


def test_the_average_goes_on_from_its_saved_state(tmp_path):
    network = model()
    whole, first = ExponentialMovingAverage(network, 0.99), ExponentialMovingAverage(network, 0.99)
    for value in (1.0, 2.0):
        moved(network, value)
        whole.update(network)
        first.update(network)
    torch.save(first.state_dict(), tmp_path / "ema.pt")
    second = ExponentialMovingAverage(model(), 0.99)
    second.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    moved(network, 3.0)
    whole.update(network)
    second.update(network)
    assert second.num_updates == 3
    for name, value in whole.state_dict()["averages"].items():
        assert torch.equal(second.state_dict()["averages"][name], value)


def test_the_average_of_another_model_is_refused():
    average = ExponentialMovingAverage(model(), 0.9)
    other = ExponentialMovingAverage(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 0.9)
    with pytest.raises(ValueError, match=r"averaged weight 0.bias: found shape \(4,\), expected \(2,\)"):
        average.load_state_dict(other.state_dict())
    other = ExponentialMovingAverage(nn.Sequential(nn.Linear(3, 2)), 0.9)
    with pytest.raises(ValueError, match=r"averaged weight 1.bias: found shape none, expected \(2,\)"):
        average.load_state_dict(other.state_dict())


def test_the_average_is_of_the_masters():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = ExponentialMovingAverage(model, 0.5)
    average.update(model, lambda weight: torch.full_like(weight, 10.0))
    assert average.state_dict()["averages"]["weight"].item() == pytest.approx(9.0)  # d = 1 / 10
