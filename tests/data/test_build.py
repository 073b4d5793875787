"""Data sets from one's own pictures: what is written, what is left out, and that nothing is lost or half done."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from aocr_torch.config import from_yaml
from aocr_torch.data.build import SPLITS, BuildError, BuildParameters, build, deal_out
from aocr_torch.data.charset import Charset
from aocr_torch.data.fsns import FSNSDataset, find_charset, find_shards
from aocr_torch.data.listing import Entry, read_listing
from aocr_torch.data.records import Shards

SMALL = {"image_height": 16, "image_width": 48, "num_views": 3, "max_sequence_length": 8}


def parameters(**changes) -> BuildParameters:
    return BuildParameters(**{**SMALL, "validation": 0.0, "test": 0.0, **changes})


def photos(folder: Path, texts: list[str], size=(30, 20)) -> Path:
    """A folder with a list of these labels, each with a picture of its own."""
    folder.mkdir(parents=True)
    for number in range(len(texts)):
        noise = np.random.RandomState(number).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    (folder / "l.tsv").write_text("".join(f"{n}.png\t{text}\n" for n, text in enumerate(texts)), encoding="utf-8")
    return folder / "l.tsv"


def read_back(out: Path, split: str = "train") -> list[dict]:
    dataset = FSNSDataset(
        Shards(find_shards(out, split)),
        Charset.from_file(find_charset(out)),
        image_height=16,
        image_width=48,
        max_sequence_length=8,
    )
    return [{**dataset[index], "text": dataset.text(index)} for index in range(len(dataset))]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_pictures_and_labels_come_back(tmp_path):
    texts = ["Rue Él", "quai", "a b c"]
    source = photos(tmp_path / "photos", texts, size=(48, 16))
    summary = build(read_listing(source), tmp_path / "out", parameters(), processes=1)
    assert summary.counts == {"train": 3, "validation": 0, "test": 0}
    assert summary.problems == []
    records = read_back(tmp_path / "out")
    assert [record["text"] for record in records] == texts
    for number, record in enumerate(records):
        assert np.array_equal(record["image"], np.asarray(Image.open(tmp_path / "photos" / f"{number}.png")))
    assert summary.charset.characters[0] == " "
    assert set(summary.charset.characters[:-1]) == set("".join(texts))


def test_a_photo_is_one_view_and_views_are_cut(tmp_path):
    source = photos(tmp_path / "photos", ["a"])
    listing = read_listing(source)
    for views, real in ((None, 16), (2, 32)):
        build(listing, tmp_path / f"out{views}", parameters(views=views), processes=1)
        (record,) = read_back(tmp_path / f"out{views}")
        features = read_features(tmp_path / f"out{views}")
        assert features["image/orig_width"].int64_list.value == [real]
        assert (record["image"][0, 0] == 128).all(), "the letterbox's grey"
        assert record["image"][:, real:].float().std() > 65, "noise in the missing views"


def read_features(out: Path):
    from tfrecord.example_pb2 import Example

    return Example.FromString(Shards(find_shards(out, "train")).read(0)).features.feature


def test_every_picture_is_in_one_split(tmp_path):
    source = photos(tmp_path / "photos", [f"{n:02d}" for n in range(20)])
    options = parameters(validation=0.2, test=0.1, records_per_shard=4)
    summary = build(read_listing(source), tmp_path / "out", options, processes=1)
    assert summary.counts == {"train": 14, "validation": 4, "test": 2}
    texts = [record["text"] for split in SPLITS for record in read_back(tmp_path / "out", split)]
    assert sorted(texts) == [f"{n:02d}" for n in range(20)]
    assert [path.name for path in find_shards(tmp_path / "out", "train")][-1] == "train-00003-of-00004"


def test_dealing_out():
    entries = [Entry(Path(f"{n}"), "a", f"{n}", "l") for n in range(1000)]
    by_hash = parameters(validation=0.1, test=0.2, split_by="hash")
    all_in, first_half = deal_out(entries, by_hash), deal_out(entries[:500], by_hash)
    assert abs(len(all_in["validation"]) - 100) < 40
    assert abs(len(all_in["test"]) - 200) < 50
    for split in SPLITS:
        assert all_in[split][: len(first_half[split])] == first_half[split]
    exact = deal_out(entries, parameters(validation=0.1, test=0.2))
    assert [len(exact[split]) for split in SPLITS] == [700, 100, 200]
    other_seed = deal_out(entries, parameters(validation=0.1, test=0.2, seed=1))
    assert other_seed["test"] != exact["test"]
    few = deal_out(entries[:3], parameters(validation=0.1, test=0.1))
    assert [len(few[split]) for split in SPLITS] == [1, 1, 1]
    assert len(deal_out(entries[:2], parameters(validation=0.1, test=0.1))["train"]) == 2
    for count, shares in ((10, (0.95, 0.04)), (4, (0.49, 0.49)), (1, (0.9, 0.0))):
        greedy = deal_out(entries[:count], parameters(validation=shares[0], test=shares[1]))
        assert len(greedy["train"]) == 1


def test_what_cannot_be_used_is_left_out_and_listed(tmp_path):
    texts = ["good", "x" * 9, "gone", "broken", "bomb", "folder", "fine"]
    source = photos(tmp_path / "photos", texts)
    folder = source.parent
    (folder / "2.png").unlink()
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])
    (folder / "4.png").write_bytes(tiny.bomb())
    (folder / "5.png").unlink()
    (folder / "5.png").mkdir()
    source.write_text(source.read_text() + "one column\n")
    summary = build(read_listing(source), tmp_path / "out", parameters(records_per_shard=1), processes=1)
    assert [record["text"] for record in read_back(tmp_path / "out")] == ["good", "fine"]
    assert [path.name for path in find_shards(tmp_path / "out", "train")] == [
        "train-00000-of-00002",
        "train-00001-of-00002",
    ]
    for line, expected in zip(
        summary.problems,
        [
            "l.tsv:8: found 1 column(s)",
            "l.tsv:2: the label of 1.png has 9 characters, expected at most 8",
            "l.tsv:3: 2.png: there is no such file",
            "l.tsv:4: 3.png: cannot be read",
            "l.tsv:5: 4.png: has more than 89,478,485 pixels",
            "l.tsv:6: 5.png: is a folder without pictures",
        ],
    ):
        assert line.startswith(expected)
    assert len(summary.problems) == 6


def test_characters_that_a_given_charset_lacks(tmp_path):
    source = photos(tmp_path / "photos", ["ab", "aÅ", *["cc"] * 7, "b"])
    charset = Charset(((0, "a"), (1, "b"), (1, "B"), (2, "<nul>")))
    summary = build(read_listing(source), tmp_path / "out", parameters(), charset, processes=1)
    assert summary.charset == Charset.from_file(find_charset(tmp_path / "out")) == charset
    assert [record["text"] for record in read_back(tmp_path / "out")] == ["aB", "B"]
    assert len(summary.problems) == 8
    assert summary.unknown_lines() == [
        "not in the charset: 'c' (U+0063 LATIN SMALL LETTER C) "
        "at l.tsv:3, l.tsv:4, l.tsv:5, l.tsv:6, l.tsv:7 and 2 more",
        "not in the charset: 'Å' (U+00C5 LATIN CAPITAL LETTER A WITH RING ABOVE) at l.tsv:2",
    ]


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_processes(tmp_path):
    source = photos(tmp_path / "photos", [f"{n:02d}" for n in range(9)])
    (source.parent / "3.png").write_bytes(b"no picture")
    done = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        options = parameters(records_per_shard=2)
        summary = build(read_listing(source), out, options, processes=processes, report=done.append)
        assert len(summary.problems) == 1
    one, two = files(tmp_path / "1"), files(tmp_path / "2")
    assert sum(done) == 18
    assert {name for name in one if name != "config.yaml"} == {name for name in two if name != "config.yaml"}
    assert all(one[name] == two[name] for name in one if name != "config.yaml")


def test_nothing_is_overwritten_by_accident(tmp_path):
    listing = read_listing(photos(tmp_path / "photos", ["a"]))
    out = tmp_path / "out"
    build(listing, out, parameters(), processes=1)
    before = files(out)
    with pytest.raises(BuildError, match="give --force"):
        build(listing, out, parameters(), processes=1)
    for force in (False, True):
        with pytest.raises(BuildError, match="was not written by make_tfrecords"):
            build(listing, tmp_path / "photos", parameters(), processes=1, force=force)
    assert files(out) == before
    (out / "runs").mkdir()
    with pytest.raises(BuildError, match="is replaced as a whole, and runs in it is none of its own"):
        build(listing, out, parameters(image_height=20), processes=1, force=True)
    (out / "runs").rmdir()
    build(listing, out, parameters(image_height=20), processes=1, force=True)
    assert files(out) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_a_call_that_fails_leaves_nothing(tmp_path):
    source = photos(tmp_path / "photos", ["a", "b"])
    listing = read_listing(source)

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(listing, tmp_path / "out", parameters(), processes=1, report=stop)
    for number in range(2):
        (source.parent / f"{number}.png").write_bytes(b"")
    with pytest.raises(BuildError, match=r"no picture can be used: 2 left out, the first: l\.tsv:1: 0\.png: is empty"):
        build(listing, tmp_path / "out", parameters(), processes=1)
    with pytest.raises(BuildError, match="no picture can be used"):
        build(listing, tmp_path / "out", parameters(), Charset.from_characters(["z"]), processes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_width": 50}, "image_width 50 with num_views 3"),
        ({"max_sequence_length": 0}, "max_sequence_length is 0"),
        ({"image_height": 0}, "must be at least 1"),
        ({"records_per_shard": 0}, "must be at least 1"),
        ({"views": 4}, "views is 4: expected 1 to num_views, 3"),
        ({"validation": 0.6, "test": 0.4}, "under 1 together"),
        ({"validation": float("nan")}, "expected shares"),
    ],
)
def test_parameters_that_cannot_be(changes, message):
    with pytest.raises(BuildError, match=message):
        parameters(**changes).check()


def test_processes_must_be_some(tmp_path):
    with pytest.raises(BuildError, match="processes is 0"):
        build(read_listing(photos(tmp_path / "p", ["a"])), tmp_path / "out", parameters(), processes=0)


def test_the_config_is_train_pys(tmp_path):
    build(read_listing(photos(tmp_path / "photos", ["a"])), tmp_path / "out", parameters(), processes=1)
    data = from_yaml(tmp_path / "out" / "config.yaml").data
    assert Path(data.dataset_dir) == tmp_path / "out"
    assert {name: getattr(data, name) for name in SMALL} == SMALL
