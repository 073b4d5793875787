"""convert_inception.py and tools/export_tf.py as a user runs them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import convert_inception
from aocr_torch.config import Data, Model
from aocr_torch.data.charset import Charset
from aocr_torch.files import CheckpointError
from aocr_torch.interop.tf_checkpoint import open_checkpoint, write_checkpoint
from aocr_torch.interop.tf_names import tf_variables_from_state
from aocr_torch.model.inception import InceptionTower
from aocr_torch.model.ocr import AttentionOCR
from aocr_torch.training.checkpoint import config_of, load, load_model, load_tower
from aocr_torch.training.optim import ExponentialMovingAverage, build_optimizer
from tools import export_tf

ROOT = Path(__file__).parents[2]
STEM = Model(final_endpoint="Conv2d_2a_3x3", num_lstm_units=6)
SMALL = Data(image_height=48, image_width=96, num_views=2, max_sequence_length=3)


@pytest.fixture
def inception_ckpt(tmp_path, craft):
    """A V1 file with the tower up to Mixed_5d, a classifier and a step."""
    torch.manual_seed(1)
    tower = InceptionTower("Mixed_5d", 1, True).state_dict()
    variables = tf_variables_from_state({f"tower.{name}": value for name, value in tower.items()}, step=5)
    variables["InceptionV3/Logits/Conv2d_1c_1x1/biases"] = np.zeros(11, np.float32)
    path = tmp_path / "inception_v3.ckpt"
    path.write_bytes(craft.v1_table(variables))
    return path


@pytest.fixture
def trained():
    """A small model with its optimizer after two steps, as train.py saves it."""
    torch.manual_seed(2)
    model = AttentionOCR(SMALL, STEM, num_classes=5)
    optimizer = build_optimizer(model.named_parameters(), "momentum", 0.1, 0.9)
    average = ExponentialMovingAverage(model, 0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(2, 2, 3, 48, 48))["logits"].square().sum().backward()
        optimizer.step()
        average.update(model)
    state = {
        "format": "aocr_torch/1",
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": average.state_dict(),
        "step": 2,
        "config": {"optimizer": "momentum"},
    }
    return model, optimizer, average, state


def test_inception(inception_ckpt, capsys):
    assert convert_inception.main([str(inception_ckpt)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("inception_v3.ckpt: Inception-v3, TensorFlow V1 checkpoint of 106 variables")
    assert "      28         0  tower.Mixed_5d" in lines
    assert "       1   ignored  classifier of ImageNet, such as InceptionV3/Logits/Conv2d_1c_1x1/biases" in lines
    output = inception_ckpt.with_suffix(".pth")
    assert lines[-1] == f"wrote {output}: 156 tensors"
    state = load(output)
    assert set(state) == {"format", "model", "source"}
    digest = subprocess.run(["sha256sum", inception_ckpt], capture_output=True, text=True, check=True).stdout.split()[0]
    assert state["source"] == {"file": "inception_v3.ckpt", "format": "V1", "sha256": {"inception_v3.ckpt": digest}}
    model = AttentionOCR(SMALL, Model(num_lstm_units=6, final_endpoint="Mixed_5b"), num_classes=5)
    load_tower(model, output)
    assert torch.equal(
        model.state_dict()["tower.Mixed_5b.branch1x1.conv.weight"],
        state["model"]["tower.Mixed_5b.branch1x1.conv.weight"],
    )


def test_torch_is_not_needed(inception_ckpt):
    """With a CUDA build `import torch` alone takes more memory than a conversion may."""
    without_torch = (
        "import sys; sys.modules['torch'] = None; import convert_inception as c; sys.exit(c.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", without_torch, str(inception_ckpt)]
    for arguments in (["--list"], []):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
        assert (done.returncode, done.stderr) == (0, "")
    assert len(load(inception_ckpt.with_suffix(".pth"))["model"]) == 156


def test_output_force_and_final_endpoint(inception_ckpt, tmp_path):
    output = tmp_path / "new" / "x.pth"
    arguments = [str(inception_ckpt), "--output", str(output), "--final_endpoint", "Conv2d_1a_3x3"]
    convert_inception.main(arguments)
    assert len(load(output)["model"]) == 6
    with pytest.raises(CheckpointError, match="exists already; name another --output or replace it with --force"):
        convert_inception.main(arguments)
    convert_inception.main([*arguments[:3], "--force"])
    assert len(load(output)["model"]) == 156
    with pytest.raises(CheckpointError, match=r"inception_v3\.ckpt: \d+ variables are missing: InceptionV3/Mixed_6a"):
        convert_inception.main([str(inception_ckpt), "--final_endpoint", "Mixed_6b", "--output", str(tmp_path / "y")])
    assert not (tmp_path / "y").exists()


def test_list_writes_nothing(inception_ckpt, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert convert_inception.main([str(inception_ckpt), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 106
    assert "InceptionV3/Conv2d_1a_3x3/weights float32 [3, 3, 3, 32] -> tower.Conv2d_1a_3x3.conv.weight" in lines
    assert "global_step int64 [] ignored: step of the ImageNet training" in lines
    assert convert_inception.main([str(inception_ckpt), "--list", "--final_endpoint", "Mixed_6a"]) == 1
    assert "InceptionV3/Mixed_6a/Branch_0/Conv2d_1a_1x1/weights MISSING" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


def test_a_wrong_shape_is_shown_and_refused(tmp_path, capsys):
    tower = InceptionTower("Conv2d_1a_3x3", 1, True).state_dict()
    variables = tf_variables_from_state({f"tower.{name}": value for name, value in tower.items()})
    variables["InceptionV3/Conv2d_1a_3x3/weights"] = np.zeros((5, 5, 3, 32), np.float32)
    write_checkpoint(tmp_path / "x", variables)
    with pytest.raises(CheckpointError, match=r"has shape \(5, 5, 3, 32\), the model expects \(3, 3, 3, 32\)"):
        convert_inception.main([str(tmp_path / "x"), "--final_endpoint", "Conv2d_1a_3x3"])
    assert "PROBLEM  InceptionV3/Conv2d_1a_3x3/weights has shape" in capsys.readouterr().out


def test_one_line_and_status_2(tmp_path, inception_ckpt):
    damaged = bytearray(inception_ckpt.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    inception_ckpt.write_bytes(damaged)
    command = [sys.executable, ROOT / "convert_inception.py", inception_ckpt]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {inception_ckpt}: crc of data block")
    assert done.stderr.count("\n") == 1
    assert not inception_ckpt.with_suffix(".pth").exists()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encode_coordinates": True},
        {"use_attention": False},
        {"use_attention": False, "use_autoregression": False, "encode_coordinates": True},
    ],
)
def test_architecture_of_a_whole_model_is_found(tmp_path, options):
    model = Model(final_endpoint="Mixed_5b", num_lstm_units=6, **options)
    state = AttentionOCR(Data(), model, num_classes=5).state_dict()
    write_checkpoint(tmp_path / "model.ckpt-9", tf_variables_from_state(state, step=9))
    convert_inception.main([str(tmp_path / "model.ckpt-9.index")])
    converted = load(tmp_path / "model.ckpt-9.pth")
    assert Model(**converted["config"]) == model
    assert converted["step"] == 9
    assert converted["momentum"] == {}
    load_model(AttentionOCR(Data(), model, num_classes=5), tmp_path / "model.ckpt-9.pth")


@pytest.mark.parametrize("use_attention", [True, False])
def test_what_leaves_no_trace_in_a_checkpoint_is_said(tmp_path, capsys, use_attention):
    kind = {"use_attention": use_attention, "use_autoregression": False, "encode_coordinates": True}
    model = Model(final_endpoint="MaxPool_3a_3x3", num_lstm_units=6, **kind)
    write_checkpoint(tmp_path / "x", tf_variables_from_state(AttentionOCR(SMALL, model, 5).state_dict()))
    said = ["--image_height=48", "--image_width=96", "--num_views=2", "--max_sequence_length=3"]
    said.append("--nouse_autoregression")
    with pytest.raises(CheckpointError, match=r"which 4 views of 150x150 .* do not give: say the model's with"):
        convert_inception.main([str(tmp_path / "x")])
    with pytest.raises(CheckpointError, match="say the model's with"):  # the maps before the pool have another size
        convert_inception.main([str(tmp_path / "x"), *said])
    convert_inception.main([str(tmp_path / "x"), *said, "--final_endpoint=MaxPool_3a_3x3"])
    config = config_of(load(tmp_path / "x.pth"))
    assert (config.data, config.model) == (SMALL, model)
    assert "step" not in load(tmp_path / "x.pth")
    plain = AttentionOCR(SMALL, Model(final_endpoint="MaxPool_3a_3x3", num_lstm_units=6), 5)
    write_checkpoint(tmp_path / "y", tf_variables_from_state(plain.state_dict()))
    capsys.readouterr()
    convert_inception.main([str(tmp_path / "y")])
    assert "taken to end at Conv2d_2b_3x3; if it ended at MaxPool_3a_3x3, say so" in capsys.readouterr().out


def test_an_inception_has_no_charset(inception_ckpt, tmp_path):
    with pytest.raises(CheckpointError, match="an Inception-v3 has no characters: leave --charset away"):
        convert_inception.main([str(inception_ckpt), "--charset", str(tmp_path / "x.txt")])


def test_a_training_checkpoint_goes_and_comes_back(tmp_path, trained, capsys):
    model, optimizer, _, state = trained
    torch.save(state, tmp_path / "checkpoint-00000002.pth")
    assert export_tf.main([str(tmp_path / "checkpoint-00000002.pth")]) == 0
    assert capsys.readouterr().out.endswith("37 variables, 16 Momentum slots, global_step 2\n")
    convert_inception.main([str(tmp_path / "model.ckpt-2")])
    back = load(tmp_path / "model.ckpt-2.pth")
    assert back["step"] == 2
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(back["momentum"]) == sorted(parameters)
    for name, parameter in parameters.items():
        assert torch.equal(back["model"][name], parameter)
        assert torch.equal(back["momentum"][name], optimizer.state[parameter]["momentum_buffer"])
    export_tf.main([str(tmp_path / "model.ckpt-2.pth"), "--output", str(tmp_path / "again")])
    with open_checkpoint(tmp_path / "again") as again, open_checkpoint(tmp_path / "model.ckpt-2") as first:
        assert again.variables == first.variables
        for name in again.variables:
            assert again.tensor(name).tobytes() == first.tensor(name).tobytes()


def test_export_of_the_moving_average(tmp_path, trained):
    model, _, average, state = trained
    torch.save(state, tmp_path / "x.pth")
    export_tf.main([str(tmp_path / "x.pth"), "--ema", "--output", str(tmp_path / "new" / "ema")])
    average.copy_to(model)
    with open_checkpoint(tmp_path / "new" / "ema") as reader:
        bias = reader.tensor("AttentionOcr_v1/sequence_logit_fn/SQLR/softmax_b")
    assert bias.tobytes() == model.decoder.classifier.bias.detach().numpy().tobytes()
    torch.save({**state, "ema": None}, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="no moving average"):
        export_tf.main([str(tmp_path / "y.pth"), "--ema"])


def test_what_cannot_be_exported(tmp_path, trained):
    *_, state = trained
    torch.save(state, tmp_path / "x.pth")
    export_tf.main([str(tmp_path / "x.pth")])
    with pytest.raises(CheckpointError, match=r"model\.ckpt-2\.index: exists already; .* --force"):
        export_tf.main([str(tmp_path / "x.pth")])
    export_tf.main([str(tmp_path / "x.pth"), "--force"])
    (tmp_path / "inception_v3.ckpt").touch()  # a bundle of this name would hide it
    with pytest.raises(CheckpointError, match=r"inception_v3\.ckpt: exists already"):
        export_tf.main([str(tmp_path / "x.pth"), "--output", str(tmp_path / "inception_v3.ckpt")])
    torch.save({"weight": torch.zeros(2)}, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="it has no 'model'"):
        export_tf.main([str(tmp_path / "y.pth")])
    gru = AttentionOCR(SMALL, Model(final_endpoint="Conv2d_2a_3x3", cell="gru", num_lstm_units=6), 5).state_dict()
    torch.save({"model": gru}, tmp_path / "z.pth")
    with pytest.raises(CheckpointError, match=r"z\.pth: .*only its LSTM decoders"):
        export_tf.main([str(tmp_path / "z.pth")])


def test_an_adam_checkpoint_has_no_momentum(tmp_path, trained, capsys):
    *_, state = trained
    torch.save({**state, "config": {"optimizer": "adam"}}, tmp_path / "x.pth")
    export_tf.main([str(tmp_path / "x.pth")])
    assert "no Momentum slots (the checkpoint has none)" in capsys.readouterr().out


@pytest.mark.parametrize("characters", ["abc", "abcde"])
def test_a_charset_of_another_size_does_not_travel_along(tmp_path, characters):
    model = AttentionOCR(SMALL, Model(final_endpoint="Conv2d_1a_3x3", num_lstm_units=4), 5)
    write_checkpoint(tmp_path / "x", tf_variables_from_state(model.state_dict()))
    Charset.from_characters(characters).save(tmp_path / "charset.txt")
    with pytest.raises(CheckpointError, match=rf"has {len(characters) + 1} classes, the model 5: not its charset"):
        convert_inception.main([str(tmp_path / "x"), f"--charset={tmp_path}/charset.txt"])
