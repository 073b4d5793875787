"""Names for synthetic street signs: a small grammar of French street names, and the split that each name belongs to.

A label is written as FSNS writes it: title case with small particles ("Rue de la Taillée", "Avenue d'Orléans"),
single spaces, the street name alone. Half of the proper names are invented from syllables, so that a reader has to
learn letters and not a list.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
NameStyle = Literal["french", "short"]

SHORTEST_MAX_LENGTH = 8
"""Every style has names of eight characters ("Rue Ada") in every split."""

PARTICLES = frozenset(("de", "du", "des", "la", "le", "les", "et", "sous", "aux"))
"""Words that title case leaves small."""


def _words(text: str, separator: str = " ") -> tuple[str, ...]:
    return tuple(text.split(separator))


_MONTHS = _words("Janvier Février Mars Avril Mai Juin Juillet Août Septembre Octobre Novembre Décembre")
_FIRST_NAMES = _words(
    "Jean Pierre Paul Louis Henri Émile Victor Jules André René François Joséphine Marie Anne Hélène Irène Claude "
    "Gérard Honoré Frédéric Agnès Zoé Noël Jean-Baptiste Jean-Jacques Marie-Thérèse Édouard Gaël Inès Léon Yves"
)
_TITLES = _words(
    "du Général|du Maréchal|du Docteur|du Président|du Colonel|de l'Abbé|du Capitaine|du Curé", separator="|"
)
_SAINTS = _words("Martin Denis Jacques Michel Étienne Honoré Rémy Éloi Gilles Clément Félix Léger Côme Priest Cyr")
_PHRASES = _words(
    "de la Gare|de la Mairie|de l'Église|du Château|du Moulin|de la Fontaine|des Écoles|de la République|de la Paix|"
    "de la Liberté|de l'Hôpital|du Cimetière|du Stade|de la Forêt|du Bois|des Prés|de la Vallée|du Lac|de l'Étang|"
    "de la Rivière|du Pont|de la Croix|des Lilas|des Roses|des Tilleuls|des Chênes|des Érables|des Hêtres|des Pins|"
    "des Acacias|des Platanes|des Cèdres|des Genêts|des Bruyères|des Hirondelles|des Rossignols|des Mésanges|"
    "des Alouettes|des Colverts|des Fabriques|des Tanneurs|des Forgerons|des Potiers|des Vignes|du Pressoir|du Puits|"
    "de la Poste|du Marché|de la Halle|du Port|de la Plage|des Pêcheurs|des Dunes|de l'Océan|du Phare|de l'Île|"
    "du Soleil|de l'Avenir|des Frères|des Sœurs|du Sacré-Cœur|de l'Europe|du Maquis|de la Résistance|"
    "de la Libération|des Martyrs|du Souvenir|de Verdun|de Paris|de Nîmes|d'Orléans|de Besançon|d'Alsace|de Bâle|"
    "aux Ânes|du Clos|de l'Aqueduc|du Haut Mûrier|de la Grande Île|sous l'Orme|de Haute Saône|du Maïs|des Maçons",
    separator="|",
)


@dataclass(frozen=True)
class _Grammar:
    """Where the parts of a name come from. A type that stands several times is drawn as often."""

    types: tuple[str, ...]
    phrases: tuple[str, ...]
    onsets: tuple[str, ...]
    vowels: tuple[str, ...]
    codas: tuple[str, ...]
    has_french_names: bool

    def invented(self, rng: np.random.Generator) -> str:
        """A capitalised word of one to four syllables that no list contains."""
        num_syllables = 2 if rng.random() < 0.55 else int(rng.integers(1, 5))
        word = "" if rng.random() < 0.2 else _pick(rng, self.onsets)
        word += _pick(rng, self.vowels)
        for _ in range(num_syllables - 1):
            word += _pick(rng, self.onsets) + _pick(rng, self.vowels)
        if rng.random() < 0.4 or len(word) < 3:
            word += _pick(rng, self.codas)
        return word[0].upper() + word[1:]

    def draw(self, rng: np.random.Generator) -> str:
        """One label of any length."""
        name = _french_name(rng, self) if self.has_french_names else self.invented(rng)
        return f"{_pick(rng, self.types)} {name}"

    def characters(self) -> list[str]:
        """All characters that `draw` can produce, the space first, the others sorted."""
        texts = {*self.types, *self.onsets, *self.vowels, *self.codas}
        texts |= {text[0].upper() for text in (*self.onsets, *self.vowels)}
        if self.has_french_names:
            texts |= {*self.phrases, *_MONTHS, *_FIRST_NAMES, *_TITLES, *_SAINTS, "d'", "Sainte-", "0123456789"}
        return [" ", *sorted(set("".join(texts)) - {" "})]


_GRAMMARS = {
    "french": _Grammar(
        types=(
            *("Rue",) * 14,
            *("Avenue", "Place", "Impasse", "Chemin", "Allée") * 3,
            *("Boulevard", "Route", "Quai", "Square", "Cours", "Passage", "Villa", "Cité", "Sentier", "Ruelle"),
            *("Rond-Point", "Esplanade", "Résidence", "Montée", "Venelle"),
        ),
        phrases=_PHRASES,
        onsets=_words(
            "b c d f g h j k l m n p q r s t v w x y z bl br ch cl cr dr fl fr gl gn gr ph pl pr qu th tr vr ç"
        ),
        vowels=_words(
            "a a a e e e i i o o u u y ai au eau ei eu ie oi ou an en in on é é é è ê â à î ô û ù ë ï ü œ œu"
        ),
        codas=_words("c d f l ll m n nn r rt s sse st t tte x y z ck ze"),
        has_french_names=True,
    ),
    "short": _Grammar(
        types=("Rue", "Rue", "Rue", "Quai", "Place"),
        phrases=(),
        onsets=_words("b d l m n p r s t v"),
        vowels=_words("a e i o u"),
        codas=_words("l n r s t"),
        has_french_names=False,
    ),
}


def name_characters(style: NameStyle) -> list[str]:
    """The characters of a style's labels in the order of their ids: the space is id 0."""
    return _GRAMMARS[style].characters()


def split_of(label: str) -> Split:
    """The split that a label belongs to, whatever the seed: 80 % of the names are for training, 10 % for each other.

    The hash leaves out the first word: a name that is held out occurs under no street type in training.
    """
    name = label.partition(" ")[2]
    percentile = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 100
    return "train" if percentile < 80 else "validation" if percentile < 90 else "test"


def draw_label(rng: np.random.Generator, style: NameStyle, max_length: int, split: Split) -> str:
    """A label of at most `max_length` characters (>= SHORTEST_MAX_LENGTH) out of `split`."""
    grammar = _GRAMMARS[style]
    while True:
        label = grammar.draw(rng)
        if len(label) <= max_length and split_of(label) == split:
            return label


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _french_name(rng: np.random.Generator, grammar: _Grammar) -> str:
    """What follows the type: a thing, a person, a saint, a date, or an invented place or person."""
    kind = rng.random()
    if kind < 0.22:
        return _pick(rng, grammar.phrases)
    if kind < 0.34:
        return f"{_pick(rng, _FIRST_NAMES)} {grammar.invented(rng)}"
    if kind < 0.42:
        return f"{_pick(rng, _TITLES)} {grammar.invented(rng)}"
    if kind < 0.48:
        saint = _pick(rng, _SAINTS) if rng.random() < 0.5 else grammar.invented(rng)
        return f"Sainte-{saint}" if rng.random() < 0.3 else f"Saint-{saint}"
    if kind < 0.54:
        year = f" {rng.integers(1789, 2000)}" if rng.random() < 0.7 else ""
        return f"du {rng.integers(1, 32)} {_pick(rng, _MONTHS)}{year}"
    place = grammar.invented(rng)
    particle = _pick(rng, ("", "", "de ", "de ", "du ", "des ", "de la "))
    if particle == "de " and place[0] in "AEIOUÉÈÊÂÀÎÔÛÙËÏÜŒ":
        particle = "d'"
    return particle + place
