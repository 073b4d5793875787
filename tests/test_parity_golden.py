"""Parity with numbers measured from the TensorFlow reference on real images, from its checkpoints."""

import json
import zlib

import numpy as np
import pytest
import torch

from aocr_torch.config import Data, Model
from aocr_torch.data.augment import split_views
from aocr_torch.data.charset import Charset
from aocr_torch.interop.tf_checkpoint import open_checkpoint
from aocr_torch.interop.tf_names import model_state_from_tf, tf_variables_from_state
from aocr_torch.model.inception import InceptionTower
from aocr_torch.model.loss import regularization_loss, sequence_loss
from aocr_torch.model.ocr import AttentionOCR, interpret
from aocr_torch.training.optim import build_optimizer, clip_gradients

NULL = 133


@pytest.fixture(scope="module")
def golden(reference):
    return reference / "golden"


@pytest.fixture(scope="module")
def forward(golden):
    return np.load(golden / "forward.npz")


def load(folder, model: Model, tower=None) -> AttentionOCR:
    network = AttentionOCR(Data(), model, 134)
    with open_checkpoint(folder) as reader:
        values = {name: reader.tensor(name) for name in reader.variables}
    network.load_state_dict(model_state_from_tf({**(tower or {}), **values})[0])
    return network


@pytest.fixture(scope="module")
def tower_values(golden):
    with open_checkpoint(golden / "ckpt_v2" / "model.ckpt-123") as reader:
        return {name: reader.tensor(name) for name in reader.variables if "/conv_tower_fn/" in name}


def views(forward) -> torch.Tensor:
    return split_views(torch.from_numpy(forward["images_uint8"]), 4)


def close(ours: torch.Tensor, expected: np.ndarray, atol: float = 1e-4) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), expected, atol=atol, rtol=0)


def test_preprocessing(forward):
    whole = torch.from_numpy(forward["images_float"]).unflatten(2, (4, 150)).permute(0, 2, 4, 1, 3)
    torch.testing.assert_close(views(forward), whole, atol=0, rtol=0)


@pytest.fixture(scope="module")
def model(golden):
    return load(golden / "ckpt_v2" / "model.ckpt-123", Model())


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_every_endpoint_of_every_view(forward, model, mode):
    model.train(mode == "train")
    with torch.no_grad():
        x = (views(forward).flatten(0, 1) - 0.5) * 2.5
        averages = {k: v.clone() for k, v in model.state_dict().items()}
        maps = model.tower.endpoints(x)
        model.load_state_dict(averages)
    if mode == "eval":
        close(maps["Mixed_5d"].unflatten(0, (3, 4)).permute(0, 1, 3, 4, 2), forward["eval/mixed_5d"])
    for name, values in maps.items():
        for view in range(4):
            of_view = values[view::4].permute(0, 2, 3, 1)  # (3, H, W, C)
            key = f"{mode}/endpoints/view{view}/{name}"
            assert list(of_view.shape) == forward[f"{key}/shape"].tolist()
            close(of_view.flatten()[torch.from_numpy(forward[f"{key}/sample_idx"])], forward[f"{key}/sample_val"])
            assert of_view.double().mean().item() == pytest.approx(forward[f"{key}/mean"].item(), abs=1e-5)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_forward(forward, model, mode, reference):
    model.train(mode == "train")
    labels = torch.from_numpy(forward["labels"]) if mode == "train" else None
    averages = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        features = model.features(views(forward))
        out = model(views(forward), labels)
    model.load_state_dict(averages)
    close(features[0], forward[f"{mode}/pooled_features_image0"])
    close(out["logits"], forward[f"{mode}/chars_logit"])
    close(out["attention"], forward[f"{mode}/attention_masks"])
    prediction = interpret(out["logits"], NULL)
    assert prediction.ids.tolist() == forward[f"{mode}/predicted_chars"].tolist()
    close(prediction.scores, forward[f"{mode}/predicted_scores"])
    assert prediction.lengths.tolist() == forward[f"{mode}/predicted_length"].tolist()
    close(prediction.confidences, forward[f"{mode}/predicted_conf"])
    close(prediction.normalized_confidences, forward[f"{mode}/normalized_seq_conf"])
    if mode == "eval":
        close(prediction.log_probabilities, forward["eval/chars_log_prob"])
        charset = Charset.from_file(reference / "fsns" / "charset_size=134.txt")
        texts = [charset.decode_padded(row) for row in prediction.ids.tolist()]
        assert texts == forward["eval/predicted_text"].tolist()


@pytest.mark.parametrize("name", ["attention_noar", "netslice", "netslice_ar", "coords"])
def test_other_decoders(golden, forward, tower_values, name):
    layers = np.load(golden / "layers.npz")
    key = f"{name}/config_use_attention_use_autoregression_encode_coordinates_num_lstm_units"
    attention, autoregression, coordinates, units = (int(v) for v in layers[key])
    settings = Model(
        use_attention=bool(attention),
        use_autoregression=bool(autoregression),
        encode_coordinates=bool(coordinates),
        num_lstm_units=units,
    )
    network = load(golden / "layers_ckpt" / name / "model.ckpt-123", settings, tower_values).eval()
    with torch.no_grad():
        out = network(views(forward))
        close(out["logits"], layers[f"{name}/eval_logits"])
        prediction = interpret(out["logits"], NULL)
        assert prediction.ids.tolist() == layers[f"{name}/eval_predicted_chars"].tolist()
        assert prediction.lengths.tolist() == layers[f"{name}/eval_predicted_length"].tolist()
        if attention:
            close(out["attention"][:, 36], layers[f"{name}/eval_attention_masks_step36"])
        if coordinates:
            columns = network.features(views(forward))[0, :, 288:]
            close(columns, layers["coords/eval_pooled_features_image0_cols288_320"], atol=0)
        taught = network.train()(views(forward), torch.from_numpy(layers["labels"]))
    close(taught["logits"], layers[f"{name}/train_logits"])


def test_deep_endpoints(golden, forward):
    deep = np.load(golden / "deep_endpoints.npz")
    tower = InceptionTower("Mixed_7c", 1, True).eval()
    values = {}
    for name, shape in zip(deep["variable_names"].tolist(), deep["variable_shapes"].tolist()):
        random = np.random.RandomState((zlib.crc32(name.encode()) + int(deep["weight_seed"])) % 2**32)
        size = tuple(int(n) for n in shape.split(","))
        if name.endswith("weights"):
            value = random.standard_normal(size) * np.sqrt(2 / np.prod(size[:-1]))
        elif name.endswith("moving_variance"):
            value = random.uniform(0.5, 1.5, size)
        else:
            value = random.normal(0, 0.1, size)
        values[name] = value.astype(np.float32)
    state = model_state_from_tf(values, final_endpoint="Mixed_7c")[0]
    tower.load_state_dict({name[len("tower.") :]: value for name, value in state.items()})
    with torch.no_grad():
        maps = tower.endpoints((views(forward)[:1, 0] - 0.5) * 2.5)
    assert list(maps) == deep["endpoint_names"].tolist()
    for name, values_of in maps.items():
        flat = values_of.permute(0, 2, 3, 1).flatten()
        expected = deep[f"endpoints/{name}/sample_val"]
        scale = max(1.0, np.abs(expected).max())  # these weights let the activations grow with depth
        close(flat[torch.from_numpy(deep[f"endpoints/{name}/sample_idx"])] / scale, expected / scale)
    for name in ("mixed_6e", "mixed_7c"):
        expected = deep[name]
        ours = maps[name.replace("m", "M", 1)].permute(0, 2, 3, 1)
        close(ours / np.abs(expected).max(), expected / np.abs(expected).max())


def test_three_steps_of_training(golden, forward):
    """Losses, gradients, clipping, momentum and moving averages over three steps from the training checkpoint."""
    train = np.load(golden / "train.npz")
    noise = json.loads((golden / "noise.json").read_text())
    folder = golden / "ckpt_v2" / "model.ckpt-123"
    network = load(folder, Model()).train()
    optimizer = build_optimizer(network.named_parameters(), "momentum", 0.004, 0.9)
    with open_checkpoint(folder) as reader:
        before = {name: reader.tensor(name) for name in reader.variables}
    momentum = model_state_from_tf(before)[1].momentum
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            optimizer.state[parameter]["momentum_buffer"] = momentum[name].clone()
    x, labels = views(forward), torch.from_numpy(train["labels"])
    for step in (1, 2, 3):
        optimizer.zero_grad()
        sequence = sequence_loss(network(x, labels)["logits"], labels, NULL)
        regularization = regularization_loss(network)
        (sequence + regularization).backward()
        exact = 1e-5 if step == 1 else 1e-4
        assert sequence.item() == pytest.approx(train["sequence_loss"][step - 1].item(), rel=exact)
        assert regularization.item() == pytest.approx(train["regularization_loss"][step - 1].item(), rel=1e-5)
        total = (sequence + regularization).item()
        assert total == pytest.approx(train["total_loss"][step - 1].item(), rel=1e-4)
        if step == 1:
            check_gradients(network, train)
        clip_gradients(network.parameters(), 2.0, "per_variable")
        optimizer.step()
        if step != 2:
            check_changes(network, before, train, noise, step)


def check_gradients(network, train):
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    slots = tf_variables_from_state(network.state_dict(), momentum=gradients)  # carries any tensor by name
    expected = {k.split("/", 1)[1]: k for k in train.files if k.startswith("grads_step1/")}
    assert {f"{variable}/Momentum" for variable in expected} == {name for name in slots if name.endswith("/Momentum")}
    for variable, key in expected.items():
        error = np.linalg.norm(slots[f"{variable}/Momentum"] - train[key]) / np.linalg.norm(train[key])
        assert error <= (5e-2 if "conv_tower" in variable else 1e-3), f"{variable}: {error}"


def check_changes(network, before, train, noise, step):
    stated = noise[f"relative_l2_noise_of_change_after_step{step}"]
    after = tf_variables_from_state(network.state_dict())
    compared = 0
    for variable, value in after.items():
        key = next(
            k for k in (f"vars_after_step{step}/{variable}", f"vars_after_step{step}_every4th/{variable}") if k in train
        )
        ours, start, expected = value, before[variable], train[key]
        if "every4th" in key:
            ours, start = ours.reshape(-1)[::4], start.reshape(-1)[::4]
        change = np.linalg.norm((expected - start).astype(np.float64))
        error = np.linalg.norm((ours - expected).astype(np.float64)) / change
        # The large weights of step 1 have no stated noise; the bias of their layer has, from the same gradient.
        bias = variable.replace("/weights", "/BatchNorm/beta").replace("/kernel", "/bias")
        allowed = stated.get(variable, stated.get(bias, 0.0))
        assert error <= max(3 * allowed, 1e-3), f"{variable} after step {step}: {error}"
        compared += 1
    assert compared == 116
