"""The charset: which character each class of the model stands for.

A charset file has one line a character: its id, a tab, the character. `<nul>` in place of a character marks the null,
the class that pads every label to its full length. In FSNS id 0 is a space, so that line ends in a blank, which
an editor that strips lines destroys; nothing here strips.

Several characters may share one id: FSNS writes ', U+2018 and U+2019 as class 2, - and U+2014 as class 17,
", U+201C and U+201D as class 51. Encoding takes every one of them. Decoding can print only one, and prints
the one on the LAST line of its id, because that is what TensorFlow's table prints, so texts compare equal with
the reference's.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Union

NULL = "<nul>"
SHOWN_NULL = "\u2591"  # what the reference prints in place of a null

# FSNS's characters in the order of the lines of its file, and those among them that share the id of an earlier one.
_FSNS_CHARACTERS = (
    "l\u2019éteinsxguo1870-.parèdcVvbm)CzSy,kÉAhE»D/HM(GPç'Rf\"2j|N6°5TOU3%9qZBKwW:4LF]ï\u2018IJäî;àêXüYô=+\\{}_Qœñ*!Ü"
    "\u201câÇŒû?$ë«€&<\u201dæ#®ÂÈ>[\u2014ÆùÎÔÿÀÊ@Ï©ËÙ£ŸÛ"
)
_FSNS_SHARED_IDS = {"'": 2, "\u2018": 2, "\u201c": 51, "\u201d": 51, "\u2014": 17}


class CharsetError(ValueError):
    """A charset that contradicts itself, or a text or an id that it does not hold; the message says what to do."""


@dataclass(frozen=True)
class Charset:
    """An immutable charset; two are equal if their lines are.

    Attributes:
        lines: (id, character) in the order of the file; the character of exactly one is `<nul>`.

    Raises:
        CharsetError: no null or two, a character that stands twice, ids that leave a gap, a null that shares its id.
    """

    lines: tuple[tuple[int, str], ...]

    def __post_init__(self) -> None:
        first_id: dict[str, int] = {}
        for identifier, character in self.lines:
            if character != NULL and (len(character) != 1 or character in "\r\n"):
                codes = " ".join(f"U+{ord(each):04X}" for each in character)
                raise CharsetError(
                    f"id {identifier} stands for {character!r} ({codes}), expected one character or {NULL}"
                )
            if character in first_id:
                raise CharsetError(
                    f"{_describe(character)} stands twice, as id {first_id[character]} and as id {identifier}: "
                    "a character has one id, remove one of the lines"
                )
            first_id[character] = identifier
        if NULL not in first_id:
            raise CharsetError(f"there is no {NULL} among {len(self.lines)} lines: add a line 'id<TAB>{NULL}'")
        ids = {identifier for identifier, _ in self.lines}
        missing = sorted(set(range(len(ids))) - ids)
        if missing:
            raise CharsetError(f"id {missing[0]} has no line, but id {max(ids)} has: ids count from 0 without a gap")
        if sum(identifier == first_id[NULL] for identifier, _ in self.lines) > 1:
            raise CharsetError(f"id {first_id[NULL]} is {NULL} and a character as well: give the null an id of its own")

    @classmethod
    def from_file(cls, path: Union[str, Path]) -> Charset:
        """Reads a charset file (UTF-8, with or without a byte order mark, lines ended in LF or CRLF).

        Raises:
            CharsetError: naming the file and, where it is one line's fault, the line.
            OSError: the file cannot be read.
        """
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CharsetError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}): convert it") from None
        try:
            # Split at LF alone: str.splitlines would also split at characters that a charset may well hold.
            return cls(tuple(_parse_line(i, line) for i, line in enumerate(text.rstrip("\r\n").split("\n"), start=1)))
        except CharsetError as error:
            raise CharsetError(f"{path}: {error}") from None

    @classmethod
    def from_characters(cls, characters: Sequence[str]) -> Charset:
        """Gives the characters the ids 0, 1, ... in their order and the null the id after the last."""
        return cls(tuple(enumerate([*characters, NULL])))

    @classmethod
    def fsns(cls) -> Charset:
        """FSNS's own: 134 classes for 138 characters and the null."""
        own_ids = (character for character in _FSNS_CHARACTERS if character not in _FSNS_SHARED_IDS)
        ids = {**{character: i for i, character in enumerate(own_ids, start=1)}, **_FSNS_SHARED_IDS}
        return cls(((0, " "), (133, NULL), *((ids[character], character) for character in _FSNS_CHARACTERS)))

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Charset:
        """The charset that `to_dict` was called on."""
        try:
            lines = tuple((int(identifier), str(character)) for identifier, character in plain["lines"])
        except (KeyError, TypeError, ValueError) as error:
            raise CharsetError(f"not a charset's dictionary ({error!r}): expected one written by to_dict") from None
        return cls(lines)

    def to_dict(self) -> dict[str, Any]:
        """Lists, ints and strings alone, so that it can travel in a checkpoint read with weights_only=True."""
        return {"lines": [[identifier, character] for identifier, character in self.lines]}

    def save(self, path: Union[str, Path]) -> None:
        """Writes the charset file that `from_file` reads."""
        Path(path).write_bytes("".join(f"{i}\t{character}\n" for i, character in self.lines).encode("utf-8"))

    @cached_property
    def characters(self) -> tuple[str, ...]:
        """What decoding prints for each id: the character of its last line, `<nul>` for the null."""
        last = dict(self.lines)
        return tuple(last[i] for i in range(len(last)))

    @property
    def size(self) -> int:
        """Number of classes, the null included."""
        return len(self.characters)

    @cached_property
    def null_id(self) -> int:
        """The class that pads labels."""
        return self.characters.index(NULL)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: identifier for identifier, character in self.lines if character != NULL}

    def encode(self, text: str, length: int) -> list[int]:
        """The ids of the text's characters, padded with the null to `length` ids.

        Raises:
            CharsetError: a character that the charset does not hold, or a text of more than `length` characters.
        """
        unknown = next((character for character in text if character not in self._ids), None)
        if unknown is not None:
            raise CharsetError(f"{text!r} has {_describe(unknown)}, which is not among this charset's characters")
        if len(text) > length:
            raise CharsetError(f"{text!r} has {len(text)} characters, expected at most {length}")
        return [self._ids[character] for character in text] + [self.null_id] * (length - len(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; nulls are dropped wherever they stand.

        Raises:
            CharsetError: an id outside 0 .. size - 1.
        """
        return "".join(character for character in self._lookup(ids) if character != NULL)

    def decode_padded(self, ids: Iterable[int]) -> str:
        """As `decode`, but one character a position: the null is shown as U+2591, as the reference prints it."""
        return "".join(SHOWN_NULL if character == NULL else character for character in self._lookup(ids))

    def _lookup(self, ids: Iterable[int]) -> list[str]:
        numbers = [int(identifier) for identifier in ids]
        unknown = next((number for number in numbers if not 0 <= number < self.size), None)
        if unknown is not None:
            raise CharsetError(f"id {unknown} is unknown: the charset has the ids 0 to {self.size - 1}")
        return [self.characters[number] for number in numbers]


def _parse_line(number: int, line: str) -> tuple[int, str]:
    identifier, tab, character = line[:-1].partition("\t") if line.endswith("\r") else line.partition("\t")
    is_id = identifier.isascii() and identifier.isdigit()
    if not is_id or (not tab and identifier != line.rstrip("\r")):
        raise CharsetError(f"line {number} is {line!r}, expected an id, a tab and one character")
    if not character:
        raise CharsetError(
            f"line {number} has id {identifier} and no character: if it stood for a space, "
            "an editor stripped the blank at the line's end; put it back"
        )
    return int(identifier), character


def _describe(character: str) -> str:
    if character == NULL:
        return character
    return f"{character!r} (U+{ord(character):04X} {unicodedata.name(character, 'without a name')})"
