"""Train Attention-OCR: `python train.py --dataset_dir FOLDER`, or `python train.py --config configs/demo.yaml`.

One process for one device; `torchrun --nproc_per_node 8 train.py ...` for eight.
"""

from __future__ import annotations

from aocr_torch.config import parse_arguments, run_main


def main(arguments: list[str]) -> int:
    """Reads the command line and trains; returns the exit status."""
    config, _ = parse_arguments(arguments, description="Train Attention-OCR.")
    from aocr_torch.training.loop import train

    return train(config)


if __name__ == "__main__":
    run_main(main)
