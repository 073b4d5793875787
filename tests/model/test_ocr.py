"""The whole network: layouts, coordinates, batch invariance, and what logits say."""

import pytest
import torch

from aocr_torch.config import Config, Data, Model
from aocr_torch.model.ocr import AttentionOCR, append_coordinates, interpret

SMALL = Model(final_endpoint="Conv2d_3b_1x1", num_lstm_units=8)


def network(num_views: int, height: int, width: int, **model) -> AttentionOCR:
    torch.manual_seed(0)
    data = Data(num_views=num_views, image_height=height, image_width=num_views * width, max_sequence_length=5)
    return AttentionOCR(data, Config(model=SMALL).replace(**model).model, 7).eval()


@pytest.mark.parametrize(("num_views", "height", "width"), [(1, 40, 90), (2, 48, 48), (4, 60, 40)])
@pytest.mark.parametrize("coordinates", [True, False])
def test_any_number_and_size_of_views(num_views, height, width, coordinates):
    model = network(num_views, height, width, encode_coordinates=coordinates)
    views, rows, columns = model.map_shape
    out = model(torch.rand(3, num_views, 3, height, width))
    assert views == num_views
    assert out["logits"].shape == (3, 5, 7)
    assert out["attention"].shape == (3, 5, num_views * rows * columns)
    torch.testing.assert_close(out["attention"].sum(2), torch.ones(3, 5))


def test_positions_are_view_row_column():
    model = network(2, 48, 60)
    views, height, width = model.map_shape
    x = torch.rand(1, 2, 3, 48, 60)
    features = model.features(x).view(views, height, width, -1)
    for view in range(2):
        alone = model.tower((x[:, view] - 0.5) * 2.5)[0].permute(1, 2, 0)
        torch.testing.assert_close(features[view], alone, atol=1e-5, rtol=1e-5)


def test_the_crop_decides_the_size():
    data = Data(num_views=2, image_height=60, image_width=160, crop_width=120, crop_height=48, max_sequence_length=5)
    model = AttentionOCR(data, SMALL, 7)
    assert model.map_shape == network(2, 48, 60).map_shape


def test_coordinates_are_row_then_column():
    out = append_coordinates(torch.zeros(2, 3, 2, 4))
    assert out.shape == (2, 3 + 2 + 4, 2, 4)
    assert out[0, 3:5, :, 0].tolist() == [[1, 0], [0, 1]]
    assert out[1, 5:, 1].tolist() == torch.eye(4).tolist()


def test_an_answer_does_not_depend_on_its_neighbours():
    model = network(2, 48, 48)
    batch = torch.rand(5, 2, 3, 48, 48)
    together = model(batch)["logits"]
    for i in range(5):
        torch.testing.assert_close(model(batch[i : i + 1])["logits"][0], together[i], atol=1e-5, rtol=1e-5)


def test_interpret():
    """Two texts over the classes a, b, null: "ab" with a null in the middle, and one that fills every step."""
    ids = torch.tensor([[0, 2, 1, 2], [1, 1, 0, 0]])
    probabilities = torch.full((2, 4, 3), 0.1).scatter(2, ids[..., None], 0.8)
    prediction = interpret(probabilities.log() + 3, null_id=2)
    assert prediction.ids.tolist() == ids.tolist()
    assert prediction.lengths.tolist() == [2, 4]
    torch.testing.assert_close(prediction.scores, torch.full((2, 4), 0.8))
    torch.testing.assert_close(prediction.log_probabilities, probabilities.log())
    expected = torch.tensor([3.0, 4.0]) * torch.tensor(0.8).log()  # up to and including position 2; all four
    torch.testing.assert_close(prediction.confidences, expected)
    torch.testing.assert_close(prediction.normalized_confidences, (expected / torch.tensor([3.0, 5.0])).exp())
