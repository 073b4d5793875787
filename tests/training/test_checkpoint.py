"""Checkpoints on disk, and what happens with files that do not fit."""

import os
import resource

import pytest
import torch
from tiny import CHARSET, FLAGS

from aocr_torch.config import Config
from aocr_torch.model.ocr import AttentionOCR
from aocr_torch.training import checkpoint
from aocr_torch.training.checkpoint import CheckpointError, Checkpoints, build_model, load, load_model, load_tower, save


def config(**changes) -> Config:
    return Config().replace(**{**FLAGS, **changes})


def network(**changes) -> AttentionOCR:
    c = config(**changes)
    return AttentionOCR(c.data, c.model, CHARSET.size)


def test_round_trip_and_nothing_beside(tmp_path):
    save(tmp_path / "deep" / "x.pth", {"a": torch.arange(3), "b": [1, None, "c"]})
    state = load(tmp_path / "deep" / "x.pth")
    assert state["a"].tolist() == [0, 1, 2]
    assert state["b"] == [1, None, "c"]
    assert os.listdir(tmp_path / "deep") == ["x.pth"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    save(tmp_path / "x.pth", {"a": 1})
    with pytest.raises(AttributeError):
        save(tmp_path / "x.pth", {"a": lambda: 1})  # cannot be pickled
    assert load(tmp_path / "x.pth") == {"a": 1}
    assert os.listdir(tmp_path) == ["x.pth"]


def test_a_full_disk_is_said(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as error:
            save(tmp_path / "x.pth", {"a": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.filename == str(tmp_path / "x.pth")
    assert os.listdir(tmp_path) == []


def test_keeps_the_most_recent(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    for step in (2, 10, 9):
        checkpoints.save({"step": step})
    (tmp_path / "checkpoint-x.pth").touch()
    assert [path.name for path in checkpoints.all()] == ["checkpoint-00000009.pth", "checkpoint-00000010.pth"]
    assert load(tmp_path) == {"step": 10}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "not a readable PyTorch checkpoint"),
        (b"\x00" * 100, "convert_inception.py first"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_was_cut_off_says_so(tmp_path):
    save(tmp_path / "x.pth", {"model": {"weight": torch.zeros(1000)}})
    os.truncate(tmp_path / "x.pth", 2000)
    with pytest.raises(CheckpointError, match="damaged or cut off: without it, a training goes on from the checkpoint"):
        load(tmp_path / "x.pth")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError):
        load(tmp_path / "evil.pth")
    assert not (tmp_path / "run").exists()


def test_folder_without_checkpoints_and_other_contents(tmp_path):
    with pytest.raises(CheckpointError, match=r"without checkpoint-\*.pth"):
        load(tmp_path)
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="found list, expected a dict"):
        load(tmp_path / "list.pth")


def test_whole_model(tmp_path):
    ours, theirs = network(), network()
    save(tmp_path / "x.pth", {"model": theirs.state_dict()})
    report = load_model(ours, tmp_path / "x.pth")
    assert len(report.loaded) == len(ours.state_dict())
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name])


def test_models_that_do_not_fit(tmp_path):
    save(tmp_path / "x.pth", {"model": network(num_lstm_units=8).state_dict()})
    with pytest.raises(CheckpointError, match=r"has shape \(.*\), the model expects \(") as error:
        load_model(network(), tmp_path / "x.pth")
    assert "\n" not in str(error.value)
    save(tmp_path / "y.pth", {"model": network(use_attention=False).state_dict()})
    with pytest.raises(CheckpointError, match=r"has no 'decoder.attention_key.weight' \(8 of .* tensors missing\)"):
        load_model(network(), tmp_path / "y.pth")


def test_tower_alone(tmp_path):
    ours, theirs = network(), network(final_endpoint="Conv2d_4a_3x3")
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    save(tmp_path / "x.pth", {"model": theirs.state_dict()})
    report = load_tower(ours, tmp_path / "x.pth")
    assert "tower.Conv2d_4a_3x3.conv.weight" in report.ignored
    assert "were not needed" in str(report)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, (theirs.state_dict() if name.startswith("tower.") else before)[name])


def test_tower_from_torchvision(tmp_path):
    inception = pytest.importorskip("torchvision").models.inception_v3(weights=None, init_weights=False)
    torch.nn.init.normal_(inception.Conv2d_1a_3x3.bn.weight, 1, 0.1)
    torch.save(inception.state_dict(), tmp_path / "inception.pth")
    ours = network()
    report = load_tower(ours, tmp_path / "inception.pth")
    torch.testing.assert_close(ours.tower.Conv2d_3b_1x1.conv.weight, inception.Conv2d_3b_1x1.conv.weight)
    torch.testing.assert_close(ours.tower.Conv2d_1a_3x3.bn.weight.data, inception.Conv2d_1a_3x3.bn.weight.data)
    assert "gamma" in str(report)


def test_evaluation_takes_the_average_of_the_weights():
    model = network()
    averages = {name: torch.full_like(p, 0.5) for name, p in model.named_parameters() if p.requires_grad}
    state = {"model": model.state_dict(), "ema": {"num_updates": 3, "averages": averages}}
    built = build_model(state, config(ema_decay=0.9), CHARSET, "x")
    assert all((p == 0.5).all() for p in built.parameters() if p.requires_grad)
    assert not built.training


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path):
    checkpoint.save(tmp_path / "x.pth", {"format": "aocr_torch/2", "model": {}})
    with pytest.raises(CheckpointError, match="has format 'aocr_torch/2', expected 'aocr_torch/1'"):
        checkpoint.load(tmp_path / "x.pth")


def test_half_precision_in_a_file_is_float32_once_read(tmp_path):
    checkpoint.save(tmp_path / "x.pth", {"model": {"w": torch.ones(2, dtype=torch.float16)}})
    assert checkpoint.load(tmp_path / "x.pth")["model"]["w"].dtype == torch.float32
