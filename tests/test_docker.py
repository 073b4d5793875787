"""The Dockerfiles copy what exists and install pairs that the documents name; no image is built here."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, rest) in order, continued lines joined, comments left out."""
    lines = [line for line in (ROOT / "docker" / name).read_text().splitlines() if not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in "\n".join(lines).replace("\\\n", "").splitlines() if line]


@pytest.mark.parametrize(
    ("name", "document", "row"),
    [
        ("cpu.Dockerfile", "README.md", ["TORCH", "TORCHVISION"]),
        ("ascend.Dockerfile", "docs/ascend.md", ["TORCH", "TORCH_NPU", "TORCHVISION"]),
    ],
)
def test_dockerfile(name, document, row):
    parsed = instructions(name)
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
    assert {instruction for instruction, _ in parsed} == known
    assert parsed[1] == ("FROM", "${BASE}")
    arguments = dict((rest + "=").split("=")[:2] for instruction, rest in parsed if instruction == "ARG")
    for instruction, rest in parsed:
        if instruction == "COPY":
            *sources, target = rest.split()
            assert all((ROOT / source).exists() for source in sources), rest
            assert len(sources) == 1 or target.endswith("/")
        if instruction in ("ENTRYPOINT", "CMD"):
            assert json.loads(rest)
        assert set(re.findall(r"\$\{(\w+)\}", rest)) <= set(arguments)
    rows = [set(re.split(r"[ |]+", line)) for line in (ROOT / document).read_text().splitlines() if "|" in line]
    assert any({arguments[part] for part in row} <= cells for cells in rows)
