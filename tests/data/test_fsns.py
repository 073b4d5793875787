"""FSNS: finding files, examples as the real shard holds them, every bad record, batches exactly once."""

import hashlib
import io
import itertools
import json
import pickle
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from tfrecord.example_pb2 import Example

from aocr_torch.data import fsns
from aocr_torch.data.charset import Charset
from aocr_torch.data.fsns import (
    EvalBatchSampler,
    FSNSDataset,
    TrainBatchSampler,
    decode_image,
    encode_example,
    find_charset,
    find_shards,
    make_loader,
)
from aocr_torch.data.records import RecordError, Shards, write_shard

CHARSET = Charset.from_characters(list(" abcdefghij"))
HEIGHT, WIDTH, LENGTH = 4, 8, 5


def pixels(number, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, image_format="PNG"):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format=image_format)
    return buffer.getvalue()


def example(number, png=None):
    png = encoded(pixels(number)) if png is None else png
    text = "abcdefghij"[number % 10] * (1 + number % LENGTH)
    return encode_example(png, text, CHARSET, length=LENGTH, width=WIDTH, height=HEIGHT, orig_width=WIDTH)


def changed(payload, name, **feature):
    """The example with one feature replaced, or removed if nothing is given for it."""
    message = Example.FromString(payload)
    del message.features.feature[name]
    for kind, values in feature.items():
        getattr(message.features.feature[name], kind).value.extend(values)
    return message.SerializeToString()


@pytest.fixture
def make_dataset(tmp_path):
    def make(payloads, *, num_shards=2, **options):
        paths = [tmp_path / f"train-{i:05d}" for i in range(num_shards)]
        for i, path in enumerate(paths):
            write_shard(path, payloads[len(payloads) * i // num_shards : len(payloads) * (i + 1) // num_shards])
        size = {"image_height": HEIGHT, "image_width": WIDTH, "max_sequence_length": LENGTH}
        return FSNSDataset(Shards(paths), CHARSET, **{**size, **options})

    return make


# Finding files


@pytest.fixture
def folder(tmp_path):
    for name in ("train/train-00001", "train/train-00000", "train/notes.txt", "test/test-00000", "extra/part[1]"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for suffix in (".index", ".tfindex", ".idx"):
        (tmp_path / f"train/train-00000{suffix}").touch()
    (tmp_path / "charset_size=12.txt").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("split_name", "expected"),
    [
        ("train", ["train/train-00000", "train/train-00001"]),
        ("test", ["test/test-00000"]),
        ("train/*", ["train/notes.txt", "train/train-00000", "train/train-00001"]),
        ("train/train-00001", ["train/train-00001"]),
        ("t*/t*-00000", ["test/test-00000", "train/train-00000"]),
        ("extra/part[1]", ["extra/part[1]"]),
        ("{folder}/test/test-0*", ["test/test-00000"]),
    ],
)
def test_find_shards(folder, split_name, expected):
    found = find_shards(folder, split_name.format(folder=folder))
    assert [str(path.relative_to(folder)) for path in found] == expected


def test_find_shards_relative_to_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder / "train")
    assert [path.name for path in find_shards(folder / "test", "train-0000?")] == ["train-00000", "train-00001"]


def test_find_shards_errors(folder):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        find_shards(folder / "nowhere", "train")
    with pytest.raises(
        FileNotFoundError, match=r"'tran' has no shards: .* did you mean 'train'\? .*: extra, test, train$"
    ):
        find_shards(folder, "tran")
    with pytest.raises(FileNotFoundError, match=r"'extra' has no shards: nothing matches .*/extra/extra\* or"):
        find_shards(folder, "extra")


def test_find_charset(folder):
    assert find_charset(folder) == folder / "charset_size=12.txt"
    assert find_charset(folder, "train/notes.txt") == folder / "train" / "notes.txt"
    with pytest.raises(FileNotFoundError, match=r"charset file .*/none.txt does not exist"):
        find_charset(folder, "none.txt")
    with pytest.raises(FileNotFoundError, match=r"expected one .* found none"):
        find_charset(folder / "train")
    (folder / "charset_size=13.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"found charset_size=12\.txt, charset_size=13\.txt: name it"):
        find_charset(folder)


# Images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.filterwarnings("error")
def test_modes_are_brought_to_rgb_as_tensorflow_does(mode):
    rgb = Image.fromarray(pixels(0))
    image = rgb.convert(mode)
    expected = np.array(image.convert("RGB"))
    if mode in ("LA", "RGBA"):
        image.putalpha(7)  # dropped: what is transparent keeps its colour
    assert np.array_equal(decode_image(encoded(image), HEIGHT, WIDTH), expected)


@pytest.mark.filterwarnings("error")
def test_transparency_of_a_palette_is_dropped():
    image = Image.fromarray(pixels(0)).convert("P")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=bytes(range(256)))
    assert np.array_equal(decode_image(buffer.getvalue(), HEIGHT, WIDTH), np.array(image.convert("RGB")))


def test_jpeg_is_allowed():
    grey = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    assert np.abs(decode_image(encoded(grey, "JPEG"), HEIGHT, WIDTH).astype(int) - 100).max() <= 2


def png_of(filter_type, chunk):
    """A PNG whose rows all have this filter, random bytes in them, and perhaps a further chunk."""
    rows = np.random.default_rng(filter_type).integers(0, 256, (HEIGHT, 1 + WIDTH * 3), dtype=np.uint8)
    rows[:, 0] = filter_type
    packed = zlib.compress(rows.tobytes())
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    bodies = [b"IHDR" + head, *([chunk] if chunk else []), b"IDAT" + packed[:20], b"IDAT" + packed[20:], b"IEND"]
    framed = (struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in bodies)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("chunk", [b"", b"gAMA" + struct.pack(">I", 90000), b"tRNS" + bytes(6)])
@pytest.mark.parametrize("filter_type", range(5))
def test_both_decoders_give_the_same_pixels(filter_type, chunk, monkeypatch):
    png = png_of(filter_type, chunk)
    if fsns.decode_png is None:
        pytest.skip("kornia-rs is not installed")
    with monkeypatch.context() as patch:
        patch.setattr(fsns.Image, "open", None)
        fast = decode_image(png, HEIGHT, WIDTH)
    monkeypatch.setattr(fsns, "decode_png", None)
    assert np.array_equal(fast, decode_image(png, HEIGHT, WIDTH))


@pytest.mark.parametrize("has_kornia", [False, True])
def test_what_the_fast_decoder_refuses_goes_to_pillow(has_kornia, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("unreadable")

    monkeypatch.setattr(fsns, "decode_png", refuse if has_kornia else None)
    assert np.array_equal(decode_image(PNG, HEIGHT, WIDTH), pixels(0))
    with pytest.raises(ValueError, match=r"the image does not decode: .*; expected a PNG or JPEG"):
        decode_image(PNG[: len(PNG) // 2], HEIGHT, WIDTH)


PNG = encoded(pixels(0))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not decode"),
        (b"no image", "does not decode"),
        (PNG[: len(PNG) // 2], "does not decode"),
        (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], "does not decode"),
        (encoded(pixels(0), "BMP"), "does not decode: expected a PNG or JPEG"),
        (encoded(pixels(0, HEIGHT, 3)), "the image is 3x4, expected 8x4"),
        (encoded(Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16))), "mode is I.*, expected one of 1, L"),
        (encoded(Image.fromarray(pixels(0)).convert("CMYK"), "JPEG"), "mode is CMYK"),
    ],
)
def test_images_that_are_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        decode_image(content, HEIGHT, WIDTH)


# Samples


def test_an_example_comes_back_as_it_was_written(make_dataset):
    dataset = make_dataset([example(i) for i in range(5)])
    assert len(dataset) == 5
    sample = dataset[17, 3]
    assert (sample["index"], sample["position"]) == (3, 17)
    assert sample["image"].dtype == torch.uint8
    assert np.array_equal(sample["image"].numpy(), pixels(3))
    assert sample["label"].tolist() == CHARSET.encode("dddd", LENGTH)
    assert sample["label"].dtype == torch.int64
    assert dataset[2]["position"] == 2
    assert dataset.text(3) == "dddd"
    assert dataset.name(3) == "train-00001:1"


NULL = CHARSET.null_id
BAD = {
    "not an example": (b"\xff\xff\xff", "the data is not a tf.Example"),
    "no features": (b"", "there is no feature image/class, only none"),
    "no image": (changed(example(1), "image/encoded"), "there is no feature image/encoded, only image/class, "),
    "no label": (changed(example(1), "image/class"), "there is no feature image/class"),
    "wrong kind": (
        changed(example(1), "image/class", float_list=[1.0]),
        "the feature image/class holds a float_list, expected: int64_list",
    ),
    "two images": (
        changed(example(1), "image/encoded", bytes_list=[b"a", b"b"]),
        "image/encoded has 2 values, expected 1",
    ),
    "short label": (
        changed(example(1), "image/class", int64_list=[1, 2]),
        r"image/class has 2 ids, expected 5 \(max_sequence_length\)",
    ),
    "unknown id": (
        changed(example(1), "image/class", int64_list=[1, NULL + 1, NULL, NULL, NULL]),
        "the unknown id 12, expected 0 to 11",
    ),
    "negative id": (
        changed(example(1), "image/class", int64_list=[1, -1, NULL, NULL, NULL]),
        "the unknown id -1, expected 0 to 11",
    ),
    "no picture": (example(1, b"no picture"), "the image does not decode"),
    "wrong size": (
        example(1, encoded(pixels(1, 4, 9))),
        r"the image is 9x4, expected 8x4 \(image_width x image_height\)",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_records(make_dataset, kind):
    payload, reason = BAD[kind]
    payloads = [example(0), payload, example(2)]
    offset = len(payloads[0]) + 16
    with pytest.raises(RecordError, match=rf"^train-00000:1 \(offset {offset}\): .*{reason}"):
        make_dataset(payloads, num_shards=1)[1]
    dataset = make_dataset(payloads, num_shards=1, skip_bad_records=True)
    batch = dataset.batch(range(3))
    assert batch["index"].tolist() == [0, 2]
    assert len(batch["skipped"]) == 1
    assert batch["skipped"][0].startswith(f"train-00000:1 (offset {offset}): ")


def test_a_batch_without_a_good_record(make_dataset):
    dataset = make_dataset([example(0), b"", b""], num_shards=1, skip_bad_records=True)
    with pytest.raises(RecordError, match=r"^train-00000:1 .* no other of the 2 records of this batch is good"):
        next(iter(make_loader(dataset, TrainBatchSampler(3, 2, seed=0, start=1, shuffle=False))))
    with pytest.raises(RecordError, match=r"^train-00000:1 "):
        list(itertools.islice(make_loader(dataset, TrainBatchSampler(3, 1, seed=0, shuffle=False)), 2))
    batches = list(make_loader(dataset, EvalBatchSampler(3, 1)))
    assert [len(batch["index"]) for batch in batches] == [1, 0, 0]
    assert [len(batch["image"]) for batch in batches] == [1, 0, 0]
    assert [len(batch["skipped"]) for batch in batches] == [0, 1, 1]


def test_an_error_in_a_worker_is_one_line_with_its_fields(make_dataset):
    dataset = make_dataset([example(i) for i in range(8)], num_shards=1)
    shard, record, offset = dataset.shards.location(5)
    content = bytearray(shard.read_bytes())
    content[offset + 100] ^= 4
    shard.write_bytes(content)
    error = error_of_loading(dataset, num_workers=2)
    assert "\n" not in str(error)
    assert str(error).startswith(f"train-00000:5 (offset {offset}): crc of the data is wrong: found 0x")
    assert (error.file, error.record, error.offset) == (shard.name, record, offset)


def error_of_loading(dataset, num_workers):
    try:
        list(make_loader(dataset, EvalBatchSampler(len(dataset), 2), num_workers=num_workers))
    except RecordError as error:
        # torch's frame and the traceback hold each other, and an iterator that has to wait for the garbage
        # collector takes 10 s to end its workers, so the circle is cut here.
        return error.with_traceback(None)
    return pytest.fail("no error")


def test_workers_list_what_they_skip(make_dataset):
    payloads = [example(i) for i in range(9)]
    payloads[4] = b"\xff"
    dataset = make_dataset(payloads, skip_bad_records=True)
    batches = list(make_loader(dataset, EvalBatchSampler(9, 2), num_workers=2))
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert [message.split(" ")[0] for batch in batches for message in batch["skipped"]] == ["train-00001:0"]


def test_a_dataset_can_be_sent_to_a_spawned_process(make_dataset):
    dataset = make_dataset([example(i) for i in range(3)])
    first = dataset[0]["image"]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0]["image"], first)


# Samplers


def positions_and_indices(dataset, sampler, num_workers, num_batches=None):
    loader = make_loader(dataset, sampler, num_workers=num_workers)
    pairs = []
    for batch in itertools.islice(loader, num_batches):
        for i, index in enumerate(batch["index"].tolist()):
            assert np.array_equal(batch["image"][i].numpy(), pixels(index))
            pairs.append((int(batch["position"][i]), index))
    return pairs


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_record_once_an_epoch(make_dataset, world_size, num_workers):
    num_records, batch_size, num_batches = 10, 2, 10  # 10 batches of 2 on any number of ranks are whole epochs
    dataset = make_dataset([example(i) for i in range(num_records)])
    stream = []
    for rank in range(world_size):
        sampler = TrainBatchSampler(num_records, batch_size, seed=3, rank=rank, world_size=world_size)
        stream += positions_and_indices(dataset, sampler, num_workers, num_batches)
    stream.sort()
    assert [position for position, _ in stream] == list(range(20 * world_size))
    epochs = [[index for _, index in stream[start : start + 10]] for start in range(0, len(stream), 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == len(epochs)
    alone = itertools.islice(TrainBatchSampler(num_records, 10, seed=3), len(epochs))
    assert epochs == [[index for _, index in batch] for batch in alone]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_record_is_evaluated_once(make_dataset, world_size, num_workers):
    dataset = make_dataset([example(i) for i in range(11)])
    parts = []
    for rank in range(world_size):
        sampler = EvalBatchSampler(11, 3, rank=rank, world_size=world_size)
        parts.append([index for _, index in positions_and_indices(dataset, sampler, num_workers)])
        assert len(sampler) == len(list(sampler)) == -(-len(parts[-1]) // 3)
    assert list(itertools.chain(*parts)) == list(range(11))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_evaluation_of_fewer_records_than_ranks_and_of_a_limited_number():
    assert [list(EvalBatchSampler(2, 5, rank=rank, world_size=3)) for rank in range(3)] == [[], [[0]], [[1]]]
    assert list(EvalBatchSampler(9, 2, limit=3)) == [[0, 1], [2]]
    assert list(EvalBatchSampler(2, 2, limit=30)) == [[0, 1]]


def test_a_batch_larger_than_the_data_set_goes_through_it_again():
    batch = next(iter(TrainBatchSampler(3, 8, seed=0)))
    assert [position for position, _ in batch] == list(range(8))
    assert sorted(index for _, index in batch[:3]) == sorted(index for _, index in batch[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("step", range(12))
def test_a_start_at_any_step_gives_the_tail_of_the_stream(step):
    for rank, world_size in ((0, 1), (1, 3)):
        options = {"seed": 5, "rank": rank, "world_size": world_size}
        whole = list(itertools.islice(TrainBatchSampler(7, 3, **options), 20))
        late = TrainBatchSampler(7, 3, start=3 * world_size * step, **options)
        assert list(itertools.islice(late, 20 - step)) == whole[step:]


def test_the_order_is_a_function_of_seed_and_epoch():
    first = next(iter(TrainBatchSampler(50, 50, seed=0)))
    assert first == next(iter(TrainBatchSampler(50, 50, seed=0)))
    assert first != next(iter(TrainBatchSampler(50, 50, seed=1)))
    # Written down, because another version of numpy or of this code must not change the order of a resumed training.
    assert [index for _, index in next(iter(TrainBatchSampler(10, 10, seed=7)))] == [6, 3, 4, 9, 0, 2, 8, 7, 5, 1]
    unshuffled = TrainBatchSampler(3, 2, seed=0, shuffle=False)
    assert list(itertools.islice(unshuffled, 2)) == [[(0, 0), (1, 1)], [(2, 2), (3, 0)]]


@pytest.mark.parametrize("num_records", [12, 4096, 8192, 20_000])
def test_an_echo_repeats_nothing_within_a_batch(num_records):
    batches = iter(TrainBatchSampler(num_records, 3 * (min(num_records, 96) // 3), seed=1, echo=3))
    assert all(len({index for _, index in batch}) == len(batch) for batch in (next(batches) for _ in range(3)))


@pytest.mark.parametrize("num_records", [10, 100])
def test_an_echo_uses_every_record_so_often_an_epoch(monkeypatch, num_records):
    monkeypatch.setattr(TrainBatchSampler, "ECHO_DISTANCE", 7)
    batches = iter(TrainBatchSampler(num_records, 5, seed=1, echo=3))
    stream = [key for _ in range(num_records * 6 // 5) for key in next(batches)]
    assert [position for position, _ in stream] == list(range(num_records * 6))
    for epoch in (stream[: num_records * 3], stream[num_records * 3 :]):
        assert sorted(index for _, index in epoch) == sorted([*range(num_records)] * 3)
    if num_records == 100:  # place 90 is the first use of the 30th record: then 7 records later, and 14
        places = [position for position, index in stream[: num_records * 3] if index == stream[90][1]]
        assert places == [90, 90 + 7 * 3 + 1, 90 + 14 * 3 + 2]
    later = iter(TrainBatchSampler(num_records, 5, seed=1, echo=3, start=20))
    assert next(later) == stream[20:25]


def test_a_late_start_in_the_full_data_set_is_quick():
    started = time.perf_counter()
    batch = next(iter(TrainBatchSampler(1_044_868, 32, seed=0, start=32 * 500_000)))
    assert time.perf_counter() - started < 1
    assert batch[0][0] == 16_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_records": 0}, "there are no records"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"rank": 2, "world_size": 2}, "rank is 2, expected 0 to 1"),
    ],
)
def test_samplings_that_make_no_sense(options, message):
    options = {"num_records": 3, "batch_size": 2, "rank": 0, "world_size": 1, **options}
    with pytest.raises(ValueError, match=message):
        TrainBatchSampler(**options, seed=0)
    with pytest.raises(ValueError, match=message):
        EvalBatchSampler(**options)


def test_a_seed_and_a_limit_that_make_no_sense():
    with pytest.raises(ValueError, match="seed is -1, expected 0 or more"):
        TrainBatchSampler(3, 2, seed=-1)
    with pytest.raises(ValueError, match="limit is 0, expected at least 1"):
        EvalBatchSampler(3, 2, limit=0)


# The real shard


@pytest.fixture
def golden(reference):
    return json.loads((reference / "golden" / "fsns_records.json").read_text(encoding="utf-8"))["records"]


@pytest.fixture
def real_dataset(reference, tmp_path):
    shards = Shards(find_shards(reference / "fsns", "train"), index_dir=tmp_path)
    return FSNSDataset(shards, Charset.from_file(find_charset(reference / "fsns")))


def test_real_records(real_dataset, golden, reference):
    batch = next(iter(make_loader(real_dataset, EvalBatchSampler(5, 5))))
    numbers = np.load(reference / "golden" / "fsns_records.npz")
    assert batch["label"].numpy().tolist() == numbers["image_class"].tolist()
    for i, record in enumerate(golden):
        assert (
            hashlib.md5(batch["image"][i].numpy().tobytes()).hexdigest() == record["decoded_image"]["md5_of_rgb_bytes"]
        )
        assert real_dataset.text(i) == record["reference_decode"]["text_from_label"]


def test_real_records_written_again(real_dataset, golden):
    for i, record in enumerate(golden):
        original = Example.FromString(real_dataset.shards.read(i)).features.feature
        png, text = original["image/encoded"].bytes_list.value[0], original["image/text"].bytes_list.value[0].decode()
        width, height, orig_width = (
            original[f"image/{name}"].int64_list.value[0] for name in ("width", "height", "orig_width")
        )
        size = {"length": 37, "width": width, "height": height, "orig_width": orig_width}
        written = encode_example(png, text, real_dataset.charset, **size)
        features = Example.FromString(written).features.feature
        assert sorted(features) == sorted(record["features"])
        for name, expected in record["features"].items():
            assert features[name] == original[name]
            assert features[name].WhichOneof("kind") == expected["kind"]
            assert len(getattr(features[name], expected["kind"]).value) == expected["count"]
        assert len(written) == record["payload_bytes"]
