"""The tower: its layers, its BatchNorm, its pooling."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from aocr_torch.model import inception as towers
from aocr_torch.model.batch_norm import ViewBatchNorm2d, channel_statistics
from aocr_torch.model.endpoints import ENDPOINTS, map_shape
from aocr_torch.model.inception import InceptionTower


def batch_norm(**changes) -> ViewBatchNorm2d:
    options = {"num_views": 3, "per_view": True, "decay": 0.9, "cumulative_start": False, **changes}
    return ViewBatchNorm2d(2, **options).train()


def test_names_and_shapes_are_torchvisions():
    inception = pytest.importorskip("torchvision").models.inception_v3(
        weights=None, aux_logits=False, init_weights=False
    )
    theirs = {k: v.shape for k, v in inception.state_dict().items() if not k.startswith("fc.")}
    ours = InceptionTower("Mixed_7c", 4, True).state_dict()
    assert {k: v.shape for k, v in ours.items()} == theirs


def test_same_features_as_torchvision_where_the_pools_agree():
    """Up to the first average pool, given the same weights; behind it the two differ by design."""
    inception = pytest.importorskip("torchvision").models.inception_v3(
        weights=None, aux_logits=False, init_weights=True
    )
    tower = InceptionTower("MaxPool_5a_3x3", 1, True)
    state = inception.state_dict()
    tower.load_state_dict({name: state[name] for name in tower.state_dict()})
    tower.eval()
    x = torch.randn(2, 3, 80, 90)
    theirs = inception.eval()
    expected = x
    for name in (
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "maxpool1",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "maxpool2",
    ):
        expected = getattr(theirs, name)(expected)
    torch.testing.assert_close(tower(x), expected)


def test_average_pool_leaves_the_padding_out():
    from aocr_torch.model.fused import average_pool

    torch.testing.assert_close(average_pool(torch.ones(1, 1, 4, 5)), torch.ones(1, 1, 4, 5))


def test_statistics_and_averages_belong_to_one_view():
    norm = batch_norm()
    reference = [nn.BatchNorm2d(2, eps=0.001, momentum=0.1) for _ in range(3)]
    x = torch.randn(4, 3, 2, 5, 6) * torch.tensor([1.0, 2.0, 3.0])[:, None, None, None] + 1  # (B, V, C, H, W)
    out = norm(x.flatten(0, 1)).unflatten(0, (4, 3))
    mean, variance = torch.zeros(2), torch.ones(2)
    for view in range(3):
        torch.testing.assert_close(out[:, view], reference[view](x[:, view]), atol=1e-5, rtol=1e-5)
        flat = x[:, view].transpose(0, 1).flatten(1)
        mean, variance = 0.9 * mean + 0.1 * flat.mean(1), 0.9 * variance + 0.1 * flat.var(1, unbiased=True)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert int(norm.num_batches_tracked) == 3


def test_joint_statistics_decay_as_if_updated_once_a_view():
    norm = batch_norm(per_view=False)
    x = torch.randn(12, 2, 5, 6)
    torch.testing.assert_close(norm(x), nn.BatchNorm2d(2, eps=0.001)(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.running_mean, (1 - 0.9**3) * x.mean((0, 2, 3)))
    variance = x.transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(norm.running_var, 0.9**3 + (1 - 0.9**3) * variance)
    assert int(norm.num_batches_tracked) == 3


@pytest.mark.parametrize("per_view", [True, False])
def test_cumulative_start_is_a_plain_mean_that_grows_into_the_decay(per_view):
    norm = batch_norm(per_view=per_view, cumulative_start=True, num_views=2, decay=0.99)
    batches = [torch.randn(4, 2, 3, 3) + i for i in range(5)]
    for batch in batches:
        norm(batch)
    torch.testing.assert_close(norm.running_mean, torch.stack(batches).mean((0, 1, 3, 4)), atol=1e-5, rtol=1e-5)
    for _ in range(200):
        norm(torch.zeros(4, 2, 3, 3))
    before = norm.running_mean.clone()
    norm(torch.ones(4, 2, 3, 3))
    torch.testing.assert_close(norm.running_mean, 0.99**2 * before + (1 - 0.99**2))


def test_the_scale_stays_one_and_gets_no_gradient():
    norm = batch_norm()
    norm(torch.randn(3, 2, 4, 4)).sum().backward()
    assert norm.weight.grad is None
    assert norm.bias.grad is not None


def test_a_batch_that_is_not_whole_examples():
    with pytest.raises(ValueError, match="batch of 4 images, expected whole examples of 3 views"):
        batch_norm()(torch.zeros(4, 2, 3, 3))


def test_endpoints_agree_with_forward():
    tower = InceptionTower("Mixed_6b", 1, True).eval()
    x = torch.randn(1, 3, 90, 90)
    maps = tower.endpoints(x)
    assert tuple(maps) == ENDPOINTS[:12]
    torch.testing.assert_close(maps["Mixed_6b"], tower(x))


def test_errors():
    with pytest.raises(ValueError, match="found final_endpoint 'Mixed_9z', expected one of Conv2d_1a_3x3"):
        InceptionTower("Mixed_9z", 1, True)
    with pytest.raises(ValueError, match=r"views of 20x20 .* too small for Mixed_5d"):
        map_shape("Mixed_5d", 20, 20)


@pytest.mark.parametrize("size", [(150, 150), (299, 299), (48, 96), (97, 75), (76, 77), (31, 200), (15, 22), (5, 2)])
def test_map_shapes_are_those_of_the_tower(size):
    x = torch.zeros(1, 3, *size)
    for endpoint, layer in InceptionTower("Mixed_7c", 1, True).eval().named_children():
        try:
            with torch.no_grad():
                x = layer(x)
        except RuntimeError:  # smaller than the kernel
            with pytest.raises(ValueError, match="too small"):
                map_shape(endpoint, *size)
            break
        assert map_shape(endpoint, *size) == tuple(x.shape[1:])


def test_initial_weights_have_the_reference_spread():
    torch.manual_seed(0)
    weight = copy.deepcopy(InceptionTower("Conv2d_4a_3x3", 1, True)).Conv2d_4a_3x3.conv.weight
    bound = 2 * (1.3 * 2 / weight[0].numel()) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(np.sqrt(2 / weight[0].numel()), rel=0.02)


@pytest.mark.parametrize("per_view", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
def test_the_fast_path_beside_the_plain_one(per_view, is_training):
    """Maps, gradients and moving averages."""
    torch.manual_seed(0)
    plain = InceptionTower("Mixed_5b", 3, per_view, decay=0.5)
    for module in plain.modules():
        if isinstance(module, ViewBatchNorm2d):
            torch.nn.init.uniform_(module.bias, -1, 1)
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    fast = InceptionTower("Mixed_5b", 3, per_view, decay=0.5, is_fast=True)
    fast.load_state_dict(plain.state_dict())
    results = []
    for tower in (plain, fast):
        tower.double().train(is_training)
        x = torch.rand(6, 3, 75, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        maps = tower(x)
        (maps * torch.linspace(0, 1, maps.numel(), dtype=maps.dtype).view_as(maps)).sum().backward()
        results.append([maps, x.grad, *(p.grad for p in tower.parameters() if p.requires_grad), *tower.buffers()])
    for theirs, ours in zip(*results):
        torch.testing.assert_close(ours, theirs)


def test_the_fast_path_still_gives_every_endpoint():
    tower = InceptionTower("Conv2d_3b_1x1", 2, True, is_fast=True)
    x = torch.rand(4, 3, 40, 40)
    torch.testing.assert_close(tower(x), tower.endpoints(x)["Conv2d_3b_1x1"], atol=1e-4, rtol=1e-4)


def test_a_batch_that_is_not_whole_examples_on_the_fast_path():
    with pytest.raises(ValueError, match="found 4 images, expected whole examples of 3 views"):
        InceptionTower("Conv2d_1a_3x3", 3, True, is_fast=True)(torch.zeros(4, 3, 40, 40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_many_pixels_lose_nothing(dtype):
    x = (torch.randn(3, 5, 200, 201) + 30).to(dtype)
    mean, variance = channel_statistics(x)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), x.double().var((0, 2, 3), unbiased=False), rtol=1e-5, atol=0)


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("options", [{}, {"per_view": False}, {"cumulative_start": True}], ids=str)
def test_averages_move_together_to_the_same_bits(options, is_fast, monkeypatch):
    options = {"num_views": 2, "per_view": True, "is_fast": is_fast, **options}

    def averages() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        tower = InceptionTower("Conv2d_4a_3x3", **options).train()
        for _ in range(3):
            tower(torch.rand(4, 3, 48, 48))
        return dict(tower.named_buffers())

    together = averages()
    assert together["Conv2d_1a_3x3.bn.num_batches_tracked"] == 6
    monkeypatch.setattr(towers, "averages_move_together", lambda norms: nullcontext())
    for name, values in averages().items():
        assert torch.equal(values, together[name]), name


def test_a_pass_that_fails_moves_no_average():
    tower = InceptionTower("Conv2d_2b_3x3", 2, True).train()
    with pytest.raises(ValueError, match="more than 1 value"):
        tower(torch.rand(2, 3, 7, 7))  # the third layer sees one pixel
    assert tower.Conv2d_1a_3x3.bn.num_batches_tracked == 0
    assert tower.Conv2d_1a_3x3.bn.noted is None
