"""The reference's accuracies number by number, and what the stricter measures say where those look away."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aocr_torch.training.metrics import Metrics, character_accuracy, sequence_accuracy

NULL = 9
LETTERS = "abcdefghi"  # ids 0..8


def ids(*texts: str, length: int = 6) -> torch.Tensor:
    """Rows of ids padded with null; "_" stands for a null anywhere."""
    rows = [[NULL if c == "_" else LETTERS.index(c) for c in text.ljust(length, "_")] for text in texts]
    return torch.tensor(rows, dtype=torch.int64)


def measured(pairs: list[tuple[str, str]]) -> Metrics:
    """Metrics of (prediction, target) pairs."""
    metrics = Metrics(NULL)
    predictions, targets = zip(*pairs)
    texts = [[text.replace("_", "") for text in side] for side in (predictions, targets)]
    metrics.update(ids(*predictions), ids(*targets), *texts)
    return metrics


@pytest.fixture(scope="module")
def golden(reference):
    return np.load(reference / "golden" / "metrics.npz")


@pytest.mark.parametrize(
    ("name", "function"), [("char_accuracy", character_accuracy), ("sequence_accuracy", sequence_accuracy)]
)
def test_every_case_equals_the_reference(golden, name, function):
    for i in range(len(golden["case_names"])):
        case = f"case_{i:02d}"
        predictions = torch.from_numpy(golden[f"{case}/predictions"]).long()
        targets = torch.from_numpy(golden[f"{case}/targets"])
        result = function(predictions, targets, int(golden[f"{case}/rej_char"])).mean()
        expected = float(golden[f"{case}/{name}"])
        assert float(result) == pytest.approx(expected, abs=1e-7, nan_ok=True), golden["case_names"][i]


@pytest.mark.parametrize("stream", ["streaming", "streaming_with_an_empty_target_in_batch2"])
def test_streaming_equals_the_reference(golden, stream):
    predictions = torch.from_numpy(golden[f"{stream}/predictions"]).long()
    targets = torch.from_numpy(golden[f"{stream}/targets"])
    functions = {"char_accuracy": character_accuracy, "sequence_accuracy": sequence_accuracy}
    metrics = Metrics(133)
    for number, (predicted, target) in enumerate(zip(predictions, targets)):
        expected = {name: float(golden[f"{stream}/{name}_value_after_batch"][number]) for name in functions}
        seen = slice(0, number + 1)
        for name, function in functions.items():
            running_mean = function(predictions[seen].flatten(0, 1), targets[seen].flatten(0, 1), 133).mean()
            assert float(running_mean) == pytest.approx(expected[name], abs=1e-7, nan_ok=True)
        metrics.update(predicted, target, [""] * len(target), [""] * len(target))
        result = metrics.result()
        assert result["SequenceAccuracy"] == pytest.approx(expected["sequence_accuracy"], abs=1e-7)
        if math.isnan(expected["char_accuracy"]):  # Metrics goes on where the reference's mean is lost
            assert result["num_empty_targets"] == 1
            assert 0 < result["CharacterAccuracy"] < 1
        else:
            assert result["CharacterAccuracy"] == pytest.approx(expected["char_accuracy"], abs=1e-7)


def test_accuracies_of_single_examples():
    predictions = ids("abc", "abd", "abcde", "", "a_c", "b")
    targets = ids("abc", "abc", "abc", "abc", "a_c", "")
    assert character_accuracy(predictions, targets, NULL)[:5].tolist() == pytest.approx([1, 2 / 3, 1, 0, 1])
    assert character_accuracy(predictions, targets, NULL)[5].isnan()
    assert sequence_accuracy(predictions, targets, NULL).tolist() == [1, 0, 1, 0, 1, 1]


def test_rubbish_after_the_end_is_forgiven_by_the_reference_only():
    result = measured([("abcdef", "abc"), ("abc", "abc")]).result()
    assert result["CharacterAccuracy"] == 1
    assert result["SequenceAccuracy"] == 1
    assert result["StrictSequenceAccuracy"] == 0.5
    assert result["CharacterErrorRate"] == pytest.approx(3 / 6)
    assert result["NormalizedEditDistance"] == pytest.approx(1 - (3 / 6) / 2)


def test_a_missing_first_character_costs_one_edit_but_every_position():
    result = measured([("bcdef", "abcdef")]).result()
    assert result["CharacterAccuracy"] == 0
    assert result["SequenceAccuracy"] == 0
    assert result["CharacterErrorRate"] == pytest.approx(1 / 6)
    assert result["NormalizedEditDistance"] == pytest.approx(5 / 6)


def test_error_rate_weighs_characters_and_edit_distance_examples():
    result = measured([("a", "b"), ("abcde", "abcde")]).result()
    assert result["CharacterErrorRate"] == pytest.approx(1 / 6)
    assert result["NormalizedEditDistance"] == pytest.approx(0.5)
    assert result["CharacterAccuracy"] == pytest.approx(0.5)


def test_empty_targets_are_counted_and_poison_nothing():
    result = measured([("", ""), ("abc", ""), ("ab", "ac")]).result()
    assert result["num_examples"] == 3
    assert result["num_empty_targets"] == 2
    assert result["CharacterAccuracy"] == 0.5
    assert result["SequenceAccuracy"] == pytest.approx(2 / 3)
    assert result["StrictSequenceAccuracy"] == pytest.approx(1 / 3)
    assert result["CharacterErrorRate"] == pytest.approx((0 + 3 + 1) / 2)
    assert result["NormalizedEditDistance"] == pytest.approx(1 - (0 + 1 + 0.5) / 3)


def test_nothing_measured_is_not_a_number():
    result = Metrics(NULL).result()
    assert result["num_examples"] == 0
    assert all(math.isnan(value) for name, value in result.items() if not name.startswith("num_"))


def test_the_sum_of_states_is_the_metrics_of_all_batches():
    pairs = [("abcdef", "abc"), ("", ""), ("ab", "ac"), ("fed", "def"), ("a", "a"), ("", "abc"), ("bcd", "abcd")]
    states = [measured(pairs[:3]).state(), Metrics(NULL).state(), measured(pairs[3:]).state()]
    assert states[0].dtype == torch.float64
    assert Metrics.result_of(sum(states)) == pytest.approx(measured(pairs).result(), rel=1e-15)


def test_batches_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match=r"predictions \(1, 6\), targets \(1, 6\), 2 predicted and 1 target texts"):
        Metrics(NULL).update(ids("ab"), ids("ab"), ["ab", "c"], ["ab"])
    with pytest.raises(ValueError, match=r"predictions \(1, 5\), targets \(1, 6\)"):
        Metrics(NULL).update(ids("ab", length=5), ids("ab"), ["ab"], ["ab"])
