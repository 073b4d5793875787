"""One training: model, optimizer and everything else that a step reads or changes."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import fields
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from aocr_torch import device as devices
from aocr_torch.config import Config
from aocr_torch.data.augment import Augmentation, AugmentParameters, augment, split_views
from aocr_torch.data.charset import Charset
from aocr_torch.data.color import distort_color
from aocr_torch.files import CHECKPOINT_FORMAT
from aocr_torch.model.batch_norm import ViewBatchNorm2d
from aocr_torch.model.fused import compiled
from aocr_torch.model.loss import loss_floor, regularization_loss, sequence_loss
from aocr_torch.model.ocr import AttentionOCR
from aocr_torch.model.sync_batch_norm import synchronise_batch_norm
from aocr_torch.training import checkpoint, precision, ranks
from aocr_torch.training.finetune import remap_charset_rows
from aocr_torch.training.optim import (
    ExponentialMovingAverage,
    build_optimizer,
    clip_gradients,
    learning_rate_at,
)
from aocr_torch.training.recorded_step import Batches, RecordedStep

FLAGS_THAT_MAY_CHANGE = ("dataset_dir", "train_log_dir", "device", "num_workers", "decoded_cache_dir", "resume")
NO_EVALUATION = -1.0


class NonFiniteError(ValueError):
    """A loss or gradient of step `step` that is NaN or infinite."""

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class Training:
    """The state of a training and its step.

    Args:
        config: of the whole run. charset: of the data set. device: where the model lies. num_records: of the data
            set, to notice on a resume that it is another.
    """

    def __init__(self, config: Config, charset: Charset, device: torch.device, num_records: int):
        devices.seed_everything(config.run.seed)
        self.config, self.charset, self.device, self.num_records = config, charset, device, num_records
        self.model = AttentionOCR(config.data, config.model, charset.size).to(device)
        data = config.data
        self.augmentation = Augmentation(config.run.seed, data.num_views, data.view_size, data.crop)
        self.step = 0
        self.position = 0  # examples consumed by all ranks
        self.best = NO_EVALUATION
        optim = config.optim
        self.optimizer = build_optimizer(
            self.model.named_parameters(), optim.optimizer, optim.learning_rate, optim.momentum
        )
        self.ema = ExponentialMovingAverage(self.model, optim.ema_decay) if optim.ema_decay else None
        if config.run.compile:
            self.model.fuse()
        self.network: nn.Module = self.model
        self.precision = precision.choose(config.run, device)
        self._recorded: Optional[RecordedStep] = None
        self._averaged_model: Optional[AttentionOCR] = None
        self.kept_gradients: dict[str, Tensor] = {}  # see train_step
        self.first_bad_step = torch.zeros((), dtype=torch.int64, device=device)  # 0: none so far

    def distribute(self) -> None:
        """Casts the model and wraps it for several ranks; after the weights are loaded, so that rank 0's reach all."""
        if self.config.model.sync_batch_norm and ranks.world_size() > 1:
            synchronise_batch_norm(self.model)
        self.precision.prepare(self.model, self.optimizer)
        if ranks.world_size() > 1:
            # BatchNorm's averages stay each rank's own and rank 0's are saved: training never reads them.
            index = None if devices.is_host(self.device) else [self.device.index]
            wrap = nn.parallel.DistributedDataParallel
            known = inspect.signature(wrap).parameters
            keep_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            self.network = wrap(self.model, device_ids=index, **{keep_buffers: False})  # renamed in torch 2.13

    def on_device(self, batch: dict[str, Any], is_training: bool) -> dict[str, Tensor]:
        """The tensors of a batch that a step reads, on the device: label, image, and what was drawn to augment it.

        Where a worker has augmented it, or the host is the device, these are label and views.
        """
        is_augmenting = is_training and self.config.data.use_augment_input
        if is_augmenting and "image" in batch and devices.is_host(self.device):
            batch = {"views": self.augmentation(batch["image"], batch["position"]), "label": batch["label"]}
        pictures = "views" if "views" in batch else "image"
        tensors = {name: batch[name].to(self.device, non_blocking=True) for name in (pictures, "label")}
        if is_augmenting and pictures == "image":
            tensors.update(vars(self.augmentation.draw(batch["position"]).to(self.device)))
        return tensors

    def workers_augmentation(self) -> Optional[Augmentation]:
        """The augmentation, if the loader's workers are to carry it out."""
        data = self.config.data
        in_workers = data.augment_in_workers
        if in_workers is None:
            in_workers = devices.is_host(self.device)  # an accelerator does it faster
        return self.augmentation if in_workers and data.use_augment_input else None

    def views(self, tensors: dict[str, Tensor]) -> Tensor:
        """Of `on_device`'s tensors: uint8 (B, H, W, 3) -> float (B, V, 3, h, w) in [0, 1], perhaps augmented."""
        if "views" in tensors:
            return tensors["views"]
        views = split_views(tensors["image"], self.config.data.num_views, self.config.data.crop)
        names = [field.name for field in fields(AugmentParameters)]
        if names[0] not in tensors:
            return views
        distort = compiled(distort_color) if self.config.run.compile else None
        return augment(views, AugmentParameters(*(tensors[name] for name in names)), distort)

    def train_step(self, batches: list[dict[str, Any]], keeps_gradients: bool = False) -> dict[str, Tensor]:
        """One update from the mean gradient of `batches` (accumulate_steps of them).

        Under a loss scale, a step whose gradients overflow changes no weight and does not count: the data moves on,
        `step` does not.

        Args:
            keeps_gradients: copies those applied into `kept_gradients`, by parameter: apex empties its own in the step.

        Returns:
            scalars on the device, before the update: total_loss, sequence_loss, regularization_loss.

        Raises:
            NonFiniteError: on the host before the update; elsewhere `check_finite` tells later. Under a loss scale:
                max_consecutive_skips steps in a row overflowed at the lowest scale.
        """
        optim = self.config.optim
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, optim, self.config.run.max_number_of_steps)
        self.model.train()
        self.optimizer.zero_grad()
        self.precision.begin_step()
        tensors = [self.on_device(batch, is_training=True) for batch in batches]
        sequence, regularization, norms = self._recorded_or_plain(tensors)(tensors)
        total = sequence + regularization
        if self.precision.loss_scale is None:
            self._note_non_finite(total, norms)
        if keeps_gradients:
            masters = {name: self.precision.master_of(weight) for name, weight in self.model.named_parameters()}
            self.kept_gradients = {name: w.grad.clone() for name, w in masters.items() if w.grad is not None}
        has_updated = self.precision.step(self.optimizer, norms)
        self.position += sum(len(batch["index"]) + len(batch["skipped"]) for batch in batches) * ranks.world_size()
        if not has_updated:
            self._check_loss_scale()
        else:
            self.step += 1
            if self.ema is not None:
                self.ema.update(self.model, self.precision.master_of)
        return {"total_loss": total, "sequence_loss": sequence, "regularization_loss": regularization}

    def _recorded_or_plain(self, batches: Batches) -> Callable[[Batches], tuple[Tensor, ...]]:
        """`_gradients`, or a recording of it where the device can launch one; the first whole batches are recorded."""
        is_whole = all(len(batch["label"]) == self.config.data.batch_size for batch in batches)
        can_record = self.config.run.record_step and devices.can_record(self.device) and ranks.world_size() == 1
        if not is_whole or not can_record:
            return self._gradients
        if self._recorded is None:
            self._recorded = RecordedStep(self.model, batches, self._gradients, self.device)
        return self._recorded

    def _gradients(self, batches: Batches) -> tuple[Tensor, Tensor, Tensor]:
        """Leaves clipped gradients in the master weights; returns sequence loss, L2 loss and norms before clipping."""
        optim = self.config.optim
        sequence = torch.zeros((), device=self.device)
        with self.precision.scaled_gradients(self.optimizer):
            for number, batch in enumerate(batches):
                is_last = number == len(batches) - 1
                with nullcontext() if is_last or self.network is self.model else self.network.no_sync():
                    loss = self._sequence_loss(batch) / len(batches)
                    self.precision.backward(loss)
                sequence += loss.detach()
        # Outside the scale and on the master weights: in float16 a gradient this small would be rounded away.
        regularization = regularization_loss(self.model, optim.weight_decay, self.precision.master_of)
        regularization.backward()
        masters = map(self.precision.master_of, self.model.parameters())
        norms = clip_gradients(masters, optim.clip_gradient_norm, optim.clip_mode)
        return sequence, regularization.detach(), norms

    def _sequence_loss(self, tensors: dict[str, Tensor]) -> Tensor:
        optim = self.config.optim
        views, labels = self.views(tensors), tensors["label"]
        with self.precision.autocast():
            logits = self.network(views, labels)["logits"]
        return sequence_loss(
            logits,
            labels,
            self.charset.null_id,
            optim.label_smoothing,
            optim.ignore_nulls,
            optim.average_across_timesteps,
        )

    def loss_floor(self, batches: list[dict[str, Any]]) -> float:
        """The value under which the sequence loss of these batches cannot go, in nats."""
        optim, steps = self.config.optim, float(self.config.data.max_sequence_length)
        if not optim.ignore_nulls:
            steps = torch.cat([(b["label"] != self.charset.null_id).sum(1) for b in batches]).float().mean().item()
        return loss_floor(self.charset.size, steps, optim.label_smoothing, optim.average_across_timesteps)

    def _note_non_finite(self, loss: Tensor, norms: Tensor) -> None:
        is_bad = ~(torch.isfinite(loss) & torch.isfinite(norms).all())
        step = torch.full_like(self.first_bad_step, self.step + 1)
        self.first_bad_step = torch.where(is_bad & (self.first_bad_step == 0), step, self.first_bad_step)
        if devices.is_host(self.device):
            self.check_finite()

    def check_finite(self) -> None:
        """Raises NonFiniteError if any step since the start had a loss or gradient that is not finite.

        On the host every step checks before it updates. Elsewhere reading the flag would stall the device, so the loop
        asks when it logs and before it saves: what is on disk is always from before the first bad step.
        """
        step = int(self.first_bad_step)
        if step:
            raise NonFiniteError(
                step,
                f"loss or gradient of step {step} is not finite (NaN or infinite): nothing of it was saved; "
                "lower --learning_rate or look at its records",
            )

    def _check_loss_scale(self) -> None:
        loss_scale = self.precision.loss_scale
        if loss_scale.skipped_at_floor >= self.config.run.max_consecutive_skips:
            raise NonFiniteError(
                self.step + 1,
                f"{loss_scale.skipped_at_floor} steps in a row after step {self.step} overflowed at the lowest loss "
                f"scale {loss_scale.scale:g}: the loss or a gradient is not finite, whatever the scale; lower "
                "--learning_rate, go on from the last checkpoint without --amp, or look at its records",
            )

    @torch.no_grad()
    def evaluation_model(self) -> AttentionOCR:
        """The model to evaluate: the average of the weights where there is one; the same on every rank."""
        model = self.model
        if self.ema is not None:
            if self._averaged_model is None:  # kept: what is compiled for one may not serve another
                with torch.random.fork_rng(devices=[]):  # a resumed training may make it later
                    self._averaged_model = AttentionOCR(self.config.data, self.config.model, self.charset.size)
                self._averaged_model.to(self.device)
                if self.config.run.compile:
                    self._averaged_model.fuse()
            model = self._averaged_model
            model.load_state_dict(self.model.state_dict())
            self.ema.copy_to(model)
        if ranks.world_size() > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        return model

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs, as training/checkpoint.py describes it."""
        return {
            "format": CHECKPOINT_FORMAT,
            "model": self.precision.model_state(self.model),
            "loss_scale": self.precision.loss_scale.state_dict() if self.precision.loss_scale is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "step": self.step,
            "position": self.position,
            "num_records": self.num_records,
            "best": self.best,
            "rng": devices.rng_state(self.device),
            "config": self.config.to_dict(),
            "charset": self.charset.to_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], source: str) -> list[str]:
        """Goes on from a training checkpoint; flags given now win over those it was made with.

        Returns:
            a line for each flag that differs.

        Raises:
            CheckpointError: not a training checkpoint, or of another model, charset or optimizer.
        """
        if "optimizer" not in state:
            raise checkpoint.CheckpointError(f"{source}: holds weights only: start from it with --checkpoint instead")
        if state["charset"] != self.charset.to_dict():
            raise checkpoint.CheckpointError(
                f"{source}: was trained with another charset than the data set's, so the training cannot go on: give "
                f"another --train_log_dir; --checkpoint {source} without --restore_optimizer starts from its weights"
            )
        old, new = state["config"], self.config.to_dict()
        if old["optimizer"] != new["optimizer"] or bool(old["ema_decay"]) != bool(new["ema_decay"]):
            raise checkpoint.CheckpointError(
                f"{source}: was trained with optimizer {old['optimizer']} and ema_decay {old['ema_decay']}, found "
                f"{new['optimizer']} and {new['ema_decay']}: keep them, or give another --train_log_dir with "
                f"--checkpoint {source} to start anew from its weights"
            )
        if old["eval_split"] != new["eval_split"]:
            state = {**state, "best": NO_EVALUATION}
        if old.get("echo", 1) != new["echo"]:  # the place in the data is that of as many epochs
            state = {**state, "position": state["position"] * new["echo"] // old.get("echo", 1)}
        checkpoint.load_model(self.model, source, state)
        momenta = [group["momentum"] for group in self.optimizer.param_groups if "momentum" in group]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, momentum in zip(self.optimizer.param_groups, momenta):
            group["momentum"] = momentum
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.precision.loss_scale is not None and state.get("loss_scale") is not None:
            self.precision.loss_scale.load_state_dict(state["loss_scale"])
        self.step, self.position, self.best = state["step"], state["position"], state["best"]
        devices.set_rng_state(state["rng"], self.device)
        # A flag that an older version did not have is none that was changed.
        compared = [name for name in new if name in old and name not in FLAGS_THAT_MAY_CHANGE]
        lines = [f"flag {name}: {old[name]} -> {new[name]}" for name in compared if old[name] != new[name]]
        if old["eval_split"] != new["eval_split"]:
            lines.append("what is evaluated, so the best accuracy of this checkpoint does not count")
        if state["num_records"] != self.num_records:
            lines.append(f"number of records: {state['num_records']} -> {self.num_records}, so their order is another")
        return lines

    def start_from_weights(self) -> list[str]:
        """Starts from --checkpoint or --checkpoint_inception; returns lines that say what was taken.

        Raises:
            CheckpointError: the file does not fit; names both sides.
        """
        run = self.config.run
        messages = []
        if run.checkpoint:
            state = checkpoint.load(run.checkpoint)
            weights = state if run.restore_optimizer else checkpoint.averaged(state)
            messages.append(f"{run.checkpoint}: {self._load_model(weights, run.checkpoint)}")
            if weights is not state:
                messages.append(f"{run.checkpoint}: starting from the average of its weights")
        elif run.checkpoint_inception:
            report = checkpoint.load_tower(self.model, run.checkpoint_inception)
            messages.append(f"{run.checkpoint_inception}: {report}")
        if self.ema is not None:
            self.ema = ExponentialMovingAverage(self.model, self.config.optim.ema_decay)
        if run.restore_optimizer:
            messages += self._restore_optimizer(state, run.checkpoint)
        else:
            self._restart_batch_norm()
        return messages

    def _restart_batch_norm(self) -> None:
        """A new training counts its own updates: averages that start as a plain mean start with it."""
        for module in self.model.modules():
            if isinstance(module, ViewBatchNorm2d):
                module.num_batches_tracked.zero_()

    def _load_model(self, state: dict[str, Any], source: str) -> checkpoint.LoadReport:
        charset = checkpoint.charset_of(state)
        if charset is None or charset == self.charset:
            return checkpoint.load_model(self.model, source, state)
        try:
            weights, kept, fresh = remap_charset_rows(
                state["model"],
                charset.characters,
                self.charset.characters,
                self.model.state_dict(),
                self.config.model.use_autoregression,
            )
        except ValueError as error:
            raise checkpoint.CheckpointError(f"{source}: {error}") from None
        report = checkpoint.load_model(self.model, source, {"model": weights})
        report.notes.append(f"its charset is another: kept {len(kept)} characters {''.join(kept[:-1])!r}")
        report.notes.append(f"{len(fresh)} start fresh {''.join(fresh)!r}")
        return report

    def _restore_optimizer(self, state: dict[str, Any], source: str) -> list[str]:
        if "optimizer" in state:
            changed = self.load_state_dict({**state, "best": NO_EVALUATION}, source)
            return [
                f"going on at step {self.step} with the optimizer's state",
                *(f"changed {line}" for line in changed),
            ]
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        momentum = state.get("momentum", {})
        has_all = all(name in momentum and momentum[name].shape == p.shape for name, p in trained.items())
        if "step" not in state or not has_all or self.config.optim.optimizer != "momentum":
            raise checkpoint.CheckpointError(
                f"{source}: has no step and momentum that optimizer {self.config.optim.optimizer} could take: "
                "leave --restore_optimizer away"
            )
        for name, parameter in trained.items():
            self.optimizer.state[parameter]["momentum_buffer"] = momentum[name].to(self.device, copy=True)
        self.step = state["step"]
        optim, data = self.config.optim, self.config.data
        self.position = self.step * optim.accumulate_steps * data.batch_size * ranks.world_size()
        for module in self.model.modules():
            if isinstance(module, ViewBatchNorm2d):
                module.num_batches_tracked.fill_(self.step * data.num_views)
        return [f"going on at step {self.step} with the momentum of {len(trained)} variables"]
