"""Names for synthetic street signs: a grammar of French street names, and the split that each name belongs to.

A label is written as FSNS writes it: title case with small particles ("Rue de la Taillée", "Avenue d'Orléans"),
single spaces, the street name alone. Half of the proper names are invented from syllables, so that a reader has to
learn letters and not a list. The words are in synthetic_words.py.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

from aocr_torch.data import synthetic_words as words
from aocr_torch.data.charset import Charset
from aocr_torch.data.synthetic_noise import pick

Split = Literal["train", "validation", "test"]
NameStyle = Literal["french", "short"]

SHORTEST_MAX_LENGTH = 8
"""Every style has names of eight characters ("Rue Ada") in every split."""

PARTICLES = frozenset(
    {
        *("de", "du", "des", "la", "le", "les", "et", "aux", "au", "à", "en"),
        *("sous", "sur", "lès", "entre", "devant", "derrière"),
    }
)
"""Words that title case leaves small."""

NEVER_DRAWN = frozenset(("Perreyon", "de la Taillée", "des Colverts", "de Saunier", "des Fabriques"))
"""Names of the real FSNS records at hand, in no split: to read them tests what was learned from other names."""

ELISIONS = ("d'", "l'")
"""What title case leaves small before an apostrophe."""

_DAYS_OF_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_SHORT_TYPES = ("Rue", "Rue", "Rue", "Quai", "Place")
_SHORT_ONSETS, _SHORT_VOWELS, _SHORT_CODAS = tuple("bdlmnprstv"), tuple("aeiou"), tuple("lnrst")
_SYMBOLS = '%|/:;=+\\{}_*!?$€&<>[]@#®©£“”—"'
_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZÉÈÊÂÀÇÎÏÔÙÛÜËŒÆŸ"
_ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XII", "XV", "XVI", "XX")
_ONE_SPELLING = str.maketrans("‘’“”—", "''\"\"-")


def charset_of(style: NameStyle) -> Charset:
    """french: FSNS's own charset, so that a model that learned synthetic signs reads FSNS. short: the few letters."""
    if style == "french":
        return Charset.fsns()
    texts = {*_SHORT_TYPES, *_SHORT_ONSETS, *_SHORT_VOWELS, *_SHORT_CODAS}
    texts |= {text.upper() for text in (*_SHORT_ONSETS, *_SHORT_VOWELS)}
    return Charset.from_characters([" ", *sorted(set("".join(texts)))])


def split_of(label: str) -> Split:
    """The split that a label belongs to, whatever the seed: 80 % of the names are for training, 10 % for each other.

    The hash leaves out the first word: a name that is held out occurs under no street type in training. Characters
    that share a class of FSNS count as one.
    """
    name = label.partition(" ")[2].translate(_ONE_SPELLING)
    percentile = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100
    return "train" if percentile < 80 else "validation" if percentile < 90 else "test"


def draw_label(rng: np.random.Generator, style: NameStyle, max_length: int, split: Split) -> str:
    """A label of at most `max_length` characters (>= SHORTEST_MAX_LENGTH) out of `split`."""
    while True:
        if style == "french":
            label = f"{pick(rng, words.TYPES)} {_french_name(rng)}"
        else:
            name = _invented(rng, _SHORT_ONSETS, _SHORT_ONSETS, _SHORT_VOWELS, _SHORT_CODAS)
            label = f"{pick(rng, _SHORT_TYPES)} {name}"
        is_drawable = len(label) <= max_length and label.partition(" ")[2] not in NEVER_DRAWN
        if is_drawable and split_of(label) == split:
            return label


def invented_word(rng: np.random.Generator) -> str:
    """A capitalised word of one to four syllables that no list contains, with all the accents of French."""
    vowels = words.RARE_VOWELS if rng.random() < 0.1 else words.VOWELS
    return _invented(rng, words.FIRST_ONSETS, words.ONSETS, vowels, words.CODAS)


def _invented(
    rng: np.random.Generator,
    first_onsets: tuple[str, ...],
    onsets: tuple[str, ...],
    vowels: tuple[str, ...],
    codas: tuple[str, ...],
) -> str:
    num_syllables = 2 if rng.random() < 0.55 else int(rng.integers(1, 5))
    word = "" if rng.random() < 0.2 else pick(rng, first_onsets)
    word += pick(rng, vowels)
    for _ in range(num_syllables - 1):
        word += pick(rng, onsets) + pick(rng, vowels)
    if rng.random() < 0.4 or len(word) < 3:
        word += pick(rng, codas)
    return {"ñ": "N", "ä": "A"}.get(word[0], word[0].upper()) + word[1:]  # FSNS has no class for Ñ and Ä


def _french_name(rng: np.random.Generator) -> str:
    """What follows the type. The kinds are about as frequent as in French towns, invented words aside."""
    kind = rng.random()
    for share, draw in _KINDS:
        if kind < share:
            return draw(rng)
        kind -= share
    return _invented_place(rng)


def _thing(rng: np.random.Generator) -> str:
    """ "de la Gare", "du Vieux Moulin", "des Trois Fontaines", "de l'Étang Sauvage"."""
    gender, article, nouns = _THINGS[int(rng.integers(len(_THINGS)))]
    noun = pick(rng, nouns)
    chance = rng.random()
    if chance < 0.12 and gender in words.ADJECTIVES and noun[0] not in words.VOWELS_AT_START:
        noun = f"{pick(rng, words.ADJECTIVES[gender])} {noun}"
    elif chance > 0.93:
        noun = f"{noun} {pick(rng, words.QUALIFIERS[gender])}"
    return article + noun


def _person(rng: np.random.Generator) -> str:
    chance = rng.random()
    if chance < 0.3:
        return pick(rng, words.PERSONS)
    surname = _surname(rng)
    if chance < 0.4:
        surname = _of(rng, surname) if rng.random() < 0.6 else f"{surname}-{_surname(rng)}"
    if chance > 0.93:
        initials = ".".join(pick(rng, tuple("ABCDEFGHJKLMNPRSTV")) for _ in range(int(rng.integers(1, 3))))
        return f"{initials}. {surname}"
    if chance > 0.88:
        return f"{pick(rng, words.FIRST_NAMES)} et {pick(rng, words.FIRST_NAMES)} {surname}"
    return f"{pick(rng, words.FIRST_NAMES)} {surname}"


def _titled(rng: np.random.Generator) -> str:
    if rng.random() < 0.35:
        return pick(rng, words.HEROES)
    first_name = f"{pick(rng, words.FIRST_NAMES)} " if rng.random() < 0.15 else ""
    return f"{pick(rng, words.TITLES)} {first_name}{_surname(rng)}"


def _surname(rng: np.random.Generator) -> str:
    """A common one, or an invented one."""
    return pick(rng, words.SURNAMES) if rng.random() < 0.45 else invented_word(rng)


def _saint(rng: np.random.Generator) -> str:
    """ "Saint-Martin", "de Saint-Cyr", "Sainte-Odile", "Notre-Dame", "de Saint-Ouvy-sur-Marne"."""
    chance = rng.random()
    if chance < 0.06:
        return pick(rng, ("Notre-Dame", "Notre-Dame de Lorette", "Notre-Dame des Champs", "de Notre-Dame"))
    if chance < 0.3:
        name = "Sainte-" + (pick(rng, words.SAINTES) if rng.random() < 0.6 else invented_word(rng))
    else:
        name = "Saint-" + (pick(rng, words.SAINTS) if rng.random() < 0.6 else invented_word(rng))
    if rng.random() < 0.15:
        name += pick(rng, ("-sur-", "-en-", "-lès-", "-la-", "-les-")) + pick(rng, words.RIVERS)
    return f"de {name}" if rng.random() < 0.15 else name


def _dated(rng: np.random.Generator) -> str:
    """Days to remember, regiments, kings."""
    chance = rng.random()
    if chance < 0.4:
        return f"du {pick(rng, words.REMEMBERED_DAYS)}"
    if chance < 0.7:
        month = int(rng.integers(12))
        day = int(rng.integers(1, _DAYS_OF_MONTHS[month] + 1))
        year = f" {rng.integers(1789, 2000)}" if rng.random() < 0.7 else ""
        return f"du {'1er' if day == 1 else day} {words.MONTHS[month]}{year}"
    if chance < 0.85:
        return pick(rng, words.KINGS) if rng.random() < 0.5 else f"{pick(rng, words.FIRST_NAMES)} {pick(rng, _ROMAN)}"
    return f"du {rng.integers(2, 999)}{pick(rng, ('e', 'ème', 'è'))} {pick(rng, words.MEMBERS)}"


def _place_name(rng: np.random.Generator) -> str:
    chance = rng.random()
    if chance < 0.35:
        return pick(rng, words.REGIONS)
    town = pick(rng, words.TOWNS) if chance < 0.7 else pick(rng, words.BATTLES)
    return _of(rng, town)


def _invented_place(rng: np.random.Generator) -> str:
    """ "de Brunier", "Pellevon", "de la Brudelle", "de Lamèche-sur-Oise", "du Clos Vébert"."""
    place = invented_word(rng)
    chance = rng.random()
    if chance < 0.08:
        return _of(rng, f"{place}-{pick(rng, ('sur', 'en', 'lès'))}-{pick(rng, words.RIVERS)}")
    if chance < 0.14:
        return f"{place}-{invented_word(rng)}"
    if chance < 0.22:
        return f"{_thing(rng)} {place}"
    if chance < 0.45:
        return place
    if chance < 0.7:
        return _of(rng, place)
    if place[0] in words.VOWELS_AT_START:
        return f"des {place}" if chance < 0.78 else f"de l'{place}"
    return pick(rng, ("du ", "des ", "de la ", "de la ")) + place


def _numbered(rng: np.random.Generator) -> str:
    """ "n° 12", "Rural n° 5", "C 3", "de la 5ème Avenue", "A (Privée)", "des Pins, Bâtiment 4"."""
    number = rng.integers(1, 100)
    chance = int(rng.integers(6))
    forms = (
        f"n° {number}",
        f"Rural n° {number}",
        f"{pick(rng, tuple(_CAPITALS))} {number}",
        f"{_thing(rng)} {pick(rng, words.ENDS)}",
        f"{invented_word(rng)} ({pick(rng, words.ENDS)})",
        f"{_thing(rng)}, {pick(rng, ('Bâtiment', 'Lot', 'Entrée', 'Porte'))} {number}",
    )
    return forms[chance]


def _odd(rng: np.random.Generator) -> str:
    """With a character that hardly ever stands on a sign, but that FSNS has a class for."""
    symbol = _SYMBOLS[int(rng.integers(len(_SYMBOLS)))]
    word, other = invented_word(rng), invented_word(rng)
    forms = (f"{word} {symbol} {other}", f"{word} {symbol}{rng.integers(1, 100)}", f"« {word} »", f'"{word}"')
    capital = pick(rng, tuple(_CAPITALS))
    return (*forms, f"{word} {capital}", f"{capital}{word.lower()}")[int(rng.integers(6))]


def _other(rng: np.random.Generator) -> str:
    return pick(rng, words.WITH_OTHER_PREPOSITIONS)


def _of(rng: np.random.Generator, name: str) -> str:
    return f"d'{name}" if name[0] in words.VOWELS_AT_START else f"de {name}"


_KINDS = (
    *((0.23, _thing), (0.17, _person), (0.09, _titled), (0.06, _saint), (0.05, _dated), (0.06, _place_name)),
    *((0.02, _numbered), (0.015, _odd), (0.02, _other)),
)
_THINGS = (
    *(("feminine", "de la ", words.FEMININE),) * 2,
    *(("masculine", "du ", words.MASCULINE),) * 2,
    ("elided", "de l'", words.ELIDED),
    *(("plural", "des ", words.PLURAL),) * 3,
)
