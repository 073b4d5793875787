"""The command line: flags from dataclasses, in every spelling that the reference takes, and errors of one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import re
import select
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Callable, Literal, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A flag, YAML key or combination that cannot be; the message is one line for the user."""


def parse_options(arguments: Sequence[str], options: Any) -> Any:
    """Reads the command line of a program whose options are one dataclass, whose docstring heads --help.

    Fields without a default are positional arguments, the last of them may be a tuple. All others are flags, and so are
    those of the dataclasses inside it (see `flags_of`).

    Args:
        arguments: without the program's name. options: the frozen dataclass, or an instance with other defaults.

    Raises:
        ConfigError: one line for the user. `--help` prints and exits.
    """
    kind = options if isinstance(options, type) else type(options)
    positional = _positional(kind)
    flags = flags_of(kind)
    pairs = split_arguments(arguments, flags, positional)
    if ("help", "") in pairs:
        print_help(kind, kind.__doc__)
    values = values_of(pairs, flags)
    for name, value in values.items():
        check_type(name, value, flags[name], "command line")
    absent = [name for name in positional if name not in values]
    if absent:
        raise ConfigError(f"no {absent[0]}: expected {' '.join(positional).upper()}; --help explains")
    defaults = options(**dict.fromkeys(positional)) if options is kind else options
    return _replaced(defaults, values)


def _positional(kind: type) -> list[str]:
    return [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]


def _replaced(options: Any, values: dict[str, Any], parents: tuple[str, ...] = ()) -> Any:
    """A copy of a dataclass, and of those inside it, with these flags set."""
    changes = {}
    for field in fields(options):
        value, path = getattr(options, field.name), (*parents, field.name)
        is_group = dataclasses.is_dataclass(value)
        changes[field.name] = _replaced(value, values, path) if is_group else values.get(_flag(path), value)
    return dataclasses.replace(options, **changes)


def flags_of(options: type, parents: tuple[str, ...] = ()) -> dict[str, Any]:
    """{flag: type} of a dataclass and those inside it; `parameters.effects.yaw` is --effects.yaw, without the first."""
    flags: dict[str, Any] = {}
    for name, hint in get_type_hints(options).items():
        path = (*parents, name)
        flags.update(flags_of(hint, path) if dataclasses.is_dataclass(hint) else {_flag(path): hint})
    return flags


def _flag(path: tuple[str, ...]) -> str:
    return ".".join(path[1:] or path)


def split_arguments(
    arguments: Sequence[str], flags: dict[str, Any], positional: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Brings the reference's spellings of flags to one form: (name, value).

    Hyphens become underscores, `--name=value` is split, booleans may be bare (`--amp`), negated (`--noamp`,
    `--no-amp`) or spelled (`--amp=False`, `--amp true`). A tuple's name comes once for each of its values.

    Args:
        arguments: as typed. flags: {name: type} of the flags that exist, `positional` included.
        positional: the names that arguments without a flag get, one after the other; a tuple takes all that come.

    Raises:
        ConfigError: unknown flag (names the nearest), stray argument, or a boolean that is none.
    """
    pairs: list[tuple[str, str]] = []
    queue, places = list(arguments), list(positional)
    while queue:
        argument = queue.pop(0)
        if argument in ("-h", "--help"):
            pairs.append(("help", ""))
            continue
        if not argument.startswith("-") or argument == "-":
            if not places:
                raise ConfigError(f"found the stray argument {argument!r}: expected --flag value")
            pairs.append((places[0] if get_origin(flags[places[0]]) is tuple else places.pop(0), argument))
            continue
        name, has_value, value = argument.lstrip("-").partition("=")
        name = name.replace("-", "_")
        negated = name not in flags and name.startswith("no") and bool in kinds_of(flags.get(name[2:].lstrip("_")))
        if negated:
            name = name[2:].lstrip("_")
        if name not in flags:
            raise ConfigError(f"unknown flag --{name}{nearest(name, flags)}")
        if bool in kinds_of(flags[name]):
            if not has_value:
                value = queue.pop(0) if queue and queue[0].lower() in _TRUTH else "True"
            is_none = value in ("None", "") and type(None) in kinds_of(flags[name]) and not negated
            if not is_none and value.lower() not in _TRUTH:
                raise ConfigError(f"--{name} is {value!r}: expected True or False")
            value = "None" if is_none else str(_TRUTH[value.lower()] != negated)
        elif not has_value:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(f"--{name} has no value: expected --{name} VALUE")
            value = queue.pop(0)
        pairs.append((name, value))
        while get_origin(flags[name]) is tuple and queue and not queue[0].startswith("-"):
            pairs.append((name, queue.pop(0)))
    return pairs


_TRUTH = {"true": True, "t": True, "1": True, "yes": True, "false": False, "f": False, "0": False, "no": False}


def values_of(pairs: list[tuple[str, str]], flags: dict[str, Any]) -> dict[str, Any]:
    """{name: value} of the command line; of a flag that comes twice the last one counts, a tuple has them all."""
    values: dict[str, Any] = {}
    for name, text in pairs:
        value = _value(name, text, flags[name])
        values[name] = (*values.get(name, ()), value) if get_origin(flags[name]) is tuple else value
    return values


def _value(name: str, text: str, hint: Any) -> Any:
    kinds = kinds_of(hint)
    if type(None) in kinds and text in ("None", ""):
        return None
    if bool in kinds:
        return text == "True"
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                raise ConfigError(f"command line: --{name} is {text!r}: expected {kind.__name__}") from None
    return Path(text) if Path in kinds else text


def kinds_of(hint: Any) -> tuple[type, ...]:
    """The types that a field's value may have."""
    if get_origin(hint) in (Literal, tuple):
        return (str,) if get_origin(hint) is Literal else (tuple,)
    return get_args(hint) or (hint,)  # Optional[int] -> (int, NoneType)


def check_type(name: str, value: Any, hint: Any, source: str) -> None:
    """Raises ConfigError, beginning with `source`, where a field of this type cannot have the value."""
    kinds = kinds_of(hint)
    fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
    if float in kinds and isinstance(value, (int, str)) and not isinstance(value, bool):
        fits = re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", str(value)) is not None
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise ConfigError(f"{source}: {name} is {value!r}: expected one of {', '.join(map(repr, get_args(hint)))}")
    if not fits:
        expected = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise ConfigError(f"{source}: {name} is {value!r}: expected {expected}")


@contextlib.contextmanager
def interruptible(report: Callable[[int], object]) -> Iterator[Callable[[int], None]]:
    """Within it SIGTERM raises KeyboardInterrupt as Ctrl-C does; gives a progress report with which none is lost.

    Python and numpy drop an exception that a signal raises inside some of their callbacks: seen about once in 100
    times. What was dropped is raised again at the next report.
    """
    came = False

    def interrupt(*_: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    def reported(count: int) -> None:
        if came:
            raise KeyboardInterrupt
        report(count)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield reported
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error on an unknown name."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "; --help lists all"


def print_help(kind: type, description: str, *style: Any) -> None:
    """Prints --help of a dataclass, with the docstrings of its fields, and exits. style: more of tyro's markers."""
    import tyro

    hints = get_type_hints(kind)
    names = [(name, Annotated[hints[name], tyro.conf.arg(metavar=name.upper())]) for name in _positional(kind)]
    shown = dataclasses.make_dataclass(kind.__name__, names, bases=(kind,), frozen=True)
    style = (*style, tyro.conf.FlagConversionOff, tyro.conf.PositionalRequiredArgs)
    program = Path(sys.argv[0]).name
    tyro.cli(shown, args=["--help"], prog=program, description=description, use_underscores=True, config=style)


def run_main(main: Callable[[list[str]], int]) -> None:
    """Runs an entry script's main; an error meant for the user ends it with one line and status 2, no traceback.

    Such errors are ValueError and OSError, and that of `import torch` beside a torch_npu without CANN; anything else is
    a defect and keeps its traceback.
    """
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            sys.exit(128 + signal.SIGPIPE)
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except RuntimeError as error:
        if "Failed to load the backend extension" not in str(error):
            raise
        print(
            "error: torch cannot be imported, because torch_npu is installed and does not load: source CANN's "
            "set_env.sh, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to train without an NPU",
            file=sys.stderr,
        )
        sys.exit(2)


def _is_unread() -> bool:
    """Whether nobody reads what is printed any more, as in `python tools/predict.py photos | head`."""
    output = select.poll()
    output.register(1, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _one_line(error: Exception) -> str:
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    is_denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return f"{error.filename}: {error.strerror}" + (": name a place where you may read and write" if is_denied else "")
