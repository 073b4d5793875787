"""The grammar of street names: FSNS's spelling and charset, held-out names, letters that all occur."""

import datetime
import os
import re
from pathlib import Path

import numpy as np
import pytest

from aocr_torch.data import synthetic_names
from aocr_torch.data import synthetic_words as words
from aocr_torch.data.charset import Charset
from aocr_torch.data.fsns import FSNSDataset, find_shards
from aocr_torch.data.records import Shards
from aocr_torch.data.synthetic_names import ELISIONS, NEVER_DRAWN, PARTICLES, charset_of, draw_label, split_of

MANY = 30_000


def labels(style, split, count=1500, max_length=37, seed=0):
    rng = np.random.Generator(np.random.Philox(seed))
    return [draw_label(rng, style, max_length, split) for _ in range(count)]


@pytest.fixture(scope="module")
def french():
    return labels("french", "train", MANY)


def test_the_charset_is_that_of_fsns():
    charset = charset_of("french")
    assert (charset.size, charset.null_id, charset.decode([0])) == (134, 133, " ")
    assert charset.encode("é'’-—", 6) == [3, 2, 2, 17, 17, 133]
    if "AOCR_REFERENCE" in os.environ:
        file = Path(os.environ["AOCR_REFERENCE"]) / "fsns" / "charset_size=134.txt"
        assert charset == Charset.from_file(file)


def test_the_charset_file_is_that_of_fsns_to_the_byte(tmp_path):
    if "AOCR_REFERENCE" not in os.environ:
        pytest.skip("AOCR_REFERENCE names no folder with FSNS's charset file")
    file = Path(os.environ["AOCR_REFERENCE"]) / "fsns" / "charset_size=134.txt"
    charset_of("french").save(tmp_path / file.name)
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_every_class_of_the_charset_is_drawn_sooner_or_later(french):
    charset = charset_of("french")
    seen = {identifier for label in french for identifier in charset.encode(label, 37)}
    assert [charset.characters[i] for i in set(range(charset.size)) - seen] == []


def test_french_labels_are_title_cased(french):
    small = {*PARTICLES, "n°", "1er", "du"}
    for label in french:
        assert label == " ".join(label.split())
        first, *rest = label.split(" ")
        assert first in words.TYPES
        for word in rest:
            is_capitalised = not word[0].isalpha() or word[0].isupper()
            assert is_capitalised or word in small or word[:2] in ELISIONS, label


def test_lengths_are_those_of_streets(french):
    lengths = np.array([len(label) for label in french])
    assert lengths.max() == 37
    assert lengths.min() <= 8
    assert 15 < np.median(lengths) < 22
    assert len(set(french)) > 0.7 * MANY


def test_types_are_as_frequent_as_in_towns(french):
    share = {name: np.mean([label.startswith(f"{name} ") for label in french]) for name in words.TYPES}
    assert 0.53 < share["Rue"] < 0.62
    for name in ("Avenue", "Chemin", "Allée", "Impasse"):
        assert 0.03 < share[name] < 0.08
    assert max(share[name] for name in ("Quai", "Square", "Traboule")) < 0.02


def test_dates_are_in_the_calendar(french):
    found = [re.search(r" du (\d+|1er) (\w+)(?: (\d{4}))?$", label) for label in french]
    dates = [date.groups() for date in found if date and date[2] in words.MONTHS]
    assert len(dates) > 500
    assert {month for _, month, _ in dates} == set(words.MONTHS)
    for day, month, year in dates:
        datetime.date(int(year or 2000), words.MONTHS.index(month) + 1, int(day.replace("1er", "1")))


def test_all_that_streets_are_named_after_occurs(french):
    text = "|".join(french)
    for part in (
        "Saint-",
        "Sainte-",
        "du Docteur ",
        "du Général de Gaulle",
        "Victor Hugo",
        "du 8 Mai 1945",
        "d'Orléans",
    ):
        assert part in text, part
    for part in (
        "de Verdun",
        "des Tilleuls",
        "des Hirondelles",
        "des Tanneurs",
        "de l'Église",
        "-sur-",
        "Louis XIV",
        "n° ",
    ):
        assert part in text, part
    listed = {name for name in (*words.FEMININE, *words.MASCULINE, *words.PLURAL, *words.ELIDED, *words.TOWNS)}
    invented = sum(not any(word.strip("d'l") in listed for word in label.split(" ")[1:]) for label in french)
    assert 0.3 * MANY < invented < 0.8 * MANY
    assert {label.split(" ")[0] for label in french} == set(words.TYPES)


@pytest.mark.parametrize("style", ["french", "short"])
def test_no_name_of_another_split_occurs_in_training(style):
    def names(split):
        return {label.partition(" ")[2] for label in labels(style, split)}

    train, validation, test = names("train"), names("validation"), names("test")
    assert not train & test
    assert not train & validation
    assert not validation & test
    assert {split_of(label) for label in labels(style, "test", count=50)} == {"test"}


def test_the_real_records_names_are_never_drawn(french, monkeypatch):
    assert len(NEVER_DRAWN) == 5
    listed = {
        word for value in vars(words).values() if isinstance(value, tuple) for text in value for word in text.split()
    }
    assert not {name.split(" ")[-1] for name in NEVER_DRAWN} & listed
    monkeypatch.setattr(synthetic_names, "NEVER_DRAWN", {label.partition(" ")[2] for label in french[:50]})
    assert not {label.partition(" ")[2] for label in labels("french", "train", 50)} & synthetic_names.NEVER_DRAWN
    if "AOCR_REFERENCE" in os.environ:
        folder = Path(os.environ["AOCR_REFERENCE"]) / "fsns"
        dataset = FSNSDataset(Shards(find_shards(folder, "test")), Charset.fsns())
        real = {dataset.text(index).partition(" ")[2] for index in range(len(dataset))}
        assert real == NEVER_DRAWN


def test_the_split_is_that_of_the_name_however_it_is_spelled():
    assert split_of("Rue de la Paix") == split_of("Avenue de la Paix")
    assert split_of("Rue de l'Est") == split_of("Rue de l’Est") == split_of("Quai de l‘Est")


@pytest.mark.parametrize("style", ["french", "short"])
def test_short_labels_are_varied_and_no_longer_than_asked(style):
    short = labels(style, "test", count=60, max_length=8)
    assert max(map(len, short)) == 8
    assert len(set(short)) > 40


def test_the_short_style_uses_all_of_its_charset():
    charset = charset_of("short")
    seen = {character for label in labels("short", "train") for character in label}
    assert seen == set(charset.characters[:-1])
