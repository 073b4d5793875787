"""Evaluate a checkpoint: `python eval.py --ckpt runs/train/best.pth --split_name test`.

Configuration and charset come from the checkpoint; any flag given here wins over them. Every record is evaluated
exactly once and the counts are stated; the exit status is not 0 if they differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from aocr_torch.config import ConfigError, parse_arguments, run_main


@dataclass(frozen=True)
class Evaluate:
    """Flags of eval.py alone."""

    ckpt: Optional[str] = None
    """Checkpoint file, or a train_log_dir (its newest checkpoint)."""
    num_batches: Optional[int] = None
    """Evaluate only the first so many batches; all records by default."""
    eval_log_dir: Optional[str] = None
    """Folder for the text log, metrics.jsonl and TensorBoard of the evaluation; none by default."""


def main(arguments: list[str]) -> int:
    """Reads the command line and evaluates; returns the exit status."""
    description = "Evaluate an Attention-OCR checkpoint (on --split_name test by default)."
    _, flags = parse_arguments(arguments, description=description, extra=Evaluate())
    if flags.ckpt is None:
        raise ConfigError("no checkpoint: give --ckpt FILE, as train.py writes it into train_log_dir")

    from aocr_torch import device as devices
    from aocr_torch.training import checkpoint, ranks
    from aocr_torch.training.evaluate import evaluate, open_dataset
    from aocr_torch.training.log import Log, average_age_warning, result_lines

    state = checkpoint.load(flags.ckpt)
    base = checkpoint.config_of(state).replace(split_name="test", device="auto")
    config, flags = parse_arguments(arguments, description=description, base=base, extra=flags)
    device = devices.resolve(config.run.device)
    with ranks.process_group(device):
        dataset = open_dataset(config, config.data.split_name, checkpoint.charset_of(state))
        model = checkpoint.build_model(state, config, dataset.charset, flags.ckpt).to(device)
        limit = None if flags.num_batches is None else flags.num_batches * config.data.batch_size
        log = Log(flags.eval_log_dir, ranks.is_main(), name="eval")
        warning = average_age_warning(model)
        evaluation = evaluate(model, dataset, config, device, limit=limit)
        log.line(f"{flags.ckpt} (step {state.get('step', 'unknown')}) on {config.data.split_name}, {device}")
        for line in [
            *filter(None, [warning]),
            *evaluation.skipped,
            *result_lines(evaluation.results, evaluation.counts),
        ]:
            log.line(line)
        measures = {f"eval/{name}": value for name, value in evaluation.results.items()}
        log.scalars(state.get("step", 0), measures)
        log.close()
    return 0


if __name__ == "__main__":
    run_main(main)
