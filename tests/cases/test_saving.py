"""Files are written completely or not at all, and a place where nothing can be written is one line."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minip2p import RequestError
from minip2p.save import writable, write_whole

OLD = b"the old file"


def only_entry(folder: Path, file: Path) -> bool:
    """Nothing was left behind beside the file."""
    return sorted(folder.iterdir()) == [file]


def test_a_file_is_replaced(tmp_path):
    file = tmp_path / "x.png"
    for content in (OLD, b"new"):
        write_whole(file, lambda to: to.write_bytes(content))
        assert file.read_bytes() == content and only_entry(tmp_path, file)


def test_a_file_has_the_usual_permissions(tmp_path):
    """Temporary files are for their owner alone."""
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "x.png", lambda to: (to.write_bytes(b""), to.chmod(0o600)))
    assert (tmp_path / "x.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, RequestError])
def test_an_interrupted_save_leaves_the_old_file(tmp_path, failure):
    file = tmp_path / "x.png"
    file.write_bytes(OLD)

    def write(to: Path) -> None:
        to.write_bytes(b"half of the n")
        raise failure("stopped")

    with pytest.raises(failure):
        write_whole(file, write)
    assert file.read_bytes() == OLD and only_entry(tmp_path, file)


def test_a_killed_save_leaves_the_old_file(tmp_path):
    """kill -9 in the middle of writing: the old file is whole, whatever is left beside it."""
    file = tmp_path / "x.png"
    file.write_bytes(OLD)
    code = (
        "import os, signal, sys; from pathlib import Path; from minip2p.save import write_whole\n"
        "write_whole(Path(sys.argv[1]), lambda to: (to.write_bytes(b'half'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code, str(file)], cwd=root, capture_output=True)
    assert ended.returncode == -9 and file.read_bytes() == OLD


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, number):
    file = tmp_path / "x.png"
    file.write_bytes(OLD)

    def write(to: Path) -> None:
        to.write_bytes(b"half")
        raise OSError(number, os.strerror(number), str(to))

    with pytest.raises(RequestError) as error:
        write_whole(file, write)
    assert str(error.value) == f"cannot write {file} ({os.strerror(number)}): make room, or choose another place"
    assert file.read_bytes() == OLD and only_entry(tmp_path, file)


def test_a_folder_that_vanished_is_one_line(tmp_path):
    with pytest.raises(RequestError, match=r"cannot write .*gone/x.png \(No such file or directory\): "):
        write_whole(tmp_path / "gone/x.png", lambda to: to.write_bytes(b""))


@pytest.mark.parametrize(
    "name, cause",
    [
        ("x.gif", r"its name must end in .png or .jpg"),
        ("x", r"its name must end in .png or .jpg"),
        ("folder.png", r"it is a folder; choose another place"),
        ("nowhere/x.png", r"the folder .*nowhere does not exist; choose another place"),
        ("file/x.png", r"the folder .*file does not exist; choose another place"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path, name, cause):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RequestError, match=rf"^cannot write .*{name}: {cause}$"):
        writable(tmp_path / name, (".png", ".jpg"))


def test_a_read_only_folder_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(RequestError, match=r"the folder .* is read-only; choose another place"):
        writable(tmp_path / "x.png", (".png",))


def test_a_good_place_is_returned(tmp_path):
    for name in ("x.png", "X.PNG"):
        assert writable(str(tmp_path / name), (".png",)) == tmp_path / name
