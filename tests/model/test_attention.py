"""The attention that saves nothing per step, beside the plain one."""

import copy

import pytest
import torch

from aocr_torch import device as devices
from aocr_torch.model import attention, fused
from aocr_torch.model.attention import Attention
from aocr_torch.model.decoder import AttentionDecoder

B, L, C, K, T, U = 3, 12, 5, 7, 4, 6


def pair(cell: str = "lstm", **options) -> tuple[AttentionDecoder, AttentionDecoder]:
    """The same decoder, plain and fast, in float64 with weights large enough that every path matters."""
    torch.manual_seed(0)
    plain = AttentionDecoder(C, K, T, U, cell=cell, **options).double()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    fast = copy.deepcopy(plain)
    fast.is_fast = True
    return plain, fast


def gradients(decoder, features, labels):
    """Logits, attention and the gradients of features and weights under a loss that looks at both outputs."""
    features = features.clone().requires_grad_()
    logits, weights = decoder(features, labels)
    factor = torch.linspace(-1, 1, weights.numel(), dtype=weights.dtype).view_as(weights)
    (logits.square().sum() + (weights * factor).sum()).backward()
    return [logits, weights, features.grad, *(p.grad for p in decoder.parameters())]


@pytest.mark.parametrize(("on", "piece"), [("host", 1), ("host", 2 * L * C), ("host", 10**6), ("accelerator", 1)])
@pytest.mark.parametrize(("cell", "autoregression", "teach"), [("lstm", True, True), ("gru", False, False)])
def test_same_numbers_as_the_plain_path(monkeypatch, on, piece, cell, autoregression, teach):
    monkeypatch.setattr(attention, "PIECE_ELEMENTS", piece)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(devices, "is_host", lambda device: on == "host")
    plain, fast = pair(cell, use_autoregression=autoregression)
    features = torch.randn(B, L, C, dtype=torch.float64)
    labels = torch.randint(0, K, (B, T)) if teach else None
    for ours, theirs in zip(gradients(fast, features, labels), gradients(plain, features, labels)):
        torch.testing.assert_close(ours, theirs)


def reading(features, keys, v, *queries):
    attend = Attention(features, keys, v)
    return tuple(output for query in queries for output in attend(query))


def arguments(requires_grad: bool = True) -> list[torch.Tensor]:
    torch.manual_seed(1)
    shapes = [(B, L, C), (B, L, C), (C,), (B, C), (B, C)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad) for shape in shapes]


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(reading, arguments())


def test_a_frozen_tower_and_a_loss_on_one_step():
    frozen = arguments(requires_grad=False)
    query = frozen[3].requires_grad_()
    attend = Attention(*frozen[:3])
    attend(query)
    attend(query)[1].sum().backward()
    expected = torch.autograd.grad(reading(*arguments()[:3], query)[1].sum(), query)[0]
    torch.testing.assert_close(query.grad, expected)


def test_backward_again_gives_the_same():
    inputs = arguments()
    loss = sum(output.sum() for output in reading(*inputs))
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    for once, again in zip(first, torch.autograd.grad(loss, inputs)):
        torch.testing.assert_close(once, again, rtol=0, atol=0)


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize(("by_key", "by_query"), [(70, 0), (0, -70), (70, -70), (45, -29), (-50, 60), (45, -50)])
def test_sums_whose_exponentials_overflow(by_key, by_query, is_fused, monkeypatch):
    """Keys and queries far from 0, also such that nearly make each other up."""
    monkeypatch.setattr(fused, "compiled", lambda function: function)
    features, keys, v, query, _ = (each.detach().float() for each in arguments())
    keys, query = (keys + by_key).requires_grad_(), (query + by_query).requires_grad_()
    expected = torch.softmax(torch.tanh(keys + query[:, None]) @ v, 1)
    ours, _ = Attention(features, keys, v, is_fused)(query)
    torch.testing.assert_close(ours, expected)
    factor = torch.linspace(-1, 1, ours.numel()).view_as(ours)
    for mine, theirs in zip(*(torch.autograd.grad((each * factor).sum(), (keys, query)) for each in (ours, expected))):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("is_fused", [False, True])
def test_what_another_backward_pass_left_is_forgotten(is_fused, monkeypatch):
    """One that wanted the gradient of a query alone leaves those of features, keys and v ungathered."""
    monkeypatch.setattr(fused, "compiled", lambda function: function)
    inputs = arguments()
    attend = Attention(*inputs[:3], is_fused)
    loss = attend(inputs[3])[1].square().sum()
    expected = torch.autograd.grad(reading(*inputs[:4])[1].square().sum(), inputs[:4])
    torch.autograd.grad(loss, inputs[3], retain_graph=True)
    for mine, theirs in zip(torch.autograd.grad(loss, inputs[:4]), expected):
        torch.testing.assert_close(mine, theirs)


def test_differentiating_twice_is_refused():
    inputs = arguments()
    (gradient,) = torch.autograd.grad(reading(*inputs)[1].square().sum(), inputs[3], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_under_autocast_attention_stays_as_it_is():
    inputs = [each.detach().float() for each in arguments()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = reading(*inputs)
    for mine, theirs in zip(lowered, reading(*inputs)):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_gradients_under_autocast():
    """As near to float32's as the plain path's, with half as much again for luck."""
    torch.manual_seed(0)
    exact = AttentionDecoder(C, K, T, U)
    features, labels = torch.randn(B, L, C), torch.randint(0, K, (B, T))
    expected = gradients(exact, features, labels)[2:]
    losses = []
    for is_fast in (True, False):
        lowered = copy.deepcopy(exact)
        lowered.is_fast = is_fast
        lowered.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = gradients(lowered, features, labels)
        assert found[1].dtype == torch.float32
        losses.append([float((mine - theirs).norm() / theirs.norm()) for mine, theirs in zip(found[2:], expected)])
    for mine, theirs in zip(*losses):
        assert mine <= 1.5 * theirs + 1e-3


def test_nothing_of_a_step_stays_for_the_backward_pass():
    saved = []
    _, fast = pair()
    features = torch.randn(B, 50, C, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        fast(features, torch.zeros(B, T, dtype=torch.int64))
    assert sum(count == B * 50 * C for count in saved) <= 1  # the features, for the keys' weight


def test_a_trace_records_the_plain_path():
    _, fast = pair()
    features = torch.randn(B, L, C, dtype=torch.float64)
    traced = torch.jit.trace(fast.eval(), features)
    other = torch.randn(B, L, C, dtype=torch.float64)
    torch.testing.assert_close(traced(other)[0], fast(other)[0])
