"""Writing a file completely, or leaving what was there before."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from stat import S_IMODE

from minip2p.errors import RequestError


def writable(path: str | Path, suffixes: tuple[str, ...]) -> Path:
    """The path, if a file with one of these suffixes can be written there; else RequestError. Call it before long work."""
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() not in suffixes:
        raise RequestError(f"cannot write {path}: its name must end in {' or '.join(suffixes)}")
    cause = None
    if path.is_dir():
        cause = "it is a folder"
    elif not path.parent.is_dir():
        cause = f"the folder {path.parent} does not exist"
    elif not os.access(path.parent, os.W_OK):
        cause = f"the folder {path.parent} is read-only"
    if cause:
        raise RequestError(f"cannot write {path}: {cause}; choose another place")
    return path


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Call write(temporary file), then move that file to `path`. After an error or an interruption `path` is unchanged.

    RequestError, one line, if the disk is full or the folder cannot be written to.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
            temporary = Path(folder) / path.name
            temporary.touch()
            mode = S_IMODE(temporary.stat().st_mode)  # of any new file; some writers create one that only its owner may read
            write(temporary)
            temporary.chmod(mode)
            temporary.replace(path)
    except OSError as error:
        cause = error.strerror or " ".join(str(error).split())
        raise RequestError(f"cannot write {path} ({cause}): make room, or choose another place") from None
