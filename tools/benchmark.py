"""Measures where the time of training and evaluation goes, beside what this machine could do at best.

python tools/benchmark.py                                    # the reference's model, batch 32, on the best device
python tools/benchmark.py --device cpu --amp --output bf16.json
python tools/benchmark.py --compare                          # the plain path and the fast one, each in its own process
python tools/benchmark.py --baseline bf16.json               # beside an earlier run
python tools/benchmark.py --data_only --dataset_dir DATA     # the data pipeline alone, on these records

Every figure is the median of --repetitions runs after a warm-up, with the lowest and the highest. Every flag of
train.py works. Figures of two runs compare only if nothing else kept the machine busy.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from aocr_torch.command_line import run_main
from aocr_torch.config import Config, parse_arguments
from aocr_torch.files import require_writable

ROOT = Path(__file__).resolve().parent.parent
CHARACTERS = 134  # of FSNS
RECORDS = 64  # drawn where there is no data set


@dataclass(frozen=True)
class Benchmark:
    """Flags of benchmark.py alone."""

    output: Optional[str] = None
    """JSON file to write: environment, configuration, figures."""
    baseline: Optional[str] = None
    """JSON file of an earlier run, printed beside this one."""
    compare: bool = False
    """Measure the plain path too, each in a process of its own, and print both."""
    data_only: bool = False
    """Measure the data pipeline alone."""
    repetitions: int = 5
    """Runs of each figure, after one to warm up."""


class Figures:
    """What was measured: {name: {unit, median, low, high, share}}, times in seconds and rates per second."""

    def __init__(self, repetitions: int, synchronize: Callable[[], None]) -> None:
        self.repetitions, self.synchronize = repetitions, synchronize
        self.values: dict[str, dict[str, Any]] = {}

    def seconds(self, name: str, action: Callable[[], Any]) -> float:
        """Notes and returns the median time of an action."""
        action()
        times = []
        for _ in range(self.repetitions):
            self.synchronize()
            start = time.perf_counter()
            action()
            self.synchronize()
            times.append(time.perf_counter() - start)
        times.sort()
        self.note(name, "s", times[len(times) // 2], times[0], times[-1])
        return times[len(times) // 2]

    def rate(
        self, name: str, unit: str, amount: float, action: Callable[[], Any], best: Optional[float] = None
    ) -> float:
        """Notes and returns `amount` of `unit` per second of an action, and its share of the `best` possible."""
        self.seconds(name, action)
        time_of = self.values[name]
        low, high = amount / time_of["high"], amount / time_of["low"]
        self.note(name, f"{unit}/s", amount / time_of["median"], low, high, best)
        return amount / time_of["median"]

    def note(self, name: str, unit: str, median: float, low: float, high: float, best: Optional[float] = None) -> None:
        """Notes a figure; `best` is what it would be at this machine's limit."""
        share = median / best if best else None
        self.values[name] = {"unit": unit, "median": median, "low": low, "high": high, "share": share}


def main(arguments: list[str]) -> int:
    """Measures and prints; returns the exit status."""
    config, flags = parse_arguments(arguments, description="Benchmark Attention-OCR.", extra=Benchmark())
    if flags.repetitions < 1:
        raise ValueError(f"repetitions is {flags.repetitions}: expected at least 1")
    if flags.output is not None:
        require_writable(Path(flags.output))
    baseline = None
    if flags.baseline is not None:
        baseline = json.loads(Path(flags.baseline).read_text(encoding="utf-8"))
        if not isinstance(baseline, dict) or "figures" not in baseline:
            raise ValueError(f"{flags.baseline}: holds no figures; expected a file that --output wrote")
    if flags.compare:
        baseline = _in_own_process(arguments, use_fast_path=False)
        result = _in_own_process(arguments, use_fast_path=True)
    else:
        result = measure(config, flags)
    _print(result, baseline, "plain" if flags.compare else "baseline")
    if flags.output is not None:
        results = {**result, "plain": baseline["figures"]} if flags.compare else result
        Path(flags.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _in_own_process(arguments: list[str], use_fast_path: bool) -> dict[str, Any]:
    """A process for each path: the peak of memory is one of the process's whole life."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        own = [*arguments, "--compare=False", "--baseline=", f"--use_fast_path={use_fast_path}", f"--output={file}"]
        if not use_fast_path:
            own += ["--record_step=False", "--compile=False"]
        subprocess.run([sys.executable, __file__, *own], check=True, stdout=subprocess.DEVNULL)
        return json.loads(file.read_text(encoding="utf-8"))


def measure(config: Config, flags: Benchmark) -> dict[str, Any]:
    """Runs all measurements of one configuration; returns environment, configuration and figures."""
    import torch

    from aocr_torch import device as devices

    device = devices.resolve(config.run.device)
    figures = Figures(flags.repetitions, lambda: devices.synchronize(device))
    with tempfile.TemporaryDirectory() as folder:
        if config.data.dataset_dir is None:
            draw_data_set(Path(folder), config)
            config = config.replace(dataset_dir=folder)
        if not flags.data_only:
            measure_network(figures, config, device)  # first: nothing else has raised the peak of memory yet
        measure_data(figures, config)
    if not flags.data_only:
        measure_start_up(figures)
    environment = {
        "date": time.strftime("%Y-%m-%d"),
        "device": devices.hardware_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return {"environment": environment, "configuration": config.to_dict(), "figures": figures.values}


def measure_network(figures: Figures, config: Config, device: Any) -> None:
    """The step and its parts on one batch in memory, evaluation, tower and decoder alone, and the peak of memory."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from aocr_torch import device as devices
    from aocr_torch.data.loader import TrainBatchSampler, make_loader
    from aocr_torch.training.evaluate import open_dataset
    from aocr_torch.training.state import Training

    dataset = open_dataset(config, config.data.split_name)
    training = Training(config, dataset.charset, device, len(dataset))
    training.distribute()
    batch_size = config.data.batch_size
    sampler = TrainBatchSampler(len(dataset), batch_size, seed=0)
    pin_memory = devices.uses_pinned_memory(device)
    in_memory = [next(iter(make_loader(dataset, sampler, pin_memory=pin_memory)))]
    for _ in range(2):
        training.train_step(in_memory)
    for place in dict.fromkeys([torch.device("cpu"), device]):
        peak = devices.peak_memory(place) / 1e6
        figures.note(
            "peak memory of the " + ("process" if devices.is_host(place) else "device"), "MB", peak, peak, peak
        )
    alone = [{name: values[:1] for name, values in in_memory[0].items()}]
    with FlopCounterMode(display=False) as counter:  # under which nothing is compiled: one example, for the memory
        training.train_step(alone)
    dtype = getattr(training.precision, "dtype", torch.float16) or torch.float32
    product_rate = measure_limits(figures, device, dtype)
    best = product_rate / counter.get_total_flops()
    total = figures.seconds("training step", lambda: training.train_step(in_memory))
    figures.note("training images", "1/s", batch_size / total, batch_size / total, batch_size / total, best)
    parts = {"forward": [], "backward": []}
    for _ in range(figures.repetitions + 1):
        with training.precision.scaled_gradients(training.optimizer):
            training.optimizer.zero_grad()
            start = _now(device)
            loss = training._sequence_loss(training.on_device(in_memory[0], is_training=True))
            middle = _now(device)
            training.precision.backward(loss)
            parts["forward"].append(middle - start)
            parts["backward"].append(_now(device) - middle)
    for name, times in parts.items():
        times = sorted(times[1:])
        figures.note(f"- {name}", "s", times[len(times) // 2], times[0], times[-1])
    # Medians of runs apart: where the rest is small, noise may leave less than nothing.
    rest = max(0.0, total - sum(figures.values[f"- {name}"]["median"] for name in parts))
    figures.note("- clipping and optimizer", "s", rest, rest, rest)
    loader = iter(make_loader(dataset, sampler, num_workers=config.data.num_workers, pin_memory=pin_memory))
    waits = []
    for _ in range(figures.repetitions + 1):
        start = time.perf_counter()
        batch = next(loader)
        waits.append(time.perf_counter() - start)
        training.train_step([batch])
    waits = sorted(waits[1:])
    figures.note("- waiting for data", "s", waits[len(waits) // 2], waits[0], waits[-1])
    _measure_inference(figures, training, in_memory[0], product_rate)


def _measure_inference(figures: Figures, training: Any, batch: dict[str, Any], product_rate: float) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, batch_size = training.model.eval(), len(batch["index"])
    with torch.no_grad(), training.precision.autocast():
        views = training.views(training.on_device(batch, is_training=False))
        with FlopCounterMode(display=False) as counter:
            features = model.features(views)
        tower_rate = product_rate / counter.get_total_flops() * batch_size
        with FlopCounterMode(display=False) as counter:
            model.decoder(features)
        decoder_rate = product_rate / counter.get_total_flops() * batch_size
        best = 1 / (1 / tower_rate + 1 / decoder_rate)
        figures.rate("evaluation", "images", batch_size, lambda: model(views), best)
        figures.rate("- tower alone", "images", batch_size, lambda: model.features(views), tower_rate)
        figures.rate("- decoder alone", "images", batch_size, lambda: model.decoder(features), decoder_rate)


def measure_limits(figures: Figures, device: Any, dtype: Any) -> float:
    """What the machine can do: matrix products in `dtype`, copies in memory. Returns FLOP/s of the products."""
    import torch

    from aocr_torch import device as devices

    size = 2048 if devices.is_host(device) else 8192
    left = torch.randn(size, size, device=device).to(dtype)
    rate = figures.rate(f"limit: products in {str(dtype)[6:]}", "GFLOP", 2 * size**3 / 1e9, lambda: left @ left)
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    gigabytes = 2 * source.numel() * 4 / 1e9  # read and written
    figures.rate("limit: copying in memory", "GB", gigabytes, lambda: target.copy_(source))
    return rate * 1e9


def measure_data(figures: Figures, config: Config) -> None:
    """Reading, decoding and augmenting, each alone on this process's threads, and the loader with 1 and 2 workers."""
    import torch

    from aocr_torch.data.augment import Augmentation
    from aocr_torch.data.fsns import compressed_pixels, decode_image
    from aocr_torch.data.loader import TrainBatchSampler, make_loader
    from aocr_torch.training.evaluate import open_dataset

    data = config.data
    dataset = open_dataset(config.replace(decoded_cache_dir=None, echo=1), data.split_name)
    count = min(RECORDS, len(dataset))
    encoded = [dataset.encoded_image(index) for index in range(count)]
    streams = [compressed_pixels(image) or zlib.compress(b"") for image in encoded]
    name, inflated = inflate()
    limit = f"limit: inflating, one core ({name})"
    figures.rate(limit, "records", count, lambda: [inflated(stream) for stream in streams])
    best = figures.values[limit]["median"]
    figures.rate("reading, one core", "records", count, lambda: [dataset.shards.read(i) for i in range(count)])
    size = data.image_height, data.image_width
    figures.rate("decoding, one core", "records", count, lambda: [decode_image(png, *size) for png in encoded], best)
    batch = dataset.batch(range(count))
    places = batch["image"]
    figures.rate("reading and decoding, one core", "records", count, lambda: dataset.batch(range(count), places), best)

    augmentation = Augmentation(0, data.num_views, data.view_size, data.crop)
    out = torch.empty(count, *augmentation.shape)
    figures.rate("augmenting", "records", count, lambda: augmentation(places, batch["position"], out))
    with tempfile.TemporaryDirectory() as folder:
        cached = open_dataset(config.replace(decoded_cache_dir=folder), data.split_name)
        cached.batch(range(count), places)
        name = "reading from the decoded cache, one core"
        figures.rate(name, "records", count, lambda: cached.batch(range(count), places))
    for workers, in_worker in itertools.product((1, 2), (None, augmentation)):
        sampler = TrainBatchSampler(len(dataset), data.batch_size, seed=0)
        batches = iter(make_loader(dataset, sampler, num_workers=workers, augmentation=in_worker))
        for _ in range(4 * workers):
            next(batches)  # what was read ahead while nobody waited
        name = f"loader, {workers} worker" + "s, each" * (workers > 1) + ", augmenting" * (in_worker is not None)
        amount = data.batch_size * 8 / workers
        figures.rate(name, "records", amount, lambda b=batches: [next(b) for _ in range(8)], best)


def inflate() -> tuple[str, Callable[[bytes], bytes]]:
    """The fastest there is at hand for a zlib stream, and its name; isal is not needed for anything else."""
    try:
        from isal import isal_zlib
    except ImportError:
        return "zlib", zlib.decompress
    return "isal", isal_zlib.decompress


def draw_data_set(folder: str, config: Config) -> None:
    """Records of the configured size whose pictures compress about as well as FSNS's (150 kB of 270)."""
    import io

    import numpy as np
    from PIL import Image

    from aocr_torch.data.charset import Charset
    from aocr_torch.data.fsns import encode_example
    from aocr_torch.data.records import write_shard

    data, random = config.data, np.random.RandomState(0)
    charset = Charset.from_characters([chr(0x4E00 + number) for number in range(CHARACTERS - 1)])
    charset.save(Path(folder) / f"charset_size={charset.size}.txt")
    size = {"width": data.image_width, "height": data.image_height}
    records = []
    for _ in range(max(RECORDS, data.batch_size)):
        noise = random.randint(0, 26, (data.image_height, data.image_width, 3))
        png = io.BytesIO()
        Image.fromarray((noise + np.arange(data.image_width)[:, None] % 150).astype(np.uint8)).save(png, "PNG")
        text = "".join(random.choice(charset.characters[:-1], min(20, data.max_sequence_length)))
        options = {"length": data.max_sequence_length, "orig_width": data.image_width, **size}
        records.append(encode_example(png.getvalue(), text, charset, **options))
    split = Path(folder) / data.split_name
    split.mkdir()
    write_shard(split / f"{data.split_name}-00000-of-00001", records)


def measure_start_up(figures: Figures) -> None:
    """`train.py --help`, and what importing this package costs beyond torch and torchvision, in fresh processes."""

    def run(*command: str) -> Callable[[], Any]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return lambda: subprocess.run(
            [sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=environment, cwd=ROOT
        )

    figures.seconds("start-up: train.py --help", run("train.py", "--help"))
    figures.seconds("start-up: torch and torchvision", run("-c", "import torch, torchvision"))
    own = "import torch, torchvision, aocr_torch.training.loop, aocr_torch.predict"
    figures.seconds("start-up: these and aocr_torch", run("-c", own))


def _now(device: Any) -> float:
    from aocr_torch import device as devices

    devices.synchronize(device)
    return time.perf_counter()


def _print(result: dict[str, Any], other: Optional[dict[str, Any]], other_name: str) -> None:
    """The table: a figure a line, its share of the limit, and what the other run had."""
    print(", ".join(f"{name} {value}" for name, value in result["environment"].items()))
    heading = f"{'':36}{'median':>11}{'lowest':>11}{'highest':>11} {'unit':10}{'of limit':>9}"
    print(heading + (f"{other_name:>11}{'gain':>8}" if other else ""))
    for name, figure in result["figures"].items():
        share = f"{figure['share']:.0%}" if figure["share"] else ""
        values = "".join(f"{figure[key]:11.4g}" for key in ("median", "low", "high"))
        line = f"{name:36}{values} {figure['unit']:10}{share:>9}"
        theirs = other["figures"].get(name) if other else None
        if theirs and theirs["median"] and figure["median"]:
            is_rate = figure["unit"].endswith("/s")
            gain = figure["median"] / theirs["median"] if is_rate else theirs["median"] / figure["median"]
            line += f"{theirs['median']:11.4g}{gain:7.2f}x"
        print(line)


if __name__ == "__main__":
    run_main(main)
