"""The pages: what they name exists, and their tables say what the code does."""

import importlib.util
import json
import re
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch
from tfrecord.example_pb2 import Example

from aocr_torch.config import FLAGS, Config
from aocr_torch.data.charset import Charset, CharsetError
from aocr_torch.data.fsns import encode_example
from aocr_torch.data.listing import PATH_NAMES, TEXT_NAMES
from aocr_torch.model.loss import loss_floor
from aocr_torch.predict import Reading

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "README.zh.md", "weights/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
# Of torchrun, and of apex's build script.
OTHER_PROGRAMS_FLAGS = {
    "nproc_per_node",
    "nnodes",
    "rdzv_backend",
    "rdzv_endpoint",
    "rdzv_id",
    "max_restarts",
    "python",
}
NO_FILES = {"aocr_torch/1", "aocr_torch/index"}  # a checkpoint's format, and a folder in the cache


@cache
def configuration():
    """docs/configuration.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_configuration", ROOT / "docs" / "configuration.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(page: str, first_header: str) -> list[list[str]]:
    """The cells of the table whose first column is headed so."""
    table = re.search(rf"^\| {re.escape(first_header)} \|.*\n\|[- |]+\n((?:\|.*\n)+)", text_of(page), re.MULTILINE)
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in table[1].splitlines()]


def programs_flags() -> dict[str, set[str]]:
    """Program -> all its flags; those of argparse and of the shell scripts included."""
    page = configuration()
    found = {name: {flag.name for flag in page.program_flags(name)} for name in page.programs()}
    for name in page.TAKES_ALL:
        found.setdefault(name, set()).update(FLAGS, {"config"})
    for path in (ROOT / "tools").rglob("*.*"):
        defined = set(re.findall(r"add_argument\(\"--(\w+)\"|^ +--(\w+)=\*\)", text_of(str(path)), re.MULTILINE))
        if defined:
            found.setdefault(path.relative_to(ROOT).as_posix(), set()).update(*defined)
    return {name: flags - {""} for name, flags in found.items()}


def is_known(flag: str, flags: set[str]) -> bool:
    plain = flag.replace("-", "_")
    return bool({plain, flag, plain.removeprefix("no_"), plain.removeprefix("no")} & (flags | {"help"}))


def test_the_page_of_flags_is_current():
    page = configuration()
    is_same = page.page() == text_of("docs/configuration.md")
    assert is_same, "docs/configuration.md is not that of the sources: run `python docs/configuration.py`"
    documented = {flag.name: flag.text for flags in page.section_flags().values() for flag in flags}
    assert documented.keys() == FLAGS.keys()
    for program in page.programs():
        documented.update({f"{program} {flag.name}": flag.text for flag in page.program_flags(program)})
    assert [name for name, text in documented.items() if not text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_flag_exists(page):
    of_programs = programs_flags()
    anywhere = set.union(*of_programs.values()) | OTHER_PROGRAMS_FLAGS
    gone = set(
        re.findall(r"`--(\w+)`", " ".join(row[0] for row in rows("docs/migration.md", "reference | what to use")))
    )
    assert not gone & anywhere, "flags that docs/migration.md calls gone"
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--([a-zA-Z][\w.-]*)", text))
    assert sorted(flag for flag in named - gone if not is_known(flag, anywhere)) == []
    for program, arguments in re.findall(r"(?:^|`|8 )(?:python )?((?:tools/)?\w+\.py) ([^`\n]*)", text, re.MULTILINE):
        for flag in re.findall(r"(?<![\w-])--([a-zA-Z][\w.-]*)", arguments.split("#")[0]):
            assert is_known(flag, of_programs[program]), f"{program} --{flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_file_link_and_test_exists(page):
    text = page.read_text(encoding="utf-8")
    missing = set()
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(#[^)]*)?\)", text):
        linked = page.parent / target if target else page
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        slugs = ["#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        if not linked.exists() or (anchor and anchor not in slugs):
            missing.add(target + anchor)
    files = set(re.findall(r"\b(?:aocr_torch|tools|tests|docs|configs)/[\w./-]*\w|\.ci/run", text))
    files |= set(re.findall(r"python (\w+\.py)", text)) | set(re.findall(r'src="([^"]+)"', text))
    files |= {"aocr_torch/__main__.py"} if "python -m aocr_torch" in text else set()
    missing |= {name for name in files if not (ROOT / name).exists()}
    for name, function in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
        if f"def {function}(" not in text_of(name):
            missing.add(f"{name}::{function}")
    assert sorted(missing - NO_FILES) == []


def test_both_readmes_have_the_same_commands():
    def commands(name: str) -> list[str]:
        blocks = re.findall(r"^```\w*\n(.*?)^```", text_of(name), re.MULTILINE | re.DOTALL)
        return [line.split("  ")[0] for block in blocks for line in block.splitlines()]

    def links(name: str) -> set[str]:
        return set(re.findall(r"\]\(([^)]*)\)", text_of(name))) - {"README.md", "README.zh.md"}

    assert commands("README.md") == commands("README.zh.md")
    assert links("README.md") == links("README.zh.md")
    assert max(len(text_of(name).splitlines()) for name in ("README.md", "README.zh.md")) <= 85


def test_fifteen_questions_have_a_command_or_flag_and_a_test():
    entries = re.findall(r"^## (\d+)\. .*?\n(.*?)(?=^## )", text_of("docs/faq.md"), re.MULTILINE | re.DOTALL)
    assert [int(number) for number, _ in entries] == list(range(1, 16))
    for number, answer in entries:
        assert re.search(r"^Shown by `tests/[\w/]+\.py::test_", answer, re.MULTILINE), number
        assert "--" in answer or "python " in answer, number


def test_the_floors_of_the_loss():
    table = rows("docs/faq.md", "classes K")
    assert len(table) == 5
    for classes, steps, smoothing, floor, uniform in table:
        assert f"{loss_floor(int(classes), int(steps), float(smoothing), False):.2f}" == floor
        assert f"{int(steps) * torch.tensor(float(classes)).log().item():.2f}" == uniform


def test_flags_of_the_reference():
    table = rows("docs/migration.md", "reference | default there")
    known = set.union(*programs_flags().values())
    defaults = Config().to_dict()
    assert len(table) == 29
    for theirs, _, ours, default, *_ in table:
        name = ours.strip("`-")
        assert name in known, theirs
        if name in defaults:
            is_number = isinstance(defaults[name], (int, float)) and not isinstance(defaults[name], bool)
            assert (float(default) if is_number else default) == (defaults[name] if is_number else str(defaults[name]))


def test_features_of_a_record():
    record = encode_example(b"", "a", Charset.from_characters("a"), length=2, width=4, height=4, orig_width=4)
    documented = {row[0].strip("`"): row[1].split()[0] for row in rows("docs/file_formats.md", "feature")}
    features = Example.FromString(record).features.feature
    assert documented == {name: value.WhichOneof("kind").removesuffix("_list") for name, value in features.items()}


def test_the_charset_of_the_page(tmp_path):
    lines = re.search(r"^### Charset.*?^```\n(.*?)^```", text_of("docs/file_formats.md"), re.MULTILINE | re.DOTALL)[1]
    (tmp_path / "charset.txt").write_text(lines, encoding="utf-8")
    charset = Charset.from_file(tmp_path / "charset.txt")
    assert (charset.size, charset.encode(" a'", 4), charset.decode([2])) == (4, [0, 1, 2, 3], "\u2019")
    (tmp_path / "charset.txt").write_text("\n".join(map(str.rstrip, lines.splitlines())), encoding="utf-8")
    with pytest.raises(CharsetError, match="line 1 "):
        Charset.from_file(tmp_path / "charset.txt")


def test_names_of_a_lists_columns():
    named = re.search(r"Names for the path: (.*?); for the text: (.*?)\.", text_of("docs/file_formats.md"), re.DOTALL)
    assert [tuple(re.findall(r"`(\w+)`", names)) for names in named.groups()] == [PATH_NAMES, TEXT_NAMES]


def test_what_a_training_writes(tiny_checkpoint):
    checkpoint = torch.load(tiny_checkpoint, weights_only=True)
    of_training = {
        name.strip("`") for name, what, _ in rows("docs/file_formats.md", "key | a training's") if what != "-"
    }
    assert checkpoint.keys() == of_training
    lines = map(json.loads, (tiny_checkpoint.parent / "metrics.jsonl").read_text().splitlines())
    written = {key for line in lines if "step" in line for key in line}
    section = text_of("docs/file_formats.md").split("### metrics.jsonl")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `(\w+)`|`(eval/\w+)`", section, re.MULTILINE))
    documented = {first or second for first, second in documented}
    assert written <= documented
    only_sometimes = {"loss_scale", "skipped_steps"} | {name for name in documented if name.startswith("eval/")}
    assert documented - written <= only_sometimes


def test_keys_of_a_prediction():
    example = re.search(r"^```json\n(.*?)^```", text_of("docs/file_formats.md"), re.MULTILINE | re.DOTALL)[1]
    documented = [row[0].strip("`") for row in rows("docs/file_formats.md", "key | what it says")]
    values = [field.name for field in fields(Reading) if field.name not in ("views", "attention", "map_place")]
    assert list(json.loads(example)) == documented == ["file", *values, "attention"]
