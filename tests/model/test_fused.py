"""The formulas that torch.compile fuses, uncompiled, beside the plain network; compiled in a slow test."""

import copy
import gc
import weakref

import pytest
import torch

from aocr_torch.config import Config
from aocr_torch.model import cells, fused, inception
from aocr_torch.model import decoder as decoders
from aocr_torch.model.attention import Attention
from aocr_torch.model.loss import sequence_loss
from aocr_torch.model.ocr import AttentionOCR

B, V, K, T = 3, 2, 7, 4


@pytest.fixture
def uncompiled(monkeypatch):
    for module in (fused, cells, decoders, inception):
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
@pytest.mark.parametrize("flags", [{}, {"cell": "gru"}, {"use_autoregression": False}])
@pytest.mark.parametrize("signs_at_a_time", [16, 32])  # of 8 bytes a number: 2 and 4
def test_the_same_reading(flags, signs_at_a_time, monkeypatch):
    monkeypatch.setattr(decoders, "SIGNS_AT_A_TIME", signs_at_a_time)
    plain, ours = networks(torch.float64, **flags)
    torch.nn.init.normal_(plain.decoder.classifier.weight)  # so that they read different characters
    ours.load_state_dict(plain.state_dict())
    views = torch.rand(B, V, 3, 79, 79, dtype=torch.float64)
    with torch.no_grad():
        expected = plain.eval()(views)
        for name, values in ours.eval()(views).items():
            torch.testing.assert_close(values, expected[name])
    ours.decoder.ending = int(expected["logits"][0, 1].argmax())
    stop = int((expected["logits"][0].argmax(1) == ours.decoder.ending).nonzero()[0]) + 1
    assert stop < T or "use_autoregression" in flags
    with torch.no_grad():
        torch.testing.assert_close(ours(views[:1])["logits"][:, :stop], expected["logits"][:1, :stop])


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
        monkeypatch.setattr(fused, "grown", lambda *_, **__: None)
    torch.manual_seed(1)
    shapes = [(2, 5, 3), (2, 5, 3), (3,), (2, 3), (2, 3)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def reading(features, keys, v, *queries):
        attend = Attention(features, keys, v, is_fused=True)
        return tuple(output for query in queries for output in attend(query))

    assert torch.autograd.gradcheck(reading, inputs)


@pytest.mark.usefixtures("uncompiled")
def test_nothing_stays_when_a_step_is_over():
    """Keys and features of a batch of 32 are 75 MB in float32."""
    features = torch.randn(2, 5, 3, requires_grad=True)
    gc.disable()
    try:
        attend = Attention(features, features * 2, torch.ones(3), is_fused=True)
        attend(torch.zeros(2, 3))[1].sum().backward()
        keys = weakref.ref(attend._memory.keys)
        del attend
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
    expected = step(plain)
    try:
        found = step(ours)
    except fused.CompileError as error:
        pytest.skip(str(error))
    for name, values in found.items():
        # A ReLU whose input is nearly 0 may fall to either side.
        difference = (values - expected[name]).double().norm()
        assert difference <= 1e-2 * expected[name].double().norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_reading(autocast):
    """Also after the weights changed: a training evaluates again and again."""
    plain, ours = networks(torch.float32)
    views = torch.rand(B, V, 3, 79, 79)
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            expected = plain.eval()(views)
            try:
                found = ours.eval()(views)
            except fused.CompileError as error:
                pytest.skip(str(error))
        for name, values in found.items():
            assert values.dtype == expected[name].dtype
            if autocast:  # of the first step: a choice on the line may go either way
                torch.testing.assert_close(values[:, 0], expected[name][:, 0], rtol=0.05, atol=0.02)
            else:
                torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-4)
        for parameter in plain.parameters():
            parameter.data.mul_(1.1)
        ours.load_state_dict(plain.state_dict())
