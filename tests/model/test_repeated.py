"""Linear layers whose gradients are taken once, beside those of autograd."""

import pytest
import torch
import torch.nn.functional as F

from aocr_torch.model.repeated import RepeatedLinear, StepLinear, gradients_taken_once

B, T, N = 3, 4, 5


def inputs(requires_grad: bool = True) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(N, N), (N,), (B, N)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad) for shape in shapes]


def steps(weight, bias, x):
    layer = RepeatedLinear(weight, bias, x.dtype)
    outputs = [layer(x)]
    for _ in range(T - 1):
        outputs.append(layer(outputs[-1].tanh()))
    return tuple(outputs)


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(steps, inputs())


def test_a_loss_on_one_step_and_backward_again():
    mine = inputs()
    loss = steps(*mine)[1].sum()
    weight, bias, x = mine
    plain = F.linear(F.linear(x, weight, bias).tanh(), weight, bias).sum()
    expected = torch.autograd.grad(plain, mine)
    for options in ({"retain_graph": True}, {}):
        torch.testing.assert_close(torch.autograd.grad(loss, mine, **options), expected)


def test_what_another_backward_pass_left_is_forgotten():
    """One that wanted the gradient of x alone leaves those of the weights ungathered."""
    mine = inputs()
    loss = steps(*mine)[-1].square().sum()
    expected = torch.autograd.grad(steps(*mine)[-1].square().sum(), mine)
    torch.autograd.grad(loss, mine[2], retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, mine), expected)


def test_a_weight_that_changed_before_the_backward_pass_is_refused():
    mine = inputs()
    loss = steps(*mine)[-1].sum()
    with torch.no_grad():
        mine[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_frozen_weights_take_none():
    weight, bias, x = inputs(requires_grad=False)
    x.requires_grad_()
    steps(weight, bias, x)[-1].sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def test_differentiating_twice_is_refused():
    mine = inputs()
    (gradient,) = torch.autograd.grad(steps(*mine)[-1].square().sum(), mine[2], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_lowered_weights_lose_less_than_autocasts():
    """The sum over steps is one product, rounded once."""
    torch.manual_seed(0)
    layer, values = StepLinear(N, N), torch.randn(100, B, N)

    def gradient() -> torch.Tensor:
        layer.zero_grad()
        torch.stack([layer(x) for x in values]).float().square().sum().backward()
        return layer.weight.grad

    exact = gradient().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = gradient().clone()
        with gradients_taken_once([layer], torch.bfloat16):
            ours = gradient()
    assert (ours - exact).norm() < (lowered - exact).norm()


def test_layers_are_plain_again_after_an_error():
    layer = StepLinear(N, N)
    with pytest.raises(KeyError), gradients_taken_once([layer], torch.float32):
        raise KeyError
    assert layer.repeated is None
