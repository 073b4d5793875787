"""FSNS: finding files, examples as the real shard holds them, every bad record."""

import hashlib
import io
import json
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from samples import CHARSET, HEIGHT, LENGTH, WIDTH, encoded, example, pixels
from tfrecord.example_pb2 import Example

from aocr_torch.data import fsns
from aocr_torch.data.charset import Charset
from aocr_torch.data.fsns import FSNSDataset, decode_image, encode_example, find_charset, find_shards
from aocr_torch.data.loader import EvalBatchSampler, make_loader
from aocr_torch.data.records import RecordError, Shards


def changed(payload, name, **feature):
    """The example with one feature replaced, or removed if nothing is given for it."""
    message = Example.FromString(payload)
    del message.features.feature[name]
    for kind, values in feature.items():
        getattr(message.features.feature[name], kind).value.extend(values)
    return message.SerializeToString()


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
        ("**/**/test-0*", ["test/test-00000"]),
    ],
)
def test_find_shards(folder, split_name, expected):
    found = find_shards(folder, split_name.format(folder=folder))
    assert [str(path.relative_to(folder)) for path in found] == expected


def test_find_shards_relative_to_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder / "train")
    assert [path.name for path in find_shards(folder / "test", "train-0000?")] == ["train-00000", "train-00001"]


def test_a_file_of_that_name_in_the_working_directory_is_no_split(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").touch()
    assert [path.name for path in find_shards(folder, "train")] == ["train-00000", "train-00001"]


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
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_pixels_that_end_early_are_damage(mode, has_kornia, monkeypatch):
    """Pillow alone leaves what is missing black."""
    if not has_kornia:
        monkeypatch.setattr(fsns, "decode_png", None)
    buffer = io.BytesIO()
    Image.fromarray(pixels(0)).convert(mode).save(buffer, "PNG")
    whole = buffer.getvalue()
    decode_image(whole, HEIGHT, WIDTH)
    rows = zlib.decompress(fsns.compressed_pixels(whole))
    body = b"IDAT" + zlib.compress(rows[: len(rows) // 2])
    start, end = whole.index(b"IDAT") - 4, whole.index(b"IEND") - 4
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    with pytest.raises(ValueError, match=f"its pixels end early, after {len(rows) // 2} of {len(rows)} bytes"):
        decode_image(whole[:start] + chunk + whole[end:], HEIGHT, WIDTH)


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
        r"image/class has 2 ids, expected 5: set --max_sequence_length",
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
        r"the image is 9x4, expected 8x4: set --image_width",
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


def test_a_dataset_can_be_sent_to_a_spawned_process(make_dataset):
    dataset = make_dataset([example(i) for i in range(3)])
    first = dataset[0]["image"]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0]["image"], first)


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


def test_labels_stand_beside_their_pictures(make_dataset):
    payloads = [example(number) for number in range(5)]
    batch = make_dataset(payloads).batch([3, 0, 4])
    for place, number in enumerate((3, 0, 4)):
        assert torch.equal(batch["image"][place], torch.from_numpy(pixels(number)))
        text = "abcdefghij"[number % 10] * (1 + number % LENGTH)
        assert batch["label"][place].tolist() == CHARSET.encode(text, LENGTH)


def test_more_records_asked_for_than_there_are(make_dataset):
    assert len(make_dataset([example(n) for n in range(3)], num_records=100)) == 3


def test_no_warning_where_no_record_has_a_text_or_half_of_them_differ(make_dataset):
    def with_text(payload, *texts):
        message = Example.FromString(payload)
        del message.features.feature["image/text"]
        message.features.feature["image/text"].bytes_list.value.extend(texts)
        return message.SerializeToString()

    payloads = [example(number) for number in range(4)]
    assert make_dataset([with_text(each) for each in payloads]).charset_warning() is None
    half = [with_text(each, b"other") if n % 2 else each for n, each in enumerate(payloads)]
    assert make_dataset(half).charset_warning() is None


def test_a_folder_with_characters_of_a_pattern(tmp_path):
    (tmp_path / "set[1]" / "train").mkdir(parents=True)
    (tmp_path / "set[1]" / "train" / "train-00000").touch()
    assert [path.name for path in find_shards(tmp_path / "set[1]", "train")] == ["train-00000"]
