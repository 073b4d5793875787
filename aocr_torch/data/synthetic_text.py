"""What a synthetic sign shows for a label: capitals, abbreviations, lines, and what stands beside the name.

The label is the street's name in title case; a sign shows it in its own way and often more than it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from aocr_torch.data import synthetic_words as words
from aocr_torch.data.synthetic_effects import SignEffects
from aocr_torch.data.synthetic_names import ELISIONS, PARTICLES, invented_word
from aocr_torch.data.synthetic_noise import between, pick

_SHORT_FORMS = {
    **{"Avenue": ("Av.", "Av", "Ave"), "Boulevard": ("Bd", "Boul.", "Bld"), "Place": ("Pl.", "Pl"), "Chemin": ("Ch.",)},
    **{
        "Impasse": ("Imp.", "Imp"),
        "Allée": ("All.",),
        "Route": ("Rte",),
        "Square": ("Sq.",),
        "Passage": ("Pass.", "Pge"),
    },
    **{"Général": ("Gal", "Gén."), "Maréchal": ("Mal",), "Docteur": ("Dr",), "Président": ("Pdt",), "Rue": ("R.",)},
    **{"Professeur": ("Pr",), "Capitaine": ("Cne", "Cap."), "Colonel": ("Cel",), "Commandant": ("Cdt",)},
    **{"Lieutenant": ("Lt",), "Monseigneur": ("Mgr",), "Madame": ("Mme",), "Faubourg": ("Fbg", "Fg"), "Quai": ("Q.",)},
    **{"Résidence": ("Rés.",), "Lotissement": ("Lot.",), "Régiment": ("Rgt",), "Saint": ("St",), "Sainte": ("Ste",)},
}
_PROFESSIONS = (
    *("Écrivain", "Poète", "Peintre", "Médecin", "Général", "Maire de la commune", "Résistant", "Homme politique"),
    *(
        "Botaniste",
        "Compositeur",
        "Ingénieur",
        "Physicienne",
        "Sculpteur",
        "Ancien quartier",
        "Bienfaitrice",
        "Aviateur",
    ),
)
_LANGUAGES = (  # what stands before and after a name in Breton, Occitan, Corsican, Catalan, Alsatian and Basque
    (("Straed ", "Straed ar ", "Hent ", "Plasenn an ", "Bali "), ("",)),
    (("Carrièra ", "Carrièra de la ", "Plaça del ", "Camin dels "), ("",)),
    (("Strada ", "Carrughju di u ", "Piazza di a ", "Stretta "), ("",)),
    (("Carrer ", "Carrer d'en ", "Plaça de la ", "Camí del "), ("",)),
    (("", "", "Im ", "Zum "), ("gass", "wäj", "strooss", "gässel")),
    (("",), (" karrika", " bidea")),
)


@dataclass(frozen=True)
class Letters:
    """Letters of one size."""

    text: str
    size: float
    """Relative to the name's letters."""


Line = tuple[Letters, ...]


@dataclass(frozen=True)
class SignText:
    """All that a sign shows."""

    lines: tuple[Line, ...]
    """The name."""
    header: str = ""
    """Above the name: a town or an arrondissement."""
    has_arms: bool = False
    """Whether there is a coat of arms."""
    subtitle: str = ""
    """Below the name, in small letters."""
    second_name: str = ""
    """Another language's name, as large as fits below the name or above it."""


def compose(rng: np.random.Generator, label: str, effects: SignEffects) -> SignText:
    """How a sign shows `label`."""
    style, is_short, header, arms, subtitle, bilingual, curly, leading = rng.random(8).tolist()
    shown = label.split(" ")
    if is_short < effects.abbreviated:
        shown = [_abbreviated(rng, word) for word in shown]
    if curly < 0.5:
        shown = [word.replace("'", "’") for word in shown]
    is_upper = style < effects.upper_case
    is_mixed = not is_upper and style < effects.upper_case + effects.mixed_case
    is_small_capitals = not is_upper and 0 <= style - effects.upper_case - effects.mixed_case < effects.small_capitals
    if is_upper:
        shown = [word.upper() for word in shown]
    elif is_mixed:
        keeps_type = leading < 0.4 and len(shown) > 1
        first = shown[:1] if keeps_type else [shown[0].upper()]
        shown = first + [_capitals_but_for_particles(word) for word in shown[1:]]
    lines = _sized(rng, _break_lines(rng, shown, effects.max_lines), is_small_capitals)
    header_text = ""
    if header < effects.town:
        header_text = _town(rng)
    elif header < effects.town + effects.arrondissement:
        header_text = _district(rng)
    return SignText(
        lines,
        header_text,
        arms < effects.coat_of_arms,
        _subtitle(rng) if subtitle < effects.subtitle else "",
        _second_name(rng) if bilingual < effects.bilingual else "",
    )


def _abbreviated(rng: np.random.Generator, word: str) -> str:
    start, hyphen, rest = word.partition("-")
    if start in ("Saint", "Sainte") and hyphen:
        return f"{pick(rng, _SHORT_FORMS[start])}{pick(rng, ('-', '-', ' ', '.'))}{rest}"
    return pick(rng, _SHORT_FORMS[word]) if word in _SHORT_FORMS else word


def _capitals_but_for_particles(word: str) -> str:
    if word in PARTICLES:
        return word
    start = 2 if word[:2].replace("’", "'") in ELISIONS else 0  # d'ORLÉANS
    return word[:start] + word[start:].upper()


def _break_lines(rng: np.random.Generator, shown: list[str], max_lines: int) -> list[str]:
    """The words in lines: often the type on its own, and the particles too, else the longest line as short as it can
    be."""
    text = " ".join(shown)
    count = sum(1 for _ in itertools.takewhile(lambda word: word.lower() in PARTICLES, shown[1:]))
    rest = " ".join(shown[1 + count :])
    if count and rest and len(rest) <= 16 and max_lines >= 3 and rng.random() < 0.15:
        return [shown[0], " ".join(shown[1 : 1 + count]), rest]
    wanted = math.ceil(len(text) / between(rng, 7, 16))
    type_alone = rng.random() < 0.5
    num_lines = min(wanted + type_alone, max_lines, len(shown))
    if num_lines <= 1:
        return [text]
    best: list[str] = []
    lowest = math.inf
    for breaks in itertools.combinations(range(1, len(shown)), num_lines - 1):
        if type_alone and breaks[0] != 1:
            break  # the combinations come in order
        edges = (0, *breaks, len(shown))
        lines = [" ".join(shown[start:end]) for start, end in zip(edges, edges[1:])]
        hanging = sum(line.rpartition(" ")[2].lower() in PARTICLES for line in lines if " " in line)
        cost = max(map(len, lines)) + 3 * hanging
        if cost < lowest:
            best, lowest = lines, cost
    return best


def _sized(rng: np.random.Generator, lines: list[str], is_small_capitals: bool) -> tuple[Line, ...]:
    """Lines of particles alone are often smaller, and sometimes the type's line is, or all but the last."""
    minor, first = between(rng, 0.5, 1.0), max(0.65, min(1.0, between(rng, 0.6, 1.35)))
    small = between(rng, 0.72, 0.85)
    sized = []
    for number, line in enumerate(lines):
        is_minor = all(word.lower() in PARTICLES for word in line.split(" "))
        size = minor if is_minor else first if number == 0 and len(lines) > 1 else 1.0
        if not is_small_capitals:
            sized.append((Letters(line, size),))
            continue
        groups = itertools.groupby(line, key=lambda character: character.islower())
        runs = ((is_lower, "".join(letters)) for is_lower, letters in groups)
        sized.append(tuple(Letters(text.upper(), size * (small if is_lower else 1)) for is_lower, text in runs))
    return tuple(sized)


def _town(rng: np.random.Generator) -> str:
    town = pick(rng, words.TOWNS) if rng.random() < 0.3 else invented_word(rng)
    if rng.random() < 0.3:
        town += pick(rng, ("-sur-", "-en-", "-lès-")) + pick(rng, words.RIVERS)
    town = f"Ville de {town}" if rng.random() < 0.25 else town
    return town.upper() if rng.random() < 0.7 else town


def _district(rng: np.random.Generator) -> str:
    number = int(rng.integers(1, 21))
    if rng.random() < 0.3:
        return pick(rng, ("Quartier ", "QUARTIER ", "Hameau de ", "Secteur ")) + invented_word(rng)
    return f"{'1er' if number == 1 else f'{number}e'} {pick(rng, ('Arrt', 'ARRT', 'Arrondissement', 'ARR.'))}"


def _subtitle(rng: np.random.Generator) -> str:
    born = int(rng.integers(1550, 1950))
    years = f"{born}{pick(rng, (' - ', '-', ' – '))}{born + int(rng.integers(25, 95))}"
    profession = pick(rng, _PROFESSIONS)
    forms = (years, f"({years})", profession, f"{profession} {years}", f"{profession}, {years}")
    return (*forms, f"{invented_word(rng)} - {invented_word(rng)}")[int(rng.integers(6))]


def _second_name(rng: np.random.Generator) -> str:
    before, after = _LANGUAGES[int(rng.integers(len(_LANGUAGES)))]
    return f"{pick(rng, before)}{invented_word(rng)}{pick(rng, after)}"
