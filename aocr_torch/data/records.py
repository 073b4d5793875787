"""TFRecord files: writing them, an index for random access, and a checked read of any record.

A record is a uint64 length, the masked CRC-32C of those 8 bytes, the data, the masked CRC-32C of the data (all
little-endian). Both CRCs are checked whenever a record is read, so no damaged byte reaches the training.

The index of a shard has one line a record, "offset bytes", framing included: the text that the tfrecord package's
`tfrecord2idx` writes. It is kept as `<shard>.index` beside the shard, or in the user's cache folder where the shard's
folder is read-only. Its modification time is set to the shard's: an index is fresh if these times are equal and its
lines cover the shard's bytes exactly, otherwise it is built again. Building reads the headers alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from aocr_torch.files import masked_crc, replacing

INDEX_SUFFIX = ".index"
HEADER_BYTES = 12  # length and its CRC
FRAMING_BYTES = 16  # header and the CRC of the data

# Every process keeps this many shards open. A quarter of FSNS; well under the 256 files some systems allow a process.
MAX_OPEN_FILES = 128

_MESSAGE = re.compile(r"(?:.*\bRecordError: )?((.*?):(\d+) \(offset (\d+)\): (.*))")


class RecordError(ValueError):
    """A record that cannot be used: one line, "file:record (offset N): what was found, what was expected, what to do".

    It is made from that line alone and reads its fields back from it, because pickle and torch's DataLoader
    rebuild a worker's exception from one string. The DataLoader's string is a whole traceback,
    whose last line is ours and all that is kept.

    Attributes:
        file: name of the shard, without its folder.
        record: number of the record in the shard, from 0.
        offset: byte at which the record starts.
        reason: the rest of the message.
    """

    def __init__(self, message: str) -> None:
        match = _MESSAGE.fullmatch(message.strip().rsplit("\n", 1)[-1])
        if match is None:
            raise ValueError(f"{message!r} does not start with 'file:record (offset N): '; use RecordError.at")
        line, self.file, record, offset, self.reason = match.groups()
        self.record, self.offset = int(record), int(offset)
        super().__init__(line)

    @classmethod
    def at(cls, path: Union[str, Path], record: int, offset: int, reason: str) -> RecordError:
        """The error of one record of the shard at `path`."""
        return cls(f"{Path(path).name}:{record} (offset {offset}): {' '.join(reason.split())}")


def write_shard(path: Union[str, Path], payloads: Iterable[bytes]) -> int:
    """Writes a TFRecord file, beside its place first and then renamed into it, and returns the number of records."""
    count = 0
    with replacing(Path(path)) as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + _crc_bytes(length) + payload + _crc_bytes(payload))
            count += 1
    return count


class Shards:
    """Random access to the records of several TFRecord files, numbered through in the order of the files.

    Safe to use after a fork and to pickle to another process: reads carry their own position (pread), and
    files are opened when a process first reads from them.
    """

    def __init__(
        self,
        paths: Sequence[Union[str, Path]],
        *,
        index_dir: Union[str, Path, None] = None,
        skip_bad_records: bool = False,
    ) -> None:
        """Loads or builds the index of every shard.

        Args:
            index_dir: folder for the indexes; by default beside each shard, or in the cache folder
                ($XDG_CACHE_HOME or ~/.cache)/aocr_torch/index.
            skip_bad_records: where a shard cannot be followed to its end (truncated, a damaged length), keep the
                records before that place and list the error in `bad`; what comes after it cannot be found.

        Raises:
            RecordError: as above, without `skip_bad_records`.
            OSError: a shard cannot be opened.
        """
        self.paths = [Path(path) for path in paths]
        with ThreadPoolExecutor(max_workers=16) as pool:  # a header is a few bytes: the wait is the disk's latency
            indexes = list(pool.map(lambda path: _index_of(path, index_dir), self.paths))
        self.bad: list[RecordError] = [error for _, error in indexes if error is not None]
        if self.bad and not skip_bad_records:
            raise self.bad[0]
        self._spans = np.concatenate([np.empty((0, 2), np.int64), *(spans for spans, _ in indexes)])
        self._starts = np.cumsum([0, *(len(spans) for spans, _ in indexes)])  # first record of each shard
        self._files: OrderedDict[Path, FileIO] = OrderedDict()

    def __len__(self) -> int:
        return len(self._spans)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def identity(self) -> Any:
        """What the contents of the records depend on, as JSON takes it: the files as they are now, and their number."""
        status = [path.stat() for path in self.paths]
        return len(self), [(path.name, each.st_size, each.st_mtime_ns) for path, each in zip(self.paths, status)]

    def location(self, index: int) -> tuple[Path, int, int]:
        """The shard's path, the record's number in it and the byte at which the record starts."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} does not exist: there are {len(self)}, counted from 0")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.paths[shard], index - int(self._starts[shard]), int(self._spans[index, 0])

    def name(self, index: int) -> str:
        """The record as messages name it: "train-00000:3"."""
        path, record, _ = self.location(index)
        return f"{path.name}:{record}"

    def error(self, index: int, reason: str) -> RecordError:
        """The RecordError to raise about this record."""
        return RecordError.at(*self.location(index), reason)

    def read(self, index: int) -> bytes:
        """The data of one record.

        Raises:
            RecordError: a wrong CRC, a file that ends too early or cannot be read, an index that lies.
        """
        path, _, offset = self.location(index)
        size = int(self._spans[index, 1])
        try:
            frame = os.pread(self._open(path).fileno(), size, offset)
        except OSError as error:
            raise self.error(index, f"cannot be read: {error}") from None
        if len(frame) < size:
            raise self.error(index, f"the file ends after {len(frame)} of {size} bytes: fetch or write it again")
        length, reason = _check_header(frame[:HEADER_BYTES])
        if reason:
            raise self.error(index, f"{reason}, or its index is wrong (if so, delete the {INDEX_SUFFIX} file)")
        if length + FRAMING_BYTES != size:
            expected = f"expected {length + FRAMING_BYTES} as the record says: delete the {INDEX_SUFFIX} file"
            raise self.error(index, f"its index is wrong, it gives the record {size} bytes, {expected}")
        payload, found = frame[HEADER_BYTES:-4], frame[-4:]
        if _crc_bytes(payload) != found:
            raise self.error(index, _crc_reason("data", found, _crc_bytes(payload)))
        return payload

    def read_ahead(self, indices: Iterable[int]) -> None:
        """Tells the system which records are read next, so that it fetches them together; only where it can be told."""
        if hasattr(os, "posix_fadvise"):
            for index in indices:
                path, _, offset = self.location(index)
                with contextlib.suppress(OSError):  # reading says what is wrong
                    size = int(self._spans[index, 1])
                    os.posix_fadvise(self._open(path).fileno(), offset, size, os.POSIX_FADV_WILLNEED)

    def _open(self, path: Path) -> FileIO:
        if path not in self._files:
            while len(self._files) >= MAX_OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[path] = FileIO(path)
        self._files.move_to_end(path)
        return self._files[path]


def _index_of(path: Path, index_dir: Union[str, Path, None]) -> tuple[np.ndarray, Optional[RecordError]]:
    """The (offset, bytes) of every record, (N, 2) int64, and what is wrong with the shard's framing, if anything."""
    status = path.stat()
    places = _index_places(path, index_dir)
    for place in places:
        spans = _load_index(place, status)
        if spans is not None:
            return spans, None
    spans, error = _scan(path)
    if error is None:  # the index of a damaged shard is not kept, so that the damage is reported every time
        _save_index(places, spans, status.st_mtime_ns)
    return spans, error


def _save_index(places: list[Path], spans: np.ndarray, mtime_ns: int) -> None:
    """Writes the index to the first place that takes it; where none does, the next start builds it again."""
    for place in places:
        with contextlib.suppress(OSError):
            with replacing(place, mtime_ns) as file:
                file.write("".join(f"{offset} {size}\n" for offset, size in spans.tolist()).encode())
            return


def _index_places(path: Path, index_dir: Union[str, Path, None]) -> list[Path]:
    """Where the index may be, best first."""
    unique = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]  # shards of two data sets share names
    if index_dir is not None:
        return [Path(index_dir) / f"{path.name}-{unique}{INDEX_SUFFIX}"]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "aocr_torch" / "index"
    places = [path.with_name(path.name + INDEX_SUFFIX), cache / f"{path.name}-{unique}{INDEX_SUFFIX}"]
    # The superuser can write into a folder that is marked read-only, but whoever marked it did not want that.
    is_marked_read_only = not path.parent.stat().st_mode & 0o222
    return places[1:] if is_marked_read_only else places


def _load_index(place: Path, shard: os.stat_result) -> Optional[np.ndarray]:
    """The index, or None if there is none or it is not of this shard as it is now."""
    try:
        if place.stat().st_mtime_ns != shard.st_mtime_ns:
            return None
        spans = np.array(place.read_bytes().split(), dtype=np.int64).reshape(-1, 2)
    except (OSError, ValueError, OverflowError):
        return None
    ends = spans.sum(axis=1)
    is_chain = (
        np.array_equal(spans[:, 0], np.append(0, ends[:-1])[: len(ends)]) and (spans[:, 1] >= FRAMING_BYTES).all()
    )
    return spans if is_chain and (ends[-1] if len(ends) else 0) == shard.st_size else None


def _scan(path: Path) -> tuple[np.ndarray, Optional[RecordError]]:
    """Follows the lengths of the records through the file, as `_index_of` returns it."""
    spans: list[tuple[int, int]] = []
    offset, error = 0, None
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while offset < size and error is None:
            length, reason = _check_header(os.pread(file.fileno(), HEADER_BYTES, offset))
            end = offset + length + FRAMING_BYTES
            if reason and not spans:
                reason += ", or this is not an uncompressed TFRecord file"
            elif not reason and end > size:
                reason = f"the file ends after {size - offset} of {end - offset} bytes: fetch or write it again"
            if reason:
                lost = f"; neither it nor what may follow, {size - offset} bytes in all, can be read"
                error = RecordError.at(path, len(spans), offset, reason + lost)
            else:
                spans.append((offset, end - offset))
                offset = end
    return np.array(spans, dtype=np.int64).reshape(-1, 2), error


def _check_header(header: bytes) -> tuple[int, str]:
    """The length of the record's data, and what is wrong with the header ("" if nothing is)."""
    if len(header) < HEADER_BYTES:
        return 0, f"the file ends after {len(header)} bytes of a record's header: fetch or write it again"
    expected = _crc_bytes(header[:8])
    return struct.unpack("<Q", header[:8])[0], (
        "" if header[8:] == expected else _crc_reason("length", header[8:], expected)
    )


def _crc_reason(part: str, found: bytes, expected: bytes) -> str:
    numbers = (
        f"{name} 0x{int.from_bytes(crc, 'little'):08x}" for name, crc in (("found", found), ("expected", expected))
    )
    return f"crc of the {part} is wrong: {', '.join(numbers)}; the file is damaged, fetch or write it again"


def _crc_bytes(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc(data))
