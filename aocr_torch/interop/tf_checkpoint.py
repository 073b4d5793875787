"""TensorFlow's checkpoints without TensorFlow: V1 files and V2 bundles are read, V2 bundles are written.

V1 is one table whose first entry lists the variables and whose other entries hold one slice of a variable each, as a
protocol buffer. V2 is a table of entries (`.index`) that say where in the data shards the raw bytes of each variable or
slice lie. Nothing that fails its CRC is ever returned.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np
from google.protobuf.message import DecodeError

from aocr_torch.files import CheckpointError, masked_crc, replacing
from aocr_torch.interop.tf_locate import Location, locate
from aocr_torch.interop.tf_messages import MESSAGES, Extents, extents_of, slice_key
from aocr_torch.interop.tf_table import MappedFile, Table, pack_table

# Number in the file -> name, as in TensorFlow; those that are not in _STORED_AS are listed but not read.
_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64",
    9: "int64", 10: "bool", 14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 20: "resource",
    21: "variant", 22: "uint32", 23: "uint64",
}  # fmt: skip
_STORED_AS = {  # name -> numpy dtype in the file, field of the V1 protocol buffer
    "float32": ("<f4", "float_val"),
    "float64": ("<f8", "double_val"),
    "int32": ("<i4", "int_val"),
    "int64": ("<i8", "int64_val"),
    "bool": ("?", "bool_val"),
    "float16": ("<f2", "half_val"),
    "bfloat16": ("<u2", None),  # V1 savers cannot write it
}
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class _Variable(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    slices: tuple[Extents, ...]  # empty: stored whole


class CheckpointReader:
    """What both formats share. Use `open_checkpoint`; works as a context manager.

    variables: name -> (dtype name as TensorFlow says it, shape), sorted by name.
    path: the V1 file or the V2 prefix. format: 'V1' or 'V2'.
    """

    format: str

    def __init__(self, location: Location):
        self.path = location.path
        self.files = list(location.files)
        self._mapped: list[MappedFile] = []
        self._variables: dict[str, _Variable] = {}

    @property
    def variables(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {name: (v.dtype, v.shape) for name, v in sorted(self._variables.items())}

    def tensor(self, name: str) -> np.ndarray:
        """The value of a variable, in numpy's dtype of the same name; bfloat16 is widened to float32 (exact)."""
        variable = self._variables.get(name)
        if variable is None:
            near = difflib.get_close_matches(name, self._variables, n=1, cutoff=0)
            raise CheckpointError(f"{self.path}: has no variable {name}{f', the nearest is {near[0]}' if near else ''}")
        if variable.dtype not in _STORED_AS:
            raise CheckpointError(f"{self.path}: {name} is of type {variable.dtype}, which this reader does not decode")
        if variable.slices:
            value = self._assemble(name, variable)
        else:
            value = self._read(name, None, variable.dtype, variable.shape)
        if variable.dtype == "bfloat16":
            value = (value.astype(np.uint32) << 16).view(np.float32)
        else:
            value = value.astype(value.dtype.newbyteorder("="), copy=not value.flags.writeable)
        for file in self._mapped:
            file.release()
        return value

    def _assemble(self, name: str, variable: _Variable) -> np.ndarray:
        """A variable from its slices, which must cover it exactly once."""
        boxes = [self._box(name, variable.shape, extents) for extents in variable.slices]
        total = math.prod(variable.shape)
        if sum(math.prod(stop - start for start, stop in box) for box in boxes) != total:
            raise self._damaged(name, f"its {len(boxes)} slices do not cover its shape {variable.shape}")
        whole = tuple((0, size) for size in variable.shape)
        if boxes == [whole]:
            return self._read(name, variable.slices[0], variable.dtype, variable.shape)
        if self._smallest_size(variable.dtype, total) > self._bytes_on_disk():
            raise self._damaged(name, f"its shape {variable.shape} is larger than the file")
        value = np.empty(variable.shape, _STORED_AS[variable.dtype][0])
        is_filled = np.zeros(variable.shape, bool)
        for extents, box in zip(variable.slices, boxes):
            place = tuple(slice(start, stop) for start, stop in box)
            value[place] = self._read(name, extents, variable.dtype, tuple(stop - start for start, stop in box))
            is_filled[place] = True
        if not is_filled.all():
            raise self._damaged(name, "its slices overlap")
        return value

    def _box(self, name: str, shape: tuple[int, ...], extents: Extents) -> tuple[tuple[int, int], ...]:
        """(start, stop) for each dimension of a slice."""
        if len(extents) != len(shape):
            raise self._damaged(name, f"a slice of rank {len(extents)} in a variable of shape {shape}")
        box = []
        for (start, length), size in zip(extents, shape):
            stop = size if length is None else start + length
            if not 0 <= start <= stop <= size or (length is None and start):
                raise self._damaged(name, f"a slice from {start} to {stop} in a dimension of {size}")
            box.append((start, stop))
        return tuple(box)

    def _damaged(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {name}: {what}; the file is damaged, copy it again")

    def _declare(self, name: str, dtype: int, shape, slices) -> _Variable:
        """A variable as the file describes it, checked as far as the description goes."""
        sizes = tuple(dim.size for dim in shape.dim)
        # 32 dimensions is what every numpy takes; a product this large fits no machine, and numpy would refuse it.
        if shape.unknown_rank or len(sizes) > 32 or any(size < 0 for size in sizes):
            raise self._damaged(name, f"its shape {sizes[:33]} is none")
        if math.prod(max(size, 1) for size in sizes) >= 1 << 48:
            raise self._damaged(name, f"its shape {sizes} is absurd")
        return _Variable(_DTYPES.get(dtype, f"number {dtype}"), sizes, tuple(extents_of(s) for s in slices))

    def _parse(self, message: str, data: memoryview, what: str):
        try:
            return MESSAGES[message].FromString(bytes(data))
        except DecodeError:
            raise self._damaged(what, f"its entry is no {message}") from None

    def _text(self, name: bytes) -> str:
        try:
            return name.decode()
        except UnicodeDecodeError:
            raise self._damaged(repr(name[:80]), "this name is not UTF-8") from None

    def _bytes_on_disk(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def _smallest_size(self, dtype: str, count: int) -> int:
        raise NotImplementedError

    def _read(self, name: str, extents: Optional[Extents], dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """One stored piece; extents None: the variable is stored whole."""
        raise NotImplementedError

    def close(self) -> None:
        for file in self._mapped:
            file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _V1Reader(CheckpointReader):
    format = "V1"

    def __init__(self, location: Location):
        super().__init__(location)
        self._tables = [Table(file) for file in location.files]
        self._mapped = [table.file for table in self._tables]
        for table in self._tables:
            entry = table.get(b"")
            message = None if entry is None else self._parse("SavedTensorSlices", entry, "the list of variables")
            if message is None or not message.HasField("meta"):
                raise CheckpointError(
                    f"{table.file.path}: a table without a list of variables; if this is the index of a V2 bundle, "
                    "give it back its name ending in .index, beside its .data files"
                )
            for tensor in message.meta.tensor:
                self._add(self._text(tensor.name), tensor)

    def _add(self, name: str, tensor) -> None:
        variable = self._declare(name, tensor.type, tensor.shape, tensor.slice)
        if not variable.slices:
            raise self._damaged(name, "it has no slices")
        known = self._variables.get(name)  # from another shard
        if known is not None:
            if known[:2] != variable[:2]:
                raise self._damaged(name, "its shards disagree on type or shape")
            variable = variable._replace(slices=known.slices + variable.slices)
        self._variables[name] = variable

    def _smallest_size(self, dtype: str, count: int) -> int:
        return count  # numbers are at least one byte each; floats more

    def _read(self, name: str, extents: Optional[Extents], dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        stored_as, field = _STORED_AS[dtype]
        if field is None:
            raise CheckpointError(f"{self.path}: {name} is of type {dtype}, which V1 checkpoints cannot hold")
        key = slice_key(name, extents)
        entries = (table.get(key) for table in self._tables)
        entry = next((entry for entry in entries if entry is not None), None)
        if entry is None:
            raise self._damaged(name, "it is listed, but its values are not there")
        saved = self._parse("SavedTensorSlices", entry, name).data
        if self._text(saved.name) != name or extents_of(saved.slice) != extents:
            raise self._damaged(name, "under its key lies something else")
        values = getattr(saved.data, field)
        if isinstance(values, bytes):
            count, remainder = divmod(len(values), np.dtype(stored_as).itemsize)
        else:
            count, remainder = len(values), 0
        if remainder or count != math.prod(shape):
            raise self._damaged(name, f"it holds {count} values, expected the shape {shape}")
        if isinstance(values, bytes):
            return np.frombuffer(values, stored_as).reshape(shape)
        if dtype != "float16":
            return np.fromiter(values, stored_as, count).reshape(shape)
        bits = np.fromiter(values, np.int32, count)
        if count and not 0 <= bits.min() <= bits.max() <= 0xFFFF:
            raise self._damaged(name, "a half-precision number of more than 16 bits")
        return bits.astype("<u2").view("<f2").reshape(shape)


class _V2Reader(CheckpointReader):
    format = "V2"

    def __init__(self, location: Location):
        super().__init__(location)
        index = Table(location.files[0])
        self._entries: dict[bytes, object] = {}
        header = None
        for key, value in index.items():
            if key == b"":
                header = self._parse("BundleHeader", value, "the header")
            else:
                self._entries[key] = self._parse("BundleEntry", value, repr(key[:80]))
        index.close()
        if header is None:
            raise CheckpointError(f"{location.files[0]}: a table without the header of a V2 bundle; copy it again")
        if header.endianness:
            raise CheckpointError(f"{self.path}: written on a big-endian machine, which this reader does not decode")
        for key, entry in self._entries.items():
            if not key.startswith(b"\0"):  # those are slices, filed by slice_key
                name = self._text(key)
                self._variables[name] = self._declare(name, entry.dtype, entry.shape, entry.slices)
        if _OBJECT_GRAPH in self._variables:
            raise CheckpointError(
                f"{self.path}: a TF2 object-based checkpoint (tf.train.Checkpoint, Keras), whose names are Python "
                "attributes and not variables; restore it in TensorFlow and save it with tf.compat.v1.train.Saver"
            )
        self._shards = {number: self._map_shard(number, header.num_shards) for number in self._shards_in_use()}
        self._mapped = list(self._shards.values())

    def _shards_in_use(self) -> list[int]:
        return sorted({entry.shard_id for entry in self._entries.values() if not entry.slices})

    def _map_shard(self, number: int, count: int) -> MappedFile:
        path = self.path.with_name(f"{self.path.name}.data-{number:05}-of-{count:05}")
        if not 0 <= number < count:
            raise self._damaged("the index", f"it refers to shard {number} of {count}")
        if not path.is_file():
            raise CheckpointError(f"{path}: this shard of the checkpoint is missing; copy all {count} of them")
        self.files.append(path)
        return MappedFile(path)

    def _smallest_size(self, dtype: str, count: int) -> int:
        return count * np.dtype(_STORED_AS[dtype][0]).itemsize

    def _read(self, name: str, extents: Optional[Extents], dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        entry = self._entries.get(name.encode() if extents is None else slice_key(name, extents))
        if entry is None:
            raise self._damaged(name, "a slice is listed, but its entry is not there")
        if _DTYPES.get(entry.dtype) != dtype or tuple(dim.size for dim in entry.shape.dim) != shape or entry.slices:
            raise self._damaged(name, "a slice disagrees with it on type or shape")
        if entry.size != self._smallest_size(dtype, math.prod(shape)):
            raise self._damaged(name, f"it has {entry.size} bytes, expected {dtype} of shape {shape}")
        shard = self._shards[entry.shard_id]
        data = shard.read(entry.offset, entry.size, name)
        computed = masked_crc(data)
        if computed != entry.crc32c:
            raise CheckpointError(
                f"{shard.path}: crc of {name} at byte {entry.offset} is {computed:#010x}, expected "
                f"{entry.crc32c:#010x}; the file is damaged, copy it again"
            )
        return np.frombuffer(data, _STORED_AS[dtype][0]).reshape(shape)


def open_checkpoint(path: Union[str, os.PathLike]) -> CheckpointReader:
    """Opens a V1 file or a V2 bundle, given in any form that `locate` takes. Errors are CheckpointError.

    Opening reads the lists of variables alone; `tensor` then touches the bytes of that tensor.
    """
    location = locate(path)
    return (_V1Reader if location.format == "V1" else _V2Reader)(location)


def write_checkpoint(prefix: Union[str, os.PathLike], variables: Mapping[str, np.ndarray]) -> list[Path]:
    """Writes a V2 bundle of one shard; returns its two files. Each is written beside its place and renamed into it.

    variables: name -> array of float32, float64, float16, int32, int64 or bool.
    """
    prefix = Path(prefix)
    numbers = {name: number for number, name in _DTYPES.items()}
    header = MESSAGES["BundleHeader"](num_shards=1)
    header.version.producer = 1
    entries = [(b"", header.SerializeToString())]
    data_path = prefix.with_name(prefix.name + ".data-00000-of-00001")
    index_path = prefix.with_name(prefix.name + ".index")
    with replacing(index_path) as index, replacing(data_path) as file:  # both are whole before the first is moved
        for name in sorted(variables, key=str.encode):
            value = np.asarray(variables[name])
            if value.dtype.name not in _STORED_AS or not name:
                raise CheckpointError(f"{prefix}: {name!r} of type {value.dtype} cannot be written")
            data = value.astype(_STORED_AS[value.dtype.name][0], copy=False).tobytes()
            entry = MESSAGES["BundleEntry"](dtype=numbers[value.dtype.name], crc32c=masked_crc(data))
            entry.shape.SetInParent()
            for size in value.shape:
                entry.shape.dim.add(size=size)
            if file.tell():
                entry.offset = file.tell()
            if data:
                entry.size = len(data)
            entries.append((name.encode(), entry.SerializeToString()))
            file.write(data)
        index.write(pack_table(entries))
    return [data_path, index_path]
