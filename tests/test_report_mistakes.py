"""Reading mistakes again says what the evaluation and the Predictor say."""

import numpy as np
import pytest
import torch

from aocr_torch.predict import Predictor
from aocr_torch.report_mistakes import read_again
from aocr_torch.training import checkpoint
from aocr_torch.training.evaluate import open_dataset


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
