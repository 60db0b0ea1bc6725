"""Every layout of the same weights gives the same networks; everything else is refused in one line of file, cause, fix."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minip2p import CheckpointError, PromptError, StableDiffusion, checkpoint, configs, names
from minip2p.clip import CLIPConfig, TextEncoder
from minip2p.unet import UNet, UNetConfig
from minip2p.vae import VAE, VAEConfig

MANIFESTS = Path(__file__).parent / "manifests"
META = torch.device("meta")
UNET, VAE_, TEXT = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"  # + .safetensors


def manifest(name: str) -> dict[str, torch.Size]:
    """Names and shapes of a published file's tensors; its JSON has a level for each dot in a name."""

    def flat(node: dict, prefix: str) -> dict:
        rows = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: torch.Size(v)} for k, v in node.items()]
        return {name: shape for row in rows for name, shape in row.items()}

    return flat(json.loads((MANIFESTS / f"{name}.json").read_text()), "")


def empty(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def put(file: Path, content) -> Path:
    """Write a file anew: bytes, text, tensors, or JSON; None takes it away. Copies are hard links, so never in place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    if isinstance(content, dict) and any(isinstance(value, torch.Tensor) for value in content.values()):
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, file)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def change(folder: Path, part: str, edit) -> Path:
    """Replace a part's tensors by edit(tensors)."""
    file = folder / f"{part}.safetensors"
    put(file, edit(load_file(file)))
    return folder


def config_of(folder: Path, part: str) -> Path:
    return folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")


def configure(folder: Path, part: str, **changes) -> Path:
    """Change settings of a part's config; ... drops one."""
    file = config_of(folder, part)
    put(file, {key: value for key, value in (json.loads(file.read_text()) | changes).items() if value is not ...})
    return folder


def copy(source: Path, to: Path) -> Path:
    return shutil.copytree(source, to, copy_function=os.link)


@pytest.fixture
def folder(sd1, tmp_path) -> Path:
    return copy(sd1.folder, tmp_path / "model")


@pytest.fixture(scope="module")
def compvis(deep) -> dict[str, str]:
    """CompVis's name of every tensor of `deep`, by part and today's name, as diffusers' own converter translates them.

    The converter runs over the names of a real single file; each tensor carries its name's number.
    """
    numbered = list(manifest("sd1-single-file"))
    markers = {name: torch.full((1, 1, 1, 1), i) for i, name in enumerate(numbered)}
    text = single_file_utils.convert_ldm_clip_checkpoint(markers)
    parts = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(markers, deep.reference.unet.config),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(markers, deep.reference.vae.config),
        "text_encoder": {name.removeprefix("text_model."): marker for name, marker in text.items()},
    }
    return {f"{part}.{name}": numbered[marker.flatten()[0]] for part in parts for name, marker in parts[part].items()}


@pytest.fixture(scope="module")
def single_state(deep, compvis) -> dict[str, torch.Tensor]:
    """The tensors of `deep` as a single file has them: CompVis's names, the VAE's attention as 1x1 convolutions, and the rest."""
    parts = {"unet": deep.ours.unet, "vae": deep.ours.vae, "text_encoder": deep.ours.text_encoder}
    state = {compvis[f"{part}.{name}"]: tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}
    state = {name: t[:, :, None, None] if "attn_1" in name and t.ndim == 2 else t for name, t in state.items()}
    state |= {name: torch.zeros(7) for name in manifest("sd1-single-file") if not name.startswith(tuple(names.PREFIXES.values()))}
    state["model_ema.diffusion_modelout2bias"] = torch.zeros(4)
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return state


@pytest.fixture
def single(deep, single_state, tmp_path) -> Path:
    """A single file, and the folder `tokenizer` beside it."""
    copy(deep.folder / "tokenizer", tmp_path / "tokenizer")
    return put(tmp_path / "model.safetensors", single_state)


def load(path: Path) -> StableDiffusion:
    return StableDiffusion.load(path, device="cpu")


def assert_same(ours: StableDiffusion, other: StableDiffusion) -> None:
    """The same settings, the same weights bit for bit, and so the same picture."""
    assert ours.schedule == other.schedule
    for a, b in ((ours.unet, other.unet), (ours.vae, other.vae), (ours.text_encoder, other.text_encoder)):
        a_state, b_state = a.state_dict(), b.state_dict()
        assert a_state.keys() == b_state.keys() and all(torch.equal(a_state[name], b_state[name]) for name in a_state)
    run = {"prompts": "a red cat, asleep", "steps": 2, "size": 64, "progress": False}
    assert torch.equal(ours.generate(**run).latents, other.generate(**run).latents)


# ---------------------------------------------------------------- layouts


def names_of_2022(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new_name, old_name in old.items():
        state = {name.replace(new_name, old_name): tensor for name, tensor in state.items()}
    published = {name for name in manifest("sd-vae-2022-names") if "attentions" in name}
    assert {name for name in state if "attentions" in name} == published
    return state


def prefixed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    assert not any(name.startswith("text_model.") for name in state)
    return {f"text_model.{name}": t for name, t in state.items()} | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def convolved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t[:, :, None, None] if ".attentions." in name and t.ndim == 2 else t for name, t in state.items()}


LAYOUTS = {
    "today": lambda f: f,
    "vae names of 2022": lambda f: change(f, VAE_, names_of_2022),
    "vae attention as convolutions": lambda f: change(f, VAE_, convolved),
    "text_model prefix and position_ids": lambda f: change(f, TEXT, prefixed),
    "vae config of 2022": lambda f: configure(f, "vae", use_quant_conv=..., mid_block_add_attention=..., shift_factor=...),
    "heads under their right name": lambda f: configure(f, "unet", num_attention_heads=2, attention_head_dim=99),
    "a scheduler that is not DDIM": lambda f: configure(f, "scheduler", _class_name="PNDMScheduler", prediction_type=...),
    "a pickle beside the weights": lambda f: put(f / f"{UNET}.bin", b"\x80\x02").parent.parent,
    "a header that begins like a pickle": lambda f: pad_header(f, TEXT, size=0x10280),
}  # fmt: skip


def pad_header(folder: Path, part: str, size: int) -> Path:
    """Pad a header with spaces, as safetensors allows: its size is what the file begins with, here the bytes 80 02."""
    file = folder / f"{part}.safetensors"
    content = file.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    assert len(header) <= size
    put(file, size.to_bytes(8, "little") + header.ljust(size) + content[8 + len(header) :])
    return folder


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_networks(sd1, folder, layout):
    assert_same(load(layout(folder)), sd1.ours)


def test_fp16_variants_are_found_and_only_where_there_is_nothing_better(sd1, folder):
    halved = {}
    for part in (UNET, VAE_, TEXT):
        halved[part] = {name: tensor.half() for name, tensor in load_file(folder / f"{part}.safetensors").items()}
        put(folder / f"{part}.fp16.safetensors", halved[part])
    assert_same(load(folder), sd1.ours)
    for part in halved:
        put(folder / f"{part}.safetensors", None)
    ours = load(folder)
    state = ours.unet.state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in halved[UNET].items())
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    noise, exact = (sd.unet(latents, 41, sd.encode_text("a cat")) for sd in (ours, sd1.ours))
    assert 0 < (noise - exact).norm() / exact.norm() < 2e-3


def test_single_file_gives_the_networks_of_the_folder(deep, single):
    assert_same(load(single), deep.ours)


def test_single_file_is_translated_as_diffusers_translates_it(deep, single_state):
    """Tensor by tensor, here with real numbers; deep's own folder is not asked."""
    parts, unknown = names.split_single_file(single_state)
    text = single_file_utils.convert_ldm_clip_checkpoint(single_state)
    references = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(single_state, deep.reference.unet.config),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(single_state, deep.reference.vae.config),
        "text_encoder": {name.removeprefix("text_model."): t for name, t in text.items() if "position_ids" not in name},
    }
    assert unknown == [] and parts.keys() == references.keys()
    for part, reference in references.items():
        assert parts[part].keys() == reference.keys()
        assert all(torch.equal(tensor.flatten(), reference[name].flatten()) for name, tensor in parts[part].items())


def test_single_file_takes_the_fetched_tokenizer_if_there_is_none_beside_it(deep, single, tmp_path, monkeypatch):
    fetched = (tmp_path / "tokenizer").rename(tmp_path / "fetched")
    monkeypatch.setattr(checkpoint, "FETCHED_TOKENIZER", tmp_path / "nowhere")
    refused(single, r"model.safetensors needs CLIP's vocab.json and merges.txt: put them into .*tokenizer, or run `make weights`")
    monkeypatch.setattr(checkpoint, "FETCHED_TOKENIZER", fetched)
    assert_same(load(single), deep.ours)


# ---------------------------------------------------------------- full size, by name and shape

SD1_UNET = {
    "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": 8, "center_input_sample": False,
    "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
SD2_UNET = SD1_UNET | {
    "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "dual_cross_attention": False, "num_class_embeds": None,
    "only_cross_attention": False, "sample_size": 96, "upcast_attention": True, "use_linear_projection": True,
}  # fmt: skip
SD_VAE = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512], "in_channels": 3,
    "latent_channels": 4, "down_block_types": ["DownEncoderBlock2D"] * 4, "layers_per_block": 2, "norm_num_groups": 32,
    "out_channels": 3, "sample_size": 512, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SD1_TEXT = {
    "hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77, "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768, "vocab_size": 49408,
}  # fmt: skip
SD2_TEXT = SD1_TEXT | {
    "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23,
    "projection_dim": 512,
}  # fmt: skip
SD2_UNET_CONFIG = UNetConfig(sample_size=96, cross_attention_dim=1024, heads=(5, 10, 20, 20), use_linear_projection=True)
SD2_TEXT_CONFIG = CLIPConfig(49408, 1024, 4096, 23, 16, 77, "gelu")
FULL_SIZE = {
    "sd1-unet": (UNet, configs.read_unet, SD1_UNET, UNetConfig(), lambda state: state),
    "sd2-unet": (UNet, configs.read_unet, SD2_UNET, SD2_UNET_CONFIG, lambda state: state),
    "sd-vae": (VAE, configs.read_vae, SD_VAE, VAEConfig(), names.today_vae),
    "sd-vae-2022-names": (VAE, configs.read_vae, SD_VAE, VAEConfig(), names.today_vae),
    "sd1-text_encoder": (TextEncoder, configs.read_clip, SD1_TEXT, CLIPConfig(), names.today_text_encoder),
    "sd2-text_encoder": (TextEncoder, configs.read_clip, SD2_TEXT, SD2_TEXT_CONFIG, names.today_text_encoder),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_every_tensor_has_its_place(tmp_path, name):
    """`fill` is strict: none missing, none left, every shape right. Only position_ids is ignored."""
    module_class, read, content, config, rename = FULL_SIZE[name]
    assert read(put(tmp_path / "config.json", content)) == config
    published = manifest(name)
    state = rename(empty(published))
    module = checkpoint.fill(module_class, config, state, tmp_path, META, torch.float32)
    ignored = [tensor for tensor in published if tensor.endswith("position_ids")]
    assert len(module.state_dict()) == len(state) == len(published) - len(ignored)
    assert len(ignored) == name.endswith("text_encoder")


def test_full_size_single_file():
    published = manifest("sd1-single-file")
    parts, unknown = names.split_single_file(empty(published))
    ignored = [name for name in published if not name.startswith(tuple(names.PREFIXES.values()))]
    assert len(published) == 1131 + 14 and len(ignored) == 14 and unknown == []
    # position_ids is a buffer, not one of the 1,131 weights that stay
    buffers = [name for name in published if name.endswith("position_ids")]
    assert sum(map(len, parts.values())) == len(published) - len(ignored) - len(buffers)
    assert configs.infer_unet(parts["unet"]) == UNetConfig()
    assert configs.infer_vae(parts["vae"]) == VAEConfig()
    assert configs.infer_clip(parts["text_encoder"]) == CLIPConfig()
    for part, name in (("unet", "sd1-unet"), ("vae", "sd-vae"), ("text_encoder", "sd1-text_encoder")):
        module_class, _, _, config, rename = FULL_SIZE[name]
        assert shapes(parts[part]) == shapes(rename(empty(manifest(name))))
        checkpoint.fill(module_class, config, parts[part], Path("single"), META, torch.float32)


def test_full_size_single_file_names_are_diffusers_names(compvis):
    """Names alone can be right and yet crossed: the places of all 1,130 tensors, one by one."""
    parts, _ = names.split_single_file({name: torch.full((1,), i) for i, name in enumerate(manifest("sd1-single-file"))})
    numbered = list(manifest("sd1-single-file"))
    ours = {f"{part}.{name}": numbered[marker] for part, markers in parts.items() for name, marker in markers.items()}
    assert ours == {name: old for name, old in compvis.items() if "position_ids" not in name}


# ---------------------------------------------------------------- refusals


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 3438167534\n"
SDXL_INDEX = {"_class_name": "StableDiffusionXLPipeline"}
SCHEDULER = "scheduler/scheduler_config.json"
READ_TEXT = ("attn2.to_k.weight", "attn2.to_v.weight")
VAE_Q = "decoder.mid_block.attentions.0.to_q.weight"


def torch_saved(legacy: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def only_bin(folder: Path, part: str) -> None:
    put(folder / f"{part}.safetensors", None)
    put(folder / f"{part}.bin", b"PK\x03\x04")


def without(*parts: str):
    """An edit that drops all tensors with one of these in their names."""
    return lambda state: {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


def plus(name: str, *shape: int):
    """An edit that adds or replaces a tensor."""
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
    "a part's weights": (lambda f: f / W, rf"{W} has no tensors named model.diffusion_model.*: it is not a whole"),
}  # fmt: skip
CONTENTS = {  # what is in the file of the UNet's weights -> what the message says about it
    "nothing": (b"", r"is empty: download it again"),
    "garbage": (bytes(range(256)), r"is not a whole safetensors file .*: download it again"),
    "html": (b"<!DOCTYPE html>\n<html>", r"is not a whole safetensors file .*: download it again"),
    "LFS pointer": (LFS_POINTER, r"is a Git LFS pointer, .*: run `git lfs pull`"),
    "torch.save": (torch_saved(legacy=False), r"is a pickle, which can run code .*: use the .safetensors file"),
    "old torch.save": (torch_saved(legacy=True), r"is a pickle"),
    "pickle": (pickle.dumps([1, 2]), r"is a pickle"),
    "absent": (None, r"is missing: download it, or its .fp16.safetensors variant"),
}  # fmt: skip
FOLDERS = {  # what is done to a good folder -> what the message says
    "truncated": (lambda f: put(f / W, (f / W).read_bytes()[:-9]), rf"{W} is not a whole safetensors file .*cut short.*: down"),
    "LFS pointer, text encoder": (lambda f: put(f / T, LFS_POINTER), rf"{T} is a Git LFS pointer"),
    "only .bin, unet": (lambda f: only_bin(f, UNET), rf"{UNET}.bin is a pickle, .*: use the .safetensors"),
    "only .bin, text encoder": (lambda f: only_bin(f, TEXT), rf"{TEXT}.bin is a pickle, .*: use the .safetensors"),
    "weights are a folder": (lambda f: [put(f / W, None), (f / W).mkdir()], rf"{W} cannot be read .*: give a .safetensors file"),
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
    "other blocks": ("unet", {"down_block_types": ["AttnDownBlock2D"] * 3}, r"blocks .* are not those of .*: use one"),
    "uneven blocks": ("unet", {"up_block_types": ["UpBlock2D"] * 3}, r"blocks .* are not those of .*: use one"),
    "too few heads": ("unet", {"attention_head_dim": [2, 2]}, r"attention_head_dim has 2 numbers for 3 levels: download"),
    "uneven heads": ("unet", {"attention_head_dim": 3}, r"32 channels cannot be shared out among 3 heads: download"),
    "another autoencoder": ("vae", {"latent_channels": 16}, r"latent_channels is 16 and"),
    "a shifted autoencoder": ("vae", {"shift_factor": 0.1}, r"shift_factor is 0.1 and"),
    "prediction": ("scheduler", {"prediction_type": "sample"}, r"prediction_type is 'sample' and .*'v_prediction': use"),
    "betas": ("scheduler", {"beta_schedule": "squaredcos_cap_v2"}, r"beta_schedule is 'squaredcos_cap_v2' and"),
    "trained betas": ("scheduler", {"trained_betas": [0.1, 0.2]}, r"trained_betas is \[0.1, 0.2\] and"),
    "zero terminal SNR": ("scheduler", {"rescale_betas_zero_snr": True}, r"rescale_betas_zero_snr is True and"),
    "falling betas": ("scheduler", {"beta_end": 1e-5}, r"beta_start and beta_end do not rise .*1e-05.*: download"),
}  # fmt: skip


def refused(path, message: str = "") -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path, message", PATHS.values(), ids=PATHS)
def test_a_wrong_path_is_refused(folder, path, message):
    refused(path(folder), message)


@pytest.mark.parametrize("content, message", CONTENTS.values(), ids=CONTENTS)
def test_a_file_that_is_no_weights_is_refused(folder, content, message):
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


def test_groups_that_do_not_divide_are_refused(folder):
    refused(configure(folder, "unet", norm_num_groups=7), rf"{W}: its config cannot be built .*: download the config again")


X, C = "model.diffusion_model.", "cond_stage_model.transformer.text_model."


def wider_text(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.repeat(1, 2) if name.endswith(READ_TEXT) else t for name, t in state.items()}


SINGLE_FILES = {  # what is done to a good single file's tensors -> what the message says
    "inpainting": (plus(f"{X}input_blocks.0.0.weight", 32, 9, 3, 3), r"9 channels \(an inpainting model\).*: use the plain"),
    "SDXL": (plus("conditioner.embedders.0.transformer.x", 1), r"is Stable Diffusion XL: .*use one of those"),
    "SD2": (plus("cond_stage_model.model.ln_final.bias", 1), r"single file of Stable Diffusion 2.x: use the folder"),
    "LoRA": (lambda s: {"lora_unet_down_blocks_0_attentions_0.hada_w1_a": torch.zeros(4)}, r"is a LoRA, .*: merge it"),
    "LoRA of diffusers": (lambda s: {"unet.down_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4)}, r"is a LoRA"),
    "LoRA of 2023": (lambda s: {"unet.down_blocks.0.attn1.to_q.lora.down.weight": torch.zeros(4)}, r"is a LoRA"),
    "no UNet": (without(X), rf"has no tensors named {X}\*: it is not a whole Stable Diffusion 1.x checkpoint, use"),
    "no VAE": (without("first_stage_model."), r"has no tensors named first_stage_model.\*: "),
    "no text encoder": (without("cond_stage_model."), r"has no tensors named cond_stage_model.transformer.\*: "),
    "another network": (lambda s: {"encoder.weight": torch.zeros(3)}, r"has no tensors named model.diffusion_model.\*: "),
    "unknown tensor": (plus("control_model.x", 1), r"has 1 unknown tensors, the first control_model.x: .*use one"),
    "unknown in a part": (plus(f"{X}label_emb.0.0.weight", 1), r"has an unknown tensor label_emb.0.0.weight: .*download"),
    "missing tensor": (without("input_blocks.1.0.in_layers.2.weight"), r"lacks down_blocks.0.resnets.0.conv1.weight: .*download"),
    "no sizes": (without("input_blocks.1.0.in_layers.2.bias"), r"lacks the tensor 'down_blocks.0.resnets.0.conv1.bias': "),
    "no middle": (without(f"{X}middle_block."), r"lacks the tensor 'mid_block\S+': it is not a whole checkpoint, download"),
    "no embedding": (without("token_embedding"), r"lacks the tensor 'embeddings.token_embedding.weight'"),
    "a flat embedding": (plus(f"{C}embeddings.token_embedding.weight", 9), r"has tensors that are not a network's: .*download"),
    "a number for a layer": (plus(f"{X}input_blocks.0.0.weight"), r"conv_in.weight has shape \(\), not"),
    "a strange number": (plus(f"{X}input_blocks.0.0.op.weight", 1), r"has an unknown tensor"),
    "no number": (plus(f"{X}x.op.weight", 1), r"has an unknown tensor x.op.weight"),
    "strange levels": (plus("first_stage_model.decoder.up.x.block", 1), r"unknown tensor decoder.up.x.block"),
    "wrong shape": (plus(f"{X}out.2.bias", 5), r"conv_out.bias has shape \(5,\), not \(4,\): .*download"),
    "text width": (wider_text, r"text encoder is 64 wide and its UNet expects 128: use parts of one model"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, message", SINGLE_FILES.values(), ids=SINGLE_FILES)
def test_a_wrong_single_file_is_refused(single, single_state, spoil, message):
    refused(put(single, spoil(single_state)), rf"{single}.* {message}")


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth", ".CKPT"])
def test_a_pickle_is_refused_by_its_name_and_never_opened(tmp_path, suffix):
    file = put(tmp_path / f"model{suffix}", b"anything")
    refused(file, f"{file} is a pickle, which can run code .*: use the .safetensors file")


def test_a_single_file_with_the_wrong_vocabulary_is_refused(single):
    vocab = json.loads((single.parent / "tokenizer/vocab.json").read_text())
    put(single.parent / "tokenizer/vocab.json", vocab | {f"more{i}": len(vocab) + i for i in range(9)})
    refused(single, r"tokenizer has \d+ tokens and its text encoder knows \d+: use parts of one model")


READERS = {  # and which of their settings are read
    "unet": (
        configs.read_unet,
        """in_channels out_channels act_fn block_out_channels down_block_types up_block_types attention_head_dim sample_size
        num_attention_heads layers_per_block cross_attention_dim norm_num_groups norm_eps use_linear_projection""",
    ),
    "vae": (configs.read_vae, "block_out_channels layers_per_block norm_num_groups scaling_factor latent_channels"),
    "text_encoder": (
        configs.read_clip,
        """hidden_size num_attention_heads num_hidden_layers intermediate_size vocab_size hidden_act
        max_position_embeddings layer_norm_eps""",
    ),
    "scheduler": (configs.read_schedule, "beta_start beta_end beta_schedule steps_offset set_alpha_to_one prediction_type"),
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
        if checkpoint.read_safetensors(file) == {}:
            load(file)  # `{}` is a whole file of no tensors


# ---------------------------------------------------------------- device and dtype


@pytest.mark.parametrize("dtype, found", [(None, torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_dtype_is_the_one_asked_for(sd1, dtype, found):
    sd = StableDiffusion.load(sd1.folder, device="cpu", dtype=dtype)
    weights = [weight for module in (sd.unet, sd.vae, sd.text_encoder) for weight in module.parameters()]
    assert {weight.dtype for weight in weights} == {sd.dtype} == {found}
    assert not any(weight.requires_grad for weight in weights) and not sd.unet.training
    result = sd.generate("a cat", steps=2, size=64, progress=False)
    assert result.latents.dtype == torch.float32 and result.latents.isfinite().all()


@pytest.mark.parametrize("dtype", ["float8", "int8", "nn", "", "Float16", torch.int64, 16])
def test_unknown_dtype(sd1, dtype):
    with pytest.raises(PromptError, match=r"dtype .* is unknown: use float32, float16 or bfloat16") as error:
        StableDiffusion.load(sd1.folder, device="cpu", dtype=dtype)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "cpu0", *(["cuda"] if not torch.cuda.is_available() else [])])
def test_unknown_device(sd1, device):
    with pytest.raises(PromptError, match=r"device .* is (unknown|not available).*: .*use ") as error:
        StableDiffusion.load(sd1.folder, device=device)
    assert "\n" not in str(error.value)
