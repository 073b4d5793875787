"""What the kinds of files share: a checkpoint's format and error, TensorFlow's CRC, no file or folder is seen half
written.

And where the model lies that comes with the package.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
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
def _naming(path: Path) -> Iterator[None]:
    """An OSError is that of `path`, of which the user knows."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """The name under which to write what takes the place of `path` when it is whole; its folder is made.

    It starts with a dot, which no pattern for shards matches, and is random, so that several processes on several
    machines may write the same file at once. A link stays one: what it points to is replaced.

    Raises:
        OSError: `path` is a device or another special file, or nothing can be written there.
    """
    path = path.resolve()
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with _naming(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "is no regular file that could be replaced")
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
    try:
        yield unfinished
        with _naming(path):
            os.replace(unfinished, path)
    except OSError as error:
        if error.errno and error.filename is None:  # a full disk
            error.filename = str(path)
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Raises OSError where `replacing` could not write `path`, before hours are spent on what it would hold."""
    with contextlib.suppress(_NotYetError), replacing_path(path):
        raise _NotYetError


class _NotYetError(Exception):
    pass


@contextlib.contextmanager
def replacing(path: Path, mtime_ns: Optional[int] = None) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is whole, so that nobody sees half of it."""
    with replacing_path(path) as unfinished:
        with open(unfinished, "wb") as file:
            yield file
        if mtime_ns is not None:
            os.utime(unfinished, ns=(mtime_ns, mtime_ns))


def require_replaceable(folder: Path) -> None:
    """Raises OSError where `folder` is a mount point, of which only the content can be replaced."""
    if os.path.ismount(folder):
        raise OSError(f"{folder} is a mount point and cannot be replaced as a whole: name a folder inside it")


def why_not_replaced(folder: Path, own: Sequence[str]) -> Optional[str]:
    """Why the data set in `folder` must stay: something lies in it, hidden files aside, that matches no pattern."""
    for name in sorted(os.listdir(folder)):
        if not name.startswith(".") and not any(fnmatch.fnmatchcase(name, pattern) for pattern in own):
            return f"{folder} is replaced as a whole, and {name} in it is none of its own: move that elsewhere"
    return None


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A folder that takes the place of `folder` when it is whole; where that fails, `folder` stays as it was.

    Until then it lies in a hidden one beside it.

    Raises:
        OSError: see `require_replaceable`.
    """
    folder = folder.resolve()
    require_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _naming(folder):
        workplace = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    unfinished, replaced = workplace / "written", workplace / "replaced"
    unfinished.mkdir()
    try:
        yield unfinished
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
    finally:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        shutil.rmtree(workplace, ignore_errors=True)
