"""Safetensors files: found under their standard names, read completely or refused, and named for what they are."""

import os
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from minip2p.errors import CheckpointError
from minip2p.tokenizer import read_json

VARIANTS = ("", ".fp16", ".bf16", ".non_ema")  # full precision first; weights without averaging (EMA) last
PICKLES = (".ckpt", ".bin", ".pt", ".pth")
PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
XL = "this package runs Stable Diffusion 1.x and 2.x, use one of those"


def read_weights(folder: Path, stem: str) -> tuple[Path, dict[str, Tensor]]:
    """The weights of one part of a folder: the file that was chosen (the index, if there are shards), and its tensors."""
    for variant in VARIANTS:
        file = folder / f"{stem}{variant}.safetensors"
        if os.path.lexists(file):
            return file, read_safetensors(file)[0]
        for index in (folder / f"{stem}{variant}.safetensors.index.json", folder / f"{stem}.safetensors.index{variant}.json"):
            if os.path.lexists(index):
                return index, read_shards(index)
    there = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".safetensors", *PICKLES))
    if there and all(file.suffix.lower() in PICKLES for file in there):
        refuse_pickle(there[0])
    found = f", though the folder has {', '.join(file.name for file in there)[:200]}" if there else ""
    names = ", ".join(f"{variant}.safetensors" for variant in VARIANTS[1:])
    raise CheckpointError(f"{folder / stem}.safetensors is missing{found}: download it, or one of its variants {names}")


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all the files that an index lists. CheckpointError for a damaged index or a missing file."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index} lists no files: it was cut short or is something else, download it again")
    state: dict[str, Tensor] = {}
    for name in sorted(set(shards.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} lists {name!r}, which is no .safetensors file beside it: download both again")
        state |= read_safetensors(index.parent / name)[0]
    return state


def refuse_pickle(file: Path) -> None:
    raise CheckpointError(
        f"{file} is a pickle, which can run code when it is opened: use the .safetensors file of the same model"
    )


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, on the CPU, and its metadata. CheckpointError for any other file, whatever its name says."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(64)
    except OSError as error:
        cause = error.strerror
        raise CheckpointError(f"{file} cannot be read ({cause}): download it, or give another file or folder") from None
    if not head:
        raise CheckpointError(f"{file} is empty: download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository, or download the file"
        )
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}, tensors.metadata() or {}
    except Exception as error:  # the library and torch raise many kinds of error for a damaged file
        if head.startswith(PICKLE_STARTS) or file.suffix.lower() in PICKLES:
            refuse_pickle(file)
        is_page = head.lstrip().lower().startswith((b"<!doctype", b"<html"))
        guess = "it is a web page" if is_page else "it was cut short or is something else"
        cause = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{file} is not a whole safetensors file ({cause}; {guess}): download it again") from None


# ---------------------------------------------------------------- what a file is, told by its tensors' names

KINDS = (  # (a part of some tensor's name, what the file then is, what to do), the most telling first
    ("conditioner.embedders.", "is Stable Diffusion XL", XL),
    (".joint_blocks.", "is Stable Diffusion 3", XL),
    ("double_blocks.", "is Flux", XL),
    ("lora_", "is a LoRA, a patch for a model and not a model", "merge it into a checkpoint first"),
    (".lora", "is a LoRA, a patch for a model and not a model", "merge it into a checkpoint first"),
    ("hada_", "is a LoRA, a patch for a model and not a model", "merge it into a checkpoint first"),
    ("lokr_", "is a LoRA, a patch for a model and not a model", "merge it into a checkpoint first"),
    ("control_model.", "is a ControlNet, which steers a model and is not a model", "use the model itself"),
    ("controlnet_", "is a ControlNet, which steers a model and is not a model", "use the model itself"),
    ("emb_params", "is a textual-inversion embedding, one word for a model", "use the model itself"),
    ("string_to_param", "is a textual-inversion embedding, one word for a model", "use the model itself"),
)
NETWORKS = {  # a part of some tensor's name, for each of the three networks in a single file
    "UNet": "model.diffusion_model.",
    "VAE": "first_stage_model.",
    "text encoder": "cond_stage_model.",
}
LONE_PARTS = (  # the same networks alone, under the names of a diffusers folder or of a file for one part
    ("UNet", ("down_blocks.", "input_blocks.")),
    ("VAE", ("encoder.down", "decoder.up", "decoder.conv_in.")),
    ("text encoder", ("text_model.", "embeddings.token_embedding.", "transformer.resblocks.")),
)


def refuse_other_kinds(names: Iterable[str], path: Path, whole: bool) -> None:
    """CheckpointError that says what a single file is, unless it is a Stable Diffusion 1.x or 2.x.

    whole: the file holds all three networks. Then further tensors, such as a ControlNet's, do not make it another kind.
    """
    names = list(names)
    for part, kind, fix in KINDS[:3] if whole else KINDS:
        if any(part in name for name in names):
            raise CheckpointError(f"{path} {kind}: {fix}")
    if whole:
        return
    there = [network for network, prefix in NETWORKS.items() if any(name.startswith(prefix) for name in names)]
    missing = [network for network in NETWORKS if network not in there]
    if there and missing:
        raise CheckpointError(
            f"{path} holds the {' and the '.join(there)} of a model and no {' and no '.join(missing)}: "
            "use a file that holds all three, or a folder in diffusers' layout"
        )
    for network, parts in LONE_PARTS:
        if any(name.startswith(parts) for name in names):
            raise CheckpointError(f"{path} is a {network} alone: give the model's folder, or a file with all three networks")
    example = f", the first {names[0]!r}"[:100] if names else ""
    cause = f"it holds {len(names)} tensors{example}"
    raise CheckpointError(f"{path} is not a Stable Diffusion checkpoint ({cause}): use a file with all three networks")
