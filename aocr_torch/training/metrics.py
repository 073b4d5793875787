"""How good predictions are: the reference's two accuracies, and stricter measures beside them.

B batch, T steps. The reference asks only whether the positions of the TARGET's characters are right. What a prediction
says after the end of the target goes unpunished in both of its measures; the measures on texts punish it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rapidfuzz.distance import Levenshtein

CHARACTER_ACCURACY = "CharacterAccuracy"
SEQUENCE_ACCURACY = "SequenceAccuracy"
STRICT_SEQUENCE_ACCURACY = "StrictSequenceAccuracy"
CHARACTER_ERROR_RATE = "CharacterErrorRate"
NORMALIZED_EDIT_DISTANCE = "NormalizedEditDistance"
NUM_EXAMPLES = "num_examples"
NUM_EMPTY_TARGETS = "num_empty_targets"


def character_accuracy(predictions: torch.Tensor, targets: torch.Tensor, null_id: int) -> torch.Tensor:
    """For each example the share of the target's characters that are predicted right: (B,) float64.

    predictions, targets: (B, T) integer ids. The reference's char_accuracy is the mean of this over the examples: an
    example of one character weighs as much as one of thirty. An empty target (all null) gives 0/0 = NaN, as there,
    where one such example makes every later streaming mean NaN; Metrics leaves it out of the mean and counts it.
    """
    counts = targets != null_id
    correct = (predictions == targets) & counts
    return correct.sum(1).double() / counts.sum(1)


def sequence_accuracy(predictions: torch.Tensor, targets: torch.Tensor, null_id: int) -> torch.Tensor:
    """For each example 1 if all of the target's characters are predicted right, else 0: (B,) float64.

    predictions, targets: (B, T) integer ids. As in the reference, positions where the target is null do not count:
    characters after the end of the target are forgiven, and an empty target is always right.
    """
    return ((predictions == targets) | (targets == null_id)).all(1).double()


class Metrics:
    """Sums over any number of batches and ranks; a mean over everything at the end.

    The state is a short vector of sums: ranks are merged by adding theirs, and no example is kept.
    """

    _FIELDS = (
        "num_examples",
        "num_empty_targets",
        "character_accuracy_sum",
        "sequence_accuracy_sum",
        "equal_texts",
        "distance_sum",
        "target_length_sum",
        "normalized_distance_sum",
    )

    def __init__(self, null_id: int) -> None:
        self.null_id = null_id
        self._sums = dict.fromkeys(self._FIELDS, 0.0)

    def update(
        self,
        predictions: torch.Tensor,
        targets: torch.Tensor,
        predicted_texts: Sequence[str],
        target_texts: Sequence[str],
    ) -> None:
        """Add a batch. predictions, targets: (B, T) integer ids; texts: B strings without nulls.

        Raises ValueError where the batch sizes or shapes differ.
        """
        sizes = {len(predictions), len(targets), len(predicted_texts), len(target_texts)}
        if len(sizes) != 1 or predictions.shape != targets.shape:
            raise ValueError(
                f"predictions {tuple(predictions.shape)}, targets {tuple(targets.shape)}, {len(predicted_texts)} "
                f"predicted and {len(target_texts)} target texts: expected equal shapes (B, T) and one text each"
            )
        predictions, targets = predictions.cpu(), targets.cpu()  # not every accelerator knows float64
        sums = self._sums
        by_character = character_accuracy(predictions, targets, self.null_id)
        sums["num_examples"] += len(targets)
        sums["num_empty_targets"] += int(by_character.isnan().sum())
        sums["character_accuracy_sum"] += float(by_character.nansum())
        sums["sequence_accuracy_sum"] += float(sequence_accuracy(predictions, targets, self.null_id).sum())
        for predicted, target in zip(predicted_texts, target_texts):
            distance = Levenshtein.distance(predicted, target)
            sums["equal_texts"] += predicted == target
            sums["distance_sum"] += distance
            sums["target_length_sum"] += len(target)
            sums["normalized_distance_sum"] += distance / max(len(predicted), len(target), 1)

    def state(self) -> torch.Tensor:
        """The sums, (8,) float64 on the CPU: counts are exact up to 2**53, so ranks may be added in any order."""
        return torch.tensor(list(self._sums.values()), dtype=torch.float64)

    def result(self) -> dict[str, float]:
        """The measures so far, see result_of."""
        return self.result_of(self.state())

    @classmethod
    def result_of(cls, state: torch.Tensor) -> dict[str, float]:
        """The measures of a state, or of the sum of several ranks' states, under their names.

        NaN where nothing was counted (no example; only empty targets).

        CharacterAccuracy: mean of character_accuracy over the examples whose target is not empty.
        SequenceAccuracy: mean of sequence_accuracy over all examples.
        StrictSequenceAccuracy: share of examples whose predicted text, nulls dropped, equals the target text.
        CharacterErrorRate: sum of the Levenshtein distances / sum of the target lengths; can exceed 1.
        NormalizedEditDistance: 1 - mean of distance / length of the longer text, so 1 is perfect.
        """
        sums = dict(zip(cls._FIELDS, state.tolist()))
        examples = sums["num_examples"]
        return {
            CHARACTER_ACCURACY: _ratio(sums["character_accuracy_sum"], examples - sums["num_empty_targets"]),
            SEQUENCE_ACCURACY: _ratio(sums["sequence_accuracy_sum"], examples),
            STRICT_SEQUENCE_ACCURACY: _ratio(sums["equal_texts"], examples),
            CHARACTER_ERROR_RATE: _ratio(sums["distance_sum"], sums["target_length_sum"]),
            NORMALIZED_EDIT_DISTANCE: 1 - _ratio(sums["normalized_distance_sum"], examples),
            NUM_EXAMPLES: int(examples),
            NUM_EMPTY_TARGETS: int(sums["num_empty_targets"]),
        }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")
