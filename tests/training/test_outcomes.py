"""A row for every record, and the mistakes worth a look."""

import math

import pytest
import torch
from tiny import CHARSET

from aocr_torch.model.ocr import interpret
from aocr_torch.training.evaluate import CountError, Evaluation
from aocr_torch.training.outcomes import Outcome, OutcomeRecorder, choose_mistakes


def outcome(index: int, label: str, text: str, confidence: float = 0.5) -> Outcome:
    return Outcome(index, label, text, confidence, confidence, 1.0, True)


def recorded(labels: list[str], logits: torch.Tensor) -> OutcomeRecorder:
    recorder = OutcomeRecorder(CHARSET)
    batch = {"index": torch.arange(len(labels)), "label": torch.tensor([CHARSET.encode(text, 3) for text in labels])}
    recorder(batch, interpret(logits, CHARSET.null_id))
    return recorder


def test_rows():
    logits = torch.full((3, 3, CHARSET.size), -10.0)
    for number, text in enumerate(["ab", "b", ""]):
        for step, identifier in enumerate(CHARSET.encode(text, 3)):
            logits[number, step, identifier] = 10
    first, second, third = recorded(["ab", "c", ""], logits).outcomes
    assert (first.label, first.text, first.is_right, first.is_sequence_right, first.character_accuracy) == (
        "ab",
        "ab",
        True,
        True,
        1.0,
    )
    assert first.confidence == pytest.approx(1, abs=1e-6)
    assert (second.distance, second.normalized_distance, second.is_right) == (1, 1.0, False)
    assert third.is_right
    assert third.normalized_distance == 0
    assert math.isnan(third.character_accuracy)


def test_probability_is_the_product_and_confidence_the_geometric_mean():
    (row,) = recorded(["a"], torch.randn(1, 3, CHARSET.size, generator=torch.Generator().manual_seed(0))).outcomes
    assert row.confidence == pytest.approx(row.probability ** (1 / (len(row.text) + 1)), rel=1e-5)


def test_a_model_of_nan_has_no_confidence():
    (row,) = recorded(["a"], torch.full((1, 3, CHARSET.size), float("nan"))).outcomes
    assert (row.confidence, row.probability) == (0.0, 0.0)


@pytest.mark.parametrize("indices", [[0, 0], [0], [0, 1, 2]])
def test_rows_that_are_not_the_evaluations_are_refused(indices):
    recorder = OutcomeRecorder(CHARSET)
    recorder.outcomes = [outcome(index, "a", "a") for index in indices]
    with pytest.raises(CountError, match="expected one for each of 2"):
        recorder.gather(Evaluation({}, records=2, evaluated=2))


def test_mistakes_are_the_most_confident_and_the_farthest_each_once():
    outcomes = [
        outcome(0, "abc", "abc", 0.99),
        outcome(1, "abc", "abd", 0.9),
        outcome(2, "abc", "xyz", 0.8),
        outcome(3, "abc", "xyz", 0.3),
        outcome(4, "abc", "ab", 0.2),
    ]
    confident, farthest = choose_mistakes(outcomes, 3)
    assert [each.index for each in confident] == [1, 2]
    assert [each.index for each in farthest] == [3]
    assert [len(part) for part in choose_mistakes(outcomes, 50)] == [2, 2]
    assert choose_mistakes(outcomes, 0) == ([], [])
    assert choose_mistakes(outcomes[:1], 9) == ([], [])
