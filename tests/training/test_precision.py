"""The loss scale's policy, and trainings in every precision that the host has."""

import importlib.machinery
import json
import random
import sys
import types

import pytest
import torch
from tiny import CHARSET, flags, write

import eval as evaluation
from aocr_torch.config import Config, ConfigError, parse_arguments
from aocr_torch.model.ocr import AttentionOCR
from aocr_torch.training import checkpoint, precision
from aocr_torch.training.evaluate import open_dataset
from aocr_torch.training.loop import train
from aocr_torch.training.precision import LossScale
from aocr_torch.training.state import NonFiniteError, Training

CPU = torch.device("cpu")
FLOAT16 = {"amp": True, "amp_dtype": "float16"}


def configure(**changes) -> Config:
    return parse_arguments(flags(**changes), description="test")[0]


class TensorFlowsPolicy:
    """ExponentialUpdateLossScaleManager as its graph has it: init 2**32, every 1000 and 2 steps, ratios 2 and 0.5."""

    def __init__(self, scale: float) -> None:
        self.scale, self.num_good, self.num_bad = torch.tensor(scale), 0, 0

    def step(self, is_finite: bool) -> None:
        if is_finite:
            if self.num_good + 1 >= 1000:
                if self.scale < torch.tensor(3.4e38) / 2:
                    self.scale = self.scale * 2
                self.num_good = self.num_bad = 0
            else:
                self.num_good += 1
        elif self.num_bad + 1 >= 2:
            self.scale = torch.maximum(torch.tensor(1.0), self.scale * 0.5)
            self.num_good = self.num_bad = 0
        else:
            self.num_bad += 1
            self.num_good = 0


@pytest.mark.parametrize("share_of_bad", [0.0005, 0.002, 0.5])
@pytest.mark.parametrize("start", [2.0**32, 2.0**125, 4.0])
def test_ten_thousand_steps_as_tensorflow(start, share_of_bad):
    """Rare bad steps let it grow to the ceiling, many push it to the floor."""
    ours, theirs = LossScale(), TensorFlowsPolicy(start)
    ours.scale = start
    draw = random.Random(3)
    seen = set()
    for _ in range(10_000):
        is_bad = draw.random() < share_of_bad
        ours.update(is_bad)
        theirs.step(not is_bad)
        assert (ours.scale, ours.good_steps, ours.bad_steps) == (theirs.scale.item(), theirs.num_good, theirs.num_bad)
        seen.add(ours.scale)
    assert len(seen) > 1
    assert max(seen) <= 2.0**127
    assert min(seen) >= 1
    if share_of_bad == 0.5:
        assert min(seen) == 1
    if start == 2.0**125 and share_of_bad == 0.0005:
        assert max(seen) == 2.0**127


def test_transitions_of_the_loss_scale():
    scale = LossScale()
    assert scale.scale == 2.0**32
    for is_bad in (True, False, True):  # two bad ones, not in a row
        scale.update(is_bad)
    assert (scale.scale, scale.good_steps, scale.bad_steps, scale.skipped) == (2.0**31, 0, 0, 2)
    for _ in range(999):
        scale.update(False)
    assert scale.scale == 2.0**31
    scale.update(True)  # the good steps start again
    for _ in range(999):
        scale.update(False)
    assert (scale.scale, scale.bad_steps) == (2.0**31, 1)
    other = LossScale()
    other.load_state_dict(json.loads(json.dumps(scale.state_dict())))
    other.update(False)
    assert (other.scale, other.good_steps, other.bad_steps, other.skipped) == (2.0**32, 0, 0, 3)


def test_steps_in_a_row_are_counted_only_at_the_floor():
    scale = LossScale()
    scale.scale = 2.0
    for is_bad, expected in [(True, 0), (True, 0), (True, 1), (True, 2), (False, 0), (True, 1)]:
        scale.update(is_bad)
        assert scale.skipped_at_floor == expected
    assert scale.scale == 1.0


def choose(**changes) -> precision.Precision:
    return precision.choose(configure(**changes).run, CPU)


@pytest.mark.usefixtures("host_float16")
def test_what_the_flags_choose():
    assert choose().description == "float32"
    assert choose().loss_scale is None
    chosen = choose(amp=True)
    assert (chosen.dtype, chosen.loss_scale) == (torch.bfloat16, None)
    assert chosen.description == "autocast in bfloat16, because apex serves npu devices only"
    assert choose(amp=True, amp_backend="native").description == "autocast in bfloat16, as asked for"
    assert choose(**FLOAT16).loss_scale.scale == 2.0**32
    with pytest.raises(ConfigError, match="amp_backend apex cannot be used: because apex serves npu devices only"):
        choose(amp=True, amp_backend="apex")
    with pytest.raises(ConfigError, match="apex has float16 only"):
        configure(amp=True, amp_backend="apex", amp_dtype="bfloat16")
    with pytest.raises(ConfigError, match="max_consecutive_skips is 0"):
        configure(max_consecutive_skips=0)


def test_a_format_that_this_torch_lacks(monkeypatch):
    monkeypatch.setattr(precision.devices, "can_autocast", lambda device, dtype: False)
    with pytest.raises(ConfigError, match="amp_dtype float16 cannot be used on cpu with torch"):
        choose(**FLOAT16)


def package(monkeypatch, **attributes) -> None:
    """Puts an apex with such an amp in the place of any that is installed."""
    apex, amp = types.ModuleType("apex"), types.ModuleType("apex.amp")
    apex.__path__, apex.__spec__ = [], importlib.machinery.ModuleSpec("apex", None)
    vars(amp).update(attributes)
    monkeypatch.setitem(sys.modules, "apex", apex)
    if attributes:
        monkeypatch.setitem(sys.modules, "apex.amp", amp)


def test_every_wrong_apex_is_recognised(monkeypatch):
    monkeypatch.setattr(precision.devices, "has_apex", lambda device: True)
    monkeypatch.setitem(sys.modules, "apex", None)
    assert precision.why_no_apex(CPU) == "because the Ascend apex is not installed"
    package(monkeypatch)
    assert "PyPI's apex is an unrelated one" in precision.why_no_apex(CPU)
    package(monkeypatch, initialize=lambda models, optimizers=None, opt_level="O1": None)
    assert "no current Ascend build (amp.initialize has no combine_grad)" in precision.why_no_apex(CPU)
    package(monkeypatch, other=1)
    assert "no current Ascend build" in precision.why_no_apex(CPU)
    package(monkeypatch, initialize=lambda models, combine_grad, dynamic_init_scale, max_loss_scale: None)
    assert precision.why_no_apex(CPU) == ""


def test_without_mixed_precision_a_step_is_what_it_always_was(tiny_dataset):
    """The step of a float32 training, written out with nothing between autograd and the optimizer."""
    from aocr_torch.model.loss import regularization_loss, sequence_loss
    from aocr_torch.training.evaluate import open_dataset
    from aocr_torch.training.optim import clip_gradients

    config = configure(dataset_dir=tiny_dataset, use_augment_input=False)
    dataset = open_dataset(config, "train")
    batch = dataset.batch(range(4))
    trained, plain = Training(config, CHARSET, CPU, 11), Training(config, CHARSET, CPU, 11)
    trained.distribute()
    model, optimizer = plain.model.train(), plain.optimizer
    for _ in range(3):
        losses = trained.train_step([batch])
        optimizer.zero_grad()
        loss = sequence_loss(
            model(plain.views(plain.on_device(batch, True)), batch["label"])["logits"], batch["label"], CHARSET.null_id
        )
        loss.backward()
        regularization = regularization_loss(model, config.optim.weight_decay)
        regularization.backward()
        clip_gradients(model.parameters(), config.optim.clip_gradient_norm)
        optimizer.step()
        assert torch.equal(losses["total_loss"], (loss + regularization).detach())
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[name]), name


def logged(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "total_loss" in line]


@pytest.mark.usefixtures("host_float16")
@pytest.mark.slow
@pytest.mark.parametrize("amp", [{"amp": True}, FLOAT16], ids=["bfloat16", "float16"])
def test_mixed_precision_learns_as_float32_does(tmp_path, amp):
    data = write(tmp_path / "data", train=8, validation=1, test=1)
    changes = {
        "dataset_dir": data,
        "batch_size": 8,
        "max_number_of_steps": 60,
        "log_interval_steps": 20,
        "optimizer": "adam",
        "learning_rate": 0.01,
        "use_augment_input": False,
    }
    assert train(configure(train_log_dir=tmp_path / "plain", **changes)) == 0
    assert train(configure(train_log_dir=tmp_path / "mixed", **changes, **amp)) == 0
    plain, mixed = logged(tmp_path / "plain"), logged(tmp_path / "mixed")
    assert mixed[-1]["total_loss"] < 0.7 * mixed[0]["total_loss"]
    assert mixed[-1]["total_loss"] == pytest.approx(plain[-1]["total_loss"], rel=0.1)
    assert mixed[-1]["total_loss"] != plain[-1]["total_loss"]
    state = checkpoint.load(tmp_path / "mixed")
    assert {v.dtype for v in state["model"].values()} == {torch.float32, torch.int64}
    log = (tmp_path / "mixed" / "train.log").read_text()
    if amp == FLOAT16:
        scale = state["loss_scale"]
        assert mixed[-1]["loss_scale"] == scale["scale"] < 2.0**32
        assert scale["skipped"] >= 2
        assert f"scale {scale['scale']:g}, skipped {scale['skipped']}" in log
        assert state["position"] == 8 * (60 + scale["skipped"])
    else:
        assert state["loss_scale"] is None
        assert "scale" not in log.splitlines()[-1]


@pytest.mark.usefixtures("host_float16")
def test_float16_resumes_to_the_bit_while_it_skips(tiny_dataset, tmp_path, monkeypatch):
    """A checkpoint at each step, each continued: the scale, its counters and the place in the data go on."""
    monkeypatch.setattr(LossScale, "START", 2.0**18)  # float16 is slow on the host, and 2**32 takes thirty steps
    changes = {"dataset_dir": tiny_dataset, "max_number_of_steps": 4, "save_interval_steps": 1, "ema_decay": 0.9}
    changes.update(FLOAT16, keep_checkpoints=9)
    assert train(configure(train_log_dir=tmp_path / "whole", **changes)) == 0
    whole = checkpoint.load(tmp_path / "whole")
    assert whole["loss_scale"]["skipped"] > 0
    for step in (1, 3):
        parts = tmp_path / f"from{step}"
        parts.mkdir()
        name = f"checkpoint-{step:08d}.pth"
        (parts / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        assert train(configure(train_log_dir=parts, **changes)) == 0
        again = checkpoint.load(parts)
        for part in ("loss_scale", "position", "step"):
            assert again[part] == whole[part]
        assert all(torch.equal(value, whole["model"][name]) for name, value in again["model"].items())
        averages = whole["ema"]["averages"]
        assert all(torch.equal(value, averages[name]) for name, value in again["ema"]["averages"].items())


@pytest.mark.usefixtures("host_float16")
def test_a_skipped_step_changes_nothing_but_the_scale_and_the_place_in_the_data(tiny_dataset, monkeypatch):
    from aocr_torch.training.evaluate import open_dataset

    config = configure(dataset_dir=tiny_dataset, ema_decay=0.9, **FLOAT16)
    dataset = open_dataset(config, "train")
    batch = dataset.batch(range(4))
    training = Training(config, CHARSET, CPU, 11)
    training.distribute()
    weights = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    training.precision.loss_scale.scale = 2.0**100
    training.train_step([batch])
    assert (training.step, training.position, training.ema.num_updates) == (0, 4, 0)
    assert not training.optimizer.state
    assert all(torch.equal(p, weights[name]) for name, p in training.model.named_parameters())
    training.precision.loss_scale.scale = 2.0**4
    training.train_step([batch])
    assert (training.step, training.position, training.ema.num_updates) == (1, 8, 1)
    assert not torch.equal(training.model.decoder.classifier.weight, weights["decoder.classifier.weight"])


@pytest.mark.usefixtures("host_float16")
def test_a_loss_that_is_never_finite_stops_at_the_floor(tiny_dataset, tmp_path, monkeypatch):
    original = Training._sequence_loss
    monkeypatch.setattr(Training, "_sequence_loss", lambda self, batch: original(self, batch) * float("nan"))
    monkeypatch.setattr(LossScale, "START", 4.0)
    changes = {"dataset_dir": tiny_dataset, "max_consecutive_skips": 3, "batch_size": 2, **FLOAT16}
    message = r"3 steps in a row after step 0 overflowed at the lowest loss scale 1: .*; records: train-\d+.*, train-"
    with pytest.raises(NonFiniteError, match=message):
        train(configure(train_log_dir=tmp_path, **changes))
    assert checkpoint.Checkpoints(tmp_path).newest() is None


def test_bfloat16_has_no_scale_and_stops_at_once(tiny_dataset, tmp_path, monkeypatch):
    original = Training._sequence_loss
    monkeypatch.setattr(Training, "_sequence_loss", lambda self, batch: original(self, batch) * float("nan"))
    with pytest.raises(NonFiniteError, match="step 1 is not finite"):
        train(configure(dataset_dir=tiny_dataset, train_log_dir=tmp_path, amp=True))


@pytest.mark.usefixtures("host_float16")
def test_a_training_may_change_its_precision(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(LossScale, "START", 2.0**16)
    base = {"dataset_dir": tiny_dataset, "train_log_dir": tmp_path}
    for steps, amp in ((1, {}), (2, FLOAT16), (3, {"amp": True}), (4, {})):
        assert train(configure(max_number_of_steps=steps, **base, **amp)) == 0
    log = (tmp_path / "train.log").read_text()
    assert "changed flag amp: False -> True" in log
    assert checkpoint.load(tmp_path)["step"] == 4


def test_eval_runs_in_lower_precision_only_where_asked(tiny_checkpoint, monkeypatch, capsys):
    dtypes = []
    forward = AttentionOCR.forward

    def watched(self, *arguments):
        outputs = forward(self, *arguments)
        dtypes.append(outputs["logits"].dtype)
        return outputs

    monkeypatch.setattr(AttentionOCR, "forward", watched)
    for arguments in ([], ["--amp"]):
        assert evaluation.main([f"--ckpt={tiny_checkpoint}", "--device=cpu", *arguments]) == 0
        assert "7 of 7 records, 0 skipped" in capsys.readouterr().out
    assert dtypes == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]


@pytest.mark.usefixtures("host_float16")
def test_a_loss_scale_leaves_the_norms_of_the_gradients_as_they_are(tiny_dataset):
    norms = []
    for scale in (1.0, 2.0**10):
        config = configure(dataset_dir=tiny_dataset, use_augment_input=False, **FLOAT16)
        ours = Training(config, CHARSET, CPU, 11)
        ours.precision.loss_scale.scale = scale
        ours.model.train()
        ours.precision.begin_step()
        batch = ours.on_device(open_dataset(ours.config, "train").batch(range(4)), is_training=True)
        norms.append(ours._gradients([batch])[2])
    torch.testing.assert_close(*norms, rtol=0.05, atol=1e-3)


def test_a_chip_that_saturates_skips_by_its_register(monkeypatch):
    ours = precision.Autocast(CPU, torch.float16, "")
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    monkeypatch.setattr(precision.devices, "saturates", lambda device: True)
    monkeypatch.setattr(precision.devices, "clear_overflow", lambda: None)
    monkeypatch.setattr(precision.devices, "has_overflowed", lambda: True)
    with ours.scaled_gradients(optimizer):
        weight.grad = torch.ones(1)
    assert not ours.step(optimizer, torch.ones(1))
    assert (weight.item(), ours.loss_scale.skipped) == (1.0, 1)
