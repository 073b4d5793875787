"""The network with weights by rule, and the reference's numbers for them in golden/recipe.npz.

The rule (which variable gets which random numbers) is the one the reference was fed with; numpy's RandomState is
frozen, so the same weights come out everywhere.
"""

from pathlib import Path

import numpy as np
import torch
from tensors import tensors

from aocr_torch.config import Data, Model
from aocr_torch.interop.tf_names import model_state_from_tf, tf_variables_from_state
from aocr_torch.model.ocr import AttentionOCR

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "recipe.npz")
CONFIGURATIONS = {
    "attention_ar": Model(),
    "attention": Model(use_autoregression=False),
    "attention_ar_coords": Model(encode_coordinates=True),
    "netslice": Model(use_attention=False, use_autoregression=False, num_lstm_units=32),
    "netslice_ar": Model(use_attention=False, num_lstm_units=32),
}
LABELS = torch.from_numpy(GOLDEN["labels"].astype(np.int64))
NULL = 133


def images() -> torch.Tensor:
    blocks = np.random.RandomState(int(GOLDEN["image_seed"])).randint(0, 256, (2, 15, 60, 3)).astype(np.uint8)
    pixels = blocks.repeat(10, axis=1).repeat(10, axis=2).astype(np.float32) / np.float32(255)
    return torch.from_numpy(pixels).unflatten(2, (4, 150)).permute(0, 2, 4, 1, 3).contiguous()  # (B, V, 3, h, w)


def draw(number: int, name: str, shape: tuple) -> np.ndarray:
    random, last = np.random.RandomState(1000 + number), name.rsplit("/", 1)[-1]
    fan_in = int(np.prod(shape[:-1]))
    if last == "moving_variance":
        value = random.uniform(0.5, 1.5, shape)
    elif last in ("beta", "moving_mean", "bias", "softmax_b"):
        value = 0.1 * random.standard_normal(shape)
    elif last == "AttnV_0":
        value = 0.6 * random.standard_normal(shape)
    elif last == "weights":
        value = random.standard_normal(shape) * np.sqrt(2 / fan_in)
    else:
        gain = 2 if "lstm_cell" in name or last == "softmax_w" else 3 if "Attention_0" in name else 1
        value = random.standard_normal(shape) * gain / np.sqrt(fan_in)
        if name.endswith("attention_decoder/kernel"):
            value[:134] *= 20
    return value.astype(np.float32)


def build(configuration: str) -> tuple[AttentionOCR, dict[str, np.ndarray]]:
    """The model with the rule's weights, and those weights under TensorFlow's names."""
    model = AttentionOCR(Data(), CONFIGURATIONS[configuration], 134)
    shapes = {name: value.shape for name, value in tf_variables_from_state(model.state_dict()).items()}
    values = {name: draw(number, name, shapes[name]) for number, name in enumerate(sorted(shapes))}
    model.load_state_dict(tensors(model_state_from_tf(values)[0]))
    return model, values
