"""The configuration: four frozen dataclasses, filled from defaults, a YAML file and the command line, in that order.

Every field is a flag and a YAML key of the same name; where the TensorFlow reference has the flag, its name is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Callable, Literal, Optional, get_type_hints

import yaml

from aocr_torch.command_line import (
    ConfigError,
    check_type,
    flags_of,
    kinds_of,
    nearest,
    print_help,
    split_arguments,
    values_of,
)


@dataclass(frozen=True)
class Data:
    """What is read and how it is laid out."""

    dataset_dir: Optional[str] = None
    """Folder with train/, validation/, test/ shards and the charset file."""
    split_name: str = "train"
    """Split to train on: train, validation, test, or a file or glob of shards."""
    charset_filename: Optional[str] = None
    """Charset file, relative to dataset_dir; by default the one named charset_size=*.txt there."""
    image_height: int = 150
    """Height of the images, pixels."""
    image_width: int = 600
    """Width of the images, all views together, pixels."""
    num_views: int = 4
    """Views side by side in an image."""
    max_sequence_length: int = 37
    """Characters of a label, nulls included: the number of decoder steps."""
    crop_width: Optional[int] = None
    """Central crop: width over all views, pixels (each view is cropped to its share)."""
    crop_height: Optional[int] = None
    """Central crop: height, pixels."""
    use_augment_input: bool = True
    """Random crop, resize and colour distortion of every view in training."""
    augment_in_workers: Optional[bool] = None
    """Augment in the processes that decode; by default where the CPU trains, as accelerators are faster at it."""
    batch_size: int = 32
    """Examples a step on each device."""
    num_workers: int = 2
    """Processes that read, decode and, on the CPU, augment; 0 does it in the main process."""
    num_records: Optional[int] = None
    """Use only the first so many records of split_name; all by default."""
    skip_bad_records: bool = False
    """Count, list and leave out records that cannot be read, instead of stopping at the first."""
    decoded_cache_dir: Optional[str] = None
    """Folder on a fast local disk for the decoded pictures, filled as records are first read; for when decoding or
    drawing is the limit. An image of FSNS takes 270 kB there."""
    echo: int = 1
    """Times an epoch uses each record, soon after one another: where decoded_cache_dir fills slower than it is read."""
    synthesize: Literal["", "demo", "fsns"] = ""
    """Draw synthetic signs of this preset: into dataset_dir first, or without one each when it is read."""

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, f"batch_size is {self.batch_size}: expected at least 1")
        _require(self.num_workers >= 0, f"num_workers is {self.num_workers}: expected 0 or more")
        _require(
            self.num_records is None or self.num_records >= 1, f"num_records is {self.num_records}: expected at least 1"
        )
        _require(self.echo >= 1, f"echo is {self.echo}: expected at least 1")
        _require(
            self.echo == 1 or self.decoded_cache_dir is not None,
            f"echo {self.echo} without decoded_cache_dir would decode each record as often: give a folder too",
        )
        _require(self.max_sequence_length >= 1, f"max_sequence_length is {self.max_sequence_length}: at least 1")
        _require(
            self.num_views >= 1 and self.image_width % self.num_views == 0,
            f"image_width {self.image_width} with num_views {self.num_views}: the width must divide by the views",
        )
        _require(
            (self.crop_width is None) == (self.crop_height is None),
            "crop_width and crop_height go together: give both or neither",
        )
        if self.crop_width is not None and self.crop_height is not None:
            _require(
                0 < self.crop_width <= self.image_width and 0 < self.crop_height <= self.image_height,
                f"crop {self.crop_width}x{self.crop_height} (width x height) does not fit into the image "
                f"{self.image_width}x{self.image_height}: choose a smaller crop",
            )

    @property
    def view_size(self) -> tuple[int, int]:
        """(height, width) in pixels of one view as the model sees it, after the central crop."""
        if self.crop_width is not None and self.crop_height is not None:
            return self.crop_height, self.crop_width // self.num_views
        return self.image_height, self.image_width // self.num_views

    @property
    def crop(self) -> Optional[tuple[int, int]]:
        """(width, height) of the central crop over all views, or None."""
        return None if self.crop_width is None or self.crop_height is None else (self.crop_width, self.crop_height)


@dataclass(frozen=True)
class Model:
    """What the network computes."""

    final_endpoint: str = "Mixed_5d"
    """Inception-v3 endpoint whose feature map the decoder reads, Conv2d_1a_3x3 .. Mixed_7c."""
    use_attention: bool = True
    """Attention decoder; False reads the feature map slice by slice (NetSlice)."""
    use_autoregression: bool = True
    """Tell each step the previous character."""
    encode_coordinates: bool = False
    """Append one-hot row and column of the position to the features."""
    cell: Literal["lstm", "gru"] = "lstm"
    """Recurrent cell of the decoder; the reference has lstm."""
    num_lstm_units: int = 256
    """Units of the recurrent cell."""
    lstm_state_clip_value: float = 10.0
    """Bound of the LSTM's cell state; 0 for none."""
    batch_norm_per_view: bool = True
    """BatchNorm statistics view by view in training, as the reference; False: over all views at once."""
    batch_norm_decay: float = 0.9997
    """Decay of BatchNorm's moving averages, once per view and step."""
    batch_norm_cumulative_start: bool = False
    """Moving averages begin as a plain mean and grow into the decay: for trainings of a few thousand steps or fewer."""
    sync_batch_norm: bool = False
    """BatchNorm statistics over the batches of all devices in training; by default each device has its own."""
    use_fast_path: bool = True
    """The same numbers up to rounding in less time and memory; False computes operation by operation, to compare."""

    def __post_init__(self) -> None:
        _require(0 <= self.batch_norm_decay < 1, f"batch_norm_decay is {self.batch_norm_decay}: expected 0 <= d < 1")
        _require(self.num_lstm_units >= 1, f"num_lstm_units is {self.num_lstm_units}: expected at least 1")
        _require(
            0 <= self.lstm_state_clip_value < float("inf"),
            f"lstm_state_clip_value is {self.lstm_state_clip_value}: expected a finite number, 0 for no bound",
        )


@dataclass(frozen=True)
class Optim:
    """The loss and how it is minimised."""

    optimizer: Literal["momentum", "adam", "adadelta", "adagrad", "rmsprop"] = "momentum"
    """Update rule, with TensorFlow's defaults."""
    learning_rate: float = 0.004
    """Step size."""
    momentum: float = 0.9
    """Momentum of the momentum and rmsprop optimizers."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """Learning rate over the steps: constant, cosine to 0 at max_number_of_steps, or step decay."""
    warmup_steps: int = 0
    """Steps over which the learning rate grows linearly from 0."""
    decay_interval_steps: int = 100_000
    """Steps between two decays of the step schedule."""
    decay_factor: float = 0.5
    """Factor of each decay of the step schedule."""
    clip_gradient_norm: float = 2.0
    """Bound of the gradient's L2 norm; 0 for none."""
    clip_mode: Literal["per_variable", "global"] = "per_variable"
    """Whether the bound holds for each variable on its own, as in the reference, or for all together."""
    weight_decay: float = 0.00004
    """L2 decay of the classifier's weight and bias (the tower's is fixed at 0.00004)."""
    label_smoothing: float = 0.1
    """Share of the label's probability that is spread over all classes."""
    ignore_nulls: bool = True
    """True counts null positions in the loss, False leaves them out: the reference inverted the name."""
    average_across_timesteps: bool = False
    """Average the loss over the steps of an example instead of summing it."""
    accumulate_steps: int = 1
    """Batches whose gradients are averaged into one update."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, used for evaluation; 0 for none."""

    def __post_init__(self) -> None:
        _require(
            0 < self.learning_rate < float("inf"),
            f"learning_rate is {self.learning_rate}: expected a finite number above 0",
        )
        _require(0 <= self.momentum < 1, f"momentum is {self.momentum}: expected 0 <= m < 1")
        _require(self.warmup_steps >= 0, f"warmup_steps is {self.warmup_steps}: expected 0 or more")
        _require(self.decay_interval_steps >= 1, f"decay_interval_steps is {self.decay_interval_steps}: at least 1")
        _require(0 < self.decay_factor <= 1, f"decay_factor is {self.decay_factor}: expected 0 < f <= 1")
        _require(0 <= self.weight_decay < float("inf"), f"weight_decay is {self.weight_decay}: expected 0 or more")
        _require(0 <= self.label_smoothing < 1, f"label_smoothing is {self.label_smoothing}: expected 0 <= s < 1")
        _require(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}: expected 0 <= d < 1")
        _require(self.accumulate_steps >= 1, f"accumulate_steps is {self.accumulate_steps}: expected at least 1")
        _require(
            0 <= self.clip_gradient_norm < float("inf"),
            f"clip_gradient_norm is {self.clip_gradient_norm}: expected a finite number, 0 for no clipping",
        )


@dataclass(frozen=True)
class Run:
    """Where, in which precision and how long."""

    device: str = "auto"
    """cpu, cuda:0, npu:0, ...; auto takes an accelerator if there is one."""
    amp: bool = False
    """Mixed precision."""
    amp_backend: Literal["auto", "apex", "native"] = "auto"
    """apex: O2 of the Ascend apex; native: PyTorch's autocast; auto: apex on an npu where it is installed."""
    amp_dtype: Literal["auto", "float16", "bfloat16"] = "auto"
    """What autocast lowers to; auto: float16 on npu and cuda, bfloat16 on cpu."""
    record_step: bool = True
    """Record the training step once and launch it as a whole, where the device can: a CUDA graph on one cuda device."""
    compile: bool = False
    """Fuse BatchNorm, pools, attention, LSTM gates (and colours, on cuda) with torch.compile, which needs Triton on
    cuda and a C++ compiler on the CPU. It takes a minute, once for each batch size; an evaluation on the CPU 15 s."""
    max_consecutive_skips: int = 50
    """Steps in a row that may overflow in float16 at the lowest loss scale before training stops."""
    train_log_dir: str = "runs/train"
    """Folder of checkpoints and logs; a training resumes from it by default."""
    max_number_of_steps: int = 400_000
    """Steps to train, those before a resume included."""
    log_interval_steps: int = 50
    """Steps between two log lines."""
    save_interval_steps: int = 1000
    """Steps between two checkpoints."""
    keep_checkpoints: int = 3
    """How many recent checkpoints stay on disk, besides the best."""
    summary_interval_steps: int = 500
    """Steps between two TensorBoard images; 0 for none. Scalars follow log_interval_steps."""
    histogram_interval_steps: int = 0
    """Steps between two TensorBoard histograms of every weight and its gradient; 0 for none."""
    checkpoint: Optional[str] = None
    """Whole-model .pth to start from: weights, and for characters that its charset shares with the data set's."""
    restore_optimizer: bool = False
    """Take step and momentum from --checkpoint too, so that its training goes on here."""
    checkpoint_inception: Optional[str] = None
    """Inception-v3 .pth to start the tower from, as convert_inception.py writes it."""
    resume: bool = True
    """Go on from the newest checkpoint in train_log_dir."""
    eval_interval_steps: int = 0
    """Steps between two evaluations on eval_split, whose best checkpoint is kept; 0 for none."""
    eval_after_training: bool = False
    """Evaluate on eval_split when training ends."""
    eval_split: str = "validation"
    """Split of the evaluations during and after training."""
    stop_at_accuracy: float = 0.0
    """End training when an evaluation reaches this StrictSequenceAccuracy; status 1 if none does. 0 for never."""
    profile: int = 0
    """Steps, after the first two, of which a profiler's trace is written into train_log_dir; 0 for none."""
    seed: int = 0
    """Seed of the initial weights, the order of the records and the augmentation."""

    def __post_init__(self) -> None:
        for name in ("max_number_of_steps", "log_interval_steps", "save_interval_steps", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}: expected at least 1")
        for name in ("eval_interval_steps", "summary_interval_steps", "histogram_interval_steps", "profile"):
            _require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: expected 0 or more")
        _require(0 <= self.stop_at_accuracy <= 1, f"stop_at_accuracy is {self.stop_at_accuracy}: expected 0 to 1")
        _require(
            not self.stop_at_accuracy or self.eval_interval_steps > 0 or self.eval_after_training,
            "stop_at_accuracy needs evaluations: give --eval_interval_steps too",
        )
        _require(0 <= self.seed < 2**63, f"seed is {self.seed}: expected 0 <= seed < 2**63")
        _require(
            not (self.checkpoint and self.checkpoint_inception),
            "checkpoint and checkpoint_inception contradict each other: a whole model includes its tower, give one",
        )
        _require(self.max_consecutive_skips >= 1, f"max_consecutive_skips is {self.max_consecutive_skips}: at least 1")
        for name in ("amp_backend", "amp_dtype"):
            _require(
                self.amp or getattr(self, name) == "auto",
                f"{name} {getattr(self, name)} without amp changes nothing: give --amp too, or --{name} auto",
            )
        _require(
            self.amp_backend != "apex" or self.amp_dtype != "bfloat16",
            "amp_backend apex and amp_dtype bfloat16 contradict each other: apex has float16 only",
        )
        _require(
            bool(self.checkpoint) or not self.restore_optimizer,
            "restore_optimizer takes step and momentum from --checkpoint: give that too",
        )


@dataclass(frozen=True)
class Config:
    """Everything a training needs; travels inside every checkpoint."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        _require(
            not self.run.compile or (self.model.use_fast_path and not self.model.sync_batch_norm),
            "compile fuses the fast path and knows one device's BatchNorm statistics: give it with use_fast_path and "
            "without sync_batch_norm",
        )

    def to_dict(self) -> dict[str, Any]:
        """Flat {flag name: value}, as `from_dict` and a YAML file take it."""
        return {name: value for part in dataclasses.asdict(self).values() for name, value in part.items()}

    def lines(self) -> list[str]:
        """The resolved configuration for people, one line for each section."""
        sections = dataclasses.asdict(self).items()
        return [f"{section}: " + " ".join(f"{n}={v}" for n, v in values.items()) for section, values in sections]

    def replace(self, **values: Any) -> Config:
        """A copy with these flags set; raises ConfigError for unknown names, wrong types and contradictions."""
        return from_dict(values, base=self)


# What the pictures and the labels are like, of which a model's weights tell nothing.
PICTURE_LAYOUT = ("image_height", "image_width", "num_views", "max_sequence_length", "crop_width", "crop_height")
SECTIONS = {section.name: get_type_hints(Config)[section.name] for section in fields(Config)}
FLAGS = flags_of(Config)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def from_dict(values: dict[str, Any], base: Optional[Config] = None, source: str = "configuration") -> Config:
    """The configuration `base` (default: the defaults) with `values` set.

    Raises:
        ConfigError: unknown name (names the nearest), value of another type, contradiction; begins with `source`.
    """
    base = base or Config()
    for name, value in values.items():
        if name not in FLAGS:
            raise ConfigError(f"{source}: unknown key {name!r}{nearest(name, FLAGS)}")
        check_type(name, value, FLAGS[name], source)
    sections = {}
    for section, kind in SECTIONS.items():
        # A float field takes YAML's 1, and 4e-5, which YAML 1.1 reads as a string.
        own = {n: _as_declared(n, values[n]) for n in get_type_hints(kind) if n in values}
        try:
            sections[section] = dataclasses.replace(getattr(base, section), **own)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
    return Config(**sections)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


def from_yaml(path: str | Path, base: Optional[Config] = None) -> Config:
    """Reads a YAML file of flag names and values; raises ConfigError naming the file."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeyLoader) or {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: expected a YAML file of flags") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}, expected lines of `flag: value`")
    return from_dict(values, base, source=str(path))


def _as_declared(name: str, value: Any) -> Any:
    return float(value) if float in kinds_of(FLAGS[name]) and value is not None else value


def parse_arguments(
    arguments: Sequence[str],
    *,
    description: str,
    base: Optional[Callable[[Any], Config]] = None,
    adjust: Optional[Callable[[Config, Any], Config]] = None,
    extra: Any = None,
) -> tuple[Config, Any]:
    """Reads a command line: `--config FILE` first, then every other flag over it.

    Args:
        arguments: without the program's name. description: first line of --help.
        extra: an instance of a dataclass with the flags that only this program has.
        base: the configuration that flags are set on, made from `extra` with its flags set, e.g. a checkpoint's.
        adjust: changes what the files say, by `extra`, before the flags are set.

    Returns:
        the configuration, and `extra` with its flags set.

    Raises:
        ConfigError: one line for the user. `--help` prints and exits.
    """
    extra_flags = flags_of(type(extra)) if extra is not None else {}
    flags = {**FLAGS, **extra_flags, "config": str}
    pairs = split_arguments(arguments, flags)
    if ("help", "") in pairs:
        _print_help(description, extra)
    values = values_of(pairs, flags)
    values.pop("config", None)
    extra_values = {name: values.pop(name) for name in extra_flags if name in values}
    extra = dataclasses.replace(extra, **extra_values) if extra is not None else None
    config = base(extra) if base is not None else Config()
    for name, text in pairs:
        if name == "config":
            config = from_yaml(text, config)
    if adjust is not None:
        config = adjust(config, extra)
    return from_dict(values, config, source="command line"), extra


def _print_help(description: str, extra: Any) -> None:
    import tyro

    parts = [] if extra is None else [("program", type(extra), field(default=extra))]
    parts += [(name, kind, field(default=kind())) for name, kind in SECTIONS.items()]
    kind = dataclasses.make_dataclass("Flags", [("config", Optional[str], None), *parts], frozen=True)
    kind.__doc__ = "Flags."
    print_help(kind, description, tyro.conf.OmitArgPrefixes)
