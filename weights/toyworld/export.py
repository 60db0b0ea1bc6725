"""What training has reached, as a checkpoint in the folder layout of diffusers: configs, half-precision safetensors, tokenizer."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from stat import S_IMODE

import torch
from safetensors.torch import save_file
from torch import Tensor

from minip2p.scheduler import Schedule
from minip2p.tokenizer import CLIPTokenizer
from weights.toyworld import vocabulary
from weights.toyworld.sizes import SIDE, Denoiser, Size
from weights.toyworld.train_unet import latent_scale

BITS = 6  # of a weight's 11 in half precision; see weights/README.md for what they cost


def export(run: Path, folder: Path, size: Size) -> None:
    """What has been trained so far (averaged weights) as diffusers would write it: configs, fp16 safetensors, tokenizer.

    Written beside the folder and moved there in the end, so that it never holds half of one model and half of another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as beside:
        fresh = Path(beside)
        write(run, fresh, size)
        mode = S_IMODE((fresh / "model_index.json").stat().st_mode)  # safetensors writes files that only their owner may read
        for file in [file.relative_to(fresh) for file in fresh.rglob("*") if file.is_file()]:
            (folder / file).parent.mkdir(exist_ok=True)
            (fresh / file).chmod(mode)
            (fresh / file).replace(folder / file)


def write(run: Path, folder: Path, size: Size) -> None:
    tokenizer = CLIPTokenizer(run / "tokenizer", vocabulary.CONTEXT)
    vocab_size = len(tokenizer.bpe.get_vocab())
    model = Denoiser(size, vocab_size)
    model.load_state_dict(torch.load(run / "unet.pt", map_location="cpu", weights_only=True)["ema"])
    state = torch.load(run / "vae.pt", map_location="cpu", weights_only=True)["ema"]

    write_weights(folder / "unet/diffusion_pytorch_model.safetensors", model.unet.state_dict())
    write_weights(folder / "vae/diffusion_pytorch_model.safetensors", state)
    text = {f"text_model.{k}": v for k, v in model.text_encoder.state_dict().items()}
    write_weights(folder / "text_encoder/model.safetensors", text)
    for name, content in configs(size, vocab_size, latent_scale(run), tokenizer).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    for file in (run / "tokenizer").iterdir():
        (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())


def write_weights(path: Path, state: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: rounded(v).contiguous() for k, v in state.items()}, path, metadata={"format": "pt"})


def rounded(weights: Tensor) -> Tensor:
    """In half precision; matrices and kernels with BITS significant bits only, so that git and downloads pack them a third smaller."""
    if weights.dim() < 2:  # biases and norms are few
        return weights.half()
    mantissa, exponent = torch.frexp(weights.float())
    return torch.ldexp((mantissa * 2**BITS).round(), exponent - BITS).half()


def configs(size: Size, vocab_size: int, scaling_factor: float, tokenizer: CLIPTokenizer) -> dict[str, dict]:
    """Every JSON file of a Stable Diffusion 1 folder, with the toy's numbers."""
    unet, vae, clip = asdict(size.unet), asdict(size.vae), asdict(size.clip(vocab_size))
    attention = unet.pop("down_attention")
    unet["mid_block_type"] = "UNetMidBlock2DCrossAttn" if unet.pop("mid_block") else None
    levels = len(vae["block_out_channels"])
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
            "feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": False,
            "safety_checker": [None, None], "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", **asdict(Schedule()), "clip_sample": False,
                                            "timestep_spacing": "leading"},
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel", "attention_head_dim": unet.pop("heads")[0], **unet,
            "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
            "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL", **vae, "sample_size": SIDE,
            "scaling_factor": scaling_factor, "in_channels": 3, "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        },
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **clip,
            "bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad,
        },
    }  # fmt: skip
