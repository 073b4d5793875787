"""Lines for people, files for programs, and a progress bar on a terminal."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aocr_torch.config import Data, Model
from aocr_torch.model.ocr import AttentionOCR
from aocr_torch.training.evaluate import Evaluation
from aocr_torch.training.log import Log, Stopwatch, average_age_warning, duration, result_lines, step_line


def test_step_line_begins_as_the_reference():
    line = step_line(1200, 31.20414, 0.1139, {"floor": "29.93", "lr": "0.004"})
    assert line == "global step 1200: loss = 31.2041 (0.114 sec/step) floor 29.93, lr 0.004"


@pytest.mark.parametrize(("seconds", "text"), [(5.9, "5 s"), (61, "1 min 01 s"), (7380, "2 h 03 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_result_lines_end_with_the_references():
    results = {
        "CharacterAccuracy": 0.966915,
        "SequenceAccuracy": 0.826643,
        "CharacterErrorRate": 0.1,
        "num_examples": 3,
    }
    assert result_lines(Evaluation(results, records=20404, evaluated=20404)) == [
        "eval/CharacterErrorRate[0.100000]",
        "20404 of 20404 records, 0 skipped",
        "eval/CharacterAccuracy[0.966915]",
        "eval/SequenceAccuracy[0.826643]",
    ]


def test_stopwatch(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 4.0, 104.0, 108.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Stopwatch(5)
    assert watch.wait(lambda: "batch") == "batch"
    with watch.paused():
        pass
    assert watch.lap(9) == (8.0, 0.25, 4)


def test_files(tmp_path, capsys):
    log = Log(str(tmp_path), True, name="eval")
    log.line("hello")
    log.scalars(3, {"loss": 1 / 3, "nothing": float("nan"), "records": 7}, "loss 0.33", "7 records")
    log.images(3, torch.rand(2, 2, 3, 8, 8), ["a", "b"])
    log.histograms(3, {"weights/a": torch.tensor([1.0, 2.0, 2.0], requires_grad=True)})
    log.close()
    text = "hello\nloss 0.33\n7 records\n"
    assert capsys.readouterr().out == text
    assert (tmp_path / "eval.log").read_text() == text
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"message": "hello"},
        {"step": 3, "loss": 1 / 3, "nothing": None, "records": 7},
    ]
    board = EventAccumulator(str(tmp_path)).Reload()
    assert board.Tags()["scalars"] == ["loss", "nothing"]
    assert board.Tags()["images"] == ["predictions"]
    assert board.Histograms("weights/a")[0].histogram_value.sum == 5


def test_an_evaluation_goes_into_the_json_lines_with_its_counts_and_what_was_skipped(tmp_path):
    results = {"CharacterAccuracy": 0.5, "SequenceAccuracy": 0.25, "num_examples": 4}
    log = Log(str(tmp_path), True, name="eval")
    log.evaluation(9, Evaluation(results, records=5, evaluated=4, skipped=["shard:2 is damaged"]), "warning: young")
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    counts = {"eval/num_examples": 4, "eval/records": 5, "eval/evaluated": 4, "eval/skipped": 1}
    assert lines == [
        {"message": "warning: young"},
        {"message": "skipped: shard:2 is damaged"},
        {"step": 9, "eval/CharacterAccuracy": 0.5, "eval/SequenceAccuracy": 0.25, **counts},
    ]


@pytest.mark.parametrize("arguments", [("FOLDER", False), (None, True)])
def test_other_ranks_and_no_folder_write_nothing(tmp_path, capsys, arguments):
    folder, enabled = arguments
    log = Log(str(tmp_path / folder) if folder else None, enabled)
    log.line("hello")
    log.scalars(1, {"loss": 1.0})
    log.images(1, torch.zeros(1, 1, 3, 8, 8), [""])
    log.histograms(1, {"weights": torch.zeros(2)})
    log.advance(1)
    log.close()
    assert capsys.readouterr().out == ("hello\n" if enabled else "")
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_gets_a_progress_bar(tmp_path):
    code = (
        "import sys; from aocr_torch.training.log import Log\n"
        "log = Log(sys.argv[1], True, total_steps=10); log.advance(2); log.advance(4); log.line('hello'); log.close()"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "hello" in shown
    assert "4/10" in shown
    assert (tmp_path / "train.log").read_text() == "hello\n"


def test_warning_of_a_young_average():
    data = Data(num_views=1, image_height=48, image_width=48, max_sequence_length=3)

    def warning(updates: int, **model) -> str:
        network = AttentionOCR(data, Model(final_endpoint="Conv2d_2a_3x3", num_lstm_units=4, **model), 5)
        for name, buffer in network.named_buffers():
            if name.endswith("num_batches_tracked"):
                buffer.fill_(updates)
        return average_age_warning(network) or ""

    assert "still hold 74% of what the training began with (decay 0.9997, 1000 updates)" in warning(1000)
    assert "a mean over the whole training" in warning(1000, batch_norm_cumulative_start=True)
    assert not warning(0)  # nothing trained here: converted weights
    assert not warning(20_000)
    assert not warning(500, batch_norm_decay=0.99)


def test_a_resumed_training_purges_the_steps_of_tensorboard_that_it_repeats(tiny_dataset, tmp_path):
    log = Log(str(tmp_path), True)
    for step in (1, 2, 3):
        log.scalars(step, {"loss": float(step)})
    log.close()
    log = Log(str(tmp_path), True, first_step=1)  # the checkpoint was of step 1
    log.scalars(2, {"loss": 20.0})
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 20.0)]
