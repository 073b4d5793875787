"""Checkpoints: written beside and renamed into place, read without executing anything, and put into a model.

A training checkpoint is a dict of plain types and tensors:
  format 'aocr_torch/1', model, optimizer, ema (or None), loss_scale (or None), step, position (examples consumed),
  num_records, rng, config (flat), charset, best. Model and optimizer are float32, whatever the training's precision;
  the schedule is a function of the step and has no state.
A converted one has format, model, source, and for whole models step, momentum by parameter name, the part of config
that the shapes tell, and charset if it was given.
One to pass on (see `portable`) has format, model, step, the part of config that the network needs, and charset; its
kernels and matrices are float16.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn

from aocr_torch.config import PICTURE_LAYOUT, Config, Model, from_dict
from aocr_torch.data.charset import Charset
from aocr_torch.files import CHECKPOINT_FORMAT, CheckpointError, replacing
from aocr_torch.model.ocr import AttentionOCR


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Writes `state` so that `path` holds either the old or the new file, whenever the process is killed."""
    path = Path(path)
    try:
        with replacing(path) as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        reason = error.__context__
        if not isinstance(reason, OSError):  # torch.save covers an error of the disk with one of its archive
            raise
        raise OSError(reason.errno, reason.strerror, str(path)) from error


def load(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint onto the host; its weights are float32, also where the file has float16.

    Raises:
        CheckpointError: missing, damaged, or another program's file.
    """
    path = Path(path)
    if path.is_dir():
        newest = Checkpoints(path).newest()
        if newest is None:
            raise CheckpointError(f"{path}: a folder without checkpoint-*.pth or best.pth: name a checkpoint file")
        path = newest
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file: name a checkpoint that train.py or convert_inception.py wrote")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # torch 2.1 warns of its own reader
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for files that are not its own
        hint = "a TensorFlow checkpoint must go through convert_inception.py first"
        with open(path, "rb") as file:
            is_archive = file.read(2) == b"PK"  # as torch.save writes it
        if is_archive and isinstance(error, RuntimeError):
            hint = "it is damaged or cut off: without it, a training goes on from the checkpoint before"
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint ({type(error).__name__}); {hint}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: found {type(state).__name__}, expected a dict of weights")
    if state.get("format", CHECKPOINT_FORMAT) != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: has format {state['format']!r}, expected {CHECKPOINT_FORMAT!r}: use a version that reads it"
        )
    if isinstance(state.get("model"), dict):
        for name, value in state["model"].items():
            if isinstance(value, Tensor) and value.dtype == torch.float16:
                state["model"][name] = value.float()
    return state


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training, checkpoint-00001200.pth and best.pth in `folder`.

    Args:
        folder: train_log_dir. keep: how many recent ones stay.
    """

    folder: Path
    keep: int = 3

    @property
    def best(self) -> Path:
        """Where the best checkpoint lies, if there is one."""
        return self.folder / "best.pth"

    def all(self) -> list[Path]:
        """Every recent checkpoint, oldest first."""
        found = [p for p in self.folder.glob("checkpoint-*.pth") if re.fullmatch(r"checkpoint-\d+\.pth", p.name)]
        return sorted(found, key=lambda p: int(p.stem.split("-")[1]))

    def newest(self) -> Optional[Path]:
        """The checkpoint of the highest step, where there is none the best one, or None."""
        return next((path for path in [*reversed(self.all()), self.best] if path.exists()), None)

    def save(self, state: dict[str, Any]) -> Path:
        """Writes the checkpoint of state['step'] and removes those beyond `keep`."""
        for left_by_a_kill in self.folder.glob(".*.pth.*"):
            left_by_a_kill.unlink(missing_ok=True)
        path = self.folder / f"checkpoint-{state['step']:08d}.pth"
        save(path, state)
        for old in self.all()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path


@dataclass
class LoadReport:
    """What became of every tensor of a file that was put into a model."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded, {len(self.missing)} kept their initial values"]
        if self.ignored:
            shown = ", ".join(self.ignored[:4]) + (", ..." if len(self.ignored) > 4 else "")
            lines.append(f"{len(self.ignored)} of the file were not needed: {shown}")
        return "; ".join(lines + self.notes)


def load_tower(model: nn.Module, path: str | Path) -> LoadReport:
    """Puts a converted Inception-v3, or torchvision's own inception_v3 weights, into `model.tower`.

    Raises:
        CheckpointError: a tensor of the tower is missing or has another shape.
    """
    state = load(path)
    report = LoadReport()
    weights = state.get("model", state)
    if not any(name.startswith("tower.") for name in weights):
        from aocr_torch.interop.tf_names import tower_state_from_torchvision

        weights, report.notes = tower_state_from_torchvision(weights)
    tower = {name: value for name, value in weights.items() if name.startswith("tower.")}
    wanted = {f"tower.{name}" for name in model.tower.state_dict()}
    report.missing = [name for name in model.state_dict() if not name.startswith("tower.")]
    _copy_into(model, tower, wanted, report, path)
    return report


def load_model(model: nn.Module, path: str | Path, state: Optional[dict[str, Any]] = None) -> LoadReport:
    """Puts a whole model's weights into `model`; everything must match.

    Args:
        state: what `load(path)` returned, where the caller has it already.

    Raises:
        CheckpointError: a tensor is missing or has another shape; names both shapes.
    """
    state = state or load(path)
    report = LoadReport()
    require_decoder(path, state)
    _copy_into(model, state.get("model", state), set(model.state_dict()), report, path)
    return report


def require_decoder(path: str | Path, state: dict[str, Any]) -> None:
    """Raises CheckpointError where a checkpoint is none of a whole model."""
    if not any(name.startswith("decoder.") for name in state.get("model", state)):
        raise CheckpointError(
            f"{path}: holds no decoder, so it reads nothing: a training starts from a tower with --checkpoint_inception"
        )


def config_of(state: dict[str, Any]) -> Config:
    """The configuration a checkpoint was trained with; a converted one has the part that its shapes tell."""
    return from_dict(state.get("config", {}), source="checkpoint")


def charset_of(state: dict[str, Any]) -> Optional[Charset]:
    """The charset a checkpoint was trained with; None for one that was converted without."""
    return Charset.from_dict(state["charset"]) if "charset" in state else None


def build_model(state: dict[str, Any], config: Config, charset: Charset, source: str | Path) -> AttentionOCR:
    """The model of a checkpoint, on the host in evaluation mode, with the average of the weights where there is one.

    Raises:
        CheckpointError: the configuration asks for another model than the checkpoint holds.
    """
    model = AttentionOCR(config.data, config.model, charset.size)
    load_model(model, source, averaged(state))
    return model.eval()


def averaged(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with the average of the weights in their place, or the same where there is none."""
    if state.get("ema") is None:
        return state
    return {**state, "model": {**state["model"], **state["ema"]["averages"]}}


def portable(state: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """What of a checkpoint reads pictures elsewhere, or starts another training: the weights, and what they need.

    The average of the weights stands in their place where there is one. Kernels and matrices become float16; vectors,
    BatchNorm's statistics among them, are 1 % of the file and stay as they are. Of the configuration goes along what
    the network is made by: the rest tells of a machine, its folders and a recipe.

    Raises:
        CheckpointError: it holds no charset.
    """
    config, charset = config_of(state), charset_of(state)
    if charset is None:
        raise CheckpointError(f"{source}: holds no charset: convert it again with --charset")
    weights = build_model(state, config, charset, source).state_dict()
    needed = {*PICTURE_LAYOUT, *(each.name for each in fields(Model))}
    return {
        "format": CHECKPOINT_FORMAT,
        "model": {name: value.half() if value.dim() > 1 else value for name, value in weights.items()},
        "step": state.get("step", 0),
        "config": {name: value for name, value in config.to_dict().items() if name in needed},
        "charset": charset.to_dict(),
    }


@torch.no_grad()
def _copy_into(model: nn.Module, weights: dict[str, Tensor], wanted: set, report: LoadReport, path: str | Path) -> None:
    own = model.state_dict()
    missing = sorted(name for name in wanted if name not in weights and not name.endswith("num_batches_tracked"))
    if missing:
        raise CheckpointError(
            f"{path}: has no {missing[0]!r} ({len(missing)} of {len(wanted)} tensors missing): it was made for another "
            "architecture; check final_endpoint, use_attention, use_autoregression and cell"
        )
    for name in sorted(wanted & set(weights)):
        if own[name].shape != weights[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, the model expects {tuple(own[name].shape)}: "
                "charset, units, coordinates or endpoint differ"
            )
        own[name].copy_(weights[name])
        report.loaded.append(name)
    report.ignored = sorted(set(weights) - wanted)
