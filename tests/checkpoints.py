"""Checkpoints to load and to spoil: what published files contain, and writing a folder's parts anew."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minip2p import CheckpointError, StableDiffusion

MANIFESTS = Path(__file__).parent / "manifests"
UNET, VAE_, TEXT = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"  # + .safetensors


def manifest(name: str) -> dict[str, torch.Size]:
    """Names and shapes of a published file's tensors; its JSON has a level for each dot in a name."""

    def flat(node: dict, prefix: str) -> dict:
        rows = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: torch.Size(v)} for k, v in node.items()]
        return {name: shape for row in rows for name, shape in row.items()}

    return flat(json.loads((MANIFESTS / f"{name}.json").read_text()), "")


def put(file: Path, content) -> Path:
    """Write a file anew: bytes, text, tensors, or JSON; None takes it away. Copies are hard links, so never in place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    if isinstance(content, dict) and any(isinstance(value, torch.Tensor) for value in content.values()):
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, file)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def change(folder: Path, part: str, edit) -> Path:
    """Replace a part's tensors by edit(tensors)."""
    file = folder / f"{part}.safetensors"
    put(file, edit(load_file(file)))
    return folder


def config_of(folder: Path, part: str) -> Path:
    return folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")


def configure(folder: Path, part: str, **changes) -> Path:
    """Change settings of a part's config; ... drops one."""
    file = config_of(folder, part)
    put(file, {key: value for key, value in (json.loads(file.read_text()) | changes).items() if value is not ...})
    return folder


def copy(source: Path, to: Path) -> Path:
    return shutil.copytree(source, to, copy_function=os.link)


def load(path: Path) -> StableDiffusion:
    return StableDiffusion.load(path, device="cpu")


def refused(path, message: str = "") -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)
