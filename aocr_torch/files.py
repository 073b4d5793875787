"""What the kinds of files share: a checkpoint's format and error, TensorFlow's CRC, and none is seen half written.

And where the model lies that comes with the package.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Optional

import crc32c

CHECKPOINT_FORMAT = "aocr_torch/1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, told in one line: the file, what was found, what to do."""


def shipped_weights() -> Path:
    """The file of the model that comes with the package: weights/ lies inside it when installed, beside it in a clone.

    Raises:
        CheckpointError: there is none.
    """
    package = Path(__file__).resolve().parent
    found = [path for folder in (package, package.parent) if (path := folder / "weights" / "synthetic.pth").is_file()]
    if not found:
        raise CheckpointError(
            f"{package.parent / 'weights' / 'synthetic.pth'}: no such file: name a checkpoint instead"
        )
    return found[0]


def masked_crc(data) -> int:
    """CRC-32C of a bytes-like object, rotated and offset as in TensorFlow's files."""
    crc = crc32c.crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@contextlib.contextmanager
def replacing(path: Path, mtime_ns: Optional[int] = None) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is whole, so that nobody sees half of it.

    Its name until then starts with a dot, which no pattern for shards matches, and is random, so that
    several processes on several machines may write the same file at once.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(unfinished, "wb") as file:
            yield file
        if mtime_ns is not None:
            os.utime(unfinished, ns=(mtime_ns, mtime_ns))
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
