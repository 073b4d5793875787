"""The augmentation equals the reference's operations, and its draws depend on (seed, position) alone."""

from __future__ import annotations

import colorsys
from dataclasses import fields

import numpy as np
import pytest
import torch

from aocr_torch.data import augment as module
from aocr_torch.data import color
from aocr_torch.data.augment import (
    AREA,
    BICUBIC,
    BILINEAR,
    NEAREST,
    AugmentParameters,
    augment,
    crop_and_resize,
    draw_parameters,
    split_views,
)
from aocr_torch.data.color import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, distort_color

OPERATIONS = {
    "brightness": adjust_brightness,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
    "contrast": adjust_contrast,
}
ORDERS = [
    ("brightness", "saturation", "hue", "contrast"),
    ("saturation", "brightness", "contrast", "hue"),
    ("contrast", "hue", "brightness", "saturation"),
    ("hue", "saturation", "contrast", "brightness"),
]


@pytest.fixture(scope="module")
def ops(reference):
    return np.load(reference / "golden" / "ops.npz")


def as_images(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()  # (1, 3, h, w)


def one(value) -> torch.Tensor:
    return torch.tensor([float(value)])


def random_images(count: int, height: int = 20, width: int = 24, low: float = -0.2, high: float = 1.2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(count, 3, height, width, generator=generator) * (high - low) + low


def resize_by_taps(images: torch.Tensor, box: torch.Tensor, method: torch.Tensor) -> torch.Tensor:
    rows = module._taps(box[:, 0], box[:, 2], method, images.shape[2])
    columns = module._taps(box[:, 1], box[:, 3], method, images.shape[3])
    transposed = images.transpose(2, 3).contiguous()
    return module._crop_and_resize_by_taps(transposed, rows, columns)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


# Against the numbers of the reference


@pytest.mark.parametrize("name", OPERATIONS)
def test_colour_operations_equal_the_reference(ops, name):
    inputs = {"out": "view", "out_of_range_out": "out_of_range_input", "colours_out": "colours"}
    for number in (0, 1):
        parameter = one(ops[f"adjust_{name}/param{number}"])
        for output, source in inputs.items():
            if f"adjust_{name}/{output}{number}" in ops.files:
                expected = as_images(ops[f"adjust_{name}/{output}{number}"])
                assert_close(OPERATIONS[name](as_images(ops[source]), parameter), expected, 1e-6)


@pytest.mark.parametrize("order", range(4))
def test_colour_orders_equal_the_reference(ops, order):
    parameters = [one(ops[f"distort_color/param_{name}"]) for name in ("brightness", "saturation", "hue", "contrast")]
    result = distort_color(as_images(ops["view"]), torch.tensor([order]), *parameters).clamp(0, 1)
    assert_close(result[:, :, :75], as_images(ops[f"distort_color/ordering{order}_rows0_75"]), 1e-6)


@pytest.mark.parametrize("resize", [crop_and_resize, resize_by_taps])
@pytest.mark.parametrize(
    ("method", "name", "tolerance"),
    [
        (BILINEAR, "bilinear", 3e-7),
        (NEAREST, "nearest", 0),
        (BICUBIC, "bicubic", 2e-6),
        (AREA, "area", 6e-6),
    ],
)
def test_resizes_equal_the_reference(ops, resize, method, name, tolerance):
    for crop, row_step in ((0, 1), (1, 3)):
        box = torch.from_numpy(ops[f"resize/crop{crop}/box_y_x_h_w"])[None]
        result = resize(as_images(ops["view"]), box, torch.tensor([method]))
        assert_close(result[:, :, ::row_step], as_images(ops[f"resize/crop{crop}/method{method}_{name}"]), tolerance)


def test_central_crop_equals_the_reference(reference, ops):
    images = torch.from_numpy(np.load(reference / "golden" / "forward.npz")["images_uint8"])
    views = split_views(images, 4, crop=(403, 101))  # (3, 4, 3, 101, 100)
    joined = views[1].permute(2, 0, 3, 1).reshape(101, 400, 3)
    assert torch.equal(joined, torch.from_numpy(ops["preprocess_central_crop_403_101/out"]))
    for crop in range(3):
        width, height = ops[f"central_crop/crop{crop}/width_height"].tolist()
        y, x = ops[f"central_crop/crop{crop}/offset_y_x"].tolist()
        cropped = split_views(images, 4, crop=(4 * width, height))
        assert torch.equal(cropped, split_views(images, 4)[..., y : y + height, x : x + width])


def test_split_views_equals_the_reference(reference):
    forward = np.load(reference / "golden" / "forward.npz")
    views = split_views(torch.from_numpy(forward["images_uint8"]), 4)
    joined = views.permute(0, 3, 1, 4, 2).reshape(3, 150, 600, 3)
    assert torch.equal(joined, torch.from_numpy(forward["images_float"]))


def test_crops_are_distributed_as_in_the_reference(ops):
    expected = ops["crop_sampler_draws_y_x_h_w"].astype(np.int64)
    drawn = draw_parameters(0, torch.arange(len(expected) // 4), 4, 150, 150).box.flatten(0, 1).numpy()
    assert drawn.shape == expected.shape
    for name, measure in {
        "y": lambda box: box[:, 0],
        "x": lambda box: box[:, 1],
        "height": lambda box: box[:, 2],
        "width": lambda box: box[:, 3],
        "area": lambda box: box[:, 2] * box[:, 3],
        "aspect": lambda box: box[:, 3] / box[:, 2],
        "room below": lambda box: 150 - box[:, 0] - box[:, 2],
        "room on the right": lambda box: 150 - box[:, 1] - box[:, 3],
    }.items():
        # Kolmogorov-Smirnov, two samples of 20,000: above 0.0136 they differ at the 5 % level.
        assert largest_distance(measure(drawn), measure(expected)) < 0.0136, name
    assert np.array_equal(drawn.max(0)[2:], [150, 150])
    whole = [(boxes[:, 2:] == 150).all(1).mean() for boxes in (drawn, expected)]
    assert abs(whole[0] - whole[1]) < 0.001


def largest_distance(first: np.ndarray, second: np.ndarray) -> float:
    values = np.union1d(first, second)
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return np.abs(shares[0] - shares[1]).max()


# Against independent computations on data made here


def test_hue_and_saturation_agree_with_colorsys():
    images = random_images(6, 8, 8, low=0.0, high=1.0)
    turns = torch.tensor([-0.2, -0.05, 0.0, 0.1, 0.2, 0.45])
    factors = torch.tensor([0.0, 0.5, 0.9, 1.0, 1.5, 3.0])
    turned, saturated = adjust_hue(images, turns), adjust_saturation(images, factors)
    for i, y, x in np.ndindex(6, 8, 8):
        hue, saturation, value = colorsys.rgb_to_hsv(*images[i, :, y, x].tolist())
        expected = torch.tensor(colorsys.hsv_to_rgb((hue + turns[i].item()) % 1, saturation, value))
        assert_close(turned[i, :, y, x], expected, 1e-6)
        expected = torch.tensor(colorsys.hsv_to_rgb(hue, min(saturation * factors[i].item(), 1), value))
        assert_close(saturated[i, :, y, x], expected, 1e-6)


def test_contrast_and_brightness():
    images = random_images(2)
    for i, factor in enumerate((0.5, 1.5)):
        mean = images[i].mean((1, 2), keepdim=True)
        expected = (images[i] - mean) * factor + mean
        assert_close(adjust_contrast(images, torch.tensor([0.5, 1.5]))[i], expected, 1e-6)
    assert_close(adjust_brightness(images, torch.tensor([0.1, -0.3]))[1], images[1] - 0.3, 0)


@pytest.mark.parametrize("every_pass_runs", [False, True])
@pytest.mark.parametrize("orders", ["0123", "0", "1", "2", "3", "02", "23", "03", "12", "0301", "3210"])
def test_orders_are_the_operations_one_after_the_other(monkeypatch, orders, every_pass_runs):
    if every_pass_runs:  # what happens on an accelerator
        monkeypatch.setattr(color, "_maybe_any", lambda condition: True)
    order = torch.tensor([int(digit) for digit in orders] * 2)
    images = random_images(len(order))
    drawn = draw_parameters(3, torch.arange(len(order)), 1, 20, 24)
    parameters = {name: getattr(drawn, name)[:, 0] for name in OPERATIONS}
    result = distort_color(images, order, **parameters)
    for i in range(len(order)):
        expected = images[i : i + 1]
        for name in ORDERS[order[i]]:
            expected = OPERATIONS[name](expected, parameters[name][i : i + 1])
        assert_close(result[i : i + 1], expected, 2e-6)
        alone = distort_color(images[i : i + 1], order[i : i + 1], **{k: v[i : i + 1] for k, v in parameters.items()})
        assert_close(result[i : i + 1], alone, 1e-6)


@pytest.mark.parametrize("resize", [crop_and_resize, resize_by_taps])
def test_resize_of_a_known_row(resize):
    images = torch.tensor([0.0, 9.0, 5.0, 1.0, 9.0, 9.0, 9.0, 9.0]).repeat(4, 3, 8, 1)
    box = torch.tensor([[0, 2, 8, 2]] * 4)  # columns 2 and 3: the values 5 and 1
    rows = resize(images, box, torch.tensor([BILINEAR, NEAREST, BICUBIC, AREA]))[:, 0, 4]
    assert_close(rows[0], torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0]), 1e-6)
    assert_close(rows[1], torch.tensor([5.0, 5.0, 5.0, 5.0, 1.0, 1.0, 1.0, 1.0]), 0)
    # Half way the cubic's weights are -3/32, 19/32, 19/32, -3/32; the outer ones fall on the clamped edges.
    assert_close(rows[2, [0, 2, 4]], torch.tensor([5.0, 3.0, 1.0]), 1e-6)
    assert rows[2, 1] > 4.0  # it overshoots the straight line
    assert rows[2, 5:].min() < 1.0  # and the result is not clamped
    assert_close(rows[3], torch.tensor([5.0, 5.0, 5.0, 5.0, 1.0, 1.0, 1.0, 1.0]), 1e-6)


def test_area_averages_over_the_stretch_of_each_pixel():
    images = torch.tensor([1.0, 2.0, 4.0, 8.0]).repeat(1, 3, 4, 1)
    row = crop_and_resize(images, torch.tensor([[0, 0, 4, 3]]), torch.tensor([AREA]))[0, 0, 0]
    assert_close(row, torch.tensor([1.0, (1 + 2 * 2) / 3, (2 * 2 + 4) / 3, 4.0]), 1e-6)


def test_both_resizes_agree():
    drawn = draw_parameters(11, torch.arange(16), 4, 40, 44)
    images = random_images(64, 40, 44)
    box, method = drawn.box.flatten(0, 1), drawn.method.flatten(0, 1)
    assert_close(crop_and_resize(images, box, method), resize_by_taps(images, box, method), 2e-6)


# The whole


def test_augment_is_crop_resize_distort_clip():
    views = random_images(6 * 3, 30, 32, low=0.0, high=1.0).view(6, 3, 3, 30, 32)
    before = views.clone()
    drawn = draw_parameters(5, torch.arange(6), 3, 30, 32)
    result = augment(views, drawn)
    box, method, *colour = (getattr(drawn, field.name).flatten(0, 1) for field in fields(drawn))
    expected = distort_color(crop_and_resize(views.flatten(0, 1), box, method), *colour)
    assert expected.min() < 0
    assert expected.max() > 1
    assert_close(result, expected.clamp(0, 1).view_as(views), 4e-6)
    assert torch.equal(views, before)
    assert torch.equal(result, augment(views, drawn))


def test_augment_does_not_depend_on_the_rest_of_the_batch():
    views = random_images(5 * 2, 30, 32, low=0.0, high=1.0).view(5, 2, 3, 30, 32)
    positions = torch.tensor([4, 900, 17, 5, 2**40])
    together = augment(views, draw_parameters(1, positions, 2, 30, 32))
    for i in range(5):
        alone = augment(views[i : i + 1], draw_parameters(1, positions[i : i + 1], 2, 30, 32))
        assert_close(together[i : i + 1], alone, 1e-6)


def test_neutral_parameters_change_nothing():
    views = random_images(4, 30, 32, low=0.0, high=1.0).view(1, 4, 3, 30, 32)
    zeros, ones = torch.zeros(1, 4), torch.ones(1, 4)
    box = torch.tensor([0, 0, 30, 32]).repeat(1, 4, 1)
    for method in range(4):
        parameters = AugmentParameters(box, torch.full((1, 4), method), torch.arange(4)[None], zeros, ones, zeros, ones)
        assert_close(augment(views, parameters), views, 1e-6)


def test_accelerators_never_wait_for_values():
    """On the meta device any look at a value raises."""
    views = torch.empty(2, 4, 3, 30, 32, device="meta")
    result = augment(views, draw_parameters(0, torch.arange(2), 4, 30, 32).to(torch.device("meta")))
    assert result.shape == views.shape
    assert result.device.type == "meta"


# The draws


def parameters_equal(first: AugmentParameters, second: AugmentParameters) -> bool:
    return all(torch.equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))


def test_draws_depend_on_seed_and_position_alone():
    positions = torch.tensor([7, 0, 2**45, 123456])
    together = draw_parameters(42, positions, 4, 150, 150)
    np.random.seed(1)
    torch.manual_seed(1)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    for i in range(4):
        alone = draw_parameters(42, positions[i : i + 1], 4, 150, 150)
        rows = AugmentParameters(*(getattr(together, field.name)[i : i + 1] for field in fields(together)))
        assert parameters_equal(alone, rows)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_draws_differ_between_seeds_positions_and_views():
    hue = torch.cat([draw_parameters(seed, torch.arange(50), 4, 150, 150).hue for seed in (0, 1, -1)])
    assert hue.unique().numel() == hue.numel()


def test_draws_are_stable():
    """A resumed training draws what the interrupted one would have drawn, also after an upgrade."""
    drawn = draw_parameters(20170809, torch.tensor([1000]), 2, 150, 150)
    assert drawn.box.tolist() == [[[0, 3, 137, 136], [1, 0, 126, 148]]]
    assert drawn.method.tolist() == [[0, 2]]
    assert drawn.order.tolist() == [[3, 2]]
    assert_close(drawn.hue, torch.tensor([[0.09381626, 0.14949791]]), 1e-6)


def test_draws_fill_their_ranges():
    drawn = draw_parameters(0, torch.arange(4000), 1, 150, 150)
    for name in ("method", "order"):
        counts = torch.bincount(getattr(drawn, name).flatten(), minlength=4).double()
        assert ((counts - 1000) ** 2 / 1000).sum() < 16.3  # chi-square with 3 degrees of freedom, 0.1 % level
    pairs = torch.bincount((drawn.method * 4 + drawn.order).flatten(), minlength=16).double()
    assert ((pairs - 250) ** 2 / 250).sum() < 37.7  # 15 degrees of freedom: method and order are independent
    for name, low, high in (
        ("brightness", -32 / 255, 32 / 255),
        ("saturation", 0.5, 1.5),
        ("hue", -0.2, 0.2),
        ("contrast", 0.5, 1.5),
    ):
        values = getattr(drawn, name)
        assert values.dtype == torch.float32
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.02 * (high - low)


@pytest.mark.parametrize(("height", "width"), [(150, 150), (100, 113), (113, 100), (31, 35), (9, 9)])
def test_crops_keep_their_promises(height, width):
    box = draw_parameters(0, torch.arange(500), 4, height, width).box.flatten(0, 1)
    y, x, box_height, box_width = box.unbind(1)
    assert (box_height * box_width >= 0.8 * height * width).all()
    for offset, size, length in ((y, box_height, height), (x, box_width, width)):
        assert (offset >= 0).all()
        assert (offset + size <= length).all()
        assert (offset + size < length)[size < length].all()  # never the last possible offset


def test_an_attempt_that_does_not_fit_is_repeated():
    attempts = np.random.default_rng(0).random((2, 1000))
    fits = module._try_crop(attempts[0], attempts[1], 100, 116)[2]
    assert 0.1 < fits.mean() < 0.9
    box = draw_parameters(0, torch.arange(200), 1, 100, 116).box[:, 0]
    assert not ((box[:, 2] == 100) & (box[:, 3] == 116)).any()


def test_the_whole_view_is_kept_where_no_crop_fits():
    box = draw_parameters(0, torch.arange(3), 2, 100, 200).box
    assert torch.equal(box, torch.tensor([0, 0, 100, 200]).expand(3, 2, 4))


# Splitting


def test_split_views_and_central_crop_on_counted_pixels():
    images = torch.arange(5 * 12 * 3, dtype=torch.uint8).view(1, 5, 12, 3)
    views = split_views(images, 2)  # (1, 2, 3, 5, 6)
    assert views.is_contiguous()
    assert views[0, 1, 2, 3, 4] == images[0, 3, 6 + 4, 2] * np.float32(1 / 255)
    assert torch.equal(split_views(images, 2, crop=(7, 2)), views[..., 1:3, 1:4])
    assert torch.equal(split_views(images, 2, crop=(12, 5)), views)


def test_split_views_names_what_does_not_fit():
    images = torch.zeros(1, 10, 22, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="4 views share evenly"):
        split_views(images, 4)
    for crop in ((24, 10), (20, 11), (1, 5)):
        with pytest.raises(ValueError, match=f"width {crop[0]} and height {crop[1]} over 2 views does not fit"):
            split_views(images, 2, crop=crop)


def test_views_that_are_not_scaled_yet_come_out_the_same():
    images = torch.randint(256, (3, 20, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    drawn = draw_parameters(5, torch.arange(3), 2, 16, 20)
    scaled, unscaled = (split_views(images, 2, (40, 16), scale=scale) for scale in (True, False))
    assert unscaled.dtype == torch.uint8
    assert unscaled.data_ptr() > images.data_ptr()
    assert torch.equal(augment(unscaled, drawn), augment(scaled, drawn))
