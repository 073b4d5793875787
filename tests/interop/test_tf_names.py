import json
import zlib

import numpy as np
import pytest
import torch
import torchvision
from tensors import tensors

from aocr_torch.config import Data, Model
from aocr_torch.files import CheckpointError
from aocr_torch.interop.tf_checkpoint import open_checkpoint, write_checkpoint
from aocr_torch.interop.tf_layers import decoder_rows, place, tower_rows
from aocr_torch.interop.tf_names import (
    model_state_from_tf,
    plan_conversion,
    tf_variables_from_state,
    tower_state_from_torchvision,
)
from aocr_torch.model.decoder import AttentionDecoder, NetSliceDecoder
from aocr_torch.model.endpoints import ENDPOINTS
from aocr_torch.model.inception import InceptionTower
from aocr_torch.model.ocr import AttentionOCR

SMALL = Data(image_height=80, image_width=160, num_views=2, max_sequence_length=3)


def random_state(module):
    """The module's state_dict with other numbers, so that no two tensors agree."""
    generator = torch.Generator().manual_seed(5)
    state = module.state_dict()
    for name, value in state.items():
        if value.dtype == torch.float32 and not name.endswith("bn.weight"):
            value.copy_(torch.randn(value.shape, generator=generator))
    return state


@pytest.fixture(scope="module")
def whole_state():
    return random_state(AttentionOCR(SMALL, Model(num_lstm_units=6), num_classes=11))


@pytest.fixture
def tf_variables(whole_state):
    """A training checkpoint of the reference: values, a Momentum slot of each trained variable, global_step."""
    momentum = {n: -v for n, v in whole_state.items() if not n.endswith(("bn.weight", "mean", "var", "tracked"))}
    return tf_variables_from_state(whole_state, momentum, step=7)


def assert_equal_states(state, expected):
    assert sorted(state) == sorted(expected)
    for name, value in tensors(state).items():
        torch.testing.assert_close(value, torch.as_tensor(expected[name]), rtol=0, atol=0)
        assert value.is_contiguous()


@pytest.mark.parametrize(
    ("options", "decoder"),
    [
        ({}, "attention"),
        ({"use_autoregression": False, "encode_coordinates": True}, "attention"),
        ({"use_attention": False}, "NetSlice"),
        ({"use_attention": False, "use_autoregression": False, "final_endpoint": "Mixed_5b"}, "NetSlice"),
    ],
)
def test_round_trip_of_each_decoder(options, decoder):
    model = AttentionOCR(SMALL, Model(num_lstm_units=6, **options), num_classes=11)
    state = random_state(model)
    variables = tf_variables_from_state(state)
    converted, report = model_state_from_tf(variables)
    assert_equal_states(converted, state)
    model.load_state_dict(tensors(converted))
    assert (report.kind, report.decoder, report.num_classes, report.num_lstm_units) == ("Attention-OCR", decoder, 11, 6)
    assert report.final_endpoint == options.get("final_endpoint", "Mixed_5d")
    assert report.ignored == {}
    assert report.step is None


@pytest.mark.parametrize("final_endpoint", ["Conv2d_2b_3x3", "MaxPool_5a_3x3", "Mixed_6a", "Mixed_7c"])
def test_round_trip_of_a_tower_alone(final_endpoint):
    tower = random_state(InceptionTower(final_endpoint, num_views=1, per_view=True))
    state = {f"tower.{name}": value for name, value in tower.items()}
    variables = tf_variables_from_state(state)
    assert all(name.startswith("InceptionV3/") for name in variables)
    converted, report = model_state_from_tf(variables, final_endpoint)
    assert_equal_states(converted, state)
    assert (report.kind, report.final_endpoint, report.decoder) == ("Inception-v3", final_endpoint, None)


def test_the_table_has_the_names_and_shapes_of_the_tower():
    with torch.device("meta"):
        towers = {endpoint: InceptionTower(endpoint, num_views=1, per_view=True) for endpoint in ENDPOINTS}
    for endpoint, tower in towers.items():
        rows = tower_rows(endpoint)
        shapes = {name: tuple(value.shape) for name, value in tower.state_dict().items() if "num_batches" not in name}
        assert {row.ours: row.shape for row in rows} == {f"tower.{name}": shape for name, shape in shapes.items()}
        assert len({row.theirs for row in rows}) == len(rows) == len(shapes)
    assert len(rows) == 5 * 94


@pytest.mark.parametrize(
    ("decoder", "module"),
    [
        ("attention", AttentionDecoder(9, num_classes=5, num_steps=3, num_units=4)),
        ("NetSlice", NetSliceDecoder(3, num_positions=6, num_classes=5, num_steps=2, num_units=4)),
    ],
)
def test_the_table_has_the_names_and_shapes_of_the_decoders(decoder, module):
    rows = decoder_rows(decoder, (5, 4, 9))
    assert {row.ours: row.shape for row in rows} == {
        f"decoder.{name}": tuple(value.shape) for name, value in module.state_dict().items()
    }


def test_training_state_and_both_generations_of_names(tf_variables, whole_state):
    def older(name):
        scope, _, rest = name.partition("/attention_decoder/")
        return (
            f"{scope}/attention_decoder/{rest.replace('kernel', 'weights').replace('bias', 'biases')}" if rest else name
        )

    for scope in ("AttentionOcr_v1/", "", "elsewhere/AttentionOcr_v1/"):
        for rename in (str, older):
            names = {name: rename(name).replace("AttentionOcr_v1/", scope) for name in tf_variables}
            renamed = {names[name]: value for name, value in tf_variables.items()}
            state, report = model_state_from_tf(renamed)
            assert_equal_states(state, whole_state)
            assert report.step == 7
            assert len(report.momentum) == 64
            for name, value in report.momentum.items():
                assert torch.equal(torch.from_numpy(value), -whole_state[name])


def test_nothing_is_left_unnamed(tf_variables):
    extra = {
        "AttentionOcr_v1/conv_tower_fn/INCE/InceptionV3/Conv2d_1a_3x3/weights/Adam_1": np.zeros(3, np.float32),
        "AttentionOcr_v1/conv_tower_fn/INCE/InceptionV3/Mixed_6a/Branch_0/Conv2d_1a_1x1/weights": np.zeros(
            3, np.float32
        ),
        "AttentionOcr_v1/conv_tower_fn/INCE/InceptionV3/Logits/Conv2d_1c_1x1/weights": np.zeros(3, np.float32),
        "AttentionOcr_v1/conv_tower_fn/INCE/InceptionV3/Conv2d_1a_3x3/BatchNorm/moving_mean/Momentum": np.zeros(3),
        "AttentionOcr_v1/sequence_logit_fn/SQLR/softmax_w/ExponentialMovingAverage": np.zeros((6, 11), np.float32),
        "AttentionOcr_v1/sequence_logit_fn/SQLR/softmax_x": np.zeros(3, np.float32),
        "beta1_power": np.zeros(()),
    }
    variables = {**tf_variables, **extra}
    _, report = model_state_from_tf(variables, "Mixed_5d")
    matched = {match.theirs for match in report.matched + report.momentum_matched}
    assert matched | set(report.ignored) | {report.step_name} == set(variables)
    assert set(report.ignored) == set(extra)
    reasons = list(report.ignored[name] for name in extra)
    for reason, part in zip(
        reasons, ["other than Momentum", "behind Mixed_5d", "ImageNet", "not trained", "not asked"]
    ):
        assert part in reason


def test_parts(tf_variables, whole_state):
    tower, report = model_state_from_tf(tf_variables, "Mixed_5b", parts=("tower",))
    assert tower
    assert all(name.startswith(("tower.Conv2d", "tower.Mixed_5b")) for name in tower)
    decoder, _ = model_state_from_tf(tf_variables, parts=("decoder",))
    assert_equal_states(decoder, {name: value for name, value in whole_state.items() if name.startswith("decoder.")})
    names = {match.theirs for match in report.matched + report.momentum_matched} | set(report.ignored) | {"global_step"}
    assert names == set(tf_variables)


def test_moving_averages(tf_variables, whole_state):
    name = "AttentionOcr_v1/sequence_logit_fn/SQLR/softmax_b"
    variables = {**tf_variables, f"{name}/ExponentialMovingAverage": np.full(11, 3, np.float32)}
    state, report = model_state_from_tf(variables, use_moving_average=True)
    assert state["decoder.classifier.bias"].tolist() == [3] * 11
    assert report.ignored == {name: "its moving average is taken"}
    bias = model_state_from_tf(variables)[0]["decoder.classifier.bias"]
    assert torch.equal(torch.from_numpy(bias), whole_state["decoder.classifier.bias"])
    with pytest.raises(CheckpointError, match="ExponentialMovingAverage was asked for, but"):
        model_state_from_tf(tf_variables, use_moving_average=True)


def test_gamma_is_taken_where_there_is_one_and_never_exported():
    tower = InceptionTower("Conv2d_1a_3x3", 1, True)
    variables = tf_variables_from_state({f"tower.{name}": value for name, value in tower.state_dict().items()})
    variables["InceptionV3/Conv2d_1a_3x3/BatchNorm/gamma"] = np.full(32, 2, np.float32)
    state, _ = model_state_from_tf(variables, "Conv2d_1a_3x3")
    assert state["tower.Conv2d_1a_3x3.bn.weight"].tolist() == [2] * 32
    with pytest.raises(CheckpointError, match=r"bn\.weight is not 1"):
        tf_variables_from_state(state)


def test_what_is_missing_or_wrong_is_named(tf_variables):
    wrong = dict(tf_variables)
    kernel = "AttentionOcr_v1/sequence_logit_fn/SQLR/LSTM/attention_decoder/lstm_cell/kernel"
    wrong[kernel] = np.zeros((17, 25), np.float32)
    wrong[kernel.replace("kernel", "bias")] = np.zeros(24, np.int64)
    wrong["second/InceptionV3/Conv2d_1a_3x3/weights"] = np.zeros((3, 3, 3, 32), np.float32)
    del wrong["AttentionOcr_v1/conv_tower_fn/INCE/InceptionV3/Mixed_5b/Branch_0/Conv2d_0a_1x1/BatchNorm/beta"]
    with pytest.raises(CheckpointError) as caught:
        model_state_from_tf(wrong)
    for part in (
        f"{kernel} has shape (17, 25), the model expects (17, 24)",
        "lstm_cell/bias is of type int64, expected float32",
        "second/InceptionV3/Conv2d_1a_3x3/weights stands for the same tensor as AttentionOcr_v1/",
        "1 variables are missing: InceptionV3/Mixed_5b/Branch_0/Conv2d_0a_1x1/BatchNorm/beta",
    ):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match=r"global_step is int64 of shape \(2,\), expected one integer"):
        model_state_from_tf({**tf_variables, "global_step": np.zeros(2, np.int64)})
    wrong = dict(tf_variables)
    wrong["AttentionOcr_v1/sequence_logit_fn/SQLR/softmax_w"] = np.zeros(6, np.float32)
    with pytest.raises(CheckpointError, match="the decoder has no softmax_w"):
        model_state_from_tf(wrong)


def test_other_checkpoints_and_endpoints(tf_variables):
    with pytest.raises(CheckpointError, match=r"neither .* none of the 1 variables \(resnet/conv, \.\.\.\)"):
        plan_conversion({"resnet/conv": ("float32", (3,))})
    with pytest.raises(ValueError, match="found final_endpoint 'Mixed_9z', expected one of Conv2d_1a_3x3"):
        model_state_from_tf(tf_variables, "Mixed_9z")
    with pytest.raises(CheckpointError, match="variables are missing: InceptionV3/Mixed_6a/"):
        model_state_from_tf(tf_variables, "Mixed_6a")


def test_what_the_reference_does_not_have_is_not_exported(whole_state):
    gru = AttentionOCR(SMALL, Model(num_lstm_units=6, cell="gru"), num_classes=11).state_dict()
    with pytest.raises(CheckpointError, match="only its LSTM decoders can be exported"):
        tf_variables_from_state(gru)
    with pytest.raises(CheckpointError, match=r"decoder\.attention_query\.bias: found nothing"):
        tf_variables_from_state({n: v for n, v in whole_state.items() if n != "decoder.attention_query.bias"})
    with pytest.raises(CheckpointError, match=r"no decoder\.classifier\.weight"):
        tf_variables_from_state({n: v for n, v in whole_state.items() if "classifier" not in n})
    with pytest.raises(CheckpointError, match=r"no tower\.\* tensors"):
        tf_variables_from_state({"weight": torch.zeros(2)})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("InceptionV3/Logits/Conv2d_1c_1x1/biases", ("InceptionV3/Logits/Conv2d_1c_1x1/biases", "value")),
        ("a/b/InceptionV3/x/Momentum", ("InceptionV3/x", "Momentum")),
        ("InceptionV3/x/RMSProp_1", ("InceptionV3/x", "slot")),
        (
            "sequence_logit_fn/SQLR/LSTM/rnn_decoder/weights",
            ("sequence_logit_fn/SQLR/LSTM/rnn_decoder/kernel", "value"),
        ),
        ("MyInceptionV3/x", ("MyInceptionV3/x", "other")),
    ],
)
def test_place(name, expected):
    assert place(name) == expected


def test_torchvision(whole_state):
    theirs = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=False).eval()
    state = random_state(theirs)
    tower_state, notes = tower_state_from_torchvision(state)
    assert notes == ["16 tensors of the classifiers of ImageNet (AuxLogits, fc) are not used"]
    tower = InceptionTower("Mixed_7c", num_views=1, per_view=True)
    tower.load_state_dict({name[len("tower.") :]: value for name, value in tower_state.items()})
    state["Conv2d_1a_3x3.bn.weight"].fill_(0.5)
    del state["Conv2d_1a_3x3.bn.num_batches_tracked"]
    tower_state, notes = tower_state_from_torchvision(state)
    assert "the BatchNorm of 1 of 94 layers has a gamma; it is kept" in notes[0]
    assert torch.equal(tower_state["tower.Conv2d_1a_3x3.bn.weight"], torch.full((32,), 0.5))
    with pytest.raises(CheckpointError, match="not torchvision's inception_v3"):
        tower_state_from_torchvision(whole_state)


# The reference's own files.


def test_golden_both_directions(reference, same, tmp_path):
    golden = reference / "golden"
    expected = json.loads((golden / "variables.json").read_text())
    with open_checkpoint(golden / "ckpt_v2") as reader:
        original = {name: reader.tensor(name) for name in reader.variables}
        state, report = model_state_from_tf(reader)
    assert len(report.matched) == len(expected["model_variables"])
    assert len(report.momentum) == len(expected["slots"])
    assert (report.step, report.ignored) == (123, {})
    back = tf_variables_from_state(state, report.momentum, report.step)
    assert sorted(back) == sorted(original)
    for name, value in back.items():
        same(value, original[name])
    write_checkpoint(tmp_path / "model.ckpt-123", back)  # data shards hold the variables in the order of their names
    data = "model.ckpt-123.data-00000-of-00001"
    assert (tmp_path / data).read_bytes() == (golden / "ckpt_v2" / data).read_bytes()


def test_golden_generations_agree(reference):
    golden = reference / "golden"
    with open_checkpoint(golden / "ckpt_v2") as new, open_checkpoint(golden / "old_names") as old:
        state, report = model_state_from_tf(new)
        old_state, old_report = model_state_from_tf(old)
    assert_equal_states(old_state, state)
    assert old_report.step == 123
    assert set(old_report.momentum) == {name for name, value in report.momentum.items() if value.ndim == 1}
    with open_checkpoint(golden / "ckpt_v1" / "inception_v3.ckpt") as reader:
        tower, report = model_state_from_tf(reader)
        with pytest.raises(CheckpointError, match="variables are missing: InceptionV3/Mixed_6a/"):
            model_state_from_tf(reader, "Mixed_6a")
    assert_equal_states(tower, {name: value for name, value in state.items() if name.startswith("tower.")})
    assert (report.kind, report.step, len(report.ignored)) == ("Inception-v3", None, 8)


def test_golden_deep_endpoints(reference):
    """Weights made by rule, for the layers behind Mixed_5d that no golden checkpoint holds."""
    golden = np.load(reference / "golden" / "deep_endpoints.npz")
    variables = {}
    for name, text in zip(golden["variable_names"].tolist(), golden["variable_shapes"].tolist()):
        shape = tuple(int(size) for size in text.split(","))
        rng = np.random.RandomState((zlib.crc32(name.encode()) + int(golden["weight_seed"])) % 2**32)
        if name.endswith("/weights"):
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        else:
            value = rng.uniform(0.5, 1.5, shape) if name.endswith("variance") else rng.normal(0, 0.1, shape)
        variables[name] = value.astype(np.float32)
    state, report = model_state_from_tf(variables, "Mixed_7c")
    assert len(report.matched) == len(variables) == 376
    tower = InceptionTower("Mixed_7c", num_views=1, per_view=True).eval()
    tower.load_state_dict({name[len("tower.") :]: value for name, value in tensors(state).items()})
    forward = np.load(reference / "golden" / "forward.npz")
    image = int(forward["image_files"].tolist().index(str(golden["image_file"])))
    view = torch.from_numpy(forward["images_float"][image : image + 1, :, :150]).permute(0, 3, 1, 2)
    with torch.no_grad():
        maps = tower.endpoints((view - 0.5) * 2.5)
    for endpoint, key in (("Mixed_6e", "mixed_6e"), ("Mixed_7c", "mixed_7c")):
        expected = torch.from_numpy(golden[key]).permute(0, 3, 1, 2)
        assert float((maps[endpoint] - expected).norm() / expected.norm()) < 1e-5


def test_the_public_inception_ends_at_mixed_5d_however_deep_the_file_goes():
    tower = InceptionTower("Mixed_6a", 1, True).state_dict()
    variables = tf_variables_from_state({f"tower.{name}": value for name, value in tower.items()})
    report = plan_conversion({name: (str(v.dtype), v.shape) for name, v in variables.items()})
    assert (report.kind, report.final_endpoint, report.error) == ("Inception-v3", "Mixed_5d", None)
    assert "behind Mixed_5d" in report.ignored.values()


def test_one_gamma_that_is_not_one_cannot_be_exported():
    tower = {f"tower.{n}": v.clone() for n, v in InceptionTower("Conv2d_1a_3x3", 1, True).state_dict().items()}
    tower["tower.Conv2d_1a_3x3.bn.weight"][3] = 0.5
    with pytest.raises(CheckpointError, match="is not 1"):
        tf_variables_from_state(tower)


def test_a_kernel_of_another_size_is_not_torchvisions():
    tower = InceptionTower("Mixed_7c", 1, True).state_dict()
    tower["Conv2d_1a_3x3.conv.weight"] = torch.zeros(32, 3, 5, 5)
    with pytest.raises(CheckpointError, match=r"found shape \(32, 3, 5, 5\), expected \(32, 3, 3, 3\)"):
        tower_state_from_torchvision(tower)


def test_momentum_of_an_inception_is_not_taken():
    tower = InceptionTower("Conv2d_1a_3x3", 1, True).state_dict()
    state = {f"tower.{name}": value for name, value in tower.items()}
    variables = tf_variables_from_state(state, {"tower.Conv2d_1a_3x3.conv.weight": torch.ones(32, 3, 3, 3)})
    report = plan_conversion({n: (str(v.dtype), v.shape) for n, v in variables.items()}, "Conv2d_1a_3x3")
    assert report.momentum_matched == []
    assert "InceptionV3/Conv2d_1a_3x3/weights/Momentum" in report.ignored


def test_step_0_is_a_step():
    tower = InceptionTower("Conv2d_1a_3x3", 1, True).state_dict()
    variables = tf_variables_from_state({f"tower.{name}": value for name, value in tower.items()}, step=0)
    assert variables["global_step"] == 0
