"""Half precision, torch's global settings, values that are not finite, and that the loop never waits for the device."""

from dataclasses import replace

import pytest
import torch

from minip2p import Add, LocalBlend, RequestError, Reweight, StableDiffusion, Swap, invert
from minip2p.attention import Attention
from minip2p.attention_store import AttentionStore
from minip2p.devices import pick_device
from minip2p.inversion import ddim_inversion
from tests.conftest import TOY
from tests.inversions import PROMPT, RATE, SIZE, input_picture
from tests.torch_settings import SETTINGS, default_dtype

PROMPTS = ["a red cat on the grass", "a red dog on the grass"]
QUIET = {"progress": False}


def psnr(ours, theirs) -> torch.Tensor:
    """In dB, of each picture, before it is rounded to eight bits: values from -1 to 1."""
    return -10 * ((ours - theirs) / 2).square().mean((1, 2, 3)).log10()


def pictures(sd: StableDiffusion, what: str, seeds: int, steps: int) -> torch.Tensor:
    """Some seeds of generation or of an edit, as the VAE decodes them."""
    blend = LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog"])
    edit = Reweight(sd.tokenizer, PROMPTS, {"grass": -2.0}, base=Swap(sd.tokenizer, PROMPTS, blend=blend))
    latents = []
    for seed in range(seeds):
        options = {"seed": seed, "steps": steps}
        if what == "every edit, recorded":
            options = {"recording": sd.record(PROMPTS[0], **options, **QUIET), "edit": edit}
        latents.append(sd.generate(PROMPTS, **options, **QUIET).latents)
    with torch.no_grad():
        scaled = torch.cat(latents) / sd.vae.config.scaling_factor
        return sd.vae.decode(scaled.to(sd.device, sd.dtype)).float().cpu().clamp(-1, 1)


def alike(folder, device: str, dtype: str, like: StableDiffusion, what: str, seeds: int, steps: int, monkeypatch):
    """The median and the least PSNR of the pictures of a model in another precision."""
    monkeypatch.setattr(StableDiffusion, "decode_latents", lambda sd, latents: [])  # `pictures` decodes, without rounding
    other = StableDiffusion.load(folder, device, dtype)
    found = psnr(pictures(other, what, seeds, steps), pictures(like, what, seeds, steps))
    return found.quantile(0.5), found.min()


@pytest.mark.parametrize("dtype, least", [("bfloat16", 38), ("float16", 48)])  # float16 rounds an eighth as coarsely
def test_half_precision_makes_the_same_pictures(sharp1, monkeypatch, dtype, least):
    """On a model with random weights, because most CPUs compute the toy in half precision slowly."""
    assert min(alike(sharp1.folder, "cpu", dtype, sharp1.ours, "every edit, recorded", 1, 3, monkeypatch)) > least


# bfloat16's medians were 38 to 40 dB on an H200. float32 has TF32 in convolutions, torch's default; its worst picture had 39.6 dB.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("what", ["generation", "every edit, recorded"])
@pytest.mark.parametrize("dtype, least", [("bfloat16", 35), ("float16", 40), ("float32", 60)])
def test_a_gpu_makes_the_pictures_of_the_cpu(toy, monkeypatch, dtype, least, what):
    """By the median picture: in some, rounding changes a detail, or a cell of a blend's mask that is just at its threshold."""
    middle, worst = alike(TOY, "cuda", dtype, toy, what, 3, 10, monkeypatch)
    assert middle > least and worst > min(least, 50) - 15


@torch.no_grad()
def test_scores_beyond_float16_are_finite_where_maps_are_edited():
    """Some models' scores exceed 65504. The fused kernel keeps them in float32, and so does the edited path."""
    attention = Attention(8, 8, heads=1).half()
    for linear in (attention.to_q, attention.to_k):
        torch.nn.init.constant_(linear.weight, 40.0)
    x = torch.tensor([1.0, 0.5, 0.25, 1.0]).half()[None, :, None].expand(1, 4, 8)
    scores = attention.to_q(x) @ attention.to_k(x).transpose(-1, -2) * 8**-0.5
    assert scores.isinf().any()
    site = attention.site(2, 2)
    edited = attention(x, x, site, edit=AttentionStore(full=True).at(0, 1))
    assert edited.isfinite().all() and torch.allclose(edited, attention(x, x, site), atol=1e-2)


# ---------------------------------------------------------------- torch's global settings


def numbers_of_a_run(sd: StableDiffusion, file) -> dict[str, torch.Tensor]:
    """What inverting, saving, loading, recording and editing give."""
    inversion = invert(sd, input_picture(), PROMPT, steps=2, size=SIZE, lr=RATE, inner_steps=2, **QUIET)
    inversion.save(file)
    blend = LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog"], exclude="grass", start=0.0, threshold=0.8)
    edit = Reweight(
        sd.tokenizer, PROMPTS, {"dog": 2.0}, base=Add(sd.tokenizer, PROMPTS, {"default_": 0.8, "dog": (0.2, 1)}, 0.6, blend)
    )
    result = sd.generate(PROMPTS, inversion=type(inversion).load(file), edit=edit, record="all", **QUIET)
    recording = sd.record(PROMPT, steps=2, size=SIZE, **QUIET)
    replayed = sd.generate(PROMPTS, recording=recording, edit=edit, **QUIET)
    losses = torch.tensor(inversion.losses, dtype=torch.float64, device="cpu")
    names = ("latents", "trajectory", "pred_x0", "masks")
    return {name: getattr(result, name) for name in names} | {
        "pivot": inversion.latents, "null text": inversion.uncond, "losses": losses, "replayed": replayed.latents,
        "word": result.maps.word("dog", 1), "pixels": torch.tensor(list(result.images[1].tobytes()), device="cpu"),
        "text": sd.encode_text(PROMPTS),
    }  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(sd1, tmp_path_factory) -> dict[str, torch.Tensor]:
    return numbers_of_a_run(sd1.ours, tmp_path_factory.mktemp("runs") / "plain.safetensors")


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_torch_s_global_settings_change_nothing(sd1, undisturbed, tmp_path, setting):
    with setting():
        found = numbers_of_a_run(sd1.ours, tmp_path / "picture.safetensors")
    for name, expected in undisturbed.items():
        if name != "text" or setting is not SETTINGS["autocast"]:  # outside of generate and invert, autocast is the caller's wish
            assert found[name].dtype == expected.dtype and torch.equal(found[name], expected), name


def test_the_caller_s_settings_are_left_as_they_were(sd1):
    with default_dtype(torch.float64), torch.inference_mode():
        sd1.ours.generate("a cat", steps=1, size=32, **QUIET)
        with pytest.raises(RequestError):
            sd1.ours.generate("a cat", steps=1, size=32, latents=torch.zeros(3), **QUIET)
        assert torch.get_default_dtype() == torch.float64 and torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


# ---------------------------------------------------------------- not finite


@pytest.mark.parametrize(
    "spoiled, part",
    [
        ("text_encoder.final_layer_norm.bias", "the text encoder"),
        ("unet.conv_out.bias", "the UNet"),
        ("vae.decoder.conv_out.bias", "the VAE's decoder"),
        ("vae.encoder.conv_out.bias", "the VAE's encoder"),
    ],
)
@pytest.mark.parametrize("dtype, fix", [("float32", "look for nan or inf in the weights"), ("float16", "dtype bfloat16 or float32")])
def test_the_network_whose_output_is_not_finite_is_named(sd1, dtype, fix, spoiled, part):
    sd = StableDiffusion.load(sd1.folder, device="cpu", dtype=dtype)
    network, _, name = spoiled.partition(".")
    getattr(sd, network).get_parameter(name).data[0] = torch.nan
    with pytest.raises(FloatingPointError, match=f"output of {part} is not finite in torch.{dtype}: .*{fix}") as error:
        sd.encode_image(sd.generate(PROMPTS, steps=1, size=32, **QUIET).images[0])
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- the device


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_the_loop_never_waits_for_the_device(sd1, monkeypatch, device):
    """On the meta device there are no numbers, so that reading one is an error. On a GPU torch's sync debug mode raises."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    there = torch.device(device)
    own = StableDiffusion.load(sd1.folder, device="cpu")
    moved = {name: getattr(own, name).to(there) for name in ("text_encoder", "unet", "vae")}
    sd = replace(own, **moved, device=there)
    forwards, checks = [], []  # how many forward passes there have been when a result is looked at

    def raise_where_it_waits(yes: bool) -> None:
        torch.cuda.set_sync_debug_mode("error" if yes else "default") if device == "cuda" else None

    def looked_at(sd, values, part=""):  # after the loop, when waiting is allowed
        raise_where_it_waits(False)
        checks.append(len(forwards))

    monkeypatch.setattr(StableDiffusion, "check_finite", looked_at)
    monkeypatch.setattr(StableDiffusion, "decode_latents", lambda sd, latents: [])
    monkeypatch.setattr("minip2p.saved.SavedRun.check", lambda *given, **named: None)
    monkeypatch.setattr(StableDiffusion, "fingerprint", lambda sd, prompt: torch.zeros(2, 1))
    monkeypatch.setattr("minip2p.recording.Replay.check", lambda edit: None)
    forward = sd.unet.forward  # watched from the first step on; before it, copies to the device may wait

    def watched(*given, **named):
        raise_where_it_waits(True)
        forwards.append(given)
        return forward(*given, **named)

    monkeypatch.setattr(sd.unet, "forward", watched)
    try:
        blend = LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog"], exclude="grass", start=0.0)
        edit = Add(sd.tokenizer, PROMPTS, {"default_": 0.8, "dog": (0.2, 0.6)}, 0.4, blend)
        assert sd.generate(PROMPTS, steps=3, edit=edit, record=True, **QUIET).latents.shape == (2, 4, 16, 16)
        assert checks and set(checks) == {3}, "only after the last step"
        raise_where_it_waits(False)
        recording = sd.record(PROMPTS[0], steps=3, **QUIET)
        raise_where_it_waits(False)
        text = sd.encode_text(PROMPTS[0])
        assert ddim_inversion(sd, recording.latents[-1:], text, 3, progress=False).shape == (4, 4, 16, 16)
        raise_where_it_waits(False)
        assert sd.generate(PROMPTS, recording=recording, edit=edit, **QUIET).latents.shape == (2, 4, 16, 16)
    finally:
        raise_where_it_waits(False)


@pytest.mark.parametrize("device", ["tpu9", "xpu", "meta", "gpu", "cpu0", "cuda:x", "cuda:99", 3.5, True, ["cpu"], ""])
def test_a_device_that_does_not_exist_is_refused(device):
    with pytest.raises(RequestError, match="device") as error:
        pick_device(device)
    assert "\n" not in str(error.value) and ("use one of cuda, mps, cpu" in str(error.value) or "use cpu" in str(error.value))
