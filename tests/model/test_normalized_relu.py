"""BatchNorm with ReLU and the max-pool behind it as single operations, uncompiled; compiled in slow tests."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from compiler import COMPILED, require_compiler

from aocr_torch.model import normalized_relu
from aocr_torch.model.batch_norm import ViewBatchNorm2d
from aocr_torch.model.max_pool import MaxPool
from aocr_torch.model.normalized_relu import NormalizedReLU, NormalizedReLUMaxPool

EPSILON = 1e-3


@pytest.fixture
def kernels(is_compiled, monkeypatch):
    """The functions as they are, or compiled."""
    if is_compiled:
        require_compiler()
    else:
        monkeypatch.setattr(normalized_relu, "compiled", lambda function: function)


def apply(function, x, d_out_like, views):
    """The output, the statistics and the gradients of x and bias. d_out_like: makes the output's gradient."""
    torch.manual_seed(2)
    weight = torch.rand(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32)) + 0.5
    bias = torch.randn_like(weight, requires_grad=True)
    x = x.clone(memory_format=torch.channels_last).requires_grad_()
    out, mean, variance = function(x, weight, bias, EPSILON, views)
    out.backward(d_out_like(out))
    return out.detach(), mean, variance, x.grad, bias.grad


def pooled_afterwards(*arguments):
    out, *statistics = NormalizedReLU.apply(*arguments)
    return (F.max_pool2d(out, 3, stride=2), *statistics)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("is_compiled", [False, COMPILED])
@pytest.mark.parametrize("size", [(9, 12), (3, 4)])
@pytest.mark.parametrize("most", [1, 1000, 1500, 1 << 20])  # numbers of a piece: at (9, 12) 1, 2, 3 or all 4 images
def test_the_pool_may_come_before_batch_norm(size, most, monkeypatch):
    monkeypatch.setattr(normalized_relu, "PIECE_ELEMENTS", most)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    torch.manual_seed(0)
    x = torch.randn(2 * 4, 4, *size, dtype=torch.float64) * 3 + 5  # two views of four images
    expected = apply(pooled_afterwards, x, lambda out: torch.ones_like(out).cumsum(0), 2)
    found = apply(NormalizedReLUMaxPool.apply, x, lambda out: torch.ones_like(out).cumsum(0), 2)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("is_compiled", [False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooled_first_or_last_is_the_same_to_the_bit(dtype):
    """Rounding does not fall either."""
    x = torch.randn(4, 8, 21, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    for ours, theirs in zip(
        apply(NormalizedReLUMaxPool.apply, x, torch.ones_like, 2)[:3],
        apply(pooled_afterwards, x, torch.ones_like, 2)[:3],
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("is_compiled", [False])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_weight_that_turns_the_order_round_is_pooled_last(sign):
    """No BatchNorm of ours has one, but weights of others can be loaded."""
    norm = ViewBatchNorm2d(3, 2, True, decay=0.9, cumulative_start=False).train()
    norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5 * sign]))
    x = torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    by_example = x.unflatten(0, (2, 2)).transpose(0, 1).flatten(0, 1)  # as `forward` takes them
    expected = F.max_pool2d(torch.relu(norm(by_example)), 3, stride=2)
    norm.is_fused = True
    pools = []
    pool = MaxPool(is_fast=True)
    pool.register_forward_hook(lambda *_: pools.append(1))
    found = norm.with_relu(x, pool).unflatten(0, (2, 2)).transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(found, expected)
    assert len(pools) == (sign < 0)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("is_compiled", [False, COMPILED])
@pytest.mark.parametrize("rows", [40_000, 39_999])  # whole blocks or not
def test_batch_norm_of_many_pixels_loses_nothing(rows):
    torch.manual_seed(0)
    x = torch.randn(2, rows, 5) + 30
    weight, bias, d_out = torch.rand(5) + 0.5, torch.randn(5), torch.randn(2, rows, 5)
    wide, wide_bias = x.double().requires_grad_(), bias.double().requires_grad_()
    exact_variance, exact_mean = torch.var_mean(wide, 1, correction=0, keepdim=True)
    before_relu = (wide - exact_mean) / (exact_variance + EPSILON).sqrt() * weight + wide_bias
    d_out *= before_relu.detach().abs() > 1e-3  # nearer, ReLU may fall to either side
    torch.relu(before_relu).backward(d_out.double())
    take = normalized_relu.compiled
    out, mean, variance = take(normalized_relu.normalize_relu)(x, weight, bias, EPSILON)
    d_x, d_bias = take(normalized_relu.normalize_relu_backward)(d_out, x, weight, bias, mean, variance, EPSILON)
    near = partial(torch.testing.assert_close, check_dtype=False)
    near(mean, exact_mean[:, 0].detach(), rtol=1e-5, atol=0)
    near(variance, exact_variance[:, 0].detach(), rtol=1e-5, atol=0)
    near(out, torch.relu(before_relu).detach(), rtol=1e-4, atol=1e-4)
    near(d_x, wide.grad, rtol=1e-4, atol=1e-4)
    near(d_bias, wide_bias.grad, rtol=1e-4, atol=1e-3)
