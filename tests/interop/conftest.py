"""Small checkpoints in the formats that only TensorFlow writes: V1, partitioned variables, several shards."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest

from aocr_torch.files import masked_crc
from aocr_torch.interop.tf_messages import MESSAGES, slice_key
from aocr_torch.interop.tf_table import Table, pack_table

NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bool": 10, "bfloat16": 14, "float16": 19, "string": 7}
V1_FIELDS = {"float64": "double_val", "int32": "int_val", "int64": "int64_val", "bool": "bool_val"}


def fill_slice(message, extents):
    for start, length in extents:
        extent = message.extent.add()
        if length is not None:
            if start:
                extent.start = start
            extent.length = length


def cut(value, extents):
    return value[tuple(slice(s, None if n is None else s + n) for s, n in extents)]


def whole(value):
    return [tuple((0, None) for _ in value.shape)]


def v1_table(variables, slices=None):
    """The bytes of a V1 file. variables: name -> array; slices: name -> list of extents where it is not whole."""
    listing, entries = MESSAGES["SavedTensorSlices"](), {}
    listing.meta.SetInParent()
    for name, value in variables.items():
        meta = listing.meta.tensor.add(name=name.encode(), type=NUMBERS[value.dtype.name])
        meta.shape.SetInParent()
        for size in value.shape:
            meta.shape.dim.add(size=size)
        for extents in (slices or {}).get(name) or whole(value):
            fill_slice(meta.slice.add(), extents)
            entry = MESSAGES["SavedTensorSlices"]()
            entry.data.name = name.encode()
            fill_slice(entry.data.slice, extents)
            entry.data.slice.SetInParent()
            piece = cut(value, extents)
            if value.dtype == np.float32:
                entry.data.data.float_val = piece.tobytes()
            elif value.dtype == np.float16:
                entry.data.data.half_val.extend(piece.reshape(-1).view(np.uint16).tolist())
            elif value.dtype == np.float64:
                entry.data.data.double_val = piece.tobytes()
            else:
                getattr(entry.data.data, V1_FIELDS[value.dtype.name]).extend(piece.reshape(-1).tolist())
            entries[slice_key(name, extents)] = entry.SerializeToString()
    return pack_table([(b"", listing.SerializeToString()), *sorted(entries.items())])


def v2_bundle(prefix, variables, slices=None, shards=1, dtypes=None):
    """Writes a V2 bundle that spreads its pieces over the shards in turn. dtypes: name -> type to call an array's."""
    data = [bytearray() for _ in range(shards)]
    entries = {b"": MESSAGES["BundleHeader"](num_shards=shards)}

    def describe(key, name, shape):
        entry = MESSAGES["BundleEntry"](dtype=NUMBERS[(dtypes or {}).get(name, variables[name].dtype.name)])
        entry.shape.SetInParent()
        for size in shape:
            entry.shape.dim.add(size=size)
        entries[key] = entry
        return entry

    def store(entry, piece):
        shard = len(entries) % shards
        entry.shard_id, entry.offset, entry.size = shard, len(data[shard]), piece.nbytes
        entry.crc32c = masked_crc(piece.tobytes())
        data[shard] += piece.tobytes()

    for name, value in variables.items():
        entry = describe(name.encode(), name, value.shape)
        parts = (slices or {}).get(name)
        if not parts:
            store(entry, value)
            continue
        for extents in parts:
            fill_slice(entry.slices.add(), extents)
            piece = cut(value, extents)
            store(describe(slice_key(name, extents), name, piece.shape), piece)
    for number, shard in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{number:05}-of-{shards:05}").write_bytes(shard)
    index = pack_table((key, entries[key].SerializeToString()) for key in sorted(entries))
    prefix.with_name(prefix.name + ".index").write_bytes(index)


def with_crc(block, compression=0):
    """A block of a table with its trailer, whatever the block says."""
    body = block + bytes([compression])
    return body + struct.pack("<I", masked_crc(body))


def read_table(path):
    """The entries of a table, to be altered and packed again."""
    return [(key, bytes(value)) for key, value in Table(path).items()]


@pytest.fixture(scope="session")
def craft():
    """What builds checkpoints in these tests."""
    return SimpleNamespace(v1_table=v1_table, v2_bundle=v2_bundle, with_crc=with_crc, read_table=read_table)


@pytest.fixture
def variables():
    """One variable of each type and of several ranks, one of them larger than a block of the table."""
    rng = np.random.default_rng(3)
    return {
        "a/weights": rng.standard_normal((3, 3, 5, 40), np.float32),
        "a/biases": rng.standard_normal(7).astype(np.float32),
        "a/half": rng.standard_normal((4, 6)).astype(np.float16),
        "b/double": rng.standard_normal((2, 3)),
        "b/int": rng.integers(-(2**31), 2**31, 9).astype(np.int32),
        "b/flags": rng.random((2, 5)) < 0.5,
        "empty": np.zeros((0, 3), np.float32),
        "global_step": np.array(-(2**40), np.int64),
    }


def assert_same(value, expected):
    """Equal in dtype, shape and every bit."""
    assert value.dtype == expected.dtype
    assert value.shape == expected.shape
    assert value.tobytes() == expected.tobytes()


@pytest.fixture(scope="session")
def same():
    return assert_same
