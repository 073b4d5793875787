"""The protocol buffers inside TensorFlow's checkpoints, declared at run time, and the keys of their slices.

Only the fields that carry something are declared; protobuf skips the others. A packed `repeated float` has the same
bytes on the wire as a `bytes` field, and is declared as one: numpy then takes it as it is, instead of number by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "aocr_torch.tf"

# message -> "number name type" of each field; `*` after the type means repeated.
_SCHEMA = {
    "Dim": ["1 size int64"],
    "Shape": ["2 dim Dim*", "3 unknown_rank bool"],
    "Extent": ["1 start int64", "2 length int64"],
    "Slice": ["1 extent Extent*"],
    "Versions": ["1 producer int32", "2 min_consumer int32"],
    # V2: the entry under the empty key, and the entry of a variable or of one of its slices.
    "BundleHeader": ["1 num_shards int32", "2 endianness int32", "3 version Versions"],
    "BundleEntry": [
        "1 dtype int32",
        "2 shape Shape",
        "3 shard_id int32",
        "4 offset int64",
        "5 size int64",
        "6 crc32c fixed32",
        "7 slices Slice*",
    ],
    # V1: the entry under the empty key holds `meta`, every other entry holds `data`.
    "SavedSliceMeta": ["1 name bytes", "2 shape Shape", "3 type int32", "4 slice Slice*"],
    "SavedTensorSliceMeta": ["1 tensor SavedSliceMeta*"],
    "TensorData": [
        "5 float_val bytes",
        "6 double_val bytes",
        "7 int_val int32*",
        "10 int64_val int64*",
        "11 bool_val bool*",
        "13 half_val int32*",
    ],
    "SavedSlice": ["1 name bytes", "2 slice Slice", "3 data TensorData"],
    "SavedTensorSlices": ["1 meta SavedTensorSliceMeta", "2 data SavedSlice"],
    # The text file `checkpoint` of a training folder.
    "CheckpointState": ["1 model_checkpoint_path string"],
}


def _declare() -> dict:
    """Message name -> class, in a pool of our own so that an installed TensorFlow is not in the way."""
    file = descriptor_pb2.FileDescriptorProto(name="aocr_torch/tf_checkpoint.proto", package=_PACKAGE, syntax="proto2")
    for message_name, fields in _SCHEMA.items():
        message = file.message_type.add(name=message_name)
        for line in fields:
            number, name, kind = line.split()
            field = message.field.add(name=name, number=int(number))
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in _SCHEMA:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    if hasattr(message_factory, "GetMessageClass"):
        to_class = message_factory.GetMessageClass
    else:  # protobuf 4.21
        to_class = message_factory.MessageFactory(pool).GetPrototype
    return {name: to_class(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _SCHEMA}


MESSAGES = _declare()

# One (start, length) per dimension; length None: all of it. The empty tuple is the slice of a scalar.
Extents = tuple[tuple[int, Optional[int]], ...]


def extents_of(message) -> Extents:
    """A Slice message as (start, length) pairs."""
    return tuple((e.start, e.length if e.HasField("length") else None) for e in message.extent)


def _ordered_signed(value: int) -> bytes:
    """TensorFlow's OrderedCode of a signed number: as many leading ones as bytes, then the number, big endian."""
    magnitude = ~value if value < 0 else value
    size = 1
    while magnitude >> (7 * size - 1):
        size += 1
    header = ((1 << size) - 1) << (7 * size)
    return ((value & ((1 << (8 * size)) - 1)) ^ header).to_bytes(size, "big")


def slice_key(name: str, extents: Sequence[tuple[int, Optional[int]]]) -> bytes:
    """The key under which a slice of a variable is filed, in both formats: OrderedCode of (0, name, rank, extents)."""
    escaped = name.encode().replace(b"\0", b"\0\xff") + b"\0\1"  # 0xff, escaped too in general, does not occur in UTF-8
    rank = len(extents)
    out = b"\0" + escaped + (bytes([1, rank]) if rank else b"\0")
    for start, length in extents:
        out += _ordered_signed(start) + _ordered_signed(-1 if length is None else length)
    return out
