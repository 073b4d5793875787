"""Exported models beside PyTorch: every decoder, both inputs, float16, and what is said where something is wrong."""

import json
import shlex
import shutil
import sys

import numpy as np
import pytest
import tiny
import torch

from aocr_torch.command_line import run_main
from aocr_torch.config import Config
from aocr_torch.data.augment import split_views
from aocr_torch.data.charset import CharsetError
from aocr_torch.device import DeviceError
from aocr_torch.interop import onnx as interop
from aocr_torch.interop.onnx_model import MissingExtraError, OnnxModel
from aocr_torch.model.ocr import AttentionOCR
from aocr_torch.predict import Predictor, Reader
from aocr_torch.training.checkpoint import CheckpointError

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

# What CANN 5.0.4 and CANN 8.0 both list as ONNX operators, as far as an OCR model can have them.
CANN_OPERATORS = (
    "Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape "
    "Conv CumSum Div Equal Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm Greater "
    "GreaterOrEqual Identity Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Min Mod Mul Neg Not "
    "OneHot Or Pad Pow Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Shape "
    "Sigmoid Size Slice Softmax Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Unsqueeze Where"
)

MODELS = {
    "default": {},
    "told_nothing": {"use_autoregression": False},
    "netslice": {"use_attention": False, "use_autoregression": False},
    "netslice_autoregressive": {"use_attention": False, "use_autoregression": True},
    "coordinates": {"encode_coordinates": True},
    "gru": {"cell": "gru", "use_attention": False},
    "gru_attention": {"cell": "gru"},
    "unclipped": {"lstm_state_clip_value": 0.0},
    "one_view": {"num_views": 1},
    "four_views": {"num_views": 4, "image_width": 192},
    "crop": {"crop_width": 80, "crop_height": 40},
    "mixed": {"final_endpoint": "Mixed_6a", "image_height": 80, "image_width": 160},
}


def reader(**flags) -> Reader:
    """A model with random weights that prefers some characters clearly, and is not certain."""
    names = {name: value for name, value in {**tiny.FLAGS, **flags}.items() if value is not None}
    config = Config().replace(**names)
    torch.manual_seed(1)
    model = AttentionOCR(config.data, config.model, tiny.CHARSET.size).eval()
    made = Reader(model, config, tiny.CHARSET.null_id)
    views = split_views(torch.from_numpy(pictures(made)), config.data.num_views, config.data.crop)
    with torch.no_grad():
        model.decoder.classifier.weight.mul_(2 / model(views)["logits"].std(2).mean())
    return made


def pictures(reader: Reader, count: int = 8) -> np.ndarray:
    return interop.draw_pictures(reader.config.data, tiny.CHARSET, count)


@torch.no_grad()
def clear_pictures(reader: Reader) -> np.ndarray:
    """Eight in which no character is a near tie: there, float16 may read another one and is right to be refused."""
    images = pictures(reader, 24)
    views = split_views(torch.from_numpy(images), reader.config.data.num_views, reader.config.data.crop)
    best, second = reader.model(views)["logits"].topk(2, dim=2).values.unbind(2)  # (B, T) each
    return images[(best - second).amin(1).topk(8).indices.numpy()]


@torch.no_grad()
def answers(reader: Reader, images: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in reader(torch.from_numpy(images)).items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_what_pytorch_computes(name, tmp_path):
    ours = reader(**MODELS[name])
    images = pictures(ours)
    worst = interop.export(ours, tiny.CHARSET, tmp_path / "m.onnx", images)
    assert max(worst.values()) <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    exported = OnnxModel(tmp_path / "m.onnx")
    assert (exported.config, exported.charset, exported.map_shape) == (ours.config, tiny.CHARSET, ours.map_shape)
    together = exported(images)
    for batch in (images[:1], images[:3], images):
        found, expected = exported(batch), answers(ours, batch)
        np.testing.assert_allclose(found["scores"], together["scores"][: len(batch)], rtol=0, atol=1e-5)
        assert list(found) == list(expected)
        assert ("attention" in found) == ours.config.model.use_attention
        assert np.array_equal(found["ids"], expected["ids"])
        for output in set(found) - {"ids"}:
            assert found[output].shape == expected[output].shape
            np.testing.assert_allclose(found[output], expected[output], rtol=0, atol=1e-4)
    assert np.ptp(found["log_probability"]) > 0.01, "the model tells nothing apart, so this compares nothing"
    graph = onnx.load(tmp_path / "m.onnx")
    assert [(one.domain, one.version) for one in graph.opset_import] == [("", 13)]
    assert {node.op_type for node in graph.graph.node} <= set(CANN_OPERATORS.split())


@pytest.mark.parametrize("takes_bytes", [True, False])
@pytest.mark.parametrize("name", ["coordinates", "netslice_autoregressive", "gru_attention", "mixed"])
def test_float16(name, takes_bytes, tmp_path):
    ours = reader(**MODELS[name])
    images = clear_pictures(ours)
    options = {"takes_bytes": takes_bytes, "float16": True}
    worst = interop.export(ours, tiny.CHARSET, tmp_path / "half.onnx", images, **options)
    assert 1e-6 < max(worst.values()) < interop.FLOAT16_TOLERANCE
    interop.export(ours, tiny.CHARSET, tmp_path / "m.onnx", images, takes_bytes=takes_bytes)
    assert (tmp_path / "half.onnx").stat().st_size < 0.75 * (tmp_path / "m.onnx").stat().st_size
    graph = onnx.load(tmp_path / "half.onnx").graph
    assert {tensor.data_type for tensor in graph.initializer} <= {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    assert {value.type.tensor_type.elem_type for value in graph.output} == {
        *(onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
    }


def test_pixels_divided_by_255_outside(tmp_path):
    ours = reader()
    images = pictures(ours)
    interop.export(ours, tiny.CHARSET, tmp_path / "m.onnx", images, takes_bytes=False, with_attention=False)
    (value,) = onnx.load(tmp_path / "m.onnx").graph.input
    assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [size.dim_value for size in value.type.tensor_type.shape.dim] == [0, 3, 48, 96]
    found, expected = OnnxModel(tmp_path / "m.onnx")(images), answers(ours, images)
    assert list(found) == ["ids", "scores", "log_probability", "confidence"]
    assert np.array_equal(found["ids"], expected["ids"])


def other_weights(path, name: str, factor: float) -> None:
    """Spoils a tensor of the file."""
    model = onnx.load(path)
    (tensor,) = [each for each in model.graph.initializer if each.name.endswith(name)]
    values = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


@pytest.mark.parametrize(("factor", "message"), [(1.001, "scores of ONNX and PyTorch differ by"), (-1.0, "ONNX reads")])
def test_a_file_that_computes_something_else_is_found_out(factor, message, tmp_path):
    ours = reader()
    interop.export(ours, tiny.CHARSET, tmp_path / "m.onnx", pictures(ours))
    interop.verify(tmp_path / "m.onnx", ours, tiny.CHARSET, pictures(ours), interop.TOLERANCE)
    other_weights(tmp_path / "m.onnx", "decoder.classifier.weight", factor)
    with pytest.raises(interop.ExportError, match=message):
        interop.verify(tmp_path / "m.onnx", ours, tiny.CHARSET, pictures(ours), interop.TOLERANCE)


def test_a_file_of_one_batch_size_is_found_out(tmp_path):
    ours = reader()
    interop.export(ours, tiny.CHARSET, tmp_path / "m.onnx", pictures(ours))
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(interop.ExportError, match="a batch of 8 cannot be run: "):
        interop.verify(tmp_path / "m.onnx", ours, tiny.CHARSET, pictures(ours), interop.TOLERANCE)


def test_what_differs_is_not_written(tmp_path, monkeypatch):
    ours = reader()
    (tmp_path / "m.onnx").write_text("the one before")
    monkeypatch.setattr(interop, "TOLERANCE", 0.0)
    with pytest.raises(interop.ExportError, match="expected at most 0: nothing was written"):
        interop.export(ours, tiny.CHARSET, tmp_path / "m.onnx", pictures(ours))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.onnx", "the one before")]


def test_a_score_that_is_no_number_is_a_difference(tmp_path):
    ours = reader()
    interop.export(ours, tiny.CHARSET, tmp_path / "m.onnx", pictures(ours))

    def broken(images):  # the same texts
        answer = ours(images)
        return {**answer, "scores": torch.full_like(answer["scores"], float("nan"))}

    with torch.no_grad(), pytest.raises(interop.ExportError, match="scores of ONNX and PyTorch differ by nan"):
        interop.verify(tmp_path / "m.onnx", broken, tiny.CHARSET, pictures(ours), interop.TOLERANCE)


@pytest.fixture(scope="module")
def export_tool():
    return tiny.load_tool("export_onnx")


@pytest.fixture(scope="module")
def exported(export_tool, tiny_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    assert export_tool.main(["--ckpt", str(tiny_checkpoint), "--output", str(path)]) == 0
    return path


def test_predictor_reads_both_alike(exported, tiny_checkpoint, tmp_path):
    files = tiny.pictures(tmp_path, ["abc", "de", "e"])
    with_torch, with_onnx = Predictor(tiny_checkpoint), Predictor(exported, "auto", batch_size=2)
    for ours, theirs in zip(with_onnx(files), with_torch(files)):
        assert ours.text == theirs.text
        assert np.array_equal(ours.views, theirs.views)
        np.testing.assert_allclose(ours.attention, theirs.attention, atol=1e-4)
        np.testing.assert_allclose(ours.character_confidences, theirs.character_confidences, atol=1e-4)
        assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)
        assert ours.log_probability == pytest.approx(theirs.log_probability, abs=1e-3)


def test_tool_exports_and_prints_the_atc_commands(export_tool, tiny_checkpoint, tmp_path, capsys):
    shutil.copy(tiny_checkpoint, tmp_path / "my model.pth")
    files = tiny.pictures(tmp_path / "photos", ["abc", "de"])
    options = ["--input", "float32", "--no-attention", "--images", str(tmp_path / "photos"), str(files[0])]
    assert export_tool.main(["--ckpt", str(tmp_path / "my model.pth"), *options]) == 0
    said = capsys.readouterr().out
    assert "as PyTorch on 3 pictures, one by one and together: texts equal" in said
    one, several = [shlex.split(line) for line in said.splitlines() if line.startswith("atc ")]
    stem = tmp_path / "my model"
    common = ["atc", "--framework=5", f"--model={stem}.onnx", "--soc_version=Ascend910B3", "--input_format=NCHW"]
    kept = "--precision_mode_v2=origin"
    assert one == [*common, "--input_shape=images:1,3,48,96", kept, f"--output={stem}_batch1"]
    dynamic = ["--input_shape=images:-1,3,48,96", "--dynamic_batch_size=1,4,8,16"]
    assert several == [*common, *dynamic, kept, f"--output={stem}_dynamic"]


def test_predict_tool_reads_the_file(exported, tiny_checkpoint, tmp_path, capsys):
    tool = tiny.load_tool("predict")
    files = [str(path) for path in tiny.pictures(tmp_path, ["abc", "de"])]
    said = []
    for checkpoint in (exported, tiny_checkpoint):
        drawn = ["--attention", str(tmp_path / checkpoint.name)]
        assert tool.main([*files, "--ckpt", str(checkpoint), "--json", *drawn]) == 0
        said.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    for ours, theirs in zip(*said):
        assert (ours["text"], ours["file"], list(ours)) == (theirs["text"], theirs["file"], list(theirs))
        assert ours["confidence"] == pytest.approx(theirs["confidence"], abs=1e-4)


def run(tool, arguments, monkeypatch, capsys) -> str:
    """The one line that ends a wrong command."""
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        run_main(tool.main)
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    return error


def test_wrong_commands(export_tool, exported, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.png").write_text("no picture")
    checkpoint = ["--ckpt", tiny_checkpoint]
    for arguments, message in [
        (["--ckpt", "absent.pth"], "absent.pth: no such file"),
        (["--ckpt", exported], "is an ONNX file already"),
        ([*checkpoint, "--output", exported], "exists already"),
        ([*checkpoint, "--output", tmp_path / "m.om"], "expected a name that ends in .onnx"),
        ([*checkpoint, "--output", tmp_path / "m.onnx", "--images", tmp_path / "bad.png"], "bad.png: is not a picture"),
    ]:
        assert message in run(export_tool, arguments, monkeypatch, capsys)
    monkeypatch.setattr(interop, "TOLERANCE", 0.0)
    arguments = [*checkpoint, "--output", tmp_path / "m.onnx"]
    assert "nothing was written" in run(export_tool, arguments, monkeypatch, capsys)
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    assert "pip install -e '.[onnx]'" in run(export_tool, arguments, monkeypatch, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.png"]


def test_files_that_are_no_export_of_ours(exported, tiny_dataset, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"absent\.onnx: no such file"):
        Predictor(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.onnx: not a readable ONNX file"):
        Predictor(tmp_path / "text.onnx")
    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match=r"other\.onnx: has format none, expected 'aocr_torch/onnx/1'"):
        Predictor(tmp_path / "other.onnx")
    with pytest.raises(DeviceError, match="found an onnxruntime without CANNExecutionProvider"):
        Predictor(exported, "npu:0")
    with pytest.raises(CharsetError, match="expected an id, a tab"):
        Predictor(exported, charset=tmp_path / "text.onnx")
    (tmp_path / "small.txt").write_text("0\ta\n1\t<nul>\n")
    with pytest.raises(CheckpointError, match=r"small\.txt: has 2 classes, the model 7: leave it away"):
        Predictor(exported, charset=tmp_path / "small.txt")
    same = Predictor(exported, charset=tiny_dataset / "charset_size=7.txt")
    assert same.charset.size == 7
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[onnx\]'"):
        Predictor(exported)


def test_attention_that_was_not_exported(export_tool, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    arguments = ["--ckpt", tiny_checkpoint, "--output", tmp_path / "m.onnx", "--no-attention"]
    assert export_tool.main([*map(str, arguments)]) == 0
    capsys.readouterr()
    (picture,) = tiny.pictures(tmp_path, ["abc"])
    arguments = ["--ckpt", tmp_path / "m.onnx", picture, "--attention", tmp_path / "looked"]
    assert "or exported without" in run(tiny.load_tool("predict"), arguments, monkeypatch, capsys)
