"""The decoders step by step against their equations, in float64."""

import pytest
import torch

from aocr_torch.model.cells import GRUCell, LSTMCell
from aocr_torch.model.decoder import AttentionDecoder, NetSliceDecoder

B, L, C, K, T, U = 2, 12, 5, 7, 4, 6
SEED = 3


def features() -> torch.Tensor:
    return torch.randn(B, L, C, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))


def spread(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights large enough that every path matters and cells reach their clip."""
    generator = torch.Generator().manual_seed(SEED + 1)
    for parameter in module.double().parameters():
        parameter.data.normal_(std=0.8, generator=generator)
    return module


def lstm(x, c, h, weight, bias, clip):
    i, j, f, o = (torch.cat([x, h], 1) @ weight.T + bias).split(U, 1)
    c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(j)
    c = c.clip(-clip, clip)
    return c, torch.sigmoid(o) * torch.tanh(c)


def test_a_reading_stops_when_all_have_ended_at_once():
    """Up to there nothing changes; what is left out is a certain null without attention; taught, all runs."""
    decoder = spread(AttentionDecoder(C, K, T, U))
    whole, attention = decoder(features())
    ids = whole.argmax(2)  # (B, T)
    assert (ids[0] != ids[1]).all()
    alone = features()[:1]
    decoder.ending = int(ids[0, 1])
    logits, weights = decoder(alone)
    stop = int((ids[0] == decoder.ending).nonzero()[0]) + 1
    torch.testing.assert_close(logits[:, :stop], whole[:1, :stop])
    torch.testing.assert_close(weights[:, :stop], attention[:1, :stop])
    assert stop < T
    assert (logits[:, stop:].softmax(2)[..., decoder.ending] == 1).all()
    assert (weights[:, stop:] == 0).all()
    torch.testing.assert_close(decoder(features())[0], whole)  # the other has not ended
    assert (decoder(alone, ids[:1])[1] > 0).all()


@pytest.mark.parametrize("autoregression", [True, False])
@pytest.mark.parametrize("teach", [True, False])
def test_attention_decoder_is_its_equations(autoregression, teach):
    decoder = spread(AttentionDecoder(C, K, T, U, autoregression, "lstm", state_clip_value=0.7))
    labels = torch.tensor([[1, 2, 3, 4], [6, 0, 6, 5]]) if teach else None
    logits, attention = decoder(features(), labels)
    w = dict(decoder.named_parameters())
    F = features()
    c = h = torch.zeros(B, U, dtype=torch.float64)
    d, p = torch.zeros(B, C, dtype=torch.float64), torch.zeros(B, K, dtype=torch.float64)
    for t in range(T):
        x = torch.cat([p, d], 1) @ w["input_projection.weight"].T + w["input_projection.bias"]
        c, h = lstm(x, c, h, w["cell.linear.weight"], w["cell.linear.bias"], 0.7)
        y = torch.cat([c, h], 1) @ w["attention_query.weight"].T + w["attention_query.bias"]
        e = (w["attention_v"] * torch.tanh(F @ w["attention_key.weight"].T + y[:, None])).sum(2)
        a = e.softmax(1)
        d = (a[..., None] * F).sum(1)
        out = torch.cat([h, d], 1) @ w["output_projection.weight"].T + w["output_projection.bias"]
        step = out @ w["classifier.weight"].T + w["classifier.bias"]
        torch.testing.assert_close(logits[:, t], step)
        torch.testing.assert_close(attention[:, t], a)
        if autoregression:
            ids = labels[:, t] if teach else step.argmax(1)
            p = torch.nn.functional.one_hot(ids, K).double()
    assert logits.shape == (B, T, K)
    assert attention.shape == (B, T, L)


@pytest.mark.parametrize("autoregression", [True, False])
@pytest.mark.parametrize("teach", [True, False])
def test_net_slice_is_its_equations(autoregression, teach):
    decoder = spread(NetSliceDecoder(C, L, K, T, U, autoregression, "lstm", state_clip_value=0.7))
    labels = torch.tensor([[1, 2, 3, 4], [6, 0, 6, 5]]) if teach else None
    logits, attention = decoder(features(), labels)
    assert attention is None
    w = dict(decoder.named_parameters())
    c = h = torch.zeros(B, U, dtype=torch.float64)
    p = torch.zeros(B, K, dtype=torch.float64)
    for t in range(T):
        x = features()[:, t : t + 3].reshape(B, -1)  # 12 positions, 4 steps: 3 a step, stride one
        x = torch.cat([x, p], 1) if autoregression else x
        c, h = lstm(x, c, h, w["cell.linear.weight"], w["cell.linear.bias"], 0.7)
        step = h @ w["classifier.weight"].T + w["classifier.bias"]
        torch.testing.assert_close(logits[:, t], step)
        p = torch.nn.functional.one_hot(labels[:, t] if teach else step.argmax(1), K).double()


def test_teaching_with_its_own_choices_changes_nothing():
    decoder = spread(AttentionDecoder(C, K, T, U))
    free, _ = decoder(features())
    taught, _ = decoder(features(), free.argmax(2))
    torch.testing.assert_close(free, taught)


def test_gru_is_torchs():
    ours = spread(GRUCell(C, U))
    theirs = torch.nn.GRUCell(C, U).double()
    theirs.load_state_dict(
        {
            "weight_ih": ours.linear.weight,
            "weight_hh": ours.hidden.weight,
            "bias_ih": ours.linear.bias,
            "bias_hh": ours.hidden.bias,
        }
    )
    x, h = features()[:, 0], torch.randn(B, U, dtype=torch.float64)
    torch.testing.assert_close(ours(x, (h,))[0], theirs(x, h))


@pytest.mark.parametrize("kind", [AttentionDecoder, NetSliceDecoder])
def test_gru_decoders_train(kind):
    arguments = (C, K, T, U) if kind is AttentionDecoder else (C, L, K, T, U)
    decoder = kind(*arguments, cell="gru").double()
    logits, _ = decoder(features(), torch.zeros(B, T, dtype=torch.int64))
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_lstm_without_clip():
    cell = spread(LSTMCell(C, U, state_clip_value=0))
    c = torch.full((B, U), 50.0, dtype=torch.float64)
    assert cell(features()[:, 0], (c, c))[0].max() > 20


def test_too_few_positions():
    with pytest.raises(ValueError, match="found 3 feature positions for 4 steps"):
        NetSliceDecoder(C, 3, K, T)
