"""Synthetic signs: deterministic, held-out names, FSNS format, and nothing half-written."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from aocr_torch.data import synthetic
from aocr_torch.data.charset import Charset
from aocr_torch.data.fsns import FSNSDataset, find_charset, find_shards
from aocr_torch.data.records import Shards
from aocr_torch.data.synthetic import PRESETS, SyntheticParameters, draw_record, encode_png, synthesize
from aocr_torch.data.synthetic_effects import SignEffects, SynthesisError
from aocr_torch.data.synthetic_names import split_of

TINY = replace(PRESETS["demo"], num_train=7, num_validation=2, num_test=3, records_per_shard=3)


def generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_png_holds_the_picture():
    picture = generator().integers(0, 256, (17, 23, 3), np.uint8)
    image = Image.open(io.BytesIO(encode_png(picture)))
    assert image.format == "PNG"
    assert image.mode == "RGB"
    assert (np.asarray(image) == picture).all()


def test_a_record_depends_on_seed_split_and_index_alone():
    charset = TINY.charset()
    record = draw_record(TINY, charset, "train", 5)
    assert record == draw_record(replace(TINY, num_train=900), charset, "train", 5)
    assert record != draw_record(TINY, charset, "train", 6)
    assert record != draw_record(TINY, charset, "test", 5)
    assert record != draw_record(replace(TINY, seed=1), charset, "train", 5)


def test_the_files_do_not_depend_on_the_number_of_processes(tmp_path):
    finished = []
    one = synthesize(tmp_path / "one", TINY, processes=1, report=finished.append)
    two = synthesize(tmp_path / "two", TINY, processes=2, report=finished.append)
    assert one.was_written
    assert two.was_written
    assert sum(finished) == 2 * (7 + 2 + 3)
    written = files(tmp_path / "one")
    assert sorted(name for name in written if name.startswith("train/")) == [
        f"train/train-{shard:05d}-of-00003" for shard in range(3)
    ]
    assert written == files(tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize("names", ["french", "short"])
def test_the_data_set_reads_back_as_fsns(tmp_path, names):
    parameters = replace(TINY, names=names, max_length=14, effects=replace(TINY.effects, missing_views=0.6))
    summary = synthesize(tmp_path / "signs", parameters, processes=1)
    charset = Charset.from_file(find_charset(tmp_path / "signs"))
    assert charset.size == summary.charset_size
    assert charset.null_id == charset.size - 1
    for split, count in summary.counts.items():
        shards = Shards(find_shards(tmp_path / "signs", split))
        dataset = FSNSDataset(shards, charset, image_height=48, image_width=192, max_sequence_length=14)
        assert len(dataset) == count
        for index in range(count):
            sample = dataset[index]
            assert sample["image"].shape == (48, 192, 3)
            assert charset.decode(sample["label"].tolist()) == dataset.text(index)
            assert split_of(dataset.text(index)) == split


def test_orig_width_gives_the_number_of_real_views():
    from tfrecord.example_pb2 import Example

    parameters = replace(TINY, num_views=4, effects=replace(TINY.effects, missing_views=1.0))
    example = Example.FromString(draw_record(parameters, parameters.charset(), "train", 0))
    value = {name: feature.int64_list.value for name, feature in example.features.feature.items()}
    assert list(value["image/width"]) == [4 * 96]
    assert value["image/orig_width"][0] in (96, 192, 288)


def test_the_same_parameters_are_not_drawn_twice(tmp_path):
    synthesize(tmp_path / "signs", TINY, processes=1)
    before = files(tmp_path / "signs")
    (tmp_path / "signs" / "train" / "more").touch()
    assert not synthesize(tmp_path / "signs", TINY, processes=1).was_written
    assert (tmp_path / "signs" / "train" / "more").exists()
    with pytest.raises(SynthesisError, match=r"differs in seed\).*--force"):
        synthesize(tmp_path / "signs", replace(TINY, seed=1), processes=1)
    assert synthesize(tmp_path / "signs", replace(TINY, seed=1), processes=1, force=True).was_written
    after = files(tmp_path / "signs")
    assert "train/more" not in after
    assert after["test/test-00000-of-00001"] != before["test/test-00000-of-00001"]


@pytest.mark.parametrize("content", [None, "no json", "[1]"])
def test_a_folder_with_anything_else_is_never_replaced(tmp_path, content):
    (tmp_path / "thesis.tex").touch()
    if content is not None:
        (tmp_path / synthetic.PARAMETERS_FILE).write_text(content)
    with pytest.raises(SynthesisError, match="holds no synthetic data set: name another folder"):
        synthesize(tmp_path, TINY, processes=1, force=True)
    assert (tmp_path / "thesis.tex").exists()


def test_what_else_lies_in_the_folder_is_never_lost(tmp_path):
    synthesize(tmp_path, TINY, processes=1)
    (tmp_path / "runs").mkdir()
    with pytest.raises(SynthesisError, match="is replaced as a whole, and runs in it is none of its own"):
        synthesize(tmp_path, replace(TINY, seed=1), processes=1, force=True)
    assert (tmp_path / "runs").exists()


def test_an_interrupted_call_leaves_nothing(tmp_path):
    def interrupt(count):
        raise KeyboardInterrupt

    (tmp_path / "signs").mkdir()  # an empty folder is as good as none
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "signs", TINY, processes=1, report=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["signs"]
    assert files(tmp_path) == {}


def test_what_is_there_already_may_be_a_mount_point(tmp_path, monkeypatch):
    synthesize(tmp_path / "signs", TINY, processes=1)
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    assert not synthesize(tmp_path / "signs", TINY, processes=1).was_written
    with pytest.raises(OSError, match="is a mount point"):
        synthesize(tmp_path / "signs", replace(TINY, seed=1), processes=1, force=True)


def test_an_error_in_another_process_is_not_lost(tmp_path):
    """Also without a report, as train.py draws; a full disk is stood in for by a limit on the size of files."""
    code = (
        "import resource, sys\n"
        "from dataclasses import replace\n"
        "from aocr_torch.data.synthetic import PRESETS, synthesize\n"
        "if __name__ == '__main__':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "    synthesize(sys.argv[1], replace(PRESETS['demo'], num_train=6, records_per_shard=3), processes=2)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "signs"], capture_output=True, text=True)
    assert "OSError: [Errno 27]" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train": -1}, "num_train is -1: expected at least 0"),
        ({"num_train": 0, "num_validation": 0, "num_test": 0}, "all 0: nothing to draw"),
        ({"num_views": 0}, "num_views is 0"),
        ({"height": 8}, "height is 8: expected at least 16"),
        ({"max_length": 5}, "max_length is 5: expected at least 8"),
        ({"difficulty": 1.5}, "difficulty is 1.5"),
        ({"names": "german"}, "names is 'german'"),
        ({"seed": -1}, "seed is -1"),
        ({"effects": SignEffects(yaw=120)}, "effects.yaw is 120: expected 0 .. 70"),
        ({"effects": SignEffects(noise_band=0.6)}, "effects.noise_band is 0.6: expected 0 .. 0.5"),
        ({"effects": SignEffects(max_lines=0)}, "effects.max_lines is 0: expected 1 .. 4"),
        ({"effects": SignEffects(rust=-0.1)}, "effects.rust is -0.1: expected 0 .. 1"),
        ({"effects": SignEffects(wood_plates=0.9)}, "effects.wood_plates \\+ .* is 1.23: expected at most 1"),
        ({"effects": SignEffects(town=0.7, arrondissement=0.7)}, "effects.town \\+ effects.arrondissement is 1.4"),
        ({"effects": SignEffects(upper_case=0.8, mixed_case=0.8)}, "effects.upper_case"),
    ],
)
def test_bad_parameters_name_the_field_in_one_line(tmp_path, change, message):
    with pytest.raises(SynthesisError, match=message.replace("(", r"\(")) as caught:
        synthesize(tmp_path / "signs", replace(SyntheticParameters(), **change))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "signs").exists()


def test_bad_number_of_processes(tmp_path):
    with pytest.raises(SynthesisError, match="processes is 0"):
        synthesize(tmp_path / "signs", TINY, processes=0)


def test_the_parameters_stand_beside_the_data(tmp_path):
    synthesize(tmp_path / "signs", TINY, processes=1)
    described = json.loads((tmp_path / "signs" / synthetic.PARAMETERS_FILE).read_text())
    assert described["effects"]["yaw"] == TINY.effects.yaw
    assert described["num_train"] == 7
