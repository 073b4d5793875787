"""eval.py --report on real records: exact on one and two ranks, and errors that come before the evaluation."""

import json
import os
import re
import shutil
import subprocess
import sys
from html import escape, unescape
from pathlib import Path

import numpy as np
import pytest
from tiny import CHARSET, example, flags, write

from aocr_torch.config import parse_arguments
from aocr_torch.data.records import write_shard
from aocr_torch.training.loop import train
from eval import main

ROOT = Path(__file__).parent.parent


def rows(page: Path) -> list:
    html = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def arguments(checkpoint: Path, page: Path, **changes) -> list[str]:
    given = {"ckpt": checkpoint, "report": page, "device": "cpu", **changes}
    return [f"--{name}={value}" for name, value in given.items()]


def torchrun(num_ranks: int, *command: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = [*program, str(ROOT / "eval.py"), *command]
    return subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)


def test_the_report_says_what_the_evaluation_printed(tiny_checkpoint, tmp_path, capsys):
    page = tmp_path / "new" / "report.html"
    assert main(arguments(tiny_checkpoint, page, report_examples=3, split_name="train")) == 0
    printed = capsys.readouterr().out
    html = page.read_text(encoding="utf-8")
    for name in ("StrictSequenceAccuracy", "SequenceAccuracy", "CharacterAccuracy", "CharacterErrorRate"):
        value = float(re.search(rf"eval/{name}\[(.*)\]", printed)[1])
        assert re.search(rf"<b>{name}</b>.*?</td><td>(.*?) %", html)[1] == f"{100 * value:.2f}"
    assert "11 of 11 records, 0 skipped." in html
    for fact in (str(tiny_checkpoint), "<dd>45</dd>", "<dd>train</dd>", "<dd>0.1.0</dd>", "<dd>cpu, float32</dd>"):
        assert fact in html
    found = rows(page)
    assert len({row[0] for row in found}) == 11
    wrong = [number for number, row in enumerate(found) if row[1] != row[2]]
    shown = [int(number) for number in re.findall(r'<article data-row="(\d+)"', html)]
    assert len(shown) == len(set(shown)) == min(3, len(wrong))
    assert set(shown) <= set(wrong)
    assert html.count("data:image/png") == len(shown)
    assert html.count("data:image/jpeg") == 2 * len(shown)
    assert "eval/SequenceAccuracy" in printed.splitlines()[-1]


def test_the_mistakes_are_read_again_in_the_precision_of_the_evaluation(tiny_checkpoint, tmp_path):
    confidences = {}
    for precision, flags_of_it in (("float32", {}), ("bfloat16", {"amp": True, "amp_dtype": "bfloat16"})):
        page = tmp_path / f"{precision}.html"
        assert main(arguments(tiny_checkpoint, page, split_name="train", **flags_of_it)) == 0
        html = page.read_text(encoding="utf-8")
        assert re.search(rf"<dt>device</dt><dd>cpu, .*{precision}", html)
        confidences[precision] = re.findall(r'data-number="\d+" title="([\d.]+)', html)
        for row, card in re.findall(r'<article data-row="(\d+)"(.*?)</article>', html, re.DOTALL):
            read = "".join(re.findall(r'<button type="button".*?>(.*?)</button>', card))
            assert unescape(read) == rows(page)[int(row)][2]
    assert confidences["float32"]
    assert confidences["float32"] != confidences["bfloat16"]


def test_two_ranks_write_the_report_of_one(tiny_checkpoint, tmp_path):
    pages = [tmp_path / "1.html", tmp_path / "2.html"]
    for number, page in enumerate(pages, start=1):
        result = torchrun(number, *arguments(tiny_checkpoint, page))
        assert result.returncode == 0, result.stderr
    first, second = map(rows, pages)
    assert [row[:3] for row in first] == [row[:3] for row in second]
    assert [row[3] for row in first] == pytest.approx([row[3] for row in second], abs=1e-5)
    assert len(first) == 7
    assert "7 of 7 records, 0 skipped." in pages[1].read_text(encoding="utf-8")
    assert sorted(tmp_path.iterdir()) == pages


def test_a_part_and_an_older_report(tiny_checkpoint, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("old")
    assert main(arguments(tiny_checkpoint, page, num_batches=1, report_examples=0)) == 0
    assert len(rows(page)) == 4
    html = page.read_text(encoding="utf-8")
    assert "test, the first 1 batches of it" in html
    assert "<article" not in html


def test_labels_of_no_length_and_records_that_are_skipped(tiny_checkpoint, tmp_path):
    data = write(tmp_path / "data", test=1)
    random = np.random.RandomState(0)
    good = [example("", random), example("ab", random)]
    bad = good[1].replace(b"IHDR", b"IHDX")
    (data / "bad").mkdir()
    write_shard(data / "test" / "test-00000-of-00001", [*good, bad])
    write_shard(data / "bad" / "bad-00000-of-00001", [bad])
    page = tmp_path / "report.html"
    skipping = {"dataset_dir": data, "skip_bad_records": True}
    assert main(arguments(tiny_checkpoint, page, **skipping)) == 0
    assert [row[1] for row in rows(page)] == ["", "ab"]
    assert "2 of 3 records, 1 skipped." in page.read_text(encoding="utf-8")
    assert "skipped: test-00000-of-00001:2" in page.read_text(encoding="utf-8")
    assert main(arguments(tiny_checkpoint, page, split_name="bad", **skipping)) == 0
    assert rows(page) == []
    assert "0 of 1 records, 1 skipped." in page.read_text(encoding="utf-8")


def test_a_script_in_the_charset_stays_text(tmp_path):
    """Charset and labels come from files of others."""
    data = write(tmp_path / "data", train=4, validation=1, test=4)
    charset = data / f"charset_size={CHARSET.size}.txt"
    charset.write_text("0\t \n1\t<\n2\t>\n3\t&\n4\t\"\n5\t'\n6\t<nul>\n", encoding="utf-8")
    made = flags(dataset_dir=data, train_log_dir=tmp_path / "log", max_number_of_steps=1)
    assert train(parse_arguments(made, description="test")[0]) == 0
    page = tmp_path / "report.html"
    assert main(arguments(tmp_path / "log", page)) == 0
    html = page.read_text(encoding="utf-8")
    labels = [row[1] for row in rows(page)]
    assert "<" in "".join(labels)
    for label in labels:
        assert f"<dd><bdi>{escape(label)}</bdi></dd>" in html


@pytest.mark.parametrize(
    ("report", "message"),
    [("file/report.html", "Not a directory"), ("folder", "Is a directory")],
)
def test_a_report_that_cannot_be_written_is_said_before_the_evaluation(tiny_checkpoint, tmp_path, report, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    command = [sys.executable, str(ROOT / "eval.py"), *arguments(tiny_checkpoint, tmp_path / report)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    expected = f"error: report {tmp_path / report} cannot be written ({message}): name a file in a folder where"
    assert result.stderr.startswith(expected)
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_model_without_attention(tiny_dataset, tmp_path):

    made = flags(dataset_dir=tiny_dataset, train_log_dir=tmp_path / "log", max_number_of_steps=1, use_attention=False)
    assert train(parse_arguments(made, description="test")[0]) == 0
    page = tmp_path / "report.html"
    assert main(arguments(tmp_path / "log", page)) == 0
    html = page.read_text(encoding="utf-8")
    assert html.count("<article") == 7
    assert "--heat:" not in html


def test_a_negative_number_of_examples(tiny_checkpoint, tmp_path):
    command = arguments(tiny_checkpoint, tmp_path / "report.html", report_examples=-1)
    result = subprocess.run([sys.executable, str(ROOT / "eval.py"), *command], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: report_examples is -1: expected 0 or more\n"


def test_no_report_leaves_nothing(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_checkpoint, tmp_path / "model.pth")
    assert main(["--ckpt=model.pth", "--device=cpu"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
