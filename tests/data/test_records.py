"""TFRecord files: framing equal to the tfrecord package's, the index, and every kind of damage."""

import json
import os
import pickle
import random
import struct
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from tfrecord.reader import tfrecord_iterator
from tfrecord.tools.tfrecord2idx import create_index
from tfrecord.writer import TFRecordWriter

from aocr_torch.data import records
from aocr_torch.data.records import RecordError, Shards, write_shard
from aocr_torch.files import masked_crc

PAYLOADS = [b"first", b"", b"the third record", bytes(range(40))]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "aocr_torch" / "index"


@pytest.fixture
def shard(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "train-00000"
    assert write_shard(path, PAYLOADS) == len(PAYLOADS)
    return path


def read_all(shards):
    return [shards.read(i) for i in range(len(shards))]


def index_path(shard):
    return shard.with_name(shard.name + ".index")


def write_index(shard, text):
    """An index that passes for fresh."""
    index_path(shard).write_text(text)
    times = shard.stat()
    os.utime(index_path(shard), ns=(times.st_mtime_ns, times.st_mtime_ns))


def damage(shard, content):
    """Changes the shard behind the back of its index."""
    times = shard.stat()
    shard.write_bytes(content)
    os.utime(shard, ns=(times.st_mtime_ns, times.st_mtime_ns))


def test_framing_is_that_of_the_tfrecord_package(tmp_path, shard):
    assert [bytes(payload) for payload in tfrecord_iterator(str(shard))] == PAYLOADS
    writer = TFRecordWriter(str(tmp_path / "theirs"))
    writer.write({"number": (7, "int")})
    writer.close()
    (payload,) = read_all(Shards([tmp_path / "theirs"]))
    write_shard(tmp_path / "ours", [payload])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_index_is_the_text_that_tfrecord2idx_writes(tmp_path, shard):
    Shards([shard])
    create_index(str(shard), str(tmp_path / "theirs"))
    assert index_path(shard).read_text() == (tmp_path / "theirs").read_text()
    assert index_path(shard).stat().st_mtime_ns == shard.stat().st_mtime_ns


def test_random_access_over_several_shards(tmp_path, shard):
    other, empty = tmp_path / "train-00001", tmp_path / "train-00002"
    write_shard(other, [b"x", b"y"])
    write_shard(empty, [])
    for _ in range(2):  # indexes built, then loaded
        shards = Shards([shard, empty, other])
        assert len(shards) == 6
        assert [shards.read(i) for i in (5, 0, 4, 3)] == [b"y", PAYLOADS[0], b"x", PAYLOADS[3]]
        assert shards.name(5) == "train-00001:1"
        assert shards.location(5) == (other, 1, 17)
        assert shards.location(1) == (shard, 1, 21)
    for outside in (6, -1):
        with pytest.raises(IndexError, match=f"record {outside} does not exist: there are 6"):
            shards.read(outside)
    assert len(Shards([])) == 0


def test_a_failed_write_leaves_the_old_shard_and_nothing_else(shard):
    def payloads():
        yield b"new"
        raise RuntimeError("out of signs")

    with pytest.raises(RuntimeError, match="out of signs"):
        write_shard(shard, payloads())
    assert read_all(Shards([shard])) == PAYLOADS
    assert sorted(path.name for path in shard.parent.iterdir()) == ["train-00000", "train-00000.index"]


def test_index_is_loaded_when_fresh(shard, monkeypatch):
    Shards([shard])
    monkeypatch.setattr(records, "_scan", lambda path: pytest.fail("scanned again"))
    assert read_all(Shards([shard])) == PAYLOADS


def test_index_is_built_again_when_time_or_size_changed(shard):
    Shards([shard])
    write_shard(shard, [b"a", b"b"])
    os.utime(shard, ns=(1, 1))
    assert read_all(Shards([shard])) == [b"a", b"b"]
    other = shard.with_name("longer")
    write_shard(other, [b"a", b"b", b"c"])
    damage(shard, other.read_bytes())
    assert read_all(Shards([shard])) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("text", ["", "0 21\n", "no numbers\n", "0 21\n21 16\n37", "0 21\n21 16\n40 29\n69 56\n"])
def test_an_index_that_cannot_be_right_is_built_again(shard, text):
    write_index(shard, text)
    assert read_all(Shards([shard])) == PAYLOADS
    assert index_path(shard).read_text() == "0 21\n21 16\n37 32\n69 56\n"


def test_an_index_that_lies_is_an_error_of_the_record(shard):
    write_index(shard, "0 37\n37 32\n69 56\n")  # the first two records as one
    shards = Shards([shard])
    with pytest.raises(RecordError, match=r"^train-00000:0 \(offset 0\): its index is wrong, .* 37 bytes, expected 21"):
        shards.read(0)
    assert shards.read(1) == PAYLOADS[2]
    write_index(shard, "0 20\n20 17\n37 32\n69 56\n")
    with pytest.raises(RecordError, match=r"^train-00000:1 \(offset 20\): crc of the length .* or its index is wrong"):
        Shards([shard]).read(1)


def test_index_goes_to_the_cache_where_the_data_is_marked_read_only(shard, cache, monkeypatch):
    shard.parent.chmod(0o555)
    try:
        assert read_all(Shards([shard])) == PAYLOADS
        assert not index_path(shard).exists()
        assert [path.name[:12] for path in cache.iterdir()] == ["train-00000-"]
        monkeypatch.setattr(records, "_scan", lambda path: pytest.fail("scanned again"))
        assert read_all(Shards([shard])) == PAYLOADS
    finally:
        shard.parent.chmod(0o755)


def test_index_goes_to_the_folder_that_is_named(tmp_path, shard):
    assert read_all(Shards([shard], index_dir=tmp_path / "indexes")) == PAYLOADS
    assert not index_path(shard).exists()
    assert len(list((tmp_path / "indexes").iterdir())) == 1


def test_an_index_that_cannot_be_kept_is_no_error(tmp_path, shard):
    (tmp_path / "file").touch()
    assert read_all(Shards([shard], index_dir=tmp_path / "file")) == PAYLOADS


def _build_and_read(path):
    return read_all(Shards([path]))


def test_several_processes_build_the_index_at_once(shard):
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        assert list(pool.map(_build_and_read, [shard] * 9)) == [PAYLOADS] * 9
    assert sorted(path.name for path in shard.parent.iterdir()) == ["train-00000", "train-00000.index"]


def test_use_after_fork_and_after_pickling(shard):
    shards = Shards([shard])
    assert shards.read(0) == PAYLOADS[0]  # the file is open in the parent
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert list(pool.map(shards.read, range(4))) == PAYLOADS
    assert read_all(pickle.loads(pickle.dumps(shards))) == PAYLOADS


def test_as_many_shards_as_fsns_need_few_open_files(tmp_path):
    paths = [tmp_path / f"train-{i:05d}-of-00512" for i in range(512)]
    for i, path in enumerate(paths):
        write_shard(path, [b"%d" % i])
    shards = Shards(paths)
    before = len(os.listdir("/proc/self/fd"))
    assert read_all(shards) == [b"%d" % i for i in range(512)]
    assert len(os.listdir("/proc/self/fd")) - before <= records.MAX_OPEN_FILES
    assert shards.read(0) == b"0"


@pytest.mark.parametrize("has_index", [False, True])
def test_a_flipped_bit_anywhere_is_found(shard, has_index):
    Shards([shard])
    content = shard.read_bytes()
    ends = np.cumsum([len(payload) + 16 for payload in PAYLOADS])
    for bit in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damage(shard, flipped)
        if not has_index:
            index_path(shard).unlink(missing_ok=True)
        with pytest.raises(RecordError) as error:
            read_all(Shards([shard]))
        hit = int(np.searchsorted(ends, bit // 8, side="right"))
        offset = [0, *ends][hit]
        assert str(error.value).startswith(f"train-00000:{hit} (offset {offset}): ")
        assert (error.value.file, error.value.record, error.value.offset) == ("train-00000", hit, offset)


def test_a_flipped_bit_spoils_its_record_only(shard):
    Shards([shard])
    content = bytearray(shard.read_bytes())
    content[37] ^= 1  # the length of record 2
    damage(shard, content)
    shards = Shards([shard])
    assert [shards.read(i) for i in (0, 1, 3)] == [PAYLOADS[0], PAYLOADS[1], PAYLOADS[3]]
    with pytest.raises(RecordError, match=r"^train-00000:2 \(offset 37\): crc of the length is wrong: found 0x"):
        shards.read(2)


def test_a_truncated_shard(shard):
    content = shard.read_bytes()
    for size in range(1, len(content)):
        shard.write_bytes(content[:size])
        if size in (21, 37, 69):  # a shard that ends after a whole record is not damaged
            assert len(Shards([shard])) == (21, 37, 69).index(size) + 1
            continue
        with pytest.raises(RecordError, match=r"^train-00000:\d \(offset \d+\): the file ends after"):
            Shards([shard])
    assert "of 56 bytes" in str(Shards([shard], skip_bad_records=True).bad[0])


def test_a_shard_truncated_after_it_was_indexed(shard):
    shards = Shards([shard])
    os.truncate(shard, 80)
    assert shards.read(2) == PAYLOADS[2]
    with pytest.raises(RecordError, match=r"^train-00000:3 \(offset 69\): the file ends after 11 of 56 bytes"):
        shards.read(3)


def test_what_precedes_the_damage_is_kept_on_request_and_no_index_hides_it(shard):
    os.truncate(shard, 80)
    for _ in range(2):
        shards = Shards([shard], skip_bad_records=True)
        assert read_all(shards) == PAYLOADS[:3]
        assert [(bad.record, bad.offset) for bad in shards.bad] == [(3, 69)]
        assert "neither it nor what may follow, 11 bytes in all, can be read" in shards.bad[0].reason


def test_a_length_beyond_the_end_of_the_file(shard):
    length = struct.pack("<Q", 2**63)
    shard.write_bytes(length + struct.pack("<I", masked_crc(length)) + b"data")
    with pytest.raises(RecordError, match=r"the file ends after 16 of \d{19} bytes"):
        Shards([shard])


def test_a_file_that_is_no_tfrecord_file(shard):
    shard.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(RecordError, match=r"^train-00000:0 \(offset 0\): .* not an uncompressed TFRecord file"):
        Shards([shard])


def test_a_shard_that_cannot_be_read(shard, tmp_path):
    shards = Shards([shard])
    shard.unlink()
    with pytest.raises(RecordError, match=r"^train-00000:0 \(offset 0\): cannot be read: .*No such file"):
        shards.read(0)
    with pytest.raises(FileNotFoundError):
        Shards([tmp_path / "nowhere"])


def test_the_error_survives_pickling_and_the_text_of_a_traceback():
    error = RecordError.at("/data/train-00000-of-00512", 3, 409771, "crc is wrong:\n  found 1")
    assert str(error) == "train-00000-of-00512:3 (offset 409771): crc is wrong: found 1"
    wrapped = RecordError(f"Caught RecordError.\nOriginal Traceback:\naocr_torch.data.records.RecordError: {error}\n")
    for copy in (pickle.loads(pickle.dumps(error)), wrapped):
        assert vars(copy) == vars(error)
        assert str(copy) == str(error)
    assert vars(error) == {
        "file": "train-00000-of-00512",
        "record": 3,
        "offset": 409771,
        "reason": "crc is wrong: found 1",
    }
    with pytest.raises(ValueError, match=r"use RecordError\.at"):
        RecordError("something else")


def test_the_real_shard(reference, cache):
    golden = json.loads((reference / "golden" / "fsns_records.json").read_text(encoding="utf-8"))
    path = reference / "fsns" / "train" / "train-00000-of-00001"
    shards = Shards([path], index_dir=cache)
    assert len(shards) == golden["num_records"]
    content = path.read_bytes()
    for i, record in enumerate(golden["records"]):
        assert shards.location(i) == (path, i, record["file_offset"])
        payload = shards.read(i)
        assert len(payload) == record["payload_bytes"]
        start = record["file_offset"]
        assert content[start + 8 : start + 12] == struct.pack("<I", record["masked_crc32c_of_length"])
        assert masked_crc(payload) == record["masked_crc32c_of_payload"]


def test_flipped_bits_in_the_real_shard(reference, shard):
    content = (reference / "fsns" / "train" / "train-00000-of-00001").read_bytes()
    shard.write_bytes(content)
    assert len(Shards([shard])) == 5
    for bit in random.Random(0).sample(range(len(content) * 8), 60):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damage(shard, flipped)
        with pytest.raises(RecordError, match=r"^train-00000:\d \(offset \d+\): crc"):
            read_all(Shards([shard]))


def test_what_is_read_next_is_told_to_the_system(shard, monkeypatch):
    told = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: told.append(arguments[1:]), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    shards = Shards([shard])
    shards.read_ahead([2, 0])
    assert told == [(21 + 16, 16 + 16, 3), (0, 21, 3)]
    monkeypatch.delattr(os, "posix_fadvise")
    shards.read_ahead([2, 0])
    shard.unlink()
    Shards.read_ahead(pickle.loads(pickle.dumps(shards)), [1])


def test_a_record_cut_off_in_its_data_says_that_the_file_ends(tmp_path):
    write_shard(tmp_path / "train-00000", [b"x" * 40])
    shards = Shards([tmp_path / "train-00000"])
    os.truncate(tmp_path / "train-00000", 30)
    with pytest.raises(RecordError, match="the file ends after 30 of 56 bytes"):
        shards.read(0)


def test_an_index_newer_than_the_shard_is_built_again(tmp_path):
    shard = tmp_path / "train-00000"
    write_shard(shard, [b"abc", b"d"])
    Shards([shard])
    write_shard(shard, [b"d", b"abc"])  # as long, and copied with the time of an older file
    os.utime(shard, ns=(1, 1))
    shards = Shards([shard])
    assert [shards.read(0), shards.read(1)] == [b"d", b"abc"]
