"""Intervals against published numbers, calibration by hand, alignments by their definition."""

import math
import random

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

from aocr_torch.training.statistics import (
    Group,
    align,
    by_value,
    confusions,
    expected_calibration_error,
    ratio_interval,
    reliability,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_newcombe_1998_tabulates_it(right, total, low, high):
    assert wilson_interval(right, total) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(total - right, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("total", [1, 3, 20404])
def test_wilson_stays_within_its_bounds(total):
    assert wilson_interval(0, total)[0] == 0
    assert wilson_interval(total, total)[1] == 1
    assert 0 < wilson_interval(0, total)[1] < 1
    assert wilson_interval(0, 0) is None


def test_interval_of_a_mean():
    values = [0.2, 0.4, 0.9, 1.0]
    half = 1.959964 * np.std(values, ddof=1) / 2
    mean = np.mean(values)
    assert ratio_interval(values, [1] * 4) == pytest.approx((mean - half, mean + half), abs=1e-6)


def test_interval_of_a_ratio_covers_the_true_one_as_often_as_it_says():
    random_numbers = np.random.RandomState(0)
    covered = 0
    for _ in range(400):
        lengths = random_numbers.randint(1, 30, 200)
        edits = random_numbers.binomial(lengths, random_numbers.choice([0.0, 0.4], 200))  # clustered in records
        low, high = ratio_interval(edits.tolist(), lengths.tolist())
        covered += low <= 0.2 <= high
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize("values", [[], [0.5], [1, 1, 1], [0, 0]])
def test_no_interval_where_records_say_nothing_of_the_next(values):
    assert ratio_interval(values, [1] * len(values)) is None
    assert ratio_interval([1, 2], [0, 0]) is None


def test_calibration():
    confidences = [0.0, 0.05, 0.95, 0.95, 0.9, 1.0]
    bins = reliability(confidences, [False, True, True, True, False, True])
    assert [(b.count, b.right) for b in bins if b.count] == [(2, 1), (4, 3)]
    assert (bins[9].low, bins[9].high, bins[9].mean) == (0.9, 1.0, pytest.approx(0.95))
    assert math.isnan(bins[5].accuracy)
    assert expected_calibration_error(bins) == pytest.approx((2 * (0.5 - 0.025) + 4 * (0.95 - 0.75)) / 6)
    assert math.isnan(expected_calibration_error(reliability([], [])))


def test_a_calibrated_model_has_no_error():
    chance = random.Random(0)
    confidences = [chance.random() for _ in range(50_000)]
    is_right = [chance.random() < confidence for confidence in confidences]
    assert expected_calibration_error(reliability(confidences, is_right)) < 0.01
    assert expected_calibration_error(reliability(confidences, [False] * 50_000)) == pytest.approx(0.5, abs=0.01)


def test_groups_by_value():
    groups = by_value([3, 0, 3], [True, False, False])
    assert groups == [Group(0, 0, 1, 0, 0), Group(3, 3, 2, 1, 3)]


def test_alignment():
    assert align("Rue", "Rue") == [("R", "R"), ("u", "u"), ("e", "e")]
    assert align("hôtel", "hotl") == [("h", "h"), ("ô", "o"), ("t", "t"), ("e", ""), ("l", "l")]
    assert align("", "ab") == [("", "a"), ("", "b")]
    assert align("", "") == []


def test_alignments_are_shortest_edits():
    chance = random.Random(1)
    for _ in range(500):
        label, text = ("".join(chance.choices("abc", k=chance.randint(0, 9))) for _ in range(2))
        pairs = align(label, text)
        assert "".join(expected for expected, _ in pairs) == label
        assert "".join(found for _, found in pairs) == text
        assert sum(expected != found for expected, found in pairs) == Levenshtein.distance(label, text)


def test_confusions():
    pairs = [*align("été", "ete"), *align("ça", "ca"), *align("a", "ab"), *align("la", "a")]
    assert confusions(pairs) == [(("é", "e"), 2), (("", "b"), 1), (("l", ""), 1), (("ç", "c"), 1)]
