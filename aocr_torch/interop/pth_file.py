"""Writes what `torch.save` would, without torch: importing a CUDA build of it takes more memory than a conversion may.

The format is a zip archive without compression: archive/data.pkl is a pickle of protocol 2, in which a tensor is a call
of torch._utils._rebuild_tensor_v2, and archive/data/0, 1, ... are the bytes that those calls refer to.
"""

from __future__ import annotations

import pickle
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np

from aocr_torch.files import replacing

_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}
_ALIGNMENT = 64  # of tensors in the file, as torch.save has it, for those who map it into memory
_LOCAL_HEADER_SIZE = 30


def save(path: Union[str, Path], state: dict[str, Any]) -> None:
    """Writes a file that torch.load(path, weights_only=True) reads, and renames it into place when it is whole.

    state: dicts, lists, strings, ints and bools around numpy arrays of float32 or int64, which become tensors.
    """
    path = Path(path)
    arrays: list[np.ndarray] = []
    body = b"".join(_pickled(state, arrays))
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, file, "data.pkl", pickle.PROTO + b"\2" + body + pickle.STOP)
        _add(archive, file, "byteorder", sys.byteorder.encode())
        for number, array in enumerate(arrays):
            _add(archive, file, f"data/{number}", array.tobytes())
        _add(archive, file, "version", b"3\n")


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes) -> None:
    """Adds an entry whose data begin at a multiple of _ALIGNMENT: an extra field between header and data pads."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    unpadded = file.tell() + _LOCAL_HEADER_SIZE + len(entry.filename) + 4
    padding = -unpadded % _ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(entry, data)


def _pickled(value: Any, arrays: list[np.ndarray]) -> Iterator[bytes]:
    """The opcodes that leave `value` on the unpickler's stack; its arrays are appended to `arrays`."""
    if isinstance(value, bool):
        yield pickle.NEWTRUE if value else pickle.NEWFALSE
    elif isinstance(value, int):
        yield pickle.LONG1 + b"\x08" + struct.pack("<q", value)
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        yield pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    elif isinstance(value, dict):
        yield pickle.EMPTY_DICT + pickle.MARK
        for pair in value.items():
            for part in pair:
                yield from _pickled(part, arrays)
        yield pickle.SETITEMS
    elif isinstance(value, list):
        yield pickle.EMPTY_LIST + pickle.MARK
        for part in value:
            yield from _pickled(part, arrays)
        yield pickle.APPENDS
    elif isinstance(value, tuple):
        yield pickle.MARK
        for part in value:
            yield from _pickled(part, arrays)
        yield pickle.TUPLE
    elif isinstance(value, np.ndarray):
        yield from _tensor(value, arrays)
    else:
        raise TypeError(f"found {type(value).__name__}, which a checkpoint does not hold")


def _tensor(array: np.ndarray, arrays: list[np.ndarray]) -> Iterator[bytes]:
    """_rebuild_tensor_v2((storage), offset 0, shape, strides in elements, requires_grad False, no hooks)."""
    if array.dtype.name not in _STORAGES:
        raise TypeError(f"found an array of {array.dtype}, expected one of {', '.join(_STORAGES)}")
    strides = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
    yield _global("torch._utils", "_rebuild_tensor_v2") + pickle.MARK
    yield pickle.MARK
    yield from _pickled("storage", arrays)
    yield _global("torch", _STORAGES[array.dtype.name])
    for part in (str(len(arrays)), "cpu", array.size):
        yield from _pickled(part, arrays)
    yield pickle.TUPLE + pickle.BINPERSID
    arrays.append(array)
    for part in (0, array.shape, strides, False):
        yield from _pickled(part, arrays)
    yield _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    yield pickle.TUPLE + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
