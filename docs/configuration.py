"""Writes docs/configuration.md from the sources: `python docs/configuration.py`.

Every flag is a field of a dataclass with a docstring under it. The sources are read and not imported, so that the page
is the same wherever it is made.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
SECTIONS = ("Data", "Model", "Optim", "Run")
TAKES_ALL = ("train.py", "eval.py")
HEAD = """\
# Configuration

This page is written by `python docs/configuration.py`; do not edit it.

The flags of the first four tables configure a training. Each can stand

- on the command line of `train.py` and `eval.py`: `--batch_size 16`, `--batch_size=16`; booleans as `--amp`, `--noamp`,
  `--no-amp`, `--amp=False`; hyphens do as well as underscores; `None` unsets an optional one;
- in a YAML file for `--config`, as `batch_size: 16`. Of several files the last wins, and the command line over all;
- in Python: `Config().replace(batch_size=16)` (`aocr_torch.config`).

The configuration travels inside every checkpoint; `eval.py` starts from it. The remaining tables are the flags that
single programs have.
"""


@dataclass(frozen=True)
class Flag:
    """A field of a dataclass, as its source has it."""

    name: str
    kind: str
    default: Optional[str]
    """None where it must be given."""
    text: str
    is_positional: bool = False


def programs() -> list[str]:
    """The programs whose flags are dataclasses: train.py, eval.py, ..., then tools/."""
    paths = [*ROOT.glob("*.py"), *sorted((ROOT / "tools").glob("*.py"))]
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    first = [*TAKES_ALL, "convert_inception.py"]
    return [name for name in [*first, *sorted(set(names) - set(first))] if _options_class(name)]


def section_flags() -> dict[str, list[Flag]]:
    """The flags of each section of the configuration."""
    return {name: list(_flags(name)) for name in SECTIONS}


def program_flags(program: str) -> list[Flag]:
    """The flags that this program alone has."""
    name = _options_class(program)
    return list(_flags(name, program)) if name else []


def page() -> str:
    """The text of docs/configuration.md."""
    parts = [HEAD]
    for name, flags in section_flags().items():
        parts.append(f"## {name}\n\n{_docstring(_class(name))}\n\n{_table(flags)}")
    for program in programs():
        more = " They come on top of those above." if program in TAKES_ALL else ""
        node = _class(_options_class(program), program)
        parts.append(f"## {program}\n\n{_docstring(node)}{more}\n\n{_table(program_flags(program))}")
    return "\n".join(parts)


@cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


@cache
def _shared_classes() -> dict[str, ast.ClassDef]:
    files = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "aocr_torch").rglob("*.py"))]
    return {name: node for file in files for name, node in _classes(file).items()}


def _class(name: str, file: str = "") -> ast.ClassDef:
    own = _classes(file) if file else {}
    return own[name] if name in own else _shared_classes()[name]


def _options_class(program: str) -> Optional[str]:
    """The dataclass of a program's flags: what it gives to parse_options, or to parse_arguments as its extra ones."""
    source = (ROOT / program).read_text(encoding="utf-8")
    found = re.search(r"parse_options\(arguments, (\w+)|\bextra=(\w+)\(", source)
    return found and (found[1] or found[2])


def _flags(name: str, file: str = "", prefix: str = "") -> Iterator[Flag]:
    """The fields of a class; one that is a dataclass itself stands for its own fields."""
    body = _class(name, file).body
    for node, after in zip(body, [*body[1:], None]):
        if not isinstance(node, ast.AnnAssign):
            continue
        kind, field_name = ast.unparse(node.annotation), node.target.id
        nested = next((word for word in re.findall(r"\w+", kind) if word in _shared_classes()), None)
        if nested is not None:
            yield from _flags(nested, prefix=prefix if "name=''" in kind else f"{prefix}{field_name}.")
            continue
        default = None if node.value is None else ast.unparse(node.value)
        text = " ".join(after.value.value.split()) if _is_text(after) else ""
        yield Flag(prefix + field_name, _readable(kind), default, text, is_positional=default is None)


def _is_text(node: Optional[ast.stmt]) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _readable(kind: str) -> str:
    kind = re.sub(r"Optional\[(.*)\]$", r"\1 or None", kind)
    kind = re.sub(r"Literal\[(.*)\]$", lambda match: match[1].replace(", ", " or "), kind)
    return kind.replace("tuple[str, ...]", "strings").replace("Path", "path")


def _docstring(node: ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").split("\n")[0]


def _table(flags: list[Flag]) -> str:
    rows = [
        f"| {f'`{flag.name.upper()}` (positional)' if flag.is_positional else f'`--{flag.name}`'} | {flag.kind} | "
        f"{'must be given' if flag.default is None else f'`{flag.default}`'} | {flag.text} |"
        for flag in flags
    ]
    return "\n".join(["| flag | type | default | what it does |", "| --- | --- | --- | --- |", *rows]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
