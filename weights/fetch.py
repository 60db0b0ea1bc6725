"""Fetch Stable Diffusion 1.5 into weights/: python -m weights.fetch (or `make weights`).

About 2.1 GB: the half-precision safetensors of the folder that diffusers reads. A download that was broken off goes on where
it stopped (huggingface_hub begins the file anew), and each file is compared with the checksum that the server states.
HF_ENDPOINT names another server with the same layout, such as a mirror.
"""

import hashlib
import json
import os
import shutil
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
REPOSITORY = "stable-diffusion-v1-5/stable-diffusion-v1-5"
LICENCE = "CreativeML OpenRAIL-M, https://huggingface.co/spaces/CompVis/stable-diffusion-license"
VOCABULARY = ("vocab.json", "merges.txt")
FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"tokenizer/{name}" for name in VOCABULARY),
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
)
PIECE = 1 << 20  # bytes read at a time


class Broken(Exception):
    """A download that did not end well; the message is one line for the reader."""


def main() -> int:
    folder = HERE / REPOSITORY.split("/")[-1]
    server = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    print(f"{REPOSITORY} -> {folder}\nIts licence, not ours: {LICENCE}", flush=True)
    try:
        stated = listing(server)
        for name in FILES:
            fetch(f"{server}/{REPOSITORY}/resolve/main/{name}", folder / name, *stated[name])
        (HERE / "tokenizer").mkdir(exist_ok=True)  # for single files, which come without one
        for name in VOCABULARY:
            shutil.copyfile(folder / "tokenizer" / name, HERE / "tokenizer" / name)
    except (Broken, OSError, HTTPException) as error:
        print(f"weights: {error}: run `make weights` again, it goes on where it stopped", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("weights: stopped: run `make weights` again, it goes on where it stopped", file=sys.stderr)
        return 130
    print(f"complete. Try: make lesson3 WEIGHTS={os.path.relpath(folder)}")
    return 0


def listing(server: str) -> dict[str, tuple[int, str]]:
    """{file: (size, checksum)} of the wanted files: SHA-256 of the large ones, git's blob SHA-1 of the small ones."""
    url = f"{server}/api/models/{REPOSITORY}/tree/main?recursive=true"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            entries = json.load(answer)
        stated = {entry["path"]: (entry["size"], (entry.get("lfs") or entry)["oid"]) for entry in entries}
    except OSError as error:
        raise Broken(f"{url} cannot be read ({error})") from None
    except (ValueError, KeyError, TypeError):
        raise Broken(f"{url} is not a list of files") from None
    missing = [name for name in FILES if name not in stated]
    if missing:
        raise Broken(f"{server}/{REPOSITORY} has no {missing[0]}")
    return stated


def fetch(url: str, path: Path, size: int, checksum: str) -> None:
    """One file, whole and checked, or not at all; what has come so far waits beside it under the name .part."""
    if path.exists() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    if have < size:
        download(url, part, have, size, f"{path.parent.name}/{path.name}")
    if part.stat().st_size < size:
        raise Broken(f"{url} broke off at {part.stat().st_size:,} of {size:,} bytes")
    if digest(part, size, checksum) != checksum:
        part.unlink()
        raise Broken(f"{url} came with a wrong checksum and was thrown away")
    part.replace(path)


def download(url: str, part: Path, have: int, size: int, name: str) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        resumed = answer.status == 206  # a server that does not know ranges sends everything again, with 200
        have = have if resumed else 0
        bar = tqdm(desc=name, total=size, initial=have, unit="B", unit_scale=True)
        with open(part, "ab" if resumed else "wb") as file, bar:
            while piece := answer.read(PIECE):
                file.write(piece)
                bar.update(len(piece))


def digest(path: Path, size: int, checksum: str) -> str:
    """Of the same kind as `checksum`: 64 digits are SHA-256, 40 are git's, which counts a header with the size."""
    counted = hashlib.sha256() if len(checksum) == 64 else hashlib.sha1(b"blob %d\0" % size)
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            counted.update(piece)
    return counted.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
