"""Files of other models and damaged files are refused in one line: the file, the cause, what to do."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTextConfig

from minip2p import CheckpointError, PromptError, RequestError, configs, weight_files
from tests.checkpoints import TEXT, UNET, VAE_, change, config_of, configure, load, put, refused

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 3438167534\n"
SDXL_INDEX = {"_class_name": "StableDiffusionXLPipeline"}
SCHEDULER = "scheduler/scheduler_config.json"
READ_TEXT = ("attn2.to_k.weight", "attn2.to_v.weight")
VAE_Q = "decoder.mid_block.attentions.0.to_q.weight"


def cache(folder: Path) -> Path:
    """Where huggingface_hub keeps a model: names of two old snapshots and of the newest one."""
    root = folder.parent / "hub/models--a--b"
    for i, name in enumerate(("ffff", "4567", "0123")):
        (root / "snapshots" / name).mkdir(parents=True, exist_ok=True)
        os.utime(root / "snapshots" / name, (i, i))
    return root


def torch_saved(legacy: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def only_bin(folder: Path, part: str) -> None:
    put(folder / f"{part}.safetensors", None)
    put(folder / f"{part}.bin", b"PK\x03\x04")


def without(*parts: str):
    """A function that drops all tensors with one of these in their names."""
    return lambda state: {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


def plus(name: str, *shape: int):
    """A function that adds or replaces a tensor."""
    return lambda state: state | {name: torch.zeros(shape)}


def narrower_text(folder: Path) -> None:
    change(folder, UNET, lambda state: {name: t[:, :40] if name.endswith(READ_TEXT) else t for name, t in state.items()})
    configure(folder, "unet", cross_attention_dim=40)


def fewer_tokens(folder: Path) -> None:
    change(folder, TEXT, lambda state: {name: t[:100] if "token_embedding" in name else t for name, t in state.items()})
    configure(folder, "text_encoder", vocab_size=100)


W, T = f"{UNET}.safetensors", f"{TEXT}.safetensors"
PATHS = {  # a path to load, in or around a good folder -> what the message says
    "nonexistent": (lambda f: f / "nowhere", r"nowhere does not exist: give a folder .* or a .safetensors file"),
    "hub id": (lambda f: "runwayml/stable-diffusion-v1-5", r"diffusion-v1-5 does not exist: .*downloads nothing; weights/README"),
    "empty folder": (lambda f: put(f / "empty/x", "").parent, r"empty has no folder tokenizer/: it must hold tokenizer, "),
    "a part of the model": (lambda f: f / "unet", r"unet has no folder tokenizer/"),
    "a part's weights": (lambda f: f / W, rf"{W} is a UNet alone: give the model's folder, or a file with all three networks"),
    "the VAE's weights": (lambda f: f / f"{VAE_}.safetensors", r"is a VAE alone: give"),
    "the text encoder's weights": (lambda f: f / T, r"is a text encoder alone: give"),
    "a folder around a single file": (lambda f: put(f / "x/sd.safetensors", b"").parent, r"no folder tokenizer/: .*give .*x/sd.safetensors"),
    "another kind of folder": (lambda f: put(f / "y/model_index.json", {"_class_name": "FluxPipeline"}).parent, r"that it is a FluxPipeline"),
    "a cache of the hub": (lambda f: cache(f).parent, r"is a Hugging Face cache, .*: give .*/models--a--b/snapshots/0123$"),
    "a model in the cache": (lambda f: cache(f), r"models--a--b is a Hugging Face cache, .*: give .*models--a--b/snapshots/0123$"),
    "a model's snapshots": (lambda f: cache(f) / "snapshots", r"snapshots is a Hugging Face cache, .*/snapshots/0123$"),
    "an unknown user": (lambda f: "~nobody-has-this-name/model", r"does not exist"),
    "a name that is too long": (lambda f: "x" * 5000, r"does not exist"),
    "no name": (lambda f: "a\0b", r"does not exist"),
    "a number": (lambda f: 3, r"the checkpoint is int: give the path"),
}  # fmt: skip
CONTENTS = {  # what is in the file of the UNet's weights -> what the message says about it
    "nothing": (b"", r"is empty: download it again"),
    "garbage": (bytes(range(256)), r"is not a whole safetensors file .*: download it again"),
    "html": (b"<!DOCTYPE html>\n<html>", r"is not a whole safetensors file .*it is a web page\): download it again"),
    "LFS pointer": (LFS_POINTER, r"is a Git LFS pointer, .*: run `git lfs pull`"),
    "torch.save": (torch_saved(legacy=False), r"is a pickle, which can run code .*: use the .safetensors file"),
    "old torch.save": (torch_saved(legacy=True), r"is a pickle"),
    "pickle": (pickle.dumps([1, 2]), r"is a pickle"),
    "absent": (None, r"is missing: download it, or one of its variants .fp16.safetensors, .bf16.safetensors, "),
}  # fmt: skip
FOLDERS = {  # what is done to a good folder -> what the message says
    "truncated": (lambda f: put(f / W, (f / W).read_bytes()[:-9]), rf"{W} is not a whole safetensors file .*cut short.*: down"),
    "LFS pointer, text encoder": (lambda f: put(f / T, LFS_POINTER), rf"{T} is a Git LFS pointer"),
    "only .bin, unet": (lambda f: only_bin(f, UNET), rf"{UNET}.bin is a pickle, .*: use the .safetensors"),
    "only .bin, text encoder": (lambda f: only_bin(f, TEXT), rf"{TEXT}.bin is a pickle, .*: use the .safetensors"),
    "weights are a folder": (lambda f: [put(f / W, None), (f / W).mkdir()], rf"{W} cannot be read .*: download it"),
    "missing tensor": (lambda f: change(f, UNET, without("conv_in.bias")), rf"{W} lacks conv_in.bias: it is not the UNet .*down"),
    "missing tensors": (lambda f: change(f, VAE_, without("mid_block")), r"lacks encoder.mid_block.\S+ \(and \d+ more\): .* VAE"),
    "missing tensor, text": (lambda f: change(f, TEXT, without("final_layer_norm.bias")), rf"{T} lacks final_layer_norm.bias: "),
    "extra tensor": (lambda f: change(f, UNET, plus("more", 1)), rf"{W} has an unknown tensor more: .*, download both"),
    "wrong shape": (lambda f: change(f, UNET, plus("conv_in.bias", 3)), r"conv_in.bias has shape \(3,\), not \(32,\): .*down"),
    "3x3 attention": (lambda f: change(f, VAE_, plus(VAE_Q, 32, 32, 3, 3)), rf"{VAE_Q} has shape \(32, 288\), not \(32, 32\)"),
    "SDXL": (lambda f: put(f / "model_index.json", SDXL_INDEX), r"model is Stable Diffusion XL: .*use one of those"),
    "SDXL by its parts": (lambda f: (f / "text_encoder_2").mkdir(), r"model is Stable Diffusion XL"),
    "index not JSON": (lambda f: put(f / "model_index.json", "{cut"), r"model_index.json is not a JSON object: .*download it"),
    "config not JSON": (lambda f: put(f / "unet/config.json", "{cut"), r"unet/config.json is not a JSON object: .*download it"),
    "config not an object": (lambda f: put(f / "vae/config.json", "[1]"), r"vae/config.json is not a JSON object"),
    "config is a pointer": (lambda f: put(f / SCHEDULER, LFS_POINTER), rf"{SCHEDULER} is not a JSON object"),
    "text width": (narrower_text, r"text encoder is 48 wide and its UNet expects 40: use parts of one model"),
    "text vocabulary": (fewer_tokens, r"tokenizer has \d+ tokens .* knows 100: use parts of one model"),
    "vocabulary": (lambda f: put(f / "tokenizer/vocab.json", {}), r"vocab.json has no <\|startoftext\|>: .*download"),
}  # fmt: skip
CONFIGS = {  # a setting of a part -> what the message says
    "inpainting": ("unet", {"in_channels": 9}, r"takes 9 channels \(an inpainting model\) .*: use the plain model"),
    "depth": ("unet", {"in_channels": 5}, r"takes 5 channels \(a depth model\)"),
    "instruct": ("unet", {"in_channels": 8}, r"takes 8 channels"),
    "no widths": ("unet", {"block_out_channels": ...}, r"does not say block_out_channels: download"),
    "unet's activation": ("unet", {"act_fn": "gelu"}, r"act_fn is 'gelu' and this package knows only 'silu': use"),
    "text's activation": ("text_encoder", {"hidden_act": "relu"}, r"hidden_act is 'relu' and .*'quick_gelu' and 'gelu': use"),
    "class embedding": ("unet", {"class_embed_type": "timestep"}, r"class_embed_type is 'timestep' and"),
    "class numbers": ("unet", {"num_class_embeds": 10}, r"num_class_embeds is 10 and"),
    "other blocks": ("unet", {"down_block_types": ["AttnDownBlock2D"] * 3}, r"blocks .* are not those of Stable Diffusion: use a"),
    "uneven blocks": ("unet", {"up_block_types": ["UpBlock2D"] * 3}, r"blocks .* are not those of Stable Diffusion: use a"),
    "too few heads": ("unet", {"attention_head_dim": [2, 2]}, r"attention_head_dim has 2 numbers for 3 levels: download"),
    "uneven heads": ("unet", {"attention_head_dim": 3}, r"32 channels cannot be divided among 3 heads: download"),
    "another autoencoder": ("vae", {"latent_channels": 16}, r"latent_channels is 16 and"),
    "a shifted autoencoder": ("vae", {"shift_factor": 0.1}, r"shift_factor is 0.1 and"),
    "prediction": ("scheduler", {"prediction_type": "sample"}, r"prediction_type is 'sample' and .*'v_prediction': use"),
    "betas": ("scheduler", {"beta_schedule": "squaredcos_cap_v2"}, r"beta_schedule is 'squaredcos_cap_v2' and"),
    "trained betas": ("scheduler", {"trained_betas": [0.1, 0.2]}, r"trained_betas is \[0.1, 0.2\] and"),
    "zero terminal SNR": ("scheduler", {"rescale_betas_zero_snr": True}, r"rescale_betas_zero_snr is True: .*\(zero-terminal SNR\).*: use"),
    "another spacing": ("scheduler", {"timestep_spacing": "uniform"}, r"timestep_spacing is 'uniform' and .*'leading' and 'trailing' and"),
    "flow matching": ("scheduler", {"use_flow_sigmas": True}, r"use_flow_sigmas is True and this package knows only False: use"),
    "another middle": ("unet", {"mid_block_type": "UNetMidBlock2D"}, r"mid_block_type is 'UNetMidBlock2D' and .* and None: use"),
    "another VAE": ("vae", {"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, r"down_block_types is .*AttnDown.* knows only"),
    "falling betas": ("scheduler", {"beta_end": 1e-5}, r"beta_start and beta_end do not rise .*1e-05.*: download"),
}  # fmt: skip


@pytest.mark.parametrize("path, message", PATHS.values(), ids=PATHS)
def test_a_wrong_path_is_refused(folder, path, message):
    refused(path(folder), message)


@pytest.mark.parametrize("content, message", CONTENTS.values(), ids=CONTENTS)
def test_a_file_without_weights_is_refused(folder, content, message):
    put(folder / W, content)
    refused(folder, f"{W} {message}")


@pytest.mark.parametrize("spoil, message", FOLDERS.values(), ids=FOLDERS)
def test_a_wrong_folder_is_refused(folder, spoil, message):
    spoil(folder)
    refused(folder, message)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_a_folder_without_a_part_or_its_config_is_refused(folder, part):
    if part != "tokenizer":
        config = put(config_of(folder, part), None)
        refused(folder, f"{config} cannot be read .*: .* download it")
    shutil.rmtree(folder / part)
    refused(folder, f"{folder} has no folder {part}/: it must hold tokenizer, text_encoder, unet, vae and scheduler")


@pytest.mark.parametrize("part, settings, message", CONFIGS.values(), ids=CONFIGS)
def test_a_wrong_setting_is_refused(folder, part, settings, message):
    configure(folder, part, **settings)
    refused(folder, f"{config_of(folder, part)}: .*{message}" if ... not in settings.values() else message)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler"])
def test_an_unknown_setting_is_refused_by_name(folder, part):
    """A setting that this package has never heard of could mean another network. Null means that it is not used."""
    configure(folder, part, no_such_setting=None)
    load(folder)
    configure(folder, part, no_such_setting=5)
    refused(folder, rf"{config_of(folder, part)}: the setting 'no_such_setting' = 5 is unknown to this package: use a Stable")


SCHEDULERS = """DDIM PNDM DDPM LCM EulerDiscrete EulerAncestralDiscrete DPMSolverMultistep DPMSolverSinglestep UniPCMultistep
    DEISMultistep""".split()


def test_every_setting_of_the_references_is_known(tmp_path):
    """What diffusers and transformers can write with their default values is read, built in, or harmless."""
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = diffusers.UNet2DConditionModel(block_out_channels=(32, 64), down_block_types=down, up_block_types=up)
    configurations = [
        (configs.read_unet, unet.config),
        (configs.read_vae, diffusers.AutoencoderKL().config),
        (configs.read_clip, CLIPTextConfig().to_dict()),
        *((configs.read_schedule, getattr(diffusers, f"{name}Scheduler")().config) for name in SCHEDULERS),
    ]
    for read, configuration in configurations:
        read(put(tmp_path / "config.json", json.loads(json.dumps(dict(configuration), default=str))))


def test_groups_that_do_not_divide_are_refused(folder):
    refused(configure(folder, "unet", norm_num_groups=7), rf"{W}: its config cannot be built .*: download the config again")


X, C = "model.diffusion_model.", "cond_stage_model.transformer.text_model."


def wider_text(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.repeat(1, 2) if name.endswith(READ_TEXT) else t for name, t in state.items()}


ONLY = ("use a file that holds all three", "is a LoRA, a patch for a model and not a model: merge it into a checkpoint first")
SINGLE_FILES = {  # what is done to a good single file's tensors -> what the message says
    "inpainting": (plus(f"{X}input_blocks.0.0.weight", 32, 9, 3, 3), r"9 channels \(an inpainting model\).*: use the plain"),
    "SDXL": (plus("conditioner.embedders.0.transformer.x", 1), r"is Stable Diffusion XL: .*use one of those"),
    "SD3": (lambda s: {f"{X}joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(4)}, r"is Stable Diffusion 3: .*use one"),
    "Flux": (lambda s: {"double_blocks.0.img_attn.qkv.weight": torch.zeros(4)}, r"is Flux: .*use one"),
    "LoRA": (lambda s: {"lora_unet_down_blocks_0_attentions_0.hada_w1_a": torch.zeros(4)}, ONLY[1]),
    "LoRA of diffusers": (lambda s: {"unet.down_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4)}, ONLY[1]),
    "LoRA of 2023": (lambda s: {"unet.down_blocks.0.attn1.to_q.lora.down.weight": torch.zeros(4)}, ONLY[1]),
    "ControlNet": (lambda s: {"control_model.input_blocks.0.0.weight": torch.zeros(4)}, r"is a ControlNet, .*: use the model itself"),
    "textual inversion": (lambda s: {"emb_params": torch.zeros(1, 4)}, r"is a textual-inversion embedding, .*: use the model"),
    "no UNet": (without(X), rf"holds the VAE and the text encoder of a model and no UNet: {ONLY[0]}"),
    "no VAE": (without("first_stage_model."), rf"holds the UNet and the text encoder of a model and no VAE: {ONLY[0]}"),
    "no text encoder": (without("cond_stage_model."), rf"holds the UNet and the VAE of a model and no text encoder: {ONLY[0]}"),
    "a UNet alone": (without("cond_stage", "first_stage"), rf"holds the UNet of a model and no VAE and no text encoder: {ONLY[0]}"),
    "another network": (lambda s: {"blocks.weight": torch.zeros(3)}, r"is not a Stable Diffusion checkpoint \(it holds 1 tensors, "),
    "no tensors": (lambda s: b"\x02" + b"\0" * 7 + b"{}", r"is not a Stable Diffusion checkpoint \(it holds 0 tensors\): use a file"),
    "unknown in a network": (plus(f"{X}label_emb.0.0.weight", 1), r"has an unknown tensor label_emb.0.0.weight: .*download"),
    "unknown in the VAE": (plus("first_stage_model.encoder.more.weight", 1), r"has an unknown tensor encoder.more.weight: "),
    "unknown in the text encoder": (plus(f"{C}encoder.more", 1), r"has an unknown tensor encoder.more: .*download"),
    "missing tensor": (without("input_blocks.1.0.in_layers.2.weight"), r"lacks down_blocks.0.resnets.0.conv1.weight: .*download"),
    "no sizes": (without("input_blocks.1.0.in_layers.2.bias"), r"lacks the tensor 'down_blocks.0.resnets.0.conv1.bias': "),
    "half a middle": (without(f"{X}middle_block.1"), r"lacks mid_block.attentions.0.norm.weight \(and \d+ more\): "),
    "no cross-attention": (without("attn2."), r"has tensors that are not a network's: it is not a whole checkpoint, download"),
    "no embedding": (without("token_embedding"), r"lacks the tensor 'embeddings.token_embedding.weight'"),
    "a flat embedding": (plus(f"{C}embeddings.token_embedding.weight", 9), r"has tensors that are not a network's: .*download"),
    "a number for a layer": (plus(f"{X}input_blocks.0.0.weight"), r"conv_in.weight has shape \(\), not"),
    "a strange number": (plus(f"{X}input_blocks.0.0.op.weight", 1), r"has an unknown tensor"),
    "no number": (plus(f"{X}x.op.weight", 1), r"has an unknown tensor x.op.weight"),
    "strange levels": (plus("first_stage_model.decoder.up.x.block", 1), r"unknown tensor decoder.up.x.block"),
    "wrong shape": (plus(f"{X}out.2.bias", 5), r"conv_out.bias has shape \(5,\), not \(4,\): .*download"),
    "whole numbers": (lambda s: s | {f"{X}out.2.bias": torch.zeros(4, dtype=torch.int8)}, r"conv_out.bias is int8, .*: use the model before"),
    "text width": (wider_text, r"text encoder is 64 wide and its UNet expects 128: use parts of one model"),
    "zero-terminal SNR": (plus("ztsnr", 1), r"trained .* \(zero-terminal SNR\), .*: use a model that was trained without it"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, message", SINGLE_FILES.values(), ids=SINGLE_FILES)
def test_a_wrong_single_file_is_refused(single, single_state, spoil, message):
    refused(put(single, spoil(single_state)), rf"{single}.* {message}")


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth", ".CKPT"])
@pytest.mark.parametrize(
    "content", [b"anything", torch_saved(legacy=False), torch_saved(legacy=True)[:40]], ids=["text", "zip", "cut"]
)
def test_a_pickle_is_refused_and_never_unpickled(tmp_path, suffix, content):
    file = put(tmp_path / f"model{suffix}", content)
    refused(file, f"{file} is a pickle, which can run code .*: use the .safetensors file")


def test_a_single_file_with_the_wrong_vocabulary_is_refused(single):
    vocab = json.loads((single.parent / "tokenizer/vocab.json").read_text())
    put(single.parent / "tokenizer/vocab.json", vocab | {f"more{i}": len(vocab) + i for i in range(9)})
    refused(single, r"tokenizer has \d+ tokens and its text encoder knows \d+: use parts of one model")


READERS = {  # and which of their settings are read
    "unet": (
        configs.read_unet,
        """in_channels out_channels act_fn block_out_channels down_block_types up_block_types attention_head_dim sample_size
        num_attention_heads layers_per_block cross_attention_dim norm_num_groups norm_eps use_linear_projection mid_block_type""",
    ),
    "vae": (configs.read_vae, "block_out_channels layers_per_block norm_num_groups scaling_factor latent_channels"),
    "text_encoder": (
        configs.read_clip,
        """hidden_size num_attention_heads num_hidden_layers intermediate_size vocab_size hidden_act
        max_position_embeddings layer_norm_eps""",
    ),
    "scheduler": (
        configs.read_schedule,
        "beta_start beta_end beta_schedule steps_offset set_alpha_to_one prediction_type timestep_spacing",
    ),
}
NONSENSE = [
    None, "x", "", "1\n2", 0, -1, 3, 7, 1.5, True, float("nan"), float("inf"), [], [0], ["x"], [32, "x"], [-32, -64, -64],
    {}, {"x": 1},
]  # fmt: skip


@pytest.mark.parametrize("part, key", [(part, key) for part, (_, keys) in READERS.items() for key in keys.split()])
def test_nonsense_in_a_config_is_refused_or_harmless(folder, part, key):
    """Any value is a CheckpointError of one line, or gives a network that runs."""
    refusals, file = 0, config_of(folder, part)
    before = file.read_text()
    for value in NONSENSE:
        configure(folder, part, **{key: value})
        try:
            READERS[part][0](file)  # before load does so again: most nonsense ends here, and quickly
            load(folder).generate("a cat", steps=1, size=64, progress=False)
        except CheckpointError as error:
            assert "\n" not in str(error) and str(folder) in str(error) and ": " in str(error), value
            refusals += 1
        put(file, before)
    assert refusals >= 12


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_refused(sd1, tmp_path, data):
    """Cut anywhere, or random bytes from the start."""
    whole = (sd1.folder / f"{TEXT}.safetensors").read_bytes()
    cut = st.integers(0, len(whole) - 1).map(lambda n: whole[:n])
    noise = st.binary(max_size=200)
    header = st.binary(max_size=60).map(lambda b: len(b).to_bytes(8, "little") + b)
    file = put(tmp_path / "model.safetensors", data.draw(st.one_of(cut, noise, header)))
    with pytest.raises(CheckpointError, match=r"model.safetensors (is|has) [^\n]+$"):
        if weight_files.read_safetensors(file)[0] == {}:
            load(file)  # `{}` is a whole file of no tensors


def test_what_a_caller_can_catch():
    """As the contract says: every refusal is a ValueError, and one about words or prompts is a request that cannot be met."""
    assert issubclass(PromptError, RequestError) and issubclass(RequestError, ValueError) and issubclass(CheckpointError, ValueError)
