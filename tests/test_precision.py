"""Half precision, what is not finite, and that the loop never waits for the device."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minip2p import Add, LocalBlend, PromptError, Reweight, StableDiffusion, Swap
from minip2p.attention import Attention
from minip2p.devices import pick_device
from minip2p.inversion import ddim_inversion

TOY = Path(__file__).resolve().parent.parent / "weights" / "toy"
PROMPTS = ["a red cat on the grass", "a red dog on the grass"]
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def toy() -> StableDiffusion:
    return StableDiffusion.load(TOY, device="cpu")


def psnr(ours, theirs) -> torch.Tensor:
    """dB of each picture, before they are rounded to eight bits: values from -1 to 1."""
    return -10 * ((ours - theirs) / 2).square().mean((1, 2, 3)).log10()


def pictures(sd: StableDiffusion, what: str, seeds: int) -> torch.Tensor:
    """Some seeds of a plain generation or of an edit, as the VAE makes them."""
    swap = Swap(sd.tokenizer, PROMPTS)
    edits = {"swap": swap, "recorded": swap, "weight": Reweight(sd.tokenizer, PROMPTS, {"grass": -2.0}, base=swap),
             "blend": replace(swap, blend=LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog"]))}  # fmt: skip
    latents = []
    for seed in range(seeds):
        kept = {"recording": sd.record(PROMPTS[0], seed=seed, steps=10, **QUIET)} if what == "recorded" else {}
        latents.append(sd.generate(PROMPTS, seed=seed, steps=10, edit=edits.get(what), **kept, **QUIET).latents)
    with torch.no_grad():
        scaled = torch.cat(latents) / sd.vae.config.scaling_factor
        return sd.vae.decode(scaled.to(sd.device, sd.dtype)).float().cpu().clamp(-1, 1)


@pytest.mark.parametrize("what", ["generation", "swap", "weight", "blend", "recorded"])
@pytest.mark.parametrize(
    "device, dtype, seeds, least",
    [("cpu", "bfloat16", 3, 40), ("cpu", "float16", 1, 40),  # of which CPUs compute the second slowly
     ("cuda", "bfloat16", 3, 40), ("cuda", "float16", 3, 40), ("cuda", "float32", 3, 60)],  # TF32 in convolutions, as torch has it
)  # fmt: skip
def test_other_precisions_make_the_same_pictures(toy, device, dtype, seeds, least, what):
    """By the median picture: now and then the rounding of bfloat16 decides on which side of a fence a detail falls."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    other = StableDiffusion.load(TOY, device, dtype)
    alike = psnr(pictures(other, what, seeds), pictures(toy, what, seeds))
    assert alike.median() > least and alike.min() > least - 15, alike


@torch.no_grad()
def test_scores_beyond_float16_are_finite_at_the_seam():
    """Some models' scores exceed 65504. The fused kernel does not write them down; at the seam they must not be float16 either."""
    attention = Attention(8, 8, heads=1).half()
    for linear in (attention.to_q, attention.to_k):
        torch.nn.init.constant_(linear.weight, 40.0)
    x = torch.tensor([1.0, 0.5, 0.25, 1.0]).half()[None, :, None].expand(1, 4, 8)
    scores = attention.to_q(x) @ attention.to_k(x).transpose(-1, -2) * 8**-0.5
    assert scores.isinf().any()
    site = attention.site(2, 2)
    at_the_seam = attention(x, x, site, edit=lambda maps, site: maps)
    assert at_the_seam.isfinite().all() and torch.allclose(at_the_seam, attention(x, x, site), atol=1e-2)


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
@pytest.mark.parametrize("dtype, fix", [("float32", "float16 would not help"), ("float16", "dtype bfloat16 or float32")])
def test_what_is_not_finite_is_named(sd1, dtype, fix, spoiled, part):
    sd = StableDiffusion.load(sd1.folder, device="cpu", dtype=dtype)
    network, _, name = spoiled.partition(".")
    getattr(sd, network).get_parameter(name).data[0] = torch.nan
    with pytest.raises(FloatingPointError, match=f"output of {part} is not finite in torch.{dtype}: .*{fix}") as error:
        sd.encode_image(sd.generate(PROMPTS, steps=1, **QUIET).images[0])
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- the device


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_the_loop_never_waits_for_the_device(sd1, monkeypatch, device):
    """On the meta device there are no numbers: whoever asks for one raises. On a GPU torch itself keeps watch."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    there = torch.device(device)
    own = StableDiffusion.load(sd1.folder, device="cpu")
    moved = {name: getattr(own, name).to(there) for name in ("text_encoder", "unet", "vae")}
    sd = replace(own, **moved, device=there)
    forwards, checks = [], []  # how many forward passes there have been when a result is looked at
    monkeypatch.setattr(StableDiffusion, "check_finite", lambda sd, values, part="": checks.append(len(forwards)))
    monkeypatch.setattr(StableDiffusion, "decode_latents", lambda sd, latents: [])
    monkeypatch.setattr("minip2p.saved.Kept.fits", lambda *given, **named: None)
    monkeypatch.setattr("minip2p.recording.fingerprint", lambda sd: torch.zeros(2, 1))
    forward = sd.unet.forward  # watched from the first step on; what is copied before it may be waited for

    def watched(*given, **named):
        torch.cuda.set_sync_debug_mode("error") if device == "cuda" else None
        forwards.append(given)
        return forward(*given, **named)

    monkeypatch.setattr(sd.unet, "forward", watched)
    try:
        blend = LocalBlend(sd.tokenizer, PROMPTS, ["cat", "dog"], exclude="grass", start=0.0)
        edit = Add(sd.tokenizer, PROMPTS, {"default_": 0.8, "dog": (0.2, 0.6)}, 0.4, blend)
        assert sd.generate(PROMPTS, steps=4, edit=edit, record=True, **QUIET).latents.shape == (2, 4, 16, 16)
        assert checks and set(checks) == {4}, "only after the last step"
        torch.cuda.set_sync_debug_mode("default") if device == "cuda" else None
        recording = sd.record(PROMPTS[0], steps=4, **QUIET)
        torch.cuda.set_sync_debug_mode("default") if device == "cuda" else None
        text = sd.encode_text(PROMPTS[0])
        assert ddim_inversion(sd, recording.latents[-1:], text, 4, progress=False).shape == (5, 4, 16, 16)
        torch.cuda.set_sync_debug_mode("default") if device == "cuda" else None
        assert sd.generate(PROMPTS, recording=recording, edit=edit, **QUIET).latents.shape == (2, 4, 16, 16)
    finally:
        torch.cuda.set_sync_debug_mode("default") if device == "cuda" else None


@pytest.mark.parametrize("device", ["tpu9", "xpu", "meta", "gpu", "cpu0", "cuda:x", "cuda:99", 3.5, True, ["cpu"], ""])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(PromptError, match="device") as error:
        pick_device(device)
    assert "\n" not in str(error.value) and ("use one of cuda, mps, cpu" in str(error.value) or "use cpu" in str(error.value))


# ---------------------------------------------------------------- other slips that used to be tracebacks, or silence


@pytest.mark.parametrize(
    "options, named",
    [
        ({"edit": "swap"}, "edit is 'swap': give a Swap"),
        ({"negative": "snow", "guidance": 1}, "no say at guidance 1"),
    ],
)
def test_what_generate_cannot_use_is_refused(sd1, options, named):
    with pytest.raises(PromptError, match=named):
        sd1.ours.generate(PROMPTS, steps=1, **options, **QUIET)


def test_a_path_is_no_picture_yet(sd1):
    with pytest.raises(PromptError, match="the image is a str: open it first"):
        sd1.ours.encode_image("photo.png")
