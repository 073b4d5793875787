"""How sure the measures of an evaluation are, how far confidences can be trusted, and which characters are confused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Optional

from rapidfuzz.distance import Levenshtein

Z95 = 1.959963984540054
"""The normal distribution's 97.5 % quantile: intervals of 95 %."""


def wilson_interval(right: int, total: int, z: float = Z95) -> Optional[tuple[float, float]]:
    """The Wilson score interval of a proportion (Wilson 1927): (low, high), or None of nothing.

    Unlike the mean and its standard error it stays within 0 .. 1 and says something where all or none are right.
    """
    if total == 0:
        return None
    share, square = right / total, z * z
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = z * math.sqrt(share * (1 - share) / total + square / (4 * total * total)) / (1 + square / total)
    # At the ends the formula gives exactly 0 and 1, rounding does not.
    return (0.0 if right == 0 else centre - half), (1.0 if right == total else centre + half)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], z: float = Z95
) -> Optional[tuple[float, float]]:
    """The normal interval of sum(numerators) / sum(denominators) over independent records: (low, high), at least 0.

    The variance is that of the linearised ratio (Cochran 1977, 2.11); with denominators of 1 it is that of a mean.
    None for fewer than two records, and where all have the same ratio, which says nothing about the next.
    """
    count, total = len(numerators), sum(denominators)
    if count < 2 or total == 0:
        return None
    ratio = sum(numerators) / total
    squares = sum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators))
    half = z * math.sqrt(squares * count / (count - 1)) / total
    return (max(ratio - half, 0.0), ratio + half) if half > 1e-12 else None


@dataclass(frozen=True)
class Group:
    """Some of the records of an evaluation, and how many of them are right."""

    low: float
    """The least value of what they are grouped by."""
    high: float
    """The greatest."""
    count: int
    right: int
    mean: float = float("nan")
    """Of the values of those in it; NaN of an empty group."""

    @property
    def accuracy(self) -> float:
        """Share of the right; NaN of an empty group."""
        return self.right / self.count if self.count else float("nan")


def reliability(confidences: Sequence[float], is_right: Sequence[bool], num_bins: int = 10) -> list[Group]:
    """Records in bins of equal width by confidence in 0 .. 1; 1 belongs to the last bin."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(num_bins)]
    for pair in zip(confidences, is_right):
        bins[min(int(pair[0] * num_bins), num_bins - 1)].append(pair)
    return [
        Group(
            number / num_bins,
            (number + 1) / num_bins,
            len(pairs),
            sum(right for _, right in pairs),
            sum(confidence for confidence, _ in pairs) / len(pairs) if pairs else float("nan"),
        )
        for number, pairs in enumerate(bins)
    ]


def expected_calibration_error(bins: Sequence[Group]) -> float:
    """ECE: the mean distance of accuracy and mean confidence of the bins, weighted by their counts; NaN of nothing.

    As in Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    total = sum(each.count for each in bins)
    gaps = sum(each.count * abs(each.accuracy - each.mean) for each in bins if each.count)
    return gaps / total if total else float("nan")


def by_value(values: Sequence[int], is_right: Sequence[bool]) -> list[Group]:
    """Records grouped by an integer, such as the length of their label, ascending."""
    found: dict[int, list[bool]] = {}
    for value, right in zip(values, is_right):
        found.setdefault(value, []).append(right)
    return [Group(value, value, len(rights), sum(rights), value) for value, rights in sorted(found.items())]


def align(label: str, text: str) -> list[tuple[str, str]]:
    """Pairs (character of the label, character read) of a shortest edit of one into the other.

    A character that was missed has "" at its side, and so has one that was added. Of several shortest edits it is
    always the same one.
    """
    pairs: list[tuple[str, str]] = []
    for operation in Levenshtein.opcodes(label, text):
        expected = label[operation.src_start : operation.src_end]
        found = text[operation.dest_start : operation.dest_end]
        if operation.tag in ("equal", "replace"):
            pairs += zip(expected, found)  # of equal length
        else:
            pairs += [(character, "") for character in expected] + [("", character) for character in found]
    return pairs


def confusions(pairs: Iterable[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    """The unequal pairs of `align` and how often they occur, the most frequent first."""
    counts = Counter(pair for pair in pairs if pair[0] != pair[1])
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
