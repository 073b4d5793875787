"""What a training would be, without training: `train.py --dry_run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from aocr_torch import device as devices
from aocr_torch.config import Config, ConfigError
from aocr_torch.data.charset import Charset
from aocr_torch.training.evaluate import open_dataset, open_eval_dataset
from aocr_torch.training.log import announce
from aocr_torch.training.state import Training


def dry_run(config: Config) -> int:
    """Prints the resolved configuration, what the data set holds, the parameters and an estimate of the memory.

    Nothing is written. Bad flags and missing data raise what a training would raise.
    """
    device = devices.resolve(config.run.device)
    for line in config.lines():
        announce(line)
    charset, num_records = _describe_data(config)
    training = Training(config, charset, device, num_records)
    for message in training.start_from_weights():
        announce(message)
    training.distribute()
    announce(_parameters(training))
    announce(_memory(training))
    announce("dry run: nothing was trained and nothing written")
    return 0


def _describe_data(config: Config) -> tuple[Charset, int]:
    data, run, optim = config.data, config.run, config.optim
    if data.synthesize and data.dataset_dir is not None and not Path(data.dataset_dir).exists():
        from aocr_torch.data.synthetic import PRESETS

        parameters = PRESETS[data.synthesize]
        counts: dict[str, int] = dict(parameters.counts())
        if data.split_name not in counts:
            raise ConfigError(f"split_name is {data.split_name!r}: {data.synthesize} has {', '.join(counts)}")
        charset, where = parameters.charset(), f"will be drawn into {data.dataset_dir}"
        num_records = min(filter(None, (counts[data.split_name], data.num_records)))
        announce(f"data: {', '.join(f'{count} {split}' for split, count in counts.items())} records, {where}")
    else:
        config = config.replace(decoded_cache_dir=None, echo=1)  # it would be begun
        dataset = open_dataset(config, data.split_name)
        charset, num_records = dataset.charset, len(dataset)
        where = f"in {data.dataset_dir}" if data.dataset_dir is not None else "drawn when they are read"
        announce(f"data: {num_records} records of {data.split_name} {where}")
        if run.eval_after_training or run.eval_interval_steps:
            count = len(open_eval_dataset(config, charset))
            announce(f"data: {count} records of {run.eval_split} to evaluate on")
    examples = data.batch_size * optim.accumulate_steps
    epochs = run.max_number_of_steps * examples / (num_records * data.echo)
    announce(
        f"{charset.size} classes; {run.max_number_of_steps} steps of {examples} examples a device: {epochs:.1f} epochs"
    )
    return charset, num_records


def _parameters(training: Training) -> str:
    def millions(module: torch.nn.Module) -> str:
        return f"{sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6:.2f} M"

    model = training.model
    parts = f"{millions(model.tower)} in the tower and {millions(model.decoder)} in the decoder"
    return f"parameters: {millions(model)}, {parts}"


def _memory(training: Training) -> str:
    """Measured on two steps of few examples each; the peak grows linearly with the examples."""
    batch_size, (few, more) = training.config.data.batch_size, (2, 6)
    peaks = []
    for count in (few, more):
        training.train_step([_random_batch(training, count)])
        peaks.append(devices.peak_memory(training.device))
    each = (peaks[1] - peaks[0]) / (more - few)
    fixed = peaks[0] - few * each
    total = fixed + batch_size * each
    return (
        f"memory on {training.device}: about {total / 1e9:.1f} GB at the peak: {fixed / 1e9:.1f} GB"
        f" and {each / 1e6:.0f} MB for each of {batch_size} examples (from steps of {few} and {more} examples; the "
        "processes that read the data come on top)"
    )


def _random_batch(training: Training, batch_size: int) -> dict[str, Any]:
    data = training.config.data
    shape = (batch_size, data.image_height, data.image_width, 3)
    return {
        "image": torch.randint(256, shape, dtype=torch.uint8),
        "label": torch.randint(training.charset.size, (batch_size, data.max_sequence_length)),
        "index": torch.arange(batch_size),
        "position": torch.arange(batch_size),
        "skipped": [],
    }
