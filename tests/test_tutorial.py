"""docs/tutorial.md: every command and the Python of the page, in its order, on twelve small pictures."""

import importlib.util
import os
import re
import shlex
import signal
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
SHORTER = (
    "--max_number_of_steps 2 --eval_interval_steps 1 --batch_size 2 --num_workers 0 --final_endpoint Conv2d_3b_1x1"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def load(program: str):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"tutorial_{Path(program).stem}", ROOT / program)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where annotations are looked up
    spec.loader.exec_module(module)
    return module


def test_every_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # all in this process: another one takes seconds to start
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "photos").mkdir()
    texts = [f"Rue {number}" for number in range(1, 13)]
    for number, text in enumerate(texts, start=1):
        photo = Image.new("RGB", (160, 60), "navy")
        ImageDraw.Draw(photo).text((20, 20), text, fill="white")
        photo.save(tmp_path / "photos" / f"{number:04d}.jpg")
    lines = [f"{number:04d}.jpg\t{text}\n" for number, text in enumerate(texts, start=1)]
    (tmp_path / "photos" / "labels.tsv").write_text("".join(lines))

    said = {}
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 10
    for command in commands:
        python, program, *arguments = shlex.split(command)
        assert python == "python"
        shorter = SHORTER.split() if program == "train.py" else []
        assert load(program).main([*arguments, *shorter]) == 0, capsys.readouterr().err
        said[program] = said.get(program, "") + capsys.readouterr().out

    assert "10 train, 1 validation, 1 test records" in said["tools/make_tfrecords.py"]
    assert "240 pictures written into sign_photos" in said["tools/check_data.py"]
    assert "12 of 12 records good, 0 problems" in said["tools/check_data.py"]
    assert (tmp_path / "mine.html").is_file()
    assert "1 of 1 records, 0 skipped" in said["eval.py"]
    assert said["tools/predict.py"].count("photos/") == 25
    assert (tmp_path / "looked" / "0001.jpg.png").is_file()
    assert (tmp_path / "mine_report.html").is_file()
    assert "texts equal" in said["tools/export_onnx.py"]
    (program,) = blocks("python")
    exec(program, {})
    assert len(capsys.readouterr().out.splitlines()) == 2
