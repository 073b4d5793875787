"""TensorFlow's sorted string table, the container of V1 checkpoints and of the index of V2 bundles.

The format is LevelDB's: blocks of (key, value) entries with prefix-compressed keys, an index block that holds the last
key and the place of every data block, and a footer of 48 bytes with the places of the index and metaindex blocks. Each
block is followed by a compression byte and a masked CRC-32C. Every block that is read is checked.
"""

from __future__ import annotations

import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Optional

from aocr_torch.files import CheckpointError, masked_crc

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER_SIZE = 48
_TRAILER_SIZE = 5  # one byte of compression type, four of CRC
_BLOCK_SIZE = 4096  # what the writer aims at; readers take any size
_RESTART_INTERVAL = 16
_LONGEST_KEY = 16384  # prefix compression can make few bytes stand for many; no variable has such a name


class MappedFile:
    """A file mapped into memory: `read` gives a view, so only the pages that are touched are loaded.

    They count as this process's memory until `release`; views stay valid after it.
    """

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else None
        self._view: Optional[memoryview] = memoryview(self._mapping or b"")

    def read(self, offset: int, size: int, what: str) -> memoryview:
        if self._view is None:
            raise CheckpointError(f"{self.path}: the checkpoint was closed; open it again to read {what}")
        if offset < 0 or size < 0 or offset + size > self.size:
            raise CheckpointError(
                f"{self.path}: {what} should lie at bytes {offset} to {offset + size}, but the file has {self.size}; "
                "it is truncated or damaged, copy it again"
            )
        return self._view[offset : offset + size]

    def release(self) -> None:
        """Gives the pages read so far back to the system, where it takes such advice."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Lets go of the mapping; it goes away with the last view of it."""
        self._view = self._mapping = None


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """(value, position after it) of a base-128 number of at most 64 bits; IndexError or ValueError if it is broken."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than 64 bits")


def write_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _handle(data: memoryview, position: int = 0) -> tuple[int, int, int]:
    """(offset, size, position after it) of a block handle."""
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return offset, size, position


def is_table(path: Path) -> bool:
    """Whether the file ends as a table does."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size - len(MAGIC), 0))
        return size >= _FOOTER_SIZE and file.read() == MAGIC


class Table:
    """Reads a table. Errors are CheckpointError.

    Opening reads the footer, the metaindex and the index; `get` then reads the one block that can hold the key.
    """

    def __init__(self, path: Path):
        self.file = MappedFile(path)
        if self.file.size < _FOOTER_SIZE:
            raise CheckpointError(
                f"{path}: {self.file.size} bytes are too few for a TensorFlow checkpoint; copy it again"
            )
        footer = self.file.read(self.file.size - _FOOTER_SIZE, _FOOTER_SIZE, "the footer")
        if footer[-len(MAGIC) :] != MAGIC:
            raise CheckpointError(f"{path}: the last 8 bytes are not those of a TensorFlow checkpoint; copy it again")
        try:
            meta_offset, meta_size, position = _handle(footer)
            index_offset, index_size, _ = _handle(footer, position)
        except ValueError as error:
            raise self._damaged(f"the footer has {error}") from None
        for _ in self._entries(meta_offset, meta_size, "the metaindex block"):
            pass
        self._last_keys: list[bytes] = []
        self._handles: list[tuple[int, int]] = []
        for key, value in self._entries(index_offset, index_size, "the index block"):
            try:
                offset, size, _ = _handle(value)
            except (IndexError, ValueError):
                raise self._damaged("an entry of the index block is no block handle") from None
            self._last_keys.append(key)
            self._handles.append((offset, size))

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file.path}: {what}; the file is damaged, copy it again")

    def _entries(self, offset: int, size: int, what: str) -> Iterator[tuple[bytes, memoryview]]:
        """The entries of one block, its CRC checked first and the order of its keys on the way."""
        data = self.file.read(offset, size + _TRAILER_SIZE, what)
        stored = struct.unpack("<I", data[size + 1 :])[0]
        computed = masked_crc(data[: size + 1])
        if stored != computed:
            raise self._damaged(f"crc of {what} at byte {offset} is {computed:#010x}, expected {stored:#010x}")
        if data[size] == 1:
            raise CheckpointError(
                f"{self.file.path}: {what} is compressed with snappy, which TensorFlow's savers never write and this "
                "reader does not decode; save the checkpoint again with tf.compat.v1.train.Saver"
            )
        if data[size] != 0 or size < 4:
            raise self._damaged(f"{what} at byte {offset} has compression type {data[size]} and {size} bytes")
        end = size - 4 * (1 + struct.unpack("<I", data[size - 4 : size])[0])
        position, key, is_first = 0, b"", True
        while position < end:
            try:
                shared, position = read_varint(data, position)
                unshared, position = read_varint(data, position)
                length, position = read_varint(data, position)
            except (IndexError, ValueError):
                raise self._damaged(f"{what} at byte {offset} has an entry without lengths") from None
            if shared > len(key) or shared + unshared > _LONGEST_KEY or position + unshared + length > end:
                raise self._damaged(f"{what} at byte {offset} has an entry that does not fit into it")
            previous, key = key, key[:shared] + bytes(data[position : position + unshared])
            if key <= previous and not is_first:
                raise self._damaged(f"the keys of {what} at byte {offset} are out of order")
            position += unshared
            yield key, data[position : position + length]
            position += length
            is_first = False
        if position != end:
            raise self._damaged(f"{what} at byte {offset} ends in the middle of an entry")

    def _data_block(self, number: int) -> Iterator[tuple[bytes, memoryview]]:
        """The entries of one data block, which must lie in the range of keys that the index gives it."""
        last, before = self._last_keys[number], self._last_keys[number - 1] if number else None
        for key, value in self._entries(*self._handles[number], f"data block {number}"):
            if key > last or (before is not None and key <= before):
                raise self._damaged(f"data block {number} holds keys that the index places elsewhere")
            yield key, value

    def get(self, key: bytes) -> Optional[memoryview]:
        """The value of a key, None where the table has none."""
        number = bisect_left(self._last_keys, key)
        if number == len(self._last_keys):
            return None
        found = None
        for candidate, value in self._data_block(number):
            if candidate == key:
                found = value
        return found

    def items(self) -> Iterator[tuple[bytes, memoryview]]:
        """All entries in the order of their keys."""
        for number in range(len(self._handles)):
            yield from self._data_block(number)

    def close(self) -> None:
        self.file.close()


def _pack_block(entries: list[tuple[bytes, bytes]], restart_interval: int) -> bytes:
    """A block with its trailer."""
    out, restarts, previous = bytearray(), [0], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % restart_interval:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        elif number:
            restarts.append(len(out))
        out += write_varint(shared) + write_varint(len(key) - shared) + write_varint(len(value)) + key[shared:] + value
        previous = key
    out += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts)) + b"\0"
    return bytes(out) + struct.pack("<I", masked_crc(bytes(out)))


def pack_table(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The bytes of a table. entries: (key, value) in ascending order of the keys."""
    out, index, block = bytearray(), [], []

    def finish_block() -> None:
        packed = _pack_block(block, _RESTART_INTERVAL)
        index.append((block[-1][0], write_varint(len(out)) + write_varint(len(packed) - _TRAILER_SIZE)))
        out.extend(packed)
        block.clear()

    for key, value in entries:
        block.append((key, value))
        if sum(len(key) + len(value) for key, value in block) >= _BLOCK_SIZE:
            finish_block()
    if block:
        finish_block()
    footer = b""
    for packed in (_pack_block([], 1), _pack_block(index, 1)):  # metaindex, index
        footer += write_varint(len(out)) + write_varint(len(packed) - _TRAILER_SIZE)
        out.extend(packed)
    return bytes(out) + footer.ljust(_FOOTER_SIZE - len(MAGIC), b"\0") + MAGIC
