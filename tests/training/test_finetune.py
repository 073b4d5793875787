import pytest
import torch

from aocr_torch.config import Data, Model
from aocr_torch.model.ocr import AttentionOCR
from aocr_torch.training.finetune import remap_charset_rows

SMALL = Data(image_height=80, image_width=160, num_views=2, max_sequence_length=5)
OLD = [" ", "a", "b", "c", "d", "<nul>"]


def build(characters, seed, **options):
    torch.manual_seed(seed)
    return AttentionOCR(SMALL, Model(num_lstm_units=7, final_endpoint="Mixed_5b", **options), len(characters)).eval()


def teacher_forced_logits(model, characters, text):
    """Logits (T, characters of OLD that both have) when the model is told `text`."""
    features = torch.randn(1, 60, 256, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits, _ = model.decoder(features, torch.tensor([[characters.index(character) for character in text]]))
    return logits[0][:, [characters.index(character) for character in OLD if character in characters]]


@pytest.fixture(params=["attention", "attention with gru", "netslice", "netslice with gru", "netslice without"])
def options(request):
    """Decoders; NetSlice reads positions of 256 channels, 60 of them as in `teacher_forced_logits`."""
    kind = request.param
    return {
        "use_attention": kind.startswith("attention"),
        "use_autoregression": "without" not in kind,
        "cell": "gru" if "gru" in kind else "lstm",
    }


def remap(old_model, new_characters, options):
    fresh = build(new_characters, 2, **options)
    state, kept, new = remap_charset_rows(
        old_model.state_dict(), OLD, new_characters, fresh.state_dict(), options["use_autoregression"]
    )
    model = build(new_characters, 2, **options)
    model.load_state_dict(state)
    return model, kept, new, fresh


def test_a_larger_charset_changes_nothing_for_shared_characters(options):
    old_model = build(OLD, 1, **options)
    new_characters = ["x", "d", "a", " ", "y", "c", "b", "z", "<nul>"]
    model, kept, new, fresh = remap(old_model, new_characters, options)
    assert kept == ["d", "a", " ", "c", "b", "<nul>"]
    assert new == ["x", "y", "z"]
    before = teacher_forced_logits(old_model, OLD, "ab dc")
    after = teacher_forced_logits(model, new_characters, "ab dc")
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    for index in (0, 4, 7):
        assert torch.equal(model.decoder.classifier.weight[index], fresh.decoder.classifier.weight[index])


def test_added_features_of_the_projection_can_learn():
    old_model = build(OLD, 1)
    model, *_ = remap(old_model, [*OLD, "x"], {"use_autoregression": True})
    model.decoder(torch.randn(1, 60, 256))[0].sum().backward()
    assert (model.decoder.cell.linear.weight[:, 6] == 0).all()
    assert (model.decoder.cell.linear.weight.grad[:, 6] != 0).any()


def test_the_same_charset_in_another_order_and_none_shared(options):
    old_model = build(OLD, 1, **options)
    model, kept, new, _ = remap(old_model, OLD[::-1], options)
    assert (kept, new) == (OLD[::-1], [])
    after = teacher_forced_logits(model, OLD[::-1], "ab dc")
    torch.testing.assert_close(after, teacher_forced_logits(old_model, OLD, "ab dc"), rtol=1e-5, atol=1e-6)
    model, kept, new, fresh = remap(old_model, ["x", "y"], options)
    assert (kept, new) == ([], ["x", "y"])
    assert torch.equal(model.decoder.classifier.weight, fresh.decoder.classifier.weight)
    assert torch.equal(model.tower.Mixed_5b.branch1x1.conv.weight, old_model.tower.Mixed_5b.branch1x1.conv.weight)


def test_a_smaller_charset_keeps_what_moves_the_cell_most():
    old_model = build(OLD, 1)
    with torch.no_grad():  # two features that the cell hardly reads
        old_model.decoder.cell.linear.weight[:, [1, 4]] *= 1e-7
    new_characters = ["b", "a", " ", "<nul>"]
    model, kept, new, _ = remap(old_model, new_characters, {"use_autoregression": True})
    assert (kept, new) == (new_characters, [])
    before = teacher_forced_logits(old_model, OLD, "ab a ")[:, [0, 1, 2, 5]]
    torch.testing.assert_close(teacher_forced_logits(model, new_characters, "ab a "), before, rtol=1e-4, atol=1e-5)


def test_models_that_do_not_belong_together():
    state, fresh = build(OLD, 1).state_dict(), build(OLD[1:], 2).state_dict()
    with pytest.raises(ValueError, match="the trained model has 6 classes, but its charset has 5 characters"):
        remap_charset_rows(state, OLD[1:], OLD[1:], fresh)
    with pytest.raises(ValueError, match="the trained model has no classifier"):
        remap_charset_rows({}, OLD, OLD[1:], fresh)
    other = AttentionOCR(SMALL, Model(num_lstm_units=8, final_endpoint="Mixed_5b"), 5).state_dict()
    with pytest.raises(ValueError, match=r"attention_query\.weight: found \[256, 14\], expected \[256, 16\]"):
        remap_charset_rows(state, OLD, OLD[1:], other)
    with pytest.raises(ValueError, match="differ in more than their charsets"):
        remap_charset_rows(state, OLD, OLD, fresh)
    with pytest.raises(ValueError, match="found nothing"):
        remap_charset_rows({"decoder.classifier.bias": torch.zeros(6)}, OLD, OLD[1:], fresh)


def test_the_bias_of_the_projection_goes_along():
    data = Data(image_height=48, image_width=96, num_views=2, max_sequence_length=4)

    def build(classes):
        return AttentionOCR(data, Model(final_endpoint="Conv2d_2a_3x3", num_lstm_units=4), classes)

    old, fresh = build(3).state_dict(), build(5).state_dict()
    old["decoder.input_projection.bias"] = torch.tensor([1.0, 2.0, 3.0])
    state, *_ = remap_charset_rows(old, ["a", "b", "<nul>"], ["a", "b", "c", "d", "<nul>"], fresh)
    assert state["decoder.input_projection.bias"][:3].tolist() == [1.0, 2.0, 3.0]
    # One feature less: the bias counts in what moves the cell.
    old["decoder.cell.linear.weight"][:, :3] = 1.0
    old["decoder.input_projection.weight"][:] = 1e-3
    old["decoder.input_projection.bias"] = torch.tensor([0.0, 2.0, 3.0])
    state, *_ = remap_charset_rows(old, ["a", "b", "<nul>"], ["a", "<nul>"], build(2).state_dict())
    assert state["decoder.input_projection.bias"].tolist() == [2.0, 3.0]
