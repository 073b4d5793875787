"""The loss against the reference's numbers and against its definition."""

import itertools
import math

import numpy as np
import pytest
import torch

from aocr_torch.config import Data, Model
from aocr_torch.model.loss import loss_floor, regularization_loss, sequence_loss
from aocr_torch.model.ocr import AttentionOCR

VARIANTS = list(itertools.product([0.0, 0.1], [True, False], [True, False]))


@pytest.mark.parametrize(("smoothing", "ignore_nulls", "average"), VARIANTS)
def test_the_eight_variants_of_the_reference(reference, smoothing, ignore_nulls, average):
    golden = np.load(reference / "golden" / "loss.npz")
    key = f"smoothing{smoothing}_ignore_nulls{ignore_nulls}_average_timesteps{average}"
    logits = torch.from_numpy(golden["logits"]).requires_grad_()
    loss = sequence_loss(logits, torch.from_numpy(golden["labels"]), 133, smoothing, ignore_nulls, average)
    loss.backward()
    assert loss.item() == pytest.approx(golden[f"{key}/loss"].item(), rel=1e-6)
    np.testing.assert_allclose(logits.grad.numpy(), golden[f"{key}/grad_logits"], atol=1e-6)
    with_empty = torch.from_numpy(golden["labels_with_an_all_null_row"])
    empty = sequence_loss(logits, with_empty, 133, smoothing, ignore_nulls, average).item()
    assert empty == pytest.approx(golden[f"{key}/loss_with_an_all_null_row"].item(), rel=1e-6)


@pytest.mark.parametrize(("smoothing", "ignore_nulls", "average"), VARIANTS)
def test_definition(smoothing, ignore_nulls, average):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator)
    labels = torch.tensor([[1, 2, 6, 6, 6], [0, 0, 0, 0, 0], [6, 6, 6, 6, 6]])
    expected = 0.0
    for row, label in zip(logits.log_softmax(2).tolist(), labels.tolist()):
        losses = [
            -sum(((1 - smoothing) * (k == right) + smoothing / 7) * row[t][k] for k in range(7))
            for t, right in enumerate(label)
            if ignore_nulls or right != 6
        ]
        expected += sum(losses) / (len(losses) + 1e-12 if average else 1) / 3
    assert sequence_loss(logits, labels, 6, smoothing, ignore_nulls, average).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_floor_is_what_the_smoothed_labels_themselves_reach():
    assert loss_floor(134, 37, 0.1, False) == pytest.approx(29.93, abs=0.005)
    assert loss_floor(134, 37, 0.0, False) == 0.0
    labels = torch.tensor([[3, 1, 6]])
    target = torch.nn.functional.one_hot(labels, 7) * 0.9 + 0.1 / 7
    assert loss_floor(7, 3, 0.1, False) == pytest.approx(sequence_loss(target.log(), labels, 6, 0.1).item(), rel=1e-5)
    assert loss_floor(7, 3, 0.1, True) == pytest.approx(loss_floor(7, 3, 0.1, False) / 3)
    assert sequence_loss(torch.zeros(1, 3, 7), labels, 6, 0.1).item() == pytest.approx(3 * math.log(7))


def test_only_tower_convolutions_and_classifier_decay():
    data = Data(image_height=50, image_width=100, num_views=2, max_sequence_length=4)
    model = AttentionOCR(data, Model(final_endpoint="Conv2d_2a_3x3", num_lstm_units=5), 9)
    regularization_loss(model, weight_decay=0.5).backward()
    for name, parameter in model.named_parameters():
        if name.endswith("conv.weight"):
            torch.testing.assert_close(parameter.grad, 0.00004 * parameter.detach())
        elif name.startswith("decoder.classifier"):
            torch.testing.assert_close(parameter.grad, 0.5 * parameter.detach())
        else:
            assert parameter.grad is None
