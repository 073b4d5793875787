"""The training loop: data in, steps, logs, checkpoints, evaluations, and a clean end whatever happens."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional

import torch

from aocr_torch import device as devices
from aocr_torch.command_line import interruptible
from aocr_torch.config import Config, ConfigError
from aocr_torch.data.fsns import FSNSDataset
from aocr_torch.data.loader import TrainBatchSampler, make_loader
from aocr_torch.model.ocr import interpret
from aocr_torch.training import checkpoint, ranks
from aocr_torch.training.evaluate import eval_loader, evaluate, open_dataset, open_eval_dataset
from aocr_torch.training.log import Log, Stopwatch, announce, average_age_warning, duration, step_line
from aocr_torch.training.profile import trace_steps
from aocr_torch.training.shortage import explain_shortage
from aocr_torch.training.state import NonFiniteError, Training

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_OF_ONE_REQUEST = 5  # a scheduler signals every process of a job, and torchrun and scripts pass theirs on


class StopRequest:
    """Whether SIGTERM or SIGINT came; one that comes later ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._came_at = 0.0

    def __call__(self, number: int, frame: Any) -> None:
        if self.signal is None:
            self.signal, self._came_at = number, time.monotonic()
            if ranks.is_main():
                again = f"again after {SECONDS_OF_ONE_REQUEST} s to end at once"
                announce(f"{signal.Signals(number).name}: saving after this step; {again}")
        elif time.monotonic() - self._came_at > SECONDS_OF_ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGINT into a request that the loop sees between two steps."""
    request = StopRequest()
    before = [signal.signal(number, request) for number in SIGNALS]
    try:
        yield request
    finally:
        for number, handler in zip(SIGNALS, before):
            signal.signal(number, handler)


def train(config: Config) -> int:
    """Trains as configured.

    Returns:
        the exit status: 0; 128 + signal where SIGTERM or SIGINT ended it (after saving); 1 where stop_at_accuracy was
        not reached.
    """
    run = config.run
    device = devices.resolve(run.device)
    with ranks.process_group(device):
        _synthesize(config)
        dataset = open_dataset(config, config.data.split_name)
        evaluates = run.eval_after_training or run.eval_interval_steps
        eval_dataset = open_eval_dataset(config, dataset.charset) if evaluates else None
        training = Training(config, dataset.charset, device, len(dataset))
        checkpoints = checkpoint.Checkpoints(Path(run.train_log_dir), run.keep_checkpoints)
        messages = _start_or_resume(training, checkpoints)
        if warning := dataset.charset_warning():
            messages.append(warning)
        messages += [each.cache.summary for each in (dataset, eval_dataset) if each is not None and each.cache]
        training.distribute()
        steps = {"total_steps": run.max_number_of_steps, "first_step": training.step}
        log = Log(run.train_log_dir, ranks.is_main(), **steps)
        try:
            for message in [*config.lines(), _summary(training, dataset), *messages]:
                log.line(message)
            shortage = explain_shortage(config, device, is_training=True)
            with stop_on_signals() as stop, shortage, trace_steps(run, device) as end_of_step:
                _run_steps(training, dataset, eval_dataset, checkpoints, log, stop, end_of_step)
            if stop.signal is not None and not _has_finished(training):
                return 128 + stop.signal
            if run.stop_at_accuracy and training.best < run.stop_at_accuracy:
                best = "no evaluation was made" if training.best < 0 else f"the best was {training.best:.6f}"
                log.line(f"stop_at_accuracy {run.stop_at_accuracy} was not reached: {best}")
                return 1
            return 0
        finally:
            log.close()


def _synthesize(config: Config) -> None:
    """Draws the data set of --synthesize, once, on rank 0 while the others wait."""
    data = config.data
    if data.synthesize and data.dataset_dir is not None and ranks.is_main():
        from aocr_torch.data.synthetic import PRESETS, synthesize

        if not Path(data.dataset_dir).exists():
            announce(f"drawing the synthetic data set {data.synthesize!r} into {data.dataset_dir} ...")
        try:
            with interruptible(lambda count: None) as report:
                synthesize(data.dataset_dir, PRESETS[data.synthesize], report=report)
        except KeyboardInterrupt:
            raise ConfigError(f"interrupted: {data.dataset_dir} was not written") from None
    ranks.wait_for_all()


def _start_or_resume(training: Training, checkpoints: checkpoint.Checkpoints) -> list[str]:
    newest = checkpoints.newest()
    if newest is not None and not training.config.run.resume:
        raise ConfigError(
            f"{checkpoints.folder} already holds checkpoints and resume is off: use another train_log_dir"
        )
    if newest is None:
        messages = training.start_from_weights()
    else:
        changed = training.load_state_dict(checkpoint.load(newest), str(newest))
        if checkpoints.best.exists():  # it is written after the checkpoint of its step, if there is one
            best = checkpoint.load(checkpoints.best)
            if best["config"]["eval_split"] == training.config.run.eval_split and best["best"] > training.best:
                training.best = best["best"]
                changed.append(f"best accuracy so far: {training.best:.6f}, that of {checkpoints.best}")
        messages = [f"resuming from {newest} at step {training.step}", *(f"changed {line}" for line in changed)]
    steps = ranks.gather([training.step])
    if len(set(steps)) > 1:
        raise ConfigError(
            f"the ranks stand at steps {', '.join(map(str, steps))}: train_log_dir must be one folder for all of them"
        )
    return messages


def _summary(training: Training, dataset: FSNSDataset) -> str:
    parameters = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    epoch = training.position / (len(dataset) * training.config.data.echo)
    return (
        f"{len(dataset)} records, {training.charset.size} classes, {parameters / 1e6:.2f} M parameters, "
        f"{training.device} x {ranks.world_size()}, {training.precision.description}, "
        f"step {training.step} (epoch {epoch:.2f})"
    )


def _run_steps(
    training: Training,
    dataset: FSNSDataset,
    eval_dataset: Optional[FSNSDataset],
    checkpoints: checkpoint.Checkpoints,
    log: Log,
    stop: StopRequest,
    end_of_step: Callable[[], None],
) -> None:
    run = training.config.run
    if _has_finished(training):
        log.line(
            f"nothing to train: step {training.step} has reached max_number_of_steps {run.max_number_of_steps}"
            + (f" or stop_at_accuracy {run.stop_at_accuracy}" if run.stop_at_accuracy else "")
        )
        if run.eval_after_training and eval_dataset is not None:
            _evaluate_and_keep_best(training, eval_dataset, checkpoints, log)
        return
    batches = _batches(training, dataset)
    if eval_dataset is not None:
        eval_loader(eval_dataset, training.config, training.device)  # is there memory for it beside the training's?
    watch = Stopwatch(training.step)
    records = _Records(dataset, [str(error) for error in dataset.shards.bad])
    saved_step = -1
    while not _has_finished(training) and not _should_stop(training.step, stop):
        group = watch.wait(lambda: next(batches))
        number = training.step + 1
        has_histograms = _is_due(number, run.histogram_interval_steps)
        records.note(number, group)
        with records.named():
            losses = training.train_step(group, keeps_gradients=has_histograms and log.enabled)
        end_of_step()
        if training.step < number:
            continue  # the gradients overflowed in float16: the loss scale skipped the step
        is_last = number == run.max_number_of_steps
        is_logging = number % run.log_interval_steps == 0 or is_last
        is_saving = number % run.save_interval_steps == 0 or is_last
        is_evaluating = _is_due(number, run.eval_interval_steps) or (is_last and run.eval_after_training)
        log.advance(number)
        if is_logging or is_saving or is_evaluating or has_histograms:
            with records.named():
                training.check_finite()
            records.report(log)
        if is_logging:
            _log_step(training, group, losses, watch, log)
        with watch.paused():
            if _is_due(number, run.summary_interval_steps):
                _log_images(training, group[0], log)
            if has_histograms:
                _log_histograms(training, log)
            if is_saving:
                saved_step = _save(training, checkpoints)
            if is_evaluating and eval_dataset is not None:
                _evaluate_and_keep_best(training, eval_dataset, checkpoints, log)
    was_stopped = ranks.is_set_anywhere(stop.signal is not None) and not _has_finished(training)
    if was_stopped:
        stop.signal = stop.signal or signal.SIGTERM
        with records.named():
            training.check_finite()
    if saved_step != training.step:
        _save(training, checkpoints)
    if was_stopped:
        log.line(f"stopped by {signal.Signals(stop.signal).name} at step {training.step}; run again to go on")


class _Records:
    """The names of the records of recent steps, for errors, and of those that were skipped."""

    def __init__(self, dataset: FSNSDataset, bad: list[str]) -> None:
        self.dataset = dataset
        self.recent: dict[int, list[int]] = {}  # step -> indices, since the last look at the non-finite flag
        self.skipped = bad
        self.reported: set[str] = set()

    def note(self, step: int, group: list[dict[str, Any]]) -> None:
        self.recent[step] = [index for batch in group for index in batch["index"].tolist()]
        self.skipped += [message for batch in group for message in batch["skipped"]]

    @contextmanager
    def named(self) -> Iterator[None]:
        """Adds the records of its step to a NonFiniteError."""
        try:
            yield
        except NonFiniteError as error:
            names = ", ".join(map(self.dataset.name, self.recent.get(error.step, [])))
            raise NonFiniteError(error.step, f"{error}; records: {names}") from None

    def report(self, log: Log) -> None:
        """Logs the skipped records of every rank, each once; forgets the recent ones."""
        self.recent.clear()
        if not self.dataset.skip_bad_records:
            return
        for message in ranks.gather(self.skipped):
            if message not in self.reported:
                self.reported.add(message)
                log.line(f"skipped record {len(self.reported)}: {message}")
        self.skipped = []


def _has_finished(training: Training) -> bool:
    run = training.config.run
    return training.step >= run.max_number_of_steps or 0 < run.stop_at_accuracy <= training.best


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _save(training: Training, checkpoints: checkpoint.Checkpoints) -> int:
    if ranks.is_main():
        checkpoints.save(training.state_dict())
    return training.step


def _batches(training: Training, dataset: FSNSDataset) -> Iterator[list[dict[str, Any]]]:
    """Endless groups of accumulate_steps batches, from where the training stands in the data."""
    config = training.config
    sampler = TrainBatchSampler(
        len(dataset),
        config.data.batch_size,
        seed=config.run.seed,
        rank=ranks.rank(),
        world_size=ranks.world_size(),
        start=training.position,
        echo=config.data.echo,
    )
    loader = iter(
        make_loader(
            dataset,
            sampler,
            num_workers=config.data.num_workers,
            pin_memory=devices.uses_pinned_memory(training.device),
            augmentation=training.workers_augmentation(),
        )
    )
    return iter(lambda: [next(loader) for _ in range(config.optim.accumulate_steps)], None)


def _should_stop(step: int, stop: StopRequest) -> bool:
    """Several ranks must agree on the step, so they ask each other, but only every tenth step."""
    if ranks.world_size() == 1:
        return stop.signal is not None
    if step % 10:
        return False
    if ranks.is_set_anywhere(stop.signal is not None) and stop.signal is None:
        stop.signal = signal.SIGTERM
    return stop.signal is not None


def _log_step(
    training: Training, group: list[dict[str, Any]], losses: dict[str, torch.Tensor], watch: Stopwatch, log: Log
) -> None:
    run, step = training.config.run, training.step
    seconds, waiting, steps = watch.lap(step)
    floor = training.loss_floor(group)
    examples = sum(len(batch["index"]) for batch in group) * ranks.world_size()
    left = seconds / steps * (run.max_number_of_steps - step)
    values = {name: value.item() for name, value in losses.items()}
    values.update(
        loss_floor=floor,
        learning_rate=training.optimizer.param_groups[0]["lr"],
        seconds_per_step=seconds / steps,
        images_per_second=examples * steps / seconds,
        share_waiting_for_data=waiting,
        seconds_left=left,
    )
    details = {
        "floor": f"{floor:.2f}",
        "lr": f"{values['learning_rate']:.3g}",
        "images/s": f"{values['images_per_second']:.1f}",
        "data": f"{waiting:.0%}",
        "left": duration(left),
    }
    if not devices.is_host(training.device):
        details["memory"] = f"{devices.peak_memory(training.device) / 2**30:.2f} GiB"
    loss_scale = training.precision.loss_scale
    if loss_scale is not None:
        values.update(loss_scale=loss_scale.scale, skipped_steps=loss_scale.skipped)
        details.update(scale=f"{loss_scale.scale:g}", skipped=f"{loss_scale.skipped}")
    log.scalars(step, values, step_line(step, values["total_loss"], seconds / steps, details))


@torch.no_grad()
def _log_images(training: Training, batch: dict[str, Any], log: Log, count: int = 4) -> None:
    """The first signs of a batch, as the model saw them, with what it reads in them now."""
    if not log.enabled:
        return
    model = training.model.eval()
    views = training.views(training.on_device(batch, is_training=True))
    # The whole batch: what compiles would do so anew for another shape.
    ids = interpret(model(views)["logits"], training.charset.null_id).ids[:count].tolist()
    decode = training.charset.decode
    captions = [f"{decode(label)!r} read as {decode(read)!r}" for label, read in zip(batch["label"].tolist(), ids)]
    log.images(training.step, views[:count], captions)


def _log_histograms(training: Training, log: Log) -> None:
    """The weights after this step's update, and the gradients that it applied: mean over ranks and batches, clipped."""
    values = {}
    for name, parameter in training.model.named_parameters():
        if name in training.kept_gradients:
            values[f"weights/{name}"] = training.precision.master_of(parameter)
            values[f"gradients/{name}"] = training.kept_gradients[name]
    training.kept_gradients = {}
    log.histograms(training.step, values)


def _evaluate(training: Training, dataset: FSNSDataset, log: Log) -> dict[str, Any]:
    evaluation = evaluate(training.evaluation_model(), dataset, training.config, training.device)
    log.evaluation(training.step, evaluation, average_age_warning(training.model))
    return evaluation.results


def _evaluate_and_keep_best(
    training: Training, dataset: FSNSDataset, checkpoints: checkpoint.Checkpoints, log: Log
) -> None:
    accuracy = _evaluate(training, dataset, log)["StrictSequenceAccuracy"]
    if accuracy > training.best:
        training.best = accuracy
        if ranks.is_main():
            checkpoint.save(checkpoints.best, training.state_dict())
