"""Older names of weights -> the names of today's diffusers folders, by rules; and the settings of a single file, by shape."""

import re
from dataclasses import dataclass

from torch import Tensor

from minip2p.clip import CLIPConfig
from minip2p.unet import UNetConfig
from minip2p.vae import VAEConfig

State = dict[str, Tensor]

# ---------------------------------------------------------------- folders of any age

VAE_ATTENTION = {  # the names of 2022 and of CompVis -> today's
    "query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0",
    "norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0",
}  # fmt: skip
TEXT_NETWORK = ("embeddings.", "encoder.", "final_layer_norm.")  # what the names of a text encoder begin with
VAE_NETWORK = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


def convert_legacy_vae(state: State) -> State:
    """The VAE's attention under today's names, as linear layers. Older files have other names, or 1x1 convolutions."""

    def rename(found: re.Match) -> str:
        return f"{found[1]}.{VAE_ATTENTION.get(found[2], found[2])}.{found[3]}"

    state = {re.sub(r"^(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)$", rename, name): t for name, t in state.items()}
    return {name: t.flatten(1) if ".attentions." in name and t.ndim == 4 else t for name, t in state.items()}


def convert_text_encoder(state: State) -> State:
    """Without the prefix `text_model.`, which newer transformers does not write, and without the buffer of positions 0 to 76."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name != "embeddings.position_ids"}


def keep_layers(state: State, layers: int) -> tuple[State, list[str]]:
    """The first `layers` layers of a text encoder, and the names of the tensors of further layers.

    A config with fewer layers than the file is the usual way to use the output of an earlier layer ("clip skip").
    """
    further = [name for name in state if (found := re.match(r"encoder\.layers\.(\d+)\.", name)) and int(found[1]) >= layers]
    return {name: tensor for name, tensor in state.items() if name not in set(further)}, further


# ---------------------------------------------------------------- single files

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."  # the text encoder of Stable Diffusion 2.x
OPEN_CLIP_NETWORK = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.")
MARKS = ("v_pred", "ztsnr")  # tensors that say how the model was trained
SCHEDULE = {  # the noise schedule, which scheduler.py computes, and the counters of EMA
    "alphas_cumprod", "alphas_cumprod_prev", "betas", "log_one_minus_alphas_cumprod", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "model_ema.decay", "model_ema.num_updates",
}  # fmt: skip
RESNET = {
    "in_layers.0.": "norm1.", "in_layers.2.": "conv1.", "emb_layers.1.": "time_emb_proj.", "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.", "skip_connection.": "conv_shortcut.", "nin_shortcut.": "conv_shortcut.",
}  # fmt: skip
ENDS = {
    "time_embed.0.": "time_embedding.linear_1.", "time_embed.2.": "time_embedding.linear_2.", "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.", "middle_block.0.": "mid_block.resnets.0.", "middle_block.1.": "mid_block.attentions.0.",
    "middle_block.2.": "mid_block.resnets.1.",
}  # fmt: skip
VAE_MID = {
    "mid.block_1.": "mid_block.resnets.0.", "mid.block_2.": "mid_block.resnets.1.", "mid.attn_1.": "mid_block.attentions.0.",
    "norm_out.": "conv_norm_out.",
}  # fmt: skip
OPEN_CLIP_LAYER = {
    "ln_1.": "layer_norm1.", "ln_2.": "layer_norm2.", "attn.out_proj.": "self_attn.out_proj.", "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.", "token_embedding.": "embeddings.token_embedding.", "ln_final.": "final_layer_norm.",
    "positional_embedding": "embeddings.position_embedding.weight",
}  # fmt: skip


@dataclass(frozen=True)
class SingleFile:
    """A single file's tensors by network, under today's names, and the full names of the tensors that no network uses."""

    unet: State
    vae: State
    text_encoder: State
    left_aside: list[str]


def split_single_file(state: State) -> SingleFile:
    """Sort the tensors of a single file by network and rename them.

    Every tensor whose name begins like one of a network's own is given to that network, which takes all of them or none.
    """
    unet, vae, text, open_clip, left_aside = {}, {}, {}, {}, []
    for name, tensor in state.items():
        own = name.removeprefix(TEXT).removeprefix("text_model.")
        if name.startswith(UNET):
            unet[name.removeprefix(UNET)] = tensor
        elif name.startswith(VAE) and name.removeprefix(VAE).startswith(VAE_NETWORK):
            vae[name.removeprefix(VAE)] = tensor
        elif name.startswith(TEXT) and own.startswith(TEXT_NETWORK):
            text[own] = tensor
        elif name.startswith(OPEN_CLIP):
            open_clip[name.removeprefix(OPEN_CLIP)] = tensor
        elif name not in SCHEDULE and name not in MARKS:
            left_aside.append(name)
    text, unused = (convert_text_encoder(text), list(open_clip)) if text else convert_open_clip(open_clip)
    left_aside += [OPEN_CLIP + name for name in unused]
    # A level of the UNet is so many layers, and one to downsample: the first level ends at this number.
    per_level = min(numbers(unet, r"input_blocks\.([1-9]\d*)\.0\.op\."), default=3)
    levels = 1 + max(numbers(vae, r"decoder\.up\.(\d+)\."), default=0)
    return SingleFile(
        {unet_name(name, per_level): tensor for name, tensor in unet.items()},
        convert_legacy_vae({vae_name(name, levels): tensor for name, tensor in vae.items()}),
        text,
        left_aside,
    )


def unet_name(name: str, per_level: int) -> str:
    """input_blocks.4.1.norm.bias -> down_blocks.1.attentions.0.norm.bias; CompVis numbers all blocks in one row."""
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.*)", name)
    if found is None:
        return replace_prefix(replace_prefix(name, ENDS), RESNET)
    side, number, slot, rest = found[1], int(found[2]), int(found[3]), found[4]
    if (side, number) == ("input", 0):
        return f"conv_in.{rest}"
    level, layer = divmod(number - 1 if side == "input" else number, per_level)
    level = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
    if rest.startswith("op."):
        return f"{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{level}.upsamplers.0.{rest}"
    return f"{level}.{'resnets' if slot == 0 else 'attentions'}.{layer}.{replace_prefix(rest, RESNET)}"


def vae_name(name: str, levels: int) -> str:
    """decoder.up.3.block.0.conv1.bias -> decoder.up_blocks.0.resnets.0.conv1.bias; CompVis counts up levels backwards."""
    half, _, rest = name.partition(".")
    if found := re.fullmatch(r"(down|up)\.(\d+)\.(.*)", rest):
        level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
        rest = re.sub(r"^block\.(\d+)\.", r"resnets.\1.", found[3]).replace("nin_shortcut", "conv_shortcut")
        rest = re.sub(r"^(down|up)sample\.", r"\1samplers.0.", rest)
        return f"{half}.{found[1]}_blocks.{level}.{rest}"
    return f"{half}.{replace_prefix(rest, VAE_MID)}"


def convert_open_clip(state: State) -> tuple[State, list[str]]:
    """OpenCLIP's text encoder under transformers' names, and the names of the tensors that Stable Diffusion 2 does not use.

    Stable Diffusion 2 reads the layer before the last one (Rombach's FrozenOpenCLIPEmbedder, layer="penultimate"), so the last
    of 24 layers is unused. Files that were written from a diffusers folder have only the 23 that are used.
    """
    layers = numbers(state, r"transformer\.resblocks\.(\d+)\.")
    used = layers if len(layers) == 23 else layers[:-1]
    renamed, unused = {}, []
    for name, tensor in state.items():
        found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.*)", name)
        if found and int(found[1]) not in used or not name.startswith(OPEN_CLIP_NETWORK):
            unused.append(name)
            continue
        layer, rest = (f"encoder.layers.{found[1]}.", found[2]) if found else ("", name)
        if stacked := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):  # q, k and v, one below the other
            for part, rows in zip("qkv", tensor.chunk(3) if tensor.ndim else [tensor] * 3):
                renamed[f"{layer}self_attn.{part}_proj.{stacked[1]}"] = rows
        else:
            renamed[layer + replace_prefix(rest, OPEN_CLIP_LAYER)] = tensor
    return renamed, unused


def numbers(state: State, pattern: str) -> list[int]:
    """What the group of a pattern matches in the beginnings of names, each number once, in order."""
    return sorted({int(found[1]) for name in state if (found := re.match(pattern, name))})


def replace_prefix(name: str, table: dict[str, str]) -> str:
    """The name with its beginning, or what follows a block's name, spelled as the table says."""
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
        if f".{old}" in name:
            return name.replace(f".{old}", f".{new}", 1)
    return name


# ---------------------------------------------------------------- settings, read off the shapes


def infer_unet(state: State, v_prediction: bool = False) -> UNetConfig:
    """The config of a UNet of any width. Stable Diffusion 1: 8 heads and 1x1 projections. 2: 64 channels a head and linear ones.

    768-pixel models are the Stable Diffusion 2 models with v-prediction; a single file does not say the size.
    """
    levels = numbers(state, r"down_blocks\.(\d+)\.")
    widths = tuple(len(state[f"down_blocks.{i}.resnets.0.conv1.bias"]) for i in levels)
    projections = [tensor for name, tensor in state.items() if name.endswith(".proj_in.weight")]
    linear = bool(projections) and projections[0].ndim == 2
    text = [tensor for name, tensor in state.items() if name.endswith("attn2.to_k.weight")]
    return UNetConfig(
        sample_size=96 if linear and v_prediction else 64,
        block_out_channels=widths,
        down_attention=tuple(f"down_blocks.{i}.attentions.0.norm.weight" in state for i in levels),
        mid_block=any(name.startswith("mid_block.") for name in state),
        layers_per_block=len(numbers(state, r"down_blocks\.0\.resnets\.(\d+)\.")),
        cross_attention_dim=text[0].shape[1],
        heads=tuple(width // min(64, widths[0]) if linear else 8 for width in widths),
        use_linear_projection=linear,
    )


def infer_vae(state: State) -> VAEConfig:
    """The config of a single file's VAE."""
    levels = numbers(state, r"encoder\.down_blocks\.(\d+)\.")
    return VAEConfig(
        block_out_channels=tuple(len(state[f"encoder.down_blocks.{i}.resnets.0.conv1.bias"]) for i in levels),
        layers_per_block=len(numbers(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")),
    )


def infer_clip(state: State, open_clip: bool = False) -> CLIPConfig:
    """The config of a text encoder of any width, with 64 channels a head as in all published ones. OpenCLIP's has exact gelu."""
    vocab_size, width = state["embeddings.token_embedding.weight"].shape
    return CLIPConfig(
        vocab_size,
        width,
        intermediate_size=len(state["encoder.layers.0.mlp.fc1.bias"]),
        num_hidden_layers=len(numbers(state, r"encoder\.layers\.(\d+)\.")),
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=len(state["embeddings.position_embedding.weight"]),
        hidden_act="gelu" if open_clip else "quick_gelu",
    )
