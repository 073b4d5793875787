"""Parity with the TensorFlow reference for every user: weights by rule (tests/support/recipe.py) and the reference's
numbers for them.

Tolerances: float32 noise grows in free-running decoding, and the reference carries as much of it as we do, so the bound
there is three times the reference's own distance from float64.
"""

import numpy as np
import pytest
import torch
from recipe import CONFIGURATIONS, GOLDEN, LABELS, NULL, build, images

from aocr_torch.interop.tf_names import tf_variables_from_state
from aocr_torch.model.loss import regularization_loss, sequence_loss
from aocr_torch.model.ocr import interpret
from aocr_torch.training.optim import build_optimizer, clip_gradients


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
