"""Files and folders that nobody sees half written, and errors that name what the user knows."""

import os
from pathlib import Path

import pytest

from aocr_torch.files import replacing, replacing_folder, replacing_path, require_writable


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


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="is no regular file") as error, replacing(tmp_path / "pipe"):
        raise AssertionError
    assert error.value.filename == str(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_whether_a_file_can_be_written_is_known_before(tmp_path):
    (tmp_path / "old").write_text("old")
    require_writable(tmp_path / "old")
    require_writable(tmp_path / "folder" / "new")
    assert names(tmp_path) == ["folder", "old"]
    assert (tmp_path / "old").read_text() == "old"
    with pytest.raises(OSError, match="too long"):
        require_writable(tmp_path / ("x" * 240))
