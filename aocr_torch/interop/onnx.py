"""A trained model as an ONNX file: pictures in, ids, scores and confidences out; there only if it equals PyTorch.

The file is a trace of `Reader`, its decoder loop unrolled, for any batch size. Configuration and charset travel in its
metadata. The operator set is 13: CANN 5.0 takes 9 to 13 and CANN 7 up to 18, and nothing newer is needed.

B batch, T steps, L feature positions, H W height and width of the whole image.
"""

from __future__ import annotations

import inspect
import json
import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aocr_torch.config import Data
from aocr_torch.data.charset import NULL, Charset
from aocr_torch.data.synthetic_effects import SignEffects
from aocr_torch.data.synthetic_signs import draw_sign
from aocr_torch.files import replacing_path
from aocr_torch.interop.onnx_model import FORMAT, OnnxModel, import_extra
from aocr_torch.predict import Reader

OPSET = 13
CHECK_BATCH = 8
TOLERANCE = 1e-4
FLOAT16_TOLERANCE = 0.02
"""Of probabilities. float16 has 11 significant bits: a logit of 16 is known to 0.008, a probability of a half, the most
sensitive one, to a quarter of that, and the layers before the logits add to it. Measured: 0.001."""


class ExportError(ValueError):
    """A model that ONNX does not compute as PyTorch does; nothing was written."""


class _Traced(nn.Module):
    """`Reader` in the form that tracing takes: one tensor in, a tuple out."""

    def __init__(self, reader: Reader, takes_bytes: bool, names: list[str]) -> None:
        super().__init__()
        self.reader, self.takes_bytes, self.names = reader, takes_bytes, names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        answer = self.reader(images if self.takes_bytes else images.permute(0, 2, 3, 1))
        return tuple(answer[name] for name in self.names)


def export(
    reader: Reader,
    charset: Charset,
    path: Path,
    pictures: np.ndarray,
    *,
    takes_bytes: bool = True,
    float16: bool = False,
    with_attention: bool = True,
) -> dict[str, float]:
    """Writes `path`, if it computes what `reader` does.

    Args:
        reader: on the host. charset: of its model.
        pictures: uint8 (B, H, W, 3), to check with, repeated where there are fewer than CHECK_BATCH.
        takes_bytes: whether the file's input is uint8 (B, H, W, 3); else it is float32 (B, 3, H, W) in [0, 1].
        float16: weights and activations, but for softmax and what follows the logits.
        with_attention: whether attention, if the model has it, is an output.

    Returns:
        the largest difference of each output.

    Raises:
        ExportError: a text or a score differs. MissingExtraError: onnx or onnxruntime is not installed.
    """
    onnx = import_extra("onnx")
    import_extra("onnxruntime")
    pictures = np.resize(pictures, (max(len(pictures), CHECK_BATCH), *pictures.shape[1:]))
    with replacing_path(path) as beside:
        _trace(reader, beside, pictures[:2], takes_bytes, with_attention)
        model = onnx.load(str(beside))
        if float16:
            to_float16(model)
        metadata = {
            "format": FORMAT,
            "config": json.dumps(reader.config.to_dict()),
            "charset": json.dumps(charset.to_dict()),
            "map_shape": json.dumps(reader.map_shape),
        }
        onnx.helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(beside))
        return verify(beside, reader, charset, pictures, FLOAT16_TOLERANCE if float16 else TOLERANCE)


@torch.no_grad()
def _trace(reader: Reader, path: Path, images: np.ndarray, takes_bytes: bool, with_attention: bool) -> None:
    example = torch.from_numpy(images)
    names = [name for name in reader(example) if with_attention or name != "attention"]
    if not takes_bytes:
        example = example.permute(0, 3, 1, 2).float() / 255
    # The exporter by tracing: the newer one unrolls loops as well, but needs onnxscript and a later operator set.
    legacy = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes become constants is meant, but for the batch's, which is checked
        torch.onnx.export(
            _Traced(reader, takes_bytes, names).eval(),
            (example,),
            str(path),
            input_names=["images"],
            output_names=names,
            dynamic_axes={name: {0: "batch"} for name in ["images", *names]},
            opset_version=OPSET,
            **legacy,
        )


@torch.no_grad()
def verify(path: Path, reader: Reader, charset: Charset, pictures: np.ndarray, tolerance: float) -> dict[str, float]:
    """Compares the file with `reader` on the pictures (uint8 (B, H, W, 3)), each alone and in batches of CHECK_BATCH.

    Returns:
        the largest difference of each output.

    Raises:
        ExportError: a text differs, or a probability by more than `tolerance`.
    """
    model = OnnxModel(path)
    worst: dict[str, float] = {}
    batches = [(start, size) for size in (1, CHECK_BATCH) for start in range(0, len(pictures), size)]
    for first, size in batches:
        images = pictures[first : first + size]
        expected = {name: values.numpy() for name, values in reader(torch.from_numpy(images)).items()}
        try:
            found = model(images)
        except Exception as error:  # onnxruntime raises a type of its own for every kind of failure
            reason = " ".join(str(error).split())
            raise ExportError(f"a batch of {len(images)} cannot be run: {reason}: nothing was written") from None
        for name, values in found.items():
            if values.shape != expected[name].shape:
                raise ExportError(f"{name} is {values.shape}, expected {expected[name].shape}: nothing was written")
        for place, (ours, theirs) in enumerate(zip(found.pop("ids"), expected["ids"]), first):
            read, meant = charset.decode(ours), charset.decode(theirs)
            if read != meant:
                where = f"picture {place} in a batch of {len(images)}"
                raise ExportError(f"{where}: ONNX reads {read!r}, PyTorch {meant!r}: nothing was written")
        # The sum of T logarithms is checked by what it makes of the mean.
        steps = (expected["ids"] != charset.null_id).sum(1) + 1
        found["log_probability"] = np.exp(found["log_probability"] / steps)
        expected["log_probability"] = expected["confidence"]
        for name, values in found.items():
            difference = float(np.abs(values - expected[name]).max())
            worst[name] = max(worst.get(name, 0.0), difference)
            if not difference <= tolerance:  # also where it is NaN
                raise ExportError(
                    f"{name} of ONNX and PyTorch differ by {difference:.2g}, expected at most {tolerance:g}: "
                    "nothing was written"
                )
    return worst


def draw_pictures(data: Data, charset: Charset, count: int = CHECK_BATCH) -> np.ndarray:
    """Signs of the model's size with words of its characters, uint8 (count, H, W, 3), the same at every call."""
    letters = [c for c in charset.characters if c != NULL and c.isprintable() and not c.isspace()] or ["?"]
    pictures = []
    for number in range(count):
        rng = np.random.Generator(np.random.PCG64(number))
        word = "".join(rng.choice(letters, rng.integers(1, min(data.max_sequence_length, 12) + 1)))
        size = (data.num_views, data.image_height, data.image_width // data.num_views)
        pictures.append(draw_sign(rng, word, *size, SignEffects())[0])
    return np.stack(pictures)


def to_float16(model: Any) -> None:
    """Lowers the float32 tensors of an onnx.ModelProto in place; inputs, outputs, softmax and what follows it stay.

    Softmax is computed in float32 wherever it stands, as in training with mixed precision.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats |= {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    outputs = {value.name for value in graph.output}
    behind: set[str] = set()  # tensors that stay float32: all that is computed from the log-probabilities
    nodes: list[Any] = []
    casts: dict[str, str] = {}

    def lower(tensor: Any) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def cast(name: str, kind: int, result: str) -> str:
        nodes.append(helper.make_node("Cast", [name], [result], name=f"{result}_cast", to=kind))
        return result

    def raised(name: str) -> str:
        if name not in floats or name in behind:
            return name
        if name not in casts:
            casts[name] = cast(name, TensorProto.FLOAT, f"{name}_float32")
        return casts[name]

    for tensor in graph.initializer:
        lower(tensor)
    inputs = {v.name: cast(v.name, TensorProto.FLOAT16, f"{v.name}_float16") for v in graph.input if v.name in floats}
    for node in graph.node:
        node.input[:] = [inputs.get(name, name) for name in node.input]
        is_behind = node.op_type == "LogSoftmax" or any(name in behind for name in node.input)
        if is_behind or node.op_type == "Softmax":
            node.input[:] = [raised(name) for name in node.input]
        else:
            for attribute in node.attribute:
                lower(attribute.t)
                if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
        nodes.append(node)
        if is_behind:
            behind.update(node.output)
            continue
        for place, name in enumerate(node.output):
            if name in floats and (node.op_type == "Softmax" or name in outputs):
                node.output[place] = f"{name}_kept"
                kind = TensorProto.FLOAT16 if node.op_type == "Softmax" else TensorProto.FLOAT
                cast(node.output[place], kind, name)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def atc_commands(path: Path, data: Data, takes_bytes: bool, soc_version: str) -> list[str]:
    """The commands that turn the file into an .om for Ascend: for one batch size, and for several.

    The options are those of CANN 7 and later. By default atc computes in float16 whatever the file says; with
    precision_mode_v2=origin it keeps the file's types.
    """
    height, width = data.image_height, data.image_width
    shape = f"{height},{width},3" if takes_bytes else f"3,{height},{width}"
    layout = "ND" if takes_bytes else "NCHW"
    common = f"atc --framework=5 --model={shlex.quote(str(path))} --soc_version={soc_version} --input_format={layout}"
    stem = path.with_suffix("")
    kept = "--precision_mode_v2=origin"
    return [
        f'{common} --input_shape="images:1,{shape}" {kept} --output={shlex.quote(f"{stem}_batch1")}',
        f'{common} --input_shape="images:-1,{shape}" --dynamic_batch_size="1,4,8,16" {kept} '
        f"--output={shlex.quote(f'{stem}_dynamic')}",
    ]
