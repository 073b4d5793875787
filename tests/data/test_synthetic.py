"""Synthetic signs: deterministic, held-out names, FSNS format, and nothing half-written."""

import io
import json
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
from aocr_torch.data.synthetic_names import PARTICLES, draw_label, name_characters, split_of
from aocr_torch.data.synthetic_signs import draw_sign

TINY = replace(PRESETS["demo"], num_train=7, num_validation=2, num_test=3, records_per_shard=3)
CLEAN = SignEffects(upper_case=1, mixed_case=0).scaled(0)


def generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def labels(style, split, count=1500, max_length=37):
    rng = generator()
    return [draw_label(rng, style, max_length, split) for _ in range(count)]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("style", ["french", "short"])
def test_labels_are_title_cased_and_made_of_the_charset(style):
    charset = Charset.from_characters(name_characters(style))
    assert charset.decode([0]) == " "
    seen = set()
    for label in labels(style, "train"):
        assert charset.decode(charset.encode(label, 37)) == label
        assert label == " ".join(label.split())
        first, *rest = label.split(" ")
        assert first[0].isupper()
        assert first[1:] != first[1:].upper()
        for word in rest:
            small = word in PARTICLES or word[:2] in ("d'", "l'")
            assert small or word[0].isupper() or word[0].isdigit(), label
        seen |= set(label)
    assert len(seen) > 0.9 * (charset.size - 1), "the charset holds characters that the grammar does not produce"


def test_no_name_of_another_split_occurs_in_training():
    def names(split):
        return {label.partition(" ")[2] for label in labels("french", split)}

    train, validation, test = names("train"), names("validation"), names("test")
    assert not train & test
    assert not train & validation
    assert not validation & test
    assert split_of("Rue de la Paix") == split_of("Avenue de la Paix")
    assert {split_of(label) for label in labels("short", "test", count=50)} == {"test"}


@pytest.mark.parametrize("style", ["french", "short"])
def test_short_labels_are_varied_and_no_longer_than_asked(style):
    short = labels(style, "test", count=60, max_length=8)
    assert max(map(len, short)) == 8
    assert len(set(short)) > 40


@pytest.mark.parametrize("preset", ["fsns", "demo"])
def test_the_picture_has_the_views_that_were_asked_for(preset):
    parameters = PRESETS[preset]
    effects = replace(parameters.effects, missing_views=0, noise_band=0)
    height, width, views = parameters.height, parameters.view_width, parameters.num_views
    picture, num_real = draw_sign(generator(), "Rue Ada", views, height, width, effects)
    assert num_real == views
    assert picture.shape == (height, views * width, 3)
    assert picture.dtype == np.uint8
    first, second = picture[:, :width].astype(int), picture[:, width : 2 * width].astype(int)
    assert np.abs(first - second).mean() > 2


def test_missing_views_are_uniform_noise():
    effects = replace(CLEAN, missing_views=1.0)
    picture, num_real = draw_sign(generator(2), "Rue Ada", 4, 60, 60, effects)
    assert 1 <= num_real < 4
    noise = picture[:, num_real * 60 :]
    assert noise.mean() == pytest.approx(127.5, abs=3)
    assert noise.std() == pytest.approx(255 / 12**0.5, abs=3)
    assert np.abs(np.diff(picture[:, : num_real * 60].astype(int), axis=1)).mean() < 20


def test_a_narrow_view_is_filled_with_noise_at_its_right():
    effects = replace(CLEAN, noise_band=0.5)
    bands = 0
    for seed in range(20):
        picture, _ = draw_sign(generator(seed), "Rue Ada", 1, 40, 60, effects)
        bands += np.abs(np.diff(picture[:, -4:].astype(int), axis=1)).mean() > 50
    assert 0 < bands < 12


def test_the_worst_of_everything_on_the_smallest_view_still_draws():
    worst = SignEffects(
        **{"condensed": 0.9, "margin": 0.4, "distance": 0.9, "shift": 1, "yaw": 70, "pitch": 60, "rotation": 45},
        **{"blur": 5, "low_resolution": 0.9, "light": 0.6, "tint": 0.5, "noise": 40, "noise_band": 0.5},
        **{"missing_views": 1, "max_lines": 4},
    )
    worst.check()
    for seed in range(30):
        picture, _ = draw_sign(generator(seed), "Rue de la Taillée", 3, 16, 16, worst)
        assert picture.shape == (16, 48, 3)


def test_difficulty_0_shows_the_same_clean_sign_in_the_middle():
    picture, num_real = draw_sign(generator(3), "Rue Ada", 2, 48, 96, SignEffects().scaled(0))
    assert num_real == 2
    blue = picture[:, :96, 2].astype(int) - picture[:, :96, 0] > 40
    rows, columns = np.nonzero(blue)
    assert abs(rows.min() + rows.max() - 47) <= 2
    assert abs(columns.min() + columns.max() - 95) <= 2


def test_long_names_are_broken_into_lines_and_accents_are_drawn():
    def ink(label, max_lines):
        picture, _ = draw_sign(generator(1), label, 1, 100, 300, replace(CLEAN, max_lines=max_lines, condensed=0))
        return picture.astype(int)

    assert np.abs(ink("Rue de la République", 1) - ink("Rue de la République", 3)).mean() > 5
    plain, accented = ink("Rue Eee", 1), ink("Rue Éêè", 1)
    assert np.abs(plain - accented).max() > 100


def test_case_follows_the_effects():
    def drawn(upper_case, mixed_case, label="Rue de l'Ile"):
        effects = replace(CLEAN, upper_case=upper_case, mixed_case=mixed_case, max_lines=1)
        return draw_sign(generator(5), label, 1, 60, 200, effects)[0]

    upper, mixed, title = drawn(1, 0), drawn(0, 1), drawn(0, 0)
    assert (upper != mixed).any()
    assert (mixed != title).any()
    assert (upper == drawn(0, 0, "RUE DE L'ILE")).all()
    assert (mixed == drawn(0, 0, "RUE de l'ILE")).all()


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


def test_an_interrupted_call_leaves_nothing(tmp_path):
    def interrupt(count):
        raise KeyboardInterrupt

    (tmp_path / "signs").mkdir()  # an empty folder is as good as none
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "signs", TINY, processes=1, report=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["signs"]
    assert files(tmp_path) == {}


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


def test_a_missing_font_package_says_what_to_install(monkeypatch):
    from aocr_torch.data import synthetic_signs

    synthetic_signs._font.cache_clear()
    monkeypatch.setitem(sys.modules, "font_source_sans_pro", None)
    with pytest.raises(SynthesisError, match="pip install font-source-sans-pro"):
        draw_record(TINY, TINY.charset(), "train", 0)


def test_the_parameters_stand_beside_the_data(tmp_path):
    synthesize(tmp_path / "signs", TINY, processes=1)
    described = json.loads((tmp_path / "signs" / synthetic.PARAMETERS_FILE).read_text())
    assert described["effects"]["yaw"] == TINY.effects.yaw
    assert described["num_train"] == 7
