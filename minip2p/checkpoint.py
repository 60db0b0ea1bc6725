"""A checkpoint -> the five components of a model: from a folder in diffusers' layout, or from one file in CompVis's layout.

The modules of this package carry the names of a diffusers folder, so a folder's weights load as they are; convert.py renames
older ones. Loading is strict: every tensor of a network has its place and its shape, or the checkpoint is refused.
"""

import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minip2p import configs, convert
from minip2p.clip import TextEncoder
from minip2p.errors import CheckpointError, RequestError
from minip2p.scheduler import Schedule
from minip2p.tokenizer import CLIPTokenizer, read_json, read_text
from minip2p.unet import UNet
from minip2p.vae import VAE
from minip2p.weight_files import XL, read_safetensors, read_weights, refuse_other_kinds

FETCHED_TOKENIZER = Path(__file__).resolve().parent.parent / "weights" / "tokenizer"  # where `make weights` puts it
FOLDERS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Components:
    """What a checkpoint holds."""

    tokenizer: CLIPTokenizer
    text_encoder: TextEncoder
    unet: UNet
    vae: VAE
    schedule: Schedule


def load(path: str | Path, device: torch.device, dtype: torch.dtype, prediction_type: str | None = None) -> Components:
    """Read a checkpoint onto a device. CheckpointError, one line, says which file is wrong, why, and what to do.

    prediction_type: "epsilon" or "v_prediction", instead of what the checkpoint says. Whatever the checkpoint holds that is
    not used, and whatever had to be assumed, is said in one line on stderr. Torch's default dtype and modes have no effect.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(f"the checkpoint is {type(path).__name__}: give the path of a folder or of a .safetensors file")
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise RequestError(f"prediction_type is {prediction_type!r}: use {' or '.join(PREDICTION_TYPES)}, or leave it out")
    path = Path(os.path.expanduser(path))
    if not os.path.exists(path):
        raise CheckpointError(
            f"{path} does not exist: give a folder in diffusers' layout or a .safetensors file on this machine "
            "(loading downloads nothing; weights/README.md says how to fetch Stable Diffusion)"
        )
    with torch.inference_mode(False), torch.no_grad():  # inference tensors could not be used for gradients later
        read = load_folder if path.is_dir() else load_single_file
        components, notes = read(path, device, dtype, prediction_type)
        if device.type == "cuda" and dtype != torch.float32:  # the order in which cuDNN convolves in half precision
            components.unet.to(memory_format=torch.channels_last)
    refuse_mixed_parts(components, path)
    if notes:
        print(f"minip2p: {path}: {'; '.join(notes)}", file=sys.stderr)
    return components


def refuse_mixed_parts(components: Components, path: Path) -> None:
    """CheckpointError if the tokenizer, the text encoder and the UNet cannot be of one model."""
    width, expected = components.text_encoder.config.hidden_size, components.unet.config.cross_attention_dim
    if width != expected:
        raise CheckpointError(f"{path}: its text encoder is {width} wide and its UNet expects {expected}: use parts of one model")
    tokens = 1 + max(components.tokenizer.bpe.get_vocab().values())
    rows = components.text_encoder.config.vocab_size
    if tokens > rows:
        raise CheckpointError(
            f"{path}: its tokenizer has {tokens} tokens and its text encoder knows {rows}: use parts of one model"
        )


# ---------------------------------------------------------------- folders


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype, prediction_type: str | None):
    """(Components, notes) from tokenizer/, text_encoder/, unet/, vae/ and scheduler/, each with its config."""
    refuse_other_folders(folder)
    unet_config = configs.read_unet(folder / "unet/config.json")
    vae_config = configs.read_vae(folder / "vae/config.json")
    clip_config = configs.read_clip(folder / "text_encoder/config.json")
    schedule, notes = configs.read_schedule(folder / "scheduler/scheduler_config.json")
    tokenizer = CLIPTokenizer(folder / "tokenizer", clip_config.max_position_embeddings)
    text_file, text = read_weights(folder / "text_encoder", "model")
    vae_file, vae = read_weights(folder / "vae", "diffusion_pytorch_model")
    unet_file, unet = read_weights(folder / "unet", "diffusion_pytorch_model")
    text, further = convert.keep_layers(convert.convert_text_encoder(text), clip_config.num_hidden_layers)
    aside = [name for name in text if not name.startswith(convert.TEXT_NETWORK)]
    text = {name: tensor for name, tensor in text.items() if name not in set(aside)}
    components = Components(
        tokenizer,
        build_and_load(TextEncoder, clip_config, text, text_file, device, dtype),
        build_and_load(UNet, unet_config, unet, unet_file, device, dtype),
        build_and_load(VAE, vae_config, convert.convert_legacy_vae(vae), vae_file, device, dtype),
        replace(schedule, prediction_type=prediction_type or schedule.prediction_type),
    )
    return components, notes + describe_left_aside([f"text_encoder.{name}" for name in further + aside])


def refuse_other_folders(folder: Path) -> None:
    """CheckpointError for a folder that is not one model in diffusers' layout, with what to give instead."""
    index = folder / "model_index.json"
    kind = str(read_json(index).get("_class_name")) if index.exists() else ""
    if "XL" in kind or (folder / "text_encoder_2").exists():
        raise CheckpointError(f"{folder} is Stable Diffusion XL: {XL}")
    caches = [folder] if (folder / "snapshots").is_dir() else sorted(folder.glob("models--*/"))
    if folder.name == "snapshots":
        caches = [folder.parent]
    for cache in caches:
        snapshots = sorted((cache / "snapshots").glob("*/"), key=lambda snapshot: snapshot.stat().st_mtime)
        snapshot = snapshots[-1] if snapshots else cache / "snapshots" / "HASH"
        raise CheckpointError(f"{folder} is a Hugging Face cache, which keeps a model in a folder below: give {snapshot}")
    missing = [part for part in FOLDERS if not (folder / part).is_dir()]
    if missing:
        single = sorted(folder.glob("*.safetensors"))
        other = f"; or give {single[0]}" if single else f"; it says that it is a {kind}" if kind else ""
        raise CheckpointError(
            f"{folder} has no folder {missing[0]}/: it must hold tokenizer, text_encoder, unet, vae and scheduler, "
            f"as diffusers' save_pretrained writes them{other}"
        )


# ---------------------------------------------------------------- single files


def load_single_file(path: Path, device: torch.device, dtype: torch.dtype, prediction_type: str | None):
    """(Components, notes) from a Stable Diffusion 1.x or 2.x checkpoint under CompVis's names."""
    state, metadata = read_safetensors(path)
    file = convert.split_single_file(state)
    refuse_other_kinds(state, path, whole=bool(file.unet and file.vae and file.text_encoder))
    first = file.unet.get("conv_in.weight")
    if first is not None and first.ndim == 4:
        configs.refuse_channels(first.shape[1], path)
    said = prediction_type or read_prediction_type(path, state, metadata)
    try:
        unet_config = convert.infer_unet(file.unet, said == "v_prediction")
        sd2 = unet_config.use_linear_projection
        clip_config, vae_config = convert.infer_clip(file.text_encoder, sd2), convert.infer_vae(file.vae)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        cause = f"lacks the tensor {error}" if isinstance(error, KeyError) else "has tensors that are not a network's"
        raise CheckpointError(f"{path} {cause}: it is not a whole checkpoint, download it again") from None
    notes = describe_left_aside(file.left_aside)
    if sd2 and said is None:
        notes.append(
            'nothing says what it predicts, so "epsilon" is assumed, as for 512-pixel models; '
            'a 768-pixel model needs prediction_type="v_prediction"'
        )
    components = Components(
        CLIPTokenizer(find_tokenizer(path), clip_config.max_position_embeddings, pad_id=0 if sd2 else None),
        build_and_load(TextEncoder, clip_config, file.text_encoder, path, device, dtype),
        build_and_load(UNet, unet_config, file.unet, path, device, dtype),
        build_and_load(VAE, vae_config, file.vae, path, device, dtype),
        Schedule(prediction_type=said or "epsilon"),
    )
    return components, notes


def find_tokenizer(path: Path) -> Path:
    """The folder `tokenizer` beside a single file, or the one that `make weights` fetches."""
    beside = path.parent / "tokenizer"
    folder = beside if beside.is_dir() else FETCHED_TOKENIZER
    if not folder.is_dir():
        raise CheckpointError(f"{path} needs CLIP's vocab.json and merges.txt: put them into {beside}, or run `make weights`")
    return folder


def read_prediction_type(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> str | None:
    """What a single file says that it predicts, or None: by a tensor `v_pred`, by its metadata, or by a .yaml beside it.

    CheckpointError for a model with a zero-terminal-SNR schedule, and for a prediction that this package does not know.
    """
    said = "v" if "v_pred" in state else metadata.get("modelspec.prediction_type")
    zero_snr = "ztsnr" in state
    beside = [file for suffix in (".yaml", ".yml") if (file := path.with_suffix(suffix)).is_file()]
    if beside:  # CompVis's config; without a word about it, the model predicts the noise
        text = read_text(beside[0])
        found = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", text, re.MULTILINE)
        said = said or (found[1] if found else "eps" if re.search(r"^model:", text, re.MULTILINE) else None)
        zero_snr |= bool(re.search(r"^\s*(rescale_betas_zero_snr|zero_terminal_snr|zsnr|ztsnr):\s*[Tt]rue", text, re.MULTILINE))
    if zero_snr:
        raise CheckpointError(f"{path}: {configs.ZERO_SNR}")
    known = {"v": "v_prediction", "v_prediction": "v_prediction", "eps": "epsilon", "epsilon": "epsilon", None: None}
    if said not in known:
        raise CheckpointError(f"{path}: it predicts {said[:40]!r}, and this package knows noise and v: {configs.USE}")
    return known[said]


def describe_left_aside(names: list[str]) -> list[str]:
    """One note about tensors that no network uses, grouped by layer or by the beginnings of their names; none for none."""
    groups: dict[str, int] = {}
    for name in names:
        layer = re.match(r".*?\.(layers|resblocks)\.\d+", name)
        depth = 1 if name.startswith("model_ema") else 3 if name.startswith((convert.TEXT, convert.OPEN_CLIP)) else 2
        group = layer[0] if layer else ".".join(name.split(".")[:depth])[:60]
        groups[group] = groups.get(group, 0) + 1
    listing = [f"{group} ({number})" if number > 1 else group for group, number in groups.items()]
    more = f" and {len(listing) - 5} other groups" if len(listing) > 5 else ""
    return [f"left aside what no network here uses: {', '.join(listing[:5])}{more}"] if names else []


# ---------------------------------------------------------------- modules


def build_and_load(
    module_class, config, state: dict[str, Tensor], file: Path, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """A frozen module with exactly these tensors. CheckpointError for a missing, unknown or misshapen tensor.

    The module is built on the meta device, so that no random numbers are drawn for weights that are replaced at once.
    """
    with torch.device("meta"):
        try:
            module = module_class(config)
        except (ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
            cause = " ".join(str(error).split())[:120]
            raise CheckpointError(f"{file}: its config cannot be built ({cause}): download the config again") from None
    expected = module.state_dict()
    for problem, found in (
        ("lacks", [name for name in expected if name not in state]),
        ("has an unknown tensor", [name for name in state if name not in expected]),
    ):
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            kind = module_class.__name__
            raise CheckpointError(f"{file} {problem} {found[0]}{more}: it is not the {kind} of its config, download both again")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            raise CheckpointError(
                f"{file}: {name} has shape {shapes}: it is not of the same model as its config, download both again"
            )
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{file}: {name} is {kind}, not floating-point numbers: use the model before it was quantised")
    # The tensors are copied even where nothing changes. A view into the file has the file's alignment, and some CPUs round sums
    # by alignment; then a folder and a single file of the same weights would not give the same picture to the last bit.
    module.load_state_dict({name: t.to(device, dtype, copy=True) for name, t in state.items()}, strict=True, assign=True)
    return module.requires_grad_(False).eval()
