import struct

import pytest

from aocr_torch.files import CheckpointError
from aocr_torch.interop.tf_table import Table, _pack_block, pack_table, read_varint, write_varint


@pytest.fixture
def entries():
    """Enough for several blocks, with keys that share prefixes, and one value larger than a block."""
    pairs = {f"scope/layer{number}/weights".encode(): bytes([number % 256]) * (number % 90) for number in range(400)}
    return sorted({**pairs, b"": b"first", b"scope/layer7/zzz": b"x" * 20000}.items())


def open_table(tmp_path, data):
    path = tmp_path / "table"
    path.write_bytes(data)
    return Table(path)


def test_round_trip(tmp_path, entries):
    table = open_table(tmp_path, pack_table(entries))
    assert [(key, bytes(value)) for key, value in table.items()] == entries
    assert all(bytes(table.get(key)) == value for key, value in entries)
    assert table.get(b"scope/layer7/zz") is None
    assert table.get(b"zzz") is None


def test_empty_table(tmp_path):
    table = open_table(tmp_path, pack_table([]))
    assert list(table.items()) == []
    assert table.get(b"x") is None


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**64 - 1])
def test_varint(value):
    assert read_varint(memoryview(write_varint(value) + b"\xff"), 0) == (value, len(write_varint(value)))


def test_varint_of_more_than_64_bits():
    with pytest.raises(ValueError, match="more than 64 bits"):
        read_varint(memoryview(b"\xff" * 11), 0)


def test_a_closed_table_says_so(tmp_path, entries):
    table = open_table(tmp_path, pack_table(entries))
    table.close()
    with pytest.raises(CheckpointError, match="was closed"):
        table.get(b"")


def test_truncated_in_front_of_a_block(tmp_path, entries):
    data = pack_table(entries)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_table(tmp_path, data[len(data) // 2 :])


def test_too_short_and_without_the_magic_number(tmp_path, entries):
    with pytest.raises(CheckpointError, match="3 bytes are too few"):
        open_table(tmp_path, b"abc")
    with pytest.raises(CheckpointError, match="last 8 bytes"):
        open_table(tmp_path, pack_table(entries)[:-1])


def table_of(craft, block, index=None, compression=0):
    """A table of one data block, given without its trailer; the index says that its last key is z."""
    out = craft.with_crc(block, compression)
    index = index or [(b"z", write_varint(0) + write_varint(len(block)))]
    body = b"".join(b"\0" + write_varint(len(key)) + write_varint(len(h)) + key + h for key, h in index)
    footer = b""
    for block in (struct.pack("<II", 0, 1), body + struct.pack("<II", 0, 1)):
        footer += write_varint(len(out)) + write_varint(len(block))
        out += craft.with_crc(block)
    return out + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


RESTARTS = struct.pack("<II", 0, 1)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"\0\1\1ab\0\1\1ab" + RESTARTS, "out of order"),
        (b"\0\1\1bb\0\1\1ab" + RESTARTS, "out of order"),
        (b"\5\1\1ab" + RESTARTS, "does not fit"),
        (b"\0\1\x7fab" + RESTARTS, "does not fit"),
        (b"\0" + b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\1" + b"\1ab" + RESTARTS, "does not fit"),
        (b"\0\1" + b"\xff" * 12 + RESTARTS, "without lengths"),
        (b"\0\1\1ab" + struct.pack("<II", 0, 2**31), "middle of an entry"),
        (b"\0\1\1ab" + struct.pack("<III", 0, 0, 1), "out of order|does not fit|middle"),
        (b"\0\1\1\x7fb" + RESTARTS, "places elsewhere"),
        (b"", "compression type 0 and 0 bytes"),
    ],
)
def test_blocks_with_a_right_crc_and_wrong_contents(tmp_path, craft, block, message):
    with pytest.raises(CheckpointError, match=message):
        list(open_table(tmp_path, table_of(craft, block)).items())


def test_snappy_is_named(tmp_path, craft):
    with pytest.raises(CheckpointError, match="snappy"):
        list(open_table(tmp_path, table_of(craft, b"\0\1\1ab" + RESTARTS, compression=1)).items())


def test_index_that_names_a_block_twice(tmp_path, craft):
    block = b"\0\1\1ab" + RESTARTS
    handle = write_varint(0) + write_varint(len(block))
    table = open_table(tmp_path, table_of(craft, block, index=[(b"b", handle), (b"c", handle)]))
    with pytest.raises(CheckpointError, match="places elsewhere"):
        list(table.items())
    with pytest.raises(CheckpointError, match="no block handle"):
        open_table(tmp_path, table_of(craft, block, index=[(b"b", b"\xff")]))
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        list(open_table(tmp_path, table_of(craft, block, index=[(b"b", write_varint(2**63) + b"\1")])).items())


def test_footer_without_handles(tmp_path, entries):
    data = bytearray(pack_table(entries))
    data[-48:-8] = b"\xff" * 40
    with pytest.raises(CheckpointError, match="the footer has"):
        open_table(tmp_path, bytes(data))


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path, entries):
    entries = entries[:6]
    data = pack_table(entries)
    harmless = 0
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        try:
            assert [(key, bytes(value)) for key, value in open_table(tmp_path, damaged).items()] == entries
            harmless += 1
        except CheckpointError:
            pass
    assert harmless <= 40  # only the padding of the footer is covered by no CRC


def test_a_key_that_stands_in_two_blocks(tmp_path, craft):
    block = craft.with_crc(b"\0\1\1ab" + struct.pack("<II", 0, 1))
    handles = [bytes([place, len(block) - 5]) for place in (0, len(block))]
    body = b"".join(b"\0\1" + bytes([len(h)]) + key + h for key, h in zip((b"a", b"b"), handles))
    out, footer = block * 2, b""
    for each in (struct.pack("<II", 0, 1), body + struct.pack("<II", 0, 1)):
        footer += bytes([len(out), len(each)])
        out += craft.with_crc(each)
    (tmp_path / "x").write_bytes(out + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))
    with pytest.raises(CheckpointError, match="places elsewhere"):
        list(Table(tmp_path / "x").items())


def test_every_restart_of_a_written_block_is_an_entry_with_its_whole_key():
    """TensorFlow seeks through the restarts; our reader does not look at them."""
    keys = [b"variable/%04d" % number for number in range(40)]
    packed = _pack_block([(key, b"value") for key in keys], 16)
    size = len(packed) - 5
    (count,) = struct.unpack("<I", packed[size - 4 : size])
    restarts = struct.unpack(f"<{count}I", packed[size - 4 - 4 * count : size - 4])
    assert count == 3
    for restart, key in zip(restarts, keys[::16]):
        shared, place = read_varint(memoryview(packed), restart)
        length, place = read_varint(memoryview(packed), place)
        _, place = read_varint(memoryview(packed), place)
        assert (shared, packed[place : place + length]) == (0, key)


def test_a_varint_of_71_bits():
    with pytest.raises(ValueError, match="more than 64 bits"):
        read_varint(memoryview(b"\xff" * 10 + b"\1"), 0)
