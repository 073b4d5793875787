"""The formulas that torch.compile fuses, uncompiled, beside the plain network; compiled in a slow test."""

import copy
import gc
import weakref

import pytest
import torch
import torch._dynamo
from compiler import require_compiler

from aocr_torch.config import Config
from aocr_torch.model import cells, fused, inception, normalized_relu
from aocr_torch.model import decoder as decoders
from aocr_torch.model.attention import Attention
from aocr_torch.model.loss import sequence_loss
from aocr_torch.model.ocr import AttentionOCR

B, V, K, T = 3, 2, 7, 4


@pytest.fixture
def uncompiled(monkeypatch):
    for module in (fused, cells, decoders, inception, normalized_relu):
        monkeypatch.setattr(module, "compiled", lambda function: function)


def networks(dtype: torch.dtype, **flags) -> tuple[AttentionOCR, AttentionOCR]:
    """The same network plain and fused, to an endpoint with a Mixed block."""
    size = {"image_height": 79, "image_width": 158, "num_views": V, "max_sequence_length": T}
    small = {"final_endpoint": "Mixed_5b", "num_lstm_units": 16, "batch_norm_decay": 0.9}
    config = Config().replace(**size, **{**small, **flags})
    torch.manual_seed(0)
    plain = AttentionOCR(config.data, config.replace(use_fast_path=False).model, K).to(dtype)
    ours = AttentionOCR(config.data, config.model, K).to(dtype)
    ours.load_state_dict(plain.state_dict())
    ours.fuse()
    return plain, ours


def step(network: AttentionOCR, autocast: bool = False) -> dict[str, torch.Tensor]:
    """Logits, attention, gradients and BatchNorm's averages after a training step's passes."""
    torch.manual_seed(1)
    dtype = network.decoder.attention_v.dtype
    views = torch.rand(B, V, 3, 79, 79).to(dtype)
    labels = torch.randint(0, K, (B, T))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = network.train()(views, labels)
    sequence_loss(out["logits"], labels, K - 1).backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {**out, **gradients, **dict(network.named_buffers())}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("flags", [{}, {"batch_norm_per_view": False}, {"cell": "gru", "use_autoregression": False}])
def test_same_numbers_as_the_plain_network(flags):
    plain, ours = networks(torch.float64, **flags)
    expected = step(plain)
    for name, values in step(ours).items():
        torch.testing.assert_close(values, expected[name], rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("uncompiled")
def test_both_pools_of_the_tower_come_before_batch_norm(monkeypatch):
    _, ours = networks(torch.float32)
    calls, apply = [], normalized_relu.NormalizedReLUMaxPool.apply
    monkeypatch.setattr(
        normalized_relu.NormalizedReLUMaxPool, "apply", lambda x, *others: calls.append(x.shape[1]) or apply(x, *others)
    )
    step(ours)
    assert calls == [64, 192]


def whole_steps(monkeypatch) -> list:
    """What each call of a step that would be compiled as a whole was given."""
    calls, take = [], decoders.AttentionDecoder._whole_step
    monkeypatch.setattr(decoders.AttentionDecoder, "_whole_step", lambda *inputs: calls.append(inputs) or take(*inputs))
    return calls


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("flags", [{}, {"cell": "gru"}, {"use_autoregression": False}])
@pytest.mark.parametrize("query_is_large", [False, True])
def test_the_same_reading(flags, query_is_large, monkeypatch):
    """In groups of two signs, and with keys and queries beyond what exponentials bear."""
    monkeypatch.setattr(decoders, "SIGNS_AT_A_TIME", 16)  # over the 8 bytes of a number
    calls = whole_steps(monkeypatch)
    plain, ours = networks(torch.float64, **flags)
    torch.nn.init.normal_(plain.decoder.classifier.weight)  # so that they read different characters
    if query_is_large:
        plain.decoder.attention_key.weight.data.mul_(200)
        plain.decoder.attention_query.bias.data.fill_(-35)
    ours.load_state_dict(plain.state_dict())
    views = torch.rand(B, V, 3, 79, 79, dtype=torch.float64)
    with torch.no_grad():
        expected = plain.eval()(views)
        for name, values in ours.eval()(views).items():
            torch.testing.assert_close(values, expected[name])
    groups = 0 if "use_autoregression" in flags else 2
    assert len(calls) == groups * T * (1 + query_is_large)  # read again


@pytest.mark.usefixtures("uncompiled")
def test_a_reading_ends_group_by_group(monkeypatch):
    monkeypatch.setattr(decoders, "SIGNS_AT_A_TIME", 8)  # each sign by itself
    plain, ours = networks(torch.float64)
    torch.nn.init.normal_(plain.decoder.classifier.weight)
    ours.load_state_dict(plain.state_dict())
    views = torch.rand(B, V, 3, 79, 79, dtype=torch.float64)
    with torch.no_grad():
        expected = plain.eval()(views)["logits"]
        ids = expected.argmax(2)
        ours.decoder.ending = int(ids[0, 1])
        logits = ours.eval()(views)["logits"]
    for row, ours_of_one, theirs in zip(ids, logits, expected):
        ends = (row == ours.decoder.ending).nonzero()
        stop = int(ends[0]) + 1 if len(ends) else T
        torch.testing.assert_close(ours_of_one[:stop], theirs[:stop])
        assert (ours_of_one[stop:].argmax(1) == ours.decoder.ending).all()
    assert (logits == decoders.CERTAIN).any()


@pytest.mark.usefixtures("uncompiled")
def test_weights_that_were_lowered_follow_the_model(monkeypatch):
    """The compiled reading in bfloat16 keeps a lowered copy of the decoder."""
    calls = whole_steps(monkeypatch)
    _, ours = networks(torch.float32)
    views = torch.rand(B, V, 3, 79, 79)
    ours.eval()
    for context in (torch.no_grad, torch.inference_mode, torch.no_grad):
        ours.decoder.classifier.bias.data.add_(1)
        with context(), torch.autocast("cpu", dtype=torch.bfloat16):
            first = ours(views)["logits"][:, 0]
            ours.decoder.is_fast = False
            expected = ours(views)["logits"][:, 0]
            ours.decoder.is_fast = True
        assert first.dtype == torch.bfloat16
        torch.testing.assert_close(first, expected, rtol=0.05, atol=0.02)
    assert {call[0].attention_v.dtype for call in calls} == {torch.bfloat16}
    assert not any("_copies" in name for name in ours.state_dict())


def test_a_device_on_which_it_was_never_tried_is_refused():
    _, ours = networks(torch.float32)
    with pytest.raises(fused.CompileError, match=r"^compile is not supported on meta: leave --compile away$"):
        ours.to("meta").fuse()


@pytest.mark.usefixtures("uncompiled")
def test_under_autocast_nothing_is_lost():
    """Where the network differs from float32's, it does so no more than the plain one."""
    plain, ours = networks(torch.float32)
    exact = step(copy.deepcopy(plain))
    lowered, mine = step(plain, autocast=True), step(ours, autocast=True)
    for name in ("logits", "decoder.attention_key.weight", "tower.Conv2d_1a_3x3.conv.weight"):
        ours_off, theirs_off = ((values[name].float() - exact[name]).norm() for values in (mine, lowered))
        assert ours_off <= 1.5 * theirs_off + 1e-6, name


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("on", ["host", "accelerator"])
def test_gradients_of_attention_are_those_of_finite_differences(on, monkeypatch):
    if on == "accelerator":  # which takes the exponential of the sum
        monkeypatch.setattr(fused, "is_within", lambda query: False)
    torch.manual_seed(1)
    shapes = [(2, 5, 3), (2, 5, 3), (3,), (2, 3), (2, 3)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def reading(features, keys, v, *queries):
        attend = Attention(features, keys, v, is_fused=True)
        return tuple(output for query in queries for output in attend(query))

    assert torch.autograd.gradcheck(reading, inputs)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("of_all", [False, True])
def test_nothing_stays_when_a_step_is_over(is_fused, of_all):
    """Keys and features of a batch of 32 are 75 MB in float32. Also if the pass never came to their gradients."""
    features, weight = torch.randn(2, 5, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    gc.disable()
    try:
        attend = Attention(features, features * 2, torch.ones(3), is_fused)
        context = attend(torch.ones(2, 3) @ weight)[1]
        context = attend(context @ weight)[1]
        torch.autograd.grad(context.sum(), [weight, features] if of_all else weight)
        keys = weakref.ref(attend._memory.keys)
        del attend, context
        assert keys() is None
    finally:
        gc.enable()


def test_a_compiler_that_fails_is_one_line(monkeypatch):
    class BackendError(RuntimeError):
        __module__ = "torch._inductor.exc"

    def fail(*arguments):
        raise BackendError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", lambda *arguments, **options: fail)
    with pytest.raises(
        fused.CompileError, match=r"^torch.compile fails \(No working C\+\+ compiler found\): it needs .*$"
    ):
        fused.compiled.__wrapped__(fused.read_out)(1)


@pytest.mark.slow
def test_compiled():
    plain, ours = networks(torch.float32, final_endpoint="Conv2d_2b_3x3")
    require_compiler()
    expected = step(plain)
    for name, values in step(ours).items():
        # A ReLU whose input is nearly 0 may fall to either side.
        difference = (values - expected[name]).double().norm()
        assert difference <= 1e-2 * expected[name].double().norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_reading(autocast):
    """Also after the weights changed: a training evaluates again and again."""
    require_compiler()
    plain, ours = networks(torch.float32)
    views = torch.rand(B, V, 3, 79, 79)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            expected = plain.eval()(views)
            found = ours.eval()(views)
        for name, values in found.items():
            assert values.dtype == expected[name].dtype
            if autocast:  # of the first step: a choice on the line may go either way
                torch.testing.assert_close(values[:, 0], expected[name][:, 0], rtol=0.05, atol=0.02)
            else:
                torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-4)
        for parameter in plain.parameters():
            parameter.data.mul_(1.1)
        ours.load_state_dict(plain.state_dict())
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 3  # tower, keys, step
