"""Every layout of the same weights gives the same networks, on the device and in the dtype asked for."""

from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file

from minip2p import RequestError, StableDiffusion, checkpoint, configs, convert
from minip2p.clip import CLIPConfig, TextEncoder
from minip2p.unet import UNet, UNetConfig
from minip2p.vae import VAE, VAEConfig
from tests.checkpoints import TEXT, UNET, VAE_, change, configure, load, manifest, put, refused
from tests.pipelines import difference

META = torch.device("meta")


def empty(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


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


SAMPLER = {  # what concerns only how another sampler walks the noise levels, as in folders saved with EulerDiscreteScheduler
    "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace", "interpolation_type": "linear", "clip_sample": True,
    "use_karras_sigmas": True, "thresholding": True, "skip_prk_steps": True, "sample_max_value": 1.0, "set_alpha_to_one": ...,
}  # fmt: skip
LAYOUTS = {
    "today": lambda f: f,
    "vae names of 2022": lambda f: change(f, VAE_, names_of_2022),
    "vae attention as convolutions": lambda f: change(f, VAE_, convolved),
    "text_model prefix and position_ids": lambda f: change(f, TEXT, prefixed),
    "vae config of 2022": lambda f: configure(f, "vae", use_quant_conv=..., mid_block_add_attention=..., shift_factor=...),
    "heads under their right name": lambda f: configure(f, "unet", num_attention_heads=2, attention_head_dim=99),
    "a scheduler that is not DDIM": lambda f: configure(f, "scheduler", _class_name="PNDMScheduler", prediction_type=...),
    "a sampler's own habits": lambda f: configure(f, "scheduler", **SAMPLER),
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
    assert 0 < difference(noise, exact) < 2e-3


def test_single_file_gives_the_networks_of_the_folder(deep, single):
    ours = load(single)
    assert_same(ours, deep.ours)
    assert torch.equal(ours.fingerprint("a cat"), deep.ours.fingerprint("a cat")), "a recording fits both"


def test_single_file_is_translated_as_diffusers_translates_it(deep, single_state):
    """Tensor by tensor, here with real numbers; deep's own folder is not asked."""
    file = convert.split_single_file(single_state)
    text = single_file_utils.convert_ldm_clip_checkpoint(single_state)
    references = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(single_state, deep.reference.unet.config),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(single_state, deep.reference.vae.config),
        "text_encoder": {name.removeprefix("text_model."): t for name, t in text.items() if "position_ids" not in name},
    }
    assert file.left_aside == []
    for part, reference in references.items():
        ours = getattr(file, part)
        assert ours.keys() == reference.keys()
        assert all(torch.equal(tensor.flatten(), reference[name].flatten()) for name, tensor in ours.items())


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
    "sd-vae": (VAE, configs.read_vae, SD_VAE, VAEConfig(), convert.convert_legacy_vae),
    "sd-vae-2022-names": (VAE, configs.read_vae, SD_VAE, VAEConfig(), convert.convert_legacy_vae),
    "sd1-text_encoder": (TextEncoder, configs.read_clip, SD1_TEXT, CLIPConfig(), convert.convert_text_encoder),
    "sd2-text_encoder": (TextEncoder, configs.read_clip, SD2_TEXT, SD2_TEXT_CONFIG, convert.convert_text_encoder),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_every_tensor_has_its_place(tmp_path, name):
    """`build_and_load` is strict: none missing, none left, every shape right. Only position_ids is ignored."""
    module_class, read, content, config, rename = FULL_SIZE[name]
    assert read(put(tmp_path / "config.json", content)) == config
    published = manifest(name)
    state = rename(empty(published))
    module = checkpoint.build_and_load(module_class, config, state, tmp_path, META, torch.float32)
    ignored = [tensor for tensor in published if tensor.endswith("position_ids")]
    assert len(module.state_dict()) == len(state) == len(published) - len(ignored)
    assert len(ignored) == name.endswith("text_encoder")


NETWORKS = ("unet", "vae", "text_encoder")


def test_full_size_single_file():
    """Every tensor of the published file is a network's, a buffer of positions, or one of the 14 of the schedule and of EMA."""
    published = manifest("sd1-single-file")
    file = convert.split_single_file(empty(published))
    buffers = [name for name in published if name.endswith("position_ids")]
    assert len(published) == 1131 + 14 and len(buffers) == 1 and file.left_aside == []
    assert len(convert.SCHEDULE & published.keys()) == 14
    assert sum(len(getattr(file, part)) for part in NETWORKS) == 1131 - len(buffers)
    assert convert.infer_unet(file.unet) == UNetConfig()
    assert convert.infer_vae(file.vae) == VAEConfig()
    assert convert.infer_clip(file.text_encoder) == CLIPConfig()
    for part, name in zip(NETWORKS, ("sd1-unet", "sd-vae", "sd1-text_encoder")):
        module_class, _, _, config, rename = FULL_SIZE[name]
        assert shapes(getattr(file, part)) == shapes(rename(empty(manifest(name))))
        checkpoint.build_and_load(module_class, config, getattr(file, part), Path("single"), META, torch.float32)


def test_full_size_single_file_names_are_diffusers_names(compvis):
    """Names alone can be right and yet crossed: the places of all 1,130 tensors, one by one."""
    numbered = list(manifest("sd1-single-file"))
    file = convert.split_single_file({name: torch.full((1,), i) for i, name in enumerate(numbered)})
    ours = {f"{part}.{name}": numbered[marker] for part in NETWORKS for name, marker in getattr(file, part).items()}
    assert ours == {name: old for name, old in compvis.items() if "position_ids" not in name}


# ---------------------------------------------------------------- device and dtype


@pytest.mark.parametrize("dtype, found", [(None, torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_dtype_is_the_one_asked_for(sd1, dtype, found):
    sd = StableDiffusion.load(sd1.folder, device="cpu", dtype=dtype)
    weights = [weight for module in (sd.unet, sd.vae, sd.text_encoder) for weight in module.parameters()]
    assert {weight.dtype for weight in weights} == {sd.dtype} == {found}
    assert not any(weight.requires_grad for weight in weights) and not sd.unet.training
    result = sd.generate("a cat", steps=2, size=64, progress=False)
    assert result.latents.dtype == torch.float32 and result.latents.isfinite().all()


@pytest.mark.parametrize("dtype", ["float64", "torch.float64", "double", torch.float64])
def test_float64_is_refused(sd1, dtype):
    """Attention is computed in float32, so it would not be float64."""
    with pytest.raises(RequestError, match=r"^dtype float64 is not supported, .*: use float32$"):
        StableDiffusion.load(sd1.folder, device="cpu", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float8", "int8", "nn", "", "Float16", torch.int64, 16])
def test_unknown_dtype(sd1, dtype):
    with pytest.raises(RequestError, match=r"dtype .* is unknown: use float32, float16 or bfloat16") as error:
        StableDiffusion.load(sd1.folder, device="cpu", dtype=dtype)
    assert "\n" not in str(error.value)
