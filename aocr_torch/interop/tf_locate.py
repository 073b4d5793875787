"""Which checkpoint a path means, and what a file is that is none."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import NamedTuple, Optional

from google.protobuf import text_format

from aocr_torch.files import CheckpointError
from aocr_torch.interop.tf_messages import MESSAGES
from aocr_torch.interop.tf_table import is_table

_SHARD = re.compile(r"(.*)\.data-\d{5}-of-\d{5}$")

# First bytes of a file -> what it is, what to do about it.
_SIGNATURES = [
    (b"PK\x03\x04", "a zip archive, as PyTorch writes; pass a PyTorch file to train.py or eval.py as it is"),
    (b"\x80\x02", "a pickle, as old PyTorch versions write; pass a PyTorch file to train.py or eval.py as it is"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first (tar xzf FILE) and pass the .ckpt inside"),
    (b"\x89HDF", "an HDF5 file of Keras; save the model with tf.compat.v1.train.Saver"),
]


class Location(NamedTuple):
    """format: 'V1' or 'V2'; path: the V1 file or the V2 prefix; files: V1 tables, or the V2 index."""

    format: str
    path: Path
    files: tuple[Path, ...]


def locate(path) -> Location:
    """The checkpoint that a path means; CheckpointError says what else it is.

    path: a V1 file, a V2 prefix, its `.index`, `.meta` or a data shard, a folder with the state file `checkpoint`, or
    the state file itself.
    """
    path = Path(path)
    if path.is_dir():
        return _in_folder(path)
    if path.name == "checkpoint" and path.is_file():
        return _in_folder(path.parent)
    shard = _SHARD.match(path.name)
    if shard:
        path = path.with_name(shard.group(1))
    elif path.suffix in (".index", ".meta"):
        path = path.with_suffix("")
    location = _find(path)
    if location is None:
        raise _missing(path)
    return location


def _find(path: Path) -> Optional[Location]:
    """The checkpoint of this very prefix or file name, None where there is nothing of that name."""
    index = path.with_name(path.name + ".index")
    if index.is_file():
        if not is_table(index):
            raise _not_a_checkpoint(index)
        return Location("V2", path, (index,))
    if path.is_file():
        if not is_table(path):
            raise _not_a_checkpoint(path)
        return Location("V1", path, (path,))
    parts = sorted(path.parent.glob(f"{_escape(path.name)}-?????-of-?????"))
    return _sharded_v1(path, parts) if parts else None


def _escape(name: str) -> str:
    """A file name as a glob pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _sharded_v1(path: Path, parts: list[Path]) -> Location:
    """A V1 checkpoint in several files, `<path>-00000-of-00002` and so on."""
    count = int(parts[0].name[-5:]) if parts[0].name[-5:].isdigit() else 0
    expected = [path.with_name(f"{path.name}-{number:05}-of-{count:05}") for number in range(len(parts))]
    if count != len(parts) or parts != expected:
        names = ", ".join(part.name for part in parts)
        raise CheckpointError(f"{path}: the shards {names} do not make one whole checkpoint; copy all of them, alone")
    return Location("V1", path, tuple(parts))


def _in_folder(folder: Path) -> Location:
    """The newest checkpoint of a training folder, as its state file names it."""
    for name in ("saved_model.pb", "saved_model.pbtxt"):
        if (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: a SavedModel, which is a graph and not a training checkpoint; restore its variables in "
                f"TensorFlow and save them with tf.compat.v1.train.Saver, or try {folder}/variables/variables"
            )
    state_file = folder / "checkpoint"
    if not state_file.is_file():
        raise CheckpointError(
            f"{folder}: a folder without the state file `checkpoint`; pass one checkpoint of it{_choice(folder)}"
        )
    state = MESSAGES["CheckpointState"]()
    try:
        text_format.Parse(state_file.read_bytes(), state, allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError):
        state.Clear()
    if not state.model_checkpoint_path:
        raise CheckpointError(
            f"{state_file}: names no model_checkpoint_path; pass one checkpoint of the folder{_choice(folder)}"
        )
    # Folders are copied and the state file may hold an absolute path of the machine that wrote it: what lies beside the
    # state file comes first.
    named = Path(state.model_checkpoint_path)
    for target in (folder / named.name, folder / named):
        location = None if target.is_dir() else _find(target)
        if location is not None:
            return location
    raise CheckpointError(f"{state_file}: names {named}, which is not there{_choice(folder)}")


def _candidates(folder: Path) -> list[str]:
    """The checkpoints of a folder, by the names to pass."""
    return sorted(path.stem for path in folder.glob("*.index")) + sorted(path.name for path in folder.glob("*.ckpt"))


def _choice(folder: Path) -> str:
    names = _candidates(folder)
    return f", such as {folder / names[-1]}" if names else ", though none is in it"


def _missing(path: Path) -> CheckpointError:
    near = difflib.get_close_matches(path.name, _candidates(path.parent), n=1, cutoff=0)
    hint = f"; the nearest is {path.parent / near[0]}" if near else ""
    lost = path.with_name(path.name + ".data-00000-of-00001")
    if lost.exists():
        hint = f"; {lost.name} is there, copy its {path.name}.index as well"
    return CheckpointError(f"{path}: no such checkpoint, neither a file nor a prefix with an .index{hint}")


def _not_a_checkpoint(path: Path) -> CheckpointError:
    """Why a file without a table's footer is none."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return CheckpointError(f"{path}: the file is empty; copy it again")
    if path.name == "saved_model.pb":
        return CheckpointError(f"{path}: the graph of a SavedModel; pass a training checkpoint instead")
    if start[257:262] == b"ustar":
        return CheckpointError(f"{path}: a tar archive; unpack it first (tar xf FILE) and pass the .ckpt inside")
    for signature, what in _SIGNATURES:
        if start.startswith(signature):
            return CheckpointError(f"{path}: {what}")
    return CheckpointError(
        f"{path}: not a TensorFlow checkpoint: its last 8 bytes are not the end of a table; if it ought to be one, it "
        "is truncated, copy it again"
    )
