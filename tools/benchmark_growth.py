"""Shows how time and memory of a training step grow with the batch, the views and the steps of the decoder.

python tools/benchmark_growth.py                             # the reference's model, up to batch 32, 4 views, 37 steps
python tools/benchmark_growth.py --device cpu --batch_size 16 --amp --output growth.json

Each size runs in a process of its own, since the peak of memory is one of a process's whole life; the pictures are
random and in memory. Where growth is linear, what one more costs is the same from row to row. Every flag of train.py
works.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from aocr_torch.command_line import run_main
from aocr_torch.config import Config, parse_arguments
from aocr_torch.files import require_writable

CHARACTERS = 134  # of FSNS


@dataclass(frozen=True)
class Growth:
    """Flags of benchmark_growth.py alone."""

    output: Optional[str] = None
    """JSON file to write."""
    repetitions: int = 3
    """Steps of which the median counts, after two to warm up."""
    single: bool = False
    """Measure one size, this very configuration, and print it as JSON."""


def main(arguments: list[str]) -> int:
    """Measures and prints; returns the exit status."""
    config, flags = parse_arguments(arguments, description="Growth of a training step.", extra=Growth())
    if flags.repetitions < 1:
        raise ValueError(f"repetitions is {flags.repetitions}: expected at least 1")
    if flags.output is not None:
        require_writable(Path(flags.output))
    if flags.single:
        print(json.dumps(measure(config, flags.repetitions)))
        return 0
    results: dict[str, list[dict[str, float]]] = {}
    print(f"{'':10}{'':>6}{'s a step':>10}{'MB at peak':>12}{'one more: s':>13}{'MB':>8}")
    for name, sizes in variants(config).items():
        previous = None
        for size, changes in sizes.items():
            row = {"size": size, **_in_own_process(arguments, changes)}
            line = f"{name:10}{size:6}{row['seconds']:10.4g}{row['megabytes']:12.0f}"
            if previous:
                more = [(row[key] - previous[key]) / (size - previous["size"]) for key in ("seconds", "megabytes")]
                line += f"{more[0]:13.3g}{more[1]:8.1f}"
            print(line, flush=True)
            results.setdefault(name, []).append(row)
            previous = row
    if flags.output is not None:
        content = {"date": time.strftime("%Y-%m-%d"), "configuration": config.to_dict(), "growth": results}
        Path(flags.output).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def variants(config: Config) -> dict[str, dict[int, dict[str, Any]]]:
    """{what grows: {size: the flags that make it}}, each up to the configured size in four parts or fewer."""
    data = config.data

    def parts(whole: int) -> list[int]:
        return sorted({-(-whole * part // 4) for part in range(1, 5)})

    def views(number: int) -> dict[str, int]:
        changes = {"num_views": number, "image_width": data.image_width // data.num_views * number}
        if data.crop_width is not None:
            changes["crop_width"] = data.crop_width // data.num_views * number
        return changes

    return {
        "batch": {size: {"batch_size": size} for size in parts(data.batch_size)},
        "views": {size: views(size) for size in parts(data.num_views)},
        "steps": {size: {"max_sequence_length": size} for size in parts(data.max_sequence_length)},
    }


def _in_own_process(arguments: list[str], changes: dict[str, Any]) -> dict[str, float]:
    own = [*arguments, "--single", *(f"--{name}={value}" for name, value in changes.items())]
    run = subprocess.run([sys.executable, __file__, *own], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout)


def measure(config: Config, repetitions: int) -> dict[str, float]:
    """Median seconds of a training step, and its peak of memory in MB: of the device, or on the host of the process."""
    import torch

    from aocr_torch import device as devices
    from aocr_torch.data.charset import Charset
    from aocr_torch.training.state import Training

    data, device = config.data, devices.resolve(config.run.device)
    charset = Charset.from_characters([chr(0x4E00 + number) for number in range(CHARACTERS - 1)])
    training = Training(config, charset, device, data.batch_size)
    training.distribute()
    batch = {
        "image": torch.randint(0, 256, (data.batch_size, data.image_height, data.image_width, 3), dtype=torch.uint8),
        "label": torch.randint(0, CHARACTERS, (data.batch_size, data.max_sequence_length)),
        "index": torch.arange(data.batch_size),
        "position": torch.arange(data.batch_size),
        "skipped": [],
    }
    times = []
    for _ in range(repetitions + 2):
        devices.synchronize(device)
        start = time.perf_counter()
        training.train_step([batch])
        devices.synchronize(device)
        times.append(time.perf_counter() - start)
    return {"seconds": sorted(times[2:])[repetitions // 2], "megabytes": devices.peak_memory(device) / 1e6}


if __name__ == "__main__":
    run_main(main)
