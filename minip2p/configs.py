"""What a checkpoint says about its networks: read from the JSON of a folder, or off the shapes in a single file.

Settings that this package does not have are refused by name, never ignored: a network that runs with the wrong
activation or the wrong prediction gives pictures that are only slightly wrong.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from minip2p.clip import ACTIVATIONS, CLIPConfig
from minip2p.ddim import Schedule
from minip2p.errors import CheckpointError
from minip2p.names import State, numbers
from minip2p.tokenizer import read_json
from minip2p.unet import UNetConfig
from minip2p.vae import VAEConfig

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
SCHEDULE_KNOWN = {
    "beta_schedule": ("scaled_linear", "linear"), "prediction_type": ("epsilon", "v_prediction"), "steps_offset": (1, 0),
    "set_alpha_to_one": (False, True),
}  # fmt: skip


def is_whole(value) -> bool:
    """a whole number above 0"""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value) -> bool:
    """a number above 0"""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def is_switch(value) -> bool:
    """true or false"""
    return isinstance(value, bool)


def are_wholes(value) -> bool:
    """a list of whole numbers above 0"""
    return isinstance(value, list) and len(value) > 0 and all(map(is_whole, value))


def are_names(value) -> bool:
    """a list of names"""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def get(config: dict, file: Path, key: str, fits: Callable[[object], bool], default=None):
    """A setting, if it `fits` (whose docstring says what does); CheckpointError otherwise. `default` is for older files."""
    value = default if config.get(key) is None else config[key]
    if value is None:
        raise CheckpointError(f"{file} does not say {key}: download it again")
    if not fits(value):
        raise CheckpointError(f"{file}: {key} is {value!r}, not {fits.__doc__}: download it again")
    return value


def refuse_other_values(config: dict, fixed: dict, file: Path) -> None:
    """CheckpointError where the config sets a key otherwise than this package has it built in."""
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise CheckpointError(
                f"{file}: {key} is {config[key]!r} and this package knows only {value!r}: use a Stable Diffusion 1.x or 2.x model"
            )


def refuse_uneven(channels: Sequence[int], heads: Sequence[int], file: Path) -> None:
    for width, number in zip(channels, heads):
        if width % number:
            raise CheckpointError(f"{file}: {width} channels cannot be shared out among {number} heads: download it again")


def read_unet(file: Path) -> UNetConfig:
    """diffusers' unet/config.json, or CheckpointError for what this UNet does not do."""
    config = read_json(file)
    refuse_channels(get(config, file, "in_channels", is_whole, 4), file)
    refuse_other_values(config, UNET_FIXED, file)
    widths = get(config, file, "block_out_channels", are_wholes)
    down = get(config, file, "down_block_types", are_names, [CROSS] * (len(widths) - 1) + [PLAIN])
    up = get(config, file, "up_block_types", are_names, [kind.replace("Down", "Up") for kind in down[::-1]])
    if set(down) - {CROSS, PLAIN} or [kind.replace("Up", "Down") for kind in up[::-1]] != down or len(down) != len(widths):
        raise CheckpointError(f"{file}: blocks {down} and {up} are not those of Stable Diffusion 1.x or 2.x: use one of these")
    key = "num_attention_heads" if config.get("num_attention_heads") else "attention_head_dim"  # the misnomer: 8 means 8 heads
    heads = get(config, file, key, are_wholes if isinstance(config.get(key), list) else is_whole, 8)
    heads = heads if isinstance(heads, list) else [heads] * len(widths)
    if len(heads) != len(widths):
        raise CheckpointError(f"{file}: {key} has {len(heads)} numbers for {len(widths)} levels: download it again")
    refuse_uneven(widths, heads, file)
    return UNetConfig(
        sample_size=get(config, file, "sample_size", is_whole, 64),
        block_out_channels=tuple(widths),
        down_attention=tuple(kind == CROSS for kind in down),
        layers_per_block=get(config, file, "layers_per_block", is_whole, 2),
        cross_attention_dim=get(config, file, "cross_attention_dim", is_whole),
        heads=tuple(heads),
        use_linear_projection=get(config, file, "use_linear_projection", is_switch, False),
        norm_num_groups=get(config, file, "norm_num_groups", is_whole, 32),
        norm_eps=get(config, file, "norm_eps", is_number, 1e-5),
    )


def refuse_channels(channels: int, file: Path) -> None:
    """CheckpointError for a UNet that is given more than a latent, said by the other model's name."""
    known = {9: "an inpainting model", 8: "a model edited by instructions or an upscaler's kin", 5: "a depth model"}
    if channels != 4:
        raise CheckpointError(
            f"{file}: its UNet takes {channels} channels ({known.get(channels, 'a model of another kind')}) "
            "and text-to-image takes 4: use the plain model"
        )


def read_vae(file: Path) -> VAEConfig:
    """diffusers' vae/config.json, or CheckpointError for what this VAE does not do."""
    config = read_json(file)
    refuse_other_values(config, VAE_FIXED, file)
    return VAEConfig(
        block_out_channels=tuple(get(config, file, "block_out_channels", are_wholes)),
        layers_per_block=get(config, file, "layers_per_block", is_whole, 1),
        norm_num_groups=get(config, file, "norm_num_groups", is_whole, 32),
        scaling_factor=get(config, file, "scaling_factor", is_number, 0.18215),  # files of 2022 do not say it
    )


def read_clip(file: Path) -> CLIPConfig:
    """transformers' text_encoder/config.json, or CheckpointError for what this encoder does not do."""
    config = read_json(file)
    refuse_unknown(config, "hidden_act", tuple(ACTIVATIONS), file)
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {key: get(config, file, key, is_whole) for key in sizes}
    refuse_uneven([sizes["hidden_size"]], [sizes["num_attention_heads"]], file)
    return CLIPConfig(
        **sizes,
        max_position_embeddings=get(config, file, "max_position_embeddings", is_whole, 77),
        hidden_act=config.get("hidden_act", "quick_gelu"),
        layer_norm_eps=get(config, file, "layer_norm_eps", is_number, 1e-5),
    )


def read_schedule(file: Path) -> Schedule:
    """The noise levels a model was trained on, from any scheduler's config.

    What concerns only how a sampler walks them (timestep_spacing, clip_sample, thresholding, skip_prk_steps, eta) is not
    read: this package always walks them with DDIM, leading spacing and no clipping, as Prompt-to-Prompt did, and a model
    of any scheduler can be sampled so. What changes the levels themselves is read, or refused by name.
    """
    config = read_json(file)
    refuse_other_values(config, SCHEDULE_FIXED, file)
    for key, known in SCHEDULE_KNOWN.items():
        refuse_unknown(config, key, known, file)
    usual = Schedule()
    betas = {key: get(config, file, key, is_number, getattr(usual, key)) for key in ("beta_start", "beta_end")}
    if not betas["beta_start"] <= betas["beta_end"] < 1:
        raise CheckpointError(f"{file}: beta_start and beta_end do not rise and stay below 1 ({betas}): download it again")
    return Schedule(**betas, **{key: config[key] for key in SCHEDULE_KNOWN if key in config})


def refuse_unknown(config: dict, key: str, known: tuple, file: Path) -> None:
    if key in config and not any(type(config[key]) is type(value) and config[key] == value for value in known):
        cause = f"{key} is {config[key]!r} and this package knows {' and '.join(map(repr, known))}"
        raise CheckpointError(f"{file}: {cause}: use a Stable Diffusion 1.x or 2.x model")


# ---------------------------------------------------------------- single files say nothing but shapes


def infer_unet(state: State) -> UNetConfig:
    """A Stable Diffusion 1 UNet of any width: 8 heads, 1x1 projections."""
    levels = numbers(state, r"down_blocks\.(\d+)\.")
    return UNetConfig(
        block_out_channels=tuple(len(state[f"down_blocks.{i}.resnets.0.conv1.bias"]) for i in levels),
        down_attention=tuple(f"down_blocks.{i}.attentions.0.norm.weight" in state for i in levels),
        layers_per_block=len(numbers(state, r"down_blocks\.0\.resnets\.(\d+)\.")),
        cross_attention_dim=state["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        heads=(8,) * len(levels),
    )


def infer_vae(state: State) -> VAEConfig:
    """The config read off the tensors of a single file, which has none."""
    levels = numbers(state, r"encoder\.down_blocks\.(\d+)\.")
    return VAEConfig(
        block_out_channels=tuple(len(state[f"encoder.down_blocks.{i}.resnets.0.conv1.bias"]) for i in levels),
        layers_per_block=len(numbers(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")),
    )


def infer_clip(state: State) -> CLIPConfig:
    """OpenAI's CLIP of any width: heads of 64 channels, as in all of its published text encoders."""
    vocab_size, width = state["embeddings.token_embedding.weight"].shape
    return CLIPConfig(
        vocab_size,
        width,
        intermediate_size=len(state["encoder.layers.0.mlp.fc1.bias"]),
        num_hidden_layers=len(numbers(state, r"encoder\.layers\.(\d+)\.")),
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=len(state["embeddings.position_embedding.weight"]),
    )
