"""Old names of weights to today's, by rules: what diffusers wrote in 2022, and what CompVis called everything."""

import re

from torch import Tensor

State = dict[str, Tensor]

# ---------------------------------------------------------------- folders of any age


def today_vae(state: State) -> State:
    """query, key, value, proj_attn (2022) to to_q, to_k, to_v, to_out.0; as linear layers, not 1x1 convolutions."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"(\.attentions\.\d+)\.query\.", r"\1.to_q.", name)
        name = re.sub(r"(\.attentions\.\d+)\.key\.", r"\1.to_k.", name)
        name = re.sub(r"(\.attentions\.\d+)\.value\.", r"\1.to_v.", name)
        name = re.sub(r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0.", name)
        renamed[name] = tensor.flatten(1) if ".attentions." in name and tensor.ndim == 4 else tensor
    return renamed


def today_text_encoder(state: State) -> State:
    """Without the prefix `text_model.`, which newest transformers does not write, nor the buffer of positions 0 .. 76."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name != "embeddings.position_ids"}


# ---------------------------------------------------------------- single files

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model.transformer."}
IGNORED = {  # the noise schedule, which is computed here; see ddim.py
    "alphas_cumprod", "alphas_cumprod_prev", "betas", "log_one_minus_alphas_cumprod", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
}  # fmt: skip
IGNORED_PREFIX = "model_ema."  # a second copy of the UNet, from training
RESNET = {
    "in_layers.0.": "norm1.", "in_layers.2.": "conv1.", "emb_layers.1.": "time_emb_proj.", "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.", "skip_connection.": "conv_shortcut.", "nin_shortcut.": "conv_shortcut.",
}  # fmt: skip
ENDS = {
    "time_embed.0.": "time_embedding.linear_1.", "time_embed.2.": "time_embedding.linear_2.", "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.", "middle_block.0.": "mid_block.resnets.0.", "middle_block.1.": "mid_block.attentions.0.",
    "middle_block.2.": "mid_block.resnets.1.",
}  # fmt: skip
VAE_MID = {"mid.block_1.": "mid_block.resnets.0.", "mid.block_2.": "mid_block.resnets.1.", "norm_out.": "conv_norm_out."}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def split_single_file(state: State) -> tuple[dict[str, State], list[str]]:
    """A single file's tensors by part, under today's names, and the names of those that belong to no part."""
    parts: dict[str, State] = {part: {} for part in PREFIXES}
    unknown = []
    for name, tensor in state.items():
        part = next((part for part, prefix in PREFIXES.items() if name.startswith(prefix)), None)
        if part is not None:
            parts[part][name.removeprefix(PREFIXES[part])] = tensor
        elif name not in IGNORED and not name.startswith(IGNORED_PREFIX):
            unknown.append(name)
    # Layers a level, and one to halve: the first level ends at this number.
    per_level = min(numbers(parts["unet"], r"input_blocks\.([1-9]\d*)\.0\.op\."), default=3)
    levels = 1 + max(numbers(parts["vae"], r"decoder\.up\.(\d+)\."), default=0)
    return {
        "unet": {unet_name(name, per_level): tensor for name, tensor in parts["unet"].items()},
        "vae": today_vae({vae_name(name, levels): tensor for name, tensor in parts["vae"].items()}),
        "text_encoder": today_text_encoder(parts["text_encoder"]),
    }, unknown


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
    if found := re.fullmatch(r"mid\.attn_1\.(\w+)\.(\w+)", rest):
        return f"{half}.mid_block.attentions.0.{VAE_ATTENTION.get(found[1], found[1])}.{found[2]}"
    return f"{half}.{replace_prefix(rest, VAE_MID)}"


def numbers(state: State, pattern: str) -> list[int]:
    """What the group of a pattern matches in the beginnings of names, in order, each once."""
    return sorted({int(found[1]) for name in state if (found := re.match(pattern, name))})


def replace_prefix(name: str, table: dict[str, str]) -> str:
    """The name with its beginning, or what follows a block's name, spelled as the table says."""
    for old, new in table.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
        if f".{old}" in name:
            return name.replace(f".{old}", f".{new}", 1)
    return name
