"""The training loop: data in, steps, logs, checkpoints, evaluations, and a clean end whatever happens."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from aocr_torch import device as devices
from aocr_torch.config import Config, ConfigError
from aocr_torch.data.fsns import FSNSDataset, TrainBatchSampler, make_loader
from aocr_torch.model.ocr import interpret
from aocr_torch.training import checkpoint, ranks
from aocr_torch.training.evaluate import Evaluation, evaluate, open_dataset
from aocr_torch.training.log import Log, Stopwatch, average_age_warning, duration, result_lines, step_line
from aocr_torch.training.state import NonFiniteError, Training

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether SIGTERM or SIGINT came; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: Any) -> None:
        self.signal = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)


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
        the exit status: 0, or 128 + signal where SIGTERM or SIGINT ended it (after saving).
    """
    device = devices.resolve(config.run.device)
    with ranks.process_group(device), stop_on_signals() as stop:
        _synthesize(config)
        dataset = open_dataset(config, config.data.split_name)
        training = Training(config, dataset.charset, device)
        checkpoints = checkpoint.Checkpoints(Path(config.run.train_log_dir), config.run.keep_checkpoints)
        messages = _start_or_resume(training, checkpoints)
        training.distribute()
        run = config.run
        steps = {"total_steps": run.max_number_of_steps, "first_step": training.step}
        log = Log(run.train_log_dir, ranks.is_main(), **steps)
        try:
            for message in [*config.lines(), _summary(training, dataset), *messages]:
                log.line(message)
            _run_steps(training, dataset, checkpoints, log, stop)
            if stop.signal is not None:
                log.line(f"stopped by {signal.Signals(stop.signal).name} at step {training.step}; run again to go on")
                return 128 + stop.signal
            if config.run.eval_after_training:
                _evaluate(training, log)
        finally:
            log.close()
    return 0


def _synthesize(config: Config) -> None:
    """Draws the data set of --synthesize, once, on rank 0 while the others wait."""
    data = config.data
    if data.synthesize and data.dataset_dir is not None and ranks.is_main():
        from aocr_torch.data.synthetic import PRESETS, synthesize

        if not Path(data.dataset_dir).exists():
            print(f"drawing the synthetic data set {data.synthesize!r} into {data.dataset_dir} ...", flush=True)
        synthesize(data.dataset_dir, PRESETS[data.synthesize])
    ranks.wait_for_all()


def _start_or_resume(training: Training, checkpoints: checkpoint.Checkpoints) -> list[str]:
    newest = checkpoints.newest() if training.config.run.resume else None
    if newest is None:
        if checkpoints.newest() is not None:
            raise ConfigError(
                f"{checkpoints.folder} already holds checkpoints and resume is off: use another train_log_dir"
            )
        return training.start_from_weights()
    changed = training.load_state_dict(checkpoint.load(newest), str(newest))
    return [f"resuming from {newest} at step {training.step}", *(f"changed flag {line}" for line in changed)]


def _summary(training: Training, dataset: FSNSDataset) -> str:
    parameters = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    epoch = training.position / len(dataset)
    return (
        f"{len(dataset)} records, {training.charset.size} classes, {parameters / 1e6:.2f} M parameters, "
        f"{training.device} x {ranks.world_size()}, {training.precision.description}, "
        f"step {training.step} (epoch {epoch:.2f})"
    )


def _run_steps(
    training: Training, dataset: FSNSDataset, checkpoints: checkpoint.Checkpoints, log: Log, stop: StopRequest
) -> None:
    run = training.config.run
    batches = _batches(training, dataset)
    watch = Stopwatch(training.step)
    unchecked: dict[int, list[int]] = {}  # step -> records, since the last look at the non-finite flag
    skipped: set[str] = set()
    for error in dataset.shards.bad:
        _report_skipped(str(error), skipped, log)
    while training.step < run.max_number_of_steps and not _should_stop(training.step, stop):
        group = watch.wait(lambda: next(batches))
        for message in (message for batch in group for message in batch["skipped"]):
            _report_skipped(message, skipped, log)
        number = training.step + 1
        unchecked[number] = [index for batch in group for index in batch["index"].tolist()]
        try:
            losses = training.train_step(group)
            if training.step < number:
                continue  # the gradients overflowed in float16: the loss scale skipped the step
            step, is_last = training.step, training.step == run.max_number_of_steps
            is_saving = step % run.save_interval_steps == 0 or is_last
            if step % run.log_interval_steps == 0 or is_saving:
                training.check_finite()
                unchecked.clear()
        except NonFiniteError as error:
            names = ", ".join(dataset.name(index) for index in unchecked[error.step])
            raise NonFiniteError(error.step, f"{error}; records: {names}") from None
        log.advance(step)
        if step % run.log_interval_steps == 0 or is_last:
            _log_step(training, group, losses, watch, log)
        if run.summary_interval_steps and step % run.summary_interval_steps == 0:
            _log_images(training, group[0], log)
        if run.eval_interval_steps and step % run.eval_interval_steps == 0:
            _evaluate_and_keep_best(training, checkpoints, log)
        if is_saving and ranks.is_main():
            checkpoints.save(training.state_dict())
    if stop.signal is not None and ranks.is_main():
        training.check_finite()
        checkpoints.save(training.state_dict())


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
    )
    pin_memory = devices.uses_pinned_memory(training.device)
    loader = iter(make_loader(dataset, sampler, num_workers=config.data.num_workers, pin_memory=pin_memory))
    while True:
        yield [next(loader) for _ in range(config.optim.accumulate_steps)]


def _should_stop(step: int, stop: StopRequest) -> bool:
    """Several ranks must agree on the step, so they ask each other, but only every tenth step."""
    if ranks.world_size() == 1:
        return stop.signal is not None
    if step % 10:
        return False
    if ranks.is_set_anywhere(stop.signal is not None) and stop.signal is None:
        stop.signal = signal.SIGTERM
    return stop.signal is not None


def _report_skipped(message: str, known: set[str], log: Log) -> None:
    if message not in known:
        known.add(message)
        log.line(f"skipped record {len(known)}: {message}")


def _log_step(
    training: Training, group: list[dict[str, Any]], losses: dict[str, torch.Tensor], watch: Stopwatch, log: Log
) -> None:
    run, step = training.config.run, training.step
    seconds, waiting, steps = watch.lap(step)
    floor = training.loss_floor(group)
    examples = sum(len(batch["index"]) for batch in group) * ranks.world_size()
    values = {name: value.item() for name, value in losses.items()}
    rate = training.optimizer.param_groups[0]["lr"]
    details = {
        "floor": f"{floor:.2f}",
        "lr": f"{rate:.3g}",
        "images/s": f"{examples * steps / seconds:.1f}",
        "data": f"{waiting:.0%}",
        "left": duration(seconds / steps * (run.max_number_of_steps - step)),
    }
    loss_scale = training.precision.loss_scale
    if loss_scale is not None:
        values["loss_scale"] = loss_scale.scale
        details.update(scale=f"{loss_scale.scale:g}", skipped=f"{loss_scale.skipped}")
    log.line(step_line(step, values["total_loss"], seconds / steps, details))
    log.scalars(step, {**values, "loss_floor": floor, "learning_rate": rate, "seconds_per_step": seconds / steps})


@torch.no_grad()
def _log_images(training: Training, batch: dict[str, Any], log: Log, count: int = 4) -> None:
    """The first signs of a batch, as the model saw them, with what it reads in them now."""
    if not log.enabled:
        return
    model = training.model.eval()
    views = training.views({"image": batch["image"][:count], "position": batch["position"][:count]}, is_training=True)
    ids = interpret(model(views)["logits"], training.charset.null_id).ids.tolist()
    labels = batch["label"][:count].tolist()
    decode = training.charset.decode
    captions = [f"{decode(label)!r} read as {decode(read)!r}" for label, read in zip(labels, ids)]
    log.images(training.step, views, captions)


def _evaluate(training: Training, log: Log) -> Evaluation:
    dataset = open_dataset(training.config, training.config.run.eval_split, training.charset)
    warning = average_age_warning(training.model)
    if warning:
        log.line(warning)
    evaluation = evaluate(training.evaluation_model(), dataset, training.config, training.device)
    for message in evaluation.skipped:
        log.line(f"skipped: {message}")
    for line in result_lines(evaluation.results, evaluation.counts):
        log.line(line)
    measures = {f"eval/{name}": value for name, value in evaluation.results.items() if isinstance(value, float)}
    log.scalars(training.step, measures)
    return evaluation


def _evaluate_and_keep_best(training: Training, checkpoints: checkpoint.Checkpoints, log: Log) -> None:
    accuracy = _evaluate(training, log).results["StrictSequenceAccuracy"]
    if accuracy > training.best:
        training.best = accuracy
        if ranks.is_main():
            training.check_finite()
            checkpoint.save(checkpoints.best, training.state_dict())
