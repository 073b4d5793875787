"""Parity with the TensorFlow reference for every user: weights by rule, the reference's numbers in golden/recipe.npz.

The rule (which variable gets which random numbers) is the one the reference was fed with; numpy's RandomState is
frozen, so the same weights come out everywhere. Tolerances: float32 noise grows in free-running decoding, and the
reference carries as much of it as we do, so the bound there is three times the reference's own distance from float64.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from tensors import tensors

from aocr_torch.config import Data, Model
from aocr_torch.interop.tf_names import model_state_from_tf, tf_variables_from_state
from aocr_torch.model.loss import regularization_loss, sequence_loss
from aocr_torch.model.ocr import AttentionOCR, interpret
from aocr_torch.training.optim import build_optimizer, clip_gradients

GOLDEN = np.load(Path(__file__).parent / "golden" / "recipe.npz")
CONFIGURATIONS = {
    "attention_ar": Model(),
    "attention": Model(use_autoregression=False),
    "attention_ar_coords": Model(encode_coordinates=True),
    "netslice": Model(use_attention=False, use_autoregression=False, num_lstm_units=32),
    "netslice_ar": Model(use_attention=False, num_lstm_units=32),
}
LABELS = torch.from_numpy(GOLDEN["labels"].astype(np.int64))
NULL = 133


def images() -> torch.Tensor:
    blocks = np.random.RandomState(int(GOLDEN["image_seed"])).randint(0, 256, (2, 15, 60, 3)).astype(np.uint8)
    pixels = blocks.repeat(10, axis=1).repeat(10, axis=2).astype(np.float32) / np.float32(255)
    return torch.from_numpy(pixels).unflatten(2, (4, 150)).permute(0, 2, 4, 1, 3).contiguous()  # (B, V, 3, h, w)


def draw(number: int, name: str, shape: tuple) -> np.ndarray:
    random, last = np.random.RandomState(1000 + number), name.rsplit("/", 1)[-1]
    fan_in = int(np.prod(shape[:-1]))
    if last == "moving_variance":
        value = random.uniform(0.5, 1.5, shape)
    elif last in ("beta", "moving_mean", "bias", "softmax_b"):
        value = 0.1 * random.standard_normal(shape)
    elif last == "AttnV_0":
        value = 0.6 * random.standard_normal(shape)
    elif last == "weights":
        value = random.standard_normal(shape) * np.sqrt(2 / fan_in)
    else:
        gain = 2 if "lstm_cell" in name or last == "softmax_w" else 3 if "Attention_0" in name else 1
        value = random.standard_normal(shape) * gain / np.sqrt(fan_in)
        if name.endswith("attention_decoder/kernel"):
            value[:134] *= 20
    return value.astype(np.float32)


def build(configuration: str) -> tuple[AttentionOCR, dict[str, np.ndarray]]:
    """The model with the rule's weights, and those weights under TensorFlow's names."""
    model = AttentionOCR(Data(), CONFIGURATIONS[configuration], 134)
    shapes = {name: value.shape for name, value in tf_variables_from_state(model.state_dict()).items()}
    values = {name: draw(number, name, shapes[name]) for number, name in enumerate(sorted(shapes))}
    model.load_state_dict(tensors(model_state_from_tf(values)[0]))
    return model, values


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_free_running(name):
    model = build(name)[0].eval()
    exact = build(name)[0].double().eval()
    with torch.no_grad():
        out, exactly = model(images()), exact(images().double())
    prediction = interpret(out["logits"], NULL)
    np.testing.assert_array_equal(prediction.ids.numpy(), GOLDEN[f"{name}/eval_ids"])

    def close(ours, precise, key, least):
        golden = GOLDEN[f"{name}/{key}"]
        noise = np.abs(precise.numpy() - golden).max()
        assert np.abs(ours.numpy() - golden).max() <= max(least, 3 * noise), key

    precise = interpret(exactly["logits"], NULL)
    close(out["logits"], exactly["logits"], "eval_logits", 5e-4)
    close(prediction.confidences, precise.confidences, "predicted_conf", 1e-3)
    close(prediction.normalized_confidences, precise.normalized_confidences, "normalized_seq_conf", 1e-4)
    if "attention" in out:
        close(out["attention"][:, 0], exactly["attention"][:, 0], "attention_mask_first", 1e-4)
        close(out["attention"][:, -1], exactly["attention"][:, -1], "attention_mask_last", 1e-4)
    if name == "attention_ar":
        features = model.features(images()).detach().numpy()
        np.testing.assert_allclose(features[:, ::8], GOLDEN["pooled_features_every8th"], atol=1e-4)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_teacher_forced_losses_and_gradients(name):
    model = build(name)[0].train()
    logits = model(images(), LABELS)["logits"]
    np.testing.assert_allclose(logits.detach().numpy(), GOLDEN[f"{name}/train_logits"], atol=5e-4)
    sequence = sequence_loss(logits, LABELS, NULL)
    total = sequence + regularization_loss(model)
    assert sequence.item() == pytest.approx(GOLDEN[f"{name}/sequence_loss"].item(), rel=1e-5)
    assert total.item() == pytest.approx(GOLDEN[f"{name}/total_loss"].item(), rel=1e-5)
    total.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    slots = tf_variables_from_state(model.state_dict(), momentum=gradients).items()  # carries any tensor by name
    norms = {n[: -len("/Momentum")]: np.linalg.norm(g) for n, g in slots if n.endswith("/Momentum")}
    expected = {k.split("/grad_norm/")[1]: v for k, v in GOLDEN.items() if k.startswith(f"{name}/grad_norm/")}
    assert norms.keys() == expected.keys()
    for variable, norm in expected.items():
        assert norms[variable] == pytest.approx(norm, rel=2e-2 if "conv_tower" in variable else 1e-3), variable


def test_one_step_of_training():
    model, before = build("attention_ar")
    model.train()
    optimizer = build_optimizer(model.named_parameters(), "momentum", 0.004, 0.9)

    def loss():
        return sequence_loss(model(images(), LABELS)["logits"], LABELS, NULL) + regularization_loss(model)

    loss().backward()
    clip_gradients(model.parameters(), 2.0, "per_variable")
    optimizer.step()
    after = tf_variables_from_state(model.state_dict())
    for key, norm in GOLDEN.items():
        if key.startswith("attention_ar/change_norm_after_step1/"):
            variable = key.split("after_step1/")[1]
            change = np.linalg.norm(after[variable].astype(np.float64) - before[variable])
            assert change == pytest.approx(norm.item(), rel=2e-2 if "conv_tower" in variable else 1e-3), variable
    assert loss().item() == pytest.approx(GOLDEN["attention_ar/total_loss_step2"].item(), rel=1e-4)
