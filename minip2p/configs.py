"""The settings of a folder's networks and of its noise schedule, read from their JSON files.

Every key is read, fixed to the one value that this package has built in, or harmless by name. Any other key is refused: a
network that runs with the wrong activation or the wrong prediction type gives pictures that are only slightly wrong.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from minip2p.clip import ACTIVATIONS, CLIPConfig
from minip2p.errors import CheckpointError
from minip2p.scheduler import Schedule
from minip2p.tokenizer import read_json
from minip2p.unet import UNetConfig
from minip2p.vae import VAEConfig

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
USE = "use a Stable Diffusion 1.x or 2.x model"

# Keys that change no number: names and versions, a training's averaging and regularisation, memory and precision options.
HARMLESS = """_class_name _diffusers_version _name_or_path _use_default_values _commit_hash decay inv_gamma min_decay
    optimization_step power update_after_step use_ema_warmup dropout gradient_checkpointing""".split()
UNET_HARMLESS = "upcast_attention addition_embed_type_num_heads class_embeddings_concat".split()
VAE_HARMLESS = "sample_size force_upcast".split()
# transformers writes these into every text encoder's config; most concern other kinds of model.
CLIP_HARMLESS = """architectures model_type torch_dtype dtype transformers_version bos_token_id eos_token_id pad_token_id
    sep_token_id decoder_start_token_id attention_dropout initializer_factor initializer_range projection_dim
    chunk_size_feed_forward
    id2label label2id finetuning_task is_encoder_decoder output_attentions output_hidden_states problem_type return_dict
    tie_word_embeddings tie_encoder_decoder use_bfloat16 use_cache torchscript prefix tokenizer_class task_specific_params
    add_cross_attention cross_attention_hidden_size is_decoder pruned_heads tf_legacy_loss bad_words_ids begin_suppress_tokens
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups
    num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate
    suppress_tokens temperature top_k top_p typical_p""".split()
# How other samplers walk the noise levels. This package walks them with DDIM and without clipping, as Prompt-to-Prompt did.
SAMPLER_HARMLESS = """clip_sample clip_sample_range thresholding dynamic_thresholding_ratio sample_max_value skip_prk_steps
    interpolation_type use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas sigma_min sigma_max
    timestep_type final_sigmas_type algorithm_type solver_order solver_type solver_p lower_order_final euler_at_final
    lambda_min_clipped variance_type predict_x0 disable_corrector predictor_order corrector_order tau_func eta
    original_inference_steps timestep_scaling time_shift_type clip_sample_value""".split()

# Keys whose other values mean another network. A key that is absent has this value, as in older files.
UNET_FIXED = {
    "act_fn": "silu", "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1,
    "mid_block_scale_factor": 1, "only_cross_attention": False, "dual_cross_attention": False, "class_embed_type": None,
    "addition_embed_type": None, "addition_time_embed_dim": None, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None, "time_embedding_type": "positional", "time_embedding_dim": None,
    "time_embedding_act_fn": None, "timestep_post_act": None, "num_class_embeds": None,
    "projection_class_embeddings_input_dim": None, "resnet_time_scale_shift": "default", "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0, "transformer_layers_per_block": 1, "reverse_transformer_layers_per_block": None,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "attention_type": "default", "cross_attention_norm": None,
    "mid_block_only_cross_attention": None, "out_channels": 4,
}  # fmt: skip
VAE_FIXED = {
    "act_fn": "silu", "in_channels": 3, "out_channels": 3, "latent_channels": 4, "mid_block_add_attention": True,
    "use_quant_conv": True, "use_post_quant_conv": True, "shift_factor": None, "latents_mean": None, "latents_std": None,
}  # fmt: skip
SCHEDULE_FIXED = {
    "num_train_timesteps": 1000, "trained_betas": None, "use_flow_sigmas": False, "use_dynamic_shifting": False,
    "flow_shift": 1.0, "invert_sigmas": False, "shift_terminal": None, "snr_shift_scale": None,
}  # fmt: skip
SCHEDULE_KNOWN = {
    "beta_schedule": ("scaled_linear", "linear"), "prediction_type": ("epsilon", "v_prediction"), "steps_offset": (1, 0),
    "set_alpha_to_one": (False, True), "timestep_spacing": ("leading", "trailing", "linspace"),
}  # fmt: skip
ZERO_SNR = (
    "the model was trained down to no signal at all (zero-terminal SNR), where a DDIM step divides by zero: "
    "use a model that was trained without it"
)


# ---------------------------------------------------------------- values

# A kind of value in a JSON file: what a message calls it, and a test.
Kind = tuple[str, Callable[[object], bool]]
WHOLE: Kind = ("a whole number above 0", lambda value: type(value) is int and 0 < value < 2**31)
NUMBER: Kind = ("a number above 0", lambda value: type(value) in (int, float) and 0 < value < float("inf"))
SWITCH: Kind = ("true or false", lambda value: type(value) is bool)
WHOLES: Kind = ("a list of whole numbers above 0", lambda value: type(value) is list and value != [] and all(map(WHOLE[1], value)))
NAMES: Kind = ("a list of names", lambda value: type(value) is list and all(type(name) is str for name in value))


def shown(value) -> str:
    """A value for a message of one line."""
    return " ".join(repr(value).split())[:120]


def get(config: dict, file: Path, key: str, kind: Kind, default=None):
    """The setting `key`; `default` where an older file does not say it. CheckpointError for a value that does not fit."""
    value = default if config.get(key) is None else config[key]
    if value is None:
        raise CheckpointError(f"{file} does not say {key}: download it again")
    name, fits = kind
    if not fits(value):
        raise CheckpointError(f"{file}: {key} is {shown(value)}, not {name}: download it again")
    return value


def refuse_other_values(config: dict, fixed: dict, file: Path) -> None:
    """CheckpointError where the config sets a key to another value than the one this package has built in."""
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{file}: {key} is {shown(config[key])} and this package knows only {value!r}: {USE}")


def refuse_unknown_values(config: dict, known: dict[str, tuple], file: Path) -> None:
    """CheckpointError where the config sets a key to none of its known values; 1 is not the same as true."""
    for key, values in known.items():
        if key in config and not any(type(config[key]) is type(value) and config[key] == value for value in values):
            listing = " and ".join(map(repr, values))
            raise CheckpointError(f"{file}: {key} is {shown(config[key])} and this package knows {listing}: {USE}")


def refuse_unknown_keys(config: dict, known: Sequence[str], file: Path) -> None:
    """CheckpointError for a setting that this package has never heard of, unless it is null."""
    for key in sorted(config.keys() - {*known, *HARMLESS}):
        if config[key] is not None:
            raise CheckpointError(f"{file}: the setting {shown(key)} = {shown(config[key])} is unknown to this package: {USE}")


def refuse_uneven(channels: Sequence[int], heads: Sequence[int], file: Path) -> None:
    """CheckpointError unless each number of channels can be divided among its number of heads."""
    for width, number in zip(channels, heads):
        if width % number:
            raise CheckpointError(f"{file}: {width} channels cannot be divided among {number} heads: download it again")


def refuse_channels(channels: int, file: Path) -> None:
    """CheckpointError, which names the kind of model, for a UNet that takes more than a latent."""
    kinds = {9: "an inpainting model", 8: "an instruction-editing model", 7: "an upscaler", 5: "a depth model"}
    if channels != 4:
        raise CheckpointError(
            f"{file}: its UNet takes {channels} channels ({kinds.get(channels, 'a model of another kind')}) "
            "and text-to-image takes 4: use the plain model"
        )


# ---------------------------------------------------------------- the four files


def read_unet(file: Path) -> UNetConfig:
    """diffusers' unet/config.json. CheckpointError for a setting that this package's UNet does not have."""
    config = read_json(file)
    refuse_channels(get(config, file, "in_channels", WHOLE, 4), file)
    refuse_other_values(config, UNET_FIXED, file)
    widths = get(config, file, "block_out_channels", WHOLES)
    down = get(config, file, "down_block_types", NAMES, [CROSS] * (len(widths) - 1) + [PLAIN])
    up = get(config, file, "up_block_types", NAMES, [kind.replace("Down", "Up") for kind in down[::-1]])
    if set(down) - {CROSS, PLAIN} or [kind.replace("Up", "Down") for kind in up[::-1]] != down or len(down) != len(widths):
        raise CheckpointError(f"{file}: blocks {shown(down)} and {shown(up)} are not those of Stable Diffusion: {USE}")
    refuse_unknown_values(config, {"mid_block_type": ("UNetMidBlock2DCrossAttn", None)}, file)
    # In these files attention_head_dim is the number of heads, whatever its name says.
    key = "num_attention_heads" if config.get("num_attention_heads") else "attention_head_dim"
    heads = get(config, file, key, WHOLES if isinstance(config.get(key), list) else WHOLE, 8)
    heads = heads if isinstance(heads, list) else [heads] * len(widths)
    if len(heads) != len(widths):
        raise CheckpointError(f"{file}: {key} has {len(heads)} numbers for {len(widths)} levels: download it again")
    refuse_uneven(widths, heads, file)
    read = """in_channels block_out_channels down_block_types up_block_types mid_block_type num_attention_heads attention_head_dim
        sample_size layers_per_block cross_attention_dim use_linear_projection norm_num_groups norm_eps""".split()
    refuse_unknown_keys(config, [*read, *UNET_FIXED, *UNET_HARMLESS], file)
    return UNetConfig(
        sample_size=get(config, file, "sample_size", WHOLE, 64),
        block_out_channels=tuple(widths),
        down_attention=tuple(kind == CROSS for kind in down),
        mid_block=config.get("mid_block_type", CROSS) is not None,
        layers_per_block=get(config, file, "layers_per_block", WHOLE, 2),
        cross_attention_dim=get(config, file, "cross_attention_dim", WHOLE),
        heads=tuple(heads),
        use_linear_projection=get(config, file, "use_linear_projection", SWITCH, False),
        norm_num_groups=get(config, file, "norm_num_groups", WHOLE, 32),
        norm_eps=get(config, file, "norm_eps", NUMBER, 1e-5),
    )


def read_vae(file: Path) -> VAEConfig:
    """diffusers' vae/config.json. CheckpointError for a setting that this package's VAE does not have."""
    config = read_json(file)
    refuse_other_values(config, VAE_FIXED, file)
    widths = get(config, file, "block_out_channels", WHOLES)
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        refuse_other_values(config, {key: [kind] * len(widths)}, file)
    read = "block_out_channels layers_per_block norm_num_groups scaling_factor down_block_types up_block_types".split()
    refuse_unknown_keys(config, [*read, *VAE_FIXED, *VAE_HARMLESS], file)
    return VAEConfig(
        block_out_channels=tuple(widths),
        layers_per_block=get(config, file, "layers_per_block", WHOLE, 1),
        norm_num_groups=get(config, file, "norm_num_groups", WHOLE, 32),
        scaling_factor=get(config, file, "scaling_factor", NUMBER, 0.18215),  # files of 2022 do not say it
    )


def read_clip(file: Path) -> CLIPConfig:
    """transformers' text_encoder/config.json. CheckpointError for a setting that this package's encoder does not have."""
    config = read_json(file)
    refuse_unknown_values(config, {"hidden_act": tuple(ACTIVATIONS)}, file)
    read = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    sizes = {key: get(config, file, key, WHOLE) for key in read}
    refuse_uneven([sizes["hidden_size"]], [sizes["num_attention_heads"]], file)
    refuse_unknown_keys(config, [*read, "max_position_embeddings", "hidden_act", "layer_norm_eps", *CLIP_HARMLESS], file)
    return CLIPConfig(
        **sizes,
        max_position_embeddings=get(config, file, "max_position_embeddings", WHOLE, 77),
        hidden_act=config.get("hidden_act", "quick_gelu"),
        layer_norm_eps=get(config, file, "layer_norm_eps", NUMBER, 1e-5),
    )


def read_schedule(file: Path) -> tuple[Schedule, list[str]]:
    """The noise levels a model was trained on, from any scheduler's config, and notes for the user.

    Settings of other samplers are harmless, for a model of any scheduler can be sampled with DDIM. "linspace" is the default
    spacing of several of them, and means leading spacing here, which a note says. "trailing" is kept: few-step models need it.
    """
    config = read_json(file)
    if config.get("rescale_betas_zero_snr"):
        raise CheckpointError(f"{file}: rescale_betas_zero_snr is {shown(config['rescale_betas_zero_snr'])}: {ZERO_SNR}")
    refuse_other_values(config, SCHEDULE_FIXED, file)
    refuse_unknown_values(config, SCHEDULE_KNOWN, file)
    defaults = Schedule()
    betas = {key: get(config, file, key, NUMBER, getattr(defaults, key)) for key in ("beta_start", "beta_end")}
    if not betas["beta_start"] <= betas["beta_end"] < 1:
        cause = f"beta_start and beta_end do not rise and stay below 1 ({json.dumps(betas)})"
        raise CheckpointError(f"{file}: {cause}: download it again")
    refuse_unknown_keys(config, [*betas, *SCHEDULE_FIXED, *SCHEDULE_KNOWN, *SAMPLER_HARMLESS, "rescale_betas_zero_snr"], file)
    known = {key: config[key] for key in SCHEDULE_KNOWN if key in config}
    notes = []
    if known.get("timestep_spacing") == "linspace":
        known["timestep_spacing"] = "leading"
        notes.append('its scheduler\'s timestep_spacing "linspace" is another sampler\'s: DDIM uses "leading"')
    return Schedule(**betas, **known), notes
