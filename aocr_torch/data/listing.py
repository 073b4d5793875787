"""Which pictures there are and what stands on them: from a TSV, CSV or JSONL file, or from a folder with .txt files.

A list has two columns, path and text, in any order where a first line names them; further columns need such a line.
JSONL has an object with both on each line. Paths are relative to the list. In a folder, photo.jpg is labelled by the
one line of photo.txt beside it.

Labels lose blanks at both ends and are put into Unicode's composed form (NFC), so that an accented letter is one
character however it was typed.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from aocr_torch.data.pictures import find_pictures, shown, visible_files

PATH_NAMES = ("path", "file", "filename", "file_name", "image", "image_path")
TEXT_NAMES = ("text", "label", "words", "transcription")
UNSEEN = "\ufffd\u200b\ufeff\u00ad"  # what no picture shows; joiners (U+200C, U+200D) some scripts need
SUFFIXES = (".tsv", ".txt", ".csv", ".jsonl")


class ListingError(ValueError):
    """A list that cannot be used at all; the message is one line for the user."""


@dataclass(frozen=True)
class Entry:
    """A picture and its label."""

    path: Path
    """The file."""
    text: str
    """What stands on it."""
    key: str
    """The path as the list or the folder has it, which does not change when the whole is moved."""
    origin: str
    """Where the label was found, for messages: "labels.tsv:12"."""


@dataclass(frozen=True)
class Listing:
    """What a list or a folder holds."""

    entries: list[Entry]
    """The good ones, in their order."""
    problems: list[str]
    """One line for each that is not good."""


def read_listing(source: Path) -> Listing:
    """Reads a list or a folder. Pictures are not opened.

    Raises:
        ListingError: there is nothing there, or the file's suffix tells no format.
        OSError: the list cannot be read.
    """
    if source.is_dir():
        found = _from_folder(source)
    elif not source.exists():
        raise ListingError(f"{source}: no such file or folder: expected a list ({', '.join(SUFFIXES)}) or a folder")
    elif source.suffix.lower() not in SUFFIXES:
        raise ListingError(f"{source}: expected a folder or a list that ends in {', '.join(SUFFIXES)}")
    else:
        found = _from_file(source)
    entries: dict[str, Entry] = {}
    problems = []
    for item in found:
        problem = item if isinstance(item, str) else _problem_of(item)
        path = "" if isinstance(item, str) else os.path.abspath(item.path)
        if problem is None and path in entries:
            problem = f"{item.origin}: {shown(item.key)} is already listed at {entries[path].origin}"
        if problem is None:
            entries[path] = item
        else:
            problems.append(problem)
    return Listing(list(entries.values()), problems)


def _problem_of(entry: Entry) -> Optional[str]:
    if not entry.text:
        return f"{entry.origin}: the label of {shown(entry.key)} is empty"
    bad = next((c for c in entry.text if c in UNSEEN or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    if bad is None:
        return None
    if unicodedata.category(bad) == "Cs":
        return f"{entry.origin}: the label of {shown(entry.key)} is not UTF-8: save the list as UTF-8"
    if bad == "\ufffd":
        return f"{entry.origin}: the label of {shown(entry.key)} was damaged by a conversion: it holds U+FFFD"
    return f"{entry.origin}: the label of {shown(entry.key)} holds U+{ord(bad):04X}, which cannot be seen"


def _entry(folder: Path, key: str, text: str, origin: str) -> Entry:
    return Entry(folder / key, unicodedata.normalize("NFC", text).strip(), key, origin)


def _from_folder(folder: Path) -> list[Any]:
    """Entries, and lines about what is none, in the order of the names."""
    found: list[Any] = []
    labels = set()
    for picture in find_pictures(folder):
        key = picture.relative_to(folder).as_posix()
        if picture.is_dir():
            found.append(f"{shown(key)}: is a folder that cannot be opened")
            continue
        label = picture.with_suffix(".txt")
        labels.add(label)
        try:
            lines = _decoded(label.read_bytes()).strip().splitlines()
        except OSError as error:
            found.append(f"{shown(key)}: has no label: {shown(label.name)} beside it: {error.strerror}")
            continue
        if len(lines) > 1:
            found.append(f"{shown(key)}: its label {shown(label.name)} has {len(lines)} lines, expected one")
        else:
            found.append(_entry(folder, key, "".join(lines), shown(label.relative_to(folder))))
    lonely = sorted(set(_text_files(folder)) - labels)
    return found + [f"{shown(path.relative_to(folder))}: a label without a picture beside it" for path in lonely]


def _text_files(folder: Path) -> list[Path]:
    return [path for path in visible_files(folder) if path.name.endswith(".txt")]


def _from_file(path: Path) -> list[Any]:
    # Split at line feeds alone, and each line on its own: a quote that is never closed costs one label, not the rest.
    lines = [line[:-1] if line.endswith("\r") else line for line in _decoded(path.read_bytes()).split("\n")]
    numbered = [(f"{shown(path.name)}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ListingError(f"{path}: is empty: expected lines of a path and a text")
    if path.suffix.lower() == ".jsonl":
        return [_from_json(path.parent, origin, line) for origin, line in numbered]
    first = numbered[0][1]
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    if path.suffix.lower() == ".csv":
        dialect = {"delimiter": ";" if ";" in first and "," not in first else ",", "strict": True}
    header = [name.strip().lower() for name in _columns(first, dialect) or []]
    places = [next((header.index(n) for n in names if n in header), None) for names in (PATH_NAMES, TEXT_NAMES)]
    if None in places:
        return [_from_columns(path.parent, origin, line, dialect, (0, 1), 2) for origin, line in numbered]
    return [_from_columns(path.parent, origin, line, dialect, places, len(header)) for origin, line in numbered[1:]]


def _columns(line: str, dialect: dict[str, Any]) -> Optional[list[str]]:
    try:
        return next(csv.reader([line], **dialect))
    except (csv.Error, StopIteration):
        return None


def _from_columns(folder: Path, origin: str, line: str, dialect: dict[str, Any], places: Any, expected: int) -> Any:
    columns = _columns(line, dialect)
    if columns is None:
        return f"{origin}: a quoted field is not closed, or not followed by {dialect['delimiter']!r}"
    if len(columns) != expected:
        kind = "a path and a text" if expected == 2 else f"{expected} as the first line has"
        return f"{origin}: found {len(columns)} column(s) between {dialect['delimiter']!r}, expected {kind}"
    key, text = (columns[place] for place in places)
    return _entry(folder, key.strip(), text, origin) if key.strip() else f"{origin}: the path is empty"


def _from_json(folder: Path, origin: str, line: str) -> Any:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"{origin}: is not JSON: {error}"
    if not isinstance(values, dict):
        return f"{origin}: found a JSON {type(values).__name__}, expected an object with path and text"
    found = [next((values[n] for n in names if n in values), None) for names in (PATH_NAMES, TEXT_NAMES)]
    if not all(isinstance(value, str) for value in found):
        kinds = ", ".join(f"{name!a} ({type(value).__name__})" for name, value in values.items())
        return f"{origin}: expected the strings path and text, found the keys {kinds or 'none'}"
    key, text = found
    return _entry(folder, key, text, origin) if key else f"{origin}: the path is empty"


def _decoded(data: bytes) -> str:
    """UTF-8 with or without a byte order mark, or UTF-16 with one; what is broken becomes surrogates (see PEP 383)."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace").replace("\ufffd", "\udcff")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")
