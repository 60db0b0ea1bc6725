"""Safetensors -> modules: a folder as diffusers lays it out, or one file as CompVis published it. Strict, or refused.

The modules of this package carry the names of a diffusers folder, so a folder loads as it is; see names.py for the rest.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from minip2p import configs, names
from minip2p.clip import TextEncoder
from minip2p.ddim import Schedule
from minip2p.errors import CheckpointError
from minip2p.tokenizer import CLIPTokenizer, read_json
from minip2p.unet import UNet
from minip2p.vae import VAE

FETCHED_TOKENIZER = Path(__file__).resolve().parent.parent / "weights" / "tokenizer"  # where `make weights` puts it
PICKLES = (".ckpt", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Parts:
    """What a checkpoint holds."""

    tokenizer: CLIPTokenizer
    text_encoder: TextEncoder
    unet: UNet
    vae: VAE
    schedule: Schedule


def load(path: str | Path, device: torch.device, dtype: torch.dtype) -> Parts:
    """Read a checkpoint onto a device; CheckpointError, one line, says which file is wrong, why, and what to do."""
    if not isinstance(path, (str, Path)):
        raise CheckpointError(f"the checkpoint is {type(path).__name__}: give the path of a folder or of a .safetensors file")
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist: give a folder in diffusers' layout or a .safetensors file on this machine "
            "(loading downloads nothing; weights/README.md says how to fetch Stable Diffusion)"
        )
    parts = load_folder(path, device, dtype) if path.is_dir() else load_single_file(path, device, dtype)
    width, wanted = parts.text_encoder.config.hidden_size, parts.unet.config.cross_attention_dim
    if width != wanted:
        raise CheckpointError(f"{path}: its text encoder is {width} wide and its UNet expects {wanted}: use parts of one model")
    tokens, rows = 1 + max(parts.tokenizer.bpe.get_vocab().values()), parts.text_encoder.config.vocab_size
    if tokens > rows:
        raise CheckpointError(
            f"{path}: its tokenizer has {tokens} tokens and its text encoder knows {rows}: use parts of one model"
        )
    return parts


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> Parts:
    """tokenizer/, text_encoder/, unet/, vae/ and scheduler/, each with its config; weights fp32 or fp16."""
    index = folder / "model_index.json"
    if (index.exists() and "XL" in str(read_json(index).get("_class_name"))) or (folder / "text_encoder_2").exists():
        raise CheckpointError(
            f"{folder} is Stable Diffusion XL: this package runs Stable Diffusion 1.x and 2.x, use one of those"
        )
    for part in ("tokenizer", "text_encoder", "unet", "vae", "scheduler"):
        if not (folder / part).is_dir():
            raise CheckpointError(
                f"{folder} has no folder {part}/: it must hold tokenizer, text_encoder, unet, vae and scheduler, "
                "as diffusers' save_pretrained writes them"
            )
    unet_config = configs.read_unet(folder / "unet/config.json")
    vae_config = configs.read_vae(folder / "vae/config.json")
    clip_config = configs.read_clip(folder / "text_encoder/config.json")
    unet_file = weights_file(folder / "unet", "diffusion_pytorch_model")
    vae_file = weights_file(folder / "vae", "diffusion_pytorch_model")
    clip_file = weights_file(folder / "text_encoder", "model")
    text = names.today_text_encoder(read_safetensors(clip_file))
    vae = names.today_vae(read_safetensors(vae_file))
    return Parts(
        CLIPTokenizer(folder / "tokenizer", clip_config.max_position_embeddings),
        fill(TextEncoder, clip_config, text, clip_file, device, dtype),
        fill(UNet, unet_config, read_safetensors(unet_file), unet_file, device, dtype),
        fill(VAE, vae_config, vae, vae_file, device, dtype),
        configs.read_schedule(folder / "scheduler/scheduler_config.json"),
    )


def load_single_file(path: Path, device: torch.device, dtype: torch.dtype) -> Parts:
    """A Stable Diffusion 1.x checkpoint under CompVis's names; the sizes are read off its tensors."""
    state = read_safetensors(path)
    refuse_other_kinds(state, path)
    parts, unknown = names.split_single_file(state)
    empty = [names.PREFIXES[part] for part, tensors in parts.items() if not tensors]
    if empty:
        raise CheckpointError(
            f"{path} has no tensors named {empty[0]}*: it is not a whole Stable Diffusion 1.x checkpoint, use one that is"
        )
    if unknown:
        more = f"{len(unknown)} unknown tensors, the first {unknown[0]}"
        raise CheckpointError(f"{path} has {more}: it is not a Stable Diffusion 1.x checkpoint, use one that is")
    text, unet, vae = parts["text_encoder"], parts["unet"], parts["vae"]
    try:
        clip_config, unet_config, vae_config = configs.infer_clip(text), configs.infer_unet(unet), configs.infer_vae(vae)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        cause = f"lacks the tensor {error}" if isinstance(error, KeyError) else "has tensors that are not a network's"
        raise CheckpointError(f"{path} {cause}: it is not a whole checkpoint, download it again") from None
    beside = path.parent / "tokenizer"
    vocabulary = beside if beside.is_dir() else FETCHED_TOKENIZER
    if not vocabulary.is_dir():
        raise CheckpointError(f"{path} needs CLIP's vocab.json and merges.txt: put them into {beside}, or run `make weights`")
    return Parts(
        CLIPTokenizer(vocabulary, clip_config.max_position_embeddings),
        fill(TextEncoder, clip_config, text, path, device, dtype),
        fill(UNet, unet_config, unet, path, device, dtype),
        fill(VAE, vae_config, vae, path, device, dtype),
        Schedule(),
    )


def fill(module_class, config, state: dict[str, Tensor], file: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A module with exactly these tensors, frozen. Built on the meta device, so that no random numbers are drawn first."""
    with torch.device("meta"):
        try:
            module = module_class(config)
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise CheckpointError(f"{file}: its config cannot be built ({error}): download the config again") from None
    wanted = module.state_dict()
    for problem, found in (
        ("lacks", [name for name in wanted if name not in state]),
        ("has an unknown tensor", [name for name in state if name not in wanted]),
    ):
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            kind = module_class.__name__
            raise CheckpointError(f"{file} {problem} {found[0]}{more}: it is not the {kind} of its config, download both again")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
            raise CheckpointError(
                f"{file}: {name} has shape {shapes}: it is not of the same model as its config, download both again"
            )
    # Copied even where nothing changes: a view into the file lies as the file has it, and some CPUs round sums by how numbers
    # lie; then a folder and a single file of the same weights would not give the same picture to the last bit.
    module.load_state_dict({name: t.to(device, dtype, copy=True) for name, t in state.items()}, strict=True, assign=True)
    return module.requires_grad_(False).eval()


# ---------------------------------------------------------------- files


def weights_file(folder: Path, stem: str) -> Path:
    """The part's safetensors, full precision before half; pickles alone are refused."""
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).exists():
            return folder / name
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in PICKLES:
            refuse_pickle(file)
    raise CheckpointError(f"{folder / stem}.safetensors is missing: download it, or its .fp16.safetensors variant")


def refuse_pickle(file: Path) -> None:
    raise CheckpointError(
        f"{file} is a pickle, which can run code when it is opened: use the .safetensors file of the same model"
    )


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU; CheckpointError for anything that only looks like one."""
    if file.suffix.lower() in PICKLES:
        refuse_pickle(file)
    try:
        with open(file, "rb") as stream:
            head = stream.read(64)
    except OSError as error:
        cause = error.strerror
        raise CheckpointError(f"{file} cannot be read ({cause}): give a .safetensors file, or a folder of diffusers'") from None
    if not head:
        raise CheckpointError(f"{file} is empty: download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository, or download the file"
        )
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}
    except (SafetensorError, OSError) as error:
        if head.startswith((b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))):
            refuse_pickle(file)
        cause = str(error).splitlines()[0]
        cause = f"{cause}; it was cut short or is something else"
        raise CheckpointError(f"{file} is not a whole safetensors file ({cause}): download it again") from None


def refuse_other_kinds(state: dict[str, Tensor], path: Path) -> None:
    """What a single file may be instead of Stable Diffusion 1.x, told by its tensors' names."""
    if any("lora_" in name or ".lora" in name for name in state):
        raise CheckpointError(f"{path} is a LoRA, a patch for a model and not a model: merge it into a checkpoint first")
    if any(name.startswith("conditioner.embedders.") for name in state):
        raise CheckpointError(f"{path} is Stable Diffusion XL: this package runs Stable Diffusion 1.x and 2.x, use one of those")
    if any(name.startswith("cond_stage_model.model.") for name in state):
        raise CheckpointError(f"{path} is a single file of Stable Diffusion 2.x: use the folder in diffusers' layout instead")
    first = state.get("model.diffusion_model.input_blocks.0.0.weight")
    if first is not None and first.ndim == 4:
        configs.refuse_channels(first.shape[1], path)
