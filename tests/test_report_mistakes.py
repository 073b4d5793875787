"""Reading mistakes again says what the evaluation and the Predictor say."""

import re

import numpy as np
import pytest
import torch

from aocr_torch.predict import Predictor, Reading
from aocr_torch.report_mistakes import card, read_again
from aocr_torch.training import checkpoint
from aocr_torch.training.evaluate import open_dataset
from aocr_torch.training.outcomes import Outcome


def test_as_the_predictor_reads(tiny_checkpoint):
    state = checkpoint.load(tiny_checkpoint)
    config = checkpoint.config_of(state)
    dataset = open_dataset(config, "train")
    model = checkpoint.build_model(state, config, dataset.charset, tiny_checkpoint)
    indices = [7, 0, 3, 10, 1]  # more than a batch
    again = list(read_again(model, dataset, indices, config, torch.device("cpu")))
    theirs = Predictor(tiny_checkpoint)([dataset[index]["image"].numpy() for index in indices])
    assert len(again) == 5
    assert any(reading.text for reading in again)
    for ours, expected in zip(again, theirs):
        assert ours.text == expected.text
        assert ours.confidence == pytest.approx(expected.confidence, abs=1e-5)
        assert ours.log_probability == pytest.approx(expected.log_probability, abs=1e-4)
        assert ours.character_confidences == pytest.approx(expected.character_confidences, abs=1e-5)
        assert np.array_equal(ours.views, expected.views)
        np.testing.assert_allclose(ours.attention, expected.attention, atol=1e-5)


def test_a_text_stays_text():
    """What was read, and what should have been, may hold what HTML means something by."""
    views = np.zeros((2, 4, 4, 3), np.uint8)
    outcome = Outcome(0, "a<q>&", "<u>x", 0.5, 0.1, 0.0, False)
    page = card("far off", 0, "<s>", outcome, Reading("<u>x", 0.5, -1.0, (0.5,) * 4, views, None, (8, 9)))
    assert not re.search(r"<(q|u|s)>", page)
    assert ">&lt;</button>" in page
    assert "><</button>" not in page
