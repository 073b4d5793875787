"""weights/: the model that comes along is what its card says; how it is written, found, read and gone on from."""

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from aocr_torch import files
from aocr_torch.config import Config, parse_arguments
from aocr_torch.data.charset import Charset
from aocr_torch.model.ocr import AttentionOCR
from aocr_torch.predict import Predictor
from aocr_torch.training import checkpoint
from aocr_torch.training.checkpoint import CheckpointError
from aocr_torch.training.evaluate import evaluate, open_dataset
from aocr_torch.training.loop import train
from aocr_torch.training.optim import ExponentialMovingAverage

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "weights" / "synthetic.pth"
CARD = ROOT / "weights" / "README.md"
FINE_TUNING = ROOT / "docs" / "fine_tuning.md"
PAGES_WITH_FIGURES = (CARD, FINE_TUNING, ROOT / "docs" / "training_log.md")
SHORTER = {
    "tools/synthesize.py": "--num_train 4 --num_validation 2 --processes 1",
    "train.py": "--max_number_of_steps 2 --batch_size 2 --num_workers 0 --device cpu",
}


@pytest.fixture(scope="module")
def tool():
    return tiny.load_tool("export_weights")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tiny.pictures(tmp_path_factory.mktemp("pictures"), ["abc", "de", "e", "bbbb", "cad"])


@pytest.fixture(scope="module")
def written(tool, tiny_checkpoint, pictures, tmp_path_factory):
    """The tiny checkpoint's weights as the tool writes them."""
    path = tmp_path_factory.mktemp("written") / "new" / "weights.pth"
    assert tool.main([str(tiny_checkpoint), str(path), "--images", str(pictures[0].parent)]) == 0
    return path


@pytest.fixture
def full_size(tmp_path):
    """Weights of the size of ours, which have learned nothing."""
    config, charset = Config(), Charset.fsns()
    torch.manual_seed(0)
    model = AttentionOCR(config.data, config.model, charset.size)
    state = {"model": model.state_dict(), "config": config.to_dict(), "charset": charset.to_dict()}
    checkpoint.save(tmp_path / "full_size.pth", checkpoint.portable(state, "full_size"))
    return tmp_path / "full_size.pth"


def texts_of(path, pictures):
    return [reading.text for reading in Predictor(path)(pictures)]


def test_what_is_written(written, tiny_checkpoint, pictures):
    state, original = torch.load(written, weights_only=True), checkpoint.load(tiny_checkpoint)
    assert set(state) == {"format", "model", "step", "config", "charset"}
    assert (state["step"], state["charset"]) == (45, original["charset"])
    kernels = {name for name, value in state["model"].items() if value.dtype == torch.float16}
    assert kernels == {name for name, value in original["model"].items() if value.dim() > 1}
    ours = ("dataset_dir", "train_log_dir", "device", "num_workers", "split_name", "batch_size", "checkpoint")
    assert not set(ours) & set(state["config"])
    before, after = checkpoint.config_of(original), checkpoint.config_of(state)
    assert (after.model, after.run) == (before.model, Config().run)
    assert (after.data.view_size, after.data.max_sequence_length) == ((48, 48), 4)
    assert written.stat().st_size < tiny_checkpoint.stat().st_size / 3
    texts = texts_of(written, pictures)
    assert texts == texts_of(tiny_checkpoint, pictures)
    assert len(set(texts)) > 2, "a model that tells nothing apart reads the same whatever happens to its weights"


def test_the_tool_states_sizes_and_differences(tool, tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "weights.pth"
    assert tool.main([str(tiny_checkpoint), str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out.stat().st_size / 1e6:.2f} MB, sha256 {hashlib.sha256(out.read_bytes()).hexdigest()}" in said
    assert re.search(
        r"step 45, [\d,]+ numbers, 7 classes; \d+ of 100 pictures read as by the checkpoint, log prob", said
    )
    with pytest.raises(CheckpointError, match="exists already"):
        tool.main([str(tiny_checkpoint), str(out)])
    assert tool.main([str(tiny_checkpoint), str(out), "--force"]) == 0


def test_the_average_is_what_is_written(tiny_checkpoint, tmp_path):
    state = checkpoint.load(tiny_checkpoint)
    config, charset = checkpoint.config_of(state), checkpoint.charset_of(state)
    average = ExponentialMovingAverage(checkpoint.build_model(state, config, charset, "tiny"), 0.9).state_dict()
    name = "decoder.classifier.weight"
    average["averages"][name].fill_(0.25)
    portable = checkpoint.portable({**state, "ema": average}, "tiny")
    assert "ema" not in portable
    assert (portable["model"][name] == 0.25).all()


def test_weights_that_float16_does_not_hold_are_refused(tool, tiny_checkpoint, pictures, tmp_path):
    state = checkpoint.load(tiny_checkpoint)
    state["model"]["decoder.classifier.weight"] *= 1e6
    checkpoint.save(tmp_path / "large.pth", state)
    with pytest.raises(CheckpointError, match="reads only 0 of 5 pictures as the checkpoint does") as refusal:
        tool.main([str(tmp_path / "large.pth"), str(tmp_path / "out.pth"), "--images", str(pictures[0].parent)])
    assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["large.pth"]
    del state["charset"]
    with pytest.raises(CheckpointError, match="holds no charset"):
        checkpoint.portable(state, "converted")


def test_every_program_takes_it(written, tiny_dataset, pictures, tmp_path, capsys):
    evaluation = tiny.load_program("eval.py")
    assert evaluation.main(["--ckpt", str(written), "--dataset_dir", str(tiny_dataset), "--device", "cpu"]) == 0
    assert "7 of 7 records, 0 skipped" in capsys.readouterr().out
    onnx = str(tmp_path / "model.onnx")
    assert tiny.load_tool("export_onnx").main(["--ckpt", str(written), "--output", onnx]) == 0
    assert texts_of(onnx, pictures) == texts_of(written, pictures)
    assert tiny.load_tool("export_tf").main([str(written), "--output", str(tmp_path / "model.ckpt")]) == 0
    flags = tiny.flags(dataset_dir=tiny_dataset, train_log_dir=tmp_path, checkpoint=written, max_number_of_steps=1)
    assert train(parse_arguments(flags, description="test")[0]) == 0
    assert "tensors loaded, 0 kept their initial values" in capsys.readouterr().out


def test_where_it_is_found(written, pictures, tmp_path, monkeypatch, capsys):
    """Beside the package in a clone, inside it where it is installed, and in one line if it is nowhere."""
    package, predict = tmp_path / "aocr_torch", tiny.load_tool("predict")
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))
    with pytest.raises(CheckpointError, match=r"weights/synthetic\.pth: no such file: name a checkpoint"):
        Predictor()
    with pytest.raises(CheckpointError, match="no such file"):
        predict.main([str(pictures[0])])
    for folder in (tmp_path, package):
        (folder / "weights").mkdir(parents=True)
        shutil.copy(written, folder / "weights" / "synthetic.pth")
        assert files.shipped_weights() == folder / "weights" / "synthetic.pth"
    (expected,) = Predictor(written)(pictures[:1])
    (reading,) = Predictor()(pictures[:1])
    assert (reading.text, reading.confidence) == (expected.text, expected.confidence)
    assert predict.main([str(pictures[0])]) == 0
    out, err = capsys.readouterr()
    assert out == f"{expected.confidence:.4f}\t{expected.text}\t{pictures[0]}\n"
    assert err == f"reading with {files.shipped_weights()}, the model that comes along; --ckpt FILE takes another\n"


def test_an_installed_package_has_it_inside(written, pictures, tmp_path):
    pytest.importorskip("setuptools")
    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in ("aocr_torch", "weights"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copy(written, source / "weights" / "synthetic.pth")
    command = ["-c", "import setuptools; setuptools.setup()", "-q", "build", "--build-lib", str(installed)]
    subprocess.run([sys.executable, *command], cwd=source, check=True, capture_output=True)
    packed = {path.relative_to(installed) for path in installed.rglob("*.py")}
    assert packed == {path.relative_to(source) for path in source.rglob("*.py")}
    assert (installed / "aocr_torch" / "weights" / "README.md").is_file()
    program = "from aocr_torch.predict import Predictor; import sys; print(Predictor()(sys.argv[1:])[0].text)"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", program, str(pictures[0])]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.split() == texts_of(written, pictures[:1]), result.stderr


def test_every_command_of_the_fine_tuning_page(full_size, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (tmp_path / "weights").mkdir()
    shutil.copy(full_size, "weights/synthetic.pth")
    shutil.copytree(ROOT / "configs", "configs")
    blocks = re.findall(r"^```bash\n(.*?)^```$", FINE_TUNING.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert [program for _, program, *_ in commands] == [*SHORTER, "train.py", "tools/export_weights.py"]
    for _, program, *arguments in commands:
        images = ["--images", str(tiny.pictures(tmp_path / "pictures", ["abc"])[0])] if "export" in program else []
        shorter = SHORTER.get(program, "").split()
        assert tiny.load_program(program).main([*arguments, *shorter, *images]) == 0
    said = capsys.readouterr().out
    assert "its charset is another: kept 34 characters" in said
    assert said.count("2 of 2 records, 0 skipped") == 2
    assert Predictor("mine.pth").charset.size == 34


def test_the_cards_picture(full_size, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "aocr_torch" / "files.py"))
    (tmp_path / "weights").mkdir()
    shutil.copy(full_size, "weights/synthetic.pth")
    (program,) = re.findall(r"^```python\n(.*?)^```$", CARD.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(program, {})
    with Image.open("attention.jpg") as picture:
        assert picture.width > 600


@pytest.fixture(scope="module")
def shipped():
    if not SHIPPED.is_file():
        pytest.skip("weights/synthetic.pth is not in this checkout")
    return checkpoint.load(SHIPPED)


def test_the_shipped_file(shipped):
    content, card = SHIPPED.read_bytes(), CARD.read_text(encoding="utf-8")
    assert len(content) <= 8_000_000
    assert set(shipped) == {"format", "model", "step", "config", "charset"}
    config, charset = checkpoint.config_of(shipped), checkpoint.charset_of(shipped)
    assert charset == Charset.fsns()
    assert (config.data.num_views, config.data.view_size, config.data.max_sequence_length) == (4, (150, 150), 37)
    assert (config.data.dataset_dir, config.run) == (None, Config().run)
    numbers = sum(value.numel() for value in shipped["model"].values())
    for fact in (
        f"{len(content) / 1e6:.2f} MB",
        hashlib.sha256(content).hexdigest(),
        f"{shipped['step']:,}",
        f"{numbers:,}",
    ):
        assert fact in card


def test_the_shipped_file_reads_signs_with_names_that_it_never_saw(shipped):
    config = checkpoint.config_of(shipped).replace(synthesize="fsns", num_records=20, batch_size=4, num_workers=0)
    dataset = open_dataset(config, "test", checkpoint.charset_of(shipped))
    model = checkpoint.build_model(shipped, config, dataset.charset, SHIPPED)
    evaluation = evaluate(model, dataset, config, torch.device("cpu"))
    assert evaluation.evaluated == 20
    assert evaluation.results["CharacterAccuracy"] > 0.9


def test_the_card_says_what_the_real_records_give(shipped, reference):
    config = checkpoint.config_of(shipped).replace(dataset_dir=str(reference / "fsns"))
    dataset = open_dataset(config, "train", checkpoint.charset_of(shipped))
    readings = Predictor(SHIPPED)([dataset[number]["image"].numpy() for number in range(len(dataset))])
    rows = re.findall(r"^\| \d \| (.*) \| (.*) \| (.*) \|$", CARD.read_text(encoding="utf-8"), re.MULTILINE)
    found = [(dataset.text(number), reading.text) for number, reading in enumerate(readings)]
    assert [(label, text) for label, text, _ in rows] == found
    assert [float(row[2]) for row in rows] == pytest.approx([reading.confidence for reading in readings], abs=0.01)


@pytest.mark.parametrize("page", PAGES_WITH_FIGURES, ids=lambda path: path.name)
@pytest.mark.usefixtures("shipped")
def test_no_figure_is_missing(page):
    assert "XX" not in page.read_text(encoding="utf-8")
