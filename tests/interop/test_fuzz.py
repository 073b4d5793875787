"""Damaged checkpoints: each ends in CheckpointError, or in the very same tensors where the damage is in padding.

Damage behind a repaired CRC can make another valid file, so there only the kind of error, time and memory are tested.
"""

import resource
import signal
import struct

import numpy as np
import pytest

from aocr_torch.files import CheckpointError, masked_crc
from aocr_torch.interop.tf_checkpoint import open_checkpoint, write_checkpoint
from aocr_torch.interop.tf_table import Table, write_varint

ABSURD = [
    b"\xff" * 9 + b"\x01",
    b"\xff" * 8 + b"\x7f",
    b"\xff\xff\xff\xff\x0f",
    b"\xff" * 12,
    b"\0" * 8,
    b"\x80\x80\x80\x80\x10",
]
SECONDS, GIGABYTE = 5, 1 << 20  # ru_maxrss counts in KiB


def flip_bits(data, rng):
    for _ in range(rng.integers(1, 5)):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)


def truncate(data, rng):
    del data[rng.integers(len(data)) :]


def shift(data, rng):
    place, count = rng.integers(len(data)), rng.integers(1, 40)
    if rng.random() < 0.5:
        del data[place : place + count]
    else:
        data[place:place] = rng.bytes(count)


def swap_ranges(data, rng):
    size = int(rng.integers(1, max(2, len(data) // 3)))
    first = int(rng.integers(0, len(data) - 2 * size + 1))
    second = int(rng.integers(first + size, len(data) - size + 1))
    data[first : first + size], data[second : second + size] = (
        data[second : second + size],
        data[first : first + size],
    )


def overwrite(data, rng):
    absurd = ABSURD[rng.integers(len(ABSURD))]
    place = rng.integers(len(data))
    data[place : place + len(absurd)] = absurd


def footer(data, rng):
    handles = b"".join(write_varint(int(rng.choice([0, 5, len(data), 2**31, 2**63]))) for _ in range(4))
    data[-48:-8] = handles.ljust(40, b"\0")[:40]


ANYWHERE = [flip_bits, truncate, shift, swap_ranges, overwrite]


def blocks_of(path):
    """(offset, size) of the data blocks, then of the index block."""
    table = Table(path)
    index_end = table.file.size - 48 - 5
    end_of_data = max((offset + size + 5 for offset, size in table._handles), default=0)
    return [*table._handles, (end_of_data + 8 + 5, index_end - end_of_data - 8 - 5)]  # the metaindex is 8 bytes


def damage_behind_a_crc(data, blocks, rng):
    """Damages one block and repairs its CRC, or makes two entries of the index name one block."""
    offset, size = blocks[rng.integers(len(blocks))] if rng.random() < 0.5 else blocks[-1]
    block = data[offset : offset + size]
    if not block:
        return
    (flip_bits, overwrite)[rng.integers(2)](block, rng)
    block = (block + b"\0" * size)[:size] + b"\0"
    data[offset : offset + size + 5] = block + struct.pack("<I", masked_crc(bytes(block)))


def read_all(path):
    with open_checkpoint(path) as reader:
        return {name: reader.tensor(name) for name in reader.variables}


def are_same(values, expected):
    """The same names, dtypes, shapes and bits."""
    return list(values) == list(expected) and all(
        value.dtype == expected[name].dtype
        and value.shape == expected[name].shape
        and value.tobytes() == expected[name].tobytes()
        for name, value in values.items()
    )


def fuzz(path, files, rounds, seed):
    """Damages one of `files` in each round, reads the checkpoint and puts the file back; counts of what happened."""
    expected = read_all(path)
    originals = [(file, file.read_bytes(), blocks_of(file) if ".data-" not in file.name else None) for file in files]
    rng = np.random.default_rng(seed)
    counts, messages = {"refused": 0, "harmless": 0}, set()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(rounds):
        file, original, blocks = originals[number % len(originals)]
        data = bytearray(original)
        is_repaired = blocks is not None and number % 3 == 0
        if is_repaired:
            damage_behind_a_crc(data, blocks, rng)
        else:
            choices = ANYWHERE if blocks is None else [*ANYWHERE, footer]
            choices[rng.integers(len(choices))](data, rng)
        file.write_bytes(data)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            values = read_all(path)
        except CheckpointError as error:
            counts["refused"] += 1
            messages.add(str(error))
        else:
            counts["harmless"] += 1
            assert is_repaired or are_same(values, expected), f"round {number}: wrong numbers"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if len(originals) > 1:
                file.write_bytes(original)
    assert not any("\n" in message for message in messages)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIGABYTE
    return counts


@pytest.fixture(autouse=True)
def alarm():
    """A round that hangs ends in TimeoutError."""

    def ring(*_):
        raise TimeoutError(f"a damaged file kept the reader busy for more than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, ring)
    yield
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def many_variables(variables):
    """Enough names for several blocks of a table."""
    small = {f"scope_{n % 7}/layer_{n}/weights": np.full(n % 5, n, np.float32) for n in range(100)}
    return {**variables, **small}


PARTS = {"a/weights": [((0, 1), *[(0, None)] * 3), ((1, 2), *[(0, None)] * 3)]}


def test_v1(tmp_path, many_variables, craft):
    path = tmp_path / "x.ckpt"
    path.write_bytes(craft.v1_table(many_variables, PARTS))
    counts = fuzz(path, [path], 500, seed=1)
    assert counts["refused"] > 300


def test_v2(tmp_path, many_variables, craft):
    craft.v2_bundle(tmp_path / "x", many_variables, PARTS, shards=2)
    files = [tmp_path / "x.index", tmp_path / "x.data-00000-of-00002"]
    counts = fuzz(tmp_path / "x", files, 500, seed=2)
    assert counts["refused"] > 300


@pytest.mark.parametrize("kind", ["V1", "V2"])
def test_swapped_blocks(tmp_path, many_variables, craft, kind):
    """Whole blocks of one size change places: their CRCs are right, their keys are not."""
    path = tmp_path / "x.index"
    if kind == "V1":
        path = tmp_path / "x.ckpt"
        path.write_bytes(craft.v1_table({f"v{n:04}": np.full(8, n, np.float32) for n in range(2000)}))
    else:
        write_checkpoint(tmp_path / "x", {f"v{n:04}": np.full(8, n, np.float32) for n in range(2000)})
    data, by_size = bytearray(path.read_bytes()), {}
    for offset, size in Table(path)._handles:
        by_size.setdefault(size, []).append(offset)
    size, offsets = max(by_size.items(), key=lambda item: len(item[1]))
    first, second = (slice(offset, offset + size + 5) for offset in offsets[:2])
    data[first], data[second] = data[second], data[first]
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"places elsewhere|out of order"):
        read_all(path)


def test_golden(reference, tmp_path):
    v1 = tmp_path / "v1.ckpt"
    v1.write_bytes((reference / "golden" / "ckpt_v1" / "inception_v3.ckpt").read_bytes())
    assert fuzz(v1, [v1], 500, seed=3)["refused"] > 300
    files = []
    for original in sorted((reference / "golden" / "layers_ckpt" / "coords").glob("model.ckpt-123.*")):
        files.append(tmp_path / original.name)
        files[-1].write_bytes(original.read_bytes())
    assert fuzz(tmp_path / "model.ckpt-123", files, 500, seed=4)["refused"] > 300
