"""Decoded pictures on a fast local disk: each record is read and decoded, or drawn, once and copied from then on.

One file a split, shared by all processes of a host: a header that says whose records these are, then a place of the
same size for every record, in their order:

    crc     uint32, CRC-32C of the rest
    label   int64 (T,)
    image   uint8 (H, W, 3)

Places are filled as records are first read, so the file is sparse. There are no locks: everybody who fills a place
writes the same bytes, and a place that is empty, half written or lost with the machine's power has a wrong CRC.

The file is read and written by position rather than through a memory map: it is as fast, and a full disk is then an
error and not the end of the process.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from io import FileIO
from pathlib import Path
from typing import Any, Optional, Union

import crc32c
import numpy as np

SUFFIX = ".decoded"
HEADER_BYTES = 4096


class DecodedCacheError(ValueError):
    """A cache that cannot be used, told in one line: what was found, what was expected, what to do."""


class DecodedCache:
    """The decoded records of one split: a place (label, image) for each, which `read` copies and `write` fills.

    Safe to use after a fork, to pickle to another process, and from several processes at once.
    """

    def __init__(
        self,
        folder: Union[str, Path],
        split_name: str,
        origin: Any,
        *,
        num_records: int,
        image_height: int,
        image_width: int,
        max_sequence_length: int,
        num_classes: int,
    ) -> None:
        """Opens the split's file in `folder`, or begins one.

        Args:
            origin: what the records' contents depend on, as JSON takes it.
            num_records: as many places will be filled.

        Raises:
            DecodedCacheError: the file holds other records, or the disk has too little room for all.
            OSError: it cannot be opened or written.
        """
        self.path = Path(folder) / (re.sub(r"[^\w.-]+", "_", split_name) + SUFFIX)
        self.num_records = num_records
        self.shape = (image_height, image_width, 3)
        self.max_sequence_length = max_sequence_length
        self.place_bytes = 4 + 8 * max_sequence_length + image_height * image_width * 3
        self._description = {
            "format": "aocr_torch/decoded/1",
            "records": hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest(),
            "image size": f"{image_width}x{image_height}",
            "max_sequence_length": max_sequence_length,
            "number of classes": num_classes,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: Optional[FileIO] = None
        self._is_full = False
        self._check_header()
        self._check_room()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    @property
    def summary(self) -> str:
        """What the file takes on disk, for the log."""
        needed, filled = self._sizes()
        return (
            f"decoded pictures are kept in {self.path}: {filled / 1e9:.1f} GB of the {needed / 1e9:.1f} GB that "
            f"{self.num_records} records take"
        )

    def read(self, index: int, image: np.ndarray, label: np.ndarray) -> bool:
        """Copies a record into `image`, uint8 (H, W, 3), and `label`, int64 (T,).

        False if its place is not filled: they then hold anything.
        """
        crc = np.zeros(1, np.uint32)
        size = os.preadv(self._descriptor(), [crc, label, image], self._offset(index))
        return size == self.place_bytes and crc[0] == _crc(label, image)

    def write(self, index: int, image: np.ndarray, label: np.ndarray) -> None:
        """Fills a record's place; where the disk has become full, warns once and fills no more."""
        if self._is_full:
            return
        parts = [np.array([_crc(label, image)], np.uint32), label, image]
        try:
            os.pwritev(self._descriptor(), parts, self._offset(index))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._is_full = True
            warnings.warn(f"{self.path}: the disk is full: further records are decoded each time", stacklevel=2)

    def _offset(self, index: int) -> int:
        return HEADER_BYTES + index * self.place_bytes

    def _descriptor(self) -> int:
        if self._file is None:
            self._file = FileIO(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        return self._file.fileno()

    def _check_header(self) -> None:
        """Writes the header of a new file; of an old one, compares it."""
        import fcntl  # not everywhere; the rest of the package does without

        descriptor = self._descriptor()
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # several ranks may begin the same file
        try:
            header = os.pread(descriptor, HEADER_BYTES, 0)
            if not header:
                os.pwrite(descriptor, json.dumps(self._description).encode().ljust(HEADER_BYTES), 0)
                return
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        try:
            found = dict(json.loads(header))
        except (ValueError, TypeError):
            raise DecodedCacheError(f"{self.path} is no cache of decoded pictures: name another folder") from None
        differing = [name for name, value in self._description.items() if found.get(name) != value]
        if differing:
            raise DecodedCacheError(
                f"{self.path} was filled from other data (it differs in: {', '.join(differing)}): delete it, or name "
                "another decoded_cache_dir"
            )

    def _sizes(self) -> tuple[int, int]:
        """Bytes on disk when everything is filled, and now."""
        filled = os.fstat(self._descriptor()).st_blocks * 512
        return HEADER_BYTES + self.num_records * self.place_bytes, filled

    def _check_room(self) -> None:
        needed, filled = self._sizes()
        free = shutil.disk_usage(self.path.parent).free
        if needed - filled > free:
            raise DecodedCacheError(
                f"{self.path}: {self.num_records} decoded records take {needed / 1e9:.1f} GB, {filled / 1e9:.1f} GB "
                f"are there and {free / 1e9:.1f} GB free on that disk: name a decoded_cache_dir on a larger one, or "
                "use fewer records (num_records)"
            )


def _crc(label: np.ndarray, image: np.ndarray) -> int:
    return crc32c.crc32c(image, crc32c.crc32c(label))
