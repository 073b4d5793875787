"""Files and folders that nobody sees half written, and errors that name what the user knows."""

import os
from pathlib import Path

import pytest

from aocr_torch.files import replacing, replacing_folder, replacing_path


@pytest.fixture
def old(tmp_path) -> Path:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "old").touch()
    return tmp_path / "set"


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_takes_the_place_of_another(old):
    with replacing_folder(old) as new:
        (new / "new").touch()
        assert names(old) == ["old"]
    assert names(old.parent) == ["set", "set/new"]


def test_a_folder_that_fails_leaves_the_other(old):
    with pytest.raises(KeyboardInterrupt), replacing_folder(old):
        raise KeyboardInterrupt
    assert names(old.parent) == ["set", "set/old"]


def test_a_folder_that_cannot_be_moved_in_brings_the_other_back(old, monkeypatch):
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "written":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"), replacing_folder(old):
        pass
    assert names(old.parent) == ["set", "set/old"]


def test_a_mount_point_is_refused_before_the_work(old, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: path == old)
    with pytest.raises(OSError, match=r"set is a mount point .*: name a folder inside it"), replacing_folder(old):
        raise AssertionError


@pytest.mark.parametrize("kind", [replacing, replacing_path, replacing_folder])
def test_an_error_names_what_was_asked_for(kind, tmp_path):
    (tmp_path / "file").touch()
    wanted = tmp_path / "file" / "new"
    with pytest.raises((NotADirectoryError, FileExistsError)) as error, kind(wanted):
        raise AssertionError
    assert error.value.filename in (str(wanted), str(wanted.parent))
