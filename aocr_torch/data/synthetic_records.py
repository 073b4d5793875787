"""Synthetic signs drawn when they are asked for: records without a data set on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from aocr_torch.data.fsns import FSNSDataset
from aocr_torch.data.records import Shards
from aocr_torch.data.synthetic import draw_example, draw_record
from aocr_torch.data.synthetic_effects import SynthesisError
from aocr_torch.data.synthetic_names import Split
from aocr_torch.data.synthetic_parameters import DRAWING_VERSION, SyntheticParameters

COUNTS: dict[Split, int] = {"train": 2**20, "validation": 2000, "test": 2000}
"""Records of each split: as many to train on as FSNS has."""


class DrawnRecords(Shards):
    """The records of one split as FSNSDataset reads them, each drawn again whenever it is read.

    Record i is that of the data set which `synthesize` writes, but for the packing of its picture. Order,
    augmentation and resuming follow from the records' numbers as with any data set.
    """

    def __init__(self, parameters: SyntheticParameters, split_name: str) -> None:
        """Raises SynthesisError where there is no such split, or a parameter is out of range."""
        if split_name not in COUNTS:
            raise SynthesisError(f"split {split_name!r} cannot be drawn: expected one of {', '.join(COUNTS)}")
        parameters.check()
        self.parameters = parameters
        self.split: Split = split_name
        self.charset = parameters.charset()
        self.bad = []
        self._files = OrderedDict()

    def __len__(self) -> int:
        return COUNTS[self.split]

    def identity(self) -> Any:
        """What the signs depend on, as JSON takes it."""
        return self.split, DRAWING_VERSION, asdict(self.parameters)

    def location(self, index: int) -> tuple[Path, int, int]:
        """A name for the split, the record's number, and 0."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} does not exist: there are {len(self)}, counted from 0")
        return Path(f"drawn-{self.split}"), index, 0

    def read_ahead(self, indices: Iterable[int]) -> None:
        """Nothing: there is no disk to wait for."""

    def read(self, index: int) -> bytes:
        """The record's data, a tf.Example with an unpacked PNG."""
        self.location(index)
        return draw_record(self.parameters, self.charset, self.split, index, packing=0)


class DrawnDataset(FSNSDataset):
    """The samples of DrawnRecords, with each picture as it was drawn, without packing and unpacking it."""

    shards: DrawnRecords

    def charset_warning(self, most: int = 16) -> None:
        """None: the charset is that of the texts."""

    def _decode(self, index: int, picture: np.ndarray, label: np.ndarray) -> None:
        self.shards.location(index)
        picture[:], text, _ = draw_example(self.shards.parameters, self.shards.split, index)
        label[:] = self.charset.encode(text, self.max_sequence_length)
