"""What holds on the CPU holds on an NVIDIA GPU: parity, recorded and fused steps, precision, resume, evaluation."""

import pytest
import torch
from recipe import CONFIGURATIONS, GOLDEN, LABELS, NULL, build, images
from tiny import CHARSET, FLAGS, flags

from aocr_torch import device as devices
from aocr_torch.config import Config, parse_arguments
from aocr_torch.data.loader import TrainBatchSampler, make_loader
from aocr_torch.model.loss import regularization_loss, sequence_loss
from aocr_torch.model.ocr import AttentionOCR, interpret
from aocr_torch.training import checkpoint
from aocr_torch.training.evaluate import evaluate, open_dataset
from aocr_torch.training.loop import train
from aocr_torch.training.state import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture
def cuda() -> torch.device:
    return devices.resolve("cuda")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_parity_with_the_reference(cuda, name):
    model = build(name)[0].to(cuda)
    with torch.no_grad():
        logits = model.eval()(images().to(cuda))["logits"]
    torch.testing.assert_close(logits.cpu(), torch.from_numpy(GOLDEN[f"{name}/eval_logits"]), rtol=0, atol=5e-3)
    assert interpret(logits, NULL).ids.tolist() == GOLDEN[f"{name}/eval_ids"].tolist()
    logits = model.train()(images().to(cuda), LABELS.to(cuda))["logits"]
    total = sequence_loss(logits, LABELS.to(cuda), NULL) + regularization_loss(model)
    assert total.item() == pytest.approx(GOLDEN[f"{name}/total_loss"].item(), rel=1e-5)


def batches(dataset_dir, count: int) -> list[list[dict]]:
    config, _ = parse_arguments(flags(dataset_dir=dataset_dir), description="test")
    dataset = open_dataset(config, "train")
    loader = iter(make_loader(dataset, TrainBatchSampler(len(dataset), 4, seed=0), pin_memory=True))
    return [[next(loader)] for _ in range(count)]


def losses(place: torch.device, groups, **changes) -> list[float]:
    config, _ = parse_arguments(flags(**{"device": place.type, **changes}), description="test")
    training = Training(config, CHARSET, place, 11)
    training.distribute()
    found = []
    for group in groups:
        found.append(training.train_step(group)["total_loss"].item())
        training.check_finite()
    return found


@pytest.mark.parametrize("changes", [{}, {"compile": True}, {"record_step": False, "compile": True}])
def test_recorded_and_fused_steps_are_the_plain_ones(cuda, tiny_dataset, changes):
    groups = batches(tiny_dataset, 6)
    plain = losses(cuda, groups, record_step=False, use_fast_path=False)
    assert losses(cuda, groups, **changes) == pytest.approx(plain, rel=1e-3)
    assert losses(torch.device("cpu"), groups) == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("compile", [False, True])
def test_mixed_precision(cuda, tiny_dataset, dtype, compile):
    groups = batches(tiny_dataset, 40)
    exact = losses(cuda, groups)
    lowered = losses(cuda, groups * 2, amp=True, amp_dtype=dtype, compile=compile)
    assert lowered[-1] < 0.9 * exact[0]
    if dtype == "bfloat16":
        assert lowered[0] == pytest.approx(exact[0], rel=2e-2)


def test_the_whole_network_fused_in_bfloat16(cuda):
    """Logits and gradients no further from float32's than the plain path's."""
    config = Config()
    torch.manual_seed(0)
    network = AttentionOCR(config.data, config.replace(use_fast_path=False).model, 134)
    views, labels = torch.rand(4, 4, 3, 150, 150, device=cuda), torch.randint(0, 134, (4, 37), device=cuda)

    def passes(is_fast: bool, lowered: bool) -> list[torch.Tensor]:
        model = AttentionOCR(config.data, config.replace(use_fast_path=is_fast).model, 134).to(cuda).train()
        model.load_state_dict(network.state_dict())
        if is_fast:
            model.fuse()
        with torch.autocast("cuda", torch.bfloat16, enabled=lowered):
            logits = model(views, labels)["logits"]
        sequence_loss(logits, labels, 133).backward()
        weights = [
            model.decoder.attention_key.weight,
            model.decoder.attention_v,
            model.tower.Mixed_5b.branch1x1.bn.bias,
        ]
        return [logits.float(), *(weight.grad for weight in weights), model.tower.Conv2d_1a_3x3.bn.running_var]

    exact, fused = passes(False, False), passes(True, False)
    for ours, expected in zip(fused, exact):
        assert (ours - expected).norm() <= 2e-3 * expected.norm()
    for ours, theirs, expected in zip(passes(True, True), passes(False, True), exact):
        assert (ours - expected).norm() <= 2 * (theirs - expected).norm() + 1e-3 * expected.norm()


def test_resume_and_evaluation(cuda, tiny_dataset, tmp_path):
    def run(folder, steps: int, **changes) -> dict:
        options = {"device": "cuda", "dataset_dir": tiny_dataset, "train_log_dir": folder, "num_workers": 2, **changes}
        config, _ = parse_arguments(flags(max_number_of_steps=steps, **options), description="test")
        assert train(config) == 0
        return checkpoint.load(folder)

    whole = run(tmp_path / "whole", 8, eval_after_training=True)
    run(tmp_path / "parts", 5)
    resumed = run(tmp_path / "parts", 8)
    for name, values in whole["model"].items():
        torch.testing.assert_close(
            resumed["model"][name], values, rtol=2e-2, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
    config = Config().replace(**FLAGS, dataset_dir=str(tiny_dataset))
    dataset = open_dataset(config, "test")
    model = checkpoint.build_model(whole, config, dataset.charset, "whole")
    on_host = evaluate(model, dataset, config, torch.device("cpu"))
    on_device = evaluate(model.to(cuda), dataset, config, cuda)
    assert (on_device.evaluated, on_device.skipped) == (on_host.evaluated, on_host.skipped)
    assert on_device.results == pytest.approx(on_host.results)
