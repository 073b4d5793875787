"""What became of each record of an evaluation: a short row each, and which of the mistakes are worth a look."""

from __future__ import annotations

from typing import Any, NamedTuple

from rapidfuzz.distance import Levenshtein

from aocr_torch.data.charset import Charset
from aocr_torch.model.ocr import Prediction
from aocr_torch.training import ranks
from aocr_torch.training.evaluate import CountError, Evaluation
from aocr_torch.training.metrics import character_accuracy, sequence_accuracy


class Outcome(NamedTuple):
    """What was read in one record."""

    index: int
    """Of the record in its data set."""
    label: str
    text: str
    confidence: float
    """Of the text, 0 .. 1, as `Reading.confidence` to six digits: the geometric mean; 0 where the logits are NaN."""
    probability: float
    """Of the text: the product of the same probabilities."""
    character_accuracy: float
    """The reference's measure; NaN for an empty label."""
    is_sequence_right: bool
    """By the reference's measure, which forgives what comes after the label."""

    @property
    def is_right(self) -> bool:
        """Whether the text is the label, nothing forgiven."""
        return self.text == self.label

    @property
    def distance(self) -> int:
        """Edits between text and label."""
        return Levenshtein.distance(self.label, self.text)

    @property
    def normalized_distance(self) -> float:
        """0 .. 1: edits over the length of the longer of the two."""
        return self.distance / max(len(self.label), len(self.text), 1)


class OutcomeRecorder:
    """Keeps an `Outcome` of each record that `evaluate` reads on this rank: give it as `on_batch`."""

    def __init__(self, charset: Charset) -> None:
        self.charset = charset
        self.outcomes: list[Outcome] = []

    def __call__(self, batch: dict[str, Any], prediction: Prediction) -> None:
        """Notes a batch, of which pictures and logits are not kept."""
        ids, labels, null_id = prediction.ids.cpu(), batch["label"], self.charset.null_id
        columns = (
            batch["index"].tolist(),
            map(self.charset.decode, labels.tolist()),
            map(self.charset.decode, ids.tolist()),
            [round(each, 6) for each in prediction.normalized_confidences.cpu().nan_to_num(0.0).tolist()],
            prediction.confidences.cpu().exp().nan_to_num(0.0).tolist(),
            character_accuracy(ids, labels, null_id).tolist(),
            (sequence_accuracy(ids, labels, null_id) == 1).tolist(),
        )
        self.outcomes += map(Outcome._make, zip(*columns))

    def gather(self, evaluation: Evaluation) -> list[Outcome]:
        """The outcomes of all ranks, in the order of the records; to be called on every rank.

        Raises:
            CountError: they are not those of the evaluation, each once.
        """
        outcomes = sorted(ranks.gather(self.outcomes), key=lambda outcome: outcome.index)
        distinct = len({outcome.index for outcome in outcomes})
        if not len(outcomes) == distinct == evaluation.evaluated:
            raise CountError(
                f"{len(outcomes)} outcomes of {distinct} records, expected one for each of {evaluation.evaluated}"
            )
        return outcomes


def choose_mistakes(outcomes: list[Outcome], count: int) -> tuple[list[Outcome], list[Outcome]]:
    """At most `count` mistakes, each once: half are the most confident ones, half those farthest from their label."""
    wrong = [outcome for outcome in outcomes if not outcome.is_right]
    wrong.sort(key=lambda outcome: -outcome.confidence)
    count = min(count, len(wrong))
    confident, rest = wrong[: count - count // 2], wrong[count - count // 2 :]
    rest.sort(key=lambda outcome: -outcome.normalized_distance)  # among equals the more confident first
    return confident, rest[: count // 2]
