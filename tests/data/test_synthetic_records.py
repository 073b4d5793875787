"""Signs that are drawn when they are read: the same records as on disk, and trainings that go on to the bit."""

from dataclasses import replace

import pytest
import torch

from aocr_torch.config import parse_arguments
from aocr_torch.data.charset import Charset
from aocr_torch.data.fsns import FSNSDataset, find_charset, find_shards
from aocr_torch.data.loader import TrainBatchSampler, make_loader
from aocr_torch.data.records import Shards
from aocr_torch.data.synthetic import PRESETS, synthesize
from aocr_torch.data.synthetic_effects import SynthesisError
from aocr_torch.data.synthetic_names import split_of
from aocr_torch.data.synthetic_records import COUNTS, DrawnRecords
from aocr_torch.training import checkpoint
from aocr_torch.training.evaluate import open_dataset
from aocr_torch.training.loop import train

DEMO = PRESETS["demo"]
LAYOUT = {"image_height": 48, "image_width": 192, "max_sequence_length": 10}


def drawn(split="train"):
    records = DrawnRecords(DEMO, split)
    return FSNSDataset(records, records.charset, **LAYOUT)


def configure(**changes):
    values = {
        **{"synthesize": "demo", "dataset_dir": "", "device": "cpu", "num_views": 2, **LAYOUT, "batch_size": 2},
        **{"num_workers": 0, "final_endpoint": "Conv2d_3b_1x1", "num_lstm_units": 8, "summary_interval_steps": 0},
        **changes,
    }
    return parse_arguments([f"--{name}={value}" for name, value in values.items()], description="test")[0]


def test_the_samples_are_those_of_the_data_set_on_disk(tmp_path):
    synthesize(tmp_path / "signs", replace(DEMO, num_train=6, num_validation=2, num_test=2), processes=1)
    charset = Charset.from_file(find_charset(tmp_path / "signs"))
    for split in COUNTS:
        ours = drawn(split)
        theirs = FSNSDataset(Shards(find_shards(tmp_path / "signs", split)), charset, **LAYOUT)
        assert ours.charset == charset
        assert len(ours) == COUNTS[split] > len(theirs)
        for index in range(len(theirs)):
            sample, expected = ours[7, index], theirs[7, index]
            assert sample.keys() == expected.keys()
            assert (sample["image"] == expected["image"]).all()
            assert (sample["label"] == expected["label"]).all()
            assert (sample["index"], sample["position"]) == (index, 7)
            assert ours.text(index) == theirs.text(index)
            assert split_of(ours.text(index)) == split
    assert ours.name(1) == "drawn-test:1"


def test_workers_draw_the_same_batches_from_any_place():
    def batches(count, workers, start=0):
        sampler = TrainBatchSampler(len(drawn()), 3, seed=4, start=start)
        loader = iter(make_loader(drawn(), sampler, num_workers=workers))
        return [next(loader) for _ in range(count)]

    alone, together, later = batches(4, 0), batches(4, 2), batches(2, 0, start=6)
    for first, second in zip([*alone, *alone[2:]], [*together, *later]):
        assert all(torch.equal(first[name], second[name]) for name in ("image", "label", "index", "position"))


def test_a_training_without_a_data_set_goes_on_to_the_bit(tmp_path):
    def run(folder, steps):
        assert train(configure(train_log_dir=tmp_path / folder, max_number_of_steps=steps)) == 0
        return checkpoint.load(checkpoint.Checkpoints(tmp_path / folder, 5).newest())

    run("twice", 2)
    resumed, straight = run("twice", 4), run("once", 4)
    assert resumed["step"] == straight["step"] == 4
    assert resumed["model"].keys() == straight["model"].keys()
    assert all(torch.equal(resumed["model"][name], value) for name, value in straight["model"].items())
    assert {path.name for path in tmp_path.iterdir()} == {"once", "twice"}


def test_records_can_be_limited_and_held_out_ones_are_drawn_too():
    assert len(open_dataset(configure(num_records=5), "train")) == 5
    dataset = open_dataset(configure(), "validation")
    assert split_of(dataset.text(1999)) == "validation"
    with pytest.raises(IndexError, match="record 2000 does not exist"):
        dataset.text(2000)


def test_signs_are_drawn_in_the_configured_layout():
    sample = open_dataset(configure(num_views=1, image_width=64, image_height=40), "train")[3]
    assert sample["image"].shape == (40, 64, 3)
    assert sample["label"].shape == (10,)


def test_what_does_not_fit_is_one_line():
    with pytest.raises(SynthesisError, match="split 'trian' cannot be drawn: expected one of train, validation, test"):
        open_dataset(configure(), "trian")
    with pytest.raises(SynthesisError, match="max_length is 2: expected at least"):
        open_dataset(configure(max_sequence_length=2), "train")
    fsns = Charset.fsns()
    with pytest.raises(ValueError, match="the checkpoint's charset is not that of demo"):
        open_dataset(configure(), "train", fsns)
