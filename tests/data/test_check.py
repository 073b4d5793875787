"""Checking data sets: each defect is found and named, a sound one passes, and it goes back to files."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from tfrecord.example_pb2 import Example

from aocr_torch.data.build import BuildError, BuildParameters, build
from aocr_torch.data.charset import Charset
from aocr_torch.data.check import Layout, check, find_layout, to_images
from aocr_torch.data.fsns import find_charset, find_shards
from aocr_torch.data.listing import read_listing
from aocr_torch.data.records import Shards, write_shard

LAYOUT = Layout(48, 96, 4)


@pytest.fixture
def record() -> Example:
    return Example.FromString(tiny.example("abc", np.random.RandomState(0)))


def splits_of(folder: Path) -> dict[str, list[Path]]:
    return {name: find_shards(folder, name) for name in ("train", "validation", "test")}


def check_one(tmp_path: Path, *records: bytes, **options):
    write_shard(tmp_path / "s-00000", records)
    return check({"s": [tmp_path / "s-00000"]}, tiny.CHARSET, LAYOUT, **options)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_a_sound_data_set(tiny_dataset):
    done = []
    found = check(splits_of(tiny_dataset), tiny.CHARSET, num_samples=5, report=done.append)
    assert (found.problems, found.notes) == ([], [])
    assert found.layout == LAYOUT
    assert {split: (f.records, f.good) for split, f in found.splits.items()} == {
        "train": (11, 11),
        "validation": (5, 5),
        "test": (7, 7),
    }
    assert len(done) == sum(map(len, splits_of(tiny_dataset).values()))
    assert len(found.splits["train"].samples) >= 5
    summary = found.summary()
    assert summary[0].startswith("train: 11 of 11 records good; labels of 1 to 4 characters")
    assert "charset of 7: 5 characters occur: ' ' never occur" in summary
    assert summary[-1] == "23 of 23 records good, 0 problems, 0 notes"


@pytest.mark.slow
def test_processes_find_the_same(tiny_dataset):
    splits = splits_of(tiny_dataset)
    splits["again"] = splits["test"]
    one, two = (check(splits, tiny.CHARSET, processes=processes) for processes in (1, 2))
    assert one.problems == two.problems
    assert one.summary() == two.summary()
    assert len(one.problems) == 7


def _set_ints(name, *values):
    def change(features):
        features[name].int64_list.value[:] = values

    return change


def _set_bytes(name, value):
    def change(features):
        features[name].bytes_list.value[:] = [value]

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_set_ints("image/class", 1, 2, 3), "the label image/class has 3 ids, expected 4"),
        (_set_ints("image/class", 1, 2, 3, 99), "the unknown id 99"),
        (_set_ints("image/class", 6, 6, 6, 6), "the label is empty"),
        (_set_ints("image/class", 1, 6, 2, 3), "has a null before its end"),
        (_set_ints("image/unpadded_class", 1, 2), "image/unpadded_class has 2 ids"),
        (_set_bytes("image/text", b"abd"), "image/class says 'abc', image/text says 'abd'"),
        (_set_bytes("image/text", b"a\xff"), "image/text says 'a\ufffd'"),
        (_set_ints("image/width", 600), "image/width says 600, the image has 96 pixels"),
        (_set_ints("image/orig_width", 97), "image/orig_width says 97, expected 1 to 96"),
        (_set_bytes("image/encoded", png(np.zeros((48, 96, 3), np.uint8))), "the image is of one colour, (0, 0, 0)"),
        (_set_bytes("image/encoded", png(np.zeros((48, 90, 3), np.uint8))), "the image is 90x48, expected 96x48"),
        (_set_bytes("image/encoded", b"text"), "the image does not decode"),
    ],
)
def test_a_defect_is_named(change, problem, record, tmp_path):
    good = record.SerializeToString()
    change(record.features.feature)
    found = check_one(tmp_path, good, record.SerializeToString())
    assert problem in found.problems[0]
    assert found.problems[0].startswith("s-00000:1 (offset ")
    assert (found.splits["s"].records, found.splits["s"].good) == (2, 1)


def test_damaged_files(record, tmp_path):
    write_shard(tmp_path / "s-00000", [record.SerializeToString()] * 3)
    content = bytearray((tmp_path / "s-00000").read_bytes())
    content[100] ^= 1
    (tmp_path / "s-00000").write_bytes(content[:-5])
    found = check({"s": [tmp_path / "s-00000"]}, tiny.CHARSET)
    assert "s-00000:2" in found.problems[0]
    assert "the file ends after" in found.problems[0]
    assert "s-00000:0 (offset 0): crc of the data is wrong" in found.problems[1]
    assert found.summary()[-1] == "1 of 3 records good, 2 problems, 0 notes"


def test_duplicates(tmp_path):
    first, second = (tiny.example(text, np.random.RandomState(0)) for text in ("abc", "de"))
    other_label = Example.FromString(first)
    other_label.features.feature["image/class"].int64_list.value[:] = [1, 2, 6, 6]
    for name in ("image/text", "image/unpadded_class"):
        del other_label.features.feature[name]
    write_shard(tmp_path / "train-0", [first, first, second])
    write_shard(tmp_path / "test-0", [second, other_label.SerializeToString()])
    found = check({"train": [tmp_path / "train-0"], "test": [tmp_path / "test-0"]}, tiny.CHARSET)
    assert found.notes == ["train-0:0 and train-0:1 are the same record"]
    assert found.problems == [
        "train-0:2 and test-0:0 are the same record in train and test: remove one",
        "train-0:0 and test-0:1 show the same picture with the labels 'abc' and 'ab'",
    ]


def test_characters_that_share_an_id_agree(tmp_path):
    charset = Charset(((0, "'"), (0, "’"), (1, "<nul>")))
    picture = png(np.random.RandomState(0).randint(0, 9, (48, 96, 3)).astype(np.uint8))
    from aocr_torch.data.fsns import encode_example

    payload = encode_example(picture, "'", charset, length=4, width=96, height=48, orig_width=96)
    write_shard(tmp_path / "s", [payload])
    found = check({"s": [tmp_path / "s"]}, charset)
    assert found.problems == []
    assert found.splits["s"].pictures[0][1] == "'", "as it was written, not as the charset prints its id"


def test_the_layout_is_the_first_readable_records(record, tmp_path):
    broken = Example.FromString(record.SerializeToString())
    broken.features.feature["image/encoded"].bytes_list.value[:] = [b"x"]
    write_shard(tmp_path / "s", [b"no example", broken.SerializeToString(), record.SerializeToString()])
    assert find_layout([tmp_path / "s"], tiny.CHARSET) == LAYOUT
    write_shard(tmp_path / "t", [b"no example"])
    (tmp_path / "u").write_bytes(b"no TFRecord at all")
    for name, reason in (("t", "Error parsing"), ("u", "crc of the length is wrong")):
        with pytest.raises(BuildError, match=f"no record can be read: .*{reason}"):
            find_layout([tmp_path / name], tiny.CHARSET)
    with pytest.raises(BuildError, match="there are no records"):
        find_layout([], tiny.CHARSET)


def test_to_files_and_back_is_the_same_data(tiny_dataset, tmp_path):
    out = tmp_path / "files"
    assert to_images(splits_of(tiny_dataset), tiny.CHARSET, LAYOUT, out) == (23, 0)
    rows = list(csv.reader((out / "test.csv").open(encoding="utf-8")))
    assert (rows[0], len(rows)) == (["path", "text"], 8)
    options = BuildParameters(48, 96, 2, 4, validation=0, test=0)
    summary = build(read_listing(out / "test.csv"), tmp_path / "again", options, tiny.CHARSET, processes=1)
    assert summary.counts["train"] == 7
    old, new = (Shards(find_shards(*where)) for where in ((tiny_dataset, "test"), (tmp_path / "again", "train")))
    for index in range(7):
        before, after = (Example.FromString(shards.read(index)).features.feature for shards in (old, new))
        for name in before:
            if name != "image/encoded":
                assert before[name] == after[name], name
        images = [
            np.asarray(Image.open(io.BytesIO(features["image/encoded"].bytes_list.value[0])))
            for features in (before, after)
        ]
        assert np.array_equal(*images)
    assert Charset.from_file(find_charset(tmp_path / "again")) == tiny.CHARSET


def test_to_files_leaves_out_the_bad_and_overwrites_nothing(record, tmp_path):
    write_shard(tmp_path / "s", [b"no example", record.SerializeToString()])
    shards = {"train": [tmp_path / "s"]}
    (tmp_path / "out").mkdir()
    assert to_images(shards, tiny.CHARSET, LAYOUT, tmp_path / "out") == (1, 1)
    with pytest.raises(BuildError, match="is not an empty folder"):
        to_images(shards, tiny.CHARSET, LAYOUT, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".index")) == ["out", "s"]


def test_to_files_of_splits_that_are_patterns(tiny_dataset, tmp_path):
    """Their names are no folders, and shards of one name may lie in two."""
    charset, layout = Charset.from_file(find_charset(tiny_dataset)), Layout(48, 96, tiny.LENGTH)
    (tmp_path / "again").mkdir()
    first = find_shards(tiny_dataset, "train")[0]
    again = tmp_path / "again" / first.name
    again.write_bytes(first.read_bytes())
    before = {path for path in tiny_dataset.rglob("*")}
    splits = {f"{tiny_dataset}/train/train*": [first, again], "*/train*": [first]}
    written, lost = to_images(splits, charset, layout, tmp_path / "files")
    assert (written, lost) == (3 * len(Shards([first])), 0)
    assert len(list((tmp_path / "files").rglob("*.png"))) == written
    for listing in (tmp_path / "files").glob("*.csv"):
        assert not read_listing(listing).problems
        assert all(entry.path.is_file() for entry in read_listing(listing).entries)
    assert {path for path in tiny_dataset.rglob("*")} == before
