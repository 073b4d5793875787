"""Train Attention-OCR: `python train.py --dataset_dir FOLDER`, or `python train.py --config configs/demo.yaml`.

One process for one device; `torchrun --nproc_per_node 8 train.py ...` for eight.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from aocr_torch.command_line import run_main
from aocr_torch.config import Config, ConfigError, parse_arguments


@dataclass(frozen=True)
class Train:
    """Flags of train.py alone."""

    overfit: int = 0
    """Self-test: learn the first so many records by heart; exit status 1 if they are not all read right in the end."""
    dry_run: bool = False
    """Print configuration, data set, parameters and an estimate of the memory, and stop."""


def overfitting(config: Config, flags: Train) -> Config:
    """With --overfit N, what learns N records by heart fastest; flags that are given win over it."""
    if flags.overfit < 0:
        raise ConfigError(f"overfit is {flags.overfit}: expected the number of records to learn by heart")
    if flags.overfit == 0:
        return config
    return config.replace(
        num_records=flags.overfit,
        batch_size=min(flags.overfit, config.data.batch_size),
        use_augment_input=False,
        batch_norm_decay=0.9,
        batch_norm_cumulative_start=True,
        optimizer="adam",
        learning_rate=0.002,
        schedule="constant",
        warmup_steps=0,
        train_log_dir=time.strftime("runs/overfit/%Y%m%d-%H%M%S"),  # a self-test never goes on from an earlier one
        max_number_of_steps=1000,
        log_interval_steps=10,
        eval_interval_steps=25,
        eval_split=config.data.split_name,
        stop_at_accuracy=1.0,
    )


def main(arguments: list[str]) -> int:
    """Reads the command line and trains; returns the exit status."""
    config, flags = parse_arguments(arguments, description="Train Attention-OCR.", extra=Train(), adjust=overfitting)
    if flags.dry_run:
        from aocr_torch.training.dry_run import dry_run

        return dry_run(config)
    from aocr_torch.training.loop import train

    return train(config)


if __name__ == "__main__":
    run_main(main)
