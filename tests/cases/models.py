"""Small random models as diffusers makes them, as a folder or as a single file under CompVis's and OpenCLIP's names.

The names are made by rules of their own, in the other direction than minip2p/convert.py: from a folder's to a single file's.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from minip2p.tokenizer import END, START
from tests.pipelines import assembled, write_tokenizer

State = dict[str, Tensor]
FULL, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


@dataclass(frozen=True)
class Kind:
    """The architecture of a published model, in small."""

    levels: tuple[tuple[str, str], ...] = (FULL, FULL, FULL, PLAIN)
    widths: tuple[int, ...] = (32, 64, 64, 64)
    layers: int = 2
    heads: int | list[int] = 8
    mid_block: bool = True
    sd2: bool = False
    text_layers: int = 2
    scheduler: dict = field(default_factory=dict)


KINDS = {
    "sd1": Kind(),
    "sd2-base": Kind(widths=(64, 128, 128), levels=(FULL, FULL, PLAIN), heads=[1, 2, 2], sd2=True, text_layers=23),
    "sd2": Kind(
        widths=(64, 128, 128), levels=(FULL, FULL, PLAIN), heads=[1, 2, 2], sd2=True, text_layers=23,
        scheduler={"prediction_type": "v_prediction"},
    ),
    "turbo": Kind(
        widths=(64, 128, 128), levels=(FULL, FULL, PLAIN), heads=[1, 2, 2], sd2=True, text_layers=2,
        scheduler={"timestep_spacing": "trailing"},
    ),
    "bk-sdm-base": Kind(layers=1),
    "bk-sdm-small": Kind(layers=1, mid_block=False),
    "bk-sdm-tiny": Kind(layers=1, mid_block=False, levels=(FULL, FULL, FULL), widths=(32, 64, 64)),
    "smallest": Kind(layers=1, mid_block=False, levels=(FULL, PLAIN), widths=(32, 32), text_layers=1),  # for tests/fuzz.py
}  # fmt: skip


def make(name: str, folder: Path, seed: int = 0) -> StableDiffusionPipeline:
    """A random model of a kind, saved by diffusers to `folder`, and returned as diffusers' pipeline."""
    kind = KINDS[name]
    torch.manual_seed(seed)
    write_tokenizer(folder / "tokenizer", pad="!" if kind.sd2 else END)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    vocab, width = tokenizer.get_vocab(), 64
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab), hidden_size=width, intermediate_size=96, num_hidden_layers=kind.text_layers,
            num_attention_heads=width // 64, hidden_act="gelu" if kind.sd2 else "quick_gelu",
            bos_token_id=vocab[START], eos_token_id=vocab[END], pad_token_id=vocab["!"] if kind.sd2 else vocab[END],
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=kind.widths, layers_per_block=kind.layers,
        down_block_types=tuple(down for down, _ in kind.levels), up_block_types=tuple(up for _, up in kind.levels[::-1]),
        mid_block_type="UNetMidBlock2DCrossAttn" if kind.mid_block else None, cross_attention_dim=width,
        attention_head_dim=kind.heads, use_linear_projection=kind.sd2,
    )  # fmt: skip
    levels = 3
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(32, 32, 64), layers_per_block=2, norm_num_groups=32, sample_size=32,
    )  # fmt: skip
    usual = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = DDIMScheduler(**usual | {"clip_sample": False, "set_alpha_to_one": False} | kind.scheduler)
    for network in (text_encoder, unet, vae):
        network.requires_grad_(False)
    pipeline = assembled(folder, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
    write_tokenizer(folder / "tokenizer", pad="!" if kind.sd2 else END)  # save_pretrained writes a tokenizer.json only
    return pipeline


def configure(folder: Path, part: str, **changes) -> None:
    """Change settings of a part's config."""
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---------------------------------------------------------------- single files

UNET, VAE, TEXT, OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def compvis_unet(state: State, layers: int) -> State:
    """diffusers' UNet under CompVis's names: blocks are numbered in one row, `layers` of them and a resampler per level."""
    renamed = {}
    for name, tensor in state.items():
        new = next((f"{new}{name.removeprefix(old)}" for old, new in ENDS.items() if name.startswith(f"{old}.")), name)
        if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
            side, level, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
            number = level * (layers + 1) + layer + (side == "down")
            block = "input_blocks" if side == "down" else "output_blocks"
            has_attention = any(other.startswith(f"{side}_blocks.{level}.attentions") for other in state)
            new = {
                "resnets": f"{block}.{number}.0.{rest}",
                "attentions": f"{block}.{number}.1.{rest}",
                "downsamplers": f"{block}.{(level + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}",
                "upsamplers": f"{block}.{level * (layers + 1) + layers}.{1 + has_attention}.{rest}",
            }[kind]
        for old, part in RESNET.items():
            new = re.sub(rf"^((?:input|output)_blocks\.\d+\.0|middle_block\.[02])\.{old}\.", rf"\1.{part}.", new)
        renamed[UNET + new] = tensor
    return renamed


def compvis_vae(state: State, attention: str = "compvis") -> State:
    """diffusers' VAE under CompVis's names. attention: "compvis" (q, 1x1 convolutions), "2022" (query) or "today" (to_q)."""
    levels = 1 + max(int(found[1]) for name in state if (found := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    names = {
        "compvis": {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
        "2022": {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"},
        "today": {"group_norm": "norm"},
    }[attention]
    renamed = {}
    for name, tensor in state.items():
        new = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{levels - 1 - int(found[1])}.block.", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", new)
        if "mid_block.attentions.0." in new:
            before, after = new.split("mid_block.attentions.0.")
            part, _, end = after.rpartition(".")
            new = f"{before}mid.attn_1.{names.get(part, part)}.{end}"
            tensor = tensor[:, :, None, None] if attention == "compvis" and tensor.ndim == 2 else tensor
        renamed[VAE + new] = tensor
    return renamed


def compvis_text(state: State) -> State:
    """transformers' text encoder as Stable Diffusion 1's single files have it."""
    return {f"{TEXT}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def open_clip_text(state: State, unused_layer: bool = True) -> State:
    """transformers' text encoder as in Stable Diffusion 2's single files: OpenCLIP's names, and one layer that is not used."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    renamed = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name)
        if found is None:
            name = name.replace("final_layer_norm", "ln_final").replace("embeddings.token_embedding", "token_embedding")
            renamed[name.replace("embeddings.position_embedding.weight", "positional_embedding")] = tensor
            continue
        layer, part, end = f"transformer.resblocks.{found[1]}", found[2], found[3]
        if part == "self_attn.q_proj":
            names = [f"encoder.layers.{found[1]}.self_attn.{letter}_proj.{end}" for letter in "qkv"]
            renamed[f"{layer}.attn.in_proj_{end}"] = torch.cat([state[name] for name in names])
        elif part in OPEN_CLIP_LAYER:
            renamed[f"{layer}.{OPEN_CLIP_LAYER[part]}.{end}"] = tensor
    last = 1 + max(int(name.split(".")[2]) for name in renamed if name.startswith("transformer."))
    width = len(renamed["ln_final.bias"])
    if unused_layer:
        first = {name: t for name, t in renamed.items() if name.startswith("transformer.resblocks.0.")}
        renamed |= {name.replace(".0.", f".{last}.", 1): torch.randn_like(t) for name, t in first.items()}
        renamed |= {"text_projection": torch.randn(width, width), "logit_scale": torch.tensor(4.6)}
    return {OPEN_CLIP + name: tensor for name, tensor in renamed.items()}


def single_file(pipeline: StableDiffusionPipeline, name: str, attention: str = "compvis", unused_layer: bool = True) -> State:
    """All tensors of a model as one CompVis file has them."""
    text = pipeline.text_encoder.state_dict()
    return {
        **compvis_unet(pipeline.unet.state_dict(), KINDS[name].layers),
        **compvis_vae(pipeline.vae.state_dict(), attention),
        **(open_clip_text(text, unused_layer) if KINDS[name].sd2 else compvis_text(text)),
    }


def write_single(file: Path, state: State, tokenizer: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write a single file, and the folder `tokenizer` beside it, with CLIP's two files alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / "tokenizer").mkdir(exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tokenizer / name, file.parent / "tokenizer" / name)
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, file, metadata)
    return file
