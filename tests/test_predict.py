"""Predictor and tools/predict.py on a model that has begun to learn."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from aocr_torch.config import Config
from aocr_torch.data.charset import Charset
from aocr_torch.data.pictures import PictureError
from aocr_torch.model.ocr import AttentionOCR
from aocr_torch.predict import Predictor, Reader, readings_of
from aocr_torch.training import checkpoint
from aocr_torch.training.checkpoint import CheckpointError
from aocr_torch.training.evaluate import evaluate, open_dataset

TOOL = Path(__file__).parent.parent / "tools" / "predict.py"
TEXTS = ["abc", "de", "e", "bbbb", "cad"]


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint):
    return Predictor(tiny_checkpoint, batch_size=4)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tiny.pictures(tmp_path_factory.mktemp("pictures"), TEXTS)


@pytest.fixture(scope="module")
def tool():
    return tiny.load_tool("predict")


def assert_same(ours, theirs):
    assert ours.text == theirs.text
    assert np.array_equal(ours.views, theirs.views)
    np.testing.assert_allclose(ours.character_confidences, theirs.character_confidences, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.attention, theirs.attention, rtol=0, atol=1e-5)
    assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-5)
    assert ours.log_probability == pytest.approx(theirs.log_probability, abs=1e-4)


def test_reads_what_the_evaluation_reads(predictor, tiny_dataset, tiny_checkpoint):
    state = checkpoint.load(tiny_checkpoint)
    config = checkpoint.config_of(state)
    dataset = open_dataset(config, "test")
    expected = []

    def keep(batch, prediction):
        for image, ids, confidence, total in zip(
            batch["image"].numpy(), prediction.ids, prediction.normalized_confidences, prediction.confidences
        ):
            expected.append((image, dataset.charset.decode(ids.tolist()), float(confidence), float(total)))

    model = checkpoint.build_model(state, config, dataset.charset, tiny_checkpoint)
    evaluate(model, dataset, config, torch.device("cpu"), on_batch=keep)
    readings = predictor([image for image, *_ in expected])
    assert len(readings) == 7
    assert len({reading.text for reading in readings}) > 2, "the model tells nothing apart, so this compares nothing"
    for reading, (image, text, confidence, total) in zip(readings, expected):
        assert reading.text == text
        assert reading.confidence == pytest.approx(confidence, abs=1e-5)
        assert reading.log_probability == pytest.approx(total, abs=1e-4)
        assert np.array_equal(np.concatenate(list(reading.views), 1), image)


def test_stopping_early_reads_the_same_in_fewer_steps(predictor, pictures, tiny_checkpoint):
    early = Predictor(tiny_checkpoint, batch_size=1, stop_early=True)
    steps = []
    early.model.model.decoder.cell.register_forward_hook(lambda *_: steps.append(1))
    expected = predictor(pictures)
    for ours, theirs in zip(early(pictures), expected):
        assert_same(ours, theirs)
    whole = early.data.max_sequence_length
    assert len(steps) == sum(min(len(reading.text) + 1, whole) for reading in expected) < whole * len(pictures)


def test_the_answer_does_not_depend_on_the_neighbours(predictor, pictures, tiny_checkpoint):
    noise = [np.random.RandomState(i).randint(0, 256, (70, 50 + i, 3)).astype(np.uint8) for i in range(6)]
    images = [*pictures, *noise]
    together = Predictor(tiny_checkpoint, batch_size=len(images))(images)
    for number, image in enumerate(images):
        assert_same(predictor([image])[0], together[number])
    for reading, other in zip(predictor(images[::-1])[::-1], together):
        assert_same(reading, other)


@pytest.mark.parametrize(
    "flags",
    [{"final_endpoint": "Mixed_5d"}, {"final_endpoint": "Mixed_6a", "cell": "gru"}, {"use_attention": False}],
    ids=["attention", "gru", "netslice"],
)
def test_ids_and_scores_do_not_depend_on_the_batch(flags):
    """Of a model deep enough that kernels are chosen by the batch's size, in batches of every size to nine."""
    config = Config().replace(**{**tiny.FLAGS, "image_height": 80, "image_width": 160, **flags})
    torch.manual_seed(0)
    model = AttentionOCR(config.data, config.model, 134).eval()
    with torch.no_grad():
        model.decoder.classifier.weight.mul_(30)  # it prefers some characters clearly
    reader = Reader(model, config, 133)
    images = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (9, 80, 160, 3)).astype(np.uint8))
    with torch.no_grad():
        together = reader(images)
        assert together["scores"].max() > 0.5, "of a model that prefers nothing, ids would be chance"
        for size in range(1, 9):
            alone = reader(images[9 - size :])
            assert torch.equal(alone["ids"], together["ids"][9 - size :])
            for name in set(alone) - {"ids", "log_probability"}:
                torch.testing.assert_close(alone[name], together[name][9 - size :], rtol=0, atol=1e-5)


def test_confidences_and_attention(predictor, pictures):
    for reading in predictor(pictures):
        count = len(reading.text)
        assert reading.attention.shape == (count, *predictor.model.map_shape)
        np.testing.assert_allclose(reading.attention.sum((1, 2, 3)), 1, rtol=1e-5)
        assert len(reading.character_confidences) == count
        assert all(0 < confidence <= 1 for confidence in reading.character_confidences)
        assert reading.confidence == pytest.approx(np.exp(reading.log_probability / (count + 1)), rel=1e-5)
        assert reading.views.shape == (2, 48, 48, 3)


def test_attention_comes_from_the_view_that_shows_something(predictor, pictures):
    """Views exchanged in the picture are exchanged in the attention: they share the tower, and order matters little."""
    picture = np.asarray(Image.open(pictures[0])).copy()
    picture[:, 48:] = 20
    picture[0, 0] = 0
    left, right = predictor([picture, np.concatenate([picture[:, 48:], picture[:, :48]], 1)])
    assert np.array_equal(left.views[0], right.views[1])
    np.testing.assert_allclose(left.attention[:, 0], right.attention[:, 1], atol=1e-5)


def test_a_photo_of_another_size_is_one_view(predictor, pictures):
    one_view = Image.open(pictures[0]).crop((0, 0, 48, 48))
    reading = predictor([one_view.resize((480, 480), Image.Resampling.NEAREST)])[0]
    small = predictor([one_view])[0]
    assert np.array_equal(small.views[0], np.asarray(one_view))
    assert np.abs(reading.views[0].astype(int) - small.views[0]).max() < 60
    assert reading.views[1].std() > 65
    as_two = predictor([Image.open(pictures[0]).resize((960, 480))], views=2)[0]
    assert as_two.views[1].std() < 65


def test_central_crop_and_no_attention(tiny_dataset, tmp_path):
    from aocr_torch.config import parse_arguments
    from aocr_torch.training.loop import train

    flags = {"crop_width": 80, "crop_height": 40, "use_attention": False, "max_number_of_steps": 1}
    arguments = tiny.flags(dataset_dir=tiny_dataset, train_log_dir=tmp_path, **flags)
    train(parse_arguments(arguments, description="test")[0])
    reading = Predictor(tmp_path)([np.zeros((48, 96, 3), np.uint8)])[0]
    assert reading.views.shape == (2, 40, 40, 3)
    assert reading.attention is None


def test_a_bad_picture_is_named(predictor, pictures, tmp_path):
    with pytest.raises(PictureError, match=r"absent\.png: there is no such file"):
        predictor([*pictures, tmp_path / "absent.png"])
    with pytest.raises(PictureError, match="picture 1: is an array of shape"):
        predictor([pictures[0], np.zeros(3, np.uint8)])
    with pytest.raises(TypeError, match="expected a list"):
        predictor(pictures[0])
    assert predictor([]) == []


def test_stream_goes_on_and_holds_one_batch_at_a_time(predictor, pictures, tmp_path):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield tmp_path / "absent.png" if len(taken) % 2 else pictures[0]

    stream = predictor.stream(endless())
    first = [next(stream) for _ in range(5)]
    assert [isinstance(reading, PictureError) for reading in first] == [True, False, True, False, True]
    assert len(taken) == 8


def test_a_converted_checkpoint_needs_a_charset(tiny_checkpoint, tiny_dataset, pictures, tmp_path):
    state = checkpoint.load(tiny_checkpoint)
    del state["charset"]
    checkpoint.save(tmp_path / "converted.pth", state)
    with pytest.raises(CheckpointError, match="holds no charset"):
        Predictor(tmp_path / "converted.pth")
    given = Predictor(tmp_path / "converted.pth", charset=tiny_dataset / "charset_size=7.txt")
    assert_same(given(pictures[:1])[0], Predictor(tiny_checkpoint)(pictures[:1])[0])
    with pytest.raises(ValueError, match="batch_size is 0"):
        Predictor(tiny_checkpoint, batch_size=0)


def test_tool_reads_files_folders_and_patterns(tool, predictor, pictures, tiny_checkpoint, tmp_path, capsys):
    folder = tmp_path / "Straße [1]"
    tiny.pictures(folder / "inner", ["abc"])
    status = tool.main(
        [str(pictures[1]), str(folder), str(pictures[0].parent / "*b*.png"), "--ckpt", str(tiny_checkpoint)]
    )
    out = capsys.readouterr().out.splitlines()
    assert status == 0
    files = [pictures[1], folder / "inner" / "abc.png", pictures[0], pictures[3]]
    readings = predictor(files)
    assert out == [f"{r.confidence:.4f}\t{r.text}\t{file}" for r, file in zip(readings, files)]


def test_tool_reads_folders_that_a_pattern_matches(tool, tmp_path):
    tiny.pictures(tmp_path / "a" / "inner", ["abc"])
    shutil.copy(tmp_path / "a" / "inner" / "abc.png", tmp_path / "b.jfif")
    for pattern in ("*", "**"):
        names = [name for name, _ in tool.named_pictures((str(tmp_path / pattern),))]
        assert sorted(names) == [str(tmp_path / "a" / "inner" / "abc.png"), str(tmp_path / "b.jfif")]


def test_tool_reports_bad_files_and_reads_the_rest(tool, pictures, tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "a\nb.png").touch()
    (tmp_path / "short.png").write_bytes(pictures[0].read_bytes()[:500])
    (tmp_path / "bomb.png").write_bytes(tiny.bomb())
    shutil.copy(pictures[0], tmp_path / "good.png")
    (tmp_path / "nothing").mkdir()
    missing = [str(tmp_path / name) for name in ("nothing", "absent*.png", "absent.png")]
    status = tool.main([str(tmp_path), *missing, "--json", "--ckpt", str(tiny_checkpoint)])
    out, err = capsys.readouterr()
    assert status == 1
    assert [json.loads(line)["file"] for line in out.splitlines()] == [str(tmp_path / "good.png")]
    assert len(err.splitlines()) == 9
    assert "8 of 9 pictures could not be read" in err
    for text in ("text.png: is not a picture", "empty.jpg: is empty", r"a\nb.png': is empty", "short.png: cannot be"):
        assert err.count(text) == 1
    assert "nothing: is a folder" in err
    assert "bomb.png: has more than 89,478,485 pixels" in err
    assert err.count("no such file") == 2


def test_tool_draws_attention(tool, pictures, tiny_checkpoint, tmp_path, capsys):
    twice = [str(pictures[0]), str(pictures[0]), "--ckpt", str(tiny_checkpoint), "--json"]
    assert tool.main([*twice, "--attention", str(tmp_path / "a"), "--attention_format", "gif"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(each["attention"]).name for each in found] == ["abc.png.gif", "abc.png-2.gif"]
    assert found[0]["text"] == found[1]["text"]
    assert found[0]["character_confidences"] == pytest.approx(found[1]["character_confidences"], abs=1e-5)
    with Image.open(found[1]["attention"]) as animation:
        assert getattr(animation, "n_frames", 1) == max(1, len(found[1]["text"]))


def test_tool_and_names_that_are_odd_long_or_there_already(tool, pictures, tiny_checkpoint, tmp_path, capsys):
    for name in ("a.png", "a.png.png", "at\u202f10.png", "x" * 251 + ".png"):
        shutil.copy(pictures[0], tmp_path / name)
    there = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert tool.main([str(tmp_path), "--attention", str(tmp_path), "--json", "--ckpt", str(tiny_checkpoint)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {Path(each["file"]) for each in found} == set(there)
    assert all(path.read_bytes() == content for path, content in there.items())
    drawn = {Path(each["attention"]) for each in found}
    assert drawn | set(there) == set(tmp_path.iterdir())
    assert tmp_path / "a.png-2.png" in drawn


def test_tool_whose_lines_nobody_reads_any_more(pictures, tiny_checkpoint):
    command = [sys.executable, str(TOOL), "--ckpt", str(tiny_checkpoint), *map(str, pictures)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""


def test_tool_reads_standard_input(pictures, tiny_checkpoint):
    command = [sys.executable, str(TOOL), "--ckpt", str(tiny_checkpoint), "-"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, input=pictures[0].read_bytes(), capture_output=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(b"\t-\n")


def test_tool_refuses_rubbish_on_standard_input(tool, tiny_checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no picture")))
    assert tool.main(["--ckpt", str(tiny_checkpoint), "-"]) == 1
    assert "error: -: is not a picture that can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no images: expected IMAGES"),
        (["x.png", "--views", "3"], "--views is 3: expected 1 to 2"),
        (["x.png", "--ckpt", "absent.pth"], "absent.pth: no such file"),
        (["x.png", "--device", "gpu"], "found device 'gpu'"),
    ],
)
def test_tool_wrong_commands(tool, arguments, message, tiny_checkpoint, monkeypatch, capsys):
    from aocr_torch.command_line import run_main

    checkpoint_flag = [] if "--ckpt" in arguments else ["--ckpt", str(tiny_checkpoint)]
    monkeypatch.setattr(sys, "argv", ["predict.py", *checkpoint_flag, *arguments])
    with pytest.raises(SystemExit) as stop:
        run_main(tool.main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_bytes_are_pictures_too(predictor, pictures):
    stream = io.BytesIO(pictures[0].read_bytes())
    assert_same(predictor([stream.getvalue()])[0], predictor([pictures[0]])[0])


def test_scores_and_attention_are_those_of_the_characters_where_a_null_stands_before_them():
    null, config = tiny.CHARSET.null_id, Config().replace(**tiny.FLAGS)
    answer = {
        "ids": np.array([[null, 1, null, 2]]),
        "scores": np.array([[0.1, 0.2, 0.3, 0.4]], np.float32),
        "log_probability": np.zeros(1, np.float32),
        "confidence": np.ones(1, np.float32),
        "attention": np.arange(8, dtype=np.float32).reshape(1, 4, 2),
    }
    pixels = np.zeros((1, config.data.image_height, config.data.image_width, 3), np.uint8)
    (reading,) = readings_of(answer, pixels, config, (2, 1, 1), tiny.CHARSET)
    assert reading.text == "ab"
    assert reading.character_confidences == pytest.approx((0.2, 0.4))
    assert reading.attention.reshape(2, 2).tolist() == [[2, 3], [6, 7]]


def test_a_charset_that_is_given_wins(tiny_checkpoint, tmp_path):
    other = Charset.from_characters(" vwxyz")
    other.save(tmp_path / "charset.txt")
    assert Predictor(tiny_checkpoint, charset=tmp_path / "charset.txt").charset == other


def test_one_array_is_no_list_of_pictures(tiny_checkpoint):
    with pytest.raises(TypeError, match="found one ndarray, expected a list of pictures"):
        Predictor(tiny_checkpoint)(np.zeros((48, 96, 3), np.uint8))
