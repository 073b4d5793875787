"""Evaluation: every record exactly once, on any number of ranks, with the counts stated and enforced."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from aocr_torch import device as devices
from aocr_torch.config import Config, ConfigError
from aocr_torch.data.augment import split_views
from aocr_torch.data.charset import Charset, CharsetError
from aocr_torch.data.decoded_cache import DecodedCache
from aocr_torch.data.fsns import FSNSDataset, find_charset, find_shards
from aocr_torch.data.loader import EvalBatchSampler, make_loader
from aocr_torch.data.records import Shards
from aocr_torch.model.ocr import Prediction, interpret
from aocr_torch.training import ranks
from aocr_torch.training.metrics import Metrics


class CountError(ValueError):
    """An evaluation that did not see every record exactly once."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured."""

    results: dict[str, Any]
    """Of `Metrics.result`: the reference's measures, the strict ones, numbers of examples."""
    records: int
    """Records that there were to evaluate."""
    evaluated: int
    """Records read, predicted and measured."""
    skipped: list[str] = field(default_factory=list)
    """One message for each record left out, of all ranks."""


def open_dataset(config: Config, split_name: str, charset: Optional[Charset] = None) -> FSNSDataset:
    """The records of a split as the configuration lays them out.

    Args:
        charset: a checkpoint's, which must be the data set's.

    Raises:
        ConfigError: no dataset_dir, and nothing to synthesize.
        DecodedCacheError: the cache in decoded_cache_dir is of other records, or finds too little room.
        FileNotFoundError, CharsetError, RecordError: as data/ says them.
    """
    data = config.data
    if data.dataset_dir is None and data.synthesize:
        from aocr_torch.data.synthetic_parameters import PRESETS
        from aocr_torch.data.synthetic_records import DrawnDataset, DrawnRecords

        kind: type[FSNSDataset] = DrawnDataset
        size = {"num_views": data.num_views, "height": data.image_height, "max_length": data.max_sequence_length}
        parameters = replace(PRESETS[data.synthesize], view_width=data.image_width // data.num_views, **size)
        shards: Shards = DrawnRecords(parameters, split_name)
        own = shards.charset
    elif data.dataset_dir is None:
        raise ConfigError(
            "no data set: give --dataset_dir FOLDER, or let python train.py --config configs/demo.yaml draw its own\n"
            "  FSNS (158 GB): research/street/python/fsns_urls.txt of github.com/tensorflow/models lists its files\n"
            "  pictures of your own: python tools/make_tfrecords.py photos/labels.tsv FOLDER (see docs/tutorial.md)"
        )
    else:
        kind = FSNSDataset
        shards = Shards(find_shards(data.dataset_dir, split_name), skip_bad_records=data.skip_bad_records)
        own = Charset.from_file(find_charset(data.dataset_dir, data.charset_filename))
    if charset is not None and charset.characters != own.characters:
        place = next((i for i, pair in enumerate(zip(charset.characters, own.characters)) if pair[0] != pair[1]), None)
        what = f"{charset.size} and {own.size} classes" if place is None else f"they differ first at id {place}"
        raise CharsetError(
            f"the checkpoint's charset is not that of {data.dataset_dir or data.synthesize} ({what}): its ids would be "
            "read as other characters; evaluate on a data set with the checkpoint's charset"
        )
    layout = {name: getattr(data, name) for name in ("image_height", "image_width", "max_sequence_length")}
    dataset = kind(shards, own, **layout, skip_bad_records=data.skip_bad_records, num_records=data.num_records)
    if data.decoded_cache_dir is not None:
        sizes = {**layout, "num_records": len(dataset), "num_classes": own.size}
        dataset.cache = DecodedCache(data.decoded_cache_dir, split_name, shards.identity(), **sizes)
    return dataset


def open_eval_dataset(config: Config, charset: Charset) -> FSNSDataset:
    """The records of a training's evaluations; num_records cuts them only if it trains on the same split."""
    run, data = config.run, config.data
    num_records = data.num_records if run.eval_split == data.split_name else None
    dataset = open_dataset(config.replace(num_records=num_records), run.eval_split, charset)
    if not len(dataset):
        raise ConfigError(f"{run.eval_split}: there are no records to evaluate: the shards are empty")
    return dataset


def eval_loader(dataset: FSNSDataset, config: Config, device: torch.device, limit: Optional[int] = None) -> DataLoader:
    """The batches of this rank's share of the first `limit` records; errors as `make_loader`."""
    size, place = config.data.batch_size, {"rank": ranks.rank(), "world_size": ranks.world_size()}
    sampler = EvalBatchSampler(len(dataset), size, **place, limit=limit)
    pin_memory = devices.uses_pinned_memory(device)
    return make_loader(dataset, sampler, num_workers=config.data.num_workers, pin_memory=pin_memory)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: FSNSDataset,
    config: Config,
    device: torch.device,
    *,
    limit: Optional[int] = None,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    on_batch: Optional[Callable[[dict[str, Any], Prediction], None]] = None,
) -> Evaluation:
    """Evaluates the first `limit` records of `dataset` (all by default), split over the ranks.

    Args:
        model: an `AttentionOCR` on `device`; put into evaluation mode and back.
        autocast: makes the context of a forward pass, of mixed precision.
        on_batch: called with each batch and what was read, on this rank.

    Raises:
        RecordError: a bad record, unless the data set skips them.
        CountError: evaluated and skipped records are not all there were.
    """
    charset, data = dataset.charset, config.data
    metrics = Metrics(charset.null_id)
    loader = eval_loader(dataset, config, device, limit)
    was_training = model.training
    model.eval()
    skipped = [str(error) for error in dataset.shards.bad] if ranks.is_main() else []
    for batch in loader:
        skipped += batch["skipped"]
        count = len(batch["index"])
        if not count:
            continue
        takes_any_size = devices.is_host(device) and not config.run.compile
        images = batch["image"] if takes_any_size else _fill_up(batch["image"], data.batch_size)
        views = split_views(images.to(device, non_blocking=True), data.num_views, data.crop)
        with autocast():
            logits = model(views)["logits"][:count]
        prediction = interpret(logits, charset.null_id)
        ids = prediction.ids.cpu()
        texts = [charset.decode(row) for row in ids.tolist()]
        metrics.update(ids, batch["label"], texts, [charset.decode(row) for row in batch["label"].tolist()])
        if on_batch is not None:
            on_batch(batch, prediction)
    model.train(was_training)
    results = Metrics.result_of(ranks.sum_over_ranks(metrics.state()))
    skipped = ranks.gather(skipped)
    records = len(dataset) if limit is None else min(len(dataset), limit)
    records += len(dataset.shards.bad)
    evaluated = int(results["num_examples"])
    if evaluated + len(skipped) != records:
        raise CountError(f"evaluated {evaluated} and skipped {len(skipped)} of {records} records: expected all of them")
    return Evaluation(results, records, evaluated, skipped)


def _fill_up(images: Tensor, batch_size: int) -> Tensor:
    """Repeats the last image up to a full batch, (B, H, W, 3): what compiles does it anew for every shape."""
    missing = batch_size - len(images)
    return images if missing == 0 else torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
