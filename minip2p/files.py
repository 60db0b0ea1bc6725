"""Writing files whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from minip2p.errors import PromptError


def writable(path: str | Path, suffixes: tuple[str, ...]) -> Path:
    """The path, if a file of one of these kinds can be written there; PromptError otherwise. Asked before the work."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in suffixes:
        raise PromptError(f"cannot write {path}: its name must end in {' or '.join(suffixes)}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        cause = "it is a folder" if path.is_dir() else f"{path.parent} is not a folder that can be written to"
        raise PromptError(f"cannot write {path}: {cause}; choose another place")
    return path


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Call write(temporary file) and move the result to `path`: after an error or a kill, `path` is as it was."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        temporary.chmod(0o666 & ~umask())  # some writers leave a file that only its owner may read
        temporary.replace(path)


def umask() -> int:
    """What new files are not allowed; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
