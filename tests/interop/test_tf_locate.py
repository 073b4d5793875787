import numpy as np
import pytest
import torch

from aocr_torch.files import CheckpointError
from aocr_torch.interop.tf_checkpoint import write_checkpoint
from aocr_torch.interop.tf_locate import locate


@pytest.fixture
def folder(tmp_path):
    """A training folder with two bundles; its state file comes from another machine."""
    for step in (3, 12):
        write_checkpoint(tmp_path / f"model.ckpt-{step}", {"v": np.float32(step)})
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/gone/train/model.ckpt-12"\nunknown: 3\n')
    return tmp_path


@pytest.mark.parametrize("suffix", ["", ".index", ".meta", ".data-00000-of-00001"])
def test_forms_of_a_v2_path(folder, suffix):
    assert locate(folder / f"model.ckpt-3{suffix}")[:2] == ("V2", folder / "model.ckpt-3")


def test_folder_and_state_file(folder):
    assert locate(folder).path == folder / "model.ckpt-12"
    assert locate(str(folder / "checkpoint")).path == folder / "model.ckpt-12"


def test_state_file_that_names_another_folder(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "checkpoint").write_text(f'model_checkpoint_path: "{folder}/model.ckpt-3"')
    assert locate(elsewhere).path == folder / "model.ckpt-3"


@pytest.mark.parametrize("text", ["", "model_checkpoint_path 3", "\0\xff", 'model_checkpoint_path: ""'])
def test_state_file_that_names_nothing(folder, text):
    (folder / "checkpoint").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"names no model_checkpoint_path; .* such as .*model\.ckpt-3"):
        locate(folder)


@pytest.mark.parametrize("target", ["model.ckpt-99", ".", "/", "checkpoint"])
def test_state_file_that_leads_nowhere(folder, target):
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{target}"')
    with pytest.raises(CheckpointError, match=r"which is not there|not a TensorFlow checkpoint"):
        locate(folder)


def test_missing(folder):
    with pytest.raises(CheckpointError, match=r"no such checkpoint.*nearest is .*model\.ckpt-3"):
        locate(folder / "model.ckpt-33")
    (folder / "model.ckpt-3.index").unlink()
    with pytest.raises(CheckpointError, match=r"copy its model\.ckpt-3\.index as well"):
        locate(folder / "model.ckpt-3")
    (folder / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"without the state file .* though none is in it"):
        locate(folder / "empty")


def test_names_with_glob_characters(tmp_path):
    (tmp_path / "model[1].ckpt-00000-of-00001").write_bytes(b"")
    with pytest.raises(CheckpointError, match="the file is empty"):
        locate(tmp_path / "model[1].ckpt-00000-of-00001")
    assert locate(tmp_path / "model[1].ckpt").format == "V1"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello", "not a TensorFlow checkpoint"),
        (b"\x80\x02\x8a\x0al\xfc", "pickle"),
        (b"\x1f\x8b\x08", "gzip; unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "Keras"),
        (b"name".ljust(257, b"\0") + b"ustar\0", "tar archive"),
    ],
)
def test_other_files(tmp_path, data, message):
    for name in ("x.ckpt", "y.index"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            locate(tmp_path / name)


def test_pytorch_file(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"as PyTorch writes; pass a PyTorch file to train\.py"):
        locate(tmp_path / "x.pth")


def test_saved_model(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\1")
    for path in (tmp_path, tmp_path / "saved_model.pb"):
        with pytest.raises(CheckpointError, match="SavedModel"):
            locate(path)


def test_a_copied_folder_comes_before_the_one_that_it_was_copied_from(tmp_path):
    for name in ("old", "copy"):
        (tmp_path / name).mkdir()
        write_checkpoint(tmp_path / name / "model.ckpt-3", {"v": np.float32(3)})
    (tmp_path / "copy" / "checkpoint").write_text(f'model_checkpoint_path: "{tmp_path}/old/model.ckpt-3"')
    assert locate(tmp_path / "copy").path == tmp_path / "copy" / "model.ckpt-3"


def test_v1_shards_of_two_checkpoints(tmp_path):
    for name in ("x-00000-of-00002", "x-00001-of-00003"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="do not make one whole checkpoint"):
        locate(tmp_path / "x")
