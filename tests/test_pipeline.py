"""The loop: guidance, noise, what is recorded and what a function at the seam is shown; pictures in and out."""

import numpy as np
import pytest
import torch
from PIL import Image

import minip2p
from minip2p import PromptError, Reweight, StableDiffusion
from minip2p.ddim import ddim_step
from tests.pipelines import difference
from tests.restatement import sharp_pipeline

STEPS, T = 4, 77
PROMPTS = ["a red cat on the grass", "a bicycle on a red bicycle"]


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def both(request, tmp_path_factory):
    """(diffusers' pipeline, ours), once with an epsilon and once with a v model."""
    folder = tmp_path_factory.mktemp(request.param)
    return sharp_pipeline(folder, request.param), StableDiffusion.load(folder, device="cpu")


@pytest.fixture(scope="module")
def sd(both) -> StableDiffusion:
    return both[1]


@pytest.fixture(scope="module")
def recorded(sd) -> minip2p.Result:
    return generate(sd, record=True)


def generate(sd: StableDiffusion, prompts=PROMPTS, **options) -> minip2p.Result:
    return sd.generate(prompts, **{"steps": STEPS, "progress": False} | options)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return difference(a, b) < 1e-5


# ---------------------------------------------------------------- recorded maps


def test_each_pixel_shares_out_all_its_attention(recorded):
    for maps in (*recorded.maps.by_site.values(), recorded.maps.tokens(1)):
        torch.testing.assert_close(maps.float().sum(-1), torch.ones(maps.shape[:-1]), rtol=0, atol=2e-3)


def test_all_cross_attention_layers_are_recorded(sd, recorded):
    sites = [site for site in sd.unet.sites(16, 16) if site.kind == "cross"]
    assert list(recorded.maps.by_site) == sites and {site.place for site in sites} == {"down", "mid", "up"}
    for site, maps in recorded.maps.by_site.items():
        assert maps.shape == (STEPS, 2, site.height * site.width, T) and maps.dtype == torch.float16


def test_maps_of_words(sd, recorded):
    maps = recorded.maps
    tokens = maps.tokens(1)
    assert tokens.shape == (STEPS, 16, 16, T) and maps.word("cat").shape == (STEPS, 16, 16)
    positions = [2, 3, 7, 8]  # both tokens of "bicycle" at both its places
    assert torch.equal(maps.word("bicycle", prompt=1), tokens[..., positions].sum(-1))
    assert torch.equal(maps.word("red bicycle", prompt=1), tokens[..., 6:9].sum(-1))
    assert torch.equal(maps.word("bicycle", prompt=1, mean=True), maps.word("bicycle", 1).mean(0))
    assert not torch.allclose(maps.word("red", 0), maps.word("red", 1))
    for word, prompt, reason in (
        ("cat", 1, "'cat' is not in the prompt"),
        ("dog", 0, "a, red, cat"),
        ("", 0, "''"),
        ("cat", 2, "no prompt 2"),
    ):
        with pytest.raises(PromptError, match=reason):
            maps.word(word, prompt)


@pytest.mark.parametrize("size, shape", [((64, 96), (16, 24)), (128, (16, 16)), ((32, 48), (8, 12))])
def test_maps_are_those_nearest_16_x_16(sd, size, shape):
    result = generate(sd, "a cat", size=size, steps=1, record=True)
    assert result.maps.word("cat", mean=True).shape == shape
    height, width = (size, size) if isinstance(size, int) else size
    assert result.images[0].size == (width, height) and result.latents.shape == (1, 4, height // 4, width // 4)


def test_recording_does_not_change_the_picture(sd, recorded):
    plain = generate(sd)
    assert plain.maps is None and close(recorded.latents, plain.latents)
    assert all(np.abs(np.int16(a) - np.int16(b)).max() <= 1 for a, b in zip(plain.images, recorded.images))


def test_recorded_maps_are_the_edited_ones(sd, recorded):
    prompts = [PROMPTS[0], PROMPTS[0]]
    maps = generate(sd, prompts, edit=Reweight(sd.tokenizer, prompts, {"cat": 0}, cross_replace_steps=0.5), record=True).maps
    assert not maps.word("cat", 1)[: STEPS // 2].any() and maps.word("cat", 1)[STEPS // 2 :].all()
    torch.testing.assert_close(maps.word("cat", 0), recorded.maps.word("cat", 0), rtol=0, atol=1e-4)


# ---------------------------------------------------------------- a function at the seam


def test_a_function_is_asked_everywhere_at_every_step_about_the_half_with_text(sd, recorded):
    seen = []

    def look(maps, site):
        seen.append((site, maps))
        return maps

    result = generate(sd, edit=look)
    sites = sd.unet.sites(16, 16)
    assert len(seen) == len(sites) * STEPS and {site for site, _ in seen} == set(sites)
    assert all(maps.shape[0] == 2 and maps.shape[2] == site.height * site.width for site, maps in seen)
    assert close(result.latents, recorded.latents)
    for site, notes in recorded.maps.by_site.items():
        shown = torch.stack([maps.mean(1) for where, maps in seen if where == site])
        assert difference(shown, notes.float()) < 1e-3

    with_guidance, seen = seen[: len(sites)], []
    generate(sd, edit=look, guidance=1)  # without guidance there is no other half to mix up
    assert len(seen) == len(sites) * STEPS
    for (site, ours), (other, theirs) in zip(seen, with_guidance):  # the first step: the same noise
        assert site == other and difference(ours, theirs) < 1e-4


def test_what_a_function_returns_is_what_happens(sd, recorded):
    def blind(maps, site):
        return maps * 0 if site.kind == "cross" else maps

    latents = generate(sd, edit=blind).latents
    assert not close(latents, recorded.latents)
    assert torch.equal(latents[0], latents[1]) or close(latents[0], latents[1]), "no text seen, so the prompts cannot differ"
    assert not close(latents, generate(sd, negative=PROMPTS[0], edit=blind).latents), "the half without the prompt is left alone"


# ---------------------------------------------------------------- guidance


def by_hand(sd: StableDiffusion, prompt: str, guidance: float, negative: str = "") -> torch.Tensor:
    """The same picture's latents from one UNet call a prompt and step."""
    text, without = sd.encode_text(prompt), sd.encode_text(negative)
    z, alphas = sd.noise(0), sd.schedule.alphas(STEPS)
    with torch.no_grad():
        for t, a, a_next in zip(sd.schedule.timesteps(STEPS), alphas, alphas[1:]):
            conditional, other = (sd.schedule.noise(sd.unet(z, t, c), z, a) for c in (text, without))
            z = ddim_step(z, other + guidance * (conditional - other), a, a_next)
    return z


@pytest.mark.parametrize("guidance, batch", [(7.5, 4), (0, 4), (1.0, 2), (1, 2)])
def test_guidance(sd, monkeypatch, guidance, batch):
    sizes, forward = [], sd.unet.forward

    def counted(latents, t, text, edit=None):
        sizes.append((latents.shape[0], text.shape[0]))
        return forward(latents, t, text, edit)

    monkeypatch.setattr(sd.unet, "forward", counted)
    latents = generate(sd, guidance=guidance).latents
    assert sizes == [(batch, batch)] * STEPS
    for prompt, ours in zip(PROMPTS, latents):
        assert close(ours, by_hand(sd, prompt, guidance)[0])


def test_a_negative_prompt_takes_the_place_of_the_empty_one(sd):
    result = generate(sd, PROMPTS[0], negative="a blue house")
    assert close(result.latents, by_hand(sd, PROMPTS[0], 7.5, "a blue house"))
    assert not close(result.latents, by_hand(sd, PROMPTS[0], 7.5))


# ---------------------------------------------------------------- noise


def test_all_prompts_start_from_one_noise(sd, recorded):
    assert recorded.start.shape == (1, 4, 16, 16) and recorded.prompts == tuple(PROMPTS)
    assert torch.equal(recorded.start, torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)))
    for prompt, together in zip(PROMPTS, recorded.latents):
        assert close(together, generate(sd, prompt).latents[0])


def test_a_seed_is_a_picture(sd, recorded):
    torch.manual_seed(5)
    again, other = generate(sd, record=True), generate(sd, seed=1)
    assert torch.equal(again.latents, recorded.latents) and not close(other.latents, recorded.latents)
    assert [a.tobytes() for a in again.images] == [b.tobytes() for b in recorded.images]


def test_latents_to_start_from(sd, recorded):
    assert close(generate(sd, latents=recorded.start, seed=9).latents, recorded.latents)
    apiece = torch.cat([recorded.start, sd.noise(1)])
    latents = generate(sd, latents=apiece).latents
    assert close(latents[0], recorded.latents[0]) and close(latents[1], generate(sd, seed=1).latents[1])
    assert generate(sd, "a cat", latents=torch.zeros(1, 4, 8, 12, dtype=torch.float64), steps=1).images[0].size == (48, 32)


# ---------------------------------------------------------------- pictures


def test_pictures_to_latents_and_back(both):
    reference, sd = both
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    latents = sd.encode_image(Image.fromarray(pixels))
    assert latents.shape == (1, 4, 16, 24) and latents.dtype == torch.float32 and not latents.requires_grad
    scaled = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        assert close(latents, reference.vae.encode(scaled).latent_dist.mean * reference.vae.config.scaling_factor)
        theirs = reference.vae.decode(latents / reference.vae.config.scaling_factor).sample[0].permute(1, 2, 0)
    (picture,) = sd.decode_latents(latents)
    assert picture.size == (96, 64) and picture.mode == "RGB"
    assert np.abs(np.asarray(picture, float) - ((theirs / 2 + 0.5).clamp(0, 1) * 255).numpy()).max() <= 0.51
    assert len(sd.decode_latents(latents.expand(3, -1, -1, -1))) == 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_any_kind_of_picture_is_encoded_as_its_colours(sd, mode):
    picture = Image.linear_gradient("L").resize((64, 64)).convert(mode)
    assert torch.equal(sd.encode_image(picture), sd.encode_image(picture.convert("RGB")))
