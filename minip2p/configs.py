"""What a checkpoint says about its networks: read from the JSON of a folder, or off the shapes in a single file.

Settings that this package does not have are refused by name, never ignored: a network that runs with the wrong
activation or the wrong prediction gives pictures that are only slightly wrong.
"""

import json
import re
from pathlib import Path

from torch import Tensor

from minip2p.clip import ACTIVATIONS, CLIPConfig
from minip2p.ddim import Schedule
from minip2p.errors import CheckpointError
from minip2p.unet import UNetConfig
from minip2p.vae import VAEConfig

State = dict[str, Tensor]
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"

# Settings whose other values mean another network. Absent means this value, as in older files.
UNET_FIXED = {
    "act_fn": "silu", "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1,
    "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "only_cross_attention": False,
    "dual_cross_attention": False, "class_embed_type": None, "addition_embed_type": None, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "time_cond_proj_dim": None, "time_embedding_type": "positional",
    "time_embedding_dim": None, "time_embedding_act_fn": None, "timestep_post_act": None, "num_class_embeds": None,
    "resnet_time_scale_shift": "default", "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
    "transformer_layers_per_block": 1, "conv_in_kernel": 3, "conv_out_kernel": 3, "attention_type": "default",
    "cross_attention_norm": None, "mid_block_only_cross_attention": None, "out_channels": 4,
}  # fmt: skip
VAE_FIXED = {
    "act_fn": "silu", "in_channels": 3, "out_channels": 3, "latent_channels": 4, "mid_block_add_attention": True,
    "use_quant_conv": True, "use_post_quant_conv": True, "shift_factor": None, "latents_mean": None, "latents_std": None,
}  # fmt: skip
SCHEDULE_FIXED = {"num_train_timesteps": 1000, "trained_betas": None, "rescale_betas_zero_snr": False}


def read_json(file: Path) -> dict:
    """A config file; CheckpointError if it is not there or not an object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing: download it, it says how the network is built") from None
    except (ValueError, OSError):
        raise CheckpointError(f"{file} is not readable JSON: download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a config (a JSON object): download it again")
    return content


def refuse_other_values(config: dict, fixed: dict, file: Path) -> None:
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise CheckpointError(
                f"{file}: {key} is {config[key]!r} and this package knows only {value!r}: use a Stable Diffusion 1.x or 2.x model"
            )


def need(config: dict, key: str, file: Path):
    if config.get(key) is None:
        raise CheckpointError(f"{file} does not say {key}: download it again")
    return config[key]


def read_unet(file: Path) -> UNetConfig:
    config = read_json(file)
    refuse_channels(config.get("in_channels", 4), file)
    refuse_other_values(config, UNET_FIXED, file)
    widths = tuple(need(config, "block_out_channels", file))
    down = config.get("down_block_types", [CROSS] * (len(widths) - 1) + [PLAIN])
    up = config.get("up_block_types", [kind.replace("Down", "Up") for kind in down[::-1]])
    if set(down) - {CROSS, PLAIN} or [kind.replace("Up", "Down") for kind in up[::-1]] != down or len(down) != len(widths):
        raise CheckpointError(f"{file}: blocks {down} and {up} are not those of Stable Diffusion 1.x or 2.x")
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)  # the misnomer: 8 means 8 heads
    return UNetConfig(
        sample_size=config.get("sample_size") or 64,
        block_out_channels=widths,
        down_attention=tuple(kind == CROSS for kind in down),
        layers_per_block=config.get("layers_per_block", 2),
        cross_attention_dim=need(config, "cross_attention_dim", file),
        heads=tuple(heads) if isinstance(heads, list) else (heads,) * len(widths),
        use_linear_projection=config.get("use_linear_projection", False),
        norm_num_groups=config.get("norm_num_groups", 32),
        norm_eps=config.get("norm_eps", 1e-5),
    )


def refuse_channels(channels: int, file: Path) -> None:
    known = {9: "an inpainting model", 8: "a model edited by instructions or an upscaler's kin", 5: "a depth model"}
    if channels != 4:
        raise CheckpointError(
            f"{file}: its UNet takes {channels} channels ({known.get(channels, 'a model of another kind')}) "
            "and text-to-image takes 4: use the plain model"
        )


def read_vae(file: Path) -> VAEConfig:
    config = read_json(file)
    refuse_other_values(config, VAE_FIXED, file)
    return VAEConfig(
        block_out_channels=tuple(need(config, "block_out_channels", file)),
        layers_per_block=config.get("layers_per_block", 1),
        norm_num_groups=config.get("norm_num_groups", 32),
        scaling_factor=config.get("scaling_factor", 0.18215),  # files of 2022 do not say it
    )


def read_clip(file: Path) -> CLIPConfig:
    config = read_json(file)
    config = config.get("text_config", config)
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"{file}: hidden_act is {activation!r} and this package knows {' and '.join(ACTIVATIONS)}")
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return CLIPConfig(
        *(need(config, key, file) for key in sizes),
        max_position_embeddings=config.get("max_position_embeddings", 77),
        hidden_act=activation,
        layer_norm_eps=config.get("layer_norm_eps", 1e-5),
    )


def read_schedule(file: Path) -> Schedule:
    """The noise levels, from any scheduler's config; this package always walks them with DDIM."""
    config = read_json(file)
    refuse_other_values(config, SCHEDULE_FIXED, file)
    for key, known in (("beta_schedule", ("scaled_linear", "linear")), ("prediction_type", ("epsilon", "v_prediction"))):
        if config.get(key, known[0]) not in known:
            raise CheckpointError(f"{file}: {key} is {config[key]!r} and this package knows {' and '.join(known)}")
    known = ("beta_start", "beta_end", "beta_schedule", "steps_offset", "set_alpha_to_one", "prediction_type")
    return Schedule(**{key: config[key] for key in known if key in config})


# ---------------------------------------------------------------- single files say nothing but shapes


def levels_of(state: State, pattern: str) -> list[str]:
    """What a pattern's group matched in the names of `state`, each once, in order of appearance by number."""
    found = {match[1] for name in state if (match := re.match(pattern, name))}
    return sorted(found, key=int)


def infer_unet(state: State) -> UNetConfig:
    """A Stable Diffusion 1 UNet of any width: 8 heads, 1x1 projections."""
    levels = levels_of(state, r"down_blocks\.(\d+)\.")
    keys = [name for name in state if name.endswith("attn2.to_k.weight")]
    return UNetConfig(
        block_out_channels=tuple(len(state[f"down_blocks.{i}.resnets.0.conv1.bias"]) for i in levels),
        down_attention=tuple(f"down_blocks.{i}.attentions.0.norm.weight" in state for i in levels),
        layers_per_block=len(levels_of(state, r"down_blocks\.0\.resnets\.(\d+)\.")),
        cross_attention_dim=state[keys[0]].shape[1],
        heads=(8,) * len(levels),
    )


def infer_vae(state: State) -> VAEConfig:
    levels = levels_of(state, r"encoder\.down_blocks\.(\d+)\.")
    return VAEConfig(
        block_out_channels=tuple(len(state[f"encoder.down_blocks.{i}.resnets.0.conv1.bias"]) for i in levels),
        layers_per_block=len(levels_of(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")),
    )


def infer_clip(state: State) -> CLIPConfig:
    """OpenAI's CLIP of any width: heads of 64 channels, as in all of its published text encoders."""
    vocab_size, width = state["embeddings.token_embedding.weight"].shape
    return CLIPConfig(
        vocab_size,
        width,
        intermediate_size=len(state["encoder.layers.0.mlp.fc1.bias"]),
        num_hidden_layers=len(levels_of(state, r"encoder\.layers\.(\d+)\.")),
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=len(state["embeddings.position_embedding.weight"]),
    )
