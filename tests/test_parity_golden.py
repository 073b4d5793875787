"""Parity with numbers measured from the TensorFlow reference on real images, from its checkpoints."""

import copy
import json
import zlib

import numpy as np
import pytest
import torch
from compiler import COMPILED, require_compiler
from tensors import tensors

import convert_inception
from aocr_torch.config import Config, Data, Model
from aocr_torch.data.augment import split_views
from aocr_torch.data.charset import Charset
from aocr_torch.interop.tf_checkpoint import open_checkpoint
from aocr_torch.interop.tf_names import model_state_from_tf, tf_variables_from_state
from aocr_torch.model.inception import InceptionTower
from aocr_torch.model.loss import regularization_loss, sequence_loss
from aocr_torch.model.ocr import AttentionOCR, interpret
from aocr_torch.training import checkpoint
from aocr_torch.training.state import Training

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
    network.load_state_dict(tensors(model_state_from_tf({**(tower or {}), **values})[0]))
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
def charset(reference):
    return Charset.from_file(reference / "fsns" / "charset_size=134.txt")


@pytest.fixture(scope="module")
def converted(golden, tmp_path_factory):
    """The training checkpoint as convert_inception.py leaves it."""
    path = tmp_path_factory.mktemp("converted") / "model.pth"
    assert convert_inception.main([str(golden / "ckpt_v2"), "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def model(converted, charset):
    state = checkpoint.load(converted)
    return checkpoint.build_model(state, checkpoint.config_of(state), charset, converted)


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


@pytest.mark.parametrize("is_compiled", [False, COMPILED])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_forward(forward, model, mode, charset, is_compiled):
    if is_compiled:
        require_compiler()
        model = copy.deepcopy(model)
        model.fuse()
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
    state = tensors(model_state_from_tf(values, final_endpoint="Mixed_7c")[0])
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


@pytest.mark.parametrize("is_compiled", [False, COMPILED])
def test_gradients(golden, forward, is_compiled):
    """Losses and gradients of the first step, before clipping."""
    train = np.load(golden / "train.npz")
    network = load(golden / "ckpt_v2", Model()).train()
    labels = torch.from_numpy(train["labels"])
    if is_compiled:
        require_compiler()
        network.fuse()
    sequence = sequence_loss(network(views(forward), labels)["logits"], labels, NULL)
    regularization = regularization_loss(network)
    (sequence + regularization).backward()
    assert sequence.item() == pytest.approx(train["sequence_loss"][0].item(), rel=1e-5)
    assert regularization.item() == pytest.approx(train["regularization_loss"][0].item(), rel=1e-5)
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    slots = tf_variables_from_state(network.state_dict(), momentum=gradients)  # carries any tensor by name
    expected = {k.split("/", 1)[1]: k for k in train.files if k.startswith("grads_step1/")}
    assert {f"{variable}/Momentum" for variable in expected} == {name for name in slots if name.endswith("/Momentum")}
    for variable, key in expected.items():
        error = np.linalg.norm(slots[f"{variable}/Momentum"] - train[key]) / np.linalg.norm(train[key])
        assert error <= (5e-2 if "conv_tower" in variable else 1e-3), f"{variable}: {error}"


@pytest.mark.parametrize("is_compiled", [False, COMPILED])
def test_a_converted_training_goes_on_like_the_reference(golden, forward, converted, charset, is_compiled):
    """Losses and variables of three steps from the training checkpoint, as a user goes on from it.

    From the second step on the training is chaotic: noise of 1e-7 in the weights, which is what the order of a sum
    costs in float32, flips single ReLU and max-pool decisions, and moves the third loss by up to 2.5e-4 (measured:
    147.22 to 147.27 over twenty such starts; the reference has 147.266). So each figure of the third step must be met
    by one of a few starts that differ by such noise; those of the first two by every start. Compiled, one ReLU falls to
    the other side in the first step of some starts, so there that holds for the first step's variables too.
    """
    flags = {"checkpoint": str(converted), "restore_optimizer": True, "use_augment_input": False, "batch_size": 3}
    if is_compiled:
        require_compiler()
        flags["compile"] = True
    nearest: dict[str, float] = {}
    for seed in range(10):
        training = Training(Config().replace(**flags), charset, torch.device("cpu"), num_records=3)
        message = training.start_from_weights()[-1]
        assert message == "going on at step 123 with the momentum of 64 variables"
        training.distribute()
        errors = train_three_steps(training, golden, forward, noise=1e-7 if seed else 0.0, seed=seed)
        of_first_step = {name: error for name, error in errors.items() if name.startswith("step 1")}
        assert is_compiled or max(of_first_step.values()) <= 1, max(of_first_step, key=errors.get)
        nearest = {name: min(error, nearest.get(name, error)) for name, error in errors.items()}
        if max(nearest.values()) <= 1:
            return
    pytest.fail(f"no start meets {[name for name, error in nearest.items() if error > 1]}")


def train_three_steps(training, golden, forward, noise: float, seed: int) -> dict[str, float]:
    """Trains; asserts the losses of steps 1 and 2, and returns other errors as multiples of what is allowed."""
    train = np.load(golden / "train.npz")
    stated = json.loads((golden / "noise.json").read_text())
    with open_checkpoint(golden / "ckpt_v2") as reader:
        before = {name: reader.tensor(name) for name in reader.variables}
    generator = torch.Generator().manual_seed(seed)
    for parameter in training.model.parameters():
        if parameter.requires_grad:
            parameter.data *= 1 + noise * torch.randn(parameter.shape, generator=generator)
    start = {n: v.copy() for n, v in tf_variables_from_state(training.model.state_dict()).items()}
    images, labels = torch.from_numpy(forward["images_uint8"]), torch.from_numpy(train["labels"])
    batch = {"image": images, "label": labels, "index": [0, 1, 2], "skipped": []}
    errors: dict[str, float] = {}
    for step in (1, 2, 3):
        losses = training.train_step([batch])
        loss_error = abs(losses["sequence_loss"].item() / train["sequence_loss"][step - 1].item() - 1)
        assert step == 3 or loss_error <= 1e-5
        golden_regularization = train["regularization_loss"][step - 1].item()
        assert losses["regularization_loss"].item() == pytest.approx(golden_regularization, rel=1e-5)
        if step != 2:
            of_step = errors_of_changes(training.model, start, before, train, stated, step)
            errors.update({f"step {step}, {name}": error for name, error in of_step.items()})
    assert training.step == 126
    return {"step 3, loss": loss_error / 1e-4, **errors}


def errors_of_changes(network, start, before, train, noise, step) -> dict[str, float]:
    """How far each variable's change is from the reference's, as a multiple of 3 times its own noise or 1e-3."""
    stated = noise[f"relative_l2_noise_of_change_after_step{step}"]
    errors = {}
    after = tf_variables_from_state(network.state_dict())
    for variable, value in after.items():
        key = next(
            k for k in (f"vars_after_step{step}/{variable}", f"vars_after_step{step}_every4th/{variable}") if k in train
        )
        ours, theirs = value - start[variable], before[variable]
        if "every4th" in key:
            ours, theirs = ours.reshape(-1)[::4], theirs.reshape(-1)[::4]
        change = (train[key] - theirs).astype(np.float64)
        error = np.linalg.norm(ours - change) / np.linalg.norm(change)
        # The large weights of step 1 have no stated noise; the bias of their layer has, from the same gradient.
        bias = variable.replace("/weights", "/BatchNorm/beta").replace("/kernel", "/bias")
        allowed = stated.get(variable, stated.get(bias, 0.0))
        errors[variable] = error / max(3 * allowed, 1e-3)
    assert len(errors) == 116
    return errors
