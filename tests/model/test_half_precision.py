"""The network in float16 and bfloat16 beside float32, and with everything that could overflow pushed to its bounds."""

import copy

import numpy as np
import pytest
import torch
from tensors import tensors

from aocr_torch.config import Config, Data, Model
from aocr_torch.data.augment import split_views
from aocr_torch.interop.tf_checkpoint import open_checkpoint
from aocr_torch.interop.tf_names import model_state_from_tf
from aocr_torch.model.decoder import AttentionDecoder
from aocr_torch.model.loss import sequence_loss
from aocr_torch.model.ocr import AttentionOCR

B, L, C, K, T, U = 2, 1024, 288, 134, 37, 256
TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.15}


def decoder(cell: str = "lstm", is_fast: bool = False) -> AttentionDecoder:
    torch.manual_seed(0)
    return AttentionDecoder(C, K, T, U, cell=cell, is_fast=is_fast)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, L, C, generator=generator).relu(), torch.randint(0, K, (B, T), generator=generator)


@pytest.mark.usefixtures("host_float16")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_fast", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_decoder_under_autocast(dtype, cell, is_fast):
    model, (features, labels) = decoder(cell, is_fast), inputs()
    exact, exact_attention = model(features, labels)
    with torch.autocast("cpu", dtype=dtype):
        logits, attention = model(features, labels)
    assert (logits - exact).abs().max() < TOLERANCE[dtype] * exact.abs().max()
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention.sum(2), torch.ones(B, T))
    assert (attention - exact_attention).abs().max() < TOLERANCE[dtype] * exact_attention.max()


@pytest.mark.usefixtures("host_float16")
@pytest.mark.parametrize("is_fast", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_decoder_in_float16_throughout(cell, is_fast):
    """As apex's O2 runs it: weights and features float16, nothing cast from outside."""
    model, (features, labels) = decoder(cell), inputs()
    exact, _ = model(features, labels)
    half = decoder(cell, is_fast).half()
    logits, attention = half(features.half(), labels)
    assert (logits.dtype, attention.dtype) == (torch.float16, torch.float32)
    assert (logits.float() - exact).abs().max() < TOLERANCE[torch.float16] * exact.abs().max()
    loss = sequence_loss(logits, labels, K - 1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, sequence_loss(exact, labels, K - 1), rtol=1e-3, atol=0)


@pytest.fixture(scope="module")
def golden(reference) -> tuple[AttentionDecoder, torch.Tensor, torch.Tensor]:
    """The trained decoder of the reference, features and labels of the golden batch: (3, 1024, 288), (3, 37)."""
    forward = np.load(reference / "golden" / "forward.npz")
    model = AttentionOCR(Data(), Model(), K)
    with open_checkpoint(reference / "golden" / "ckpt_v2" / "model.ckpt-123") as reader:
        model.load_state_dict(tensors(model_state_from_tf(reader)[0]))
    with torch.no_grad():
        features = model.eval().features(split_views(torch.from_numpy(forward["images_uint8"]), 4))
        _, attention = model.decoder(features)
    np.testing.assert_allclose(attention, forward["eval/attention_masks"], atol=1e-4)
    return model.decoder, features, torch.from_numpy(forward["labels"])


@pytest.mark.usefixtures("host_float16")
@pytest.mark.parametrize("way", ["autocast", "throughout"])
def test_golden_batch_in_float16(golden, way):
    """Nothing overflows, the softmax stays one, and loss and gradients are float32's; with the loss scale 2**10."""
    exact, features, labels = golden
    exact_logits, exact_attention = exact(features, labels)
    exact_loss = sequence_loss(exact_logits, labels, K - 1)
    exact.zero_grad()
    exact_loss.backward()
    model = copy.deepcopy(exact)
    model.zero_grad()
    if way == "throughout":
        logits, attention = model.half()(features.half(), labels)
    else:
        with torch.autocast("cpu", dtype=torch.float16):
            logits, attention = model(features, labels)
    assert logits.dtype == torch.float16
    assert (logits - exact_logits).abs().max() < TOLERANCE[torch.float16] * exact_logits.abs().max()
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention.sum(2), torch.ones(3, T))
    assert (attention - exact_attention).abs().max() < TOLERANCE[torch.float16] * exact_attention.max()
    loss = sequence_loss(logits, labels, K - 1)
    torch.testing.assert_close(loss, exact_loss, rtol=1e-3, atol=0)
    (loss * 2.0**10).backward()
    for (name, ours), theirs in zip(model.named_parameters(), exact.parameters()):
        difference = (ours.grad.float() / 2.0**10 - theirs.grad).norm() / theirs.grad.norm()
        assert difference < 0.03, name


@pytest.mark.usefixtures("host_float16")
@pytest.mark.parametrize("is_fast", [False, True])
def test_gradients_in_float16_throughout(is_fast):
    """With a loss scale they are float32's within float16's own precision."""
    features, labels = inputs()
    exact, half = decoder(), decoder(is_fast=is_fast).half()
    sequence_loss(exact(features, labels)[0], labels, K - 1).backward()
    (sequence_loss(half(features.half(), labels)[0], labels, K - 1) * 2.0**10).backward()
    for (name, ours), theirs in zip(half.named_parameters(), exact.parameters()):
        difference = (ours.grad.float() / 2.0**10 - theirs.grad).norm() / theirs.grad.norm()
        assert difference < 0.03, name


@pytest.mark.usefixtures("host_float16")
@pytest.mark.parametrize("is_fast", [False, True])
def test_large_energies_neither_overflow_nor_lose_the_softmax(is_fast):
    """Energies of some hundreds, apart by more than exp of float16 bears (11): one position takes all the weight."""
    model, (features, labels) = decoder(is_fast=is_fast).half(), inputs()
    with torch.no_grad():
        model.attention_v.fill_(1.0)  # energies up to 288
        model.attention_key.weight.mul_(30)
    logits, attention = model(features.half(), labels)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(attention.sum(2), torch.ones(B, T))
    assert attention.max() > 0.9
    assert attention.min() < 2.0**-24  # under float16's smallest number, kept by float32


def test_large_logits_have_a_finite_loss():
    logits = torch.full((1, T, K), -60000.0, dtype=torch.float16)
    logits[..., 3] = 60000.0
    labels = torch.full((1, T), 3)
    assert sequence_loss(logits, labels, K - 1, label_smoothing=0.0) == 0
    assert torch.isfinite(sequence_loss(logits, labels, K - 1))


@pytest.mark.usefixtures("host_float16")
@pytest.mark.parametrize("decoder_flags", [{}, {"use_attention": False}, {"cell": "gru"}, {"encode_coordinates": True}])
def test_every_decoder_trains_in_float16_throughout(decoder_flags):
    config = Config().replace(
        image_height=48, image_width=96, num_views=2, max_sequence_length=4, final_endpoint="Conv2d_3b_1x1",
        num_lstm_units=16, **decoder_flags,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AttentionOCR(config.data, config.model, 7)
    for module in model.modules():  # as apex casts
        for parameter in module.parameters(recurse=False):
            if not isinstance(module, torch.nn.BatchNorm2d):
                parameter.data = parameter.data.half()
    views, labels = torch.rand(2, 2, 3, 48, 48), torch.randint(0, 7, (2, 4))
    logits = model(views.half(), labels)["logits"]
    assert logits.dtype == torch.float16
    (sequence_loss(logits, labels, 6) * 16).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == p.dtype for p in trained)
