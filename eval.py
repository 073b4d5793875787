"""Evaluate a checkpoint: `python eval.py --ckpt runs/train/best.pth --split_name test`.

Configuration and charset come from the checkpoint; any flag given here wins over them. The numbers are float32 unless
--amp is given, whatever the training used. Every record is evaluated exactly once and the counts are stated; the exit
status is not 0 if they differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from aocr_torch import __version__
from aocr_torch.command_line import run_main
from aocr_torch.config import Config, ConfigError, parse_arguments


@dataclass(frozen=True)
class Evaluate:
    """Flags of eval.py alone."""

    ckpt: Optional[str] = None
    """Checkpoint file, or a train_log_dir (its newest checkpoint)."""
    num_batches: Optional[int] = None
    """Evaluate only the first so many batches; all records by default."""
    eval_log_dir: Optional[str] = None
    """Folder for the text log, metrics.jsonl and TensorBoard of the evaluation; none by default."""
    report: Optional[str] = None
    """HTML page to write: measures with intervals, calibration, confusions, mistakes; none by default."""
    report_examples: int = 50
    """Mistakes that the page shows with their pictures."""
    stop_early: bool = False
    """End a batch when all its signs have ended: the same texts, unless the model reads on behind a null. For models
    with attention and autoregression; others read all their steps at once."""


def main(arguments: list[str]) -> int:
    """Reads the command line and evaluates; returns the exit status."""
    from aocr_torch.training import checkpoint

    state: dict[str, Any] = {}

    def checkpoint_config(flags: Evaluate) -> Config:
        if flags.ckpt is None:
            raise ConfigError(
                "no checkpoint: give --ckpt FILE, as train.py writes it into train_log_dir, or weights/synthetic.pth, "
                "the model that comes along"
            )
        if flags.num_batches is not None and flags.num_batches < 1:
            raise ConfigError(f"num_batches is {flags.num_batches}: expected at least 1")
        if flags.report_examples < 0:
            raise ConfigError(f"report_examples is {flags.report_examples}: expected 0 or more")
        state.update(checkpoint.load(flags.ckpt))
        # What was asked of the training's device, precision and records is not asked of this one.
        own = {"device": "auto", "amp": False, "amp_backend": "auto", "amp_dtype": "auto", "compile": False}
        own.update(skip_bad_records=False, decoded_cache_dir=None, echo=1)
        return checkpoint.config_of(state).replace(split_name="test", num_records=None, **own)

    description = "Evaluate an Attention-OCR checkpoint (on --split_name test by default)."
    config, flags = parse_arguments(arguments, description=description, extra=Evaluate(), base=checkpoint_config)

    from aocr_torch import device as devices
    from aocr_torch import report_mistakes, report_page
    from aocr_torch.training import precision, ranks
    from aocr_torch.training.evaluate import evaluate, open_dataset
    from aocr_torch.training.log import Log, average_age_warning
    from aocr_torch.training.outcomes import OutcomeRecorder
    from aocr_torch.training.shortage import explain_shortage

    device = devices.resolve(config.run.device)
    lowered = precision.choose_for_evaluation(config.run, device)
    with ranks.process_group(device):
        if flags.report and ranks.is_main():
            report_page.require_writable(Path(flags.report))
        dataset = open_dataset(config, config.data.split_name, checkpoint.charset_of(state))
        model = checkpoint.build_model(state, config, dataset.charset, flags.ckpt).to(device)
        if config.run.compile:
            model.fuse()
        if flags.stop_early:
            model.decoder.ending = dataset.charset.null_id
        limit = None if flags.num_batches is None else flags.num_batches * config.data.batch_size
        log = Log(flags.eval_log_dir, ranks.is_main(), name="eval")
        step = state.get("step", 0)
        goes_to = f", report to {flags.report}" if flags.report else ""
        log.line(f"{flags.ckpt} (step {step}) on {config.data.split_name}, {device}, {lowered.description}{goes_to}")
        if warning := dataset.charset_warning():
            log.line(warning)
        recorder = OutcomeRecorder(dataset.charset) if flags.report else None
        with explain_shortage(config, device, is_training=False):
            evaluation = evaluate(
                model, dataset, config, device, limit=limit, autocast=lowered.autocast, on_batch=recorder
            )
        warning = average_age_warning(model)
        log.evaluation(step, evaluation, warning)
        log.close()
        if recorder is not None:
            outcomes = recorder.gather(evaluation)
            if ranks.is_main():
                with lowered.autocast():
                    cards = report_mistakes.cards(model, dataset, outcomes, config, device, flags.report_examples)
                facts = {"step": str(step), "device": f"{device}, {lowered.description}", **_facts(config, flags)}
                report = report_page.Report(facts, warning, evaluation, outcomes, dataset.name, cards, config.lines())
                report_page.write(Path(flags.report), report)
    return 0


def _facts(config: Config, flags: Evaluate) -> dict[str, str]:
    part = "" if flags.num_batches is None else f", the first {flags.num_batches} batches of it"
    return {
        "checkpoint": str(flags.ckpt),
        "data set": config.data.dataset_dir or f"drawn, {config.data.synthesize}",
        "split": config.data.split_name + part,
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "aocr_torch": __version__,
    }


if __name__ == "__main__":
    run_main(main)
